"""The trainer: prepare, train and publish, in a cluster or on one machine."""
