"""A search as SQL: every condition that narrows it down is a look into an index."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from holdfast.errors import InvalidInput
from holdfast.registry.names.facts import DATASET, METRIC
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from holdfast.registry.database import Database

__all__ = ["FOUND_AT_MOST", "Comparison", "Search"]

Comparison: TypeAlias = "float | str | tuple[str, float]"
"""A value that must be there, or ``(">", 0.9)``."""
FOUND_AT_MOST = 1000
"""How many entries a search gives if nothing else is asked for."""
_COMPARED = {">": ">", ">=": ">=", "<": "<", "<=": "<=", "==": "=", "!=": "!="}
_FEW = 10_000
"""A condition that more rows meet is a broad one."""
_KEYS = {"aliases": "(v.kind, v.name, v.version)", "tags": "v.id", "facts": "v.id"}
"""What of a version the other tables refer to."""
_COLUMNS = {"aliases": "kind, name, version", "tags": "of", "facts": "of"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is looked for; all of it must be true. See :meth:`~holdfast.registry.names.PastNames.search`.

    Raises:
        InvalidInput: A condition can't be compared.
    """

    kind: str | None = None
    name: str | None = None
    cid: Cid | None = None
    alias: str | None = None
    tag: Mapping[str, str] = field(default_factory=dict)
    metric: Mapping[str, Comparison] = field(default_factory=dict)
    dataset: tuple[Cid, ...] | None = None
    fact: Mapping[str, Comparison] = field(default_factory=dict)
    limit: int | None = FOUND_AT_MOST

    @classmethod
    def of(
        cls,
        kind: str | None = None,
        *,
        cid: Cid | str | None = None,
        tag: Mapping[str, str] | None = None,
        metric: Mapping[str, Comparison] | None = None,
        dataset: Cid | str | Iterable[Cid | str] | None = None,
        fact: Mapping[str, Comparison] | None = None,
        **others: Any,
    ) -> Search:
        """The search that the arguments of :meth:`~holdfast.registry.names.PastNames.search` describe."""
        if isinstance(dataset, (Cid, str)):
            dataset = [dataset]
        cids = None if dataset is None else tuple(Cid.parse(each) for each in dataset)
        search = cls(
            kind=kind,
            cid=None if cid is None else Cid.parse(cid),
            tag=dict(tag or {}),
            metric=dict(metric or {}),
            dataset=cids,
            fact=dict(fact or {}),
            **others,
        )
        search.check()
        return search

    def check(self) -> None:
        """Nothing, if everything can be compared.

        Raises:
            InvalidInput: It can't.
        """
        for text in (self.kind, self.name, self.alias, *self.tag, *self.tag.values()):
            if text is not None and not isinstance(text, str):
                raise InvalidInput(f"kinds, names, aliases and tags are texts, not {text!r:.60}")
        if self.limit is not None and (type(self.limit) is not int or self.limit < 0):
            raise InvalidInput(f"limit must be a whole number from 0, or None for all, not {self.limit!r}")
        list(self._tables())

    def where(self, database: Database) -> tuple[str, list[Any]]:
        """What follows ``WHERE`` in a query of ``versions v``, and the values of its parameters.

        The table of a narrow condition is read first, and what it gives is looked up; without one, the names are gone through in
        order until there is enough.
        """
        texts: list[str] = []
        values: list[Any] = []
        narrow = False
        for table, condition, *given in self._tables():
            rows = f"SELECT %s FROM {table} WHERE {condition.format('')}"  # noqa: S608 -- values are parameters
            some = f"SELECT count(*) FROM ({rows % 1} LIMIT {_FEW + 1})"  # noqa: S608
            if database.rows(some, tuple(given))[0][0] <= _FEW:
                narrow = True
                texts.append(f"{_KEYS[table]} IN ({rows % _COLUMNS[table]})")
            else:
                joined = f"({_COLUMNS[table]}) = {_KEYS[table]} AND {condition.format('+')}"
                texts.append(f"EXISTS (SELECT 1 FROM {table} WHERE {joined})")  # noqa: S608
            values += given
        if self.cid is not None:
            narrow = True
            texts.append("v.cid = ?")
            values.append(str(self.cid))
        plus = "+" if narrow else ""  # keeps SQLite from reading all that are of the kind
        for column, compared, value in (("kind", "=", self.kind), ("name", "GLOB", self.name)):
            if value is not None:
                texts.append(f"{plus}v.{column} {compared} ?")
                values.append(value)
        return " AND ".join(texts) or "1", values

    def _tables(self) -> Iterator[tuple[Any, ...]]:
        """The conditions on other tables: which, what must be true in it, and the parameters' values.

        Where ``{0}`` stands a plus keeps SQLite from an index of the column.
        """
        if self.alias is not None:
            exact = not set(self.alias) & set("*?[")
            yield "aliases", f"{{0}}alias {'=' if exact else 'GLOB'} ?", self.alias
        for key, value in self.tag.items():
            yield (
                ("tags", "{0}key = ?", key)
                if value == "*"
                else ("tags", "{0}key = ? AND {0}value = ?", key, value)
            )
        metrics = {f"{METRIC}{name}": wanted for name, wanted in self.metric.items()}
        for key, wanted in {**metrics, **self.fact}.items():
            operator, compared = _comparison(key, wanted)
            column = "value_text" if isinstance(compared, str) else "value_number"
            yield "facts", f"{{0}}key = ? AND {{0}}{column} {operator} ?", key, compared
        if self.dataset is not None:
            places = ", ".join("?" * len(self.dataset))
            yield "facts", f"{{0}}key = ? AND {{0}}value_text IN ({places})", DATASET, *map(str, self.dataset)

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "kind": self.kind,
            "name": self.name,
            "cid": None if self.cid is None else str(self.cid),
            "alias": self.alias,
            "tag": dict(self.tag),
            "metric": dict(self.metric),
            "dataset": None if self.dataset is None else [str(cid) for cid in self.dataset],
            "fact": dict(self.fact),
            "limit": self.limit,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Search:
        """The search that :meth:`to_json` wrote.

        Raises:
            InvalidInput: It is none.
        """
        try:
            return cls.of(**body)
        except (TypeError, ValueError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(f"the search can't be read: {error}") from error


def _comparison(key: str, wanted: Any) -> tuple[str, float | str]:
    operator, value = wanted if isinstance(wanted, (tuple, list)) and len(wanted) == 2 else ("==", wanted)
    if isinstance(value, Cid):
        value = str(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if operator not in _COMPARED or not (number or isinstance(value, str)):
        raise InvalidInput(
            f"{key} can't be compared with {wanted!r:.60}: give a number or a text, or a pair such as ('>', 0.9) with one of "
            f"{', '.join(_COMPARED)}"
        )
    return _COMPARED[operator], float(value) if number else value
