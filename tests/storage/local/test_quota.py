"""A store with a quota is never larger than it says, whoever writes and whoever dies, and takes what fits."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress

import pytest

from holdfast.errors import Unavailable
from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import block
from tests.storage.local.writers import WRITER, check_store

MEBIBYTE = 1 << 20


def on_disk(folder):
    total = 0
    for path in (*(folder / "segments").iterdir(), folder / "index" / "data.mdb"):
        with suppress(FileNotFoundError):  # a segment that was removed since it was listed
            total += path.stat().st_size
    return total


def test_a_quota_is_never_exceeded_and_nothing_of_a_failed_add_stays(tmp_path):
    with closing(LocalStore(tmp_path, max_bytes=4 * MEBIBYTE)) as store:
        kept = [block(os.urandom(100_000)) for _ in range(20)]
        store.put_many(kept)
        before = store.statistics()["bytes"]
        with pytest.raises(
            Unavailable, match=r"quota of 4194304 bytes \(storage.max_bytes\).*unpin and collect"
        ):
            store.put_many(block(os.urandom(100_000)) for _ in range(40))
        assert store.statistics()["bytes"] == before
        assert on_disk(tmp_path) <= 4 * MEBIBYTE
        added = 0
        full = False
        while not full and added < 1000:
            try:
                store.put_many([block(os.urandom(10_000))])
            except Unavailable:
                full = True
            added += 1
            assert on_disk(tmp_path) <= 4 * MEBIBYTE
        assert full
        assert added > 100  # what fits is taken
        for cid, data in kept:
            assert bytes(store.get(cid)) == data


QUOTA_WRITER = """
import os, sys
from pathlib import Path
from holdfast.errors import Unavailable
from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore

with LocalStore(Path(sys.argv[1]), max_bytes=int(sys.argv[2])) as store:
    full = 0
    while full < 3:
        batch = [os.urandom(50_000) for _ in range(4)]
        try:
            store.put_many([(Cid.of(data), data) for data in batch])
        except Unavailable:
            full += 1
        else:
            print(*(Cid.of(data) for data in batch), flush=True)
