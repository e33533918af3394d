"""The compute cache: equal work is done once, other work never gets its answer, and a lost result is made again."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.registry.compute.computation import Computation
from holdfast.registry.compute.compute_cache import ComputeCache, claim_of, is_whole
from holdfast.registry.compute.environment import imported_by, numeric_environment
from holdfast.registry.compute.explaining import Explanation, differences
from holdfast.registry.compute.results import CachedResult, computed
from holdfast.registry.compute.training import remember_training, training_computation
from holdfast.registry.records import CodeRecord
from holdfast.registry.run_table import RunSpec
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.formats import dag_cbor
from holdfast.storage.local.local_store import LocalStore
from tests.registry.lineages import stored_model

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
configs = st.dictionaries(st.text(min_size=1, max_size=6), plain, max_size=4)
computations = st.builds(
    Computation,
    function=st.sampled_from(["train", "convert"]),
    code=st.none() | st.integers(0, 3).map(lambda n: Cid.of(b"%d" % n)),
    inputs=st.dictionaries(
        st.text(min_size=1, max_size=4), st.integers(0, 3).map(lambda n: Cid.of(b"%d" % n)), max_size=2
    ),
    config=configs,
    environment=configs,
)


def of(**config) -> Computation:
    return Computation(
        function="train",
        inputs={"data": Cid.of(b"data")},
        config=config,
        environment={"packages": {"torch": "2.6"}},
    )


@pytest.fixture
def cache(database, store):
    return ComputeCache(database, store)


@pytest.fixture
def result(store):
    return store.put_record({"kind": "model", "weights": store.add_bytes(b"w" * 3_000_000)})


@given(computations)
def test_a_computation_survives_its_own_bytes(computation):
    assert Computation.decode(computation.encode()) == computation
    assert Computation.decode(computation.encode()).key == computation.key


@given(computations, computations)
def test_two_computations_have_one_key_only_if_no_field_differs(one, other):
    assert (one.key == other.key) == (differences(one, other) == ())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1}, {"a": True}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": None}, {}),
        ({"a": {}}, {}),
        ({"a": "1"}, {"a": 1}),
        ({"a": [1]}, {"a": [True]}),
    ],
)
def test_values_that_look_alike_are_told_apart(one, other):
    assert of(**one).key != of(**other).key
    assert [d.field for d in differences(of(**one), of(**other))] == ["config.a"]


def test_a_name_with_a_dot_is_not_taken_for_a_path():
    assert of(**{"a.b": 1}).key != of(a={"b": 1}).key
    assert [d.field for d in differences(of(**{"a.b": 1}), of(a={"b": 1}))] == ['config."a.b"', "config.a.b"]


def test_the_order_of_fields_does_not_matter():
    assert of(a=1, b=2).key == of(b=2, a=1).key


def test_the_same_work_is_done_once_and_asked_otherwise_it_is_done_again(cache, result):
    done = []

    def work():
        done.append(1)
        return result

    assert computed(cache, of(lr=1), work) == (result, None)
    again, entry = computed(cache, of(lr=1), work)
    assert entry is not None
    assert (again, entry.key, len(done)) == (result, of(lr=1).key, 1)
    assert computed(cache, of(lr=1), work, use_cache=False)[1] is None
    assert computed(cache, of(lr=2), work)[1] is None
    assert len(done) == 3


def test_work_that_fails_is_not_remembered(cache):
    def work():
        raise InvalidInput("no")

    with pytest.raises(InvalidInput):
        computed(cache, of(lr=1), work)
    assert cache.entries() == []


def test_a_result_that_lost_any_block_is_a_miss_and_made_again(cache, store, result, tmp_path, database):
    cache.remember(of(lr=1), result)
    everything = [(cid, bytes(data)) for cid, data in store.walk(result)]
    assert len(everything) >= 4
    for number, (lost, _) in enumerate(everything):
        with closing(LocalStore(tmp_path / str(number))) as blocks:
            blocks.put_many([(cid, data) for cid, data in everything if cid != lost])
            other = ComputeCache(database, ContentStore(blocks))
            assert other.find(of(lr=1)) is None, lost
            assert other.explain(of(lr=1)).verdict == "gone"
            with pytest.raises(NotFound, match="not whole"):
                other.remember(of(lr=1), result)
    assert cache.find(of(lr=1)) is not None


def test_a_model_whose_datas_rows_are_gone_still_answers(store, tmp_path):
    data = store_dataset(store, {"train": {"x": np.arange(40.0)}}).cid
    model = stored_model(store, data)
    rows = {cid for cid, _ in store.walk(data)} - {data}
    with closing(LocalStore(tmp_path / "less")) as blocks:
        blocks.put_many([(cid, bytes(d)) for cid, d in store.walk(model) if cid not in rows])
        assert is_whole(ContentStore(blocks), model)


def test_an_answer_tells_who_made_it_and_survives_a_restart(cache, database, store, result):
    entry = cache.remember(of(lr=1), result, made_by="run-1")
    assert ComputeCache(database, store).find(of(lr=1)) == entry
    assert CachedResult.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    assert "@" in cache.remember(of(lr=2), result).made_by


def test_the_newest_result_of_a_key_is_the_one_that_answers(cache, store, result):
    other = store.put_record({"kind": "model", "weights": store.add_bytes(b"other")})
    cache.remember(of(lr=1), result)
    cache.remember(of(lr=1), other)
    assert cache.find(of(lr=1)).result == other
    assert len(cache.entries()) == 1


def test_the_nearest_computation_and_what_differs_are_told(cache, result):
    assert cache.explain(of(lr=1)).verdict == "empty"
    cache.remember(of(lr=1, epochs=3), result, made_by="run-1")
    cache.remember(of(lr=5, epochs=9), result, made_by="run-2")
    asked = Computation(
        function="train",
        inputs={"data": Cid.of(b"other data")},
        config={"lr": 1, "epochs": 3},
        environment={"packages": {"torch": "2.7"}},
    )
    told = cache.explain(asked)
    assert (told.verdict, told.entry.made_by) == ("differs", "run-1")
    assert [(d.field, d.stored, d.asked) for d in told.differences] == [
        ("environment.packages.torch", "'2.6'", "'2.7'"),
        ("inputs.data", str(Cid.of(b"data")), str(Cid.of(b"other data"))),
    ]
    assert "'2.6' -> '2.7'" in told.render()
    assert cache.explain(of(lr=1, epochs=3)).verdict == "hit"
    assert Explanation.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_many_fields_that_only_one_has_are_told_in_one_line(cache, result):
    packages = {f"package{i}": "1.0" for i in range(9)}
    stored = Computation(
        function="train", inputs={}, config={}, environment={"packages": packages, "sources": {"helper": "x"}}
    )
    cache.remember(stored, result)
    asked = Computation(
        function="train", inputs={}, config={}, environment={"packages": {"package0": "2.0"}, "sources": {}}
    )
    told = cache.explain(asked)
    assert [line.split("  ")[1] for line in told.render().splitlines()[1:]] == [
        "environment.packages.package0",
        "environment.packages",
        "environment.sources.helper",
    ]
    assert "8 (package1, package2, " in told.render()
    assert len(told.to_json()["differences"]) == 10


def test_what_was_computed_is_explained_by_what_was_known_then(cache, store, result):
    cache.remember(of(lr=1), result, made_by="run-1")
    other = store.put_record({"kind": "model", "weights": store.add_bytes(b"other")})
    entry = cache.remember(of(lr=2), other, made_by="run-2")
    for ref in ("run-2", str(entry.key), str(other)):
        told = cache.explain_entry(ref)
        assert told.entry.made_by == "run-1"
        assert [(d.field, d.stored, d.asked) for d in told.differences] == [("config.lr", "1", "2")]
    assert cache.explain_entry("run-1").verdict == "empty"
    with pytest.raises(NotFound, match="cache list"):
        cache.explain_entry("run-3")


def test_another_function_is_never_the_nearest(cache, result):
    cache.remember(of(lr=1), result)
    assert cache.explain(Computation(function="convert", config={"lr": 1})).verdict == "empty"


def test_results_are_forgotten_one_by_one_by_function_or_all(cache, result):
    for lr in range(3):
        cache.remember(of(lr=lr), result)
    cache.remember(Computation(function="index"), result)
    assert cache.clear(key=of(lr=0).key) == 1
    assert cache.clear(function="index") == 1
    assert cache.find(of(lr=0)) is None
    assert cache.find(of(lr=1)) is not None
    assert cache.clear() == 2
    assert cache.entries() == []


def test_a_signer_is_given_the_claim_and_a_verifier_decides_what_answers(database, store, result):
    signed: dict[Cid, Cid] = {}

    def signer(claim):
        assert store.get_record(claim)["result"] == result
        assert store.get_record(store.get_record(claim)["computation"])["function"] == "train"
        signed[claim] = store.put_record({"kind": "attestation", "of": claim})
        return signed[claim]

    entry = ComputeCache(database, store, signer=signer).remember(of(lr=1), result)
    claim = Cid.of(dag_cbor.encode(claim_of(entry.key, result)), 0x71)
    assert signed == {claim: entry.attestation}
    held = {cid for cid in (entry.key, claim, entry.attestation) if store.blocks.has(cid)}
    assert len(held) == 3
    trusting = ComputeCache(database, store, verifier=lambda c, a: a is not None and signed.get(c) == a)
    assert trusting.find(of(lr=1)) == entry
    ComputeCache(database, store).remember(of(lr=2), result)
    assert trusting.find(of(lr=2)) is None, "nobody signed it"
    assert trusting.explain(of(lr=2)).verdict == "refused"


@pytest.mark.parametrize("config", [{"a": object()}, {"a": float("nan")}, {1: 2}])
def test_what_no_record_can_hold_is_refused_before_any_work(config):
    with pytest.raises(InvalidInput):
        Computation(function="train", config=config)
    with pytest.raises(InvalidInput, match="function"):
        Computation(function="")


@pytest.mark.parametrize(
    "record", [5, {}, {"kind": "computation"}, {"function": "x", "inputs": 1}, of().to_record() | {"more": 1}]
)
def test_a_record_that_is_no_computation_is_refused(record):
    with pytest.raises(Corrupt):
        Computation.decode(dag_cbor.encode(record))


# --------------------------------------------------------------------------------------------- environment


def stored(store, source: str, name="mine") -> Cid:
    return CodeRecord(files=store.add_files({f"{name}.py": source.encode()}), entry=f"{name}:f").store(store)


def test_what_code_imports_is_found_wherever_it_is_imported(store):
    code = stored(
        store,
        "import os, numpy.linalg\nfrom sklearn import svm\ndef f():\n    import helper_a\n    from . import x\n",
    )
    assert imported_by(store, code) == ["helper_a", "numpy", "os", "sklearn"]
    assert imported_by(store, stored(store, "this is ( no Python")) == []


def test_a_changed_helper_module_changes_the_environment_though_its_version_does_not(module_file):
    module_file("helper_a", "import helper_b\nX = 1")
    module_file("helper_b", "Y = 1")
    first = numeric_environment(modules=["helper_a", "numpy", "json"])
    assert set(first["sources"]) == {"helper_a", "helper_b"}
    assert {"numpy", "holdfast"} <= set(first["packages"])
    assert numeric_environment(modules=["helper_a", "numpy", "json"]) == first
    module_file("helper_b", "Y = 2")
    second = numeric_environment(modules=["helper_a", "numpy", "json"])
    assert second["sources"]["helper_a"] == first["sources"]["helper_a"]
    assert second["sources"]["helper_b"] != first["sources"]["helper_b"]


def test_a_module_that_is_not_there_is_part_of_the_key_too():
    found = numeric_environment(["no-such-package"], modules=["no_such_module"])
    assert found["packages"]["no-such-package"] == "not installed"
    assert found["sources"] == {"no_such_module": "not installed"}


def test_a_training_s_key_depends_on_each_part_of_its_spec_and_on_nothing_else(store):
    code, data = stored(store, "import numpy"), Cid.of(b"data")
    spec: dict[str, Any] = {"code": code, "data": data, "config": {"lr": 1}}
    base = training_computation(store, RunSpec(**spec))
    assert training_computation(store, RunSpec(**spec)).key == base.key
    others = [
        spec | {"code": stored(store, "import numpy  # changed")},
        spec | {"data": Cid.of(b"other")},
        spec | {"config": {"lr": 2}},
        spec | {"seed": 1},
        spec | {"workers": 2},
        spec | {"threads_per_worker": 2},
    ]
    keys = {training_computation(store, RunSpec(**other)).key for other in others}
    assert len(keys | {base.key}) == len(others) + 1


def test_a_run_of_workers_with_other_packages_is_not_remembered_as_the_masters(store, cache):
    data = store_dataset(store, {"train": {"x": np.arange(4.0)}}).cid
    model = stored_model(store, data)  # its environment record says torch 2.6 on machine x
    spec = RunSpec(code=stored(store, "import numpy"), data=data, config={})
    result = {"run": str(store.get_record(model)["run"]), "model": str(model)}
    assert not remember_training(store, cache, training_computation(store, spec), "run-1", result)
    assert cache.entries() == []
