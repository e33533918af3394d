"""Lineage: one wrong bit anywhere below a model is found, and the tree says where."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from holdfast.registry import (
    CodeRecord,
    ConversionRecord,
    EnvironmentRecord,
    IndexRecord,
    ModelRecord,
    RunRecord,
    load_record,
    verify,
)
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import DAG_PB, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.local.local_store import LocalStore

if TYPE_CHECKING:
    from pathlib import Path


class Made(NamedTuple):
    """A small model with all that it was made from; the CID of each part by the role that the tree gives it."""

    folder: Path
    model: Cid
    parts: dict[str, Cid]


def make_model(store, *, weights=b"weights" * 300_000):
    rows = {"train": {"x": np.arange(40.0)}, "test": {"x": np.arange(10.0)}}
    data = store_dataset(store, rows, chunk_size=64).cid
    code = CodeRecord(
        files=store.add_files({"a/b.py": b"train = 1", "a/c.py": b"x"}), entry="a.b:train"
    ).store(store)
    environment = EnvironmentRecord(
        python="3.11", system="Linux", machine="x", packages={"torch": "2.6"}
    ).store(store)
    stored = store.add_files({"model.safetensors": weights})
    run = RunRecord(
        code=code,
        data=data,
        environment=environment,
        config={"lr": 0.1},
        seed=0,
        workers=1,
        threads_per_worker=1,
        metrics={},
        history=(),
        outputs={"files": stored},
    ).store(store)
    other_code = CodeRecord(files=store.add_files({"net.py": b"class Net: ..."}), entry="net:Net").store(
        store
    )
    model = ModelRecord(
        framework="pytorch", format="safetensors", code=other_code, files=stored, run=run
    ).store(store)
    return model, {
        "model": model,
        "code": other_code,
        "files": load_record(store, other_code, CodeRecord).files,
        "run": run,
        "data": data,
        "environment": environment,
        "weights": stored,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("lineage") / "blocks"
    with closing(LocalStore(folder)) as blocks:
        model, parts = make_model(ContentStore(blocks))
    return Made(folder, model, parts)


def blocks_below(made: Made) -> list[tuple[Cid, bytes]]:
    with closing(LocalStore(made.folder)) as blocks:
        return [(cid, bytes(data)) for cid, data in ContentStore(blocks).walk(made.model)]


def damaged_copy(made: Made, tmp_path: Path, change: dict[Cid, bytes | None]) -> LocalStore:
    """The same store with other bytes on the disk for some blocks, or without them."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    store = LocalStore(folder)
    pairs = [(cid, change.get(cid, data)) for cid, data in blocks_below(made)]
    store.put_many([(cid, data) for cid, data in pairs if data is not None])
    return store


def bad(tree):
    return [node for node in tree.flat() if node.error is not None]


