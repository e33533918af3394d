"""scikit-learn's estimators: equal predictions, equal bytes, and nothing run that a file names."""

from __future__ import annotations

import io
import json
import os
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from holdfast.errors import Corrupt, Denied, InvalidInput
from holdfast.registry import ModelRecord, load_record
from tests.registry.models.conformance import FormatConformance, assert_equal

skops_io = pytest.importorskip("skops.io", reason="the package skops is not installed")


class TestSklearnModels(FormatConformance):
    """One pipeline of most kinds of parts: each process more costs the time to import scikit-learn."""

    framework, format, file = "sklearn", "skops", "model.skops"
    packages, extra = ("skops", "sklearn"), "models"
    program = """
        import numpy as np

        rows = np.random.RandomState(0).rand(80, 4)
        y = (rows[:, 0] + rows[:, 1] > 1).astype(int)
        X = np.column_stack([["the cat sat", "a dog ran far", "birds fly in the sky", "no cat"] * 20, rows.astype(object)])

        def make():
            from sklearn.compose import ColumnTransformer
            from sklearn.ensemble import (
                GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
            )
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.neighbors import KNeighborsClassifier
            from sklearn.pipeline import make_pipeline
            from sklearn.preprocessing import StandardScaler
            from sklearn.svm import SVC

            words = TfidfVectorizer(stop_words=["the", "a", "in", "no"], ngram_range=(1, 2))
            columns = ColumnTransformer(
                [("w", words, 0), ("s", StandardScaler(), [1, 2])], remainder="passthrough", sparse_threshold=0
            )
            parts = [
                ("forest", RandomForestClassifier(4, random_state=0)),
                ("boosted", GradientBoostingClassifier(n_estimators=3, random_state=0)),
                ("binned", HistGradientBoostingClassifier(max_iter=3, random_state=0)),
                ("near", KNeighborsClassifier(3, algorithm="kd_tree")),
                ("ball", KNeighborsClassifier(3, algorithm="ball_tree")),
                ("vectors", SVC()),
                ("line", LogisticRegression()),
            ]
            return make_pipeline(columns, VotingClassifier(parts)).fit(X, y)

        def outputs(model):
            return [model.predict(X), *(np.asarray(part.predict(model[:-1].transform(X))) for part in model[-1].estimators_)]
    """


def test_a_search_comes_back_equal_with_its_scores(registry):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    X = np.random.RandomState(0).rand(40, 3)  # noqa: N806
    search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, scoring="f1", cv=3).fit(X, X[:, 0] > 0.5)
    got = registry.load(registry.store_model(search))
    np.testing.assert_array_equal(got.predict_proba(X), search.predict_proba(X))
    np.testing.assert_array_equal(got.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"])
    assert got.score(X, X[:, 0] > 0.5) == search.score(X, X[:, 0] > 0.5)


def test_scikit_learn_s_and_numpy_s_own_parts_are_made_again_without_asking(registry):
    import pandas as pd
    from sklearn.compose import ColumnTransformer, make_column_selector
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import FunctionTransformer, StandardScaler

    X = np.random.RandomState(0).rand(40, 3)  # noqa: N806 -- as scikit-learn calls it
    y = X[:, 0] > 0.5
    named = pd.DataFrame({"a": X[:, 0], "b": ["x", "y"] * 20})
    sorts = np.column_stack([np.arange(40) % 3, X])
    scaler = StandardScaler()
    for model, data in (
        (KNeighborsClassifier(3, algorithm="ball_tree", p=3).fit(X, y), X),
        (
            KNeighborsClassifier(3, algorithm="ball_tree", p=3, metric_params={"w": np.arange(3.0)}).fit(
                X, y
            ),
            X,
        ),
        (HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]).fit(sorts, y), sorts),
        (ColumnTransformer([("s", scaler, make_column_selector("a"))]).fit(named), named),
        (
            ColumnTransformer([("s", scaler, make_column_selector(dtype_include=np.number))]).fit(named),
            named,
        ),
        (FunctionTransformer(np.clip, kw_args={"a_min": 0, "a_max": 0.5}).fit(X), X),
    ):
        got = registry.load(registry.store_model(model))
        results = [
            (each.predict if hasattr(each, "predict") else each.transform)(data) for each in (got, model)
        ]
        assert_equal(results[:1], results[1:])


