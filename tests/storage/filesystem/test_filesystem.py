"""``ipfs://`` as pandas, pyarrow, Ray and Hugging Face read it, from a real home with a real peer."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

from holdfast.errors import (
    Conflict,
    Corrupt,
    InvalidInput,
    NotFound,
    Unavailable,
    Unsupported,
)
from holdfast.storage.cid import DAG_PB, RAW, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.filesystem.content_tree import ContentMissing, FileMissing
from holdfast.storage.filesystem.filesystem import IpfsFileSystem
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, encode_node
from holdfast.storage.formats.unixfs import PROFILES
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.opening import open_store, write_peers
from tests.storage.filesystem.parquet_files import leaves_of, numbers, parquet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    """fsspec keeps file systems for ever; a test's home goes."""
    yield
    for fs in list(IpfsFileSystem._cache.values()):
        fs.close()
    IpfsFileSystem.clear_instance_cache()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def added(home: Path) -> Iterator[ContentStore]:
    """The home's store, to add to."""
    with open_store(home) as store:
        yield store


@pytest.fixture
def fs(home: Path) -> IpfsFileSystem:
    return IpfsFileSystem(home=home)


@pytest.fixture
def far(tmp_path: Path) -> Iterator[ContentStore]:
    """The content of another node."""
    with closing(LocalStore(tmp_path / "far" / "blocks")) as blocks:
        yield ContentStore(blocks)


@pytest.fixture
def peer(home: Path, far: ContentStore, start_node: Callable[..., Any]) -> Any:
    """That node, which the home fetches from; it notes what it is asked for."""
    node = start_node(far.blocks)
    write_peers(home, [node.url])
    return node


# ------------------------------------------------------------------------------------------------ who reads


def test_pandas_reads_parquet_files_and_folders_and_text(home, added):
    frame = pd.DataFrame({"a": range(500), "b": [f"row {i}" for i in range(500)]})
    half = [parquet(pa.Table.from_pandas(part)) for part in (frame[:200], frame[200:])]
    cid = added.add_files(
        {"t/0.parquet": half[0], "t/1.parquet": half[1], "t.csv": frame.to_csv(index=False).encode()}
    )
    options = {"home": str(home)}
    pd.testing.assert_frame_equal(
        pd.read_parquet(f"ipfs://{cid}/t/0.parquet", storage_options=options), frame[:200]
    )
    read = pd.read_parquet(f"ipfs://{cid}/t", storage_options=options)
    pd.testing.assert_frame_equal(read.reset_index(drop=True), frame)
    pd.testing.assert_frame_equal(pd.read_csv(f"ipfs://{cid}/t.csv", storage_options=options), frame)


def test_the_home_of_the_environment_is_read_where_none_is_named(tmp_path, monkeypatch):
    cids = []
    for name in ("one", "two"):
        monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / name))
        with open_store() as store:
            cids.append(store.add_bytes(name.encode()))
        with fsspec.open(f"ipfs://{cids[-1]}") as file:
            assert file.read() == name.encode()
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"ipfs://{cids[0]}").open()


def test_pyarrow_reads_a_folder_with_a_projection_and_a_filter(added, fs):
    table = numbers(2000, 4)
    cid = added.add_files({"d/a.parquet": parquet(table[:900]), "d/b.parquet": parquet(table[900:])})
    data = ds.dataset(f"{cid}/d", filesystem=PyFileSystem(FSSpecHandler(fs)), format="parquet")
    limit = int(np.median(table["c1"].to_numpy()))
    found = data.to_table(columns=["c3"], filter=ds.field("c1") > limit)
    expected = table.filter(pa.compute.greater(table["c1"], limit)).select(["c3"])
    assert found.equals(expected.combine_chunks()) or found.combine_chunks().equals(expected.combine_chunks())
    assert pq.read_table(f"{cid}/d/a.parquet", filesystem=fs, columns=["c2"]).equals(
        table[:900].select(["c2"])
    )


_READ_AND_END = """
import sys
import fsspec
import pyarrow.dataset as ds

_, folder, home, how = sys.argv
found = ds.dataset(folder, filesystem=fsspec.filesystem("ipfs", home=home))
if how == "whole":
    assert found.to_table().num_rows == 160_000
else:
    batches = found.to_batches()
    assert next(batches).num_rows
"""


