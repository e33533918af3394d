"""A master's compute cache, over its API."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from holdfast.registry.compute.explaining import Explanation
from holdfast.registry.compute.results import CachedResult
from holdfast.registry.user import this_user

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.http_client import HttpClient
    from holdfast.registry.compute.computation import Computation
    from holdfast.storage.cid import Cid

__all__ = ["RemoteCache"]


class RemoteCache:
    """The results that a master remembers; see :class:`~holdfast.registry.compute.results.ResultCache`.

    Args:
        http: The master.
        publish: Brings a result to the master before it is remembered there.
    """

    def __init__(self, http: HttpClient, publish: Callable[[Cid], object]) -> None:
        self._http = http
        self._publish = publish

    def find(self, computation: Computation) -> CachedResult | None:
        """What a computation gave before, if the master has all of it."""
        found = self._http.post("/api/v0/computed/find", _fields(computation))["found"]
        return CachedResult.from_json(found) if found is not None else None

    def remember(self, computation: Computation, result: Cid, *, made_by: str | None = None) -> CachedResult:
        """Send a result, and note it."""
        self._publish(result)
        who = made_by or this_user()
        body = _fields(computation) | {"result": str(result), "made_by": who}
        return CachedResult.from_json(self._http.post("/api/v0/computed", body))

    def entries(self, *, function: str | None = None) -> list[CachedResult]:
        """All that is remembered, newest first."""
        return [
            CachedResult.from_json(body) for body in self._http.get("/api/v0/computed", function=function)
        ]

    def explain(self, computation: Computation) -> Explanation:
        """Whether a computation would be answered, and if not, why."""
        return Explanation.from_json(self._http.post("/api/v0/computed/explain", _fields(computation)))

    def explain_entry(self, ref: str) -> Explanation:
        """Why something that was computed had not been known."""
        return Explanation.from_json(self._http.post("/api/v0/computed/explain", {"ref": ref}))

    def clear(self, *, function: str | None = None, key: Cid | None = None) -> int:
        """Forget results; gives how many."""
        given = {"function": function, "key": str(key) if key is not None else None}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        gone: int = self._http.delete(f"/api/v0/computed?{query}" if query else "/api/v0/computed")["gone"]
        return gone


def _fields(computation: Computation) -> dict[str, str]:
    return {"fields": base64.b64encode(computation.encode()).decode()}
