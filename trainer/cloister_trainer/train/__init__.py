"""Training: what the worker computes, and the run around it."""
