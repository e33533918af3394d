"""Verification: one wrong bit anywhere below a model is found, and the tree gives the exact way to it."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

from holdfast.errors import Denied, InvalidInput, NotFound
from holdfast.registry import (
    AttestationRecord,
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
from holdfast.storage.formats.dag import links_of
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
    stored = store.add_bytes(weights)
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


deeply = partial(verify, deep=True)


def bad(tree):
    return [node for node in tree.flat() if node.error is not None or node.faults]


def test_a_whole_lineage_is_ok_and_every_part_of_it_is_in_the_tree(made):
    with closing(LocalStore(made.folder)) as blocks:
        tree = deeply(ContentStore(blocks), made.model)
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
    assert details["data"].startswith("10 test, 40 train rows")
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
            tree = deeply(store, made.model)
        shutil.rmtree(tmp_path / str(number))
        assert not tree.ok, cid
        assert json.loads(json.dumps(tree.to_json()))["ok"] is False
        assert "✗" in tree.render()
        wrong = bad(tree)
        assert wrong, cid
        with closing(LocalStore(made.folder)) as blocks:
            whole = ContentStore(blocks)
            for node in wrong:
                assert cid in {part for part, _ in whole.walk(node.cid)}, f"{node.role} is blamed for {cid}"
        assert any(str(cid) in link.problem for link in tree.broken())
        assert any(link.cid == cid for link in tree.broken()), "the path ends at the block itself"


def test_the_part_that_is_wrong_is_the_one_that_says_so(made, tmp_path):
    for role, cid in made.parts.items():
        with closing(damaged_copy(made, tmp_path / role, {cid: None})) as blocks:
            tree = deeply(ContentStore(blocks), made.model)
        wrong = {node.cid for node in bad(tree)}
        assert wrong == {cid}, role


def test_weights_that_the_run_did_not_make_are_found(store):
    model, parts = make_model(store, weights=b"made by the run")
    body = load_record(store, model, ModelRecord).to_record()
    cid = store.put_record(body | {"files": store.add_bytes(b"swapped")})
    tree = deeply(store, cid)
    assert not tree.ok
    assert [node.cid for node in bad(tree)] == [cid]
    assert "not those that its run made" in str(tree.error)
    assert parts["weights"] in {node.cid for node in tree.flat()}


@pytest.mark.parametrize("field", ["run", "parent", "code", "data"])
def test_a_model_that_links_what_its_field_is_not_for_is_found(store, field):
    model, parts = make_model(store, weights=b"w")
    body = load_record(store, model, ModelRecord).to_record()
    for other, kind in (
        (store.put_record([1]), "record"),
        (parts["environment"], "environment"),
        (parts["weights"], "file"),
    ):
        tree = deeply(store, store.put_record(body | {field: [other] if field == "data" else other}))
        assert not tree.ok
        assert f"the model's {field}" in str(tree.error)
        assert f"its kind is '{kind}'" in str(tree.error)


def test_a_run_on_what_is_no_dataset_is_found(store):
    model, parts = make_model(store, weights=b"w")
    body = load_record(store, parts["run"], RunRecord).to_record()
    run = store.put_record(body | {"data": parts["environment"]})
    tree = deeply(store, store.put_record(load_record(store, model, ModelRecord).to_record() | {"run": run}))
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
        assert deeply(store, index).ok is ok


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "model"},
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
    tree = deeply(store, store.put_record(record))
    assert not tree.ok
    assert tree.render().startswith("✗ ")


def test_anything_else_is_simply_hashed(store):
    for cid in (
        store.add_bytes(b"x"),
        store.add_files({"a/b": b"1"}),
        store.put_record({"no": "kind", "link": store.add_bytes(b"y")}),
        store.put_record([1, store.add_bytes(b"z")]),
    ):
        tree = deeply(store, cid)
        assert tree.ok, tree.render()


def test_links_inside_lists_are_followed_too(store):
    model, _ = make_model(store, weights=b"w")
    body = load_record(store, model, ModelRecord).to_record()
    missing = Cid.of(b"nobody has this")
    tree = deeply(store, store.put_record(body | {"metadata": {"sources": [[{"cid": missing}]]}}))
    assert [(node.role, node.cid) for node in bad(tree)] == [("metadata.sources.0.0.cid", missing)]


def test_a_chain_of_parents_that_never_ends_is_cut_and_said_so(store):
    cid, _ = make_model(store, weights=b"w")
    body = load_record(store, cid, ModelRecord).to_record()
    for _ in range(70):
        cid = store.put_record(body | {"parent": cid})
    tree = deeply(store, cid)
    assert not tree.ok
    assert any("deeper than" in str(node.error) for node in bad(tree))


def test_what_is_nowhere_is_bad_and_no_crash(store):
    for codec in (0x55, DAG_PB, 0x71, 0x0129):
        tree = deeply(store, Cid.of(b"nowhere", codec))
        assert not tree.ok
        assert len(tree.render().splitlines()) == 1


def test_no_text_in_a_record_looks_like_a_line_of_the_tree(signatures, store):
    """Neither what a record says, nor what a stranger signed, nor the name of a file, can say "signed by alice"."""
    forged = "\n│  ✓ signed by alice\x1b[2K\u202e"
    model, _ = make_model(store, weights=b"w")
    body = load_record(store, model, ModelRecord).to_record()
    files = store.add_files({f"gone{forged}": b"gone", "here": b"here"}, pin=False)
    missing = store.put_record({"files": Cid.of(b"nobody has this")})
    cid = store.put_record(
        body | {"framework": f"x{forged}", "files": files, "run": None, "metadata": {f"a{forged}": missing}}
    )
    stranger = {
        "payloadType": f"x{forged}",
        "payload": b"",
        "signatures": [{"keyid": f"k{forged}", "sig": b""}],
    }
    attestation = AttestationRecord(subjects=(cid,), envelope=stranger).store(store)
    with signatures.attestations._database.writing() as sql:  # as somebody with the file might
        sql.execute(
            "INSERT INTO attestations VALUES (?, ?, ?, 0)", (str(cid), str(attestation), f"k{forged}")
        )
    store.blocks.inner.replace_many([(Cid.of(b"gone"), b"else")])
    tree = verify(store, cid, signatures=signatures)
    assert not tree.ok
    with pytest.raises(Denied) as caught:
        signatures.require(cid, [signatures.keys.own().public])
    for text in (tree.render(), str(caught.value), *map(str, tree.broken())):
        assert all(line.isprintable() for line in text.split("\n"))
        assert not [line for line in text.split("\n") if line.startswith("│  ✓ signed")]
    assert "\n" not in str(caught.value)


def test_the_tree_is_one_line_for_each_part(made):
    with closing(LocalStore(made.folder)) as blocks:
        tree = deeply(ContentStore(blocks), made.model)
    lines = tree.render().splitlines()
    assert len(lines) == len(list(tree.flat()))
    assert all("✓ " in line or "↑ " in line for line in lines)
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
    tree = deeply(store, last.cid)
    assert tree.ok, tree.render()
    assert [(node.role, node.detail) for node in tree.flat()] == [
        ("dataset", "20 test, 79 train rows, train test split"),
        ("provenance", "99 train rows, filter x > 400"),
        ("parent", "509 train rows, append"),
        ("parent", "500 train rows"),
    ]
    with closing(LocalStore(tmp_path / "copy")) as blocks:
        manifests = {node.cid for node in tree.flat()}
        below = [
            cid for links in last.summaries.values() for link in links.lists for cid, _ in store.walk(link)
        ]
        blocks.put_many([(cid, store.blocks.get(cid)) for cid in {*manifests, *below}])
        assert deeply(ContentStore(blocks), last.cid).ok
    with closing(LocalStore(tmp_path / "less")) as blocks:
        blocks.put_many([(cid, store.blocks.get(cid)) for cid in {*manifests, *below} - {first.cid}])
        assert [node.cid for node in bad(deeply(ContentStore(blocks), last.cid))] == [first.cid]


def test_a_long_chain_of_versions_is_verified_and_listed_as_far_as_the_tree_goes(store):
    from holdfast.storage.datasets.versions import append

    dataset = store_dataset(store, {"x": np.arange(3)})
    for number in range(70):
        dataset = append(dataset, {"x": np.array([number])})
    tree = deeply(store, dataset.cid)
    assert tree.ok, tree.render()
    assert len(list(tree.flat())) == 65
    assert "not listed" in list(tree.flat())[-1].detail


# ------------------------------------------------------------------------------------------ without --deep


def test_what_is_missing_is_found_without_deep_and_little_is_read_for_it(made, tmp_path):
    with closing(LocalStore(made.folder)) as blocks:
        whole = ContentStore(blocks)
        tree = verify(whole, made.model)
        assert tree.ok, tree.render()
        leaves = [cid for cid, _ in whole.walk(made.parts["weights"])][1:]
        size = whole.stat(made.parts["weights"]).size
    weights = next(node for node in tree.flat() if node.cid == made.parts["weights"])
    assert not weights.hashed
    assert weights.detail == f"the first of {size:,} B"
    assert weights.blocks == 2 < len(leaves), "its root and its first leaf"
    assert next(node for node in tree.flat() if node.cid == made.parts["files"]).hashed, (
        "it has small files only"
    )
    for number, (cid, _) in enumerate(blocks_below(made)):
        with closing(damaged_copy(made, tmp_path / str(number), {cid: None})) as blocks:
            tree = verify(ContentStore(blocks), made.model)
        assert {link.cid for link in tree.broken()} == {cid}
        shutil.rmtree(tmp_path / str(number))


def test_damage_in_the_middle_of_a_file_is_found_with_deep_only(made, tmp_path):
    with closing(LocalStore(made.folder)) as blocks:
        _, first, *others = [cid for cid, _ in ContentStore(blocks).walk(made.parts["weights"])]
    for cid, found in ((first, True), (others[0], False)):
        with closing(damaged_copy(made, tmp_path / str(found), {cid: b"wrong"})) as blocks:
            assert {link.cid for link in verify(ContentStore(blocks), made.model).broken()} == (
                {cid} if found else set()
            )
            assert {link.cid for link in deeply(ContentStore(blocks), made.model).broken()} == {cid}


@pytest.mark.parametrize("profile", ["unixfs-v1-2025", "unixfs-v0-2015"])
def test_each_file_of_a_folder_is_looked_at_without_deep(tmp_path, profile):
    """Also in folders below it, in one that is so large that it is sharded, and where leaves of files are nodes, too."""
    large = {f"many/{number:03}-{'x' * 200}": bytes([number % 251, number // 251]) for number in range(2000)}
    files = {"a.bin": os.urandom(3 << 20), "in/b.bin": os.urandom(3 << 20), "in/c.txt": b"c", **large}
    with closing(LocalStore(tmp_path / "whole")) as blocks:
        whole = ContentStore(blocks, profile=profile)
        model = ModelRecord(framework="x", format="x", files=whole.add_files(files, pin=False)).store(whole)
        tree = verify(whole, model)
        assert tree.ok, tree.render()
        assert sum(node.size_bytes for node in tree.flat()) < 3 << 20
        folder = load_record(whole, model, ModelRecord).files
        names = ["a.bin", "in/c.txt", min(large)]
        paths = {("files", *name.split("/")): whole.resolve(f"{folder}/{name}") for name in names}
        parts = links_of(file := whole.resolve(f"{folder}/in/b.bin"), whole.blocks.get(file))
        paths |= {("files", "in", "b.bin", str(at)): part for at, part in enumerate(parts)}
        every = [(cid, bytes(data)) for cid, data in whole.walk(model)]
    for number, (path, gone) in enumerate(paths.items()):
        with closing(LocalStore(tmp_path / str(number))) as blocks:
            blocks.put_many([(cid, data) for cid, data in every if cid != gone])
            (link,) = verify(ContentStore(blocks), model).broken()
        assert (link.path, link.cid) == (("model", *path), gone)


def test_what_others_have_is_not_fetched_without_deep_and_that_is_told(made, tmp_path):
    """One block is fetched, to see whether they can be had; where it can't, all of them are missing."""
    from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore

    class Other(LocalStore):
        """A store that gets what it lacks from another one, and keeps it."""

        asked = 0

        def prefetch(self, cids, *, root=None):  # noqa: ARG002 -- of the protocol
            wanted = [cid for cid in cids if not self.has(cid)]
            self.asked += len(wanted)
            with closing(LocalStore(made.folder)) as other:
                self.put_many([(cid, bytes(other.get(cid))) for cid in wanted])

    with closing(LocalStore(made.folder)) as blocks:
        _, *leaves = [cid for cid, _ in ContentStore(blocks).walk(made.parts["weights"])]
        every = blocks_below(made)
    with closing(Other(tmp_path / "other")) as blocks:
        blocks.put_many([(cid, data) for cid, data in every if cid not in leaves])
        tree = verify(ContentStore(blocks), made.model)
        assert tree.ok
        assert blocks.asked == 2 < len(leaves), "the first one, and one of the others"
        assert f"{len(leaves) - 2} blocks are not on this node and were not fetched" in tree.render()
    with closing(FetchingStore(LocalStore(tmp_path / "alone"), Fetcher(list))) as alone:
        alone.put_many([(cid, data) for cid, data in every if cid not in leaves])
        assert {link.cid for link in verify(ContentStore(alone), made.model).broken()} == set(leaves)