def test_a_whole_lineage_is_ok_and_every_part_of_it_is_in_the_tree(made):
    with closing(LocalStore(made.folder)) as blocks:
        tree = verify(ContentStore(blocks), made.model)
    assert tree.ok
    assert bad(tree) == []
    assert (tree.role, tree.kind) == ("model", "model")
    assert set(made.parts.values()) <= {node.cid for node in tree.flat()}
    every = {cid: len(data) for cid, data in blocks_below(made)}
    assert sum(node.blocks for node in tree.flat()) == len(every), (
        "each block is read once, and none is left out"
    )
    assert sum(node.size_bytes for node in tree.flat()) == sum(every.values())
    details = {node.role: node.detail for node in tree.flat() if node.detail and node.detail != "see above"}
    assert (
        details["data"] == "train 40 rows, test 10 rows" or details["data"] == "test 10 rows, train 40 rows"
    )
    assert details["environment"] == "Python 3.11, torch 2.6"


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "removed"])
@pytest.mark.parametrize("verifying", [True, False], ids=["verified store", "bare store"])
def test_no_block_can_be_damaged_unnoticed(made, tmp_path, damage, verifying):
    below = blocks_below(made)
    assert len(below) > 15
    for number, (cid, data) in enumerate(below):
        new = {
            "flipped": data[: len(data) // 2]
            + bytes([data[len(data) // 2] ^ 1])
            + data[len(data) // 2 + 1 :],
            "cut": data[:-1],
            "empty": b"",
            "removed": None,
        }[damage]
        with closing(damaged_copy(made, tmp_path / str(number), {cid: new})) as blocks:
            store = ContentStore(VerifyingStore(blocks, source="the disk") if verifying else blocks)
            tree = verify(store, made.model)
        shutil.rmtree(tmp_path / str(number))
        assert not tree.ok, cid
        assert json.loads(json.dumps(tree.to_json()))["ok"] is False
        assert "BAD" in tree.render()
        wrong = bad(tree)
        assert wrong, cid
        with closing(LocalStore(made.folder)) as blocks:
            whole = ContentStore(blocks)
            for node in wrong:
                assert cid in {part for part, _ in whole.walk(node.cid)}, f"{node.role} is blamed for {cid}"
        assert any(str(cid) in str(node.error) for node in wrong)


def test_the_part_that_is_wrong_is_the_one_that_says_so(made, tmp_path):
    for role, cid in made.parts.items():
        with closing(damaged_copy(made, tmp_path / role, {cid: None})) as blocks:
            tree = verify(ContentStore(blocks), made.model)
        wrong = {node.cid for node in bad(tree)}
        assert wrong == {cid}, role


def test_weights_that_the_run_did_not_make_are_found(store):
    model, parts = make_model(store, weights=b"made by the run")
    body = load_record(store, model, ModelRecord).to_record()
    cid = store.put_record(body | {"files": store.add_files({"model.safetensors": b"swapped"})})
    tree = verify(store, cid)
    assert not tree.ok
    assert [node.cid for node in bad(tree)] == [cid]
    assert "not those that its run made" in str(tree.error)
    assert parts["weights"] in {node.cid for node in tree.flat()}


def test_a_run_on_what_is_no_dataset_is_found(store):
    model, parts = make_model(store, weights=b"w")
    body = load_record(store, parts["run"], RunRecord).to_record()
    run = store.put_record(body | {"data": parts["environment"]})
    tree = verify(store, store.put_record(load_record(store, model, ModelRecord).to_record() | {"run": run}))
    assert [node.cid for node in bad(tree)] == [run]


def test_an_index_of_another_model_s_vectors_is_found(store):
    first, parts = make_model(store, weights=b"1")
    second, _ = make_model(store, weights=b"2")
    onnx = store.add_bytes(b"onnx")
    conversion = ConversionRecord(
        model=first, onnx=onnx, opset=18, data=parts["data"], split="test", comparison={"max_difference": 0.0}
    ).store(store)
    for model, ok in ((first, True), (second, False)):
        index = IndexRecord(
            corpus=parts["data"],
            splits=("train",),
            model=model,
            conversion=conversion,
            output="embedding",
            metric="cosine",
            factory="Flat",
            dim=3,
            rows=40,
            index=store.add_bytes(b"faiss"),
        ).store(store)
        assert verify(store, index).ok is ok


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "model"},
        {"kind": "model", "schema": 1},
        {"kind": "run", "data": 5},
        {"kind": "dataset"},
        {"kind": "dataset", "splits": {"train": [5]}},
        {"kind": "dataset", "splits": []},
        {"kind": "code"},
        {"kind": "environment", "python": "3", "packages": []},
        {"kind": "conversion", "comparison": 1},
        {"kind": "index"},
        {"kind": ["model"]},
        {"kind": {"a": 1}},
    ],
)
def test_a_record_that_only_says_what_it_is_is_bad_and_no_crash(store, record):
    tree = verify(store, store.put_record(record))
    assert not tree.ok
    assert tree.render().startswith("BAD ")


def test_anything_else_is_simply_hashed(store):
    for cid in (
        store.add_bytes(b"x"),
        store.add_files({"a/b": b"1"}),
        store.put_record({"no": "kind", "link": store.add_bytes(b"y")}),
        store.put_record([1, store.add_bytes(b"z")]),
        store.put_record({"kind": "something of a later version", "link": store.add_bytes(b"y")}),
    ):
        tree = verify(store, cid)
        assert tree.ok, tree.render()


def test_links_inside_lists_are_followed_too(store):
    model, _ = make_model(store, weights=b"w")
    body = load_record(store, model, ModelRecord).to_record()
    missing = Cid.of(b"nobody has this")
    tree = verify(store, store.put_record(body | {"metadata": {"sources": [[{"cid": missing}]]}}))
    assert [(node.role, node.cid) for node in bad(tree)] == [("metadata.sources.0.0.cid", missing)]


def test_a_chain_of_parents_that_never_ends_is_cut_and_said_so(store):
    cid, _ = make_model(store, weights=b"w")
    body = load_record(store, cid, ModelRecord).to_record()
    for _ in range(70):
        cid = store.put_record(body | {"parent": cid})
    tree = verify(store, cid)
    assert not tree.ok
    assert any("deeper than" in str(node.error) for node in bad(tree))


def test_what_is_nowhere_is_bad_and_no_crash(store):
    for codec in (0x55, DAG_PB, 0x71, 0x0129):
        tree = verify(store, Cid.of(b"nowhere", codec))
        assert not tree.ok
        assert len(tree.render().splitlines()) == 1


def test_the_tree_is_one_line_for_each_part(made):
    with closing(LocalStore(made.folder)) as blocks:
        tree = verify(ContentStore(blocks), made.model)
    lines = tree.render().splitlines()
    assert len(lines) == len(list(tree.flat()))
    assert all("ok " in line for line in lines)
    for node in tree.flat():
        assert sum(str(node.cid) in line for line in lines) >= 1
    body = tree.to_json()
    assert json.loads(json.dumps(body)) == body
    assert body["cid"] == str(made.model)


def test_what_a_dataset_was_made_from_is_in_the_tree_and_its_rows_need_not_be_there(store, tmp_path):
    from holdfast.storage.datasets.splits import train_test_split
    from holdfast.storage.datasets.versions import append, filter_rows

    first = store_dataset(store, {"x": np.arange(500.0)}, chunk_size=64)
    last = train_test_split(filter_rows(append(first, {"x": np.arange(9.0)}), "x > 400"))
    tree = verify(store, last.cid)
    assert tree.ok, tree.render()
    assert [(node.role, node.detail) for node in tree.flat()] == [
        ("dataset", "test 20 rows, train 79 rows"),
        ("provenance", "train 99 rows"),
        ("parent", "train 509 rows"),
        ("parent", "train 500 rows"),
    ]
    with closing(LocalStore(tmp_path / "copy")) as blocks:
        manifests = {node.cid for node in tree.flat()}
        below = [
            cid for links in last.summaries.values() for link in links.lists for cid, _ in store.walk(link)
        ]
        blocks.put_many([(cid, store.blocks.get(cid)) for cid in {*manifests, *below}])
        assert verify(ContentStore(blocks), last.cid).ok
    with closing(LocalStore(tmp_path / "less")) as blocks:
        blocks.put_many([(cid, store.blocks.get(cid)) for cid in {*manifests, *below} - {first.cid}])
        assert [node.cid for node in bad(verify(ContentStore(blocks), last.cid))] == [first.cid]


def test_a_long_chain_of_versions_is_verified_and_listed_as_far_as_the_tree_goes(store):
    from holdfast.storage.datasets.versions import append

    dataset = store_dataset(store, {"x": np.arange(3)})
    for number in range(70):
        dataset = append(dataset, {"x": np.array([number])})
    tree = verify(store, dataset.cid)
    assert tree.ok, tree.render()
    assert len(list(tree.flat())) == 65
    assert "not listed" in list(tree.flat())[-1].detail
