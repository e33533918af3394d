"""Exported programs of torch (``torch.export``): a graph with its weights, which needs no class to be made again."""

from __future__ import annotations

import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast.errors import Corrupt, Denied, InvalidInput
from holdfast.registry.models.model_format import SavedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.export import ExportedProgram

    from holdfast.registry.models.model_format import Trust
    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["ExportedPrograms"]

_FILE = "model.pt2"
_SUFFIX = ".pt2"
_TRACE = "stack_trace"


class ExportedPrograms:
    """A ``torch.export.ExportedProgram``, or the path of a ``.pt2`` file; got back as an ``ExportedProgram``.

    torch unpickles some parts of such a file, and evaluates the expressions of its symbolic shapes: opening one runs what it says.
    """

    framework: ClassVar[str] = "pytorch"
    name: ClassVar[str] = "exported-program"

    def accepts(self, model: Any) -> bool:
        """Whether it is an exported program, or a file of one."""
        if isinstance(model, Path):
            return model.suffix == _SUFFIX
        exporting = sys.modules.get("torch.export.exported_program")  # who has a program has imported it
        return exporting is not None and isinstance(model, exporting.ExportedProgram)

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """A program without the places in source files that it was made at, so that it is the same from everywhere; a file as it is.

        The tensors that a program takes become the model's signature.
        """
        if isinstance(model, Path):
            if not zipfile.is_zipfile(model):
                raise InvalidInput(f"{model} is no exported program: it is no zip file, as those are")
            return SavedModel(files={_FILE: store.add(model, pin=False)})
        import torch

        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
            path = Path(folder) / _FILE
            with _without_traces(model):
                torch.export.save(model, path)
            file = store.add(path, pin=False)
        return SavedModel(files={_FILE: file}, inputs=tuple(_inputs_of(model)))

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The program; its ``module()`` is what can be called."""
        if not trust.pickle:
            raise Denied(
                f"model {cid} is an exported program, and torch may run what is in its file to open it. If somebody whose key you "
                "trust has signed it, say allow_pickle=True; better, store the module itself, or its ONNX graph"
            )
        import torch

        file = store.resolve(f"{record.files}/{_FILE}")
        with tempfile.TemporaryDirectory(prefix="holdfast-model-") as folder:
            path = Path(folder) / _FILE
            store.get(file, path)
            try:
                return torch.export.load(path)
            except Exception as error:  # whatever a pickle or an expression in the file raises
                raise Corrupt(f"the exported program of model {cid} can't be opened: {error}") from error


@contextmanager
def _without_traces(program: ExportedProgram) -> Iterator[None]:
    """A program whose nodes don't say where in which file they were made; they do again at the end."""
    import torch

    traces = [
        (node.meta, node.meta.pop(_TRACE))
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if _TRACE in node.meta
    ]
    try:
        yield
    finally:
        for meta, trace in traces:
            meta[_TRACE] = trace


def _inputs_of(program: ExportedProgram) -> Iterator[Mapping[str, Any]]:
    import torch

    taken = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and node.name in taken and isinstance(value, torch.Tensor):
            shape = [size if isinstance(size, int) else -1 for size in value.shape]
            # The first size is the batch, which is no part of a sample.
            yield {"name": node.name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape[1:]}