def test_the_lists_and_shards_of_a_dataset_must_be_there_without_deep(made, tmp_path):
    with closing(LocalStore(made.folder)) as blocks:
        store = ContentStore(blocks)
        manifest = store.get_record(made.parts["data"])
        split = manifest["splits"]["train"]
        shard = store.get_record(split["lists"][0])["shards"][0]["cid"]
    for number, (cid, path) in enumerate(
        [(split["lists"][0], ("train",)), (shard, ("train", "shards.0.cid"))]
    ):
        with closing(damaged_copy(made, tmp_path / str(number), {cid: None})) as blocks:
            for tree in (verify(ContentStore(blocks), made.model), deeply(ContentStore(blocks), made.model)):
                (link,) = tree.broken()
                assert (link.path, link.cid) == (("model", "run", "data", *path), cid)


# --------------------------------------------------------------------------------------- the exact link


def test_the_way_to_a_broken_block_is_told_from_the_root_on(made, tmp_path):
    with closing(LocalStore(made.folder)) as blocks:
        store = ContentStore(blocks)
        run_code = store.get_record(store.get_record(made.parts["run"])["code"])["files"]
        source = store.resolve(f"{run_code}/a/b.py")
        second = [cid for cid, _ in store.walk(made.parts["weights"])][2]
    for cid, path in (
        (source, ("model", "run", "code", "files", "a", "b.py")),
        (second, ("model", "run", "outputs.files", "1")),
        (made.parts["environment"], ("model", "run", "environment")),
    ):
        with closing(damaged_copy(made, tmp_path / path[-1], {cid: None})) as blocks:
            tree = deeply(ContentStore(blocks), made.model)
        (link,) = tree.broken()
        assert (link.path, link.cid) == (path, cid)
        assert str(link).startswith(" → ".join(path))
        assert tree.to_json()["broken"] == [{"path": list(path), "cid": str(cid), "problem": link.problem}]


