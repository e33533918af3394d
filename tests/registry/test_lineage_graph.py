"""What is made of what: nothing is forgotten, in either direction, and nothing is read that need not be."""

from __future__ import annotations

import json
import re
from contextlib import closing

import numpy as np
import pytest

from holdfast.errors import InvalidInput
from holdfast.registry import Database, RunState, RunTable, SqliteNames
from holdfast.registry.graph.lineage_graph import LineageGraph, lineage_graph
from holdfast.registry.graph.made_from import MadeFrom
from holdfast.registry.graph.record_links import Link, links_in
from holdfast.registry.run_table import RunSpec
from holdfast.registry.schema import LINEAGE, MIGRATIONS
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.datasets.versions import append
from holdfast.storage.local.local_store import LocalStore
from tests.registry.lineages import (
    stored_code,
    stored_conversion,
    stored_index,
    stored_model,
    stored_run,
)


@pytest.fixture
def made_from(database, store):
    return MadeFrom(database, store)


@pytest.fixture
def data(store):
    return store_dataset(store, {"train": {"x": np.arange(40.0)}, "test": {"x": np.arange(10.0)}}).cid


def kinds(graph):
    return sorted(node.kind for node in graph.nodes.values())


def test_a_model_tells_everything_that_it_is_made_of_and_no_shard_of_its_data(store, made_from, data):
    older = stored_model(store, data, seed=1)
    model = stored_model(store, data, parent=older)
    graph = lineage_graph(store, model, made_from=made_from, downstream=False)
    assert kinds(graph) == sorted(
        ["model"] * 2 + ["run"] * 2 + ["code"] * 2 + ["directory"] * 4 + ["dataset", "environment"]
    )
    run = store.get_record(model)["run"]
    weights = store.get_record(model)["files"]
    assert {(link.role, link.part) for link in graph.parts_of(model)} == {
        ("run", run),
        ("parent", older),
        ("files", weights),
        ("data", data),
        ("code", store.get_record(model)["code"]),
    }
    assert graph.parts_of(weights) == [Link(run, "outputs.files", weights)], "a run makes its outputs"
    assert weights not in {link.part for link in graph.parts_of(run)}
    assert not graph.cut


def test_what_was_made_from_a_dataset_is_found_through_every_record(store, names, made_from, data):
    model = stored_model(store, data)
    conversion = stored_conversion(store, model, data)
    index = stored_index(store, model, conversion, data)
    child = append(
        store_dataset(store, {"train": {"x": np.arange(40.0)}, "test": {"x": np.arange(10.0)}}),
        {"x": [1.0]},
        split="train",
    ).cid
    names.register("index", "wines", None, index)
    names.register("dataset", "wine", None, child)
    graph = lineage_graph(store, data, made_from=made_from, upstream=False)
    run, weights = (store.get_record(model)[field] for field in ("run", "files"))
    assert set(graph.nodes) == {data, run, weights, model, conversion, index, child}
    assert graph.nodes[index].names == ("wines:1.0.0",)
    assert {link.role for link in graph.made_from(data)} == {"data", "corpus", "parent"}


def test_both_ways_are_the_union_of_one_way_and_the_other(store, names, made_from, data):
    model = stored_model(store, data)
    names.register(
        "index", "i", None, stored_index(store, model, stored_conversion(store, model, data), data)
    )
    up = lineage_graph(store, model, made_from=made_from, downstream=False)
    down = lineage_graph(store, model, made_from=made_from, upstream=False)
    both = lineage_graph(store, model, made_from=made_from)
    assert set(both.nodes) == set(up.nodes) | set(down.nodes)
    assert set(up.nodes) & set(down.nodes) == {model}
    assert set(both.links) >= set(up.links) | set(down.links)


def test_a_registry_from_before_the_table_answers_as_one_that_always_had_it(
    store, names, database, made_from, data
):
    model = stored_model(store, data)
    names.register("model", "m", None, model)
    before = lineage_graph(store, data, made_from=made_from)
    with database.writing() as sql:
        for table in ("made_from", "made_from_records", "made_from_waiting", "computed", "attestations"):
            sql.execute(f"DROP TABLE {table}")
        for trigger in ("made_from_named", "made_from_ran"):
            sql.execute(f"DROP TRIGGER {trigger}")
        sql.execute(f"PRAGMA user_version = {MIGRATIONS.index(LINEAGE)}")
    database.close()
    reopened = Database(database.path)
    try:
        again = SqliteNames(reopened, store)
        newer = stored_model(store, data, seed=5)
        again.register("model", "m", None, newer)
        graph = lineage_graph(store, data, made_from=MadeFrom(reopened, store))
    finally:
        reopened.close()
    assert set(before.nodes) < set(graph.nodes)
    assert newer in graph.nodes


