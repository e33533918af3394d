"""What is known of a version, kept beside its name so that a search finds it: metrics, datasets, and other plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.errors import InvalidInput
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["DATASET", "METRIC", "Fact", "Facts", "fact_rows", "facts_of_model", "facts_to_record"]

Fact: TypeAlias = float | str | Cid
"""A number (kept as a float), a text, or a CID (kept as its text)."""
Facts: TypeAlias = Mapping[str, Fact | Sequence[Fact]]
"""Values by key; a key may have several."""
METRIC = "metric."
"""What the keys of metrics begin with: ``metric.accuracy``."""
DATASET = "dataset"
"""The key under which the CIDs of datasets are."""
MAX_KEY_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 1000


def facts_of_model(*, metrics: Mapping[str, Any] | None = None, datasets: Iterable[Cid] = ()) -> Facts:
    """The facts by which ``search(metric=..., dataset=...)`` finds a model.

    Args:
        metrics: By name. Only finite numbers and short texts can be searched; the others are left out.
        datasets: The dataset versions it was trained on.
    """
    found: dict[str, Fact | Sequence[Fact]] = {
        f"{METRIC}{name}": value
        for name, value in (metrics or {}).items()
        if _is_number(value) or (isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS)
    }
    of = list(datasets)
    return found | ({DATASET: of} if of else {})


def facts_to_record(facts: Facts | None) -> dict[str, list[float | str]]:
    """The facts as a commit record has them: for each key a sorted list of different numbers and texts.

    Raises:
        InvalidInput: A key or a value can't be kept.
    """
    out: dict[str, list[float | str]] = {}
    for key, given in (facts or {}).items():
        if not isinstance(key, str) or not key.isprintable() or not 0 < len(key) <= MAX_KEY_CHARACTERS:
            raise InvalidInput(
                f"{key!r:.60} is no key of a fact: one line of up to {MAX_KEY_CHARACTERS} characters"
            )
        several = isinstance(given, Sequence) and not isinstance(given, str)
        values = {_plain(key, value) for value in (given if several else [given])}  # type: ignore[union-attr]
        out[key] = sorted(values, key=lambda value: (isinstance(value, str), value))
    return out


def fact_rows(recorded: Mapping[str, list[float | str]]) -> list[tuple[str, float | None, str | None]]:
    """A row for each value of what :func:`facts_to_record` gave: key, number, text."""
    return [
        (key, None, value) if isinstance(value, str) else (key, value, None)
        for key, values in recorded.items()
        for value in values
    ]


def _plain(key: str, value: Any) -> float | str:
    if isinstance(value, Cid):
        return str(value)
    if isinstance(value, str) and len(value) <= MAX_TEXT_CHARACTERS:
        return value
    if _is_number(value):
        return float(value)
    raise InvalidInput(
        f"the fact {key!r} can't be {value!r:.60}: finite numbers, texts of up to {MAX_TEXT_CHARACTERS} characters, "
        "and CIDs can be searched"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