def test_a_missing_block_tells_who_was_asked(made, tmp_path):
    from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider

    urls = ["http://127.0.0.1:1", "http://127.0.0.1:2"]  # nobody listens on ports that low
    fetcher = Fetcher(lambda: [Provider(url) for url in urls], timeout_s=2.0)
    gone = made.parts["weights"]
    blocks = damaged_copy(made, tmp_path, {gone: None})
    with closing(FetchingStore(VerifyingStore(blocks, source="the disk"), fetcher)) as fetching:
        tree = deeply(ContentStore(fetching), made.model)
    links = list(tree.broken())
    assert [link.path for link in links] == [("model", "run", "outputs.files"), ("model", "files")]
    assert {link.cid for link in links} == {gone}
    for part in (str(gone), *urls):
        assert part in links[0].problem


def test_a_block_that_two_parts_share_is_blamed_on_both(store):
    lost = b"x" * 1_000_000
    first = store.add_files({"a": lost, "b": b"1"})
    second = store.add_files({"deep/c": lost})
    root = store.put_record({"kind": "nothing known", "first": first, "second": second})
    store.blocks.inner.replace_many([(Cid.of(lost), b"y" + lost[1:])])
    paths = {link.path for link in deeply(store, root).broken()}
    assert {("nothing known", "first", "a"), ("nothing known", "second", "deep", "c")} < paths


