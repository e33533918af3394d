"""Processes that are killed at any moment while they add, stage, remove and compact; and readers that never notice."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager

import pytest

from holdfast.errors import Conflict, Unavailable
from holdfast.storage.cid import Cid
from holdfast.storage.local import index_changes, writing
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.testing import block

SEGMENT_BYTES = 100_000

WORKER = """
import hashlib, random, sys, time
from pathlib import Path
from holdfast.errors import Conflict
from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore
import holdfast.storage.local.index_changes as index_changes
import holdfast.storage.local.writing as writing

folder, name, seed, segment_bytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
dice = random.Random(seed)
store = LocalStore(Path(folder), segment_size_bytes=segment_bytes)

def content(kind, number):
    return hashlib.sha256(f"{kind}/{number}".encode()).digest() * (1 + (number * 37) % 300)

def doomed(multihash):
    return multihash in going

def say(*words):
    print(*words, flush=True)

say("ready")
turn = 0
while True:
    turn += 1
    # What is this worker's own is kept; what both add and remove all the time is "shared".
    mine = [content(f"{name}/{seed}/{turn}", i) for i in range(dice.randrange(1, 12))]
    shared = [content("shared", dice.randrange(60)) for _ in range(dice.randrange(8))]
    batch = [(Cid.of(data), data) for data in [*mine, *shared]]
    dice.shuffle(batch)
    writing.STAGE_S = dice.choice([0, 0, 1e9])
    index_changes.AT_ONCE = dice.choice([3, 10_000])
    store.put_many(batch, resume=dice.choice([None, b"work", name.encode()]))
    say("kept", *(Cid.of(data) for data in mine))
    gone = {Cid.of(data).multihash for data in shared} | {
        Cid.of(content("shared", dice.randrange(60))).multihash for _ in range(5)
    }
    if dice.random() < 0.5:
        try:
            with store.epoch(int(time.time()) + 1) as cutoff_s:
                store.drop_stale(dice.choice([0, 1000]))
                store.remove(gone, cutoff_s=cutoff_s, min_garbage=dice.choice([0.0, 0.25]))
        except Conflict:
            pass  # the other one collects
    for cid, data in batch[:2]:
        try:
            got = bytes(store.get(cid))
        except LookupError:
            assert data in shared, "a block that nobody removes is gone"
            continue
        assert got == data, "wrong bytes"
"""


@contextmanager
def worker(folder, name, seed):
    arguments = [sys.executable, "-c", WORKER, str(folder), name, str(seed), str(SEGMENT_BYTES)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def check(folder, kept):
    """Everything acknowledged is there and right, nothing half-written is visible, and the books agree."""
    with closing(LocalStore(folder, segment_size_bytes=SEGMENT_BYTES)) as store:
        for cid in kept:
            cid.check(store.get(cid), source="the store")
        total = count = 0
        for batch in store.entries():
            for multihash, _, _, length, _ in batch:
                cid = Cid(b"\x01\x55" + multihash)
                data = store.get(cid)
                assert len(data) == length
                cid.check(data, source="the store")
                total += length
                count += 1
        held = store.statistics()
        assert (held["blocks"], held["bytes"]) == (count, total)
        rows = store._index.segments()
        files = {int(path.stem): path.stat().st_size for path in (folder / "segments").iterdir()}
        assert files == {number: row.end for number, row in rows.items()}
        assert held["staged_bytes"] == sum(row.staged_bytes for row in rows.values())
        assert total + held["garbage_bytes"] + held["staged_bytes"] == sum(files.values())
        return held


def kill_rounds(folder, rounds, seed):
    dice = random.Random(seed)
    kept: list[Cid] = []
    for turn in range(rounds):
        with worker(folder, "one", 2 * turn) as one, worker(folder, "two", 2 * turn + 1) as two:
            for process in (one, two):
                assert process.stdout.readline() == "ready\n", process.stderr.read()
            time.sleep(dice.uniform(0, 0.12))
            processes = [one, two]
            dice.shuffle(processes)
            for process in processes:
                process.send_signal(signal.SIGKILL)
                time.sleep(dice.choice([0, 0.01]))
            for process in processes:
                lines = process.stdout.read().splitlines(keepends=True)
                errors = process.stderr.read()
                assert process.wait(30) == -signal.SIGKILL, errors
                for line in lines:
                    words = line.split()
                    if line.endswith("\n") and words[0] == "kept":
                        kept += [Cid.parse(word) for word in words[1:]]
        if turn % 5 == 4:
            check(folder, kept)
    assert len(kept) > rounds
    check(folder, kept)
    # And no bytes are lost for ever: one collection brings the disk down to what is in use.
    with closing(LocalStore(folder, segment_size_bytes=SEGMENT_BYTES)) as store:
        store.drop_stale(0)
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            store.remove(set(), cutoff_s=cutoff_s, min_garbage=0.0)
    held = check(folder, kept)
    assert held["garbage_bytes"] == held["staged_bytes"] == 0
    left = {path.name for path in (folder / "locks").iterdir()}
    assert not any(name.startswith("session-") for name in left)


def test_kill_9_while_two_processes_add_and_remove_loses_nothing(tmp_path):
    kill_rounds(tmp_path, 8, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kill_9_two_hundred_times_loses_nothing(tmp_path):
    kill_rounds(tmp_path, int(os.environ.get("HOLDFAST_KILL_ROUNDS", "200")), seed=2)


# --------------------------------------------------------------------------------------- an interrupted add

RESUMED = """
import os, signal, sys
from pathlib import Path
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.cid import Cid
import holdfast.storage.local.index_changes as index_changes
import holdfast.storage.local.writing as writing

