"""What an installation's own steps need of the object store: buckets, and the inputs of the first job."""
