"""Boosters: equal predictions, and files that would end the process are refused before their libraries see them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry import ModelRecord, load_record
from holdfast.registry.models.boosted_trees import check_lightgbm, check_xgboost
from tests.registry.models.conformance import FormatConformance

DATA = """
        import numpy as np

        X = np.random.RandomState(0).rand(200, 4)
        y = (X[:, 0] + X[:, 1] > 1).astype(int)
"""


class TestXgboostBoosters(FormatConformance):
    framework, format, file = "xgboost", "ubjson", "model.ubj"
    packages, extra = ("xgboost",), "models"
    program = (
        DATA
        + """
        def make():
            import xgboost
            booster = xgboost.train(
                {"objective": "binary:logistic", "max_depth": 3}, xgboost.DMatrix(X, y, feature_names=list("abcd")), 5
            )
            booster.set_attr(note="kept")
            return booster

        def outputs(booster):
            import xgboost
            assert booster.feature_names == list("abcd") and booster.attr("note") == "kept"
            return [booster.predict(xgboost.DMatrix(X, feature_names=list("abcd")))]
        """
    )


class TestXgboostEstimators(FormatConformance):
    framework, format, file = "xgboost", "skops", "model.skops"
    packages, extra = ("skops", "xgboost"), "models"
    program = (
        DATA
        + """
        def make():
            import xgboost
            return xgboost.XGBClassifier(n_estimators=5, max_depth=3, learning_rate=0.2).fit(X, y)

        def outputs(model):
            assert model.get_params()["learning_rate"] == 0.2 and model.n_estimators == 5
            return [model.predict(X), model.predict_proba(X), model.feature_importances_, model.classes_]
        """
    )


class TestLightgbmBoosters(FormatConformance):
    framework, format, file = "lightgbm", "text", "model.txt"
    packages, extra = ("lightgbm",), "models"
    program = (
        DATA
        + """
        def make():
            import lightgbm
            params = {"objective": "binary", "num_leaves": 6, "verbose": -1, "deterministic": True, "num_threads": 1}
            return lightgbm.train(params, lightgbm.Dataset(X, y), 5)

        def outputs(booster):
            return [booster.predict(X), booster.predict(X, raw_score=True), booster.feature_importance()]
        """
    )


class TestLightgbmEstimators(FormatConformance):
    framework, format, file = "lightgbm", "skops", "model.skops"
    packages, extra = ("skops", "lightgbm"), "models"
    program = (
        DATA
        + """
        def make():
            import lightgbm
            return lightgbm.LGBMClassifier(n_estimators=5, num_leaves=6, verbose=-1, n_jobs=1, learning_rate=0.2).fit(X, y)

        def outputs(model):
            assert model.get_params()["learning_rate"] == 0.2 and model.n_estimators == 5
            return [model.predict(X), model.predict_proba(X), model.feature_importances_, model.classes_]
        """
    )


def data():
    X = np.random.RandomState(0).rand(300, 4)  # noqa: N806 -- as these libraries call it
    X[:, 3] = np.random.RandomState(1).randint(0, 6, 300)
    return X, ((X[:, 0] > 0.5) ^ (X[:, 3] == 2)).astype(int)


# ------------------------------------------------------------------------------------------------ LightGBM


def lightgbm_model(*, categorical="auto", **params):
    lightgbm = pytest.importorskip("lightgbm")
    X, y = data()  # noqa: N806
    params = {"objective": "binary", "verbose": -1, "num_leaves": 6, "num_threads": 1, **params}
    return lightgbm.train(params, lightgbm.Dataset(X, y, categorical_feature=categorical), 5), X


@pytest.mark.parametrize(
    "params",
    [
        {"boosting": "dart"},
        {"boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.5},
        {"linear_tree": True},
        {"min_data_in_leaf": 299},
        {"objective": "multiclass", "num_class": 2},
        {"max_cat_to_onehot": 1, "min_data_per_group": 1, "cat_smooth": 0.0, "cat_l2": 0.0},
    ],
    ids=str,
)
def test_every_kind_of_lightgbm_s_trees_is_kept(registry, params):
    booster, X = lightgbm_model(categorical=[3], **params)  # noqa: N806
    got = registry.load(registry.store_model(booster))
    np.testing.assert_array_equal(got.predict(X), booster.predict(X))
    assert got.num_trees() == booster.num_trees()


def test_trees_after_the_best_one_are_kept_and_still_not_used(registry):
    booster, X = lightgbm_model()  # noqa: N806
    booster.best_iteration = 2
    got = registry.load(registry.store_model(booster))
    assert (got.num_trees(), got.best_iteration) == (5, 2)
    np.testing.assert_array_equal(got.predict(X), booster.predict(X))
    record = load_record(registry._store, registry.store_model(booster), ModelRecord)
    with pytest.raises(InvalidInput, match="best"):
        registry.load(replace(record, config={}).store(registry._store))


def sized(text: str) -> str:
    """The text with the sizes of its trees as they are now."""
    trees = re.split(r"(?=^Tree=)", text[: text.index("end of trees")], flags=re.MULTILINE)[1:]
    return re.sub(r"tree_sizes=.*", "tree_sizes=" + " ".join(str(len(tree)) for tree in trees), text)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("left_child", "999999 999999 999999 999999 999999"),
        ("left_child", "0 0 0 0 0"),
        ("left_child", "1"),
        ("right_child", "-99 -99 -99 -99 -99"),
        ("split_feature", "999999 999999 999999 999999 999999"),
        ("num_leaves", "100000000"),
        ("num_leaves", "x"),
        ("num_cat", "7"),
        ("leaf_value", "1"),
        ("threshold", "1"),
    ],
)
def test_a_lightgbm_tree_that_leads_out_of_itself_is_refused(line, wrong):
    booster, _ = lightgbm_model()
    text = booster.model_to_string(num_iteration=-1)
    check_lightgbm(text)
    changed = sized(re.sub(rf"^{line}=.*", f"{line}={wrong}", text, flags=re.MULTILINE))
    assert changed != text
    with pytest.raises(ValueError, match=r"tree|int\(\)"):
        check_lightgbm(changed)


def test_a_lightgbm_text_that_jumps_into_a_tree_is_refused():
    text = lightgbm_model()[0].model_to_string(num_iteration=-1)
    for sizes in ("1 2 3 4 5", "99999999", ""):
        with pytest.raises(ValueError, match="trees are not as long"):
            check_lightgbm(re.sub(r"tree_sizes=.*", f"tree_sizes={sizes}", text))


# ------------------------------------------------------------------------------------------------- XGBoost


def ubj(value) -> bytes:
    """UBJSON, as XGBoost writes it."""
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, int):
        return b"L" + value.to_bytes(8, "big", signed=True)
    if isinstance(value, str):
        return b"SL" + len(value.encode()).to_bytes(8, "big") + value.encode()
    if isinstance(value, list):
        return b"[" + b"".join(ubj(each) for each in value) + b"]"
    return b"{" + b"".join(ubj(key)[1:] + ubj(each) for key, each in value.items()) + b"}"


def xgboost_tree(**changes):
    tree = {
        "left_children": [1, -1, -1],
        "right_children": [2, -1, -1],
        "split_indices": [3, 0, 0],
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "tree_param": {"num_feature": "4", "num_nodes": "3"},
    }
    return {"learner": {"gradient_booster": {"model": {"trees": [{**tree, **changes}]}}}}


def test_an_xgboost_tree_that_leads_out_of_itself_is_refused():
    check_xgboost(ubj(xgboost_tree()))
    wrong: tuple[dict[str, Any], ...] = (
        {"left_children": [3, -1, -1]},
        {"left_children": [0, -1, -1]},
        {"left_children": [-2, -1, -1]},
        {"right_children": [1, -1, -1]},
        {"right_children": [2, -1]},
        {"left_children": []},
        {"left_children": 5},
        {"split_indices": [4, 0, 0]},
        {"split_indices": [-1, 0, 0]},
        {"tree_param": {"num_feature": "4", "num_nodes": "4"}},
        {"tree_param": {}},
        {"categories_segments": [0], "categories_sizes": [1]},
        {"categories_nodes": [3]},
    )
    for changes in wrong:
        with pytest.raises(ValueError, match="tree"):
            check_xgboost(ubj(xgboost_tree(**changes)))


def test_two_meanings_of_one_name_are_refused():
    inside = ubj(xgboost_tree())
    with pytest.raises(ValueError, match="twice"):
        check_xgboost(inside[:-1] + inside[1:])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | st.binary(max_size=40).map(lambda tail: ubj(xgboost_tree())[:-20] + tail))
def test_no_bytes_get_the_reader_of_ubjson_into_trouble(content):
    with pytest.raises(ValueError, match=r"."):
        check_xgboost(content)


@pytest.mark.parametrize(
    "params",
    [
        {"booster": "dart"},
        {"booster": "gblinear"},
        {"objective": "multi:softprob", "num_class": 2},
        {"tree_method": "exact", "gamma": 2.0},
        {"grow_policy": "lossguide", "max_leaves": 3},
        {"min_child_weight": 1e9},
    ],
    ids=str,
)
def test_every_kind_of_xgboost_s_trees_is_kept(registry, params):
    xgboost = pytest.importorskip("xgboost", reason="the package xgboost is not installed")
    X, y = data()  # noqa: N806
    booster = xgboost.train(params, xgboost.DMatrix(X, y), 5)
    got = registry.load(registry.store_model(booster))
    np.testing.assert_array_equal(got.predict(xgboost.DMatrix(X)), booster.predict(xgboost.DMatrix(X)))


def test_a_forged_booster_in_an_estimator_is_refused_as_well(registry, store):
    pytest.importorskip("skops")
    lightgbm = pytest.importorskip("lightgbm")
    X, y = data()  # noqa: N806
    model = lightgbm.LGBMClassifier(n_estimators=2, num_leaves=3, verbose=-1, n_jobs=1).fit(X, y)
    record = load_record(store, registry.store_model(model), ModelRecord)
    text = bytes(store.open(store.resolve(f"{record.files}/model.skops")))
    forged = text.replace(b"left_child=1", b"left_child=9", 1).replace(b"left_child=-1", b"left_child=99", 1)
    assert forged != text
    with pytest.raises(Corrupt):
        registry.load(replace(record, files=store.add_files({"model.skops": forged})).store(store))


def test_a_booster_that_was_never_trained_is_refused(registry):
    xgboost = pytest.importorskip("xgboost", reason="the package xgboost is not installed")
    with pytest.raises(InvalidInput, match="is it trained"):
        registry.store_model(xgboost.Booster())
