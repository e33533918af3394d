"""Pins and holds: what somebody wants to keep is known, whole, and only once."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.block_store import Pin, SupportsPins
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins, Root


@pytest.fixture
def local(tmp_path):
    with closing(LocalStore(tmp_path / "blocks")) as opened:
        yield opened


@pytest.fixture
def pins(local):
    return Pins(local)


@pytest.fixture
def store(local, pins):
    return ContentStore(local, pins=pins)


def test_pins_are_what_the_protocol_says(pins):
    assert isinstance(pins, SupportsPins)


def test_what_is_added_is_pinned_unless_the_caller_says_no(store, pins, tmp_path):
    (tmp_path / "file").write_bytes(b"on the disk")
    kept = {
        store.add(tmp_path / "file"),
        store.add_bytes(b"bytes"),
        store.add_files({"a": b"1"}),
    }
    store.add_bytes(b"passing by", pin=False)
    store.put_record({"a": 1})
    assert {pin.cid for pin in pins.pins()} == kept


def test_a_pin_outlives_the_store_and_is_seen_by_others(local, pins, store, tmp_path):
    cid = store.add_files({"a": b"1", "b/c": b"2"}, pin=False)
    pins.pin(cid, name="letters")
    with closing(LocalStore(tmp_path / "blocks")) as other:
        assert Pins(other).pins() == [Pin(cid=cid, recursive=True, name="letters")]
    local.close()
    with closing(LocalStore(tmp_path / "blocks")) as again:
        assert Pins(again).pins() == [Pin(cid=cid, recursive=True, name="letters")]


def test_what_is_not_whole_is_not_pinned(store, pins):
    missing = Cid.of(b"nobody has it")
    record = store.put_record({"link": missing})
    for cid in (record, missing):
        with pytest.raises(NotFound, match=str(missing)):
            pins.pin(cid)
    assert pins.pins() == []
    pins.pin(record, recursive=False)
    assert pins.pins() == [Pin(cid=record, recursive=False)]


def test_pinning_again_renames_and_never_weakens(store, pins):
    cid = store.put_record({"a": 1})
    pins.pin(cid, recursive=False, name="first")
    pins.pin(cid, name="second")
    assert pins.pins() == [Pin(cid=cid, recursive=True, name="second")]
    pins.pin(cid, recursive=False, name="third")
    assert pins.pins() == [Pin(cid=cid, recursive=True, name="third")]


def test_unpinning_what_is_not_pinned_is_told(store, pins):
    cid = store.add_bytes(b"x")
    pins.unpin(cid)
    assert pins.pins() == []
    with pytest.raises(NotFound, match=str(cid)):
        pins.unpin(cid)


def test_an_inline_block_can_be_pinned_though_it_lies_nowhere(store, pins):
    inline = Cid(b"\x01\x55\x00\x05hello")
    pins.pin(inline)
    record = store.put_record({"link": inline})
    pins.pin(record)
    assert {pin.cid for pin in pins.pins()} == {inline, record}


def test_a_hold_moves_with_its_label_and_needs_nothing_to_be_here(pins):
    first, second = Cid.of(b"first"), Cid.of(b"second")
    pins.hold("model digits:1.0.0", first)
    pins.hold("commit", second, recursive=False)
    assert pins.held("model digits:1.0.0") == first
    pins.hold("model digits:1.0.0", second)
    assert pins.roots() == [Root(second, False, "commit"), Root(second, True, "model digits:1.0.0")]
    pins.release("model digits:1.0.0")
    pins.release("model digits:1.0.0")
    assert pins.held("model digits:1.0.0") is None
    assert pins.pins() == []


@pytest.mark.parametrize("label", ["", "x" * 401, "é" * 201])
def test_a_label_that_can_not_be_kept_is_refused(pins, label):
    with pytest.raises(InvalidInput):
        pins.hold(label, Cid.of(b""))


def test_threads_pin_at_once_without_losing_any(store, pins):
    cids = [store.add_bytes(b"%d" % i, pin=False) for i in range(60)]
    threads = [
        threading.Thread(target=lambda part=part: [pins.pin(cid) for cid in part])
        for part in (cids[:20], cids[20:40], cids[40:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [pin.cid for pin in pins.pins()] == sorted(cids)


def test_use_is_noted_only_where_a_quota_needs_it(tmp_path):
    with closing(LocalStore(tmp_path / "free")) as free:
        pins = Pins(free)
        pins.used(Cid.of(b"x"))
        assert pins.last_uses() == {}
    with closing(LocalStore(tmp_path / "bounded", max_bytes=64 << 20)) as bounded:
        pins = Pins(bounded)
        pins.used(Cid.of(b"x"))
        assert list(pins.last_uses()) == [Cid.of(b"x")]
        pins.forget_uses([Cid.of(b"x")])
        assert pins.last_uses() == {}
