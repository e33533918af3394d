"""The compute cache of one home: from the key of a computation to the CID of its result, in the registry's file.

A result is remembered, not kept: its blocks stay as long as a name, a run or a pin keeps them, and a result that is not whole any
more is a miss, and computed again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, NotFound
from holdfast.registry.compute.computation import Computation
from holdfast.registry.compute.explaining import Explanation, differences
from holdfast.registry.compute.results import CachedResult
from holdfast.registry.graph.record_links import DATASET
from holdfast.registry.user import this_user
from holdfast.storage.cid import DAG_CBOR, RAW, Cid
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.dag import RECORD_CODECS, decode_record, links_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.registry.database import Database
    from holdfast.storage.content import ContentStore

__all__ = ["ComputeCache", "claim_of", "is_whole"]

_NEAREST_AMONG = 5000
"""The newest entries of a function, among which the nearest is looked for."""


class ComputeCache:
    """The results of a home.

    Args:
        database: The registry's.
        store: Where results are looked for; only in the home itself, nothing is fetched.
        signer: Called with the CID of each claim (see :func:`claim_of`) that is remembered; gives the CID of an attestation of
            it, or None. The claim and the record of the computation are stored before.
        verifier: Called with a claim's CID and its attestation before an entry answers; False makes it a miss. Default: an
            entry of the home's own registry is believed.
    """

    def __init__(
        self,
        database: Database,
        store: ContentStore,
        *,
        signer: Callable[[Cid], Cid | None] | None = None,
        verifier: Callable[[Cid, Cid | None], bool] | None = None,
    ) -> None:
        self._database = database
        self._store = store
        self._signer = signer
        self._verifier = verifier

    def find(self, computation: Computation) -> CachedResult | None:
        """What a computation gave before; see :class:`~holdfast.registry.compute.results.ResultCache`."""
        entry = self._entry(computation.key)
        return entry if entry is not None and not self._fault(entry) else None

    def remember(self, computation: Computation, result: Cid, *, made_by: str | None = None) -> CachedResult:
        """Note a result.

        Raises:
            NotFound: Some of it is not stored here.
        """
        if not is_whole(self._store, result):
            raise NotFound(
                f"the result {result} is not whole here, so it can't be remembered: store it first"
            )
        key, fields = computation.key, computation.encode()
        attestation = self._sign(key, fields, result) if self._signer is not None else None
        entry = CachedResult(
            key=key,
            function=computation.function,
            result=result,
            made_by=made_by or this_user(),
            created=time.time(),
            attestation=attestation,
        )
        values = (
            str(key),
            entry.function,
            fields,
            str(result),
            entry.made_by,
            entry.created,
            str(attestation) if attestation is not None else None,
        )
        with self._database.writing() as sql:
            sql.execute("INSERT OR REPLACE INTO computed VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return entry

    def entries(self, *, function: str | None = None) -> list[CachedResult]:
        """All that is remembered, newest first."""
        where, values = ("WHERE function = ?", (function,)) if function is not None else ("", ())
        rows = self._database.rows(f"SELECT * FROM computed {where} ORDER BY created DESC, key", values)  # noqa: S608 -- one of two texts of ours
        return [_of_row(row) for row in rows]

    def explain(self, computation: Computation) -> Explanation:
        """Whether a computation would be answered, and if not, why."""
        entry = self._entry(computation.key)
        if entry is not None:
            return Explanation(key=str(computation.key), verdict=self._fault(entry) or "hit", entry=entry)
        return self._nearest(computation, before=None)

    def explain_entry(self, ref: str) -> Explanation:
        """Why something that was computed had not been known.

        Raises:
            NotFound: The cache remembers no such thing.
        """
        rows = self._database.rows(
            "SELECT * FROM computed WHERE key = ? OR result = ? OR made_by = ? ORDER BY created DESC LIMIT 1",
            (ref, ref, ref),
        )
        if not rows:
            raise NotFound(
                f"the cache remembers nothing of {ref!r}; 'holdfast cache list' shows what it does: runs, keys and results"
            )
        return self._nearest(Computation.decode(rows[0]["fields"]), before=rows[0]["created"])

    def clear(self, *, function: str | None = None, key: Cid | None = None) -> int:
        """Forget everything, or one function's results, or one result."""
        gone = [
            entry
            for entry in self.entries(function=function)
            if key is None or key in (entry.key, entry.result)
        ]
        with self._database.writing() as sql:
            sql.executemany("DELETE FROM computed WHERE key = ?", [(str(entry.key),) for entry in gone])
        if self._store.pins is not None:
            for entry in gone:
                for part in ("computation", "claim", "attestation"):
                    self._store.pins.release(f"computed {entry.key} {part}")
        return len(gone)

    def _entry(self, key: Cid) -> CachedResult | None:
        rows = self._database.rows("SELECT * FROM computed WHERE key = ?", (str(key),))
        return _of_row(rows[0]) if rows else None

    def _fault(self, entry: CachedResult) -> str:
        """Why an entry can't answer; empty if it can."""
        if self._verifier is not None:
            claim = Cid.of(dag_cbor.encode(claim_of(entry.key, entry.result)), DAG_CBOR)
            if not self._verifier(claim, entry.attestation):
                return "refused"
        return "" if is_whole(self._store, entry.result) else "gone"

    def _sign(self, key: Cid, fields: bytes, result: Cid) -> Cid | None:
        assert self._signer is not None  # noqa: S101 -- asked by the caller
        self._store.blocks.put_many([(key, fields)])
        claim = self._store.put_record(claim_of(key, result))
        attestation = self._signer(claim)
        parts = {"computation": key, "claim": claim, "attestation": attestation}
        for part, cid in parts.items():
            if cid is not None:  # by itself: a claim keeps neither the inputs nor the result
                self._store.hold(f"computed {key} {part}", cid, recursive=False)
        return attestation

    def _nearest(self, computation: Computation, *, before: float | None) -> Explanation:
        limit = before if before is not None else float("inf")
        rows = self._database.rows(
            "SELECT * FROM computed WHERE function = ? AND created < ? ORDER BY created DESC LIMIT ?",
            (computation.function, limit, _NEAREST_AMONG),
        )
        found = [(differences(Computation.decode(row["fields"]), computation), row) for row in rows]
        if not found:
            return Explanation(key=str(computation.key), verdict="empty")
        nearest, row = min(found, key=lambda pair: len(pair[0]))  # of several, the newest
        return Explanation(
            key=str(computation.key), verdict="differs", entry=_of_row(row), differences=nearest
        )