def fitted():
    """An instance of each of scikit-learn's estimators that takes plain numbers, fitted."""
    from sklearn.utils import all_estimators
    from sklearn.utils._test_common.instance_generator import _construct_instances

    X = np.abs(np.random.RandomState(0).rand(40, 5))  # noqa: N806 -- as scikit-learn calls it
    y = (X[:, 0] > 0.5).astype(int)
    for name, cls in all_estimators():
        if name in ("Birch", "FrozenEstimator") or "Halving" in name:
            continue
        estimator = next(iter(_construct_instances(cls)))
        try:
            yield name, estimator.fit(X, y), X
        except (AttributeError, IndexError, TypeError, ValueError):
            continue  # it takes something else


def test_nearly_every_estimator_of_scikit_learn_comes_back_equal_and_with_its_cid(registry):
    rounded = {
        "LabelPropagation",
        "LabelSpreading",
    }  # another layout in memory, which a pickle changes as well
    drawing = {"DummyClassifier"}
    seen = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, estimator, X in fitted():  # noqa: N806
            cid = registry.store_model(estimator)
            got = registry.load(cid)
            assert registry.store_model(got) == cid, name
            for method in ("predict", "transform", "predict_proba", "decision_function"):
                if not hasattr(estimator, method) or name in drawing:
                    continue
                try:
                    expected = getattr(estimator, method)(X)
                except (AttributeError, ValueError):
                    continue  # it takes something else
                found = getattr(got, method)(X)
                dense = [each.toarray() if hasattr(each, "toarray") else each for each in (found, expected)]
                if name in rounded:
                    np.testing.assert_allclose(dense[0], dense[1], rtol=1e-12)
                else:
                    assert_equal([dense[0]], [dense[1]])
            seen += 1
    assert seen > 150


def test_birch_is_refused_when_it_is_stored_and_not_when_it_is_needed(registry, names):
    from sklearn.cluster import Birch

    with pytest.raises(InvalidInput, match="Birch can't be stored"):
        registry.register("b", Birch(n_clusters=None).fit(np.random.RandomState(0).rand(9, 2)))
    assert names.entries() == []


def test_an_estimator_with_a_function_that_nobody_else_has_is_refused(registry):
    from sklearn.preprocessing import FunctionTransformer

    with pytest.raises(InvalidInput, match="top level"):
        registry.store_model(FunctionTransformer(lambda x: x).fit([[1.0]]))


def test_a_type_of_one_s_own_is_made_again_only_where_it_is_trusted(registry, module):
    own = module(
        "own_estimator",
        """
        from sklearn.base import BaseEstimator

        class Doubling(BaseEstimator):
            def fit(self, X, y=None):
                self.factor_ = 2
                return self

            def predict(self, X):
                return [x * self.factor_ for x in X]
        """,
    )
    cid = registry.store_model(own.Doubling().fit([1]))
    with pytest.raises(Denied, match=r"trusted_types=\['own_estimator.Doubling'\]"):
        registry.load(cid)
    assert registry.load(cid, trusted_types=["own_estimator.Doubling"]).predict([2]) == [4]


# ----------------------------------------------------------------------------------------------- what bytes tell


def parts(registry, cid):
    store = registry._store
    record = load_record(store, cid, ModelRecord)
    with zipfile.ZipFile(io.BytesIO(bytes(store.open(store.resolve(f"{record.files}/model.skops"))))) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_a_forest_s_file_does_not_give_away_what_was_in_memory(registry):
    """Between the fields of a tree's nodes is room that nobody writes to."""
    from sklearn.tree import DecisionTreeClassifier

    X = np.random.RandomState(0).rand(100, 3)  # noqa: N806
    tree = DecisionTreeClassifier(random_state=0).fit(X, X[:, 0] > X[:, 1])
    found = [
        (np.load(io.BytesIO(part)), part)
        for name, part in parts(registry, registry.store_model(tree)).items()
        if name.endswith(".npy")
    ]
    ((nodes, part),) = [pair for pair in found if pair[0].dtype.names]
    raw = np.frombuffer(part[-nodes.nbytes :], np.uint8).reshape(len(nodes), nodes.dtype.itemsize)
    used = np.zeros(nodes.dtype.itemsize, bool)
    for name in nodes.dtype.names:
        kind, at = nodes.dtype.fields[name][:2]
        used[at : at + kind.itemsize] = True
    assert not used.all()
    assert not raw[:, ~used].any()


