"""Measures chunkers, hashes and the codecs of blocks: `python -m bench.bench_chunkers [FOLDER]`.

The candidates take turns, so that a slow minute of the machine hits all of them; each line gives the median, the
spread (least to most), and the ratio to its yardstick. The last table counts bytes, not time: what a small change of a
file adds to a store that has the file before the change.
"""

import hashlib
import io
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import blake3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from bench.side_by_side import interleaved, rate, report
from holdfast.storage.adding import root_of
from holdfast.storage.cid import Cid
from holdfast.storage.formats.car import car_blocks, car_frames
from holdfast.storage.formats.chunkers import chunker_named
from holdfast.storage.formats.unixfs import Node, Profile, directory_blocks, file_blocks, profile_named

ROUNDS = 5
FILE_BYTES = 256 << 20
PIECE_BYTES = 1 << 20
FILES = 20_000


def two_threads(path: Path, hasher: Callable[[], object]) -> None:
    """Hashes the two halves of a file, each in a thread: what two cores can do at best."""

    def half(start: int) -> None:
        digest, buffer = hasher(), bytearray(PIECE_BYTES)
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            for _ in range(FILE_BYTES // 2 // PIECE_BYTES):
                file.readinto(buffer)
                digest.update(buffer)  # type: ignore[attr-defined]

    threads = [threading.Thread(target=half, args=(start,)) for start in (0, FILE_BYTES // 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def chunkers(path: Path) -> None:
    mebibytes = FILE_BYTES / (1 << 20)

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE_BYTES):
                pass

    def cut(name: str) -> Callable[[], float]:
        def run() -> None:
            with path.open("rb", buffering=0) as file:
                for _ in chunker_named(name).chunks(file):
                    pass

        return lambda: rate(mebibytes, run)

    names = ("fixed-1MiB", "fixed-256KiB", "fastcdc", "fastcdc2020-16KiB-64KiB-256KiB", "buzhash")
    results = interleaved(
        {"read in pieces of 1 MiB": lambda: rate(mebibytes, read)} | {name: cut(name) for name in names}
    )
    report("Cutting a random 256 MiB file", "MiB/s", results, "read in pieces of 1 MiB")


def hashes(path: Path) -> None:
    mebibytes = FILE_BYTES / (1 << 20)

    def blocks(profile: Profile) -> Callable[[], float]:
        def run() -> None:
            with path.open("rb", buffering=0) as file:
                root_of(file_blocks(file, profile))

        return lambda: rate(mebibytes, run)

    profiles = [
        profile_named("unixfs-v1-2025"),
        profile_named("unixfs-v1-2025", hash="blake3"),
        profile_named("unixfs-v1-2025", "fastcdc"),
        profile_named("kubo-v1-raw"),
        profile_named("unixfs-v0-2015"),
    ]
    results = interleaved(
        {
            "sha256, two threads": lambda: rate(mebibytes, lambda: two_threads(path, hashlib.sha256)),
            "blake3, two threads": lambda: rate(mebibytes, lambda: two_threads(path, blake3.blake3)),
        }
        | {profile.describe(): blocks(profile) for profile in profiles}
    )
    report("Making blocks of it, nothing stored", "MiB/s", results, "sha256, two threads")


def small_files() -> None:
    contents = [os.urandom(4096) for _ in range(1000)]
    profile = profile_named("unixfs-v1-2025")
    node = Node(root_of(file_blocks(io.BytesIO(contents[0]), profile)), len(contents[0]), len(contents[0]))
    children = [(f"file-{i:06d}.bin", node) for i in range(FILES)]

    def made() -> None:
        for i in range(FILES):
            root_of(file_blocks(io.BytesIO(contents[i % 1000]), profile))

    def hashed() -> None:
        for i in range(FILES):
            hashlib.sha256(contents[i % 1000]).digest()

    results = interleaved(
        {
            "sha256 of each": lambda: rate(FILES, hashed),
            "blocks of each": lambda: rate(FILES, made),
            "their directory": lambda: rate(FILES, lambda: root_of(directory_blocks(children, profile))),
        }
    )
    report("20 000 files of 4 KiB", "files/s", results, "sha256 of each")


def cars() -> None:
    blocks = [(Cid.of(data), data) for data in (os.urandom(64 << 10) for _ in range(1000))]
    whole = b"".join(car_frames([], blocks))
    mebibytes = len(whole) / (1 << 20)

    results = interleaved(
        {
            "sha256 of the blocks": lambda: rate(
                mebibytes, lambda: [hashlib.sha256(data).digest() for _, data in blocks]
            ),
            "car_blocks, verified": lambda: rate(
                mebibytes, lambda: sum(1 for _ in car_blocks(io.BytesIO(whole)))
            ),
            "car_frames": lambda: rate(mebibytes, lambda: sum(map(len, car_frames([], blocks)))),
        }
    )
    report("A CAR of 1000 blocks of 64 KiB", "MiB/s", results, "sha256 of the blocks")


def added_bytes(name: str, before: bytes, after: bytes) -> int:
    """What the second file adds to a store that has the first, with all nodes."""
    profile = profile_named("unixfs-v1-2025", name)
    known = {cid for cid, _ in file_blocks(io.BytesIO(before), profile)}
    return sum(
        memoryview(data).nbytes for cid, data in file_blocks(io.BytesIO(after), profile) if cid not in known
    )


def reuse() -> None:
    rng = np.random.default_rng(1)
    tensors = {f"layers.{i:02d}.weight": rng.random((512, 2048), dtype=np.float32) for i in range(24)}
    model = safetensors.numpy.save(tensors, metadata={"format": "pt"})
    noted = safetensors.numpy.save(tensors, metadata={"format": "pt", "note": "n" * 100})
    changed = safetensors.numpy.save(tensors | {"layers.23.weight": tensors["layers.23.weight"] + 1})
    table = pa.table(
        {
            "id": np.arange(1_000_000),
            "value": rng.random(1_000_000),
            "kind": rng.integers(0, 1000, 1_000_000),
            "user": [f"user-{n}" for n in rng.integers(0, 10_000_000, 1_000_000)],
        }
    )

    def parquet(count: int) -> bytes:
        file = io.BytesIO()
        pq.write_table(table.slice(0, count), file, use_content_defined_chunking=True)
        return file.getvalue()

    rows, more = parquet(900_000), parquet(1_000_000)
    cases = {
        "a safetensors file of 100 MB, 100 bytes more of metadata": ("safetensors", model, noted),
        "the same, one tensor of 4 MiB changed": ("safetensors", model, changed),
        "a Parquet file of 900 000 rows, 100 000 appended": ("parquet", rows, more),
    }
    print("\nBytes that a change adds, as a share of the file before it")
    for title, (name, before, after) in cases.items():
        print(f"  {title}")
        for chunker in (name, "fastcdc", "fixed"):
            added = added_bytes(chunker, before, after)
            grown = max(0, len(after) - len(before))
            print(
                f"    {chunker_named(chunker).name:<42}{added:>12,}  {added / len(before):>8.3%}"
                f"  without the growth {max(0, added - grown) / len(before):>8.3%}"
            )


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        path = Path(folder) / "source"
        with path.open("wb") as file:
            for _ in range(FILE_BYTES // PIECE_BYTES):
                file.write(os.urandom(PIECE_BYTES))
        chunkers(path)
        hashes(path)
    small_files()
    cars()
    reuse()


if __name__ == "__main__":
    main()
