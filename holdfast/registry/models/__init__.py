"""Models as records: one format a framework, and the registry that names them."""
