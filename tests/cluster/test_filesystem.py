"""``holdfast://``: names as folders, of a home and of a master, read by those who know nothing of either."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from pyarrow.fs import FSSpecHandler, PyFileSystem

import holdfast
from holdfast.cluster.filesystem import HoldfastFileSystem
from holdfast.errors import Denied, InvalidInput, NotFound, Unavailable, Unsupported
from holdfast.registry.records import ConversionRecord, IndexRecord, ModelRecord
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.formats import dag_json

from .conftest import listening_master

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def nothing_cached() -> Iterator[None]:
    """fsspec keeps file systems for ever; a test's home goes."""
    yield
    for fs in list(HoldfastFileSystem._cache.values()):
        fs.close()
    HoldfastFileSystem.clear_instance_cache()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def client(home: Path) -> Iterator[holdfast.Client]:
    with holdfast.connect(home=home) as client:
        yield client


@pytest.fixture
def fs(home: Path) -> HoldfastFileSystem:
    return HoldfastFileSystem(home=home)


ROWS = 1000
"""In row groups of 64 bytes they make several shards."""


def table(first: int, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.arange(first, first + rows, dtype=np.float32), "y": np.arange(first, first + rows)}


def splits(first: int = 0) -> dict[str, dict[str, np.ndarray[Any, Any]]]:
    return {"train": table(first, ROWS), "test": table(first + ROWS, 10)}


def test_a_dataset_is_read_by_name_as_the_rows_that_it_holds(home, client):
    data = client.datasets.store_dataset(splits(), name="digits", chunk_size=64)
    options = {"home": str(home)}
    for ref in (
        "digits",
        "digits@latest",
        "digits:1.0.0",
        "dataset/digits:1.0.0",
        str(data.cid),
        f"dataset/{data.cid}",
    ):
        read = pd.read_parquet(f"holdfast://{ref}/train", storage_options=options)
        pd.testing.assert_frame_equal(read.reset_index(drop=True), data.to_pandas("train"))
    shard = pd.read_parquet("holdfast://digits/train/00001.parquet", storage_options=options)
    first, second = (each.rows for each in data.shards("train")[:2])
    assert list(shard["y"]) == list(range(first, first + second))
    everything = pd.read_parquet("holdfast://digits", storage_options=options)
    assert sorted(everything["y"]) == list(range(ROWS + 10))


def test_shards_are_called_what_they_are(client, fs):
    data = client.datasets.store_dataset(splits(), name="digits", convert_to="arrow")
    assert fs.find("digits/test") == ["digits/test/00000.arrow"]
    with pa.ipc.open_file(io.BytesIO(fs.cat_file("digits/test/00000.arrow"))) as file:
        assert file.read_all().equals(data.to_arrow("test"))


def test_pyarrow_reads_one_column_of_a_split(client, fs):
    client.datasets.store_dataset(splits(), name="digits", chunk_size=64)
    data = ds.dataset("digits/train", filesystem=PyFileSystem(FSSpecHandler(fs)), format="parquet")
    found = data.to_table(columns=["y"], filter=ds.field("x") >= ROWS - 5)
    assert found.to_pydict() == {"y": list(range(ROWS - 5, ROWS))}


def test_a_name_is_looked_up_at_each_call_and_a_version_stays(client, fs):
    client.datasets.store_dataset(splits(0), name="d", version="1.0.0")
    client.names.set_alias("dataset", "d", "chosen", "1.0.0")

    def first(ref: str) -> int:
        with fs.open(f"{ref}/test/00000.parquet") as file:
            return int(pd.read_parquet(file)["y"][0])

    refs = ("d", "d@latest", "d@chosen", "d:1.0.0")
    assert [first(ref) for ref in refs] == [ROWS] * 4
    client.datasets.store_dataset(splits(1), name="d", version="2.0.0")
    assert [first(ref) for ref in refs] == [ROWS + 1, ROWS + 1, ROWS, ROWS]
    client.names.set_alias("dataset", "d", "chosen", "2.0.0")
    assert [first(ref) for ref in refs] == [ROWS + 1, ROWS + 1, ROWS + 1, ROWS]
    client.names.set_alias("dataset", "d", "latest", "1.0.0")  # whoever sets it, means it
    assert first("d@latest") == ROWS
    assert fs.info("d/test/00000.parquet")["ETag"] != fs.info("d:1.0.0/test/00000.parquet")["ETag"]


