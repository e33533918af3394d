"""The records of a dataset: its manifest, and the lists of shards that this links to.

A manifest has, for each split, links to lists of up to 256 shards each; so neither outgrows a block, however large the
dataset is. All of it is checked when it is read: a manifest may come from anybody.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.schema import schema_from_plain, schema_to_plain
from holdfast.storage.datasets.shards.boundaries import MAX_CHUNK_BYTES, MIN_CHUNK_BYTES
from holdfast.storage.datasets.shards.shard import RowGroup, Shard
from holdfast.storage.datasets.shards.shard_format import FORMATS
from holdfast.storage.datasets.shards.statistics import statistics_from_plain, statistics_to_plain
from holdfast.storage.formats import dag_cbor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

__all__ = ["MAX_SHARDS_IN_LIST", "Manifest", "ShardLists", "SplitSummary"]

KIND, LIST_KIND = "dataset", "dataset-shards"
MAX_SHARDS_IN_LIST = 256
MAX_LIST_BYTES = 1 << 20
"""A list ends earlier if it would be longer than this: with many columns, statistics are long."""


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """A split as the manifest has it."""

    rows: int
    size_bytes: int
    shards: int
    lists: tuple[Cid, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The record whose CID is the dataset."""

    format: str
    chunk_size: int
    schema: pa.Schema
    splits: Mapping[str, SplitSummary]
    metadata: Mapping[str, Any]
    provenance: Mapping[str, Any]
    parent: Cid | None

    def to_plain(self) -> dict[str, Any]:
        """The value to store."""
        return {
            "kind": KIND,
            "format": self.format,
            "chunk_size": self.chunk_size,
            "columns": schema_to_plain(self.schema),
            "splits": {
                split: {
                    "rows": summary.rows,
                    "bytes": summary.size_bytes,
                    "shards": summary.shards,
                    "lists": list(summary.lists),
                }
                for split, summary in self.splits.items()
            },
            "metadata": dict(self.metadata),
            "provenance": dict(self.provenance),
            "parent": self.parent,
        }

    @classmethod
    def from_plain(cls, cid: Cid, value: Any) -> Manifest:
        """The manifest that is stored under ``cid``.

        Raises:
            InvalidInput: The record is something else, or of a format that this version does not read.
            Corrupt: It claims to be a dataset, but breaks the format.
        """
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind != KIND:
            told = f"a {kind[:40]}" if isinstance(kind, str) and kind else "another record"
            raise InvalidInput(f"{cid} is not a dataset but {told}")
        if value.get("format") not in FORMATS.values():
            raise InvalidInput(
                f"dataset {cid} has the format {str(value.get('format'))[:40]!r}; this version reads "
                f"{' and '.join(FORMATS.values())}"
            )
        try:
            return cls(
                format=value["format"],
                chunk_size=_chunk_size(value),
                schema=schema_from_plain(value.get("columns")),
                splits=_summaries(value),
                metadata=_mapping(value, "metadata"),
                provenance=_mapping(value, "provenance"),
                parent=_parent(value),
            )
        except ValueError as error:
            raise Corrupt(f"the dataset manifest {cid} is broken: {error}") from error


