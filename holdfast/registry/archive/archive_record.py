"""The root of an archive: its names, the commits that made them and who signed what, in records that no number of names outgrows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput, Unsupported
from holdfast.registry.archive.contents import Amount, check_amount
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.registry.names import NameEntry

__all__ = ["ARCHIVE", "ArchiveRecord", "ArchivedName"]

ARCHIVE, ENTRIES, COMMITS, ATTESTATIONS = (
    "archive",
    "archive-entries",
    "archive-commits",
    "archive-attestations",
)
FORMAT = 1
_IN_ONE = 2000
"""Entries of one record: it stays well below the size of a block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedName:
    """One version of one name."""

    kind: str
    name: str
    version: str
    cid: Cid
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)

    @classmethod
    def of(cls, entry: NameEntry) -> ArchivedName:
        """What an archive says of a registry's entry."""
        return cls(
            kind=entry.kind,
            name=entry.name,
            version=entry.version,
            cid=entry.cid,
            aliases=entry.aliases,
            tags=dict(entry.tags),
        )

    def to_record(self) -> dict[str, Any]:
        """Plain values and a Cid."""
        return {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "cid": self.cid,
            "aliases": list(self.aliases),
            "tags": dict(self.tags),
        }

    @classmethod
    def from_record(cls, value: Any) -> ArchivedName:
        """The name that :meth:`to_record` wrote.

        Raises:
            Corrupt: It is something else.
        """
        texts = ("kind", "name", "version")
        if (
            not isinstance(value, dict)
            or not all(isinstance(value.get(name), str) for name in texts)
            or not isinstance(value.get("cid"), Cid)
            or not isinstance(value.get("aliases"), list)
            or not all(isinstance(alias, str) for alias in value["aliases"])
            or not isinstance(value.get("tags"), dict)
        ):
            raise Corrupt(f"the archive lists something that is no name: {value!r:.200}")
        known = {name: value[name] for name in (*texts, "cid", "tags")}
        return cls(**known, aliases=tuple(value["aliases"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRecord:
    """What an archive holds."""

    amount: Amount
    names: tuple[ArchivedName, ...]
    commits: tuple[Cid, ...]
    """The changes of these names in the registry that it came from, newest first."""
    attestations: tuple[Cid, ...] = ()
    """What was signed about records that are in it. An archive from before there were any has none."""

    def blocks(self) -> list[tuple[Cid, bytes]]:
        """The records, the root first."""
        below: list[tuple[Cid, bytes]] = []

        def listed(kind: str, items: Sequence[Any]) -> list[Cid]:
            found = []
            for at in range(0, len(items), _IN_ONE):
                data = dag_cbor.encode({"kind": kind, "items": list(items[at : at + _IN_ONE])})
                found.append(Cid.of(data, DAG_CBOR))
                below.append((found[-1], data))
            return found

        root = {
            "kind": ARCHIVE,
            "format": FORMAT,
            "bytes": self.amount,
            "names": listed(ENTRIES, [name.to_record() for name in self.names]),
            "commits": listed(COMMITS, self.commits),
        }
        if self.attestations:
            root["attestations"] = listed(ATTESTATIONS, self.attestations)
        data = dag_cbor.encode(root)
        return [(Cid.of(data, DAG_CBOR), data), *below]

    @classmethod
    def parts_of(cls, root: Cid, record: Any) -> list[Cid]:
        """The records that a root links; with all of them, :meth:`of_records` reads it.

        Raises:
            InvalidInput: It is no archive.
            Unsupported: Of a later holdfast.
        """
        if not isinstance(record, dict) or record.get("kind") != ARCHIVE:
            raise InvalidInput(
                f"the root {root} of this CAR is not an archive of a registry; 'holdfast import' takes any CAR"
            )
        if record.get("format") != FORMAT:
            raise Unsupported(
                f"the archive {root} has the format {record.get('format')!r:.40}; this holdfast reads {FORMAT}"
            )
        links = [record.get("names"), record.get("commits"), record.get("attestations", [])]
        if not all(isinstance(some, list) and all(isinstance(link, Cid) for link in some) for some in links):
            raise Corrupt(f"the archive {root} does not say what is in it")
        return [link for some in links for link in some or ()]

    @classmethod
    def of_records(cls, root: Cid, records: Mapping[Cid, Any]) -> ArchiveRecord:
        """The archive of a root, read from its own records and those that it links.

        Raises:
            Corrupt: One of them is something else.
        """
        record = records[root]
        cls.parts_of(root, record)

        def items(field: str, kind: str) -> list[Any]:
            found: list[Any] = []
            for link in record.get(field, ()):
                one = records[link]
                if (
                    not isinstance(one, dict)
                    or one.get("kind") != kind
                    or not isinstance(one.get("items"), list)
                ):
                    raise Corrupt(f"the archive {root} links {link} as its {field}, which it is not")
                found += one["items"]
            return found

        commits, attestations = items("commits", COMMITS), items("attestations", ATTESTATIONS)
        if not all(isinstance(link, Cid) for link in (*commits, *attestations)):
            raise Corrupt(f"the archive {root} lists commits or attestations that are no links")
        return cls(
            amount=check_amount(str(record.get("bytes"))),
            names=tuple(ArchivedName.from_record(item) for item in items("names", ENTRIES)),
            commits=tuple(commits),
            attestations=tuple(attestations),
        )
