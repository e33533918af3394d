"""Names with everything that they stand for, out of a client's registry and into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.registry.archive.exporting import export_archive
from holdfast.registry.archive.importing import copy_names, import_archive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from holdfast.cluster.backend import Backend
    from holdfast.registry.archive.exporting import Exported
    from holdfast.registry.archive.importing import Imported
    from holdfast.registry.names import Names
    from holdfast.registry.proof import Attestations
    from holdfast.storage.content import ContentStore

__all__ = ["RegistryArchives"]


class RegistryArchives:
    """The registry that a client is connected to, as something that can be carried away, and brought.

    Args:
        store: The client's own, through which the blocks pass.
        backend: Where the names are.
    """

    def __init__(self, store: ContentStore, backend: Backend) -> None:
        self._store = store
        self._backend = backend

    @property
    def _parts(self) -> tuple[ContentStore, Names, Attestations]:
        return self._store, self._backend.names, self._backend.attestations

    def export_to(
        self,
        path: str | Path,
        *,
        refs: Sequence[str] | None = None,
        kind: str | None = None,
        amount: str = "all",
        progress: Callable[[int], object] | None = None,
    ) -> Exported:
        """Names with their records, signatures and bytes as one CAR file, which :meth:`import_from` takes in anywhere, offline.

        Args:
            path: The file, which must not exist.
            refs: ``name`` (all its versions), ``name:1.0.0`` or ``name@alias``; None for the whole registry.
            kind: Among ``model``, ``index`` or ``dataset`` only.
            amount: ``all``; ``files``: all but the rows of datasets; ``records``: the lineage alone.
            progress: Told how many more bytes were written.

        Raises:
            NotFound: No such name, or a block that nobody has; nothing is written.
            Conflict: The file exists.
        """
        return export_archive(*self._parts, path, refs=refs, kind=kind, amount=amount, progress=progress)

    def import_from(
        self,
        source: str | Path | BinaryIO,
        *,
        prefix: str = "",
        rename: Mapping[str, str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Imported:
        """Take in an archive; all of it is checked before anything changes, and the same one again changes nothing.

        Args:
            source: The CAR file, or a stream of one.
            prefix: Put before each name that ``rename`` does not mention.
            rename: Other names, by the archive's own.
            progress: Told how many more bytes were read.

        Raises:
            Corrupt: It is damaged, holds foreign blocks, or calls something what it is not.
            NotFound: Blocks are missing in it.
            Conflict: A version is something else here.
            InvalidInput: It is no archive of a registry, or a name can't be one.
        """
        return import_archive(
            *self._parts,
            source,
            prefix=prefix,
            rename=rename,
            publish=self._backend.publish,
            progress=progress,
        )

    def copy_to(
        self,
        target: RegistryArchives,
        *,
        refs: Sequence[str] | None = None,
        kind: str | None = None,
        amount: str = "all",
        prefix: str = "",
        rename: Mapping[str, str] | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Imported:
        """Names with their blocks to where another client is connected, as they are read.

        Args:
            target: The ``registry`` of the other client.
            refs: As of :meth:`export_to`; so are ``kind`` and ``amount``.
            kind: Among these only.
            amount: How much goes along.
            prefix: As of :meth:`import_from`; so is ``rename``, and so are the errors.
            rename: Other names.
            progress: Told how many more bytes were read.
        """
        return copy_names(
            self._parts,
            target._parts,
            refs=refs,
            kind=kind,
            amount=amount,
            prefix=prefix,
            rename=rename,
            publish=target._backend.publish,
            progress=progress,
        )
