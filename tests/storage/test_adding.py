"""Adding files: by copy and by reference, again, interrupted, and while they change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound
from holdfast.storage.adding import cid_of
from holdfast.storage.content import ContentStore
from holdfast.storage.formats.unixfs import profile_named
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from holdfast.storage.local.sources import SourceCache

MIB = 1 << 20


@pytest.fixture
def local(tmp_path):
    with closing(LocalStore(tmp_path / "blocks")) as opened:
        yield opened


@pytest.fixture
def store(local):
    return ContentStore(local, pins=Pins(local), sources=SourceCache(local))


def old_file(path: Path, data: bytes) -> Path:
    """A file that was written long ago, as far as its times tell; only its change time is new."""
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))
    return path


class Counting:
    """A progress callback that also tells whether any file was opened for its bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, more: int) -> None:
        self.bytes += more


def reads_of(store: ContentStore, path: Path) -> int:
    """How many bytes of a file an add reads, as the kernel counts them for this process."""

    def read_so_far() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])

    before = read_so_far()
    store.add(path)
    return read_so_far() - before


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once: the tests do not wait until their change times are old."""
    monkeypatch.setattr("holdfast.storage.local.sources._TICK_NS", -1)


# ------------------------------------------------------------------------------------------------- again


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("by_reference", [False, True])
def test_an_unchanged_file_is_not_read_again(store, tmp_path, by_reference):
    path = old_file(tmp_path / "file", os.urandom(8 * MIB))
    progress = Counting()
    cid = store.add(path, by_reference=by_reference)
    assert store.add(path, by_reference=by_reference, progress=progress) == cid
    assert progress.bytes == 8 * MIB, "progress is complete all the same"
    if not by_reference:
        assert reads_of(store, path) < MIB


@pytest.mark.usefixtures("settled")
def test_a_file_that_changed_is_read_again_however_its_times_look(store, tmp_path):
    path = old_file(tmp_path / "file", b"a" * MIB)
    first = store.add(path)
    old_file(path, b"b" * MIB)  # same size, same time of modification
    second = store.add(path)
    assert second != first
    assert bytes(store.open(second)) == b"b" * MIB


def test_a_file_that_was_written_just_now_is_not_trusted_to_stay(store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"a" * MIB)
    store.add(path)
    assert reads_of(store, path) >= MIB


@pytest.mark.usefixtures("settled")
def test_another_profile_is_another_cid(store, tmp_path):
    path = old_file(tmp_path / "file", os.urandom(2 * MIB))
    profiles = [
        profile_named("unixfs-v1-2025"),
        profile_named("unixfs-v1-2025", chunker="fixed-256KiB"),
        profile_named("unixfs-v1-2025", hash="blake3"),
        profile_named("kubo-v1-raw"),
        profile_named("unixfs-v0-2015"),
    ]
    first = [store.add(path, profile=profile) for profile in profiles]
    assert [store.add(path, profile=profile) for profile in profiles] == first
    assert first == [cid_of(path, profile) for profile in profiles]
    assert len(set(first)) == 4, "8 leaves of 256 KiB are the same in two of the profiles"
    for cid in first:
        assert bytes(store.open(cid)) == path.read_bytes()


def test_only_hashing_stores_nothing(local, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(os.urandom(3 * MIB))
    cid = cid_of(tmp_path / "in", profile_named("unixfs-v1-2025"))
    assert list(local.multihashes()) == []
    assert ContentStore(local).add(tmp_path / "in") == cid


# --------------------------------------------------------------------------------------------- reference


def test_a_file_added_by_reference_is_not_copied(local, store, tmp_path):
    path = old_file(tmp_path / "file", os.urandom(9 * MIB))
    cid = store.add(path, by_reference=True)
    assert cid == cid_of(path, store.profile)
    assert bytes(store.open(cid)) == path.read_bytes()
    held = local.statistics()
    assert held["referenced_bytes"] == 9 * MIB
    assert held["bytes"] < 10_000
    assert b"".join(store.stream(cid, MIB + 5, 3 * MIB)) == path.read_bytes()[MIB + 5 : 3 * MIB]


def test_a_folder_added_by_reference_is_the_same_folder(store, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name in ("a", "deep/b", "deep/empty"):
        (folder / name).write_bytes(b"" if name.endswith("empty") else os.urandom(100_000))
    cid = store.add(folder, by_reference=True)
    assert cid == cid_of(folder, store.profile)
    store.get(cid, tmp_path / "out")
    assert (tmp_path / "out" / "deep" / "b").read_bytes() == (folder / "deep" / "b").read_bytes()


def test_a_referenced_file_that_changed_or_went_is_named(store, tmp_path):
    path = old_file(tmp_path / "data.bin", os.urandom(3 * MIB))
    cid = store.add(path, by_reference=True)
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(b"changed")
    with pytest.raises(Corrupt, match=r"data\.bin"):
        store.open(cid)
    path.write_bytes(b"short")
    with pytest.raises((Corrupt, NotFound), match=r"data\.bin"):
        store.open(cid)
    path.unlink()
    with pytest.raises(NotFound, match=r"data\.bin"):
        store.open(cid)


def test_a_profile_that_wraps_leaves_can_not_refer(store, tmp_path):
    path = old_file(tmp_path / "file", b"x" * MIB)
    with pytest.raises(InvalidInput, match="unixfs-v0-2015"):
        store.add(path, profile=profile_named("unixfs-v0-2015"), by_reference=True)


# ----------------------------------------------------------------------------------------------- changes


def test_a_file_that_changes_while_it_is_added_is_refused(local, store, tmp_path):
    path = old_file(tmp_path / "file", os.urandom(4 * MIB))

    def meddle(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(Conflict, match="changed while it was read"):
        store.add(path, progress=meddle)
    assert list(local.multihashes()) == []
    assert Pins(local).pins() == []


def test_a_file_that_goes_while_its_folder_is_added_is_named(local, store, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / name).write_bytes(b"x" * 2 * MIB)

    def meddle(_: int) -> None:
        (folder / "b").unlink(missing_ok=True)

    with pytest.raises(Conflict, match="b was removed"):
        store.add(folder, progress=meddle)
    assert list(local.multihashes()) == []


# --------------------------------------------------------------------------------------------- resuming

_ADD = """
import sys
from contextlib import closing
from holdfast.storage.local import local_store
from holdfast.storage.content import ContentStore
from holdfast.storage.local.pins import Pins
with closing(local_store.LocalStore(__import__("pathlib").Path(sys.argv[1]))) as local:
    store = ContentStore(local, pins=Pins(local))
    done = 0
    def progress(more):
        global done
        done += more
        print(done, flush=True)
    store.add(sys.argv[2], progress=progress)
