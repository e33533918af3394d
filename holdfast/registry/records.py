"""The records that lineage is made of: code, environment, run, model, conversion, index.

Each is a frozen dataclass with ``to_record()`` (what is hashed) and ``from_record()``. Links are Cids. Nothing in them depends on
a clock or a machine's name, so the same work gives the same CID. ``schema`` is the version of the kind's format: it grows when
a field changes its meaning, and what was written before stays readable.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from holdfast.errors import Corrupt, InvalidInput, Unsupported
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from holdfast.storage.content import ContentStore

__all__ = [
    "RECORDS",
    "AttestationRecord",
    "CodeRecord",
    "ConversionRecord",
    "EnvironmentRecord",
    "IndexRecord",
    "ModelRecord",
    "Record",
    "RunRecord",
    "load_record",
]

R = TypeVar("R", bound="Record")

_STORED: dict[str, Any] = {
    "Cid": Cid,
    "Cid | None": (Cid, type(None)),
    "Mapping": dict,
    "int": int,
    "str": str,
    "tuple": list,
}
"""What a field's annotation is in DAG-CBOR."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The base of all records."""

    kind: ClassVar[str]
    schema: ClassVar[int] = 1

    def to_record(self) -> dict[str, Any]:
        """Plain values and Cids, ready for :meth:`ContentStore.put_record`."""
        body = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"kind": self.kind, "schema": self.schema} | {
            k: dict(v) if isinstance(v, Mapping) else v for k, v in body.items()
        }

    @classmethod
    def from_record(cls, value: Any, cid: Cid) -> Self:
        """The record in ``value``, which was read from ``cid``.

        Raises:
            InvalidInput: It is a record of another kind.
            Corrupt: A field is missing, unknown, or of another type.
            Unsupported: A later holdfast wrote it.
        """
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind != cls.kind:
            told = f"its kind is {kind!r}" if kind else "it is another record"
            raise InvalidInput(f"{cid} is no {cls.kind}: {told}")
        schema = value.get("schema")
        if type(schema) is not int or schema < 1:
            raise Corrupt(f"the {cls.kind} record {cid} does not say which version of its format it has")
        if schema > cls.schema:
            raise Unsupported(
                f"the {cls.kind} record {cid} is of version {schema} of its format, and this holdfast reads versions up to "
                f"{cls.schema}: install a newer one"
            )
        for f in fields(cls):
            wanted = _STORED[str(f.type).partition("[")[0]]
            given = value.get(f.name)
            fits = type(given) is not bool and isinstance(given, wanted)
            if isinstance(given, list) and str(f.type).startswith("tuple[Cid"):
                fits = all(isinstance(each, Cid) for each in given)
            if f.name in value and not fits:
                raise Corrupt(
                    f"{f.name!r} of the {cls.kind} record {cid} is no {f.type}: {value[f.name]!r:.100}"
                )
        body = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k not in ("kind", "schema")
        }
        try:
            return cls(**body)
        except TypeError as error:
            raise Corrupt(f"the {cls.kind} record {cid} has other fields than it must: {error}") from error

    def store(self, store: ContentStore) -> Cid:
        """Store the record; gives its CID."""
        return store.put_record(self.to_record())


def load_record(store: ContentStore, cid: Cid, kind: type[R]) -> R:
    """The record of a CID, which must be of ``kind``."""
    return kind.from_record(store.get_record(cid), cid)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeRecord(Record):
    """Source files, and what in them to call."""

    kind: ClassVar[str] = "code"
    files: Cid
    """A UnixFS directory."""
    entry: str
    """``package.module:function`` or ``package.module:Class``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRecord(Record):
    """What the code ran on, as far as it can change the result."""

    kind: ClassVar[str] = "environment"
    python: str
    system: str
    machine: str
    packages: Mapping[str, str]

    @classmethod
    def of_this_process(
        cls, packages: tuple[str, ...] = ("holdfast", "numpy", "pyarrow", "torch")
    ) -> EnvironmentRecord:
        """This interpreter and the installed versions of ``packages``."""
        return cls(
            python=platform.python_version(),
            system=platform.system(),
            machine=platform.machine(),
            packages={name: metadata.version(name) for name in packages},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord(Record):
    """One finished training run: enough to run it again and compare CIDs."""

    kind: ClassVar[str] = "run"
    code: Cid
    data: Cid
    environment: Cid
    config: Mapping[str, Any]
    seed: int
    workers: int
    threads_per_worker: int
    metrics: Mapping[str, Any]
    """Of the last report."""
    history: tuple[Mapping[str, Any], ...]
    """Every report, in order."""
    outputs: Mapping[str, Cid]
    """What it made: ``files``, the directory of the model's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord(Record):
    """A model's files, what they were made from, and what is known about them."""

    kind: ClassVar[str] = "model"
    framework: str
    """Such as ``pytorch``, ``sklearn``, ``onnx``; with ``format`` it says how the files are read."""
    format: str
    """Such as ``safetensors``, ``skops``, ``onnx``."""
    files: Cid
    """A UnixFS directory: weights, graphs, tokenizer, whatever the format has."""
    code: Cid | None = None
    """The code record of the model's class, where it has one of its own."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the class is made with again; plain values."""
    run: Cid | None = None
    parent: Cid | None = None
    """The model that this one was made from: fine-tuned, pruned, quantised."""
    data: tuple[Cid, ...] = ()
    """The dataset versions that it learned from."""
    inputs: tuple[Mapping[str, Any], ...] = ()
    """What it takes: for each input ``name``, ``dtype`` (NumPy's name) and ``shape`` of one sample, without the batch."""
    outputs: tuple[Mapping[str, Any], ...] = ()
    """What it gives, in the same words."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""
    """What its makers call it, such as ``resnet50``."""
    licence: str = ""
    """An SPDX expression, such as ``Apache-2.0``."""
    card: Cid | None = None
    """A model card: a Markdown file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionRecord(Record):
    """A model in another format, with the measured difference to the original."""

    kind: ClassVar[str] = "conversion"
    model: Cid
    onnx: Cid
    """An ONNX file."""
    opset: int
    data: Cid
    """The dataset whose rows both were run on."""
    split: str
    comparison: Mapping[str, Any]
    """``max_difference``, ``atol``, ``rtol``, ``samples``, ``top1_agreement``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRecord(Record):
    """A vector index: which rows, embedded by which model."""

    kind: ClassVar[str] = "index"
    corpus: Cid
    """The dataset whose rows were embedded."""
    splits: tuple[str, ...]
    """In this order; a row's id is its position in it."""
    model: Cid
    conversion: Cid
    """The ONNX form that made the vectors."""
    output: str
    """The output of the model that is the vector."""
    metric: str
    factory: str
    dim: int
    rows: int
    index: Cid
    """A FAISS file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationRecord(Record):
    """A signed statement about other records; :mod:`holdfast.registry.proof` makes and checks it."""

    kind: ClassVar[str] = "attestation"
    subjects: tuple[Cid, ...]
    """What it is about, as links: the same as in what was signed."""
    envelope: Mapping[str, Any]
    """DSSE: ``payloadType``, ``payload`` and ``signatures``; bytes are bytes."""


RECORDS: dict[str, type[Record]] = {
    cls.kind: cls
    for cls in (
        CodeRecord,
        EnvironmentRecord,
        RunRecord,
        ModelRecord,
        ConversionRecord,
        IndexRecord,
        AttestationRecord,
    )
}
"""The class of each kind."""
