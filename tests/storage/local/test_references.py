"""Blocks in the user's own files: read, hashed, and told apart from what the store has itself."""

import os
import time
from contextlib import closing

import pytest

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.references import FileRange
from holdfast.storage.testing import block

CONTENT = bytes(range(256)) * 40


def pieces(path, size=1000):
    """The ranges of a file, each with its CID."""
    data = path.read_bytes()
    return [
        (Cid.of(data[at : at + size]), FileRange(path, at, len(data[at : at + size])))
        for at in range(0, len(data), size)
    ]


@pytest.fixture
def store(tmp_path):
    with closing(LocalStore(tmp_path / "store")) as store:
        yield store


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "the user's file"
    path.write_bytes(CONTENT)
    return path


def collect(store, doomed=lambda _: True):
    with store.epoch(int(time.time()) + 1) as cutoff_s:
        return store.remove(doomed, cutoff_s=cutoff_s, min_garbage=0.0)


def test_a_referred_block_is_read_from_its_file_and_takes_no_room(store, file):
    refs = pieces(file)
    assert store.put_many(refs) == len(CONTENT)
    assert b"".join(store.get(cid) for cid, _ in refs) == CONTENT
    assert all(store.has(cid) for cid, _ in refs)
    held = store.statistics()
    assert (held["blocks"], held["bytes"]) == (len(refs), 0)
    assert (held["referenced_blocks"], held["referenced_bytes"]) == (len(refs), len(CONTENT))
    assert list((store.folder / "segments").iterdir()) == []
    assert memoryview(store.get(refs[0][0])).readonly


def test_what_is_referred_is_never_mapped_or_sent_unhashed(store, file):
    """A file that its user cuts would kill the process that has it mapped."""
    refs = pieces(file)
    own = block(b"own")
    store.put_many([*refs, own])
    assert store.view([cid for cid, _ in refs]) is None
    assert store.view([refs[0][0]]) is None
    assert store.view([own[0], refs[0][0]]) is None
    assert store.extent(refs[0][0]) is None
    assert store.extent(own[0]) is not None


@pytest.mark.parametrize("by", ["flip", "cut", "empty"])
def test_a_changed_file_is_an_error_that_names_it(store, file, by):
    refs = pieces(file)
    store.put_many(refs)
    if by == "flip":
        with file.open("r+b") as changing:
            changing.seek(5500)
            changing.write(b"\xff")
    else:
        os.truncate(file, 5500 if by == "cut" else 0)
    with pytest.raises(Corrupt, match=f"{file}.*") as caught:
        store.get(refs[5][0])
    assert str(refs[5][0]) in str(caught.value)
    if by != "empty":
        assert store.get(refs[4][0]) == CONTENT[4000:5000]  # the others are still what they were


def test_a_missing_file_is_an_error_that_names_it_and_the_block(store, file, tmp_path):
    refs = pieces(file)
    store.put_many(refs)
    file.rename(tmp_path / "away")
    with pytest.raises(NotFound, match=str(file)) as caught:
        store.get(refs[0][0])
    assert str(refs[0][0]) in str(caught.value)
    (tmp_path / "away").rename(file)
    assert store.get(refs[0][0]) == CONTENT[:1000]


def test_the_stores_own_copy_wins(store, file):
    refs = pieces(file)
    store.put_many(refs)
    data = CONTENT[:1000]
    assert store.put_many([(refs[0][0], data)]) == len(data)
    held = store.statistics()
    assert (held["blocks"], held["bytes"]) == (len(refs), 1000)
    assert held["referenced_blocks"] == len(refs) - 1
    assert store.put_many(refs) == 0  # and stays
    file.unlink()
    assert store.get(refs[0][0]) == data


def test_a_file_that_was_added_again_after_a_change_is_read_as_it_is_now(store, file):
    store.put_many(pieces(file))
    old = Cid.of(CONTENT[:1000])
    file.write_bytes(CONTENT[::-1])
    refs = pieces(file)
    store.put_many(refs)
    assert b"".join(store.get(cid) for cid, _ in refs) == CONTENT[::-1]
    with pytest.raises(Corrupt, match="the user's file"):
        store.get(old)


