"""Which types a stored estimator may have in it without anybody being asked, and what must hold for their arrays.

A type is here only if making it again sets attributes, and nothing else, and if its methods compute. Exact names and exact ways
of making: a file could name a function of scikit-learn that opens files, a module that does something when it is imported, or call
a constructor with a path.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from holdfast.registry.models.boosted_trees import check_lightgbm, check_xgboost
from holdfast.registry.models.skops_files import type_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from holdfast.registry.models.skops_files import SkopsFile

__all__ = ["check_arrays", "is_harmless"]

_TREE = "sklearn.tree._tree.Tree"
_PREDICTOR = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_NEIGHBOURS = ("sklearn.neighbors._kd_tree.KDTree", "sklearn.neighbors._ball_tree.BallTree")

_MINKOWSKI = "sklearn.metrics._dist_metrics.MinkowskiDistance64"
_LIGHTGBM, _XGBOOST = "lightgbm.basic.Booster", "xgboost.core.Booster"

_OBJECTS: Mapping[str, Collection[str]] = {
    "lightgbm.basic": ["Booster"],
    "lightgbm.sklearn": ["LGBMClassifier", "LGBMModel", "LGBMRanker", "LGBMRegressor"],
    "scipy.interpolate._bsplines": ["BSpline"],
    "sklearn._loss.loss": ["HalfTweedieLoss", "HalfTweedieLossIdentity"],
    "sklearn.calibration": ["_CalibratedClassifier", "_SigmoidCalibration", "_TemperatureScaling"],
    "sklearn.cluster._bisect_k_means": ["_BisectingTree"],
    "sklearn.compose._column_transformer": ["_RemainderColsList", "make_column_selector"],
    "sklearn.ensemble._hist_gradient_boosting.predictor": ["TreePredictor"],
    "sklearn.gaussian_process._gpc": ["_BinaryGaussianProcessClassifierLaplace"],
    "sklearn.gaussian_process.kernels": [
        "CompoundKernel",
        "ConstantKernel",
        "DotProduct",
        "ExpSineSquared",
        "Exponentiation",
        "Matern",
        "PairwiseKernel",
        "Product",
        "RBF",
        "RationalQuadratic",
        "Sum",
        "WhiteKernel",
    ],
    "sklearn.metrics._dist_metrics": [
        "ChebyshevDistance64",
        "EuclideanDistance64",
        "ManhattanDistance64",
        "MinkowskiDistance64",
    ],
    "sklearn.metrics._scorer": ["_CurveScorer", "_MultimetricScorer", "_PassthroughScorer", "_Scorer"],
    "sklearn.model_selection._split": [
        "GroupKFold",
        "GroupShuffleSplit",
        "KFold",
        "LeaveOneGroupOut",
        "LeaveOneOut",
        "LeavePGroupsOut",
        "LeavePOut",
        "PredefinedSplit",
        "RepeatedKFold",
        "RepeatedStratifiedKFold",
        "ShuffleSplit",
        "StratifiedGroupKFold",
        "StratifiedKFold",
        "StratifiedShuffleSplit",
        "TimeSeriesSplit",
    ],
    "sklearn.multiclass": ["_ConstantPredictor"],
    "sklearn.neighbors._ball_tree": ["BallTree"],
    "sklearn.neighbors._kd_tree": ["KDTree"],
    "sklearn.neural_network._stochastic_optimizers": ["AdamOptimizer", "SGDOptimizer"],
    "sklearn.utils._metadata_requests": ["MetadataRequest", "MethodMetadataRequest"],
    "xgboost.core": ["Booster"],
    "xgboost.sklearn": [
        "XGBClassifier",
        "XGBModel",
        "XGBRanker",
        "XGBRegressor",
        "XGBRFClassifier",
        "XGBRFRegressor",
    ],
}
_FUNCTIONS: Mapping[str, Collection[str]] = {
    "numpy": ["clip", "mean", "median", "max", "min", "nan_to_num", "round"],
    "scipy._lib.array_api_compat.numpy._aliases": ["asarray"],
    "sklearn.cluster._kmeans": ["_kmeans_single_elkan", "_kmeans_single_lloyd"],
    "sklearn.feature_selection._mutual_info": ["mutual_info_classif", "mutual_info_regression"],
    "sklearn.feature_selection._univariate_selection": ["chi2", "f_classif", "f_regression", "r_regression"],
    "sklearn.metrics._classification": [
        "accuracy_score",
        "balanced_accuracy_score",
        "brier_score_loss",
        "f1_score",
        "fbeta_score",
        "jaccard_score",
        "log_loss",
        "matthews_corrcoef",
        "precision_score",
        "recall_score",
    ],
    "sklearn.utils.validation": ["check_array"],
    "sklearn.metrics._ranking": ["average_precision_score", "roc_auc_score", "top_k_accuracy_score"],
    "sklearn.metrics._regression": [
        "explained_variance_score",
        "max_error",
        "mean_absolute_error",
        "mean_absolute_percentage_error",
        "mean_squared_error",
        "mean_squared_log_error",
        "median_absolute_error",
        "r2_score",
        "root_mean_squared_error",
        "root_mean_squared_log_error",
    ],
}
_MADE = {f"{module}.{name}": "ObjectNode" for module, names in _OBJECTS.items() for name in names} | {
    f"{module}.{name}": "FunctionNode" for module, names in _FUNCTIONS.items() for name in names
}
_OTHERS = {
    "collections.OrderedDict": ("DictNode", "TypeNode"),
    "functools.partial": ("PartialNode",),
    "numpy.dtype": ("DTypeNode",),
    "numpy.floating": ("TypeNode",),
    "numpy.integer": ("TypeNode",),
    "numpy.number": ("TypeNode",),
    "sklearn.utils._bunch.Bunch": ("DictNode",),
    _TREE: ("TreeNode",),
} | {
    f"scipy.sparse._{kind}.{kind}_{form}": ("SparseMatrixNode", "TypeNode")
    for kind in ("bsr", "coo", "csc", "csr", "dia")
    for form in ("array", "matrix")
}
_LOADERS = {name: (loader,) for name, loader in _MADE.items()} | _OTHERS


def is_harmless(name: str, loaders: Collection[str]) -> bool:
    """Whether a type, by full name, may be made in these ways without asking; nothing is imported to tell."""
    return bool(loaders) and set(loaders) <= set(_LOADERS.get(name, ()))


def check_arrays(file: SkopsFile) -> None:
    """Refuse arrays of indices that point out of themselves: scikit-learn follows them without looking.

    Raises:
        IndexError: An array is too small for what stands in another.
        KeyError: A part is missing.
        ValueError: An index leads nowhere, or back.
    """
    for node in file.nodes():
        name = type_of(node)
        if node["__loader__"] == "TreeNode":
            _check_tree(file, node)
        elif name == _PREDICTOR:
            _check_predictor(file, node["content"]["content"])
        elif name == _LIGHTGBM:
            _check_lightgbm(node["content"]["content"])
        elif name == _XGBOOST:
            check_xgboost(file.part(node["content"]["content"]["handle"]).getvalue())
        elif name in _NEIGHBOURS:
            _check_neighbours(file, node["content"]["content"])
        elif node["__loader__"] == "PartialNode" and node["content"]["func"]["__loader__"] != "FunctionNode":
            raise ValueError("what is called with some arguments is no function")
        elif node["__loader__"] == "SparseMatrixNode":
            _check_sparse(file, node)


def _check_tree(file: SkopsFile, node: dict[str, Any]) -> None:
    features, classes, outputs = node["__reduce__"]["args"]["content"]
    state = node["content"]["content"]
    nodes, counts = file.array(state["nodes"]), file.array(classes)
    size = len(nodes)
    if counts.shape != (_whole(outputs),) or counts.dtype != "int64" or (counts < 1).any():
        raise ValueError("a decision tree counts its classes wrongly")
    if _whole(state["node_count"]) != size or not size:
        raise ValueError("a decision tree has another number of nodes than it says")
    inner = nodes["left_child"] != -1
    _check_children(nodes["left_child"], nodes["right_child"], inner)
    if not _within(nodes["feature"][inner], _whole(features)):
        raise ValueError("a decision tree asks for a feature that it does not have")


def _check_predictor(file: SkopsFile, state: dict[str, Any]) -> None:
    nodes = file.array(state["nodes"])
    sets = [file.array(state[f"{kind}_left_cat_bitsets"]) for kind in ("raw", "binned")]
    if not len(nodes):
        raise ValueError("a tree has no nodes")
    inner = nodes["is_leaf"] == 0
    _check_children(nodes["left"].astype("int64"), nodes["right"].astype("int64"), inner)
    categorical = inner & (nodes["is_categorical"] != 0)
    for bits in sets:
        if bits.ndim != 2 or bits.shape[1] != 8 or not _within(nodes["bitset_idx"][categorical], len(bits)):
            raise ValueError("a tree asks for categories that it does not have")
    if (nodes["feature_idx"][inner] < 0).any():
        raise ValueError("a tree asks for a feature that it does not have")


def _check_children(left: Any, right: Any, inner: Any) -> None:
    import numpy as np

    # Each after its parent: so walking down comes to an end.
    own = np.arange(len(left))[inner]
    for child in (left[inner], right[inner]):
        if (child <= own).any() or (child >= len(left)).any():
            raise ValueError("a tree's branch leads out of it, or back")


def _check_neighbours(file: SkopsFile, state: list[Any]) -> None:
    data, order, nodes, bounds = (file.array(each) for each in state[:4])
    count = _whole(state[6])
    rows = len(data)
    # Alone they are compared with the data by scikit-learn, in a tree they are not.
    weights = [
        file.array(each["content"]["content"][1]).size for each in state if type_of(each) == _MINKOWSKI
    ]
    right = (
        data.ndim == 2
        and order.shape == (rows,)
        and nodes.shape == (count,)
        and bounds.ndim == 3
        and bounds.shape[1:] == (count, data.shape[1])
        and count == 2 ** _whole(state[5]) - 1
        and all(size in (0, data.shape[1]) for size in weights)
        and _within(order, rows)
        and _within(nodes["idx_start"], rows + 1)
        and _within(nodes["idx_end"], rows + 1)
        and bool((nodes["is_leaf"][count // 2 :] != 0).all())
    )
    if not right:
        raise ValueError("a tree of neighbours leads out of its data")


def _check_lightgbm(state: dict[str, Any]) -> None:
    if "handle" in state:  # its older name, which LightGBM would read instead
        raise ValueError("a booster has two models")
    check_lightgbm(json.loads(state["_handle"]["content"]))


def _check_sparse(file: SkopsFile, node: dict[str, Any]) -> None:
    from scipy.sparse import load_npz

    matrix = load_npz(file.part(node))
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)


def _within(indices: Any, size: int) -> bool:
    return bool(((indices >= 0) & (indices < size)).all())


def _whole(node: Any) -> int:
    value = json.loads(node["content"]) if node["__loader__"] == "JsonNode" else None
    if type(value) is not int or value < 0:
        raise ValueError(f"{node['__loader__']} stands where a number belongs")
    return value
