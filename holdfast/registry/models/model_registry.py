"""The model registry: versions and aliases of models, each of which links what it was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from holdfast.errors import Denied, InvalidInput
from holdfast.registry.models.formats import format_of, manifest_of
from holdfast.registry.models.model_diff import ModelDiff, diff_models
from holdfast.registry.models.model_format import Trust
from holdfast.registry.names.facts import facts_of_model
from holdfast.registry.names.references import checked_name, checked_version, checked_word
from holdfast.registry.proof.policy import check_trusted
from holdfast.registry.records import ModelRecord, RunRecord, load_record
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from holdfast.registry.names import NameEntry, Names
    from holdfast.registry.names.facts import Facts
    from holdfast.registry.names.history import Commit
    from holdfast.registry.proof import Signatures
    from holdfast.storage.content import ContentStore

__all__ = ["ModelRegistry", "model_facts"]

KIND = "model"
_DATASET_KEY = "dataset_cid"


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

            settings = load_settings()
            opened_store, opened_names = open_registry(settings)
            store, names = store or opened_store, names or opened_names
            signatures = signatures or open_signatures(settings, store)
        self._store = store
        self._names = names
        self._publish = publish or (lambda _: None)
        self._signatures = signatures

    # -------------------------------------------------------------------------------------------- storing

    def register(
        self,
        name: str,
        model: Any,
        version: str | None = None,
        *,
        aliases: Iterable[str] = (),
        **about: Any,
    ) -> NameEntry:
        """Give a model a version of a name.

        Args:
            name: Letters, digits, dots, dashes and underscores.
            model: The CID of a stored model, or a model as :meth:`store_model` takes it.
            version: Like ``1.0.0``; default: the next minor version.
            aliases: Such as ``champion``; each is moved to this version.
            about: For models that are not stored yet: the other arguments of :meth:`store_model`.

        Raises:
            Conflict: The version is another model already.
            InvalidInput: ``model`` is no model, or an alias is no name.
            Unsupported: It is of no framework that is known.
        """
        if isinstance(aliases, str):
            raise InvalidInput(f"aliases is a list of names: [{aliases!r}]")
        checked_name(KIND, name)
        if version is not None:
            checked_version(version)
        aliases = [checked_word(alias, "an alias") for alias in aliases]
        if isinstance(model, (Cid, str)):
            cid = Cid.parse(model)
            record = load_record(self._store, cid, ModelRecord)
            if given := [key for key, value in about.items() if value]:
                raise InvalidInput(
                    f"{', '.join(given)}: such facts are part of a stored model's manifest and can't be added to it"
                )
        else:
            cid = self.store_model(model, **about)
            record = load_record(self._store, cid, ModelRecord)
        self._publish(cid)
        entry = self._names.register(KIND, name, version, cid, facts=model_facts(record))
        for alias in aliases:
            entry = self._names.set_alias(KIND, name, alias, entry.version)
        return entry

    def store_model(
        self,
        model: Any,
        model_type: str = "",
        framework: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        run: Cid | None = None,
        parent: Cid | str | None = None,
        data: Iterable[Cid] = (),
        inputs: Iterable[Mapping[str, Any]] | None = None,
        outputs: Iterable[Mapping[str, Any]] | None = None,
        licence: str = "",
        card: str | None = None,
    ) -> Cid:
        """Store a model without naming it; gives the manifest's CID.

        Args:
            model: A torch module (its class at the top level of an importable module; if the constructor takes arguments, the
                module keeps them as a dict in its attribute ``config``); a torch state dict; an exported program; a
                scikit-learn estimator; an ONNX graph; a transformers or Keras model; a booster; a tree of JAX arrays; or the
                ``pathlib.Path`` of a ``.safetensors``, ``.pt2``, ``.onnx`` or ``.keras`` file, or of a transformers folder.
            model_type: What its makers call it, such as ``resnet50``.
            framework: Where a model could be of several: ``pytorch``, ``sklearn``, ... ``pickle`` takes any object, and is opened
                again for trusted signers only.
            metadata: Plain values for the manifest. A dataset's CID under ``dataset_cid`` is linked like one of ``data``.
            metrics: Numbers, such as the accuracy; models are searched by them.
            run: The run that made it.
            parent: The model that it was made from, as a CID or a reference.
            data: The dataset versions that it learned from.
            inputs: What it takes: ``name``, ``dtype``, ``shape`` of one sample each; default: what the model itself knows.
            outputs: What it gives.
            licence: An SPDX expression.
            card: The text of a model card, in Markdown.

        Raises:
            InvalidInput: The model can't be loaded again, a fact can't be recorded, or ``run``, ``parent`` or ``data`` is something else.
            NotFound: Nobody has the run, the parent or a dataset.
            Unsupported: It is of no framework that is known.
        """
        from holdfast.storage.datasets.dataset import open_dataset

        facts = dict(metadata or {})
        base = None if parent is None else self.resolve(str(parent))
        learned_from = _datasets(data, facts.get(_DATASET_KEY))
        # Verifying and lineage would stumble over them for ever.
        if run is not None:
            load_record(self._store, run, RunRecord)
        if base is not None:
            load_record(self._store, base, ModelRecord)
        for cid in learned_from:
            open_dataset(self._store, cid)
        made = manifest_of(self._store, model, framework)
        record = replace(
            made,
            run=run,
            parent=base,
            data=learned_from,
            inputs=made.inputs if inputs is None else tuple(inputs),
            outputs=made.outputs if outputs is None else tuple(outputs),
            metrics={name: _plain(value) for name, value in (metrics or {}).items()},
            metadata=facts,
            model_type=model_type,
            licence=licence,
            card=None if card is None else self._store.add_bytes(_text_bytes(card), pin=False),
        )
        return record.store(self._store)

    # -------------------------------------------------------------------------------------------- loading

    def get(self, name: str, version: str | None = None, **trust: Any) -> Any:
        """The model itself, ready to be called.

        Args:
            name: A name (then the newest version), ``name@alias``, ``name:1.0.0``, or a CID.
            version: A version of the name.
            trust: As :meth:`load` takes it.

        Raises:
            NotFound: No such name or version, or a block that nobody has.
            Denied: Loading it would run something that is not trusted.
            InvalidInput: The manifest does not describe a model.
        """
        return self.load(self.resolve(f"{name}:{version}" if version else name), **trust)

    def load(
        self,
        cid: Cid,
        *,
        trust_code: bool = False,
        trusted_types: Iterable[str] = (),
        allow_pickle: bool = False,
        require_signed_by: Sequence[str] | None = None,
    ) -> Any:
        """The model of a manifest's CID.

        Args:
            cid: The manifest.
            trust_code: Run the model's recorded source where it is not installed here.
            trusted_types: Types, by full name, that an estimator may have in it besides the known ones.
            allow_pickle: Open pickles, and other files that run what they say, for which somebody vouches whom this home trusts.
            require_signed_by: Names or keys, one of which must have signed the model, besides what the home requires
                (``registry.require_signed_by``).

        Raises:
            Corrupt: Its files are not what its format says.
            Denied: Loading it would run something that is not trusted, or nobody who must have signed it did.
            InvalidInput: The manifest does not describe a model.
            NotFound: Nobody has one of the blocks.
            Unsupported: Its framework is not installed, or not known.
        """
        cid = Cid.parse(cid)
        if isinstance(trusted_types, str):
            raise InvalidInput(f"trusted_types is a list of names: [{trusted_types!r}]")
        self.check_signed(cid, require_signed_by)
        record = load_record(self._store, cid, ModelRecord)
        refused = self._distrust(cid) if allow_pickle else None
        trust = Trust(code=trust_code, pickle=allow_pickle and refused is None, types=tuple(trusted_types))
        try:
            return format_of(cid, record).load(self._store, cid, record, trust)
        except Denied as error:
            if refused is None:
                raise
            raise Denied(f"{error}. allow_pickle=True did not help: {refused}") from error

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

    def _distrust(self, cid: Cid) -> str | None:
        """Why nothing that is pickled in a model is opened; None where somebody trusted vouches for it."""
        if self._signatures is None:
            return "this registry was opened without signatures=, so nobody can vouch for anything (see open_signatures)"
        try:
            check_trusted(self._signatures, cid, what=f"what is pickled in model {cid}")
        except Denied as error:
            return str(error)
        return None

    def load_model(self, ref: str | Cid, **trust: Any) -> tuple[Any, dict[str, Any]]:
        """The model of a CID or reference, and what its manifest knows: its metadata, with framework, type and metrics.

        Metadata of the names ``framework``, ``model_type`` and ``metrics`` give way to the facts; they are in :meth:`record`.

        Args:
            ref: A CID, name, ``name:1.0.0`` or ``name@alias``.
            trust: As :meth:`load` takes it.

        Raises:
            NotFound: There is no such model.
            Denied: As :meth:`load` raises it, with the others.
        """
        cid = self.resolve(str(ref))
        record = load_record(self._store, cid, ModelRecord)
        known = {
            "framework": record.framework,
            "model_type": record.model_type,
            "metrics": dict(record.metrics),
        }
        return self.load(cid, **trust), dict(record.metadata) | known

    def save_files(self, ref: str | Cid, destination: str | os.PathLike[str]) -> int:
        """Write a model's files, byte for byte as they were stored, to a folder that must not exist; how many bytes.

        Raises:
            Conflict: ``destination`` exists.
            NotFound: There is no such model.
        """
        return self._store.get(self.record(str(ref)).files, destination)

    # ------------------------------------------------------------------------------------------- looking up

    def resolve(self, ref: str) -> Cid:
        """The manifest's CID of a reference, or of a CID's own text."""
        return self._names.cid_of(KIND, ref)

    def record(self, ref: str) -> ModelRecord:
        """The manifest of a reference."""
        return load_record(self._store, self.resolve(ref), ModelRecord)

    def diff(self, first: str | Cid, second: str | Cid) -> ModelDiff:
        """What makes the second model another than the first: facts, data, files and tensors.

        Raises:
            NotFound: There is no such model.
        """
        return diff_models(self._store, self.resolve(str(first)), self.resolve(str(second)))

    def card(self, ref: str) -> str | None:
        """The text of a model's card; None where it has none."""
        cid = self.record(ref).card
        return None if cid is None else bytes(self._store.open(cid)).decode()

    def set_alias(self, name: str, alias: str, version: str, **expected: str | None) -> NameEntry:
        """Point an alias at a version; ``expected=`` makes it compare-and-swap, see :class:`Names`."""
        return self._names.set_alias(KIND, name, alias, version, **expected)

    def search(self, name: str | None = None, **conditions: Any) -> list[NameEntry]:
        """The versions of which everything that is given is true, such as ``metric={"accuracy": (">", 0.9)}``.

        Args:
            name: A name, or a pattern: ``dig*``.
            conditions: As :meth:`Names.search` takes them: ``tag``, ``metric``, ``dataset``, ``alias``, and ``fact``, which may be
                ``framework``, ``format``, ``model_type`` or ``licence``.

        Raises:
            InvalidInput: A condition can't be compared.
        """
        return self._names.search(KIND, name=name, **conditions)

    def set_tag(
        self, name: str, version: str, key: str, value: str | None, **expected: str | None
    ) -> NameEntry:
        """Tag a version; None removes the tag, ``expected=`` makes it compare-and-swap, see :class:`Names`."""
        return self._names.set_tag(KIND, name, version, key, value, **expected)

    def rename(self, name: str, new: str) -> list[NameEntry]:
        """Give all versions of a model another name; gives them under it.

        Raises:
            NotFound: There is no such name.
            Conflict: There is a model called ``new``.
        """
        return self._names.rename(KIND, name, new)

    def history(self, name: str | None = None) -> list[Commit]:
        """Every change of a model's names, or of all models', newest first."""
        return self._names.history(KIND, name)

    def delete(self, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them; the bytes go with the next garbage collection, unless something else keeps them.

        Raises:
            NotFound: No such name or version.
        """
        return self._names.unregister(KIND, name, version)

    def entries(self) -> list[NameEntry]:
        """All versions of all models, newest last within a name."""
        return self._names.entries(KIND)


def model_facts(record: ModelRecord) -> Facts:
    """What a model is found by."""
    texts = {name: getattr(record, name) for name in ("framework", "format", "model_type", "licence")}
    return {
        **facts_of_model(metrics=record.metrics, datasets=record.data),
        **{name: text for name, text in texts.items() if text},
    }


def _datasets(data: Iterable[Cid], named: Any) -> tuple[Cid, ...]:
    """The datasets that are given, and the one that the metadata names, each once."""
    found = list(data)
    if named is not None:
        found.append(named if isinstance(named, Cid) else Cid.parse(str(named)))
    return tuple(dict.fromkeys(found))


def _plain(value: Any) -> Any:
    """A scalar of NumPy, torch or JAX as a plain number; all else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def _text_bytes(card: str) -> bytes:
    try:
        return card.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InvalidInput(f"a card is text that UTF-8 has: {error}") from error
