"""What a platform engineer does on a private cluster, for real: `make e2e`."""
