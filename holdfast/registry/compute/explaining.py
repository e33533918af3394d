"""Why a computation was not answered from the cache: the nearest one that was, and in which fields the two differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.registry.compute.results import CachedResult
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.compute.computation import Computation

__all__ = ["Difference", "Explanation", "differences"]

_ABSENT = "nothing"
_MAX_TEXT = 200
FOLDED_FROM = 4
"""So many fields that only one of two computations has are told in one line."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs."""

    field: str
    """Its path: ``config.lr``."""
    stored: str
    asked: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the cache says to a computation."""

    key: str
    """The CID of what was asked for."""
    verdict: str
    """``hit``, ``gone`` (the result's blocks are), ``refused`` (its signature is), ``differs`` or ``empty``."""
    entry: CachedResult | None = None
    """The entry of this key, or the nearest one."""
    differences: tuple[Difference, ...] = ()

    def render(self) -> str:
        """As text."""
        told = f"{self.entry.result} by {self.entry.made_by}" if self.entry is not None else ""
        if self.verdict == "hit":
            return f"it is known: {told}"
        if self.verdict == "gone":
            return f"it was computed ({told}), but some of the result's blocks are gone: it is computed again"
        if self.verdict == "refused":
            return f"it was computed ({told}), but that is not signed as it must be: it is computed again"
        if self.verdict == "empty" or self.entry is None:
            return "nothing of the kind was computed before"
        shown = _folded(self.differences)
        width = max(len(one.field) for one in shown)
        lines = [f"not the same as any before; the nearest gave {told}, and differs in"]
        lines += [f"  {one.field.ljust(width)}  {one.stored} -> {one.asked}" for one in shown]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "key": self.key,
            "verdict": self.verdict,
            "entry": self.entry.to_json() if self.entry is not None else None,
            "differences": [
                {"field": one.field, "stored": one.stored, "asked": one.asked} for one in self.differences
            ],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Explanation:
        """The explanation that :meth:`to_json` wrote."""
        entry = body["entry"]
        return cls(
            key=body["key"],
            verdict=body["verdict"],
            entry=CachedResult.from_json(entry) if entry is not None else None,
            differences=tuple(Difference(**one) for one in body["differences"]),
        )


def differences(stored: Computation, asked: Computation) -> tuple[Difference, ...]:
    """The fields in which two computations differ, sorted by path; values as short text."""
    before, now = stored.flat(), asked.flat()
    return tuple(
        Difference(path, _text(before, path), _text(now, path))
        for path in sorted(before.keys() | now.keys())
        if (path not in before or path not in now or not _same(before[path], now[path]))
        and not (_empty(before, path, now) or _empty(now, path, before))
    )


def _empty(values: Mapping[str, Any], path: str, others: Mapping[str, Any]) -> bool:
    """Whether ``path`` holds nothing in ``values``, so that what ``others`` have below it says all."""
    return values.get(path) in ({}, []) and any(other.startswith(f"{path}.") for other in others)


def _folded(found: tuple[Difference, ...]) -> list[Difference]:
    """The same in fewer lines: fields of one mapping that only one of the two has stand in one."""
    groups: dict[tuple[str, str, str, str], list[Difference]] = {}
    for one in found:
        above, _, _ = one.field.rpartition(".")
        only_stored, only_asked = one.asked == _ABSENT, one.stored == _ABSENT
        if above and (only_stored or only_asked):
            key = (above, "", "" if only_stored else _ABSENT, _ABSENT if only_stored else "")
        else:
            key = ("", one.field, one.stored, one.asked)
        groups.setdefault(key, []).append(one)
    shown = []
    for (above, *_), group in groups.items():
        if len(group) < FOLDED_FROM:
            shown += group
            continue
        names = ", ".join(one.field.removeprefix(f"{above}.") for one in group)
        said = f"{len(group)} ({names})"
        lost = group[0].asked == _ABSENT
        shown.append(Difference(above, said if lost else _ABSENT, _ABSENT if lost else said))
    return shown


def _same(one: Any, other: Any) -> bool:
    return dag_cbor.encode(one) == dag_cbor.encode(other)  # True is not 1, and 1 not 1.0: their keys differ


def _text(values: Mapping[str, Any], path: str) -> str:
    if path not in values:
        return _ABSENT
    value = values[path]
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
