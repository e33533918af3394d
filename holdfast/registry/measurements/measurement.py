"""One measurement: what happened to whom and when, and its numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Kind", "Measurement", "finite", "metric_name", "number"]

_STEPPED = re.compile(r"(?P<subject>.+)/(?:epoch|step)/(?P<step>\d{1,18})/(?P<name>[^/]+)", re.DOTALL)
_PLAIN = re.compile(r"(?P<subject>.+)/(?P<name>[^/]+)", re.DOTALL)
_NO_STEP = re.compile(r"/(?:epoch|step)(?:/|$)")


class Kind(StrEnum):
    """What was measured. Append-only: the text is stored."""

    METRIC = "metric"
    """A number that the caller computed, such as a loss; the subject is a model."""
    EPOCH = "epoch"
    """A pass of training; the subject is a model, and the step is the number of the epoch."""
    INFERENCE = "inference"
    """A request to a model."""
    MODEL_LOAD = "model_load"
    DATASET_LOAD = "dataset_load"
    WORKER = "worker"
    """How busy a worker is; the subject is the worker."""
    CELL = "cell"
    """A notebook's cell; the subject is the model that it works on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One measurement; its numbers carry their units in their names, such as ``duration_s`` and ``memory_bytes``."""

    number: int
    """From 1, in the order of recording."""
    time_s: float
    """When it ended, in seconds since 1970."""
    kind: Kind
    subject: str
    """The model, dataset or worker that it is about."""
    step: int | None = None
    """The epoch, where there is one."""
    values: Mapping[str, float]
    error: str | None = None
    """What it failed with; None where it did not."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON values that are no measurements, such as an estimator's parameters."""

    @property
    def failed(self) -> bool:
        """Whether what was measured ended with an error."""
        return self.error is not None

    def to_json(self) -> dict[str, Any]:
        """Plain values for an event; numbers that are not finite are None, since JSON has none such."""
        body = {name: getattr(self, name) for name in self.__slots__}
        return body | {
            "kind": self.kind.value,
            "values": {name: finite(value) for name, value in self.values.items()},
            "about": dict(self.about),
        }


def number(name: str, value: Any) -> float:
    """``value`` as a float: an int, a float, or the one number in a NumPy, torch or JAX scalar; NaN and infinity are numbers.

    Raises:
        InvalidInput: It is something else.
    """
    plain = value
    if not isinstance(value, (int, float)) and hasattr(value, "item") and getattr(value, "size", 1) != 0:
        try:
            plain = value.item()
        except (RuntimeError, TypeError, ValueError) as error:
            raise InvalidInput(f"{name} must be one number, not {value!r:.100}: {error}") from error
    if isinstance(plain, bool) or not isinstance(plain, (int, float)):
        raise InvalidInput(f"{name} must be a number, not {value!r:.100}")
    try:
        return float(plain)
    except OverflowError as error:
        raise InvalidInput(f"{name} is too large for a float: {value!r:.40}") from error


def finite(value: float) -> float | None:
    """The value, or None where it is NaN or infinite."""
    return value if math.isfinite(value) else None


def metric_name(name: str) -> tuple[str, int | None, str]:
    """The model, the epoch and the metric in a name.

    ``"model_1/epoch/0/train_loss"`` is ``("model_1", 0, "train_loss")``, and ``"model_1/accuracy"`` is
    ``("model_1", None, "accuracy")``. A model's name may have slashes in it; ``step`` may stand for ``epoch``.

    Raises:
        InvalidInput: It is neither.
    """
    found = _STEPPED.fullmatch(name) or _PLAIN.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidInput(
            f"{name!r:.100} is no metric's name: write model/epoch/number/metric, such as 'model_1/epoch/0/train_loss', "
            "or model/metric"
        )
    groups = found.groupdict()
    step = groups.get("step")
    if step is None and _NO_STEP.search(groups["subject"]):
        raise InvalidInput(
            f"{name!r:.100} is no metric's name: behind 'epoch' stands a whole number from 0 and one word, as in "
            "'model_1/epoch/0/train_loss'"
        )
    return groups["subject"], None if step is None else int(step), groups["name"]
