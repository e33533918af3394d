"""How bytes become blocks and blocks become bytes again: UnixFS, DAG-CBOR, DAG-JSON, DAG-PB, CAR, chunkers."""
