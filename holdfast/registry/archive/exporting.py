"""Names out of a registry: chosen, with their blocks, as a stream or as a CAR file."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, NotFound, disk_errors
from holdfast.registry.archive.archive_record import ArchivedName, ArchiveRecord
from holdfast.registry.archive.contents import blocks_of, check_amount
from holdfast.registry.proof.attestations import read_attestation
from holdfast.storage.formats.car import car_frames

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from holdfast.registry.names import NameEntry, Names
    from holdfast.registry.proof import Attestations
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.content import ContentStore

__all__ = ["Exported", "archive_of", "export_archive"]

CONVERSION = "conversion"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    root: Cid
    names: tuple[ArchivedName, ...]
    attestations: int
    """How many signed statements about what is in it go along."""
    size_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "root": str(self.root),
            "names": [f"{name.kind} {name.name}:{name.version}" for name in self.names],
            "attestations": self.attestations,
            "size_bytes": self.size_bytes,
        }


def export_archive(
    store: ContentStore,
    names: Names,
    attestations: Attestations,
    path: str | os.PathLike[str],
    *,
    refs: Sequence[str] | None = None,
    kind: str | None = None,
    amount: str = "all",
    progress: Callable[[int], object] | None = None,
) -> Exported:
    """Write names with their blocks as one CAR file, in constant memory; it appears when it is complete.

    Args:
        store: Gives the blocks; missing ones are fetched.
        names: Of the registry.
        attestations: Of the registry; those about records of the archive go along.
        path: The file, which must not exist.
        refs: ``name`` (all its versions), ``name:1.0.0`` or ``name@alias``; None for the whole registry.
        kind: Look for the references among ``model``, ``index`` or ``dataset`` only; default: in this order.
        amount: ``all``; ``files``: all but the rows of datasets; ``records``: the records only.
        progress: Told how many more bytes were written.

    Raises:
        NotFound: No such name, or a block that nobody has; nothing is written.
        Conflict: The file exists.
        InvalidInput: No such amount.
    """
    target = Path(path)
    if target.exists():
        raise Conflict(f"{target} exists: choose another name, or remove it first")
    if not target.parent.is_dir():
        raise NotFound(f"there is no folder {target.parent} to write {target.name} to")
    root, archive, blocks = archive_of(store, names, attestations, refs=refs, kind=kind, amount=amount)
    partial = target.with_name(f".{target.name}.part")
    written = 0
    try:
        with disk_errors(target.parent):
            with partial.open("wb") as file:
                for frame in car_frames([root], blocks):
                    file.write(frame)
                    written += len(frame)
                    if progress is not None:
                        progress(len(frame))
            partial.rename(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return Exported(
        root=root, names=archive.names, attestations=len(archive.attestations), size_bytes=written
    )


def archive_of(
    store: ContentStore,
    names: Names,
    attestations: Attestations,
    *,
    refs: Sequence[str] | None = None,
    kind: str | None = None,
    amount: str = "all",
) -> tuple[Cid, ArchiveRecord, Iterator[tuple[Cid, Buffer]]]:
    """The root of an archive, what it holds, and its blocks, which are read as they are asked for.

    See :func:`export_archive` for the arguments and errors.
    """
    wanted = check_amount(amount)
    entries = _chosen(names, refs, kind)
    archive = ArchiveRecord(
        amount=wanted,
        names=tuple(ArchivedName.of(entry) for entry in entries),
        commits=tuple(_commits(names, entries)),
        attestations=tuple(_attestations(store, attestations, [entry.cid for entry in entries])),
    )
    records = archive.blocks()
    own = {cid for cid, _ in records}

    def blocks() -> Iterator[tuple[Cid, Buffer]]:
        roots = chain((name.cid for name in archive.names), archive.commits, archive.attestations)
        below = (pair for pair in blocks_of(store, dict.fromkeys(roots), amount=wanted) if pair[0] not in own)
        yield from chain(records, below)

    return records[0][0], archive, blocks()


def _chosen(names: Names, refs: Sequence[str] | None, kind: str | None) -> list[NameEntry]:
    """The entries of some references, each once; with each model its conversions, so that it can be served."""
    if refs is None:
        return [entry for entry in names.entries() if kind in (None, entry.kind)]
    found: dict[tuple[str, str, str], NameEntry] = {}
    for ref in refs:
        for entry in _entries_of(names, ref, kind):
            found[entry.kind, entry.name, entry.version] = entry
            for also in names.search(CONVERSION, name=str(entry.cid), limit=None)[-1:]:  # the newest
                found[also.kind, also.name, also.version] = also
    return list(found.values())


def _entries_of(names: Names, ref: str, kind: str | None) -> list[NameEntry]:
    """What a reference means; of a name alone all versions."""
    entry = names.resolve(kind, ref)
    return names.search(entry.kind, name=entry.name, limit=None) if ref == entry.name else [entry]


def _commits(names: Names, entries: list[NameEntry]) -> list[Cid]:
    """The commits that changed these names, newest first."""
    of = {(entry.kind, entry.name) for entry in entries}

    def concerns(change: Mapping[str, Any]) -> bool:
        return any((change.get("kind"), change.get(field)) in of for field in ("name", "to"))

    return [commit.cid for commit in names.history() if concerns(commit.change)]


def _attestations(store: ContentStore, attestations: Attestations, roots: Sequence[Cid]) -> list[Cid]:
    """The attestations that are about records below some roots, and about nothing else."""
    records = {cid for cid, _ in blocks_of(store, roots, amount="records")}
    found = {entry.attestation for entry in attestations.find(list(records))}
    return sorted(
        (cid for cid in found if records.issuperset(read_attestation(store, cid).statement.subjects)), key=str
    )