def test_a_model_is_a_folder_also_where_a_dataset_has_its_name(client, fs, user_code):
    client.datasets.store_dataset(splits(), name="scale")
    entry = client.models.register("scale", user_code.Scale(), "1.0.0", aliases=["champion"])
    record = client.models.record("scale")
    assert fs.ls("model/scale:1.0.0", detail=False) == [
        f"model/scale:1.0.0/{name}" for name in ("_manifest.json", "model.safetensors", "code")
    ]
    weights = bytes(client.store.open(client.store.resolve(f"{record.files}/model.safetensors")))
    for path in ("model/scale", "scale@champion", "model/scale@champion", str(entry.cid)):
        assert fs.cat_file(f"{path}/model.safetensors") == weights
        assert fs.isdir(path)
    assert fs.isdir("scale:1.0.0/train")  # a dataset, for those come first
    assert fs.find("model/scale/code") == ["model/scale/code/user_training.py"]
    assert b"class Scale" in fs.cat_file("model/scale/code/user_training.py")
    manifest = fs.cat_file("model/scale/_manifest.json")
    assert dag_json.decode(manifest) == client.store.get_record(entry.cid)
    with fs.open("model/scale/_manifest.json") as file:
        assert pickle.loads(pickle.dumps(file)).read() == manifest
        assert file.size == len(manifest) == fs.size("model/scale/_manifest.json")
    assert fs.cat_file("model/scale/_manifest.json", -5, None) == manifest[-5:]


def test_indexes_and_onnx_forms_have_their_file(client, fs):
    store = client.store
    data = store_dataset(store, splits())
    model = ModelRecord(
        framework="onnx", format="onnx", files=store.add_files({"model.onnx": b"graph"})
    ).store(store)
    conversion = ConversionRecord(
        model=model, onnx=store.add_bytes(b"onnx"), opset=20, data=data.cid, split="test", comparison={}
    ).store(store)
    index = IndexRecord(
        corpus=data.cid,
        splits=("train",),
        model=model,
        conversion=conversion,
        output="v",
        metric="l2",
        factory="Flat",
        dim=1,
        rows=1,
        index=store.add_bytes(b"faiss"),
    ).store(store)
    client.names.register("index", "near", "1.0.0", index)
    assert fs.cat_file("near/index.faiss") == b"faiss"
    assert fs.cat_file(f"{conversion}/model.onnx") == b"onnx"
    assert fs.ls("index", detail=False) == ["index/near:1.0.0"]


def test_everything_that_has_a_name_is_found_from_the_root(client, fs):
    client.datasets.store_dataset(splits(0), name="a", version="1.0.0")
    client.datasets.store_dataset(splits(1), name="a", version="1.1.0")
    assert fs.ls("holdfast://", detail=False) == ["dataset", "model", "index"]
    assert fs.ls("dataset", detail=False) == ["dataset/a:1.0.0", "dataset/a:1.1.0"]
    assert fs.glob("dataset/*/test/*.parquet") == [f"dataset/a:1.{n}.0/test/00000.parquet" for n in (0, 1)]
    assert fs.ls("model") == []
    infos = {info["name"]: info for info in fs.ls("a:1.0.0/train")}
    for name, info in infos.items():
        assert fs.info(name) == info
        assert info["size"] == len(fs.cat_file(name))


def test_by_cid_files_are_what_they_are_and_other_records_are_refused(client, fs):
    folder = client.store.add_files({"a/b.txt": b"b"})
    assert fs.cat_file(f"holdfast://{folder}/a/b.txt") == b"b"
    record = client.store.put_record({"kind": "commit", "x": 1})
    other = client.store.put_record([1, 2])
    for cid, what in ((record, "a commit"), (other, "no known kind")):
        with pytest.raises(Unsupported, match=what):
            fs.ls(str(cid))


def test_names_that_are_not_there_are_missing_files(client, fs):
    client.datasets.store_dataset(splits(), name="digits")
    for path in (
        "nope/train",
        "digits@champion/train",
        "digits:9.9.9",
        "digits/valid",
        "model/digits",
        "digits/train/9",
    ):
        for call in (fs.info, fs.ls, fs.open, fs.cat_file):
            with pytest.raises(FileNotFoundError) as caught:
                call(path)
            assert isinstance(caught.value, NotFound)
        assert not fs.exists(path)
    with pytest.raises(FileNotFoundError, match=r"no dataset named 'nope'.*no model.*no index"):
        fs.info("nope")
    with pytest.raises(IsADirectoryError):
        fs.open("digits/train")
    with pytest.raises(InvalidInput):
        fs.info("no  name/x")
    with pytest.raises(Unsupported, match="read-only"):
        fs.open("digits/train/new.parquet", "wb")


