"""Datasets: Arrow rows in Parquet or Arrow IPC shards, under a manifest whose CID is the dataset."""