def test_no_address_is_in_a_file(registry):
    from sklearn.feature_extraction.text import CountVectorizer

    words = ["one", "two"]
    schema = parts(registry, registry.store_model(CountVectorizer(stop_words=words).fit(["three four"])))[
        "schema.json"
    ]
    assert str(id(words)).encode() not in schema


# -------------------------------------------------------------------------------------------------- attacks


def forged(registry, schema, files=None):
    """The CID of a model whose file says ``schema``."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        for name, data in (files or {}).items():
            file.writestr(name, data)
        file.writestr("schema.json", json.dumps({"protocol": 2, "_skops_version": "0.16.0", **schema}))
    store = registry._store
    return ModelRecord(
        framework="sklearn", format="skops", files=store.add_files({"model.skops": written.getvalue()})
    ).store(store)


def node(name, loader, **more):
    module, _, kind = name.rpartition(".")
    return {"__module__": module, "__class__": kind, "__loader__": loader, **more}


def value(content):
    return {
        "__class__": "str",
        "__module__": "builtins",
        "__loader__": "JsonNode",
        "content": json.dumps(content),
    }


def several(kind, *content):
    return node(f"builtins.{kind}", f"{kind.title()}Node", content=list(content))


def mapping(name="builtins.dict", **content):
    types = several("list", *[node("builtins.str", "TypeNode") for _ in content])
    return node(name, "DictNode", content=content, key_types=types)


def attacks(path):
    run = value(f"touch {path}")
    yield "function", node("os.system", "FunctionNode")
    yield "type", node("subprocess.Popen", "TypeNode")
    yield "object", node("subprocess.Popen", "ObjectNode", content=mapping())
    yield "constructor", node("os.system", "ConstructorFromReduceNode", content=several("tuple", run))
    yield (
        "open",
        node("builtins.open", "ConstructorFromReduceNode", content=several("tuple", value(path), value("w"))),
    )
    yield (
        "io",
        node("io.FileIO", "ConstructorFromReduceNode", content=several("tuple", value(path), value("w"))),
    )
    yield (
        "partial",
        node(
            "functools.partial",
            "PartialNode",
            content={
                "func": node("os.system", "FunctionNode"),
                "args": several("tuple", run),
                "kwds": mapping(),
                "namespace": mapping(),
            },
        ),
    )
    yield (
        "method",
        node(
            "builtins.str", "MethodNode", content={"obj": node("builtins.str", "TypeNode"), "func": "format"}
        ),
    )
    yield "operator", node("operator.methodcaller", "OperatorFuncNode", attrs=several("tuple", run))
    yield (
        "joblib",
        node("joblib.numpy_pickle.load", "ConstructorFromReduceNode", content=several("tuple", value(path))),
    )
    yield "memory", node("joblib.memory.Memory", "ObjectNode", content=mapping())
    yield (
        "pandas",
        node(
            "pandas.core.computation.eval.eval",
            "ConstructorFromReduceNode",
            content=several("tuple", value("1")),
        ),
    )
    yield "numpy", node("numpy.load", "FunctionNode")
    yield "fromfile", node("numpy.memmap", "ConstructorFromReduceNode", content=several("tuple", value(path)))
    yield "dataset", node("sklearn.datasets._base.load_files", "FunctionNode")
    yield "svmlight", node("sklearn.datasets._svmlight_format_io.load_svmlight_file", "FunctionNode")
    yield "cython", node("sklearn.tree._tree.Tree", "ObjectNode", content=mapping())
    yield "module", node("sklearn.conftest.BaseEstimator", "ObjectNode", content=mapping())
    yield "import", node("antigravity.fly", "TypeNode")
    yield (
        "keys",
        node(
            "builtins.dict",
            "DictNode",
            content={f"touch {path}": value(1)},
            key_types=several("list", node("os.system", "FunctionNode")),
        ),
    )
    yield "list", node("subprocess.Popen", "ListNode", content=[value("touch"), value(path)])
    yield (
        "array",
        node("os.system", "NdArrayNode", type="json", content=[run], shape=several("tuple", value(1))),
    )
    yield "bunch", node("sklearn.utils._bunch.Bunch", "ConstructorFromReduceNode", content=several("tuple"))
    yield (
        "booster",
        node(
            "lightgbm.basic.Booster",
            "ConstructorFromReduceNode",
            content=several("tuple", value(None), value(None), value(path)),
        ),
    )
    yield (
        "estimator",
        node(
            "sklearn.metrics._scorer._Scorer",
            "LossNode",
            content=mapping(),
            __reduce__={"args": several("tuple", run)},
        ),
    )
    yield (
        "factory",
        node(
            "collections.defaultdict",
            "DefaultDictNode",
            content={"main": mapping(), "default_factory": node("os.abort", "TypeNode")},
        ),
    )
    yield (
        "generator",
        node(
            "numpy.random._generator.Generator",
            "RandomGeneratorNode",
            content={"bit_generator": mapping(bit_generator=value("seed")), "seed_seq": mapping()},
        ),
    )
    yield (
        "transformer",
        node(
            "sklearn.preprocessing._function_transformer.FunctionTransformer",
            "ObjectNode",
            content=mapping(func=node("os.system", "FunctionNode"), _sklearn_version=value("1.6")),
        ),
    )


@pytest.mark.parametrize("label", [label for label, _ in attacks("x")])
def test_nothing_that_a_file_names_is_run(registry, tmp_path, label):
    path = tmp_path / "touched"
    schema = dict(attacks(str(path)))[label]
    cid = forged(registry, schema)
    with pytest.raises(Denied, match="not known to be harmless"):
        registry.load(cid)
    # The same, hidden in an estimator that is known, and in an array of objects.
    inside = mapping(hidden=schema, _sklearn_version=value("1.6"))
    estimator = node("sklearn.preprocessing._data.StandardScaler", "ObjectNode", content=inside)
    array = node(
        "numpy.ndarray", "NdArrayNode", type="json", content=[schema], shape=several("tuple", value(1))
    )
    for wrapped in (estimator, array):
        with pytest.raises(Denied):
            registry.load(forged(registry, wrapped))
    assert not path.exists()


def test_an_object_array_that_is_a_pickle_is_not_opened(registry, tmp_path):
    touched = tmp_path / "touched"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {touched}",)

    data = io.BytesIO()
    np.save(data, np.array([Evil()], dtype=object), allow_pickle=True)
    schema = node("numpy.ndarray", "NdArrayNode", type="numpy", file="0.npy")
    with pytest.raises(Corrupt, match="can't be read"):
        registry.load(forged(registry, schema, {"0.npy": data.getvalue()}))
    assert not touched.exists()


def test_a_second_meaning_behind_an_id_is_refused(registry):
    """skops takes the first node of an id for all of them; what is looked at would not be what is made."""
    first, second = value(1) | {"__id__": 7}, value(2) | {"__id__": 7}
    with pytest.raises(Corrupt, match="belongs to two objects"):
        registry.load(forged(registry, several("list", first, second)))


@pytest.mark.parametrize(
    "schema",
    [
        {"protocol": 0},
        {"protocol": 1},
        {"protocol": True},
        {"protocol": 10**6},
        {"protocol": None},
        {"protocol": "2"},
    ],
    ids=str,
)
def test_files_of_protocols_that_nobody_wrote_with_holdfast_are_refused(registry, schema):
    with pytest.raises(Corrupt):
        registry.load(forged(registry, value(1) | schema))


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(registry):
    store, written = registry._store, io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.npy", b"\0" * 10**7)
        file.writestr("schema.json", json.dumps(value(1) | {"protocol": 2}))
    record = ModelRecord(
        framework="sklearn", format="skops", files=store.add_files({"model.skops": written.getvalue()})
    )
    with pytest.raises(Corrupt, match="compressed"):
        registry.load(record.store(store))


def test_a_schema_that_is_nested_without_end_is_refused(registry):
    deep = json.dumps(several("list", value(1))).replace(json.dumps(value(1)), "INSIDE")
    text = "[]"
    for _ in range(3000):
        text = deep.replace("INSIDE", text)
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as file:
        file.writestr("schema.json", '{"protocol": 2, "hidden": ' + text + "}")
    files = registry._store.add_files({"model.skops": written.getvalue()})
    record = ModelRecord(framework="sklearn", format="skops", files=files)
    with pytest.raises(Corrupt):
        registry.load(record.store(registry._store))


def changed(registry, estimator, change):
    """The CID of the estimator's model after ``change(arrays, schema)``."""
    cid = registry.store_model(estimator)
    found = parts(registry, cid)
    schema = json.loads(found.pop("schema.json"))
    arrays = {name: np.load(io.BytesIO(data)) for name, data in found.items() if name.endswith(".npy")}
    change(arrays, schema)
    for name, array in arrays.items():
        data = io.BytesIO()
        np.save(data, array)
        found[name] = data.getvalue()
    return forged(registry, schema, found)