"""


def test_a_quota_holds_for_all_processes_together(tmp_path):
    quota = 8 * MEBIBYTE
    with closing(LocalStore(tmp_path)):
        pass
    arguments = [sys.executable, "-c", QUOTA_WRITER, str(tmp_path), str(quota)]
    writers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        largest = 0
        while any(writer.poll() is None for writer in writers):
            largest = max(largest, on_disk(tmp_path))
        outputs = [writer.communicate(timeout=60)[0] for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert max(largest, on_disk(tmp_path)) <= quota
    acknowledged = [Cid.parse(word) for out in outputs for word in out.split()]
    assert len(acknowledged) * 50_000 > quota // 2
    check_store(tmp_path, acknowledged)


def test_the_reservation_of_a_dead_writer_is_void(tmp_path):
    script = WRITER.partition("store = ")[0] + (
        "import os\n"
        f"store = LocalStore(Path(sys.argv[1]), max_bytes={4 * MEBIBYTE})\n"
        "def blocks():\n"
        "    for i in range(33):\n"
        "        data = os.urandom(100_000)\n"
        "        yield Cid.of(data), data\n"
        "    print('full', flush=True)\n"
        "    sys.stdin.read()\n"
        "store.put_many(blocks())\n"
    )
    with closing(LocalStore(tmp_path, max_bytes=4 * MEBIBYTE)) as store:
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "full\n"
            with pytest.raises(Unavailable, match="quota"):
                store.put_many([block(os.urandom(1_500_000))])
            writer.kill()
            writer.wait(10)
        assert on_disk(tmp_path) > 3_000_000
        store.put_many([block(os.urandom(1_500_000))])
        assert on_disk(tmp_path) <= 4 * MEBIBYTE


def test_a_full_store_makes_room_when_it_is_told_how(tmp_path):
    asked = []
    young: set[bytes] = set()

    def make_room(missing):
        asked.append(missing)
        with store.epoch(int(time.time()) + 1, timeout_s=30) as cutoff_s:
            store.remove(lambda multihash: multihash not in young, cutoff_s=cutoff_s, min_garbage=0.0)

    store = LocalStore(tmp_path, max_bytes=4 * MEBIBYTE, make_room=make_room)
    with closing(store):
        skipped = block(b"built on" * 1000)
        store.put_many([skipped])
        for turn in range(8):
            batch = [block(os.urandom(100_000)) for _ in range(10)]
            young = {cid.multihash for cid, _ in batch}
            store.put_many([skipped, *batch])
            assert bytes(store.get(skipped[0])) == skipped[1], turn  # what the add skipped was held meanwhile
            for cid, data in batch:
                assert bytes(store.get(cid)) == data
            assert on_disk(tmp_path) <= 4 * MEBIBYTE
        assert asked
        assert all(missing > 0 for missing in asked)
        with pytest.raises(Unavailable, match="quota"):
            store.put_many([block(os.urandom(100_000)) for _ in range(50)])
        store.make_room = None
        with pytest.raises(Unavailable, match="quota"):
            store.put_many([block(os.urandom(100_000)) for _ in range(50)])


def test_a_source_that_stores_blocks_itself_can_make_room_too(tmp_path):
    def make_room(_):
        with store.epoch(int(time.time()) + 1, timeout_s=30) as cutoff_s:
            store.remove(lambda _: True, cutoff_s=cutoff_s, min_garbage=0.0)

    store = LocalStore(tmp_path, max_bytes=4 * MEBIBYTE, make_room=make_room)
    with closing(store):
        skipped = block(b"built on" * 1000)
        store.put_many([skipped])

        def blocks():
            yield skipped
            for _ in range(6):
                store.put_many([block(os.urandom(100_000)) for _ in range(10)])
            yield block(b"outer")

        store.put_many(blocks())
        assert bytes(store.get(skipped[0])) == skipped[1]
        assert store.has(block(b"outer")[0])
        assert on_disk(tmp_path) <= 4 * MEBIBYTE


def test_interrupted_compaction_counts_in_the_quota_until_its_file_is_gone(tmp_path):
    """The process dies between the change of the index and the removal of the file."""
    script = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from holdfast.storage.local.local_store import LocalStore\n"
        f"store = LocalStore(Path(sys.argv[1]), max_bytes={4 * MEBIBYTE})\n"
        "Path.unlink = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "with store.epoch(int(time.time()) + 1) as cutoff_s:\n"
        "    store.remove(lambda _: True, cutoff_s=cutoff_s, min_garbage=0.0)\n"
    )
    with closing(LocalStore(tmp_path, max_bytes=4 * MEBIBYTE)) as store:
        store.put_many([block(os.urandom(1_000_000)) for _ in range(3)])
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        assert list(store.multihashes()) == []
        assert on_disk(tmp_path) > 3_000_000
        store._context.segments._last = None  # else the next add would come upon the file by itself
        for _ in range(3):
            store.put_many([block(os.urandom(1_000_000))])
            assert on_disk(tmp_path) <= 4 * MEBIBYTE


def test_a_full_store_can_still_rewrite_its_segments(tmp_path):
    """Every segment is half garbage and there is no room: adds have left enough for the first copy."""
    with closing(LocalStore(tmp_path, max_bytes=4 * MEBIBYTE)) as store:
        blocks: list[tuple[Cid, bytes]] = []
        with suppress(Unavailable):
            while len(blocks) < 1000:
                batch = [block(os.urandom(50_000))]
                store.put_many(batch)
                blocks += batch
        assert 60 < len(blocks) < 100
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            doomed = {cid.multihash for cid, _ in blocks[::2]}
            removed = store.remove(doomed, cutoff_s=cutoff_s)
        assert removed.freed_bytes == removed.bytes
        assert store.statistics()["garbage_bytes"] == 0
        assert on_disk(tmp_path) <= 4 * MEBIBYTE
        for cid, data in blocks[1::2]:
            assert bytes(store.get(cid)) == data


def test_what_an_add_has_reserved_counts_before_it_is_committed(tmp_path):
    with closing(LocalStore(tmp_path, max_bytes=4 * MEBIBYTE)) as store:
        counted = []

        def blocks():
            for i in range(20):
                yield block(b"%d" % i * 50_000)
                counted.append(store.statistics()["disk_bytes"])

        store.put_many(blocks())
        assert counted[-1] >= 19 * 50_000
        assert max(counted) <= 4 * MEBIBYTE
