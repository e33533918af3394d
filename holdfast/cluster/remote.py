"""A master's names, over its API."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

from holdfast.registry.names import UNCHECKED, NameEntry

if TYPE_CHECKING:
    from holdfast.http_client import HttpClient
    from holdfast.storage.cid import Cid

__all__ = ["RemoteNames"]


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
