"""Which models have seen a row: none is left out, and none is blamed for data that it was not made from."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.errors import InvalidInput, NotFound
from holdfast.registry.graph.made_from import MadeFrom
from holdfast.registry.graph.training_sets import TrainingSet, models_with_row, training_sets
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.datasets.versions import append, filter_rows
from tests.registry.lineages import stored_conversion, stored_index, stored_model


@pytest.fixture
def made_from(database, store):
    return MadeFrom(database, store)


def found(store, made_from, row, **options):
    sets = training_sets(made_from)
    return {(one.model, one.itself) for one in models_with_row(store, sets, row, **options)}


def test_models_of_the_versions_with_the_row_are_found_and_no_others(store, names, made_from):
    first = store_dataset(store, {"x": np.arange(10), "y": np.arange(10) * 2})
    more = append(first, {"x": [100], "y": [200]})
    less = filter_rows(more, "x < 5")
    models = [stored_model(store, data.cid) for data in (first, more, less)]
    for number, model in enumerate(models):
        names.register("model", f"m{number}", None, model)
    assert found(store, made_from, {"x": 7}) == {(models[0], True), (models[1], True)}
    assert found(store, made_from, {"x": 100}) == {(models[1], True)}
    assert found(store, made_from, {"x": 3, "y": 6}) == {(model, True) for model in models}
    assert found(store, made_from, {"x": 3, "y": 7}) == set()


def test_a_model_that_was_tuned_from_one_that_saw_the_row_is_found_as_such(store, names, made_from):
    private = store_dataset(store, {"x": np.arange(10)})
    public = store_dataset(store, {"x": np.arange(100, 110)})
    base = stored_model(store, private.cid)
    tuned = stored_model(store, public.cid, parent=base)
    again = stored_model(store, private.cid, parent=tuned, seed=3)
    names.register("model", "again", None, again)
    assert found(store, made_from, {"x": 5}) == {(base, True), (tuned, False), (again, True)}
    assert found(store, made_from, {"x": 105}) == {(tuned, True), (again, False)}


def test_a_conversion_that_was_compared_on_the_row_and_an_index_of_it_are_no_training(
    store, names, made_from
):
    trained = store_dataset(store, {"x": np.arange(10)})
    searched = store_dataset(store, {"x": np.arange(50, 60)})
    model = stored_model(store, trained.cid)
    conversion = stored_conversion(store, model, searched.cid)
    names.register("index", "i", None, stored_index(store, model, conversion, searched.cid))
    assert found(store, made_from, {"x": 55}) == set()
    assert [one.dataset for one in training_sets(made_from)] == [trained.cid]


def test_the_split_that_is_asked_for_is_the_one_that_counts(store, names, made_from):
    data = store_dataset(store, {"train": {"x": np.arange(10)}, "test": {"x": np.arange(10, 20)}})
    model = stored_model(store, data.cid)
    names.register("model", "m", None, model)
    assert found(store, made_from, {"x": 15}) == {(model, True)}
    assert found(store, made_from, {"x": 15}, split="train") == set()
    assert found(store, made_from, {"x": 15}, split="test") == {(model, True)}


def test_other_kinds_of_data_are_passed_over_and_a_column_that_none_has_is_an_error(store, names, made_from):
    names.register("model", "a", None, stored_model(store, store_dataset(store, {"text": ["a", "b"]}).cid))
    assert_model = stored_model(store, store_dataset(store, {"x": np.arange(3)}).cid)
    names.register("model", "b", None, assert_model)
    assert found(store, made_from, {"x": 1}) == {(assert_model, True)}
    with pytest.raises(InvalidInput, match="nothing_has_this"):
        found(store, made_from, {"nothing_has_this": 1})


def test_a_split_that_none_has_is_an_error_and_no_answer(store, names, made_from):
    """Taken for "no model has seen it", a misspelt split would be a wrong answer to a question of privacy."""
    for rows in ({"train": {"x": [1, 2]}, "test": {"x": [3]}}, {"valid": {"x": [4]}}, {"other": {"y": [4]}}):
        model = stored_model(store, store_dataset(store, rows).cid)
        names.register("model", next(iter(rows)), None, model)
    assert found(store, made_from, {"x": 4}, split="train") == set()
    with pytest.raises(InvalidInput, match=r"none has a split 'trian': they have test, train, valid$"):
        found(store, made_from, {"x": 1}, split="trian")


def test_what_could_be_in_no_dataset_is_told_with_the_dataset_that_comes_nearest(store, names, made_from):
    numbers = store_dataset(store, {"x": np.arange(3, dtype=np.int8), "y": np.arange(3)})
    for number, data in enumerate(
        (numbers, store_dataset(store, {"z": ["a"]}), store_dataset(store, {"t": ["b"]}))
    ):
        names.register("model", f"m{number}", None, stored_model(store, data.cid))
    with pytest.raises(
        InvalidInput, match=f"300 can't be a value of 'x', which is int8.*in the dataset {numbers.cid}"
    ):
        found(store, made_from, {"x": 300})
    with pytest.raises(
        InvalidInput, match="has a column 'patient': they have t, x, y, z; datasets that no model was"
    ):
        found(store, made_from, {"patient": 1})
    with pytest.raises(InvalidInput, match="has all of the columns x, z: they have"):
        found(store, made_from, {"x": 1, "z": "a"})


def test_a_dataset_whose_columns_hold_something_else_does_not_end_the_search(store, names, made_from):
    models = []
    for values in (np.array([0.5], np.float16), ["text"], np.array([0.5])):
        models.append(stored_model(store, store_dataset(store, {"x": values}).cid))
        names.register("model", f"m{len(models)}", None, models[-1])
    assert found(store, made_from, {"x": 0.5}) == {(models[0], True), (models[2], True)}
    assert found(store, made_from, {"x": "text"}) == {(models[1], True)}


def test_a_dataset_whose_rows_are_gone_is_never_silently_taken_for_one_without_the_row(
    store, names, made_from, tmp_path
):
    from contextlib import closing

    from holdfast.storage.content import ContentStore
    from holdfast.storage.local.local_store import LocalStore

    data = store_dataset(store, {"x": np.arange(10)})
    model = stored_model(store, data.cid)
    names.register("model", "m", None, model)
    sets = training_sets(made_from)
    with closing(LocalStore(tmp_path / "less")) as blocks:
        blocks.put_many([(data.cid, bytes(store.blocks.get(data.cid)))])
        less = ContentStore(blocks)
        with pytest.raises(NotFound):
            list(models_with_row(less, sets, {"x": 5}))
        told = []
        assert (
            list(
                models_with_row(less, sets, {"x": 5}, on_unread=lambda cid, error: told.append((cid, error)))
            )
            == []
        )
    assert [cid for cid, _ in told] == [data.cid]


def test_a_training_set_that_went_over_the_wire_is_the_same(store, names, made_from):
    names.register("model", "m", None, stored_model(store, store_dataset(store, {"x": [1]}).cid))
    for one in training_sets(made_from):
        assert TrainingSet.from_json(one.to_json()) == one