def test_a_model_that_was_trained_and_never_named_is_found_too(store, database, made_from, data):
    model = stored_model(store, data)
    runs = RunTable(database, store)
    lineage_graph(store, data, made_from=made_from)  # the table is filled before
    run = runs.create(RunSpec(code=stored_code(store, "train"), data=data, config={})).id
    runs.start(run)
    runs.finish(run, RunState.DONE, result={"run": str(store.get_record(model)["run"]), "model": str(model)})
    assert model in lineage_graph(store, data, made_from=made_from).nodes


def test_a_bare_weights_file_tells_which_run_made_it(store, names, made_from, data):
    model = stored_model(store, data)
    names.register("model", "m", None, model)
    weights = store.get_record(model)["files"]
    graph = lineage_graph(store, weights, made_from=made_from, downstream=False)
    assert {store.get_record(model)["run"], data} <= set(graph.nodes)
    assert model not in graph.nodes


def test_a_name_that_is_removed_no_longer_labels_what_it_named(store, names, made_from, data):
    names.register("model", "m", "1.0.0", stored_model(store, data))
    model = names.resolve("model", "m").cid
    names.set_alias("model", "m", "champion", "1.0.0")
    assert lineage_graph(store, model, made_from=made_from).nodes[model].names == ("m:1.0.0", "m@champion")
    names.unregister("model", "m")
    assert lineage_graph(store, model, made_from=made_from).nodes[model].names == ()


def test_a_missing_record_is_said_to_be_missing_and_hides_nothing_else(store, names, made_from, data):
    body = store.get_record(stored_model(store, data))
    gone = Cid.of(b"nobody has this", 0x71)
    model = store.put_record(body | {"parent": gone})
    names.register("model", "m", None, model)
    graph = lineage_graph(store, model, made_from=made_from)
    assert graph.nodes[gone].facts == ("not here",)
    assert data in graph.nodes
    assert lineage_graph(store, gone, made_from=made_from, upstream=False).nodes.keys() >= {gone, model}


def test_links_below_a_record_that_came_later_are_found_after_a_rebuild(store, data, tmp_path):
    run = stored_run(store, data)
    record = bytes(store.blocks.get(run))
    body = store.get_record(stored_model(store, data))
    with closing(LocalStore(tmp_path / "other")) as blocks:
        other = ContentStore(blocks)
        model = other.put_record(body | {"run": run, "data": []})
        with closing(Database(tmp_path / "other.db")) as database:
            names, table = SqliteNames(database, other), MadeFrom(database, other)
            names.register("model", "m", None, model)
            assert table.wholes(data, limit=9) == []
            blocks.put_many([(run, record)])
            table.rebuild()
            assert table.wholes(data, limit=9) == [Link(data, "data", run)]


def test_a_long_chain_is_cut_at_the_limit_and_says_so(store, names, made_from):
    dataset = first = store_dataset(store, {"x": np.arange(3)})
    for number in range(12):
        dataset = append(dataset, {"x": np.array([number])})
    names.register("dataset", "d", None, dataset.cid)
    whole = lineage_graph(store, dataset.cid, made_from=made_from)
    assert (len(whole.nodes), whole.cut) == (13, "")
    assert (
        len(lineage_graph(store, dataset.cid, made_from=made_from, max_nodes=5, downstream=False).nodes) == 5
    )
    by_nodes = lineage_graph(store, first.cid, made_from=made_from, max_nodes=6)
    assert len(by_nodes.nodes) == 6
    assert "what was made from it" in by_nodes.cut
    assert by_nodes.cut in by_nodes.render()
    by_depth = lineage_graph(store, dataset.cid, made_from=made_from, max_depth=4)
    assert len(by_depth.nodes) == 5
    assert "what it is made of" in by_depth.cut


def test_hundreds_of_children_of_one_dataset_are_cut_and_not_all_read(store, names, made_from, data):
    for seed in range(30):
        names.register("model", f"m{seed}", None, stored_model(store, data, seed=seed))
    graph = lineage_graph(store, data, made_from=made_from, max_nodes=20)
    assert len(graph.nodes) == 20
    assert graph.cut


