"""The base model: its folder, its licence, the weights that get an adapter, and what fits into memory."""
