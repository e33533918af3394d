"""fsck finds every bad byte, and puts right ones in its place only when they are right."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from holdfast.errors import NotFound
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local import fsck
from holdfast.storage.local.fsck import check
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins

if TYPE_CHECKING:
    from holdfast.storage.block_store import SupportsExtent

MIB = 1 << 20


@pytest.fixture
def local(tmp_path):
    with closing(LocalStore(tmp_path / "blocks")) as opened:
        yield opened


@pytest.fixture
def store(local):
    return ContentStore(local, pins=Pins(local))


def spoil(local: SupportsExtent, cid: Cid) -> None:
    extent = local.extent(cid)
    assert extent is not None
    with extent.path.open("r+b") as file:
        file.seek(extent.offset)
        first = file.read(1)
        file.seek(extent.offset)
        file.write(bytes((first[0] ^ 1,)))


def test_a_sound_store_is_called_sound_and_all_of_it_is_hashed(local, store):
    store.add_bytes(os.urandom(3 * MIB))
    seen: list[int] = []
    report = check(local, Pins(local), progress=seen.append)
    assert (report.blocks, report.findings, report.bad) == (4, (), 0)
    assert report.bytes == sum(seen) == local.statistics()["bytes"]


def test_every_bad_block_is_named(local, store):
    leaves = [store.add_bytes(b"%d" % i * 1000) for i in range(20)]
    for cid in leaves[3:6]:
        spoil(local, cid)
    report = check(local, Pins(local))
    assert {finding.cid for finding in report.findings} == set(leaves[3:6])
    assert report.bad == 3
    assert all(str(f.cid) in f.problem and not f.mended for f in report.findings)


def test_a_store_that_is_gone_through_in_several_turns_is_hashed_whole_and_once(tmp_path, monkeypatch):
    monkeypatch.setattr(fsck, "_HELD_BLOCKS", 7)
    own = tmp_path / "own.bin"
    own.write_bytes(os.urandom(5 * MIB))
    with closing(LocalStore(tmp_path / "blocks", segment_size_bytes=30_000)) as local:
        store = ContentStore(local, pins=Pins(local))
        leaves = [store.add_bytes(os.urandom(9_000)) for _ in range(40)]
        store.add(own, by_reference=True)
        assert local.statistics()["segments"] > 10
        for cid in (leaves[0], leaves[17], leaves[39]):
            spoil(local, cid)
        with own.open("r+b") as file:
            file.seek(3 * MIB)
            file.write(b"other bytes")
        seen: list[int] = []
        report = check(local, Pins(local), progress=seen.append)
        assert report.blocks == local.statistics()["blocks"] == 46
        assert sum(seen) == report.bytes == local.statistics()["bytes"] + 5 * MIB
        assert len({finding.cid for finding in report.findings}) == report.bad == 4


def test_bad_blocks_are_mended_from_peers(local, store):
    data = os.urandom(3 * MIB)
    cid = store.add_bytes(data)
    leaf = Cid.of(data[MIB : 2 * MIB])
    spoil(local, leaf)
    report = check(local, Pins(local), fetch=lambda cids: [data[MIB : 2 * MIB] for _ in cids])
    assert [(f.cid, f.mended) for f in report.findings] == [(leaf, True)]
    assert report.bad == 0
    assert bytes(store.open(cid)) == data
    assert check(local, Pins(local)).findings == ()


def test_what_no_peer_has_stays_bad(local, store):
    cid = store.add_bytes(b"rotten" * 100)
    spoil(local, cid)

    def nobody(_):
        raise NotFound("no node gave it")

    report = check(local, Pins(local), fetch=nobody)
    assert report.bad == 1
    assert "no node gave it" in report.findings[0].problem


def test_a_pin_that_is_not_whole_is_told(local, store):
    leaf = store.add_bytes(b"leaf", pin=False)
    record = store.put_record({"x": leaf})
    Pins(local).pin(record)
    with local.epoch(2**31) as cutoff:
        local.remove({leaf.multihash}, cutoff_s=cutoff, min_garbage=0.0)
    report = check(local, Pins(local))
    assert [f.cid for f in report.findings] == [leaf]
    assert str(record) in report.findings[0].problem
    report = check(local, Pins(local), fetch=lambda _: [b"leaf"])
    assert report.bad == 0
    assert local.has(leaf)
