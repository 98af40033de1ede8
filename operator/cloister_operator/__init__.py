"""The operator: watches FineTuneJobs and runs them on a Kubernetes cluster."""
