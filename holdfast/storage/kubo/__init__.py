"""A Kubo daemon as a block store."""
