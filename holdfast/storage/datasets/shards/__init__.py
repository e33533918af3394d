"""What shards are made of: where rows are cut, and the bytes of row groups in Parquet and in Arrow."""