def set_field(field, wrong):
    def change(arrays, schema):
        del schema
        (nodes,) = [array for array in arrays.values() if field in (array.dtype.names or ())]
        nodes[field] = wrong

    return change


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("left_child", 10**6),
        ("right_child", 10**6),
        ("left_child", 0),
        ("left_child", -5),
        ("feature", 10**6),
        ("feature", -9),
    ],
)
def test_a_tree_that_leads_out_of_itself_is_refused_before_it_ends_the_process(registry, field, wrong):
    from sklearn.tree import DecisionTreeClassifier

    X = np.random.RandomState(0).rand(50, 3)  # noqa: N806
    tree = DecisionTreeClassifier(max_depth=3, random_state=0).fit(X, X[:, 0] > X[:, 1])
    with pytest.raises(Corrupt, match="tree"):
        registry.load(changed(registry, tree, set_field(field, wrong)))


@pytest.mark.parametrize(
    ("field", "wrong"), [("left", 10**6), ("right", 0), ("feature_idx", -1), ("is_leaf", 0)]
)
def test_a_boosted_tree_that_leads_out_of_itself_is_refused(registry, field, wrong):
    from sklearn.ensemble import HistGradientBoostingClassifier

    X = np.random.RandomState(0).rand(60, 3)  # noqa: N806
    model = HistGradientBoostingClassifier(max_iter=1, random_state=0).fit(X, X[:, 0] > X[:, 1])
    with pytest.raises(Corrupt, match="tree"):
        registry.load(changed(registry, model, set_field(field, wrong)))


