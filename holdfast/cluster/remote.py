"""A master's names, over its API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from holdfast.registry.names import UNCHECKED, Commit, HistoryCheck, NameEntry, PastNames
from holdfast.registry.names.facts import facts_to_record
from holdfast.registry.names.history import moment_of
from holdfast.registry.proof import AttestationEntry
from holdfast.registry.proof.attestations import MAX_FIND
from holdfast.registry.user import this_user
from holdfast.storage.cid import Cid
from holdfast.storage.formats.car import car_frames

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from holdfast.http_client import HttpClient
    from holdfast.registry.names import Facts
    from holdfast.registry.names.searching import Search
    from holdfast.storage.content import ContentStore

__all__ = ["RemoteAttestations", "RemoteNames", "RemotePastNames"]


class RemotePastNames(PastNames):
    """The names that a master keeps, to be read; see :class:`~holdfast.registry.names.PastNames`.

    Args:
        http: The master.
        at: Seconds since 1970, or the CID of a commit, as text; None means the names of this moment.
    """

    def __init__(self, http: HttpClient, at: str | None = None) -> None:
        self._http = http
        self._at = at

    def resolve(self, kind: str | None, ref: str) -> NameEntry:
        """The version that a reference means."""
        return NameEntry.from_json(self._http.get("/api/v0/names/resolve", kind=kind, ref=ref, at=self._at))

    def entries(self, kind: str | None = None) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        return _entries(self._http.get("/api/v0/names", kind=kind, at=self._at))

    def find(self, search: Search) -> list[NameEntry]:
        """The versions of which everything in ``search`` is true, newest last within a name."""
        given = {"at": self._at} if self._at is not None else {}
        return _entries(self._http.post("/api/v0/names/search", search.to_json() | given))


class RemoteNames(RemotePastNames):
    """The names that a master keeps; see :class:`~holdfast.registry.Names`.

    Args:
        http: The master.
        who: Stands in the commits of what is changed; default: ``user@host`` of this process.
    """

    def __init__(self, http: HttpClient, *, who: str | None = None) -> None:
        super().__init__(http)
        self._who = this_user() if who is None else who

    def register(
        self, kind: str, name: str, version: str | None, cid: Cid, facts: Facts | None = None
    ) -> NameEntry:
        """Give ``cid`` a version of a name; the master must have its blocks, or be able to fetch them."""
        body = {"kind": kind, "name": name, "version": version, "cid": str(cid)}
        given = {"facts": facts_to_record(facts)} if facts is not None else {}
        return self._changed("names", body | given)

    def unregister(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them; gives what was removed."""
        given = {"kind": kind, "name": name} | ({"version": version} if version is not None else {})
        return _entries(self._http.delete(f"/api/v0/names?{urlencode(given | {'who': self._who})}"))

    def rename(self, kind: str, old: str, new: str) -> list[NameEntry]:
        """Give all versions of a name another name; gives them under it."""
        body = {"kind": kind, "old": old, "new": new, "who": self._who}
        return _entries(self._http.post("/api/v0/names/rename", body))

    def set_alias(
        self, kind: str, name: str, alias: str, version: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Point an alias at a version, by compare-and-swap where ``expected`` is given."""
        body = {"kind": kind, "name": name, "alias": alias, "version": version, "expected": expected}
        return self._changed("aliases", body)

    def delete_alias(
        self, kind: str, name: str, alias: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Remove an alias, by compare-and-swap where ``expected`` is given; gives the version that it pointed to."""
        given = {"kind": kind, "name": name, "alias": alias, "expected": expected or "", "who": self._who}
        return NameEntry.from_json(self._http.delete(f"/api/v0/aliases?{urlencode(given)}"))

    def set_tag(
        self,
        kind: str,
        name: str,
        version: str,
        key: str,
        value: str | None,
        *,
        expected: str | None = UNCHECKED,
    ) -> NameEntry:
        """Tag a version, by compare-and-swap where ``expected`` is given; None removes the tag."""
        body = {"kind": kind, "name": name, "version": version, "key": key, "value": value}
        return self._changed("tags", body | {"expected": expected})

    def at(self, when: float | datetime | Cid) -> RemotePastNames:
        """The names as they were; each question has the master rebuild them from its commit records."""
        moment = str(when) if isinstance(when, Cid) else repr(moment_of(when))
        return RemotePastNames(self._http, moment)

    def history(self, kind: str | None = None, name: str | None = None) -> list[Commit]:
        """Every change, newest first."""
        return [
            Commit.from_json(body) for body in self._http.get("/api/v0/names/history", kind=kind, name=name)
        ]

    def verify_history(self) -> HistoryCheck:
        """Every commit hashed again by the master, and compared with its names as they are."""
        return HistoryCheck.from_json(self._http.get("/api/v0/names/verify"))

    def _changed(self, path: str, body: dict[str, Any]) -> NameEntry:
        return NameEntry.from_json(self._http.post(f"/api/v0/{path}", body | {"who": self._who}))


def _entries(bodies: Any) -> list[NameEntry]:
    return [NameEntry.from_json(body) for body in bodies]


class RemoteAttestations:
    """The attestations that a master keeps; see :class:`~holdfast.registry.proof.Attestations`.

    Args:
        http: The master.
        store: Of this node, where new attestations are.
    """

    def __init__(self, http: HttpClient, store: ContentStore) -> None:
        self._http = http
        self._store = store

    def add(self, attestation: Cid) -> list[AttestationEntry]:
        """Send an attestation to the master, which notes and keeps it; what it is about must be there."""
        data = self._store.blocks.get(attestation)
        self._http.post("/api/v0/car", car_frames([attestation], [(attestation, data)]))
        answer = self._http.post("/api/v0/attestations", {"cid": str(attestation)})
        return [AttestationEntry.from_json(body) for body in answer]

    def find(self, subjects: Sequence[Cid]) -> list[AttestationEntry]:
        """The entries that are about any of these, oldest first."""
        found: list[AttestationEntry] = []
        for at in range(0, len(subjects), MAX_FIND):
            asked = [str(cid) for cid in subjects[at : at + MAX_FIND]]
            answer = self._http.post("/api/v0/attestations/find", {"subjects": asked})
            found += [AttestationEntry.from_json(body) for body in answer]
        return found
