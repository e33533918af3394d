"""Feeding training: each worker streams exactly its share of a dataset, in an order that no number of workers changes."""