def test_a_program_may_end_while_pyarrow_s_threads_hold_its_files(home, added):
    """One in three or so would be aborted, or hang, if nobody waited for them."""
    file = parquet(numbers(20_000, 8), row_group_size=2_000)
    folder = added.add_files({f"{i}.parquet": file for i in range(8)})
    ended = [
        subprocess.Popen(
            [sys.executable, "-c", _READ_AND_END, str(folder), str(home), how],
            stderr=subprocess.PIPE,
            text=True,
        )
        for how in ("whole", "left", "whole", "left")
    ]
    try:
        assert [(each.communicate(timeout=60)[1], each.returncode) for each in ended] == [("", 0)] * 4
    finally:
        for each in ended:
            each.kill()


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_reads_parquet_and_streams_it(tmp_path, home, added):
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")
    cid = added.add_files({"t/0.parquet": parquet(numbers(100, 2)), "t/1.parquet": parquet(numbers(50, 2))})
    options = {
        "data_files": f"ipfs://{cid}/t/*.parquet",
        "storage_options": {"home": str(home)},
        "split": "train",
    }
    loaded = datasets.load_dataset("parquet", cache_dir=str(tmp_path / "hf"), **options)
    assert loaded.num_rows == 150
    assert loaded["c1"][:100] == numbers(100, 2)["c1"].to_pylist()
    streamed = datasets.load_dataset("parquet", cache_dir=str(tmp_path / "hf"), streaming=True, **options)
    assert sum(1 for _ in streamed) == 150


