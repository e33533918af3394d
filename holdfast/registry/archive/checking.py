"""Whether a stream of blocks is exactly one archive: nothing missing, nothing foreign, every name what it says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, HoldfastError, NotFound
from holdfast.registry.archive.archive_record import ARCHIVE, ArchiveRecord
from holdfast.registry.archive.contents import Amount, Below, check_amount, links_below, record_in
from holdfast.registry.proof.attestations import Attestation
from holdfast.registry.records import RECORDS, AttestationRecord, ConversionRecord
from holdfast.storage.cid import RAW, Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from holdfast.storage.cid import Buffer

__all__ = ["ArchiveCheck"]

_SHOWN = 3


class ArchiveCheck:
    """Looks at each block as it passes; what it remembers are CIDs, never bytes of files.

    Args:
        root: Of the archive.
        on_names: Called with the archive as soon as it is known what is in it, which is early in those that holdfast writes;
            what it raises ends the stream.
    """

    def __init__(self, root: Cid, on_names: Callable[[ArchiveRecord], object]) -> None:
        self._root = root
        self._on_names = on_names
        self._seen: set[Cid] = set()
        self._amount: Amount = "all"
        self._below: dict[Cid, tuple[list[Below], list[Below]]] = {}
        """What must come along with each block that has links."""
        self._own: dict[Cid, Any] = {}
        self._kinds: dict[Cid, str] = {}
        self._faults: dict[Cid, str] = {}
        self._about: dict[Cid, tuple[Cid, ...]] = {}
        """The subjects of each attestation that is signed rightly."""
        self._converted: dict[Cid, Cid] = {}
        """The model of each ONNX form."""
        self._archive: ArchiveRecord | None = None

    @property
    def archive(self) -> ArchiveRecord:
        """What the archive holds, once its own records have passed."""
        if self._archive is None:
            raise NotFound(f"the CAR does not hold all of its root, the archive {self._root}")
        return self._archive

    def passing(self, blocks: Iterable[tuple[Cid, Buffer]]) -> Iterator[tuple[Cid, Buffer]]:
        """Yield the blocks as they come, each once.

        Raises:
            NotFound: Blocks are missing in it.
            Corrupt: Blocks are in it that do not belong to it, or a name is of another kind than it says.
            InvalidInput: It is no archive.
        """
        for cid, data in blocks:
            if not self._seen and cid != self._root:
                raise Corrupt(
                    f"the CAR does not begin with its root {self._root}, as an archive does; nothing was imported"
                )
            if cid not in self._seen:
                self._look(cid, data)
                yield cid, data
        self._finish()

    def _look(self, cid: Cid, data: Buffer) -> None:
        self._seen.add(cid)
        if cid.codec == RAW and cid != self._root:
            return
        record = record_in(cid, data)
        kind = record.get("kind") if record is not None else None
        if cid == self._root:
            ArchiveRecord.parts_of(cid, record)  # it is an archive, or there is nothing to look at
        if isinstance(kind, str):
            self._kinds[cid] = kind
            if kind.startswith(ARCHIVE):
                self._note_own(cid, record)
            if kind in RECORDS:
                try:
                    read = RECORDS[kind].from_record(record, cid)
                    if isinstance(read, AttestationRecord):
                        attestation = Attestation.of_record(cid, read)
                        attestation.check()
                        self._about[cid] = attestation.statement.subjects
                    elif isinstance(read, ConversionRecord):
                        self._converted[cid] = read.model
                except HoldfastError as error:
                    self._faults[cid] = str(error)
        self._below[cid] = links_below(cid, data, amount=self._amount)

    def _note_own(self, cid: Cid, record: Any) -> None:
        self._own[cid] = record
        if cid == self._root:
            self._amount = check_amount(str(record.get("bytes")))
        if self._archive is None:
            parts = ArchiveRecord.parts_of(self._root, self._own[self._root])
            if all(part in self._own for part in parts):
                self._archive = ArchiveRecord.of_records(self._root, self._own)
                self._on_names(self._archive)

    def _finish(self) -> None:
        needed, by = self._needed()
        missing = [cid for cid in needed if cid not in self._seen]
        if missing:
            told = ", ".join(f"{cid} (linked by {by[cid]})" for cid in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise NotFound(
                f"the CAR lacks blocks of its archive {self._root}: {told}{more}; nothing was imported"
            )
        foreign = sorted(self._seen - set(needed))
        if foreign:
            told = ", ".join(map(str, foreign[:_SHOWN])) + (", ..." if len(foreign) > _SHOWN else "")
            raise Corrupt(
                f"the CAR holds {len(foreign)} blocks that its archive {self._root} does not lead to: {told}; nothing was imported"
            )
        for name in self.archive.names:
            if fault := self._fault(name.cid, name.kind):
                raise Corrupt(
                    f"the archive calls {name.name}:{name.version} a {name.kind}, but {fault}; nothing was imported"
                )
            if name.kind == ConversionRecord.kind and str(self._converted[name.cid]) != name.name:
                raise Corrupt(
                    f"the archive calls {name.cid} an ONNX form of {name.name}, but it is one of {self._converted[name.cid]}; "
                    "nothing was imported"
                )
        for cid in self.archive.attestations:
            if fault := self._fault(cid, AttestationRecord.kind):
                raise Corrupt(f"the archive lists {cid} as an attestation, but {fault}; nothing was imported")
            if absent := [subject for subject in self._about[cid] if subject not in by]:
                raise Corrupt(
                    f"the attestation {cid} is about {absent[0]}, which is not in the archive; nothing was imported"
                )

    def _fault(self, cid: Cid, kind: str) -> str | None:
        """Why something is no good record of a kind; None if it is one."""
        found = self._kinds.get(cid, "no record")
        return self._faults.get(cid, None if found == kind else f"{cid} is {found}")

    def _needed(self) -> tuple[list[Cid], dict[Cid, Cid]]:
        """Every block that the archive leads to, and one that links it."""
        by: dict[Cid, Cid] = {self._root: self._root}
        pending: list[Below] = [(self._root, False)]
        seen = set(pending)
        while pending:
            cid, is_ancestor = pending.pop()
            whole, ancestor = self._below.get(cid, ((), ()))
            for below in ancestor if is_ancestor else whole:
                by.setdefault(below[0], cid)
                if below not in seen:
                    seen.add(below)
                    pending.append(below)
        return list(by), by
