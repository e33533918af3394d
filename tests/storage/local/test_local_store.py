import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import lmdb
import numpy as np
import pytest

from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound, Unavailable, Unsupported
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import BlockStoreTests, block
from tests.storage.local.writers import WRITER, check_store, start_writer
from tests.storage.tiny_disk import tiny_disk


class TestLocalStore(BlockStoreTests):
    @pytest.fixture
    def make_store(self, tmp_path):
        return lambda: LocalStore(tmp_path / "store", segment_size_bytes=1 << 20)


class TestVerifyingStore(BlockStoreTests):
    @pytest.fixture
    def make_store(self, tmp_path):
        return lambda: VerifyingStore(LocalStore(tmp_path / "store"), source="the disk")


# ----------------------------------------------------------------------------------------- many processes


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
        "        yield Cid.of(b'%d' % i * 99_999), b'%d' % i * 99_999\n"
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
        "from holdfast.storage.local.local_store import LocalStore\n"
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
        data = [block(bytes([i]) * 800) for i in range(6)]
        store.put_many(data)
        held = store.statistics()
        assert (held["blocks"], held["bytes"], held["segments"]) == (6, 4800, 3)
        assert store.view([cid for cid, _ in data]) is None
        joined = store.view([cid for cid, _ in data[2:4]])
        assert joined is not None
        assert bytes(joined) == data[2][1] + data[3][1]


def test_a_file_that_reaches_the_end_of_a_segment_is_not_torn(tmp_path):
    """It goes on in its segment, with the block above its leaves; the next file begins another."""
    with closing(LocalStore(tmp_path, segment_size_bytes=1000)) as store:
        store.put_many([block(b"begun" * 100)])
        files = [[block(b"%d/%d" % (file, leaf) * 200) for leaf in range(10)] for file in range(2)]
        ends = [block(b"the node above file %d" % file, DAG_PB) for file in range(2)]
        store.put_many([*files[0], ends[0], *files[1], ends[1]])
        for leaves in files:
            assert store.view([cid for cid, _ in leaves]) is not None
        assert store.statistics()["segments"] == 2


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
        data = [block(b"%16d" % i) for i in range(400)]
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


# ----------------------------------------------------------------------------------------- formats and times


def old_format(folder: Path, blocks):
    """A store as the first version wrote it: extents without time, segments with their end, no format number."""
    (folder / "segments").mkdir(parents=True)
    (folder / "index").mkdir()
    with (folder / "segments" / "00000001.seg").open("wb") as first:
        first.write(b"".join(data for _, data in blocks[:5]))
    with (folder / "segments" / "00000002.seg").open("wb") as second:
        second.write(b"".join(data for _, data in blocks[5:]) + b"a dead writer's tail")
    env = lmdb.open(str(folder / "index"), map_size=1 << 24, max_dbs=4)
    extents, ends = env.open_db(b"blocks"), env.open_db(b"segments")
    with env.begin(write=True) as txn:
        at = {1: 0, 2: 0}
        for i, (cid, data) in enumerate(blocks):
            number = 1 if i < 5 else 2
            txn.put(cid.multihash, struct.pack("<IQI", number, at[number], len(data)), db=extents)
            at[number] += len(data)
        for number, end in at.items():
            txn.put(struct.pack(">I", number), struct.pack("<Q", end), db=ends)
    env.close()


def test_a_store_of_the_first_format_is_opened_and_kept(tmp_path):
    blocks = [block(b"%d" % i * 100) for i in range(12)]
    old_format(tmp_path, blocks)
    for _ in range(2):
        with closing(LocalStore(tmp_path)) as store:
            for cid, data in blocks:
                assert bytes(store.get(cid)) == data
            held = store.statistics()
            assert (held["blocks"], held["segments"], held["garbage_bytes"]) == (12, 2, 0)
            assert held["bytes"] == sum(len(data) for _, data in blocks)
            assert store.put_many(blocks) == 0
            # Nobody knows how old they are: for the collector they begin anew.
            assert all(time_s > time.time() - 1000 for batch in store.entries() for *_, time_s in batch)
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([block(b"new")])
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            doomed = {cid.multihash for cid, _ in blocks[::2]}
            store.remove(doomed, cutoff_s=cutoff_s, min_garbage=0.0)
        for cid, data in blocks[1::2]:
            assert bytes(store.get(cid)) == data


def test_a_store_of_a_newer_format_is_not_touched(tmp_path):
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([block(b"x")])
        with store._index.changing() as change:
            change.txn.put(b"format", struct.pack("<I", 3), db=change.tables["meta"])
    with pytest.raises(Unsupported, match=r"format 3.*install a newer holdfast"):
        LocalStore(tmp_path)


def entry_times(store):
    return {multihash: time_s for batch in store.entries() for multihash, *_, time_s in batch}


def age(store, seconds):
    """Make every entry look as if it had been written so long ago."""
    with store._index.changing() as change:
        for multihash, time_s in entry_times(store).items():
            entry = change.txn.get(multihash, db=store._index.blocks)
            change.txn.put(
                multihash, entry[:-4] + struct.pack("<I", time_s - seconds), db=store._index.blocks
            )