@pytest.mark.parametrize("field", ["idx_start", "idx_end"])
def test_neighbours_that_lead_out_of_their_data_are_refused(registry, field):
    from sklearn.neighbors import KNeighborsClassifier

    X = np.random.RandomState(0).rand(60, 3)  # noqa: N806
    model = KNeighborsClassifier(algorithm="kd_tree", leaf_size=5).fit(X, X[:, 0] > X[:, 1])
    with pytest.raises(Corrupt, match="neighbours"):
        registry.load(changed(registry, model, set_field(field, 10**6)))


def test_weights_of_a_distance_that_are_fewer_than_the_features_are_refused(registry):
    from sklearn.neighbors import KNeighborsClassifier

    X = np.random.RandomState(0).rand(40, 3)  # noqa: N806
    weighted = {"algorithm": "ball_tree", "p": 3, "metric_params": {"w": np.arange(7.0, 10.0)}}
    model = KNeighborsClassifier(**weighted).fit(X, X[:, 0] > X[:, 1])

    def shorten(arrays, schema):
        del schema
        short = {name: array[:1] for name, array in arrays.items() if array.shape == (3,) and array[0] == 7}
        assert short
        arrays.update(short)

    with pytest.raises(Corrupt, match="neighbours"):
        registry.load(changed(registry, model, shorten))


def test_a_type_is_not_called_by_a_partial(registry):
    parts_of_it = {"args": several("tuple"), "kwds": mapping(), "namespace": mapping()}
    func = node("numpy.number", "TypeNode")
    cid = forged(registry, node("functools.partial", "PartialNode", content={"func": func, **parts_of_it}))
    with pytest.raises(Corrupt, match="is no function"):
        registry.load(cid)


def test_the_manifest_s_other_facts_do_not_matter_for_what_is_checked(registry, store):
    cid = forged(registry, node("os.system", "FunctionNode"))
    record = load_record(store, cid, ModelRecord)
    for framework in ("sklearn", "lightgbm", "xgboost"):
        with pytest.raises(Denied):
            registry.load(replace(record, framework=framework).store(store))
