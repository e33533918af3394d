"""skops files: written so that equal estimators have equal bytes, and looked through before anything in them is made.

A file is a zip of arrays and of ``schema.json``, a tree of nodes; each names a type and, as its loader, how skops makes it.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.registry.models.canonical import dicts_in, timeless_zip

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SkopsFile", "canonical"]

_SCHEMA = "schema.json"
_FIRST_PROTOCOL = 2
"""What skops reads differently in files of earlier ones, nobody has stored with holdfast."""
_ADDRESSES = frozenset({"_stop_words_id"})
"""Attributes that hold an address in memory: scikit-learn compares it, and looks again where it is another one."""

_COUNTING = ("sklearn.neighbors._ball_tree.BallTree", "sklearn.neighbors._kd_tree.KDTree")
_COUNTERS = slice(7, 11)
"""Where in their state they count how often they were asked."""


class SkopsFile:
    """A skops file, opened; nothing in it is made.

    Args:
        data: Its bytes.

    Raises:
        ValueError: It is no such file, or says two things about one object.
        KeyError: It lacks something.
        zipfile.BadZipFile: It is no zip file, or a part of it is damaged.
    """

    def __init__(self, data: bytes) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(data))
        parts = self._archive.infolist()
        # What is larger when it is unpacked could fill the memory.
        if any(part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 for part in parts):
            raise ValueError("its parts are compressed or encrypted")
        self.schema = json.loads(self._archive.read(_SCHEMA))
        protocol = self.schema.get("protocol") if isinstance(self.schema, dict) else None
        if type(protocol) is not int or protocol < _FIRST_PROTOCOL:
            raise ValueError(f"its protocol is {protocol!r:.50}")
        self._check_ids()

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Everything in the schema that looks like a node, wherever it stands."""
        return (each for each in dicts_in(self.schema) if "__loader__" in each)

    def loaders(self) -> dict[str, set[str]]:
        """For each type in the file, by full name, how it would be made."""
        found: dict[str, set[str]] = {}
        for node in self.nodes():
            found.setdefault(type_of(node), set()).add(str(node["__loader__"]))
        return found

    def array(self, node: Any) -> np.ndarray[Any, Any]:
        """The array of a node; never one of Python objects.

        Raises:
            ValueError: It is no array.
        """
        if node["__loader__"] != "NdArrayNode" or node.get("type") != "numpy":
            raise ValueError(f"{type_of(node)} stands where an array belongs")
        return _array(self._archive.read(node["file"]))

    def part(self, node: Any) -> io.BytesIO:
        """The file of a node."""
        return io.BytesIO(self._archive.read(node["file"]))

    def _check_ids(self) -> None:
        # skops takes the first node of an id for all others that have it: what is checked must be what is made.
        first: dict[Any, dict[str, Any]] = {}
        for node in dicts_in(self.schema):
            key = node.get("__id__")
            if key is not None and first.setdefault(key, node) != node:
                raise ValueError(f"the id {key!r:.50} belongs to two objects")


def type_of(node: dict[str, Any]) -> str:
    """The full name of a node's type."""
    return f"{node.get('__module__')}.{node.get('__class__')}"


def canonical(data: bytes) -> bytes:
    """The same skops file without what differs from one writing to the next: addresses, times, the order of sets, padding."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        schema = json.loads(old.read(_SCHEMA))
        _settle(schema)
        files: dict[str, str] = {}
        _Numbers().number(schema, files)
        parts = [
            (numbered, _unpadded(old.read(name)) if name.endswith(".npy") else old.read(name))
            for name, numbered in files.items()
        ]
    return timeless_zip([*parts, (_SCHEMA, json.dumps(schema, indent=2))])


class _Numbers:
    """Numbers objects, and the files that hold them, in the order in which they come."""

    def __init__(self) -> None:
        self._met: dict[Any, dict[str, Any]] = {}

    def number(self, node: Any, files: dict[str, str]) -> None:
        if isinstance(node, list):
            for each in node:
                self.number(each, files)
        elif isinstance(node, dict):
            key = node.pop("__id__", None)
            # Plain values are shared or not as the interpreter likes.
            if key is not None and node.get("__loader__") != "JsonNode":
                if key in self._met:  # skops reads the first one only
                    node.clear()
                    node.update(self._met[key])
                    return
                self._met[key] = node
                node["__id__"] = len(self._met)
            if isinstance(node.get("file"), str):
                old = node["file"]
                node["file"] = files.setdefault(old, f"{len(files)}.{old.rpartition('.')[2]}")
            for each in node.values():
                self.number(each, files)


def _settle(node: Any) -> None:
    """Put sets in order, and leave addresses out."""
    for each in dicts_in(node):
        content = each.get("content")
        if each.get("__loader__") == "SetNode" and isinstance(content, list):
            content.sort(key=lambda item: json.dumps({k: v for k, v in item.items() if k != "__id__"}))
        elif each.get("__loader__") == "DictNode" and isinstance(content, dict):
            for name in _ADDRESSES & content.keys():
                content[name]["content"] = "null"
        elif type_of(each) in _COUNTING and isinstance(content, dict):
            for counter in content["content"][_COUNTERS]:
                counter["content"] = "0"


def _array(part: bytes) -> np.ndarray[Any, Any]:
    stream = io.BytesIO(part)
    loaded: np.ndarray[Any, Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return loaded


def _unpadded(part: bytes) -> bytes:
    """The same array file, with zeros between the fields of its rows: what is there else was in this process' memory."""
    array = _array(part)
    names = array.dtype.names
    if names is None or sum(array.dtype[name].itemsize for name in names) == array.dtype.itemsize:
        return part
    clean = np.zeros(array.shape, array.dtype)
    for name in names:
        clean[name] = array[name]
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, np.lib.format.header_data_from_array_1_0(clean))
    # NumPy's own writer copies the fields through memory of which it clears nothing.
    return written.getvalue() + clean.tobytes()
