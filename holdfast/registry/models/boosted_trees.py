"""Files of XGBoost and LightGBM, looked through before these libraries see them: what they can't read may end the process.

Their readers are in C++, follow a tree's branches without asking where they lead, and end the process on some broken files.
Sources: https://ubjson.org, https://xgboost.readthedocs.io/en/stable/tutorials/saving_model.html.
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_lightgbm", "check_xgboost"]

_NUMBERS = {"i": "b", "U": "B", "I": "h", "l": "i", "L": "q", "d": "f", "D": "d"}
_DEEPEST = 64
_TREE = re.compile(r"^Tree=\d+$", re.MULTILINE)


def check_xgboost(data: bytes) -> None:
    """Refuse what is no UBJSON of an XGBoost model, or has a tree whose branches lead out of it.

    Raises:
        ValueError: With what is wrong.
    """
    try:
        model = _Ubjson(data).read()
    except (IndexError, struct.error, RecursionError) as error:
        raise ValueError("it is no UBJSON, or ends too early") from error
    if not isinstance(model, dict) or not model:
        raise ValueError("it is not a model's UBJSON")
    waiting: list[Any] = [model]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if "left_children" in each:
                _check_xgboost_tree(each)
            waiting.extend(each.values())
        elif isinstance(each, list) and each and not isinstance(each[0], (int, float)):
            waiting.extend(each)


def _check_xgboost_tree(tree: dict[str, Any]) -> None:
    try:
        left, right, features = tree["left_children"], tree["right_children"], tree["split_indices"]
        known = int(tree["tree_param"]["num_feature"])
        if not len(left) == len(right) == len(features) == int(tree["tree_param"]["num_nodes"]):
            raise ValueError("a tree has another number of nodes than it says")
        reached = _walk(len(left), lambda node: [] if left[node] == -1 else [left[node], right[node]])
        if not all(left[node] == -1 or 0 <= features[node] < known for node in reached):
            raise ValueError("a tree asks for a feature that it does not have")
        _check_categories(tree, len(left))
    except (IndexError, KeyError, TypeError) as error:
        raise ValueError(f"a tree lacks something: {error}") from error


def _check_categories(tree: dict[str, Any], nodes: int) -> None:
    parts = zip(tree["categories_segments"], tree["categories_sizes"], strict=True)
    if any(start < 0 or size < 0 or start + size > len(tree["categories"]) for start, size in parts) or any(
        not 0 <= node < nodes for node in tree["categories_nodes"]
    ):
        raise ValueError("a tree asks for categories that it does not have")


def check_lightgbm(text: str) -> None:
    """Refuse what is no text of a LightGBM model, or has a tree whose branches lead out of it.

    Raises:
        ValueError: With what is wrong.
    """
    starts = [found.start() for found in _TREE.finditer(text)]
    end = text.find("end of trees\n")
    if not text.startswith("tree\n") or end < 0 or "\npandas_categorical:" not in text[end:]:
        raise ValueError("it is not a model's text, or not all of it")
    head = _fields(text[: starts[0] if starts else end])
    try:
        # LightGBM jumps from tree to tree by these.
        sizes = [int(size) for size in head["tree_sizes"].split()]
        features = int(head["max_feature_idx"]) + 1
        limits = [*starts, end]
        found = [len(text[start:stop].encode()) for start, stop in pairwise(limits)]
        if sizes != found:
            raise ValueError("its trees are not as long as it says")
        for start, stop in pairwise(limits):
            _check_lightgbm_tree(_fields(text[start:stop]), features)
    except (IndexError, KeyError) as error:
        raise ValueError(f"a tree lacks something: {error}") from error


def _check_lightgbm_tree(tree: dict[str, str], features: int) -> None:
    leaves = int(tree["num_leaves"])
    if leaves < 1 or len(tree["leaf_value"].split()) != leaves:
        raise ValueError("a tree has another number of leaves than it says")
    if leaves == 1:
        return
    left, right, asked = (
        [int(n) for n in tree[name].split()] for name in ("left_child", "right_child", "split_feature")
    )
    rows = [len(tree[name].split()) for name in ("threshold", "decision_type")]
    if {len(left), len(right), len(asked), *rows} != {leaves - 1}:
        raise ValueError("a tree has another number of branches than it says")
    reached = _walk(leaves - 1, lambda node: [c for c in (left[node], right[node]) if not -leaves <= c < 0])
    if not all(0 <= asked[node] < features for node in reached):
        raise ValueError("a tree asks for a feature that it does not have")
    if sets := int(tree["num_cat"]):
        borders = [int(n) for n in tree["cat_boundaries"].split()]
        words = len(tree["cat_threshold"].split())
        if len(borders) != sets + 1 or borders != sorted(borders) or borders[0] < 0 or borders[-1] > words:
            raise ValueError("a tree asks for categories that it does not have")
        kinds, at = tree["decision_type"].split(), tree["threshold"].split()
        if any(int(kind) & 1 and not 0 <= float(which) < sets for kind, which in zip(kinds, at, strict=True)):
            raise ValueError("a tree asks for categories that it does not have")


def _walk(size: int, branches: Callable[[int], list[int]]) -> list[int]:
    """The nodes that are reached from the first one, each of which is reached once."""
    if not size:
        raise ValueError("a tree has no nodes")
    waiting, met = [0], {0}
    while waiting:
        for child in branches(waiting.pop()):
            if not 0 <= child < size or child in met:
                raise ValueError("a tree's branch leads out of it, or back")
            met.add(child)
            waiting.append(child)
    return list(met)


def _fields(text: str) -> dict[str, str]:
    return {key: value for key, sign, value in (line.partition("=") for line in text.splitlines()) if sign}


class _Ubjson:
    """A value in UBJSON, as XGBoost writes it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def read(self) -> Any:
        value = self._value(self._mark(), 0)
        if self._at != len(self._data):
            raise ValueError("there is something behind its end")
        return value

    def _mark(self) -> str:
        self._at += 1
        return chr(self._data[self._at - 1])

    def _value(self, mark: str, depth: int) -> Any:
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
        if mark in _NUMBERS:
            return self._numbers(mark, 1)[0]
        if mark in "TFZ":
            return {"T": True, "F": False, "Z": None}[mark]
        if mark == "S":
            return self._text()
        if mark == "[":
            return self._array(depth)
        if mark == "{":
            return self._object(depth)
        raise ValueError(f"it has the mark {mark!r}")

    def _array(self, depth: int) -> list[Any]:
        values: list[Any] = []
        if self._next_is("$"):
            kind = self._mark()
            if not self._next_is("#") or kind not in _NUMBERS:
                raise ValueError("it has an array without length")
            return self._numbers(kind, self._length())
        if self._next_is("#"):
            return [self._value(self._mark(), depth + 1) for _ in range(self._length())]
        while not self._next_is("]"):
            values.append(self._value(self._mark(), depth + 1))
        return values

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self._next_is("}"):
            key = self._text()
            if key in found:  # which of them is meant, is not for us to say
                raise ValueError(f"it says {key[:50]!r} twice")
            found[key] = self._value(self._mark(), depth + 1)
        return found

    def _next_is(self, mark: str) -> bool:
        found = self._data[self._at] == ord(mark)
        self._at += found
        return found

    def _numbers(self, mark: str, count: int) -> list[Any]:
        form = f">{count}{_NUMBERS[mark]}"
        if struct.calcsize(form) > len(self._data) - self._at:
            raise ValueError("it ends too early")
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return list(values)

    def _length(self) -> int:
        mark = self._mark()
        length = self._numbers(mark, 1)[0] if mark in "iUIlL" else -1
        if length < 0 or length > len(self._data):
            raise ValueError("it has a wrong length")
        return int(length)

    def _text(self) -> str:
        length = self._length()
        text = self._data[self._at : self._at + length]
        if len(text) < length:
            raise ValueError("it ends too early")
        self._at += length
        return text.decode()
