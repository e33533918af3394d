"""What a cache knows of a computation that was done, and the protocol of all caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from holdfast.registry.compute.computation import Computation
    from holdfast.registry.compute.explaining import Explanation

__all__ = ["CachedResult", "ResultCache", "computed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedResult:
    """One computation that was done."""

    key: Cid
    """Of the computation's record."""
    function: str
    result: Cid
    made_by: str
    """The run, or the user and machine, that did it; nothing that is hashed depends on it."""
    created: float
    """Seconds since 1970."""
    attestation: Cid | None = None
    """Who vouches for it, where a signer does."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "key": str(self.key),
            "function": self.function,
            "result": str(self.result),
            "made_by": self.made_by,
            "created": self.created,
            "attestation": str(self.attestation) if self.attestation is not None else None,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> CachedResult:
        """The entry that :meth:`to_json` wrote."""
        attestation = body["attestation"]
        return cls(
            key=Cid.parse(body["key"]),
            function=body["function"],
            result=Cid.parse(body["result"]),
            made_by=body["made_by"],
            created=body["created"],
            attestation=Cid.parse(attestation) if attestation is not None else None,
        )


class ResultCache(Protocol):
    """Where results are remembered: in a home's registry, or on a master."""

    def find(self, computation: Computation) -> CachedResult | None:
        """What a computation gave before, if all of it is still there; None if it has to be done."""
        ...

    def remember(self, computation: Computation, result: Cid, *, made_by: str | None = None) -> CachedResult:
        """Note a result, which must be stored already, in the place of an older one.

        Args:
            computation: What was done.
            result: The record that came out.
            made_by: Who did it; default: this user on this machine.
        """
        ...

    def entries(self, *, function: str | None = None) -> list[CachedResult]:
        """All that is remembered, newest first; of one function if one is given."""
        ...

    def explain(self, computation: Computation) -> Explanation:
        """Whether a computation would be answered, and if not, why."""
        ...

    def explain_entry(self, ref: str) -> Explanation:
        """Why something that was computed had not been known: the nearest of those that were older.

        Args:
            ref: A run's id, or the CID of a result or of a key.

        Raises:
            NotFound: The cache remembers no such thing.
        """
        ...

    def clear(self, *, function: str | None = None, key: Cid | None = None) -> int:
        """Forget everything, or one function's results, or one result; gives how many. No block is removed."""
        ...


def computed(
    cache: ResultCache, computation: Computation, work: Callable[[], Cid], *, use_cache: bool = True
) -> tuple[Cid, CachedResult | None]:
    """The result of a computation, and the entry that answered it; None for that where ``work`` was done.

    What fails is never remembered.

    Args:
        cache: Where results are.
        computation: What is wanted.
        work: Does it; the result must be stored where the cache is when it returns.
        use_cache: False does the work in any case, and remembers its result.
    """
    found = cache.find(computation) if use_cache else None
    if found is not None:
        return found.result, found
    result = work()
    cache.remember(computation, result)
    return result, None