"""


@pytest.mark.slow
def test_an_add_that_was_killed_goes_on_where_it_stopped(tmp_path):
    source = tmp_path / "source"
    with source.open("wb") as file:
        for _ in range(1200):
            file.write(os.urandom(MIB))
    process = subprocess.Popen(
        [sys.executable, "-c", _ADD, str(tmp_path / "blocks"), str(source)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if int(line) > 1000 * MIB:
                process.send_signal(signal.SIGKILL)
                break
    with closing(LocalStore(tmp_path / "blocks")) as local:
        assert list(local.multihashes()) == [], "nothing half-written is visible"
        staged = local.statistics()["staged_bytes"]
        assert staged >= 256 * MIB
        store = ContentStore(local, pins=Pins(local))
        cid = store.add(source)
        held = local.statistics()
        assert held["disk_bytes"] < 1200 * MIB + 64 * MIB, "what was staged was not written again"
        assert held["staged_bytes"] == 0
        assert cid == cid_of(source, store.profile)
        assert store.open(cid) == source.read_bytes()


def test_a_folder_may_hold_files_that_its_chunker_does_not_know(store, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "empty").touch()
    (folder / "notes.bin").write_bytes(os.urandom(3 * MIB))
    save_file({"w": np.arange(700_000, dtype=np.float32)}, folder / "weights.safetensors")
    by_tensor = profile_named("unixfs-v1-2025", chunker="safetensors-1MiB")
    cid = store.add(folder, profile=by_tensor)
    files = {entry.name: entry.cid for entry in store.ls(cid)}
    assert files["weights.safetensors"] == cid_of(folder / "weights.safetensors", by_tensor)
    plain = profile_named("unixfs-v1-2025", chunker="fixed-1MiB")
    for name in ("config.json", "empty", "notes.bin"):
        assert files[name] == cid_of(folder / name, plain)
        with pytest.raises(InvalidInput, match=name):
            store.add(folder / name, profile=by_tensor)
    store.get(cid, tmp_path / "out")
    assert (tmp_path / "out" / "notes.bin").read_bytes() == (folder / "notes.bin").read_bytes()