def test_splits_with_odd_names_stay_inside_their_dataset(client, fs):
    odd = ["a/b", "a%2Fb", "..", ".", "%2F", "ü x"]
    client.datasets.store_dataset({split: table(i, 1) for i, split in enumerate(odd)}, name="odd")
    folders = [info["name"] for info in fs.ls("odd") if info["type"] == "directory"]
    assert len(set(folders)) == len(odd)
    for folder in folders:
        assert folder.count("/") == 1
        assert folder.rpartition("/")[2] not in ("", ".", "..")
    rows = sorted(int(pd.read_parquet(fs.open(f"{folder}/00000.parquet"))["y"][0]) for folder in folders)
    assert rows == list(range(len(odd)))


def test_shards_keep_their_order_when_there_are_very_many():
    from holdfast.cluster.filesystem import _split
    from holdfast.storage.datasets.shards.shard import Shard

    children = _split([Shard(Cid.of(b"x"), 1, 1, ())] * 100_001, "parquet").children
    assert children is not None
    names = list(children())
    assert names == sorted(names)
    assert len(set(names)) == 100_001


SCRIPT = """
import pickle, sys
import pandas as pd
fs, path = pickle.loads(sys.stdin.buffer.read())
with fs.open(path) as file:
    print(int(pd.read_parquet(file)["y"].sum()))
"""


def test_a_cluster_s_names_are_read_by_workers_and_only_what_is_read_is_fetched(tmp_path):
    with listening_master(tmp_path / "master") as (master, _):
        token = (tmp_path / "master" / "token").read_text().strip()
        with holdfast.connect(master.url, home=tmp_path / "writer", token=token) as writer:
            data = writer.datasets.store_dataset(splits(), name="digits", chunk_size=64)
            shards = data.shards("train")
        options = {"address": master.url, "home": str(tmp_path / "reader"), "token": token}
        fs = fsspec.filesystem("holdfast", **options)
        assert len(shards) > 3
        assert len(fs.find("digits")) == len(shards) + 2
        assert not any(fs.reading(lambda store, s=shard: store.blocks.has(s.cid)) for shard in shards)
        read = pd.read_parquet("holdfast://digits/train/00002.parquet", storage_options=options)
        before = shards[0].rows + shards[1].rows
        assert list(read["y"]) == list(range(before, before + shards[2].rows))
        here = [fs.reading(lambda store, s=shard: store.blocks.has(s.cid)) for shard in shards]
        assert here == [number == 2 for number in range(len(shards))]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            input=pickle.dumps((fs, "digits/test/00000.parquet")),
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.stdout.decode().strip() == str(sum(range(ROWS, ROWS + 10))), done.stderr.decode()
        with pytest.raises(Denied):
            HoldfastFileSystem(home=tmp_path / "stranger", address=master.url, token="x" * 32).ls("dataset")
        assert fs.fsid != HoldfastFileSystem(home=tmp_path / "reader").fsid
        fs.close()
    for call in (fs.exists, fs.isdir, fs.find, fs.info):
        with pytest.raises(Unavailable):
            call("digits/train")


@pytest.mark.filterwarnings("ignore")
def test_hugging_face_datasets_reads_versions_and_streams_what_a_name_means_now(tmp_path, home, client):
    datasets = pytest.importorskip("datasets", reason="the extra hf is not installed")

    def first(ref: str, *, streaming: bool) -> int:
        loaded = datasets.load_dataset(
            "parquet",
            data_files=f"holdfast://{ref}/test/*.parquet",
            split="train",
            streaming=streaming,
            storage_options={"home": str(home)},
            cache_dir=str(tmp_path / "hf"),
        )
        return int(next(iter(loaded))["y"])

    client.datasets.store_dataset(splits(0), name="d", version="1.0.0")
    assert first("d", streaming=True) == first("d:1.0.0", streaming=False) == ROWS
    client.datasets.store_dataset(splits(1), name="d", version="2.0.0")
    assert first("d", streaming=True) == first("d:2.0.0", streaming=False) == ROWS + 1
    assert first("d:1.0.0", streaming=False) == ROWS


def test_two_homes_do_not_share_names(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        with holdfast.connect(home=tmp_path / name) as client:
            client.datasets.store_dataset(pa.table({"v": [value]}), name="same")
    read = [
        pd.read_parquet("holdfast://same/train", storage_options={"home": str(tmp_path / name)})["v"][0]
        for name in ("one", "two")
    ]
    assert read == [1, 2]
