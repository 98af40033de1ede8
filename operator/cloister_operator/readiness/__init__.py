"""Is this cluster ready? What `helm test` runs: look around, train a tiny model, print a table with fixes."""
