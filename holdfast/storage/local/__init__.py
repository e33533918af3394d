"""The embedded store: segments and index, pins, garbage collection, quota, references, checks."""
