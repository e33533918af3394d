"""The model registry: versions and aliases of models, each of which links what it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import InvalidInput, Unsupported
from holdfast.registry.code import bundle_code, load_code
from holdfast.registry.names import Reference
from holdfast.registry.records import ModelRecord, load_record
from holdfast.registry.weights import constructor_config, load_weights, weights_to_bytes
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from holdfast.registry.names import NameEntry, Names
    from holdfast.registry.proof import Signatures
    from holdfast.storage.content import ContentStore

__all__ = ["ModelRegistry"]

KIND = "model"


class ModelRegistry:
    """Models by name.

    Args:
        store: Where manifests and weights are; default: the store of ``$HOLDFAST_HOME``.
        names: Where names are kept; default: the names of ``$HOLDFAST_HOME``.
        publish: Called with the CID of each new model before it is named, to bring its blocks where the
            names are; default: nothing to do.
        signatures: Who signed what, and the home's policy for what is loaded; default: those of ``$HOLDFAST_HOME``, and
            none where a store and names are given.
    """

    def __init__(
        self,
        store: ContentStore | None = None,
        names: Names | None = None,
        *,
        publish: Callable[[Cid], object] | None = None,
        signatures: Signatures | None = None,
    ) -> None:
        if store is None or names is None:
            from holdfast.config import load_settings
            from holdfast.registry.opening import open_registry, open_signatures

            opened_store, opened_names = open_registry()
            store, names = store or opened_store, names or opened_names
            signatures = signatures or open_signatures(load_settings(), store)
        self._store = store
        self._names = names
        self._publish = publish or (lambda _: None)
        self._signatures = signatures

    def register(
        self,
        name: str,
        model: Any,
        version: str | None = None,
        *,
        aliases: Iterable[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> NameEntry:
        """Give a model a version of a name.

        Args:
            name: Letters, digits, dots, dashes and underscores.
            model: The CID of a stored model, or a torch module. A module's class must be at the top level of an
                importable module; if its constructor takes arguments, the module keeps them as a
                dict in its attribute ``config``.
            version: Like ``1.0.0``; default: the next minor version.
            aliases: Such as ``champion``; each is moved to this version.
            metadata: Plain values for the manifest; for modules only.

        Raises:
            Conflict: The version is another model already.
            InvalidInput: ``model`` is no model, or an alias is no name.
        """
        if isinstance(aliases, str):
            raise InvalidInput(f"aliases is a list of names: [{aliases!r}]")
        aliases = [Reference.parse(f"{name}@{alias}").alias or "" for alias in aliases]
        if isinstance(model, (Cid, str)):
            cid = Cid.parse(model)
            load_record(self._store, cid, ModelRecord)
            if metadata:
                raise InvalidInput("metadata is part of a stored model's manifest and can't be added to it")
        else:
            cid = self.store_model(model, metadata=metadata)
        self._publish(cid)
        entry = self._names.register(KIND, name, version, cid)
        for alias in aliases:
            entry = self._names.set_alias(KIND, name, alias, entry.version)
        return entry

    def store_model(self, model: Any, *, metadata: Mapping[str, Any] | None = None) -> Cid:
        """Store a torch module without naming it; gives the manifest's CID.

        Raises:
            Unsupported: It is not a torch module.
        """
        import torch

        if not isinstance(model, torch.nn.Module):
            raise Unsupported(f"only torch modules can be stored so far, not {type(model).__name__}")
        return ModelRecord(
            framework="pytorch",
            code=bundle_code(self._store, type(model)),
            config=constructor_config(model),
            weights=self._store.add_bytes(weights_to_bytes(model), pin=False),
            metadata=dict(metadata or {}),
        ).store(self._store)

    def get(
        self,
        name: str,
        version: str | None = None,
        *,
        trust_code: bool = False,
        require_signed_by: Sequence[str] | None = None,
    ) -> Any:
        """The model itself, ready to be called, in evaluation mode.

        Args:
            name: A name (then the newest version), ``name@alias``, ``name:1.0.0``, or a CID.
            version: A version of the name.
            trust_code: Run the model's recorded source where it is not installed here.
            require_signed_by: Names or keys, one of which must have signed the model, besides what the home requires
                (``registry.require_signed_by``).

        Raises:
            NotFound: No such name or version, or a block that nobody has.
            Denied: Nobody who must have signed the model did; or its class is not installed here, and its code is not trusted.
            InvalidInput: What the manifest calls the model's class is none.
        """
        return self.load(
            self.resolve(f"{name}:{version}" if version else name),
            trust_code=trust_code,
            require_signed_by=require_signed_by,
        )

    def load(
        self, cid: Cid, *, trust_code: bool = False, require_signed_by: Sequence[str] | None = None
    ) -> Any:
        """The model of a manifest's CID; see :meth:`get`."""
        import torch

        self.check_signed(cid, require_signed_by)
        record = load_record(self._store, cid, ModelRecord)
        cls = load_code(self._store, record.code, trust=trust_code)
        # Anything else would be a way to call any installed function with a stranger's arguments.
        if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
            raise InvalidInput(f"the code of model {cid} is {cls!r:.100}, not the class of a torch module")
        model = cls(**record.config)
        load_weights(model, self._store.open(record.weights))
        return model.eval()

    def check_signed(self, cid: Cid, require_signed_by: Sequence[str] | None = None) -> None:
        """Return if the home's policy, and the caller's, let a model be used.

        Raises:
            Denied: Nobody who must have signed it did.
            InvalidInput: Signatures are required of a registry that was opened without any.
        """
        if self._signatures is not None:
            self._signatures.require(cid, require_signed_by)
        elif require_signed_by is not None:
            raise InvalidInput(
                "require_signed_by can't be checked: this registry was opened without signatures=, see open_signatures"
            )

    def resolve(self, ref: str) -> Cid:
        """The manifest's CID of a reference, or of a CID's own text."""
        try:
            return Cid.parse(ref)
        except InvalidInput:
            return self._names.resolve(KIND, ref).cid

    def record(self, ref: str) -> ModelRecord:
        """The manifest of a reference."""
        return load_record(self._store, self.resolve(ref), ModelRecord)

    def set_alias(self, name: str, alias: str, version: str, **expected: str | None) -> NameEntry:
        """Point an alias at a version; ``expected=`` makes it compare-and-swap, see :class:`Names`."""
        return self._names.set_alias(KIND, name, alias, version, **expected)

    def entries(self) -> list[NameEntry]:
        """All versions of all models, newest last within a name."""
        return self._names.entries(KIND)
