"""How far a converted model's answers are from the original's, on real inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from holdfast.inference._tensors import Array, Engine

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Whether two models agree, and the largest difference that was seen."""

    passed: bool
    """Every number was finite and within ``atol + rtol * |original|``, and every shape was the same."""
    max_difference: float
    """Largest absolute difference."""
    max_relative_difference: float
    """Largest difference relative to the original's number, where that is larger than ``atol``."""
    samples: int
    """Rows that were compared."""
    rtol: float
    atol: float
    top1_agreement: float | None
    """Share of rows whose largest column is the same in both; ``None`` without an output of 2 dimensions."""
    problem: str | None = None
    """Why it did not pass, in words."""


def compare(
    original: Any, engine: Engine, inputs: Any, *, rtol: float, atol: float, batch_size: int | None
) -> Comparison:
    """The comparison of ``original`` with a loaded model; see ``ONNXConverter.compare_models``."""
    arrays = dict(inputs) if isinstance(inputs, Mapping) else {engine.inputs[0].name: inputs}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    if {array.ndim for array in arrays.values()} & {0} or len({len(a) for a in arrays.values()}) != 1:
        raise InvalidInput("every input must be an array whose first dimension counts the samples")
    samples = len(next(iter(arrays.values())))
    if not samples:
        raise InvalidInput("there are no inputs to compare on: pass real samples")
    if not (rtol >= 0 and atol >= 0):
        raise InvalidInput(f"rtol and atol must be 0 or more, not {rtol} and {atol}")
    step = _step(engine, batch_size, samples)
    call, mode = _callable(original)
    tally = _Tally(rtol=rtol, atol=atol)
    with mode:
        for start in range(0, samples, step):
            feeds = engine.prepare({name: array[start : start + step] for name, array in arrays.items()})
            got = engine.predict(feeds).outputs
            wanted = _by_name(call([feeds[info.name] for info in engine.inputs]), list(got))
            tally.add(wanted, got)
    return tally.result(samples)


def _step(engine: Engine, batch_size: int | None, samples: int) -> int:
    sizes = {info.shape[0] for info in engine.inputs if info.shape and isinstance(info.shape[0], int)}
    if len(sizes) != 1:
        step = batch_size or 32
        if step < 1:
            raise InvalidInput(f"batch_size must be at least 1, not {batch_size}")
        return step
    fixed = int(str(sizes.pop()))
    if samples % fixed:
        raise InvalidInput(
            f"the model takes exactly {fixed} samples at a time, and {samples} can't be divided so"
        )
    return fixed


def _callable(original: Any) -> tuple[Callable[[list[Array]], Any], AbstractContextManager[None]]:
    torch = sys.modules.get("torch")  # a torch module can't exist unless torch was imported
    if torch is not None and isinstance(original, torch.nn.Module):
        from holdfast.inference._torch_export import evaluating

        tensor = next(original.parameters(), None)
        device = "cpu" if tensor is None else tensor.device
        return (
            lambda feeds: original(*(torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in feeds)),
            evaluating(original),
        )
    function = getattr(original, "predict", original)
    if not callable(function):
        raise InvalidInput(
            f"the original must be a torch module, have predict() or be callable, not {original!r}"
        )
    return (lambda feeds: function(*feeds)), nullcontext()


def _by_name(outputs: Any, names: list[str]) -> dict[str, Array]:
    if isinstance(outputs, Mapping) and set(names) <= set(outputs):
        return {name: _array(outputs[name]) for name in names}
    if isinstance(outputs, Mapping):
        values = list(outputs.values())
    else:
        values = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    if len(values) != len(names):
        raise InvalidInput(f"the original gives {len(values)} outputs, the ONNX model {len(names)}")
    return {name: _array(value) for name, value in zip(names, values, strict=True)}


def _array(value: Any) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value)


class _Tally:
    """Running maxima over batches."""

    def __init__(self, *, rtol: float, atol: float) -> None:
        self._result = Comparison(
            passed=True,
            max_difference=0.0,
            max_relative_difference=0.0,
            samples=0,
            rtol=rtol,
            atol=atol,
            top1_agreement=None,
        )
        self._same_top = 0
        self._rows = 0
        self._top_name: str | None = None

    def add(self, wanted: dict[str, Array], got: dict[str, Array]) -> None:
        for name, ours in got.items():
            self._add(name, wanted[name], ours)

    def _add(self, name: str, wanted: Array, got: Array) -> None:
        if wanted.shape != got.shape:
            return self._fail(
                f"output {name!r} has shape {list(got.shape)} instead of {list(wanted.shape)}", np.inf
            )
        if not (wanted.dtype.kind in "biuf" and got.dtype.kind in "biuf"):
            return None if np.array_equal(wanted, got) else self._fail(f"output {name!r} holds other values")
        expected, given = wanted.astype(np.float64), got.astype(np.float64)
        if not (np.isfinite(expected).all() and np.isfinite(given).all()):
            return self._fail(f"output {name!r} holds NaN or infinity", np.inf)
        difference, size = np.abs(expected - given), np.abs(expected)
        if not (difference <= self._result.atol + self._result.rtol * size).all():
            self._fail(f"output {name!r} differs by more than the tolerance")
        large = size > self._result.atol
        relative = difference[large] / size[large]
        self._result = replace(
            self._result,
            max_difference=max(self._result.max_difference, float(difference.max(initial=0))),
            max_relative_difference=max(self._result.max_relative_difference, float(relative.max(initial=0))),
        )
        if expected.ndim == 2 and expected.shape[1] > 1 and self._top_name in (None, name):
            self._top_name = name
            self._rows += len(expected)
            self._same_top += int((expected.argmax(1) == given.argmax(1)).sum())
        return None

    def _fail(self, problem: str, difference: float = 0.0) -> None:
        self._result = replace(
            self._result,
            passed=False,
            problem=self._result.problem or problem,
            max_difference=max(self._result.max_difference, difference),
            max_relative_difference=max(self._result.max_relative_difference, difference),
        )

    def result(self, samples: int) -> Comparison:
        top = self._same_top / self._rows if self._rows else None
        return replace(self._result, samples=samples, top1_agreement=top)
