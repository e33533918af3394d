"""Measures the index of a large store: `python -m bench.bench_index [FOLDER] [BLOCKS]` (10 million; FOLDER takes 2 GB).

The entries are made directly, in the order of their keys, and lead to one segment of holes: what is measured is finding
blocks, opening the store, and committing to it. The candidates take turns; each line gives the median and the 99th percentile.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from holdfast.storage.cid import Cid
from holdfast.storage.local.index_rows import ENTRY
from holdfast.storage.local.local_store import LocalStore

BLOCKS = 10_000_000
LENGTH = 4096
LOOKUPS = 50_000
ROUNDS = 5
PREFIX = b"\x12\x20"


def digest(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def build(folder: Path, blocks: int) -> None:
    """An index of so many blocks, by appending sorted entries, a million in a transaction."""
    now = int(time.time())
    digests = sorted((digest(number), number) for number in range(blocks))
    with closing(LocalStore(folder)) as store:
        index = store._index  # noqa: SLF001 -- the public way would write the payloads, too
        for at in range(0, blocks, 1_000_000):
            with index.changing() as change:
                with change.txn.cursor(db=index.blocks) as cursor:
                    cursor.putmulti(
                        (
                            (PREFIX + key, ENTRY.pack(1, number * LENGTH, LENGTH, now))
                            for key, number in digests[at : at + 1_000_000]
                        ),
                        append=True,
                    )
                here = min(1_000_000, blocks - at)
                row = change.segment(1)
                row.blocks += here
                row.live_bytes += here * LENGTH
                change.totals.blocks += here
                change.totals.own_bytes += here * LENGTH
                change.set_end(1, row.end + here * LENGTH)
    with (folder / "segments" / "00000001.seg").open("wb") as segment:
        os.truncate(segment.fileno(), blocks * LENGTH)


def timed(run: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    run(*arguments)
    return time.perf_counter() - start


def report(title: str, seconds: list[float]) -> None:
    ordered = sorted(seconds)
    median, late = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    print(f"  {title:<44}{median * 1e6:>12,.1f} us {late * 1e6:>12,.1f} us")


def main() -> None:
    blocks = int(sys.argv[2]) if len(sys.argv) > 2 else BLOCKS
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as name:
        folder = Path(name)
        built = timed(build, folder, blocks)
        print(f"index of {blocks:,} blocks, built in {built:,.0f} s (median, 99th percentile)")
        opening, adding = [], []
        has: list[float] = []
        get: list[float] = []
        missing: list[float] = []
        for turn in range(ROUNDS):
            start = time.perf_counter()
            store = LocalStore(folder)
            opening.append(time.perf_counter() - start)
            with closing(store):
                cids = [Cid(b"\x01\x55" + PREFIX + digest(i * 7919 % blocks)) for i in range(LOOKUPS)]
                strangers = [Cid.of(b"not there %d" % i) for i in range(LOOKUPS)]
                for cid, stranger in zip(cids, strangers, strict=True):
                    has.append(timed(store.has, cid))
                    get.append(timed(store.get, cid))
                    missing.append(timed(store.has, stranger))
                view = [Cid(b"\x01\x55" + PREFIX + digest(i)) for i in range(1024)]
                joined = store.view(view)
                assert joined is not None
                assert joined.nbytes == 1024 * LENGTH
                fresh = [(Cid.of(b"%d/%d" % (turn, i)), b"%d/%d" % (turn, i)) for i in range(1000)]
                adding.append(timed(store.put_many, fresh))
                held = store.statistics()
                assert held["blocks"] == blocks + 1000 * (turn + 1)
                stats = [timed(store.statistics) for _ in range(1000)]
                viewing = [timed(store.view, view) for _ in range(100)]
        report("opening the store", opening)
        report("has, of a block that is there", has)
        report("has, of one that is not", missing)
        report("get, of a block that is there", get)
        report("view of 1024 blocks back to back", viewing)
        report("statistics", stats)
        report("adding 1000 small blocks, durable", adding)


if __name__ == "__main__":
    main()
