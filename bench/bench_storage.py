"""Measures the block store against `cp` with a sync, and CIDs against multiformats: `python bench/bench_storage.py [FOLDER]`.

The candidates take turns, so that a slow minute of the machine hits all of them; each line gives the median, the
spread (least to most), and the ratio to its yardstick. FOLDER decides which disk is measured.
"""

import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import multiformats

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local_store import LocalStore

ROUNDS = 5
FILE_BYTES = 256 << 20
PIECE_BYTES = 1 << 20


def interleaved(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each candidate returns in each round."""
    results: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            results[name].append(run())
    return results


def report(title: str, unit: str, results: dict[str, list[float]], yardstick: str) -> None:
    print(f"\n{title} ({unit}; median of {len(results[yardstick])}, spread, ratio to {yardstick})")
    base = statistics.median(results[yardstick])
    for name, values in results.items():
        median = statistics.median(values)
        print(
            f"  {name:<34}{median:>12,.0f}  {min(values):>12,.0f} .. {max(values):<12,.0f}{median / base:>7.2f} x"
        )


def rate(count: float, run: Callable[[], object]) -> float:
    """How many a second, when ``run`` does ``count`` of them."""
    gc.collect()
    gc.disable()  # as timeit does: what else lives in this process is not the subject
    try:
        start = time.perf_counter()
        run()
        return count / (time.perf_counter() - start)
    finally:
        gc.enable()


def copy_and_sync(source: Path, target: Path) -> None:
    with source.open("rb") as reading, target.open("wb") as writing:
        while piece := reading.read(PIECE_BYTES):
            writing.write(piece)
        writing.flush()
        os.fsync(writing.fileno())


def files(folder: Path) -> None:
    source = folder / "source"
    with source.open("wb") as file:
        for _ in range(FILE_BYTES // PIECE_BYTES):
            file.write(os.urandom(PIECE_BYTES))
    mebibytes = FILE_BYTES / (1 << 20)
    number = iter(range(1000))

    def added(profile: str) -> Callable[[], float]:
        def run() -> float:
            target = folder / f"store-{next(number)}"
            os.sync()  # what the one before left to be written is not this one's work
            with closing(LocalStore(target)) as blocks:
                result = rate(mebibytes, lambda: ContentStore(blocks, profile=profile).add(source))
            shutil.rmtree(target)
            return result

        return run

    def copied() -> float:
        os.sync()
        result = rate(mebibytes, lambda: copy_and_sync(source, folder / "copy"))
        (folder / "copy").unlink()
        return result

    results = interleaved(
        {
            "cp + fsync": copied,
            "add, unixfs-v1-2025 (1 MiB)": added("unixfs-v1-2025"),
            "add, kubo-v1-raw (256 KiB)": added("kubo-v1-raw"),
            "add, unixfs-v0-2015 (256 KiB)": added("unixfs-v0-2015"),
        },
        ROUNDS,
    )
    report("Adding a random 256 MiB file", "MiB/s", results, "cp + fsync")

    with closing(LocalStore(folder / "read")) as blocks:
        plain, verified = ContentStore(blocks), ContentStore(VerifyingStore(blocks, source="the disk"))
        cid = plain.add(source)

        def written(store: ContentStore) -> None:
            store.get(cid, folder / "out")
            (folder / "out").unlink()

        results = interleaved(
            {
                "read of the file": lambda: rate(mebibytes, source.read_bytes),
                "store.open, verified": lambda: rate(mebibytes, lambda: verified.open(cid)),
                "store.open, verified, copied": lambda: rate(mebibytes, lambda: bytes(verified.open(cid))),
                "store.open, not verified, copied": lambda: rate(mebibytes, lambda: bytes(plain.open(cid))),
                "store.stream, verified": lambda: rate(
                    mebibytes, lambda: sum(map(len, verified.stream(cid)))
                ),
                "store.get to a file, verified": lambda: rate(mebibytes, lambda: written(verified)),
            },
            ROUNDS,
        )
    report("Reading it (from the page cache)", "MiB/s", results, "read of the file")


def cids() -> None:
    count, few = 50_000, 1_000
    ours = [Cid.of(str(i).encode()) for i in range(count)]
    texts = [str(cid) for cid in ours]
    theirs = [multiformats.CID.decode(text) for text in texts[:few]]
    v0 = [str(Cid.of(str(i).encode(), version=0)) for i in range(count)]
    for title, candidates in (
        (
            "Parsing CIDs",
            {
                "multiformats": lambda: rate(
                    few, lambda: [multiformats.CID.decode(text) for text in texts[:few]]
                ),
                "Cid.parse": lambda: rate(count, lambda: [Cid.parse(text) for text in texts]),
                "Cid.parse, version 0": lambda: rate(count, lambda: [Cid.parse(text) for text in v0]),
                "Cid, from bytes": lambda: rate(count, lambda: [Cid(cid.raw) for cid in ours]),
            },
        ),
        (
            "Printing CIDs",
            {
                "multiformats": lambda: rate(few, lambda: [str(cid) for cid in theirs]),
                "str(Cid)": lambda: rate(count, lambda: [str(cid) for cid in ours]),
            },
        ),
    ):
        report(title, "CIDs/s", interleaved(candidates, 2 * ROUNDS - 1), "multiformats")


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        cids()
        files(Path(folder))


if __name__ == "__main__":
    main()
