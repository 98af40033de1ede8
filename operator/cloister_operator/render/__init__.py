"""A job's children as Kubernetes objects: pure functions."""
