"""What is different between two models: facts, data, files, and which tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from holdfast.registry.models.safetensors_files import StoredTensors
from holdfast.registry.records import ModelRecord, load_record
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.storage.content import ContentStore

__all__ = ["Changes", "ModelDiff", "diff_models"]

_TENSORS = ".safetensors"
_APART = {"files", "data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The names that only the second of two has, only the first, or both, for different things."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDiff:
    """What makes ``second`` another model than ``first``."""

    first: Cid
    second: Cid
    facts: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    """For each fact that differs, such as ``metrics.accuracy`` or ``config.width``, both values; None where one has none."""
    data: Changes = field(default_factory=Changes)
    """Dataset versions, as CIDs; none of them is ever ``changed``."""
    files: Changes = field(default_factory=Changes)
    """By path."""
    tensors: Changes = field(default_factory=Changes)
    """By name, with the path in front where there are several files: of the safetensors files that both have."""

    def __bool__(self) -> bool:
        return bool(self.facts or self.data or self.files or self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "first": str(self.first),
            "second": str(self.second),
            "facts": {name: [_plain(value) for value in values] for name, values in self.facts.items()},
            **{
                part: {each.name: list(getattr(getattr(self, part), each.name)) for each in fields(Changes)}
                for part in ("data", "files", "tensors")
            },
        }

    def render(self) -> str:
        """The differences as text, one a line."""
        lines = [
            f"{name}: {_plain(one)} -> {_plain(other)}" for name, (one, other) in sorted(self.facts.items())
        ]
        for what, names in (("data", self.data), ("file", self.files), ("tensor", self.tensors)):
            for sign, group in (("+", names.added), ("-", names.removed), ("~", names.changed)):
                lines += [f"{sign} {what} {name}" for name in group]
        return "\n".join(lines) or "no difference"


def diff_models(store: ContentStore, first: Cid, second: Cid) -> ModelDiff:
    """The differences between two manifests; of tensors, only blocks that are not shared are read.

    Raises:
        InvalidInput: One of them is no model.
        NotFound: Nobody has a block that has to be read.
    """
    one, other = (load_record(store, cid, ModelRecord) for cid in (first, second))
    before, after = (dict(_facts(record.to_record())) for record in (one, other))
    facts = {
        name: (before.get(name), after.get(name))
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name)
    }
    left, right = (dict(_entries(store, each.files)) for each in (one, other))
    files = _compared(left, right)
    return ModelDiff(
        first=first,
        second=second,
        facts=facts,
        data=_compared({str(cid): cid for cid in one.data}, {str(cid): cid for cid in other.data}),
        files=files,
        tensors=_tensors(store, left, right, [path for path in files.changed if path.endswith(_TENSORS)]),
    )


def _entries(store: ContentStore, folder: Cid, under: str = "") -> Iterator[tuple[str, Cid]]:
    for entry in store.ls(folder):
        path = f"{under}{entry.name}"
        if store.stat(entry.cid).kind == "directory":
            yield from _entries(store, entry.cid, f"{path}/")
        else:
            yield path, entry.cid


def _facts(record: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in record.items():
        if isinstance(value, Mapping):
            yield from _facts(value, f"{under}{name}.")
        elif under or name not in _APART:
            yield f"{under}{name}", list(value) if isinstance(value, tuple) else value


def _compared(first: Mapping[str, Any], second: Mapping[str, Any]) -> Changes:
    return Changes(
        added=tuple(sorted(second.keys() - first.keys())),
        removed=tuple(sorted(first.keys() - second.keys())),
        changed=tuple(sorted(name for name in first.keys() & second.keys() if first[name] != second[name])),
    )


def _tensors(
    store: ContentStore, left: Mapping[str, Cid], right: Mapping[str, Cid], paths: list[str]
) -> Changes:
    added, removed, changed = [], [], []
    for path in paths:
        one, other = StoredTensors(store, left[path]), StoredTensors(store, right[path])
        prefix = f"{path}: " if len(paths) > 1 else ""
        added += [prefix + name for name in other if name not in one]
        for name in one:
            if name not in other:
                removed.append(prefix + name)
            elif not one.is_same(name, other):
                changed.append(prefix + name)
    return Changes(added=tuple(sorted(added)), removed=tuple(sorted(removed)), changed=tuple(sorted(changed)))


def _plain(value: Any) -> Any:
    if isinstance(value, Cid):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value
