"""Garbage collection takes what nothing keeps, and nothing else, whatever goes on meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Conflict, Corrupt, NotFound, Unavailable
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats.dag import reachable
from holdfast.storage.local.collector import Collector
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


def collector(local, grace_s=0.0):
    return Collector(local, Pins(local), grace_s=grace_s)


def disk_bytes(folder):
    return sum(path.stat().st_blocks * 512 for path in (folder / "segments").iterdir())


def test_what_nothing_keeps_goes_and_its_bytes_go_back_to_the_disk(local, store, tmp_path):
    kept = store.add_bytes(os.urandom(4 * MIB))
    gone = store.add_bytes(os.urandom(40 * MIB), pin=False)
    before = disk_bytes(tmp_path / "blocks")
    swept = collector(local).collect()
    assert swept.blocks == 41
    assert swept.bytes >= 40 * MIB
    assert before - disk_bytes(tmp_path / "blocks") >= 40 * MIB
    assert swept.freed_bytes >= 40 * MIB
    assert not local.has(gone)
    assert len(store.open(kept)) == 4 * MIB
    assert local.statistics()["bytes"] < 5 * MIB


def test_a_plan_removes_nothing_and_tells_what_a_collection_does(local, store):
    store.add_bytes(os.urandom(3 * MIB))
    store.add_bytes(os.urandom(2 * MIB), pin=False)
    plan = collector(local).plan()
    assert (plan.roots, plan.kept_blocks, plan.dead_blocks, plan.young_blocks) == (1, 4, 3, 0)
    assert collector(local).plan() == plan
    swept = collector(local).collect()
    assert (swept.blocks, swept.bytes) == (plan.dead_blocks, plan.dead_bytes)
    after = collector(local).plan()
    assert (after.kept_bytes, after.dead_blocks) == (plan.kept_bytes, 0)


def test_what_was_just_written_is_left_alone(local, store):
    fresh = store.add_bytes(b"on its way to a name", pin=False)
    plan = collector(local, grace_s=3600).plan()
    assert (plan.young_blocks, plan.dead_blocks) == (1, 0)
    assert collector(local, grace_s=3600).collect().blocks == 0
    assert local.has(fresh)


def test_pins_holds_and_what_they_link_to_survive(local, store):
    leaf = store.add_bytes(os.urandom(3 * MIB), pin=False)
    model = store.put_record(
        {"kind": "model", "weights": leaf, "parent": store.put_record({"kind": "model"})}
    )
    alone = store.put_record({"link": store.add_bytes(b"not kept by a direct pin", pin=False)})
    Pins(local).hold("model m:1.0.0", model)
    Pins(local).pin(alone, recursive=False)
    before = {cid for root in (model,) for cid in reachable(local.get, root)}
    assert collector(local).collect().blocks == 1
    assert all(local.has(cid) for cid in before)
    assert local.has(alone)
    Pins(local).release("model m:1.0.0")
    collector(local).collect()
    assert list(local.multihashes()) == [alone.multihash]


def test_what_two_keep_stays_until_both_let_go(local, store):
    shared = store.add_bytes(b"shared", pin=False)
    first, second = store.put_record({"n": 1, "x": shared}), store.put_record({"n": 2, "x": shared})
    Pins(local).pin(first)
    Pins(local).pin(second)
    Pins(local).unpin(first)
    collector(local).collect()
    assert local.has(shared)
    Pins(local).unpin(second)
    collector(local).collect()
    assert list(local.multihashes()) == []


def test_why_shows_the_way_from_a_name_to_a_block(local, store):
    leaf = store.add_bytes(b"leaf", pin=False)
    record = store.put_record({"x": leaf})
    Pins(local).hold("model m:1.0.0", record)
    assert collector(local).why(leaf) == [f"model m:1.0.0: {record} → {leaf}"]
    assert collector(local).why(store.add_bytes(b"nobody's", pin=False)) == []
    with pytest.raises(NotFound):
        collector(local).why(Cid.of(b"not here"))


def test_a_rotten_node_condemns_nothing(local, store):
    leaf = store.add_bytes(b"leaf", pin=False)
    record = store.put_record({"x": leaf})
    Pins(local).hold("model m:1.0.0", record)
    extent = local.extent(record)
    with extent.path.open("r+b") as file:
        file.seek(extent.offset + extent.length - 1)
        file.write(b"\xff")
    with pytest.raises(Corrupt, match="fsck"):
        collector(local).collect()
    assert local.has(leaf)


def test_only_one_collects_at_a_time(local, store, tmp_path):
    store.add_bytes(b"x", pin=False)
    with (
        closing(LocalStore(tmp_path / "blocks")) as other,
        local.epoch(1),
        pytest.raises(Conflict),
    ):
        collector(other).collect()


def test_an_unchanged_file_is_stored_again_after_it_was_collected(local, store, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(2 * MIB))
    os.utime(path, ns=(1, 1))
    cid = store.add(path, pin=False)
    collector(local).collect()
    assert not local.has(cid)
    assert store.add(path) == cid
    assert bytes(store.open(cid)) == path.read_bytes()


def test_maps_that_are_open_keep_their_bytes(local, store):
    data = os.urandom(8 * MIB)
    kept, gone = store.add_bytes(data), store.add_bytes(data[::-1], pin=False)
    kept_map, gone_map = store.open(kept), store.open(gone)
    collector(local).collect()
    assert kept_map == data
    assert gone_map == data[::-1]
    assert store.open(kept) == data


def test_adds_that_go_on_meanwhile_lose_nothing(local, tmp_path):
    """Old garbage is added again and again, by its bytes, while collections run with no grace at all."""
    pieces = [os.urandom(200_000) for _ in range(6)]
    wrong: list[object] = []
    stop = threading.Event()

    def add() -> None:
        try:
            with closing(LocalStore(tmp_path / "blocks")) as mine:
                store = ContentStore(mine, pins=Pins(mine))
                for turn in range(60):
                    data = pieces[turn % len(pieces)]
                    cid = store.add_bytes(data)
                    if bytes(store.open(cid)) != data:
                        wrong.append(turn)
                    store.unpin(cid)
        except Exception as error:  # noqa: BLE001 -- the test reports it, whatever it is
            wrong.append(error)
        finally:
            stop.set()

    thread = threading.Thread(target=add)
    thread.start()
    rounds = 0
    while not stop.is_set() and rounds < 10_000:
        collector(local).collect()
        rounds += 1
    thread.join(60)
    assert wrong == []
    assert rounds > 0


_ADDER = """
import os, sys
from holdfast.storage.opening import open_store
with open_store(sys.argv[1]) as store:
    print("ready", flush=True)
    for turn in range(int(sys.argv[2])):
        data = bytes([turn]) * 300_000
        cid = store.add_bytes(data)
        assert bytes(store.open(cid)) == data, turn
        if turn % 3:
            store.unpin(cid)