index_changes.AT_ONCE = 3  # so that what is staged becomes visible in several steps
writing.STAGE_S = 0
store = LocalStore(Path(sys.argv[1]))
def blocks():
    for i in range(10):
        data = b"%d" % i * 1000
        yield Cid.of(data), data
    if sys.argv[2] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif sys.argv[2] == "interrupt":
        raise KeyboardInterrupt
    elif sys.argv[2] == "wait":
        print("waiting", flush=True)
        sys.stdin.read()
    else:
        raise RuntimeError("source")
store.put_many(blocks(), resume=b"work")
"""


def interrupted(folder, how):
    arguments = [sys.executable, "-c", RESUMED, str(folder), how]
    return subprocess.run(arguments, capture_output=True, check=False, timeout=60)


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_what_an_interrupted_add_wrote_is_not_written_again(tmp_path, how):
    interrupted(tmp_path, how)
    blocks = [block(b"%d" % i * 1000) for i in range(10)]
    size = sum(len(data) for _, data in blocks)
    with closing(LocalStore(tmp_path)) as store:
        assert list(store.multihashes()) == []  # visible to nobody
        assert store.statistics()["staged_bytes"] == size
        files = {path: path.stat().st_size for path in (tmp_path / "segments").iterdir()}
        assert store.put_many([*blocks, block(b"more")], resume=b"work") == size + 4
        after = sum(path.stat().st_size for path in (tmp_path / "segments").iterdir())
        assert after == sum(files.values()) + 4
        for cid, data in blocks:
            assert bytes(store.get(cid)) == data
        held = store.statistics()
        assert (held["staged_bytes"], held["garbage_bytes"]) == (0, 0)


def test_other_adds_do_not_build_on_what_may_be_dropped(tmp_path):
    interrupted(tmp_path, "kill")
    blocks = [block(b"%d" % i * 1000) for i in range(10)]
    with closing(LocalStore(tmp_path)) as store:
        store.put_many(blocks, resume=b"other work")
        store.drop_stale(0)
        with store.epoch(int(time.time()) - 1000) as cutoff_s:
            store.remove(set(), cutoff_s=cutoff_s, min_garbage=0.0)
        for cid, data in blocks:
            assert bytes(store.get(cid)) == data


def test_an_add_that_fails_leaves_nothing_staged(tmp_path):
    assert b"RuntimeError: source" in interrupted(tmp_path, "fail").stderr
    with closing(LocalStore(tmp_path)) as store:
        held = store.statistics()
        assert (held["blocks"], held["staged_bytes"], held["garbage_bytes"]) == (0, 0, 0)
    assert sum(path.stat().st_size for path in (tmp_path / "segments").iterdir()) == 0


def test_what_is_staged_for_another_version_of_the_same_work_does_not_become_visible(tmp_path):
    interrupted(tmp_path, "kill")
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([block(b"3" * 1000), block(b"new")], resume=b"work")
        assert set(store.multihashes()) == {block(b"3" * 1000)[0].multihash, block(b"new")[0].multihash}
        held = store.statistics()
        assert held["staged_bytes"] == 0
        assert held["garbage_bytes"] > 0


def test_an_add_that_fails_while_it_becomes_visible_takes_nothing_visible_back(tmp_path, monkeypatch):
    monkeypatch.setattr(index_changes, "AT_ONCE", 3)
    monkeypatch.setattr(writing, "STAGE_S", 0)
    blocks = [block(b"%d" % i * 1000) for i in range(10)]
    unstage, turns = index_changes.Change.unstage, iter(range(100))

    def fails_later(change, session):
        if next(turns) == 2:
            raise OSError(errno.ENOSPC, "no space left")
        return unstage(change, session)

    with closing(LocalStore(tmp_path, segment_size_bytes=SEGMENT_BYTES)) as store:
        store.put_many([block(b"before")])
        monkeypatch.setattr(index_changes.Change, "unstage", fails_later)
        with pytest.raises(Unavailable):
            store.put_many(blocks, resume=b"work")
        assert len(list(store.multihashes())) == 1 + 6
    held = check(tmp_path, [block(b"before")[0]])
    assert held["staged_bytes"] == 0
    with closing(LocalStore(tmp_path, segment_size_bytes=SEGMENT_BYTES)) as store:
        store.put_many(blocks, resume=b"work")
        for cid, data in blocks:
            assert bytes(store.get(cid)) == data


def test_two_living_adds_of_the_same_work_do_not_disturb_each_other(tmp_path):
    arguments = [sys.executable, "-c", RESUMED, str(tmp_path), "wait"]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "waiting\n"
        blocks = [block(b"%d" % i * 1000) for i in range(10)]
        with closing(LocalStore(tmp_path)) as store:
            assert store.drop_stale(0) == 0  # it lives
            assert store.put_many(blocks, resume=b"work") > 0
            first.kill()
            first.wait(30)
            assert store.drop_stale(1000) == 0  # somebody may still go on
            assert store.drop_stale(0) > 0
            for cid, data in blocks:
                assert bytes(store.get(cid)) == data
            assert store.statistics()["staged_bytes"] == 0


# ------------------------------------------------------------------------------------ readers and collectors

READER = """
import sys
from pathlib import Path
from holdfast.storage.cid import Cid
from holdfast.storage.local.local_store import LocalStore

