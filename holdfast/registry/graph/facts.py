"""The few words that tell what a thing is at a glance: rows of a dataset, accuracy of a model, versions of an environment."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError
from holdfast.printable import printable
from holdfast.registry.graph.record_links import DATASET
from holdfast.sizes import human_size
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.formats.dag import RECORD_CODECS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from holdfast.storage.content import ContentStore

__all__ = ["Facts", "describe", "facts_of"]

Facts = tuple[str, ...]
_TELLING = ("accuracy", "acc", "f1", "auc", "r2", "loss", "error", "perplexity")
"""Parts of metrics' names, those that people ask for first."""
_SHOWN = 2
_MAX_TEXT = 60


def describe(store: ContentStore, cid: Cid) -> tuple[str, Facts, Any]:
    """The kind of a thing, its facts, and its record if it is one.

    A block that nobody has gives the facts ``not here``; a record of a later version, or of a stranger, has no facts.
    """
    try:
        if cid.codec not in RECORD_CODECS:
            stat = store.stat(cid)
            return stat.kind, (human_size(stat.size),), None
        record = store.get_record(cid)
    except HoldfastError as error:
        missing = "not here" if isinstance(error, LookupError) else "can't be read"
        return ("file" if cid.codec == RAW else "unknown"), (missing,), None
    kind = record.get("kind") if isinstance(record, dict) else None
    if not isinstance(kind, str) or not kind:
        return "record", (), record
    return printable(kind[:_MAX_TEXT]), facts_of(kind, record), record


def facts_of(kind: str, record: dict[str, Any]) -> Facts:
    """The facts of a record of a kind; none for a kind that is not known."""
    return tuple(printable(fact[:_MAX_TEXT]) for fact in _facts(kind, record))


def _facts(kind: str, record: dict[str, Any]) -> Iterator[str]:
    teller = _TELLERS.get(kind)
    if teller is None:
        return
    try:
        yield from teller(record)
    except (AttributeError, KeyError, TypeError, ValueError):
        yield "not of its kind's form"  # its hash is right all the same, and so are its links


def _dataset(record: dict[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{split['rows']:,} {name}" for name, split in record["splits"].items()) + " rows"
    operation = record["provenance"].get("operation")
    where = record["provenance"].get("where")
    if isinstance(operation, str):
        yield operation.replace("_", " ") + (f" {where}" if isinstance(where, str) else "")


def _model(record: dict[str, Any]) -> Iterator[str]:
    yield str(record["framework"])
    yield from _metrics(record["metrics"])


def _metrics(metrics: Mapping[str, Any]) -> Iterator[str]:
    numbers = {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, Real) and not isinstance(value, bool) and name != "epoch"
    }

    def rank(name: str) -> tuple[int, str]:
        return next((at for at, word in enumerate(_TELLING) if word in name.lower()), len(_TELLING)), name

    for name in sorted(numbers, key=rank)[:_SHOWN]:
        yield f"{name} {numbers[name]:.4g}"


def _run(record: dict[str, Any]) -> Iterator[str]:
    workers = record["workers"]
    yield f"{workers} worker{'s' * (workers != 1)}, seed {record['seed']}"
    if record["config"]:
        yield ", ".join(f"{name} {value}" for name, value in record["config"].items())


def _code(record: dict[str, Any]) -> Iterator[str]:
    yield str(record["entry"])


def _environment(record: dict[str, Any]) -> Iterator[str]:
    torch = record["packages"].get("torch")
    yield f"Python {record['python']}" + (f", torch {torch}" if torch else "")


def _conversion(record: dict[str, Any]) -> Iterator[str]:
    yield f"ONNX, opset {record['opset']}"
    yield f"differs by {float(record['comparison']['max_difference']):.2g} at most"


def _index(record: dict[str, Any]) -> Iterator[str]:
    yield f"{record['rows']:,} vectors of {record['dim']}"
    yield f"{record['factory']}, {record['metric']}"


_TELLERS = {
    DATASET: _dataset,
    "model": _model,
    "run": _run,
    "code": _code,
    "environment": _environment,
    "conversion": _conversion,
    "index": _index,
}