def test_many_broken_blocks_are_all_counted_and_the_line_stays_short(store):
    leaves = [bytes([number]) * 1000 for number in range(200)]
    root = store.add_files({f"{number:03}": leaf for number, leaf in enumerate(leaves)})
    store.blocks.inner.replace_many([(Cid.of(leaf), leaf[:-1] + bytes([leaf[0] ^ 1])) for leaf in leaves])
    tree = deeply(store, root)
    assert len(list(tree.broken())) == 200
    assert "and 197 more" in tree.render()
    assert [link.path[1] for link in tree.broken()] == [f"{number:03}" for number in range(200)]


def test_a_size_that_a_node_only_states_deceives_nobody(store):
    """Links may say anything about how long a block is; what counts is its hash."""
    from holdfast.storage.formats.dag_pb import PbLink, PbNode, decode_node, encode_node

    data = os.urandom(5_000_000)
    root = store.add_bytes(data)
    node = decode_node(bytes(memoryview(store.blocks.get(root))))
    for sizes in (
        [None] * 5,
        [7] * 5,
        [1 << 40] * 5,
        [0] * 5,
        [1 << 20, 1, 2, 3, 4],
        [(1 << 20) - 1, (1 << 20) + 1] * 3,
    ):
        links = tuple(
            PbLink(link.cid, link.name, size) for link, size in zip(node.links, sizes, strict=False)
        )
        encoded = encode_node(PbNode(links, node.data))
        cid = Cid.of(encoded, DAG_PB)
        store.blocks.put_many([(cid, encoded)])
        tree = deeply(store, cid)
        assert tree.ok, tree.render()
        assert tree.size_bytes == len(encoded) + len(data)