cids = [Cid.parse(line) for line in Path(sys.argv[2]).read_text().split()]
first = None
with LocalStore(Path(sys.argv[1])) as store:
    rounds = 0
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        for cid in cids:
            view = store.get(cid)
            cid.check(view, source="the store")
            first = first or (cid, view)
        joined = store.view(cids[:2])
        assert joined is None or bytes(joined) == bytes(store.get(cids[0])) + bytes(store.get(cids[1]))
        where = store.extent(cids[0])
        assert where is not None
        rounds += 1
    first[0].check(first[1], source="an old view")
print("done", rounds, flush=True)
"""


def test_a_reader_never_notices_that_segments_are_rewritten(tmp_path):
    kept = [block(b"kept %d" % i * 500) for i in range(40)]
    (tmp_path / "cids").write_text("\n".join(str(cid) for cid, _ in kept))
    with closing(LocalStore(tmp_path / "store", segment_size_bytes=5_000)) as store:
        store.put_many([*(block(b"goes %d" % i * 500) for i in range(3)), *kept])
        views = [(store.get(cid), data) for cid, data in kept]
        arguments = [sys.executable, "-c", READER]
        arguments += map(str, (tmp_path / "store", tmp_path / "cids", tmp_path / "stop"))
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader:
            assert reader.stdout is not None
            assert reader.stderr is not None
            assert reader.stdout.readline() == "ready\n"
            rewritten = 0
            for turn in range(40):
                waste = [block(b"waste %d %d" % (turn, i) * 300) for i in range(10)]
                mixed = [pair for both in zip(waste, kept[:10], strict=True) for pair in both]
                store.replace_many(mixed)  # the kept ones move away from their old places, too
                with store.epoch(int(time.time()) + 1) as cutoff_s:
                    removed = store.remove(
                        {cid.multihash for cid, _ in waste}, cutoff_s=cutoff_s, min_garbage=0.0
                    )
                rewritten += removed.freed_bytes > 0
            (tmp_path / "stop").touch()
            assert reader.wait(60) == 0, reader.stderr.read()
            assert int(reader.stdout.read().split()[1]) > 0
        assert rewritten == 40
        for view, data in views:
            assert view == data
        assert store.statistics()["segments"] == len(list((tmp_path / "store" / "segments").iterdir()))


def test_only_one_collects_at_a_time(tmp_path):
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as other:
        with (
            store.epoch(int(time.time())),
            pytest.raises(Conflict, match="another garbage collection"),
            other.epoch(int(time.time())),
        ):
            pass
        with other.epoch(int(time.time())):
            pass


def test_blocks_are_only_removed_within_an_epoch(tmp_path):
    with closing(LocalStore(tmp_path)) as store:
        with pytest.raises(Conflict, match="epoch"):
            store.remove(set(), cutoff_s=1)
        with store.epoch(5), pytest.raises(ValueError, match="later"):
            store.remove(set(), cutoff_s=6)


def test_a_block_that_an_add_builds_on_is_not_collected(tmp_path):
    """The add sees the block, the collector wants it, the add goes on without writing it again."""
    old = block(b"old" * 100)
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as collector:
        store.put_many([old])
        removed = []

        def collect():
            with collector.epoch(int(time.time()) + 1, timeout_s=60) as cutoff_s:
                removed.append(collector.remove({old[0].multihash}, cutoff_s=cutoff_s))

        thread = threading.Thread(target=collect)

        def blocks():
            yield old
            thread.start()
            for i in range(1000):  # until the collector has announced itself, and the add has moved on
                yield block(b"new %d" % i)
                if not thread.is_alive():
                    break
                time.sleep(0.01)
            assert not thread.is_alive()

        assert store.put_many(blocks()) > 0
        thread.join(60)
        assert removed[0].blocks == 0
        assert bytes(store.get(old[0])) == old[1]


def test_an_add_that_ends_while_a_collector_waits_keeps_what_it_skipped(tmp_path):
    """It comes to no further block, so only its commit can save what it built on."""
    old, new = block(b"old" * 100), block(b"new")
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as collector:
        store.put_many([old])
        removed = []

        def collect():
            with collector.epoch(int(time.time()) + 1, timeout_s=60) as cutoff_s:
                removed.append(collector.remove(lambda _: True, cutoff_s=cutoff_s).blocks)

        thread = threading.Thread(target=collect)

        def blocks():
            yield new
            yield old
            thread.start()
            for _ in range(1000):
                if store._index.totals().cutoff_s:
                    break
                time.sleep(0.01)

        store.put_many(blocks())
        thread.join(60)
        assert removed == [0]
        assert bytes(store.get(old[0])) == old[1]


def test_an_add_that_began_under_a_cut_off_writes_old_blocks_again(tmp_path):
    old = block(b"old" * 100)
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([old])
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            assert store.put_many([old]) == len(old[1])
            assert store.remove({old[0].multihash}, cutoff_s=cutoff_s).blocks == 0
        assert bytes(store.get(old[0])) == old[1]


def test_a_collector_gives_up_on_an_add_that_does_not_move(tmp_path):
    old = block(b"old")
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as collector:
        store.put_many([old])

        def blocks():
            yield old
            for _ in range(2):
                with pytest.raises(Unavailable, match="still at work"), collector.epoch(2, timeout_s=0.1):
                    pass
            yield block(b"new")

        store.put_many(blocks())
        with collector.epoch(int(time.time()) + 1, timeout_s=60) as cutoff_s:
            assert collector.remove(lambda _: True, cutoff_s=cutoff_s).blocks == 2


COLLECTOR = """
import sys, time
from pathlib import Path
from holdfast.storage.local.local_store import LocalStore

