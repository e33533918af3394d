"""Processes that write to a store, and what they must leave behind: for tests of several of them."""

import subprocess
import sys
from contextlib import closing

from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore

WRITER = """
import hashlib, sys
from pathlib import Path
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.local.local_store import LocalStore

store = LocalStore(Path(sys.argv[1]), segment_size_bytes=int(sys.argv[2]))
name, rounds = sys.argv[3], int(sys.argv[4])
print("ready", flush=True)
for turn in range(rounds):
    batch = []
    for i in range(1 + turn % 7):
        data = hashlib.sha256(f"{name}/{turn}/{i}".encode()).digest() * (1 + (turn * 37 + i * 101) % 900)
        batch.append((Cid.of(data), data))
    store.put_many(batch)
    for cid, data in batch:
        if bytes(store.get(cid)) != data:
            print("wrong", cid, flush=True)
    print(*(cid for cid, _ in batch), flush=True)
store.close()
"""


def start_writer(folder, name, *, rounds=1_000_000, segment_size=200_000):
    arguments = [sys.executable, "-c", WRITER, str(folder), str(segment_size), name, str(rounds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def check_store(folder, acknowledged):
    """Everything acknowledged is there, and everything that is there is whole."""
    with closing(LocalStore(folder, segment_size_bytes=200_000)) as store:
        for cid in acknowledged:
            cid.check(store.get(cid), source="the store")
        for multihash in store.multihashes():
            cid = Cid(b"\x01\x55" + multihash)
            cid.check(store.get(cid), source="the store")
        return store.statistics()
