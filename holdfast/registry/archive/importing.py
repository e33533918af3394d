"""Names into a registry, from an archive: all of it is checked before anything can be seen, or nothing happens at all."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.registry.archive.checking import ArchiveCheck
from holdfast.registry.archive.exporting import CONVERSION, archive_of
from holdfast.registry.models.model_registry import model_facts
from holdfast.registry.names.references import checked_name, checked_tag, checked_version, checked_word
from holdfast.registry.records import ModelRecord, load_record
from holdfast.storage.formats.car import car_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from holdfast.registry.archive.archive_record import ArchivedName, ArchiveRecord
    from holdfast.registry.names import NameEntry, Names
    from holdfast.registry.proof import Attestations
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.content import ContentStore

__all__ = ["Imported", "copy_names", "import_archive"]

MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came in."""

    root: Cid
    entries: tuple[NameEntry, ...]
    """The names of the archive, as they are here now."""
    new: int
    """How many of them were not here before."""
    kept_aliases: tuple[str, ...]
    """Aliases that point to another version here, and were left alone: ``digits@champion``."""
    attestations: int
    """How many signed statements about what came in came along; whom to trust is still said here."""
    left_conversions: int
    """ONNX forms that were left out, for their models were here before: what is served for those is not an archive's to say."""
    new_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "root": str(self.root),
            "names": [entry.to_json() for entry in self.entries],
            "new": self.new,
            "kept_aliases": list(self.kept_aliases),
            "attestations": self.attestations,
            "left_conversions": self.left_conversions,
            "new_bytes": self.new_bytes,
        }


