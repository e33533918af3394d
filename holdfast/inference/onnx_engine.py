"""The engine that runs ONNX models.

Example::

    engine = ONNXInferenceEngine("model.onnx")
    result = engine.predict(images)  # float32 of shape (n, 3, 224, 224)
    print(result.outputs["output"], result.inference_time_ms)
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import InvalidInput, Unsupported
from holdfast.inference._ort import (
    ORT_ERRORS,
    choose_providers,
    default_options,
    open_session,
    run_error,
    tensor_infos,
)
from holdfast.inference._performance import Performance
from holdfast.inference._tensors import Array, InferenceResult, Inputs, TensorInfo, fit_inputs

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["ONNXInferenceEngine"]


class ONNXInferenceEngine:
    """One loaded ONNX model that any number of threads may call at the same time.

    ONNX Runtime releases the GIL while it computes, so threads with one session run in parallel.

    Args:
        model: Path of an ONNX file, or its bytes. Weights in files of their own need the path.
        use_gpu: Prefer CUDA. Without it a warning is logged and the CPU is used; see :attr:`provider`.
        threads: Threads of one prediction; 0 takes all cores.
        providers: ONNX Runtime execution providers, best first, instead of ``use_gpu``'s choice.
        session_options: An ``onnxruntime.SessionOptions`` that is used as it is; ``threads`` is then not.

    Raises:
        NotFound: There is no such file.
        Corrupt: This is no ONNX model, or only a part of one.
        Unsupported: An operator, an input type or a provider is not available.
        InvalidInput: ``model`` is a folder, or ``threads`` is negative.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | bytearray | memoryview,
        use_gpu: bool = False,  # noqa: FBT001, FBT002 - the established signature of this class
        *,
        threads: int = 1,
        providers: Sequence[str] | None = None,
        session_options: Any = None,
    ) -> None:
        if threads < 0:
            raise InvalidInput(f"threads must be 0 (all cores) or more, not {threads}")
        options = default_options(threads) if session_options is None else session_options
        session = open_session(model, options, choose_providers(providers, use_gpu=use_gpu))
        self._run = session.run
        self._provider: str = session.get_providers()[0]
        self._inputs = tensor_infos(session.get_inputs(), what="input")
        self._outputs = tensor_infos(session.get_outputs(), what="output")
        self._output_names = [info.name for info in self._outputs]
        if not self._outputs:
            raise Unsupported("the model has no output that is an array")
        self._performance = Performance()

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What the model takes, in its own order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """What the model gives, in its own order; outputs that are no arrays are left out."""
        return self._outputs

    @property
    def provider(self) -> str:
        """The execution provider in use, such as ``CPUExecutionProvider``."""
        return self._provider

    def prepare(self, inputs: Inputs, /) -> dict[str, Array]:
        """The inputs by name, in the model's types and checked against its shapes.

        Raises:
            InvalidInput: As for :meth:`predict`.
        """
        return fit_inputs(self._inputs, inputs)

    def predict(self, inputs: Inputs, /, outputs: Sequence[str] | None = None) -> InferenceResult:
        """The model's outputs for one batch of inputs.

        Args:
            inputs: One array for a model with one input, else a mapping from input names to arrays. Types
                that fit without loss are converted, as is float64 where the model takes float32.
            outputs: Names of the outputs to compute; default all.

        Raises:
            InvalidInput: An input is missing, unknown, of a type that would lose information or of another
                shape, an output is unknown, or the model can't work with these values.
            Unavailable: There is not enough memory.
        """
        feeds = fit_inputs(self._inputs, inputs)
        names = self._output_names if outputs is None else self._known(outputs)
        started = perf_counter()
        try:
            values = self._run(names, feeds)
        except ORT_ERRORS as error:
            raise run_error(error) from error
        seconds = perf_counter() - started
        shape = next(iter(feeds.values())).shape if feeds else ()
        self._performance.record(seconds, shape[0] if shape else 1)
        return InferenceResult(dict(zip(names, values, strict=True)), seconds * 1e3, shape, self._provider)

    def predict_batch(self, inputs: Inputs, /, batch_size: int | None = None) -> InferenceResult:
        """The outputs for many rows, computed in pieces and joined in the order of the inputs.

        Args:
            inputs: As for :meth:`predict`; the first dimension of every input counts the rows.
            batch_size: Rows per piece. Default: all at once, or the model's own batch size if that is fixed.

        Raises:
            InvalidInput: As for :meth:`predict`, or the inputs' rows differ, or ``batch_size`` is below 1.
            Unsupported: An output has no row per input row, so that pieces can't be joined.
        """
        if batch_size is not None and batch_size < 1:
            raise InvalidInput(f"batch_size must be at least 1, not {batch_size}")
        named = inputs if isinstance(inputs, Mapping) else {info.name: inputs for info in self._inputs[:1]}
        arrays: dict[str, Any] = {
            name: value if hasattr(value, "shape") else np.asarray(value) for name, value in named.items()
        }
        counts = {len(value) if value.ndim else 1 for value in arrays.values()}
        if len(counts) > 1:
            raise InvalidInput(f"every input must have the same number of rows, not {sorted(counts)}")
        rows = counts.pop() if counts else 0
        step = batch_size or self._fixed_batch() or rows
        if rows <= step:
            return self.predict(inputs)
        pieces = [
            self.predict({name: value[start : start + step] for name, value in arrays.items()})
            for start in range(0, rows, step)
        ]
        joined = {}
        for name in self._output_names:
            parts = [piece.outputs[name] for piece in pieces]
            if any(not part.ndim for part in parts) or sum(map(len, parts)) != rows:
                raise Unsupported(
                    f"output {name!r} has no row per input row: call predict() with one batch at a time"
                )
            joined[name] = np.concatenate(parts)
        shape = (rows, *pieces[0].input_shape[1:])
        return InferenceResult(
            joined, sum(piece.inference_time_ms for piece in pieces), shape, self._provider
        )

    def get_performance_stats(self) -> dict[str, Any]:
        """Counts, times and percentiles since the start or the last :meth:`reset_stats`.

        ``total_inferences``, ``total_samples`` (rows), ``total_time_ms`` and ``average_time_ms`` (inside ONNX
        Runtime), ``p50_ms``, ``p95_ms`` and ``p99_ms`` of the latest 4096 predictions,
        ``throughput_per_second`` (rows per second of that time) and ``provider``.
        """
        return {**self._performance.snapshot(), "provider": self._provider}

    def reset_stats(self) -> None:
        """Start the statistics again from zero."""
        self._performance.reset()

    def _known(self, outputs: Sequence[str]) -> list[str]:
        names = [outputs] if isinstance(outputs, str) else list(outputs)
        for name in names:
            if name not in self._output_names:
                raise InvalidInput(
                    f"the model has no output {name!r}; it gives {', '.join(self._output_names)}"
                )
        return names or self._output_names

    def _fixed_batch(self) -> int | None:
        sizes = {info.shape[0] for info in self._inputs if info.shape}
        size = sizes.pop() if len(sizes) == 1 else None
        return size if isinstance(size, int) else None
