"""Blocks from other nodes: who has what, and how it is fetched."""
