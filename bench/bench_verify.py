"""Measures `verify --deep` of a large stored file against two threads that do nothing but sha256: `python -m bench.bench_verify [MIB]`.

Both hash the same bytes, which lie in the page cache. The yardstick maps the file and gives each thread every second MiB of it; it
does no more than the work that can't be left out. The limit is 0.9 of its rate.
"""

import hashlib
import mmap
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.side_by_side import PIECE_BYTES, interleaved, random_file, rate, report
from holdfast.config import load_settings
from holdfast.registry import verify
from holdfast.storage.cid import Cid
from holdfast.storage.opening import open_store

THREADS = 2


def plain_sha256(path: Path) -> None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        whole = memoryview(mapped)
        pieces = range(0, len(whole), PIECE_BYTES)
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda at: hashlib.sha256(whole[at : at + PIECE_BYTES]).digest(), pieces):
                pass
        whole.release()


def deep(home: Path, cid: Cid, size: int, *, mode: str) -> None:
    with open_store(load_settings(home, storage__verify=mode)) as store:
        tree = verify(store, cid, deep=True)
    assert tree.ok, tree.render()
    assert tree.size_bytes >= size, "every byte was hashed"


def main() -> None:
    mebibytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
        base = Path(folder)
        path = random_file(base / "file.bin", mebibytes << 20)
        with open_store(load_settings(base / "home")) as store:
            cid = store.add(path)
        size = path.stat().st_size
        candidates = {
            "sha256, two threads": lambda: rate(mebibytes, lambda: plain_sha256(path)),
            "verify --deep": lambda: rate(mebibytes, lambda: deep(base / "home", cid, size, mode="always")),
            "verify --deep, storage.verify = ingest": lambda: rate(
                mebibytes, lambda: deep(base / "home", cid, size, mode="ingest")
            ),
        }
        results = interleaved(candidates)
    report(f"Hashing a stored file of {mebibytes} MiB", "MiB/s", results, "sha256, two threads")


if __name__ == "__main__":
    main()
