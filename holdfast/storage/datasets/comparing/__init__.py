"""Which rows two datasets share, and whether a dataset has a row."""
