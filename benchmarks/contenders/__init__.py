"""Training loops that take the same rows and print how fast they went; each runs in a process of its own."""