@pytest.mark.parametrize("verifying", [True, False], ids=["verified store", "bare store"])
def test_progress_adds_up_to_every_byte(made, verifying):
    told = []
    with closing(LocalStore(made.folder)) as blocks:
        store = ContentStore(VerifyingStore(blocks, source="the disk") if verifying else blocks)
        tree = deeply(store, made.model, progress=lambda more, total: told.append((more, total)))
        weights = store.stat(made.parts["weights"]).size
    hashed = sum(more for more, _ in told)
    records = sum(
        node.size_bytes for node in tree.flat() if node.kind in ("model", "run", "code", "environment")
    )
    assert weights < hashed <= sum(node.size_bytes for node in tree.flat()) - records
    assert {total for _, total in told} == {told[0][1]}
    assert abs(told[0][1] - hashed) < 0.01 * hashed


# ------------------------------------------------------------------------------------ what is not believed


def test_a_record_of_a_kind_that_this_release_does_not_know_is_named_and_not_believed(store):
    below = store.put_record({"kind": "environment", "python": 3})
    cid = store.put_record({"kind": "something of a later version", "link": below})
    tree = verify(store, cid)
    assert not tree.ok
    assert "'something of a later version', which this release of holdfast does not know" in str(tree.error)
    assert [node.cid for node in bad(tree)] == [cid, below], "what it links is looked at nevertheless"


def test_below_a_record_with_a_wrong_field_everything_is_looked_at_nevertheless(store):
    model, parts = make_model(store, weights=b"w")
    body = load_record(store, model, ModelRecord).to_record()
    tree = verify(store, store.put_record(body | {"field of a later version": 1}))
    assert "field of a later version" in str(tree.error)
    assert set(parts.values()) - {model} <= {node.cid for node in tree.flat()}


def test_a_dataset_that_was_met_as_somebody_s_parent_is_hashed_when_a_run_used_it(store):
    """The rows of a parent need not be there; those that a run was trained on must, whichever is met first."""
    from holdfast.storage.datasets.versions import append

    first = store_dataset(store, {"x": np.arange(500.0)}, chunk_size=64)
    second = append(first, {"x": np.arange(9.0)})
    root = store.put_record({"kind": "unknown", "a": second.cid, "b": first.cid})
    shard = next(iter(first.shards("train"))).cid
    leaf = [cid for cid, _ in store.walk(shard)][-1]
    kept = {cid for link in second.summaries["train"].lists for cid, _ in store.walk(link)}
    alone = [cid for link in first.summaries["train"].lists for cid, _ in store.walk(link) if cid not in kept]
    assert alone, "something is part of the first version only"
    data = bytes(memoryview(store.blocks.get(alone[-1])))
    store.blocks.inner.replace_many([(alone[-1], data[:-1] + b"?")])
    tree = deeply(store, root)
    assert ("unknown", "b") in {link.path[:2] for link in tree.broken()}, leaf
    assert deeply(store, second.cid).ok