def claim_of(key: Cid, result: Cid) -> dict[str, Any]:
    """The record that a signer signs: this computation gave this result."""
    return {"kind": "computed", "computation": key, "result": result}


def is_whole(store: ContentStore, root: Cid) -> bool:
    """Whether everything of a result is here: its records, files and code. Of datasets only the manifests: rows are inputs.

    Leaves are not read, and nothing is fetched.
    """
    seen = {root}
    pending = [root]
    while pending:
        cid = pending.pop()
        if not store.blocks.has(cid):
            return False
        if cid.codec == RAW:
            continue
        try:
            data = store.blocks.get(cid)
            record = decode_record(cid, data) if cid.codec in RECORD_CODECS else None
            if isinstance(record, dict) and record.get("kind") == DATASET:
                continue
            links = links_of(cid, data)
        except (Corrupt, NotFound):
            return False  # computed again, it will be stored again
        pending += [link for link in links if link not in seen]
        seen.update(links)
    return True


def _of_row(row: Any) -> CachedResult:
    return CachedResult(
        key=Cid.parse(row["key"]),
        function=row["function"],
        result=Cid.parse(row["result"]),
        made_by=row["made_by"],
        created=row["created"],
        attestation=Cid.parse(row["attestation"]) if row["attestation"] else None,
    )
