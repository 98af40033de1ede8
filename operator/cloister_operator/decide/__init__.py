"""From an observation to actions: pure functions."""
