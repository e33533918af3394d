"""Runs that are waiting, running or done: the mutable side of a run, until its record is written."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.storage.cid import Cid
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from holdfast.registry.database import Database
    from holdfast.storage.content import ContentStore

__all__ = ["CACHED_FROM", "RunSpec", "RunState", "RunStatus", "RunTable"]

CACHED_FROM = "cached_from"
"""In a run's result: which run made it, where it was known already."""


class RunState(StrEnum):
    """Where a run stands; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether it can't change any more."""
        return self in (RunState.DONE, RunState.FAILED, RunState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """What to run: everything that decides the result, apart from the environment.

    Raises:
        InvalidInput: A number is impossible, or the config can't be recorded; better now than after the training.
    """

    code: Cid
    data: Cid
    config: Mapping[str, Any]
    seed: int = 0
    workers: int = 1
    threads_per_worker: int = 1

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("workers", 1), ("threads_per_worker", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 1 << 63:
                raise InvalidInput(f"{name} must be a whole number from {least}, not {value!r}")
        try:
            dag_cbor.encode(dict(self.config))
            json.dumps(dict(self.config))
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"a run's config holds text keys and plain JSON values only: {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return asdict(self) | {"code": str(self.code), "data": str(self.data), "config": dict(self.config)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> RunSpec:
        """The spec that :meth:`to_json` wrote.

        Raises:
            InvalidInput: It is another body.
        """
        try:
            return cls(**{**body, "code": Cid.parse(body["code"]), "data": Cid.parse(body["data"])})
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"this is not a run: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One run as it stands."""

    id: str
    spec: RunSpec
    state: RunState
    created: float
    started: float | None
    finished: float | None
    error: str | None
    result: Mapping[str, str]
    """CIDs as text: ``run`` and ``model``, once it is done. ``cached_from`` beside them is the id of the run that made them, where
    this one did not have to."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {**{k: getattr(self, k) for k in self.__slots__}, "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> RunStatus:
        """The status that :meth:`to_json` wrote."""
        return cls(**{**body, "spec": RunSpec.from_json(body["spec"]), "state": RunState(body["state"])})


class RunTable:
    """The runs of one home; what they were made from, and what they made, is held in its store."""

    def __init__(self, database: Database, store: ContentStore) -> None:
        self._database = database
        self._store = store

    def create(self, spec: RunSpec) -> RunStatus:
        """A new run, queued."""
        run = f"run-{secrets.token_hex(6)}"
        for part in ("code", "data"):
            self._store.hold(f"{run} {part}", getattr(spec, part))
        with self._database.writing() as sql:
            sql.execute(
                "INSERT INTO runs (id, spec, state, created) VALUES (?, ?, ?, ?)",
                (run, json.dumps(spec.to_json()), RunState.QUEUED, time.time()),
            )
        return self.get(run)

    def start(self, run: str) -> RunStatus:
        """Mark a queued run as running.

        Raises:
            Conflict: It is not queued any more.
        """
        return self._move(run, RunState.RUNNING, "started")

    def finish(
        self, run: str, state: RunState, *, error: str | None = None, result: Mapping[str, str] | None = None
    ) -> RunStatus:
        """Mark a run as done, failed or cancelled.

        Raises:
            Conflict: It had ended before.
            InvalidInput: ``state`` is not final.
        """
        if not state.final:
            raise InvalidInput(f"a run can't end as {state}")
        for part, cid in (result or {}).items():
            if part != CACHED_FROM:
                self._store.hold(f"{run} result {part}", Cid.parse(cid))
        return self._move(run, state, "finished", error=error, result=result)

    def _move(
        self,
        run: str,
        state: RunState,
        stamp: str,
        *,
        error: str | None = None,
        result: Mapping[str, str] | None = None,
    ) -> RunStatus:
        with self._database.writing() as sql:
            row = sql.execute("SELECT state FROM runs WHERE id = ?", (run,)).fetchone()
            if row is None:
                raise NotFound(f"there is no run {run}")
            now = RunState(row["state"])
            if now.final or (state is RunState.RUNNING and now is not RunState.QUEUED):
                raise Conflict(f"{run} is {row['state']} and can't become {state}")
            sql.execute(
                f"UPDATE runs SET state = ?, error = ?, result = ?, {stamp} = ? WHERE id = ?",  # noqa: S608 -- one of two names of ours
                (state, error, json.dumps(dict(result or {})), time.time(), run),
            )
        return self.get(run)

    def add_event(self, run: str, body: Mapping[str, Any]) -> int:
        """Append an event, such as the metrics of an epoch; gives its number, from 1."""
        self.get(run)
        with self._database.writing() as sql:
            last: int = sql.execute(
                "SELECT coalesce(max(seq), 0) FROM events WHERE run = ?", (run,)
            ).fetchone()[0]
            text = json.dumps(dict(body))
            sql.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (run, last + 1, time.time(), text))
        return last + 1

    def events(self, run: str, *, after: int = 0) -> list[dict[str, Any]]:
        """The events numbered above ``after``; each has ``seq`` and ``time`` beside its own fields."""
        self.get(run)
        rows = self._database.rows(
            "SELECT * FROM events WHERE run = ? AND seq > ? ORDER BY seq", (run, after)
        )
        return [{**json.loads(row["body"]), "seq": row["seq"], "time": row["time"]} for row in rows]

    def get(self, run: str) -> RunStatus:
        """One run.

        Raises:
            NotFound: There is none of this id.
        """
        found = self._select("SELECT * FROM runs WHERE id = ?", (run,))
        if not found:
            raise NotFound(f"there is no run {run}")
        return found[0]

    def all(self) -> list[RunStatus]:
        """All runs, newest first."""
        return self._select("SELECT * FROM runs ORDER BY created DESC, rowid DESC", ())

    def _select(self, query: str, values: tuple[Any, ...]) -> list[RunStatus]:
        return [
            RunStatus(
                id=row["id"],
                spec=RunSpec.from_json(json.loads(row["spec"])),
                state=RunState(row["state"]),
                created=row["created"],
                started=row["started"],
                finished=row["finished"],
                error=row["error"],
                result=json.loads(row["result"] or "{}"),
            )
            for row in self._database.rows(query, values)
        ]
