"""The base model: what its folder holds, under which licence, which weights get an adapter, and what fits into memory."""
