"""From the staged adapter to an immutable folder with a manifest, and back: `cloister verify`."""
