"""``ipfs://`` for fsspec."""
