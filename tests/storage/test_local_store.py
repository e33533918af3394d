import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.errors import Conflict, Corrupt, NotFound, Unavailable
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local_store import LocalStore
from holdfast.storage.testing import BlockStoreTests, block


class TestLocalStore(BlockStoreTests):
    @pytest.fixture
    def make_store(self, tmp_path):
        return lambda: LocalStore(tmp_path / "store", segment_size_bytes=1 << 20)


class TestVerifyingStore(BlockStoreTests):
    @pytest.fixture
    def make_store(self, tmp_path):
        return lambda: VerifyingStore(LocalStore(tmp_path / "store"), source="the disk")


# ----------------------------------------------------------------------------------------- many processes

WRITER = """
import hashlib, sys
from pathlib import Path
from holdfast.storage.cid import Cid
from holdfast.storage.local_store import LocalStore

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


def test_processes_that_write_at_once_do_not_overwrite_each_other(tmp_path):
    writers = [start_writer(tmp_path, f"writer {i}", rounds=40) for i in range(3)]
    acknowledged = []
    try:
        with closing(LocalStore(tmp_path, segment_size_bytes=200_000)) as store:
            for writer in writers:
                out, _ = writer.communicate(timeout=60)
                assert writer.returncode == 0
                assert "wrong" not in out
                mine = [Cid.parse(word) for line in out.splitlines()[1:] for word in line.split()]
                acknowledged += mine
                for cid in mine:  # this process sees what the others wrote, while it is open
                    cid.check(store.get(cid), source="the store")
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            writer.stdout.close()
    assert len(acknowledged) > 400
    assert check_store(tmp_path, acknowledged)["blocks"] == len(set(acknowledged))


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    """The writer prints each batch when `put_many` has returned, and is killed at some moment."""
    rounds = int(os.environ.get("HOLDFAST_KILL_ROUNDS", "12"))
    dice = random.Random(7)
    acknowledged = []
    for turn in range(rounds):
        with start_writer(tmp_path, f"round {turn}") as writer:
            assert writer.stdout.readline() == "ready\n"
            time.sleep(dice.uniform(0, 0.15))
            writer.send_signal(signal.SIGKILL)
            lines = writer.stdout.read().splitlines(keepends=True)
            assert writer.wait(10) == -signal.SIGKILL
        assert not any(line.startswith("wrong") for line in lines)
        acknowledged += [Cid.parse(word) for line in lines if line.endswith("\n") for word in line.split()]
        if turn % 4 == 3:
            check_store(tmp_path, acknowledged)
    assert len(acknowledged) > rounds
    before = check_store(tmp_path, acknowledged)
    with closing(LocalStore(tmp_path, segment_size_bytes=200_000)) as store:  # and the next writer works
        late = [block(b"%d" % i * 5000) for i in range(100)]
        store.put_many(late)
        acknowledged += [cid for cid, _ in late]
    assert check_store(tmp_path, acknowledged)["blocks"] == before["blocks"] + 100
    # What killed writers left behind was cut off or overwritten: at most one open segment's worth remains.
    stated = check_store(tmp_path, [])["bytes"]
    on_disk = sum(path.stat().st_size for path in (tmp_path / "segments").iterdir())
    assert stated <= on_disk <= stated + 2_000_000


def test_a_writer_that_died_does_not_keep_others_waiting(tmp_path):
    """One killed in the middle of a put leaves a tail; the next one takes the same segment."""
    script = WRITER.partition("print(")[0] + (
        "def blocks():\n"
        "    for i in range(100):\n"
        "        yield Cid.of(b'%d' % i * 999), b'%d' % i * 999\n"
        "    print('writing', flush=True)\n"
        "    sys.stdin.read()\n"
        "store.put_many(blocks())\n"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path), "1000000", "x", "0"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.kill()
        writer.wait(10)
    tail = next((tmp_path / "segments").iterdir())
    assert tail.stat().st_size > 0
    with closing(LocalStore(tmp_path)) as store:
        assert list(store.multihashes()) == []
        cid, data = block(b"next")
        store.put_many([(cid, data)])
        assert bytes(store.get(cid)) == data
    assert tail.stat().st_size == 4
    assert len(list((tmp_path / "segments").iterdir())) == 1


def test_killed_readers_do_not_use_up_the_places_of_the_living(tmp_path):
    """LMDB gives 512 readers a place; a killed process keeps its own until somebody looks."""
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([block(b"x")])
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from holdfast.storage.local_store import LocalStore\n"
        "store = LocalStore(Path(sys.argv[1]))\n"
        "held = [store.multihashes() for _ in range(300)]\n"
        "[next(each) for each in held]\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], timeout=30, check=False, capture_output=True
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
    with closing(LocalStore(tmp_path)) as store:
        assert store.has(block(b"x")[0])


# ------------------------------------------------------------------------------------------ damaged disks


def segment_of(folder: Path) -> Path:
    return next((folder / "blocks" / "segments").iterdir())


def test_a_flipped_bit_on_the_disk_is_an_error_not_an_answer(tmp_path, store):
    data = os.urandom(3 << 20)
    cid = store.add_bytes(data)
    assert store.open(cid) == data
    with segment_of(tmp_path).open("r+b") as file:
        file.seek((1 << 20) + 12345)
        byte = file.read(1)
        file.seek((1 << 20) + 12345)
        file.write(bytes([byte[0] ^ 1]))
    bad = Cid.of(data[1 << 20 : 2 << 20])
    with pytest.raises(Corrupt, match=f"the disk .*{bad}"):
        store.open(cid)
    with pytest.raises(Corrupt):
        list(store.stream(cid))
    with pytest.raises(Corrupt):
        store.get(cid, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert bytes(store.blocks.get(Cid.of(data[: 1 << 20]))) == data[: 1 << 20]  # the others are still good


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_lost_segment_is_an_error_not_a_short_answer(tmp_path, damage):
    cid, data = block(b"0123456789" * 1000)
    with closing(LocalStore(tmp_path / "blocks")) as store:
        store.put_many([block(b"first"), (cid, data)])
    path = segment_of(tmp_path)
    if damage == "removed":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "emptied" else 5000)
    with closing(LocalStore(tmp_path / "blocks")) as store:
        with pytest.raises(Corrupt, match=path.name):
            store.get(cid)
        with pytest.raises(Corrupt, match=path.name):
            store.view([cid])


def test_a_damaged_index_is_an_error_that_names_it(tmp_path):
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "data.mdb").write_bytes(random.Random(1).randbytes(100_000))
    with pytest.raises(Corrupt, match="index"):
        LocalStore(tmp_path)


def test_a_folder_that_is_a_file_is_not_a_store(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        LocalStore(tmp_path / "file")


@contextmanager
def tiny_disk(folder: Path, size: str):
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
        timeout=10,
    )
    if mount.returncode:
        pytest.skip(f"this user can't mount a small disk: {mount.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def test_a_full_disk_loses_nothing_and_recovers(tmp_path):
    with tiny_disk(tmp_path / "disk", "2m") as disk, closing(LocalStore(disk / "store")) as store:
        kept = [block(b"%d" % i * 10_000) for i in range(20)]
        store.put_many(kept)
        free = os.statvfs(disk).f_bavail
        with pytest.raises(Unavailable, match="full"):
            store.put_many(block(os.urandom(100_000)) for _ in range(40))
        assert os.statvfs(disk).f_bavail >= free - 4  # the space is given back
        assert len(list(store.multihashes())) == 20
        for cid, data in kept:
            assert bytes(store.get(cid)) == data
        with pytest.raises(Unavailable, match="full"):
            ContentStore(store).add_bytes(os.urandom(3 << 20))
        more = block(os.urandom(50_000))
        store.put_many([more])  # what fits is still taken
        assert bytes(store.get(more[0])) == more[1]


def test_an_index_that_finds_no_room_loses_nothing(tmp_path):
    with tiny_disk(tmp_path / "disk", "1m") as disk:
        store = LocalStore(disk / "store")
        kept = block(b"kept")
        store.put_many([kept])
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    pass
        try:
            for count in (1, 50):
                with pytest.raises(Unavailable):
                    store.put_many([block(b"%d" % i * 100) for i in range(count)])
            assert bytes(store.get(kept[0])) == b"kept"
            filler.unlink()
            store.put_many([block(b"later")])
            assert len(list(store.multihashes())) == 2
        finally:
            store.close()


def test_an_index_at_its_limit_says_what_to_raise_and_gives_the_space_back(tmp_path):
    with closing(LocalStore(tmp_path, index_map_size_bytes=1 << 18)) as store:
        store.put_many([block(b"kept")])
        with pytest.raises(Unavailable, match="index_map_size_bytes"):
            store.put_many([block(b"%d" % i) for i in range(20_000)])
        assert list(store.multihashes()) == [block(b"kept")[0].multihash]
        assert sum(path.stat().st_size for path in (tmp_path / "segments").iterdir()) == 4
        store.put_many([block(b"later")])
        assert bytes(store.get(block(b"later")[0])) == b"later"
    with closing(LocalStore(tmp_path)) as store:  # and raising it helps
        store.put_many([block(b"%d" % i) for i in range(20_000)])
        assert store.statistics()["blocks"] == 20_002


# ------------------------------------------------------------------------------------ memory, files, threads


def shares_memory(one, other):
    return np.shares_memory(np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8))


def test_a_file_in_one_piece_is_handed_out_without_a_copy(blocks):
    data = [block(bytes([i]) * 1000) for i in range(50)]
    blocks.put_many(data)
    joined = blocks.view([cid for cid, _ in data])
    assert joined is not None
    assert bytes(joined) == b"".join(content for _, content in data)
    assert isinstance(joined.obj, mmap.mmap)
    assert shares_memory(joined, blocks.get(data[7][0]))
    assert shares_memory(joined, blocks.view([data[7][0], data[8][0]]))


def test_blocks_that_lie_apart_are_not_handed_out_as_one(blocks):
    first, second, third = block(b"first"), block(b"second"), block(b"third")
    blocks.put_many([first, second, third])
    for apart in ([second, first], [first, third], [first, first], [third, block(b"missing")], []):
        assert blocks.view([cid for cid, _ in apart]) is None


def test_a_view_does_not_cross_from_one_segment_to_the_next(tmp_path):
    with closing(LocalStore(tmp_path, segment_size_bytes=100)) as store:
        data = [block(bytes([i]) * 60) for i in range(6)]
        store.put_many(data)
        assert store.statistics() == {"blocks": 6, "bytes": 360, "segments": 3}
        assert store.view([cid for cid, _ in data]) is None
        joined = store.view([cid for cid, _ in data[2:4]])
        assert joined is not None
        assert bytes(joined) == data[2][1] + data[3][1]


def leftovers():
    return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def test_closing_leaves_no_file_and_no_thread_open(tmp_path):
    before = leftovers()
    for turn in range(5):
        store = LocalStore(tmp_path, segment_size_bytes=1000)
        store.put_many(block(b"%d/%d" % (turn, i) * 100) for i in range(20))
        for multihash in list(store.multihashes()):
            store.get(Cid(b"\x01\x55" + multihash))
        store.close()
    assert leftovers() == before


def test_reading_many_segments_does_not_use_up_the_files_a_process_may_open(tmp_path):
    with closing(LocalStore(tmp_path, segment_size_bytes=1)) as store:
        data = [block(b"%d" % i) for i in range(400)]
        store.put_many(data)
        assert store.statistics()["segments"] == 400
        before = leftovers()[0]
        for cid, content in [*data, *data]:
            assert bytes(store.get(cid)) == content
        assert leftovers()[0] - before < 150


def test_two_names_of_one_folder_are_one_store(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with closing(LocalStore(tmp_path / "real")) as real, closing(LocalStore(tmp_path / "link")) as link:
        real.put_many([block(b"1")])
        assert link.has(block(b"1")[0])
        link.put_many([block(b"2")])
        assert real.has(block(b"2")[0])


def test_closing_one_of_two_stores_on_a_folder_leaves_the_other_open(tmp_path):
    first, second = LocalStore(tmp_path), LocalStore(tmp_path)
    first.put_many([block(b"x")])
    first.close()
    assert bytes(second.get(block(b"x")[0])) == b"x"
    second.put_many([block(b"y")])
    second.close()


def test_listing_while_the_store_is_closed_ends_with_our_error(tmp_path):
    store = LocalStore(tmp_path)
    store.put_many([block(b"%d" % i) for i in range(50)])
    listed = store.multihashes()
    next(listed)
    store.close()
    with pytest.raises(Conflict, match="closed"):
        list(listed)


# ------------------------------------------------------------------------------------------- model test


class StoreModel(RuleBasedStateMachine):
    """The store against a dictionary."""

    @initialize(segment_size=st.sampled_from([1, 50, 300, 10_000]))
    def open(self, segment_size):
        self.folder = tempfile.TemporaryDirectory()
        self.segment_size = segment_size
        self.model: dict[bytes, bytes] = {}
        self.views: list[tuple[memoryview, bytes]] = []
        self.store = self.opened()

    def opened(self):
        return LocalStore(Path(self.folder.name), segment_size_bytes=self.segment_size)

    @rule(contents=st.lists(st.binary(max_size=90), max_size=12), fails=st.booleans())
    def put(self, contents, fails):
        def source():
            for content in contents:
                yield block(content)
            if fails:
                raise RuntimeError("source")

        fresh = {block(content)[0].multihash: content for content in contents}
        new = sum(len(content) for key, content in fresh.items() if key not in self.model)
        if fails:
            with pytest.raises(RuntimeError, match="source"):
                self.store.put_many(source())
        else:
            assert self.store.put_many(source()) == new
            self.model |= fresh

    @rule(content=st.binary(max_size=90))
    def get(self, content):
        cid = Cid.of(content)
        assert self.store.has(cid) == (cid.multihash in self.model)
        if cid.multihash in self.model:
            assert bytes(self.store.get(cid)) == content
        else:
            with pytest.raises(NotFound):
                self.store.get(cid)

    @rule(data=st.data())
    def view(self, data):
        keys = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=5)) if self.model else []
        expected = b"".join(self.model[key] for key in keys)
        joined = self.store.view([Cid(b"\x01\x55" + key) for key in keys])
        assert joined is None or joined == expected
        if joined is not None:
            self.views.append((joined, expected))

    @rule()
    def reopen(self):
        self.store.close()
        self.store = self.opened()

    @rule()
    def second_store_sees_the_same(self):
        with closing(self.opened()) as other:
            assert list(other.multihashes()) == sorted(self.model)

    @invariant()
    def nothing_is_lost_or_made_up(self):
        assert list(self.store.multihashes()) == sorted(self.model)
        assert self.store.statistics()["bytes"] == sum(map(len, self.model.values()))
        for key, content in self.model.items():
            assert bytes(self.store.get(Cid(b"\x01\x55" + key))) == content
        for view, content in self.views:
            assert view == content

    def teardown(self):
        if hasattr(self, "store"):
            self.store.close()
            self.folder.cleanup()


StoreModel.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestStoreModel = StoreModel.TestCase
