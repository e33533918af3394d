"""The contract between the registry and the frameworks: a model as files, and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.records import ModelRecord
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.content import ContentStore

__all__ = ["ModelFormat", "SavedModel", "Trust"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a caller allows to happen when a model is loaded."""

    code: bool = False
    """Run recorded source that is not installed here."""
    pickle: bool = False
    """Unpickle, which runs whatever the file says. The registry lets it through for models of trusted signers only."""
    types: tuple[str, ...] = ()
    """Types beyond a format's own, by full name, that may be made again: ``package.module.Class``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedModel:
    """What a format makes of a model: the parts of its manifest that the model itself decides."""

    files: Mapping[str, Buffer | Cid] | Cid
    """By relative path: bytes, or files that are stored already; or a directory that is."""
    code: Cid | None = None
    """The code record of the model's class."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What the class is made with again; plain values."""
    inputs: tuple[Mapping[str, Any], ...] = ()
    """As in :attr:`~holdfast.registry.records.ModelRecord.inputs`, where the model knows."""
    outputs: tuple[Mapping[str, Any], ...] = ()


class ModelFormat(Protocol):
    """One way to keep the models of one framework. What is got back gives the same outputs as what was saved."""

    framework: ClassVar[str]
    """Such as ``pytorch``."""
    name: ClassVar[str]
    """Of the format, such as ``safetensors``; the two together are in each manifest, and never change their meaning."""

    def accepts(self, model: Any) -> bool:
        """Whether this is a model of the format; asked without importing any framework."""
        ...

    def save(self, store: ContentStore, model: Any) -> SavedModel:
        """Store what is large, and give the rest; the model stays as it was.

        Raises:
            InvalidInput: It could be stored, but not be loaded again; the message says what to change.
            Unsupported: The framework's package is not installed.
        """
        ...

    def load(self, store: ContentStore, cid: Cid, record: ModelRecord, trust: Trust) -> Any:
        """The model, ready for inference.

        Args:
            store: Gives its files, verified.
            cid: Of the manifest, for messages.
            record: The manifest.
            trust: What may happen on the way.

        Raises:
            Corrupt: The files are not what the format says.
            Denied: Something would have to run that ``trust`` does not allow.
            InvalidInput: The manifest does not describe a model of this format.
            NotFound: Nobody has one of the blocks.
            Unsupported: The framework's package is not installed.
        """
        ...