class ShardLists:
    """Shards on their way into records: gives a record whenever one is full."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, shard: Shard) -> dict[str, Any] | None:
        """Take one more shard; the record to store if the shards before it fill one."""
        entry = _shard_to_plain(shard)
        size = len(dag_cbor.encode(entry))
        full = len(self._entries) >= MAX_SHARDS_IN_LIST or self._bytes + size > MAX_LIST_BYTES
        record = self.rest() if full else None
        self._entries.append(entry)
        self._bytes += size
        return record

    def rest(self) -> dict[str, Any] | None:
        """The record of what is left, if anything is."""
        if not self._entries:
            return None
        record = {"kind": LIST_KIND, "shards": self._entries}
        self._entries, self._bytes = [], 0
        return record


def shards_from_plain(cid: Cid, value: Any, columns: Sequence[str]) -> list[Shard]:
    """The shards in the list that is stored under ``cid``.

    Raises:
        Corrupt: It is no such list, or breaks the format.
    """
    if not isinstance(value, dict) or value.get("kind") != LIST_KIND:
        raise Corrupt(f"{cid} is not a list of shards but another record")
    try:
        return [_shard_from_plain(entry, columns) for entry in _items(value, "shards")]
    except ValueError as error:
        raise Corrupt(f"the list of shards {cid} is broken: {error}") from error


def _shard_to_plain(shard: Shard) -> dict[str, Any]:
    return {
        "cid": shard.cid,
        "rows": shard.rows,
        "bytes": shard.size_bytes,
        "groups": [[group.rows, group.offset, group.size_bytes] for group in shard.groups],
        "statistics": [statistics_to_plain(statistics) for statistics in shard.statistics.values()],
    }


def _shard_from_plain(entry: Any, columns: Sequence[str]) -> Shard:
    cid = entry.get("cid") if isinstance(entry, dict) else None
    if not isinstance(cid, Cid):
        raise ValueError("a shard has no link")  # noqa: TRY004 -- what is broken is the record
    rows, size = _number(entry, "rows", 1), _number(entry, "bytes", 1)
    groups = tuple(_group(group) for group in _items(entry, "groups"))
    end = 0
    for group in groups:
        if group.offset < end:
            raise ValueError(f"the groups of shard {cid} overlap")
        end = group.offset + group.size_bytes
    if end > size or sum(group.rows for group in groups) != rows:
        raise ValueError(f"the groups of shard {cid} do not fit it")
    statistics = [statistics_from_plain(one) for one in _items(entry, "statistics")]
    if statistics and len(statistics) != len(columns):
        raise ValueError(f"shard {cid} has statistics of other columns")
    return Shard(cid, rows, size, groups, dict(zip(columns, statistics, strict=False)))


def _group(value: Any) -> RowGroup:
    if (
        not isinstance(value, list)
        or [type(number) for number in value] != [int, int, int]
        or min(value[0], value[2]) < 1
        or value[1] < 0
    ):
        raise ValueError(f"a row group is {str(value)[:80]}, not rows, offset and bytes")
    return RowGroup(*value)


def _chunk_size(value: dict[str, Any]) -> int:
    chunk_size = _number(value, "chunk_size", MIN_CHUNK_BYTES)
    if chunk_size > MAX_CHUNK_BYTES:
        raise ValueError(f"chunk_size {chunk_size} is too large")
    return chunk_size


def _parent(value: dict[str, Any]) -> Cid | None:
    parent = value.get("parent")
    if parent is not None and not isinstance(parent, Cid):
        raise ValueError("parent is no link")
    return parent


def _summaries(value: dict[str, Any]) -> dict[str, SplitSummary]:
    splits = {split: _summary(split, entry) for split, entry in _mapping(value, "splits").items()}
    if not any(summary.rows for summary in splits.values()):
        raise ValueError("it has no rows")
    return splits


def _summary(split: str, entry: Any) -> SplitSummary:
    if not isinstance(entry, dict) or not split:
        raise ValueError(f"the split {split[:80]!r} is no split")
    lists = tuple(_items(entry, "lists"))
    if not all(isinstance(link, Cid) for link in lists):
        raise ValueError(f"the split {split[:80]!r} has lists that are no links")
    rows, shards = _number(entry, "rows", 0), _number(entry, "shards", 0)
    if not shards <= rows or bool(rows) != bool(shards) or bool(lists) != bool(shards):
        raise ValueError(f"the split {split[:80]!r} has {rows} rows in {shards} shards in {len(lists)} lists")
    return SplitSummary(rows, _number(entry, "bytes", 0), shards, lists)


def _number(value: dict[str, Any], key: str, least: int) -> int:
    number = value.get(key)
    if type(number) is not int or number < least:
        raise ValueError(f"{key} is {str(number)[:80]}, not a number from {least} on")
    return number


def _mapping(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    if not isinstance(found, dict):
        raise ValueError(f"it lacks {key}" if found is None else f"{key} is no mapping")  # noqa: TRY004 -- what is broken is the record
    return found


def _items(value: dict[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    if not isinstance(found, list):
        raise ValueError(f"it lacks {key}" if found is None else f"{key} is no list")  # noqa: TRY004 -- what is broken is the record
    return found