def test_a_run_that_puts_out_what_it_took_in_is_no_endless_loop(store, names, made_from, data):
    first = stored_model(store, data, weights=b"unchanged")
    run = store.get_record(store.get_record(first)["run"])
    again = store.put_record(run | {"config": {"parent": first}})
    names.register("model", "m", None, store.put_record(store.get_record(first) | {"run": again}))
    graph = lineage_graph(store, again, made_from=made_from)
    assert graph.render()
    assert graph.to_svg()


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "dataset"},
        {"kind": "dataset", "splits": 5, "provenance": []},
        {"kind": "model", "framework": 1, "metrics": [1]},
        {"kind": "run", "config": 5, "outputs": 7},
        {"kind": "index"},
        {"kind": "conversion", "comparison": {"max_difference": "much"}},
        {"kind": "environment", "packages": []},
        {"kind": ["model"]},
        {"kind": "x" * 5000},
        {"no": "kind"},
        [1, 2],
        "text",
    ],
)
def test_a_stranger_s_record_is_shown_and_breaks_nothing(store, made_from, record):
    graph = lineage_graph(store, store.put_record(record), made_from=made_from)
    assert len(graph.nodes) == 1
    assert graph.render()
    assert graph.to_svg()


def test_a_graph_that_went_over_the_wire_is_the_same(store, names, made_from, data):
    names.register("model", "m", None, stored_model(store, data))
    graph = lineage_graph(store, data, made_from=made_from)
    assert LineageGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph
    for broken in ({}, {"root": "x"}, graph.to_json() | {"nodes": [{}]}):
        with pytest.raises(InvalidInput):
            LineageGraph.from_json(broken)


def test_a_direction_and_a_limit_are_needed(store, made_from, data):
    with pytest.raises(InvalidInput, match="neither"):
        lineage_graph(store, data, made_from=made_from, upstream=False, downstream=False)
    with pytest.raises(InvalidInput, match="at least 1"):
        lineage_graph(store, data, made_from=made_from, max_nodes=0)


def test_questions_to_the_table_are_answered_by_an_index_and_never_by_reading_it_all(database):
    for query in (
        "SELECT part, role, whole FROM made_from WHERE part = ? ORDER BY whole, role LIMIT 5",
        "SELECT part, role, whole FROM made_from WHERE whole = ? ORDER BY part, role",
        "SELECT cid FROM made_from_records WHERE kind = ? ORDER BY cid",
        "SELECT kind, name, version FROM versions WHERE cid = ?",
    ):
        plan = [row["detail"] for row in database.rows(f"EXPLAIN QUERY PLAN {query}", (b"x",))]
        assert all("SCAN" not in step for step in plan), plan


def test_the_text_names_each_thing_and_unfolds_it_once(store, names, made_from, data):
    model = stored_model(store, data)
    names.register("model", "digits", "1.0.0", model)
    text = lineage_graph(store, model, made_from=made_from).render()
    assert text.splitlines()[0].startswith(f"model digits:1.0.0  {model}  pytorch, test_accuracy 0.9")
    assert text.count("lr 0.1") == 2, "the run, and a note that it is above"
    assert text.count("see above") == 1
    assert "made from it" not in text
    assert "40 train" in text


def test_what_was_made_from_a_thing_is_listed_in_the_order_of_its_versions(store, names, made_from, data):
    versions = ["1.0.0", "1.2.0", "1.10.0-rc.1", "1.10.0", "2.0.0"]
    for seed, version in enumerate(versions[::-1]):
        names.register("model", "digits", version, stored_model(store, data, seed=seed))
    again = stored_model(store, data, seed=9)
    for version in ("3.10.0", "3.9.0"):
        names.register("model", "again", version, again)
    text = lineage_graph(store, data, made_from=made_from).render()
    assert re.findall(r"model digits:(\S+) ", text) == [
        one for one in versions for _ in range(text.count(f"digits:{one} "))
    ]
    assert "again:3.9.0, again:3.10.0 " in text
    assert text.index("again:") < text.index("digits:")


def test_no_text_in_a_record_looks_like_a_line_of_the_tree(store):
    forged = "\n└─ model signed:1.0.0\x1b[2K\u202e"
    for record in (
        {"kind": f"x{forged}", f"role{forged}": store.add_bytes(b"x")},
        {"kind": "code", "entry": f"a:b{forged}"},
    ):
        graph = lineage_graph(store, store.put_record(record))
        assert all(line.isprintable() for line in graph.render().split("\n"))
        assert not [line for line in graph.render().split("\n") if line.startswith("└─ model")]
        assert all(fact.isprintable() for node in graph.nodes.values() for fact in (node.kind, *node.facts))


def test_the_arrows_of_a_record_are_each_told_once_with_their_fields_name():
    one, two, whole = (Cid.of(text.encode()) for text in ("one", "two", "whole"))
    record = {"kind": "new kind", "data": [one, two, one], "files": {"a": one, "b": [{"deep": two}]}}
    assert links_in(whole, record) == [
        Link(one, "data", whole),
        Link(two, "data", whole),
        Link(one, "files.a", whole),
        Link(two, "files.b.deep", whole),
    ]
