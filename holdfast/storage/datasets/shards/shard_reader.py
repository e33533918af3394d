"""Reading the row groups of one shard: only the bytes that are wanted, verified, as logical Arrow batches."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa

from holdfast.errors import Corrupt, HoldfastError, InvalidInput, NotFound, Unavailable
from holdfast.storage.datasets.shards.arrow_groups import ArrowGroups
from holdfast.storage.datasets.shards.parquet_groups import ParquetGroups
from holdfast.storage.datasets.shards.shard_format import PARQUET
from holdfast.storage.stored_file import StoredFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.shards.shard import ColumnStatistics, RowGroup, Shard

__all__ = ["ShardReader"]


class ShardReader:
    """Reads one shard. Making it reads nothing; what is read once (where columns lie) is kept. Safe in several threads.

    Hashing and decoding leave the interpreter free, so several groups can be read at once.

    Args:
        store: Where the shard is, or is fetched to.
        shard: As its dataset has it.
        schema: Logical.
        format: As its dataset has it.
    """

    def __init__(self, store: ContentStore, shard: Shard, schema: pa.Schema, *, format: str) -> None:  # noqa: A002 -- a Dataset's word
        self.shard = shard
        self.schema = schema
        self._store = store
        self._parquet = format == PARQUET
        self._lock = threading.Lock()
        self._groups: _Groups | None = None
        self._is_here = False

    @property
    def is_here(self) -> bool:
        """Whether all of the shard was on this node when it was first read."""
        return self._is_here

    def read_group(self, index: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """One row group, with logical types; ``columns`` in the order in which they are named, None for all.

        Raises:
            NotFound: A block is missing and nobody has it.
            Unavailable: Somebody who might have it does not answer.
            Corrupt: The shard is not what the manifest states, or a block is rotten and nobody has the right bytes.
            InvalidInput: There is no such group, or no such column.
        """
        group, wanted = self._group(index), self._wanted(columns)
        with self._as_corrupt():
            batch = self._opened().read(index, wanted)
            if batch.num_rows != group.rows:
                raise ValueError(
                    f"row group {index} has {batch.num_rows} rows where the manifest states {group.rows}"
                )
            batch.validate(
                full=True
            )  # offsets of anybody's making would lead out of the buffers, text be none
        return batch

    def missing(self, index: int, columns: Sequence[str] | None = None) -> dict[Cid, int]:
        """The blocks of some columns of a row group that are not on this node, with their sizes.

        Raises:
            NotFound: What says which they are is missing, and nobody has it.
            Corrupt: As :meth:`read_group` does.
        """
        self._group(index)
        wanted = self._wanted(columns)
        with self._as_corrupt():
            groups = self._opened()
            return groups.file.missing(groups.ranges(index, wanted))

    def size_bytes(self, index: int, columns: Sequence[str] | None = None) -> int:
        """How many bytes of the shard's file some columns of a row group take.

        Raises:
            NotFound: What says so is missing, and nobody has it.
            Corrupt: As :meth:`read_group` does.
        """
        self._group(index)
        wanted = self._wanted(columns)
        with self._as_corrupt():
            return sum(end - start for start, end in self._opened().ranges(index, wanted))

    def statistics(self, index: int, columns: Sequence[str] | None = None) -> dict[str, ColumnStatistics]:
        """What is known of the columns of a row group without reading it; nothing of an Arrow shard's.

        Raises:
            NotFound: The footer is missing, and nobody has it.
            Corrupt: As :meth:`read_group` does.
        """
        self._group(index)
        wanted = self._wanted(columns)
        with self._as_corrupt():
            return self._opened().statistics(index, wanted)

    def _group(self, index: int) -> RowGroup:
        if not 0 <= index < len(self.shard.groups):
            raise InvalidInput(
                f"shard {self.shard.cid} has {len(self.shard.groups)} row groups, so there is no group {index}"
            )
        return self.shard.groups[index]

    def _wanted(self, columns: Sequence[str] | None) -> list[int]:
        if columns is None:
            return list(range(len(self.schema)))
        return [column_index(self.schema, name) for name in columns]

    def _opened(self) -> _Groups:
        with self._lock:
            if self._groups is None:
                file = StoredFile(self._store, self.shard.cid)
                if file.size != self.shard.size_bytes:
                    raise ValueError(
                        f"it has {file.size} bytes where the manifest states {self.shard.size_bytes}"
                    )
                self._is_here = file.map()
                kind = ParquetGroups if self._parquet else ArrowGroups
                self._groups = kind(file, self.shard, self.schema)
            return self._groups

    @contextmanager
    def _as_corrupt(self) -> Iterator[None]:
        try:
            yield
        except (Corrupt, InvalidInput) as error:
            raise Corrupt(f"shard {self.shard.cid}: {error}") from error
        except (NotFound, Unavailable) as error:
            raise type(error)(f"shard {self.shard.cid}: {error}") from error
        except HoldfastError:
            raise
        except (pa.ArrowException, ValueError, OverflowError, OSError, IndexError) as error:
            raise Corrupt(f"shard {self.shard.cid} is not what the manifest states: {error}") from error


def column_index(schema: pa.Schema, name: str) -> int:
    """The place of a column.

    Raises:
        InvalidInput: There is no such column.
    """
    index: int = schema.get_field_index(name)
    if index < 0:
        raise InvalidInput(f"there is no column {name!r}; there are {', '.join(schema.names[:20])}")
    return index


class _Groups(Protocol):
    """The row groups of one shard, in one format; raises ValueError or Arrow's errors where it is not what it should be."""

    file: StoredFile

    def read(self, index: int, columns: Sequence[int]) -> pa.RecordBatch: ...

    def ranges(self, index: int, columns: Sequence[int]) -> list[tuple[int, int]]: ...

    def statistics(self, index: int, columns: Sequence[int]) -> dict[str, ColumnStatistics]: ...
