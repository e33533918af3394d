"""A master's names and attestations, over its API."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from holdfast.registry.names import UNCHECKED, NameEntry
from holdfast.registry.proof import AttestationEntry
from holdfast.registry.proof.attestations import MAX_FIND
from holdfast.storage.formats.car import car_frames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from holdfast.http_client import HttpClient
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["RemoteAttestations", "RemoteNames"]


class RemoteNames:
    """The names that a master keeps; see :class:`~holdfast.registry.Names`."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http

    def register(self, kind: str, name: str, version: str | None, cid: Cid) -> NameEntry:
        """Give ``cid`` a version of a name; the master must have its blocks, or be able to fetch them."""
        body = {"kind": kind, "name": name, "version": version, "cid": str(cid)}
        return NameEntry.from_json(self._http.post("/api/v0/names", body))

    def unregister(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them; gives what was removed."""
        given = {"kind": kind, "name": name} | ({"version": version} if version is not None else {})
        answer = self._http.delete(f"/api/v0/names?{urlencode(given)}")
        return [NameEntry.from_json(body) for body in answer]

    def resolve(self, kind: str, ref: str) -> NameEntry:
        """The version that a reference means now."""
        return NameEntry.from_json(self._http.get("/api/v0/names/resolve", kind=kind, ref=ref))

    def set_alias(
        self, kind: str, name: str, alias: str, version: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Point an alias at a version, by compare-and-swap where ``expected`` is given."""
        body = {"kind": kind, "name": name, "alias": alias, "version": version, "expected": expected}
        return NameEntry.from_json(self._http.post("/api/v0/aliases", body))

    def entries(self, kind: str | None = None) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        return [NameEntry.from_json(body) for body in self._http.get("/api/v0/names", kind=kind)]


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
