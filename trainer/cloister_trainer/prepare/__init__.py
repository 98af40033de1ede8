"""prepare: everything that is checked and made before a device is taken."""