def import_archive(
    store: ContentStore,
    names: Names,
    attestations: Attestations,
    source: str | os.PathLike[str] | BinaryIO,
    *,
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    publish: Callable[[Cid], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Imported:
    """Store what an archive holds, and give it its names; the same archive again changes nothing.

    Args:
        store: Takes the blocks.
        names: Take the names.
        attestations: Take what was signed.
        source: The CAR file, or a stream of one.
        prefix: Put before each name that ``rename`` does not mention.
        rename: Other names, by the archive's own.
        publish: Called with each CID before it is named, to bring its blocks where the names are.
        progress: Told how many more bytes were read.

    Raises:
        Corrupt: The CAR is damaged, holds blocks that do not belong to it, or calls something what it is not.
        NotFound: Blocks of the archive are missing in it, or there is no such file.
        Conflict: A version is something else here; or was, before it was removed.
        InvalidInput: It is no archive of a registry, or a name can't be one.
    """
    naming = _Naming(store, names, attestations, prefix=prefix, rename=rename or {})
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise NotFound(f"there is no file {path}")
        with path.open("rb") as file:
            return _import_stream(store, naming, file, publish, progress)
    return _import_stream(store, naming, source, publish, progress)


def _import_stream(
    store: ContentStore,
    naming: _Naming,
    stream: BinaryIO,
    publish: Callable[[Cid], object] | None,
    progress: Callable[[int], object] | None,
) -> Imported:
    reader = car_blocks(stream)
    if len(reader.roots) != 1:
        raise InvalidInput(
            f"this CAR has {len(reader.roots)} roots, and is no archive of a registry; 'holdfast import' takes any CAR"
        )
    return _take_in(store, naming, reader.roots[0], _counted(reader, progress), publish)


def copy_names(
    source: tuple[ContentStore, Names, Attestations],
    target: tuple[ContentStore, Names, Attestations],
    *,
    refs: Sequence[str] | None = None,
    kind: str | None = None,
    amount: str = "all",
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    publish: Callable[[Cid], object] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Imported:
    """Names with their blocks from one registry to another, as they are read, in constant memory.

    Args:
        source: Where from.
        target: Where to.
        refs: As of :func:`~holdfast.registry.archive.exporting.export_archive`; so are ``kind`` and ``amount``, and the errors.
        kind: Among these only.
        amount: ``all``, ``files`` or ``records``.
        prefix: As of :func:`import_archive`; so are the others, and the errors.
        rename: Other names.
        publish: Brings blocks to where the target's names are.
        progress: Told how many more bytes were read.
    """
    root, _, blocks = archive_of(*source, refs=refs, kind=kind, amount=amount)
    store, names, attestations = target
    naming = _Naming(store, names, attestations, prefix=prefix, rename=rename or {})
    return _take_in(store, naming, root, _counted(blocks, progress), publish)


def _counted(
    blocks: Iterable[tuple[Cid, Buffer]], progress: Callable[[int], object] | None
) -> Iterator[tuple[Cid, Buffer]]:
    for cid, data in blocks:
        if progress is not None:
            progress(memoryview(data).nbytes)
        yield cid, data


def _take_in(
    store: ContentStore,
    naming: _Naming,
    root: Cid,
    blocks: Iterable[tuple[Cid, Buffer]],
    publish: Callable[[Cid], object] | None,
) -> Imported:
    check = ArchiveCheck(root, naming.check)
    # Until it is named, no garbage collection takes it.
    with store.pins.adding() if store.pins is not None else nullcontext():
        # What the check raises ends this, too, and then none of the blocks is there.
        new_bytes = store.blocks.put_many(check.passing(blocks))
        if publish is not None:
            for cid in dict.fromkeys(name.cid for name in check.archive.names):
                publish(cid)
        taken = naming.taken(check.archive)
        entries, new, kept = naming.give(check.archive, taken)
        for commit in check.archive.commits:
            store.hold(f"imported commit {commit}", commit, recursive=False)
    return Imported(
        root=root,
        entries=tuple(entries),
        new=new,
        kept_aliases=tuple(kept),
        attestations=len(check.archive.attestations),
        left_conversions=len(check.archive.names) - len(taken),
        new_bytes=new_bytes,
    )


class _Naming:
    """The names of an archive as they shall be here, with what was signed about what they name."""

    def __init__(
        self,
        store: ContentStore,
        names: Names,
        attestations: Attestations,
        *,
        prefix: str,
        rename: Mapping[str, str],
    ) -> None:
        self._store = store
        self._names = names
        self._attestations = attestations
        self._prefix = prefix
        self._rename = rename

    def check(self, archive: ArchiveRecord) -> None:
        """Fail before a block is stored, where a name can't be given."""
        for old in self._rename:
            if all(name.name != old for name in archive.names):
                known = ", ".join(sorted({name.name for name in archive.names if name.kind != CONVERSION}))
                raise InvalidInput(f"the archive has no name {old!r} that could be renamed; it has {known}")
        given: dict[tuple[str, str, str], Cid] = {}
        for name in self.taken(archive):
            new = self._new(name)
            checked_name(name.kind, new)
            checked_version(name.version)
            for alias in name.aliases:
                checked_word(alias, "an alias")
            for key, value in name.tags.items():
                checked_word(key, "the key of a tag")
                checked_tag(value)
            here = self._here(name) or given.get((name.kind, new, name.version))
            if here is not None and here != name.cid:
                raise Conflict(
                    f"{name.kind} {new}:{name.version} is {here} here, and {name.cid} in the archive: a version never changes, so "
                    "import it under a prefix or another name; nothing was imported"
                )
            given[name.kind, new, name.version] = name.cid

    def taken(self, archive: ArchiveRecord) -> list[ArchivedName]:
        """Its names without the ONNX forms of models that are named here already, but for those that are known here, too."""
        return [
            name
            for name in archive.names
            if name.kind != CONVERSION
            or self._here(name) == name.cid
            or not self._names.search(MODEL, cid=name.name, limit=1)
        ]

    def give(
        self, archive: ArchiveRecord, taken: Sequence[ArchivedName]
    ) -> tuple[list[NameEntry], int, list[str]]:
        """Register all that is taken, or none: the entries, how many are new, and the aliases that stay where they point."""
        fresh = [name for name in taken if self._here(name) is None]
        done: list[ArchivedName] = []
        try:
            for name in fresh:
                facts = None
                if name.kind == MODEL:
                    facts = model_facts(load_record(self._store, name.cid, ModelRecord))
                self._names.register(name.kind, self._new(name), name.version, name.cid, facts=facts)
                done.append(name)
        except BaseException:
            # Somebody was quicker, or a version was removed here before, which only the table itself knows.
            for name in done:
                self._names.unregister(name.kind, self._new(name), name.version)
            raise
        kept = [
            f"{self._new(name)}@{alias}"
            for name in taken
            for alias in name.aliases
            if not self._point(name, alias)
        ]
        for name in taken:
            self._tag(name)
        for attestation in archive.attestations:
            self._attestations.add(attestation)
        entries = [self._names.resolve(name.kind, f"{self._new(name)}:{name.version}") for name in taken]
        return entries, len(fresh), kept

    def _new(self, name: ArchivedName) -> str:
        """What a name is called here. A conversion's is the CID of its model, which stays."""
        if name.kind == CONVERSION:
            return name.name
        return self._rename.get(name.name, self._prefix + name.name)

    def _here(self, name: ArchivedName) -> Cid | None:
        try:
            return self._names.resolve(name.kind, f"{self._new(name)}:{name.version}").cid
        except NotFound:
            return None

    def _point(self, name: ArchivedName, alias: str) -> bool:
        """Whether an alias points to the version now; one that pointed elsewhere before stays there."""
        try:
            found = self._names.resolve(name.kind, f"{self._new(name)}@{alias}")
        except NotFound:
            try:
                self._names.set_alias(name.kind, self._new(name), alias, name.version, expected=None)
            except Conflict:
                return False
            return True
        return found.version == name.version

    def _tag(self, name: ArchivedName) -> None:
        """Give a version the tags that it has not got here."""
        here = self._names.resolve(name.kind, f"{self._new(name)}:{name.version}").tags
        for key, value in name.tags.items():
            if key not in here:
                with suppress(Conflict):  # somebody was quicker, and theirs stays
                    self._names.set_tag(name.kind, self._new(name), name.version, key, value, expected=None)