print("done", flush=True)
"""


def test_another_process_adds_while_this_one_collects(tmp_path):
    from holdfast.config import load_settings
    from holdfast.storage.opening import open_collector

    process = subprocess.Popen(
        [sys.executable, "-c", _ADDER, str(tmp_path), "80"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, open_collector(load_settings(tmp_path, storage__grace_s=0.0)) as collecting:
        assert process.stdout.readline() == "ready\n"
        for _ in range(10_000):
            collecting.collect()
            if process.poll() is not None:
                break
        assert process.stdout.read() == "done\n"
    assert process.returncode == 0


# ------------------------------------------------------------------------------------------------- quota


def bounded(tmp_path, max_bytes):
    local = LocalStore(tmp_path / "bounded", max_bytes=max_bytes)
    local.make_room = Collector(local, Pins(local), grace_s=0.0).make_room
    return local


def test_a_full_store_lets_go_of_what_was_used_longest_ago(tmp_path):
    with closing(bounded(tmp_path, 40 * MIB)) as local:
        pins = Pins(local)
        store = ContentStore(local, pins=pins)
        pinned = store.add_bytes(os.urandom(8 * MIB))
        contents = [store.add_bytes(os.urandom(8 * MIB), pin=False) for _ in range(3)]
        for age, cid in zip((50, 10, 90), contents, strict=True):
            with local.transaction(write=True) as txn:
                txn.put("roots", cid.raw, (2_000_000_000 - age).to_bytes(8, "little"))
        newest = store.add_bytes(os.urandom(12 * MIB), pin=False)
        assert local.has(pinned)
        assert local.has(newest)
        assert [local.has(cid) for cid in contents].count(False) >= 1
        assert not local.has(contents[2]), "the one that was used longest ago goes first"
        assert local.has(contents[1]), "the one that was used last stays longest"
        assert local.statistics()["disk_bytes"] <= 40 * MIB


def test_a_store_full_of_pins_refuses_cleanly(tmp_path):
    with closing(bounded(tmp_path, 20 * MIB)) as local:
        store = ContentStore(local, pins=Pins(local))
        kept = store.add_bytes(os.urandom(12 * MIB))
        before = list(local.multihashes())
        with pytest.raises(Unavailable, match="max_bytes"):
            store.add_bytes(os.urandom(16 * MIB))
        assert list(local.multihashes()) == before
        assert len(store.open(kept)) == 12 * MIB
        assert local.statistics()["disk_bytes"] <= 20 * MIB


# ---------------------------------------------------------------------------------------------- the law


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 30), max_size=4), min_size=1, max_size=30),
    st.sets(st.integers(0, 30)),
    st.sets(st.integers(0, 30)),
)
def test_exactly_what_the_roots_reach_survives(tmp_path_factory, links, pinned, direct):
    with closing(LocalStore(tmp_path_factory.mktemp("law") / "blocks")) as local:
        store = ContentStore(local, pins=Pins(local))
        cids: list[Cid] = []
        for number, targets in enumerate(links):
            body = {"n": number, "to": [cids[t] for t in targets if t < number]}
            cids.append(store.put_record(body))
        whole = [cids[i] for i in pinned if i < len(cids)]
        single = [cids[i] for i in direct - pinned if i < len(cids)]
        for cid in whole:
            Pins(local).pin(cid)
        for cid in single:
            Pins(local).pin(cid, recursive=False)
        expected = {cid.multihash for root in whole for cid in reachable(local.get, root)}
        expected |= {cid.multihash for cid in single}
        collector(local).collect()
        assert set(local.multihashes()) == expected