def test_a_file_that_moved_is_found_again_when_it_is_added_from_there(store, file, tmp_path):
    store.put_many(pieces(file))
    file.rename(tmp_path / "moved")
    refs = pieces(tmp_path / "moved")
    assert store.put_many(refs) == len(CONTENT)
    assert b"".join(store.get(cid) for cid, _ in refs) == CONTENT
    assert store.statistics()["referenced_blocks"] == len(refs)


def test_adding_the_same_references_again_changes_nothing(store, file):
    refs = pieces(file)
    store.put_many(refs)
    before = list(store.entries())
    assert store.put_many(refs) == 0
    assert list(store.entries()) == before


def test_references_and_nodes_of_the_store_mix(store, file):
    refs = pieces(file)
    node = block(b"the node above", DAG_PB)
    store.put_many([*refs, node])
    store.close()
    with closing(LocalStore(store.folder)) as again:
        assert b"".join(again.get(cid) for cid, _ in refs) == CONTENT
        assert bytes(again.get(node[0])) == node[1]


def test_collecting_takes_references_and_forgets_their_files(store, file, tmp_path):
    other = tmp_path / "other"
    other.write_bytes(CONTENT[::-1])
    refs, others = pieces(file), pieces(other)
    store.put_many([*refs, *others])
    gone = {cid.multihash for cid, _ in refs[1:]}
    removed = collect(store, gone)
    assert (removed.blocks, removed.bytes) == (len(refs) - 1, len(CONTENT) - 1000)
    assert removed.freed_bytes == 0
    assert store.get(refs[0][0]) == CONTENT[:1000]
    collect(store, {refs[0][0].multihash})
    with store._index.reading() as txn:
        rows = [bytes(row) for _, row in txn.cursor(db=store._index.tables["files"])]
    assert not any(str(file).encode() in row for row in rows)
    assert sum(str(other).encode() in row for row in rows) == 1
    assert b"".join(store.get(cid) for cid, _ in others) == CONTENT[::-1]
    collect(store)
    with store._index.reading() as txn:
        assert txn.stat(db=store._index.tables["files"])["entries"] == 0
    assert file.read_bytes() == CONTENT  # nobody touches the files themselves


def test_an_add_that_fails_leaves_no_reference_behind(store, file):
    def blocks():
        yield from pieces(file)
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        store.put_many(blocks())
    assert store.statistics()["blocks"] == 0
    with store._index.reading() as txn:
        assert txn.stat(db=store._index.tables["files"])["entries"] == 0


def test_a_range_that_is_not_in_the_file_is_refused(store, file, tmp_path):
    cid = Cid.of(b"x")
    with pytest.raises(InvalidInput, match=f"{cid}.*{file}"):
        store.put_many([(cid, FileRange(file, len(CONTENT) - 5, 10))])
    with pytest.raises(NotFound, match="nowhere"):
        store.put_many([(cid, FileRange(tmp_path / "nowhere", 0, 1))])
    with pytest.raises(InvalidInput, match="absolute"):
        store.put_many([(cid, FileRange(file.relative_to(tmp_path), 0, 1))])
    assert not store.has(cid)


def test_replacing_a_bad_reference_makes_it_an_own_copy(store, file):
    refs = pieces(file)
    store.put_many(refs)
    file.write_bytes(bytes(len(CONTENT)))
    store.replace_many([(refs[0][0], CONTENT[:1000])])
    assert store.get(refs[0][0]) == CONTENT[:1000]
    assert store.statistics()["referenced_blocks"] == len(refs) - 1


def test_an_empty_file_can_be_referred_to(store, tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    cid = Cid.of(b"")
    store.put_many([(cid, FileRange(tmp_path / "empty", 0, 0))])
    assert bytes(store.get(cid)) == b""
