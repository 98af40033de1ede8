"""What the operator sees of a job, parsed from Kubernetes' objects into values that decisions read."""
