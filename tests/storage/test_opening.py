"""How a home's settings reach its store."""

import pytest

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage import get_block
from holdfast.storage.cid import Cid
from holdfast.storage.opening import open_store


def test_the_hash_of_what_is_added_is_a_setting(tmp_path, monkeypatch):
    with open_store(tmp_path) as store:
        assert store.add_bytes(b"hello") == Cid.of(b"hello")
    monkeypatch.setenv("HOLDFAST_STORAGE__HASH", "blake3")
    with open_store(tmp_path) as store:
        cid = store.add_bytes(b"hello")
        assert cid == Cid.of(b"hello", hash="blake3")
        assert bytes(store.open(cid)) == b"hello"
        assert bytes(store.open(Cid.of(b"hello"))) == b"hello"


def test_a_hash_that_the_profile_can_not_have_is_refused_before_anything_is_stored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_STORAGE__HASH", "blake3")
    monkeypatch.setenv("HOLDFAST_STORAGE__PROFILE", "unixfs-v0-2015")
    with pytest.raises(InvalidInput, match="sha2-256"):
        open_store(tmp_path)


def test_one_block_is_had_without_opening_anything_first(tmp_path, own_home):
    with open_store(tmp_path) as store:
        cid = store.add_bytes(b"hello")
    assert get_block(cid, home=tmp_path) == b"hello"
    assert get_block(str(cid), home=tmp_path) == b"hello"
    with pytest.raises(NotFound):
        get_block(cid)
    with open_store(own_home) as store:
        store.add_bytes(b"hello")
    assert get_block(cid) == b"hello"
    with pytest.raises(InvalidInput):
        get_block("hello")