def test_links_in_the_metadata_of_a_dataset_are_followed(store):
    missing = Cid.of(b"nobody has this")
    data = store_dataset(store, {"x": np.arange(5.0)}, metadata={"source": missing})
    assert [link.path for link in verify(store, data.cid).broken()] == [("dataset", "metadata.source")]


# --------------------------------------------------------------------------------------------- signatures


def test_signatures_stand_in_the_tree_with_who_and_whether_they_are_right(store, alice, bob, database):
    model, parts = make_model(store, weights=b"w")
    alice.sign(model)
    alice.sign(parts["data"])
    bob.keys.trust("alice", alice.keys.own().public)
    tree = verify(store, model, signatures=bob)
    assert tree.ok
    assert [one.name for one in tree.signatures] == ["alice"]
    assert "✓ signed by alice (z6Mk" in tree.render()
    assert tree.render().count("signed by") == 2
    bob.keys.untrust("alice")
    assert (
        f"✓ signed by the unknown key {alice.keys.own().public}"
        in verify(store, model, signatures=bob).render()
    )
    assert verify(store, model).signatures == [], "nobody asked"

    other = alice.sign(store.add_bytes(b"other"))
    with database.writing() as sql:
        row = (str(parts["run"]), str(other), str(alice.keys.own().public), 0.0)
        sql.execute("INSERT INTO attestations VALUES (?, ?, ?, ?)", row)
    tree = verify(store, model, signatures=bob)
    (link,) = tree.broken()
    assert (link.path, link.cid) == (("model", "run", "signature"), other)
    assert "about something else" in link.problem
    assert "✗ signed by" in tree.render()
    assert json.loads(json.dumps(tree.to_json()))["ok"] is False


def test_what_must_be_signed_and_is_not_does_not_verify(store, alice, bob):
    model, _ = make_model(store, weights=b"w")
    alice.sign(model)
    key = str(alice.keys.own().public)
    assert verify(store, model, signatures=bob, require_signed_by=[key]).ok
    tree = verify(store, model, signatures=bob, require_signed_by=[str(bob.keys.own().public)])
    (link,) = tree.broken()
    assert (link.path, link.cid) == (("model",), model)
    assert "must have signed it" in link.problem
    with pytest.raises(NotFound, match="no key is named 'carol'"):
        verify(store, model, signatures=bob, require_signed_by=["carol"])
    with pytest.raises(InvalidInput, match="without signatures"):
        verify(store, model, require_signed_by=[key])


def test_an_attestation_itself_is_verified_with_what_it_is_about(store, alice):
    from holdfast.registry import AttestationRecord

    model, _ = make_model(store, weights=b"w")
    cid = alice.sign(model)
    tree = verify(store, cid)
    assert tree.ok, tree.render()
    assert (tree.kind, [child.cid for child in tree.children]) == ("attestation", [model])
    record = load_record(store, cid, AttestationRecord)
    (signature,) = record.envelope["signatures"]
    envelope = {**record.envelope, "signatures": [{**signature, "sig": bytes(64)}]}
    forged = AttestationRecord(subjects=record.subjects, envelope=envelope).store(store)
    assert "not signed rightly" in str(verify(store, forged).error)


def test_a_very_long_chain_of_changes_is_hashed_in_the_time_it_takes_to_read_it(store):
    """Commits of names link each other without end; neither the tree nor the way to a fault grows with them."""
    cid = store.add_bytes(b"first")
    store.blocks.inner.replace_many([(cid, b"other")])
    for number in range(3000):
        cid = store.put_record({"kind": "commit", "previous": cid, "number": number})
    (link,) = deeply(store, cid).broken()
    assert len(link.path) < 70
