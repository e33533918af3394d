"""torch modules to ONNX bytes that are the same for the same weights, on any machine and in any process.

torch's exporter writes where each node came from into the model: Python stack traces with the paths of this
machine, class names, symbol tables. None of it changes what is computed, all of it would change the hash.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx
import torch

from holdfast.errors import InvalidInput, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["evaluating", "export"]

PROTOBUF_LIMIT_BYTES = (1 << 31) - 1
"""A single protobuf message can't be larger."""
_QUIET_LOGGERS = ("torch.onnx._internal.exporter._registration", "torch.onnx._internal.exporter._core")
_EXPORTING = threading.Lock()


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def export(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str] | None,
    opset_version: int,
    dynamic_batch: bool,
    optimize: bool,
) -> bytes:
    """The ONNX file of a module.

    Raises:
        InvalidInput: The module can't run on the example, or names and tensors don't match in number.
        Unsupported: torch can't express the module in ONNX, or the file would exceed 2 GiB.
    """
    weights = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
    if weights > PROTOBUF_LIMIT_BYTES:
        raise Unsupported(f"the weights take {weights} bytes, and one ONNX file can hold at most 2 GiB")
    if len(input_names) != len(example):
        raise InvalidInput(f"{len(input_names)} input names were given for {len(example)} inputs")
    with evaluating(model):
        names = _output_names(_run(model, example), output_names)
        with _EXPORTING, _quiet():
            proto = _export(
                model,
                example,
                list(input_names),
                names,
                opset_version,
                dynamic_batch=dynamic_batch,
                optimize=optimize,
            )
    _scrub(proto)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise Unsupported(f"torch wrote an ONNX model that is not valid: {error}") from error
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _run(model: torch.nn.Module, example: tuple[torch.Tensor, ...]) -> Any:
    try:
        return model(*example)
    except Exception as error:  # a module may raise anything, and all of it means the same here
        shapes = ", ".join(str(list(tensor.shape)) for tensor in example)
        raise InvalidInput(f"the module can't run on an input of shape {shapes}: {error}") from error


def _output_names(outputs: Any, given: Sequence[str] | None) -> list[str]:
    if isinstance(outputs, torch.Tensor):
        values, default = [outputs], ["output"]
    elif isinstance(outputs, Mapping):
        values, default = list(outputs.values()), [str(name) for name in outputs]
    elif isinstance(outputs, (tuple, list)):
        values, default = list(outputs), [f"output_{i}" for i in range(len(outputs))]
    else:
        values, default = [outputs], []
    if not values or not all(isinstance(value, torch.Tensor) for value in values):
        raise Unsupported(
            f"the module must return a tensor or a flat group of tensors, not {type(outputs).__name__}"
        )
    if given is None:
        return default
    if len(given) != len(values):
        raise InvalidInput(f"{len(given)} output names were given for {len(values)} outputs")
    return list(given)


def _export(
    model: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    input_names: list[str],
    output_names: list[str],
    opset_version: int,
    *,
    dynamic_batch: bool,
    optimize: bool,
) -> onnx.ModelProto:
    batch = torch.export.Dim("batch")
    try:
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            input_names=input_names,
            output_names=output_names,
            opset_version=opset_version,
            dynamic_shapes=tuple({0: batch} for _ in example) if dynamic_batch else None,
            optimize=optimize,
            verbose=False,
        )
    except Exception as error:  # torch raises many classes here, private ones among them
        hint = "; if it works for one batch size only, pass dynamic_batch=False" if dynamic_batch else ""
        raise Unsupported(f"torch can't export this module to ONNX: {_root(error)}{hint}") from error
    if program is None:
        raise Unsupported("torch gave no ONNX model for this module")
    proto = program.model_proto
    opset = next((entry.version for entry in proto.opset_import if entry.domain == ""), None)
    if opset != opset_version:
        raise Unsupported(f"torch can't write this module for opset {opset_version}; it wrote opset {opset}")
    return proto


def _root(error: BaseException) -> str:
    """The first line of the innermost cause: the outer ones only wrap it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _scrub(proto: onnx.ModelProto) -> None:
    """Remove every note that says where the model came from and not what it computes."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        del function.value_info[:]
        _scrub_nodes(function.node)
    _scrub_graph(proto.graph)


def _scrub_graph(graph: onnx.GraphProto) -> None:
    graph.doc_string = ""
    del graph.metadata_props[:]
    # Shapes of intermediate values are inferred again by every reader; stale ones make quantisation fail.
    del graph.value_info[:]
    for item in (*graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    _scrub_nodes(graph.node)


def _scrub_nodes(nodes: Any) -> None:
    for node in nodes:
        node.doc_string = ""
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.doc_string = ""
            if attribute.HasField("g"):
                _scrub_graph(attribute.g)
            for graph in attribute.graphs:
                _scrub_graph(graph)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own notices from the user; its errors are raised.

    Silenced by name: the log records that torchvision's operators are skipped, and the warnings by which
    torch 2.13 complains about itself: ``LeafSpec`` (FutureWarning, while pytree specs are copied), its
    DeprecationWarnings, and the UserWarning that several inputs share the name of their batch dimension, which
    is what they should do.
    """
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r".*LeafSpec.*", category=FutureWarning)
            warnings.filterwarnings(
                "ignore", message=r"# The axis name: .* will not be used", category=UserWarning
            )
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
