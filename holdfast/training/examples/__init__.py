"""Training functions to start from: small, complete, on data that needs no download."""
