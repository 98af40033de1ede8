"""What no kubelet and no Ray do on the test control plane, played at their edges: pod status, logs, Ray's dashboard."""