RAY_SCRIPT = """
import json, sys
import fsspec, ray
home, path, temporary = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=temporary)
try:
    data = ray.data.read_parquet(path, filesystem=fsspec.filesystem("ipfs", home=home), columns=["c1"])
    found = {"rows": data.count(), "sum": data.sum("c1"), "columns": data.schema().names}
finally:
    ray.shutdown()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_ray_data_reads_on_its_workers_what_only_a_peer_has(home, far, peer):
    table = pa.table({"c0": np.arange(4000), "c1": np.arange(4000)})
    cid = far.add_files({f"t/{i}.parquet": parquet(table[i * 1000 : (i + 1) * 1000]) for i in range(4)})
    with tempfile.TemporaryDirectory(prefix="ray") as temporary:  # its sockets need a short path
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RAY_SCRIPT, str(home), f"ipfs://{cid}/t", temporary],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "rows": 4000,
        "sum": 4000 * 3999 // 2,
        "columns": ["c1"],
    }
    assert peer.asked


# --------------------------------------------------------------------------------------- what is fetched


def test_listing_a_folder_does_not_fetch_its_files(far, peer, fs):
    cid = far.add_files({"a/one": b"1" * 100_000, "a/two": os.urandom(3 * MIB), "a/b/three": b"3"})
    sizes = {name.partition("/")[2]: fs.info(name)["size"] for name in fs.find(str(cid))}
    assert sizes == {"a/b/three": 1, "a/one": 100_000, "a/two": 3 * MIB}
    raw = {str(each) for each in leaves_of(cid, far)}
    assert not raw & set(peer.asked)


def test_a_listing_is_asked_for_once(far, peer, fs):
    cid = far.add_files({f"d/{i}": b"%d" % i for i in range(50)})
    names = fs.find(str(cid))
    asked = len(peer.asked)
    assert len(names) == 50
    assert fs.find(str(cid)) == names
    assert all(fs.isfile(name) for name in names)
    assert len(peer.asked) == asked
    fs.invalidate_cache()
    assert fs.find(str(cid)) == names


# ------------------------------------------------------------------------------------- files as Python's


def test_text_and_compressed_files_are_read_as_such(added, fs):
    import gzip

    text = "".join(f"line {i} Grüße\n" for i in range(20_000))
    cid = added.add_files({"t.txt": text.encode(), "t.txt.gz": gzip.compress(text.encode())})
    with fs.open(f"{cid}/t.txt", "r", encoding="utf-8") as file:
        assert file.read() == text
    with fs.open(f"{cid}/t.txt", "rt", encoding="utf-8") as file:
        assert sum(1 for _ in file) == 20_000
    with fsspec.open(
        f"ipfs://{cid}/t.txt.gz", "rt", encoding="utf-8", compression="infer", store=added
    ) as file:
        assert file.read() == text
    assert fs.head(f"{cid}/t.txt", 6) == b"line 0"
    assert fs.tail(f"{cid}/t.txt", 4) == text.encode()[-4:]
    assert fs.read_text(f"{cid}/t.txt", encoding="utf-8") == text


def test_a_closed_file_says_so(added, fs):
    cid = added.add_bytes(b"1234")
    file = fs.open(str(cid))
    assert (file.size, file.mode, file.readable(), file.seekable(), file.writable()) == (
        4,
        "rb",
        True,
        True,
        False,
    )
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_an_open_file_goes_to_another_process_as_it_is(added, fs):
    data = os.urandom(3 * MIB)
    cid = added.add_bytes(data)
    with fs.open(str(cid)) as file:
        file.seek(2 * MIB - 3)
        copy = pickle.loads(pickle.dumps(file))
        assert copy.read(6) == file.read(6) == data[2 * MIB - 3 : 2 * MIB + 3]
        copy.close()


# ----------------------------------------------------------------------------------------------- the tree


def test_the_case_of_a_cid_is_kept(home, fs):
    with open_store(home) as store:
        cid = store.add_stream(io.BytesIO(b"an old CID"), profile=PROFILES["unixfs-v0-2015"])
    assert str(cid).startswith("Qm")
    assert fs._strip_protocol(f"ipfs://{cid}/A/b/") == f"{cid}/A/b"
    assert fs._strip_protocol([f"/ipfs/{cid}", f"{cid}//x"]) == [str(cid), f"{cid}/x"]
    assert fs.unstrip_protocol(str(cid)) == f"ipfs://{cid}"
    found, path = fsspec.core.url_to_fs(f"ipfs://{cid}", home=str(home))
    assert found.cat_file(path) == b"an old CID"
    assert fsspec.core.get_fs_token_paths(f"ipfs://{cid}", storage_options={"home": str(home)})[2] == [
        str(cid)
    ]


def test_a_tree_is_walked_and_searched_as_on_a_disk(tmp_path, added, fs):
    files = {"a/1.txt": b"one", "a/2.csv": b"two", "a/b/3.txt": b"three", "c/4.txt": b"four", "5.txt": b""}
    for name, data in files.items():
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    root = str(added.add(tmp_path / "tree"))
    local = fsspec.filesystem("file")
    there = str(tmp_path / "tree")

    def relative(paths: Any, base: str) -> list[str]:
        return sorted(path.removeprefix(base).strip("/") for path in paths)

    assert relative(fs.find(root), root) == sorted(files)
    for pattern in ("**", "*", "*.txt", "**/*.txt", "a/*", "a/**", "*/b", "?/[0-9].txt", "none*", "a/1.txt"):
        assert relative(fs.glob(f"{root}/{pattern}"), root) == relative(
            local.glob(f"{there}/{pattern}"), there
        ), pattern
    walked = [(base.removeprefix(root), sorted(dirs), sorted(names)) for base, dirs, names in fs.walk(root)]
    expected = [
        (base.removeprefix(there), sorted(dirs), sorted(names)) for base, dirs, names in os.walk(there)
    ]
    assert sorted(walked) == sorted(expected)
    assert relative(fs.find(root, maxdepth=1, withdirs=True), root) == ["", "5.txt", "a", "c"]
    assert fs.du(root) == sum(map(len, files.values()))
    assert fs.ls(f"{root}/a/1.txt", detail=False) == [f"{root}/a/1.txt"]
    assert fs.find(f"{root}/a/1.txt") == [f"{root}/a/1.txt"]
    assert fs.cat(f"{root}/a/*.txt") == {f"{root}/a/1.txt": b"one"}
    assert fs.cat(root, recursive=True, on_error="omit").keys() == {f"{root}/{name}" for name in files}
    mapped = fs.get_mapper(f"{root}/a")
    assert mapped["b/3.txt"] == b"three"
    assert sorted(mapped) == ["1.txt", "2.csv", "b/3.txt"]


def test_what_a_path_is_is_told_completely(added, fs):
    cid = added.add_files({"d/x": b"12345"})
    inside = Cid.of(b"12345")
    assert fs.info(f"ipfs://{cid}/d/x") == {
        "name": f"{cid}/d/x",
        "size": 5,
        "type": "file",
        "cid": str(inside),
        "ETag": str(inside),
    }
    assert fs.info(str(cid))["type"] == "directory"
    assert fs.ls(str(cid)) == [fs.info(f"{cid}/d")]
    assert (fs.isdir(f"{cid}/d"), fs.isfile(f"{cid}/d"), fs.isfile(f"{cid}/d/x")) == (True, False, True)
    assert fs.ukey(f"{cid}/d/x") == str(inside)
    assert fs.checksum(f"{cid}/d/x") == fs.checksum(str(inside)) != fs.checksum(str(cid))
    assert fs.size(f"{cid}/d/x") == 5
    assert fs.fsid == "ipfs"


def test_a_folder_of_thousands_is_found_through_its_shards(added, fs):
    cid = added.add_files({f"f{i:05d}": b"%d" % i for i in range(6000)})
    assert added.blocks.has(cid)
    assert len(fs.ls(str(cid), detail=False)) == 6000
    assert fs.cat_file(f"{cid}/f04711") == b"4711"
    assert not fs.exists(f"{cid}/f99999")


def test_links_and_records_are_neither_files_nor_folders(tmp_path, added, fs):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "real").write_bytes(b"x")
    (tmp_path / "tree" / "link").symlink_to("real")
    cid = added.add(tmp_path / "tree")
    record = added.put_record({"a": 1})
    assert [(each["name"].rpartition("/")[2], each["type"]) for each in fs.ls(str(cid))] == [
        ("link", "link"),
        ("real", "file"),
    ]
    assert fs.info(str(record))["type"] == "other"
    for path, what in ((f"{cid}/link", "symlink"), (str(record), "record")):
        assert not fs.isfile(path)
        assert not fs.isdir(path)
        with pytest.raises(Unsupported, match=what):
            fs.open(path)
        with pytest.raises(Unsupported, match=what):
            fs.cat_file(path)


def test_missing_paths_are_what_python_calls_missing(added, fs):
    cid = added.add_files({"d/x": b"1"})
    nobody = Cid.of(b"nobody has it")
    for path in (f"{cid}/y", f"{cid}/d/x/y", f"{cid}/d/X", str(nobody), f"{nobody}/x"):
        for call in (fs.info, fs.ls, fs.open, fs.cat_file, fs.size, lambda p: fs.get_file(p, "never")):
            with pytest.raises(FileNotFoundError) as caught:
                call(path)
            assert isinstance(caught.value, NotFound)
            assert caught.value.errno == 2
            assert path.partition("/")[0] in str(caught.value) or str(nobody) in str(caught.value)
            assert isinstance(pickle.loads(pickle.dumps(caught.value)), FileMissing)
        assert not fs.exists(path)
        assert not fs.isfile(path)
    assert not Path("never").exists()
    assert fs.glob(f"{cid}/no/*") == fs.find(f"{cid}/no") == []
    assert not fs.exists("no CID at all")
    with pytest.raises(InvalidInput):
        fs.info("no CID at all")
    with pytest.raises(IsADirectoryError):
        fs.open(f"{cid}/d")
    with pytest.raises(Unsupported, match="begins with a CID"):
        fs.ls("ipfs://")


def test_a_folder_that_can_not_be_read_never_looks_empty(tmp_path, home, far, peer, fs):
    cid = far.add_files({"a/b/c.txt": b"c", "a/d.txt": b"d"})
    gone = far.resolve(f"{cid}/a/b")
    with closing(LocalStore(tmp_path / "partial")) as partial:
        blocks = [(each, data) for each, data in far.walk(cid) if each != gone]
        partial.put_many(blocks)
        holes = IpfsFileSystem(store=ContentStore(partial))
        for search in (holes.find, lambda p: list(holes.walk(p)), lambda p: holes.glob(f"{p}/**/*.txt")):
            with pytest.raises(ContentMissing):
                search(str(cid))
        with pytest.raises(ContentMissing):
            holes.get(str(cid), str(tmp_path / "out"), recursive=True)
        assert list(holes.walk(str(Cid.of(b"x")), on_error=lambda _: None)) == []
    write_peers(home, [peer.url.rpartition(":")[0] + ":9"])  # nobody listens on the port of discard
    for call in (fs.exists, fs.isdir, fs.isfile, fs.find, fs.info, fs.ls):
        with pytest.raises(Unavailable):
            call(str(cid))


def test_a_folder_whose_shards_are_missing_is_not_an_empty_one(tmp_path, far):
    cid = far.add_files({f"f{i:05d}": b"%d" % i for i in range(6000)})
    with closing(LocalStore(tmp_path / "partial")) as partial:
        partial.put_many([(cid, far.blocks.get(cid))])
        holes = IpfsFileSystem(store=ContentStore(partial))
        assert holes.isdir(str(cid))
        with pytest.raises(ContentMissing):
            holes.find(str(cid))
        with pytest.raises(ContentMissing):
            holes.glob(f"{cid}/*")


def test_a_size_that_a_folder_made_up_is_noticed(blocks):
    data = b"ten bytes."
    leaf = Cid.of(data, RAW)
    folder = encode_node(PbNode((PbLink(leaf, "x", 7),), UnixFs(type=UnixFsType.DIRECTORY).encode()))
    cid = Cid.of(folder, DAG_PB)
    blocks.put_many([(leaf, data), (cid, folder)])
    fs = IpfsFileSystem(store=ContentStore(blocks))
    for call in (fs.open, fs.cat_file):
        with pytest.raises(Corrupt, match="10 bytes"):
            call(f"{cid}/x")


def test_wrong_bytes_on_the_disk_are_never_read(home, added, fs):
    cid = added.add_bytes(os.urandom(3 * MIB))
    fs.close()
    (segment,) = (home / "blocks" / "segments").glob("*.seg")
    with segment.open("r+b") as file:
        file.seek(MIB + 77)
        byte = file.read(1)
        file.seek(MIB + 77)
        file.write(bytes([byte[0] ^ 1]))
    with fs.open(str(cid)) as file:
        assert len(file.read(MIB)) == MIB
        with pytest.raises(Corrupt):
            file.read(MIB)


# ------------------------------------------------------------------------------------------- to the disk


def test_a_copy_on_the_disk_is_whole_or_not_there(tmp_path, added, fs):
    data = os.urandom(5 * MIB + 1)
    cid = added.add_files({"d/x": data, "d/e/y": b"y"})
    target = tmp_path / "new" / "x"
    fs.get_file(f"{cid}/d/x", str(target))
    fs.get_file(f"{cid}/d/x", str(target))  # as fsspec has it: over what is there
    assert target.read_bytes() == data
    sink = io.BytesIO()
    fs.get_file(f"{cid}/d/x", sink)
    assert sink.getvalue() == data
    fs.get(f"{cid}/d", str(tmp_path / "all"), recursive=True)
    assert {str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").rglob("*") if p.is_file()} == {
        "x",
        "e/y",
    }

    blocks = [(each, block) for each, block in added.walk(cid) if each != leaves_of(cid, added)[2]]
    with closing(LocalStore(tmp_path / "partial")) as partial:
        partial.put_many(blocks)
        with pytest.raises(ContentMissing):
            IpfsFileSystem(store=ContentStore(partial)).get_file(f"{cid}/d/x", str(tmp_path / "torn" / "x"))
    assert list((tmp_path / "torn").iterdir()) == []


def test_a_copy_tells_how_far_it_is(tmp_path, added, fs):
    data = os.urandom(9 * MIB)
    cid = added.add_bytes(data)
    seen = []

    class Progress(fsspec.Callback):  # type: ignore[misc]  # fsspec has no type information
        def call(self, *_: Any, **__: Any) -> None:
            seen.append((self.value, self.size))

    fs.get_file(str(cid), str(tmp_path / "x"), callback=Progress())
    assert seen[-1] == (len(data), len(data))


def test_nothing_can_be_changed(tmp_path, added, fs):
    cid = added.add_files({"d/x": b"1"})
    path = f"{cid}/d/x"
    (tmp_path / "local").write_bytes(b"2")
    for change in (
        lambda: fs.open(path, "wb"),
        lambda: fs.open(path, "w"),
        lambda: fs.open(path, "ab"),
        lambda: fs.open(path, "r+b"),
        lambda: fs.pipe(path, b"2"),
        lambda: fs.pipe_file(path, b"2"),
        lambda: fs.write_text(path, "2"),
        lambda: fs.put(str(tmp_path / "local"), path),
        lambda: fs.put_file(str(tmp_path / "local"), path),
        lambda: fs.rm(path),
        lambda: fs.rm(str(cid), recursive=True),
        lambda: fs.rm_file(path),
        lambda: fs.delete(path),
        lambda: fs.mv(path, f"{cid}/d/y"),
        lambda: fs.cp(path, f"{cid}/d/y"),
        lambda: fs.touch(path),
        lambda: fs.mkdir(f"{cid}/new"),
        lambda: fs.makedirs(f"{cid}/new/er", exist_ok=True),
        lambda: fs.rmdir(f"{cid}/d"),
    ):
        with pytest.raises(Unsupported, match="read-only"):
            change()
    for asked in (fs.created, fs.modified):
        with pytest.raises(NotImplementedError):
            asked(path)
    with pytest.raises(ValueError, match="storage option 'hom'"):
        IpfsFileSystem(hom="x")


# --------------------------------------------------------------------- instances, processes and threads


def test_two_homes_are_two_file_systems_and_one_home_is_one(tmp_path):
    one, two = (fsspec.filesystem("ipfs", home=str(tmp_path / name)) for name in ("one", "two"))
    assert one is not two
    assert one != two
    assert fsspec.filesystem("ipfs", home=str(tmp_path / "one")) is one
    with open_store(tmp_path / "one") as store:
        cid = store.add_bytes(b"only in one")
    assert one.cat_file(str(cid)) == b"only in one"
    assert not two.exists(str(cid))
    with open_store(tmp_path / "three") as store, pytest.raises(InvalidInput, match="not from both"):
        IpfsFileSystem(home=tmp_path / "one", store=store)


def test_the_store_is_opened_once_and_closed_with_the_last_file_system(home, added):
    cid = added.add_bytes(b"shared")
    first, second = (IpfsFileSystem(home=home, skip_instance_cache=True) for _ in range(2))
    stores = {id(first.reading(lambda store: store)), id(second.reading(lambda store: store))}
    assert len(stores) == 1
    store = first.reading(lambda store: store)
    del first
    assert second.cat_file(str(cid)) == b"shared"
    assert store.blocks.has(cid)
    del second
    with pytest.raises(Conflict, match="closed"):
        store.blocks.has(cid)


def test_a_store_that_was_closed_is_opened_again(home, fs):
    with open_store(home) as store:
        cid = store.add_bytes(os.urandom(3 * MIB))
    with fs.open(str(cid)) as file:
        start = file.read(10)
        fs.close()
        assert fs.cat_file(str(cid), 0, 10) == start
        fs.reading(lambda store: store).close()  # behind its back
        assert len(file.read()) == 3 * MIB - 10
    given = open_store(home)
    over = IpfsFileSystem(store=given)
    assert over.cat_file(str(cid), 0, 10) == start
    given.close()
    with pytest.raises(Conflict, match="closed"):
        over.cat_file(str(cid), 0, 10)


def test_a_file_system_is_sent_to_other_processes_by_its_home(added, fs):
    cid = added.add_bytes(b"over there")
    script = "import pickle, sys; fs, path = pickle.loads(sys.stdin.buffer.read()); print(fs.cat_file(path).decode())"
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps((fs, str(cid))), capture_output=True, check=False
    )
    assert done.stdout.decode().strip() == "over there", done.stderr.decode()
    assert pickle.loads(pickle.dumps(fs)) == fs
    with pytest.raises(Unsupported, match="give home="):
        pickle.dumps(IpfsFileSystem(store=added))


FORK_SCRIPT = """
import multiprocessing, sys
from holdfast.storage.filesystem.filesystem import IpfsFileSystem
home, first, second = sys.argv[1:]
fs = IpfsFileSystem(home=home)
file = fs.open(second)
assert fs.cat_file(first) == b"first" and len(file.read(5)) == 5