store = LocalStore(Path(sys.argv[1]))
with store.epoch(int(time.time()) + 1000):
    print("announced", flush=True)
    sys.stdin.read()
"""


def test_the_cut_off_of_a_dead_collector_is_void(tmp_path):
    old = block(b"old")
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([old])
        arguments = [sys.executable, "-c", COLLECTOR, str(tmp_path)]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "announced\n"
            assert store.put_many([block(b"meanwhile")]) == 9
            process.kill()
        assert store.put_many([old]) == 0


def test_a_source_that_stores_blocks_itself_does_not_stop_a_collector_for_ever(tmp_path):
    old = block(b"old")
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as collector:
        store.put_many([old])
        removed = []

        def collect():
            with collector.epoch(int(time.time()) + 1, timeout_s=60) as cutoff_s:
                removed.append(collector.remove(lambda _: True, cutoff_s=cutoff_s).blocks)

        thread = threading.Thread(target=collect)

        def blocks():
            yield old
            thread.start()
            for i in range(1000):
                store.put_many([block(b"inner %d" % i)])
                if not thread.is_alive():
                    break
                time.sleep(0.01)
            yield block(b"outer")

        store.put_many(blocks())
        thread.join(60)
        assert store.has(old[0])
        assert store.has(block(b"outer")[0])
        assert len(removed) == 1


def test_what_was_put_stays_until_there_was_time_to_pin_it(tmp_path):
    """Also when the collector had the thread move on in between, to the epoch that it waits for no longer."""
    first, second, third = block(b"first"), block(b"second"), block(b"third")
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as collector:
        removed = []

        def collect(ahead_s=1):
            with collector.epoch(int(time.time()) + ahead_s, timeout_s=60) as cutoff_s:
                removed.append(collector.remove(lambda _: True, cutoff_s=cutoff_s).blocks)

        with store.adding():
            store.put_many([first])
            for block_ in (second, third):  # each moves the thread on to the epoch that was announced before
                thread = threading.Thread(target=collect)
                thread.start()
                for _ in range(1000):
                    if store._index.totals().cutoff_s:
                        break
                    time.sleep(0.01)
                store.put_many([block_])
                thread.join(60)
            assert removed == [0, 0]
            assert all(store.has(cid) for cid, _ in (first, second, third))
        collect(ahead_s=10)  # later than the times that were renewed just now
        assert removed == [0, 0, 3]


def test_an_orphan_of_a_crash_is_removed_and_its_number_never_used_again(tmp_path):
    folder = tmp_path / "segments"
    with closing(LocalStore(tmp_path)) as store:
        store.put_many([block(b"one")])
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            store.remove(lambda _: True, cutoff_s=cutoff_s)
        assert list(folder.iterdir()) == []
        (folder / "00000001.seg").write_bytes(b"one")  # as if the process had died before it removed the file
        store.put_many([block(b"two")])
    with closing(LocalStore(tmp_path)):
        assert [path.name for path in folder.iterdir()] == ["00000002.seg"]


def test_garbage_that_stays_is_taken_by_a_later_collection(tmp_path):
    blocks = [block(b"%d" % i * 1000) for i in range(20)]
    with closing(LocalStore(tmp_path)) as store:
        store.put_many(blocks)
        with store.epoch(int(time.time()) + 1) as cutoff_s:
            few = store.remove({cid.multihash for cid, _ in blocks[:3]}, cutoff_s=cutoff_s)
            assert few.freed_bytes == 0
            assert store.statistics()["garbage_bytes"] == few.bytes
            more = store.remove({cid.multihash for cid, _ in blocks[3:8]}, cutoff_s=cutoff_s)
            assert more.freed_bytes == few.bytes + more.bytes
        assert store.statistics()["garbage_bytes"] == 0
        rest = store.view([cid for cid, _ in blocks[8:]])
        assert rest is not None  # still back to back
        assert rest == b"".join(data for _, data in blocks[8:])


def test_a_segment_that_somebody_writes_is_left_alone(tmp_path):
    with closing(LocalStore(tmp_path)) as store, closing(LocalStore(tmp_path)) as collector:
        store.put_many([block(b"old" * 1000)])
        with collector.epoch(int(time.time()) + 1) as cutoff_s:

            def inside():
                yield block(b"new" * 1000)
                removed = collector.remove(lambda _: True, cutoff_s=cutoff_s)
                assert (removed.blocks, removed.freed_bytes) == (1, 0)

            store.put_many(inside())
        assert bytes(store.get(block(b"new" * 1000)[0])) == b"new" * 1000