def test_adding_a_block_again_makes_it_young_again(tmp_path):
    with closing(LocalStore(tmp_path)) as store:
        again, old = block(b"again"), block(b"old")
        store.put_many([again, old])
        age(store, 5000)
        before = entry_times(store)
        assert store.put_many([again]) == 0
        after = entry_times(store)
        assert after[again[0].multihash] >= before[again[0].multihash] + 5000
        assert after[old[0].multihash] == before[old[0].multihash]
        with store.epoch(int(time.time()) - 1000) as cutoff_s:
            assert store.remove(lambda _: True, cutoff_s=cutoff_s).blocks == 1
        assert store.has(again[0])
        age(store, 60)
        before = entry_times(store)
        store.put_many([again])
        assert entry_times(store) == before  # young enough: nothing had to be written


def test_what_an_add_builds_on_is_renewed_or_missed(tmp_path):
    with closing(LocalStore(tmp_path)) as store:
        here, gone, new = block(b"here"), block(b"gone"), block(b"new")
        store.put_many([here])
        age(store, 5000)
        store.put_many([(here[0], None), new])
        assert entry_times(store)[here[0].multihash] > time.time() - 1000
        with pytest.raises(NotFound, match=str(gone[0])):
            store.put_many([block(b"other"), (gone[0], None)])
        assert not store.has(block(b"other")[0])
        store.put_many([gone, (gone[0], None)])  # what came in the same call is fine


def test_tables_beside_the_blocks_change_as_a_whole_or_not_at_all(tmp_path):
    with closing(LocalStore(tmp_path)) as store:
        here, missing = block(b"here"), block(b"missing")
        store.put_many([here])
        age(store, 5000)
        with store.transaction(write=True) as txn:
            for key in (b"b", b"a", b"ab", b"c"):
                txn.put("pins", key, b"value of " + key)
            assert txn.renew([here[0].multihash, missing[0].multihash]) == [missing[0].multihash]
            assert txn.entry(missing[0].multihash) is None
        assert entry_times(store)[here[0].multihash] > time.time() - 1000

        def delete_and_fail():
            with store.transaction(write=True) as txn:
                txn.delete("pins", b"a")
                raise RuntimeError("changed its mind")

        with pytest.raises(RuntimeError, match="changed its mind"):
            delete_and_fail()
        with closing(LocalStore(tmp_path)) as other, other.transaction() as txn:
            assert [key for key, _ in txn.items("pins")] == [b"a", b"ab", b"b", b"c"]
            assert list(txn.items("pins", b"a")) == [(b"a", b"value of a"), (b"ab", b"value of ab")]
            assert txn.get("pins", b"b") == b"value of b"
            assert txn.get("roots", b"b") is None
            with pytest.raises(InvalidInput, match="no table"):
                txn.get("blocks", b"x")
        with store.transaction(write=True) as txn:
            assert txn.delete("pins", b"a")
            assert not txn.delete("pins", b"a")


def test_a_home_that_can_not_be_written_is_denied(tmp_path):
    with tiny_disk(tmp_path / "disk", "2m") as disk:
        with closing(LocalStore(disk / "store")) as store:
            store.put_many([block(b"x")])
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=10)
        for folder in (disk / "store", disk / "new"):
            with pytest.raises(Denied, match=str(folder)):
                LocalStore(folder)


def test_a_lost_segment_is_not_taken_for_an_empty_one(tmp_path):
    """A writer that made the file anew would turn missing bytes into zeros."""
    lost, later = block(b"lost" * 100), block(b"later")
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([lost])
    next((tmp_path / "segments").iterdir()).unlink()
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([later])
        assert bytes(store.get(later[0])) == b"later"
        with pytest.raises(Corrupt, match="missing"):
            store.get(lost[0])
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            store.remove({block(b"nothing")[0].multihash}, cutoff_s=cutoff_s, min_garbage=0.0)
        store.replace_many([lost])
        assert bytes(store.get(lost[0])) == lost[1]


def test_a_full_disk_can_be_emptied(tmp_path):
    with (
        tiny_disk(tmp_path / "disk", "4m") as disk,
        closing(LocalStore(disk / "store", segment_size_bytes=20_000)) as store,
    ):
        blocks = [block(os.urandom(5000)) for _ in range(400)]
        store.put_many(blocks)
        with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(4096)):
                pass
        free = os.statvfs(disk).f_bavail
        os.truncate(disk / "filler", (disk / "filler").stat().st_size - 200_000)
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            half = {cid.multihash for cid, _ in blocks[::2]}
            assert store.remove(half, cutoff_s=cutoff_s, min_garbage=0.0).blocks == 200
        assert os.statvfs(disk).f_bavail > free
        for cid, data in blocks[1::2]:
            assert bytes(store.get(cid)) == data


def test_a_forked_child_reads_and_writes_beside_its_parent(tmp_path):
    cids = [Cid.of(b"%d" % i) for i in range(400)]
    with closing(LocalStore(tmp_path / "blocks")) as store:
        store.put_many([(cids[0], b"0")])
        child = os.fork()
        if child == 0:
            status = 1
            try:
                assert bytes(store.get(cids[0])) == b"0"
                for i in range(1, 200):
                    store.put_many([(cids[i], b"%d" % i)])
                    assert store.has(cids[i])
                store.close()
                status = 0
            finally:
                os._exit(status)
        for i in range(200, 400):
            store.put_many([(cids[i], b"%d" % i)])
            assert store.has(cids[0])
        assert os.waitpid(child, 0)[1] == 0
        assert all(bytes(store.get(cid)) == b"%d" % i for i, cid in enumerate(cids))