own = id(fs.reading(lambda store: store))

def child(results):
    assert id(fs.reading(lambda store: store)) != own, "the parent's threads and locks are not the child's"
    results.put((fs.cat_file(first), file.read(5), IpfsFileSystem(home=home).cat_file(second, 5, 10)))

context = multiprocessing.get_context("fork")
results = context.Queue()
processes = [context.Process(target=child, args=(results,)) for _ in range(3)]
for process in processes: process.start()
answers = [results.get(timeout=30) for _ in processes]
for process in processes: process.join(30)
assert [process.exitcode for process in processes] == [0, 0, 0]
expected = fs.cat_file(second, 5, 10)
assert answers == [(b"first", expected, expected)] * 3, answers
print("ok")
"""


def test_a_forked_child_reads_what_only_a_peer_has(home, far, peer):
    first, second = far.add_bytes(b"first"), far.add_bytes(os.urandom(2 * MIB))
    assert peer.url
    done = subprocess.run(
        [sys.executable, "-c", FORK_SCRIPT, str(home), str(first), str(second)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip() == "ok", done.stderr


def test_many_threads_read_one_file_system_at_once(far, peer, fs):
    contents = {f"d/{i}": os.urandom(300_000) for i in range(12)}
    cid = far.add_files(contents)
    wrong: list[Any] = []

    def read(turn: int) -> None:
        try:
            for name in sorted(contents, key=lambda each: hash((turn, each))):
                with fs.open(f"{cid}/{name}") as file:
                    file.seek(turn * 1000)
                    if file.read() != contents[name][turn * 1000 :]:
                        wrong.append(name)
        except Exception as error:  # noqa: BLE001 -- the test reports it, whatever it is
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(turn,)) for turn in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    assert len(peer.asked) == len(set(peer.asked))
