"""However large a file is, reading it does not fill the memory of who reads it; and what was handed out stays readable."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LIMIT_BYTES = 300_000_000

COMMAND = """
import sys
from holdfast.cluster.cli import main

status = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")), file=sys.stderr)
sys.exit(status)
"""

READER = """
import hashlib, os, sys
from pathlib import Path

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.local.fsck import check
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from holdfast.storage.stored_file import StoredFile

MIB = 1 << 20
folder, size = Path(sys.argv[1]), int(sys.argv[2])
pieces = [hashlib.sha256(b"%d" % i).digest() * (MIB // 32) for i in range(size // MIB)]
source = folder / "source"
with source.open("wb") as file:
    file.writelines(pieces)
digest = hashlib.sha256()
for piece in pieces:
    digest.update(piece)
del pieces


def resident():
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssFile"))


def hash_of(parts):
    found = hashlib.sha256()
    most = 0
    for part in parts:
        found.update(part)
        most = max(most, resident())
    assert found.digest() == digest.digest(), "the bytes are other ones"
    return most


local = LocalStore(folder / "blocks", segment_size_bytes=64 * MIB)
store = ContentStore(VerifyingStore(local, source="the disk"), pins=Pins(local))
cid = store.add(source)
early = list(store.stream(cid, 0, 40 * MIB))  # they stay in use while everything else is read
start = resident()
file = StoredFile(store, cid)
most = {
    "stream": hash_of(store.stream(cid)),
    "get of each block": hash_of(memoryview(store.blocks.get(leaf)) for leaf in file.cids(0, size)),
    "views of a stored file": hash_of(file.view(at, at + 4 * MIB) for at in range(0, size, 4 * MIB)),
}
whole = store.open(cid)
most["opening"] = resident()
assert not check(local, Pins(local)).findings
most["fsck"] = resident()
assert hash_of([whole])
assert b"".join(early) == whole[: 40 * MIB]
for name, kib in most.items():
    print(name, (kib - start) >> 10, sep=",")
"""


def test_reading_a_large_file_leaves_no_pages_behind_and_views_stay_valid(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path), str(320 * MIB)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown = {
        name: int(mebibytes) for name, mebibytes in (line.split(",") for line in done.stdout.splitlines())
    }
    assert set(grown) == {"stream", "get of each block", "views of a stored file", "opening", "fsck"}
    assert max(grown.values()) < 120, grown


def peak_bytes(home: Path, *arguments: str) -> int:
    """What one command of the command line had in memory at most, pages of mapped files included."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments, "--home", str(home)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.slow
def test_no_command_needs_300_mb_for_a_file_of_a_gibibyte(tmp_path):
    source, home = tmp_path / "source", tmp_path / "home"
    with source.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(MIB))
    peaks = {"add": peak_bytes(home, "add", str(source))}
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cluster.cli", "add", str(source), "--only-hash", "--cid-only"],
        capture_output=True,
        text=True,
        check=True,
    )
    cid, car = done.stdout.strip(), tmp_path / "x.car"
    peaks["get"] = peak_bytes(home, "get", cid, "-o", str(tmp_path / "out"))
    assert (tmp_path / "out").stat().st_size == source.stat().st_size
    (tmp_path / "out").unlink()
    peaks["cat"] = peak_bytes(home, "cat", cid)
    peaks["fsck"] = peak_bytes(home, "fsck")
    peaks["pin"] = peak_bytes(home, "pin", "add", cid)
    peaks["export"] = peak_bytes(home, "export", cid, "-o", str(car))
    peaks["import"] = peak_bytes(tmp_path / "imported", "import", str(car))
    assert max(peaks.values()) < LIMIT_BYTES, peaks


def test_hashing_a_file_keeps_little_of_each_block(tmp_path):
    blocks = 100_000
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(os.urandom(2 << 10))
    large.write_bytes(os.urandom(blocks << 10))
    options = ("--only-hash", "--chunker", "fixed-1024")
    grown = peak_bytes(tmp_path, "add", str(large), *options) - peak_bytes(
        tmp_path, "add", str(small), *options
    )
    assert grown < 150 * blocks, grown
