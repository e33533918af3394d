"""NumPy's files: ``.npy`` is mapped, the arrays of an ``.npz`` are decompressed as they are read. Nothing is unpickled."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.datasets.sources.arrays import column_array, columns_of_array, open_arrays
from holdfast.storage.datasets.sources.files import as_schema, common_schema, file_errors, total_size
from holdfast.storage.datasets.sources.source import BatchSource, rows_a_batch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["open_npy", "open_npz"]

_COPY_BYTES = 1 << 20


def open_npy(paths: Sequence[Path]) -> BatchSource:
    """``.npy`` files as one source: the column ``data``, or a column for each field of a structured array.

    Raises:
        InvalidInput: A file holds Python objects, or other columns than the first.
        NotFound: A file is not there.
        Corrupt: A file is damaged, ends too early, or is not NumPy's.
    """
    return _open(paths, lambda path: open_arrays(columns_of_array(_mapped(path)), what=str(path)), "npy")


def open_npz(paths: Sequence[Path]) -> BatchSource:
    """``.npz`` files as one source: a column for each array in them.

    Raises:
        InvalidInput: A file holds Python objects, arrays that differ in their rows, or other columns than the first.
        NotFound: A file is not there.
        Corrupt: A file is damaged, ends too early, or is not NumPy's.
    """
    return _open(paths, _open_archive, "npz")


def _open(paths: Sequence[Path], open_one: Callable[[Path], BatchSource], file_format: str) -> BatchSource:
    rows: list[int] = []

    def schema_of(path: Path) -> pa.Schema:
        with file_errors(path, file_format):
            source = open_one(path)
        rows.append(source.rows or 0)
        return source.schema

    schema = common_schema(paths, schema_of)

    def read() -> Iterator[pa.RecordBatch]:
        for path in paths:
            with file_errors(path, file_format):
                for batch in open_one(path).batches():
                    yield from as_schema(batch, schema)

    return BatchSource(
        schema=schema, read=read, what=str(paths[0]), rows=sum(rows), size_bytes=total_size(paths)
    )


def _mapped(path: Path) -> np.ndarray[Any, Any]:
    with path.open("rb") as file:
        shape, _, dtype = _header(file, str(path))
        if 0 in shape:
            return np.empty(shape, dtype)
    return np.lib.format.open_memmap(path, mode="r")


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and type.

    Raises:
        InvalidInput: The array holds Python objects, or is a single number.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise InvalidInput(
            f"{name} has version {version} of NumPy's format, which is for field names beyond Latin-1: rename the fields"
        )
    if dtype.hasobject:
        raise InvalidInput(
            f"{name} holds Python objects, which only unpickling could read, and that runs code: store numbers or text"
        )
    if not shape:
        raise InvalidInput(f"{name} is a single number: a column has rows")
    return shape, fortran, dtype


def _open_archive(path: Path) -> BatchSource:
    with zipfile.ZipFile(path) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist()}
        if not members:
            raise InvalidInput(f"{path} has no arrays")
        empty = {}
        rows = {}
        size_bytes = 0
        for column, member in members.items():
            with archive.open(member) as file:
                shape, _, dtype = _header(file, f"{column!r} in {path}")
            empty[column] = np.empty((0, *shape[1:]), dtype)
            rows[column] = shape[0]
            size_bytes += int(np.prod(shape)) * dtype.itemsize
    if len(set(rows.values())) > 1:
        raise InvalidInput(
            f"the arrays in {path} differ in their number of rows: {', '.join(f'{n} {r}' for n, r in rows.items())}"
        )
    flat = {column: fields for column, array in empty.items() for fields in [_flat(column, array)]}
    schema = open_arrays({n: a for fields in flat.values() for n, a in fields.items()}, what=str(path)).schema
    total = next(iter(rows.values()))
    step = rows_a_batch(total, size_bytes)

    def read() -> Iterator[pa.RecordBatch]:
        with zipfile.ZipFile(path) as archive, ExitStack() as stack:
            arrays = {
                column: stack.enter_context(_Member(archive, member, f"{column!r} in {path}"))
                for column, member in members.items()
            }
            for start in range(0, total, step):
                count = min(step, total - start)
                parts: dict[str, np.ndarray[Any, Any]] = {}
                for column, array in arrays.items():
                    parts.update(_flat(column, array.rows(start, count)))
                columns = [column_array(parts[f.name], f, start, what=str(path)) for f in schema]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return BatchSource(schema=schema, read=read, what=str(path), rows=total, size_bytes=size_bytes)


def _flat(column: str, values: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A column, or the fields of a structured array as ``column.field``."""
    if values.dtype.names is None:
        return {column: values}
    return {f"{column}.{name}": values[name] for name in values.dtype.names}


class _Member:
    """One array of an archive, read from its first row to its last."""

    def __init__(self, archive: zipfile.ZipFile, member: str, name: str) -> None:
        self._name = name
        self._stack = ExitStack()
        self._file = self._stack.enter_context(archive.open(member))
        shape, fortran, self._dtype = _header(self._file, name)
        self._shape = shape[1:]
        self._whole: np.ndarray[Any, Any] | None = None
        if fortran and len(shape) > 1:  # its rows are not in one place
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-npz-"))
            spooled = Path(folder, "array")
            with spooled.open("wb") as copy:
                shutil.copyfileobj(self._file, copy, _COPY_BYTES)
            self._whole = np.memmap(spooled, self._dtype, "r", shape=shape, order="F")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def rows(self, start: int, count: int) -> np.ndarray[Any, Any]:
        """The rows from ``start`` on, which must follow those read before."""
        if self._whole is not None:
            return np.asarray(self._whole[start : start + count])
        size_bytes = count * int(np.prod(self._shape)) * self._dtype.itemsize
        data = self._file.read(size_bytes)
        if len(data) != size_bytes:
            raise Corrupt(f"{self._name} ends after {start} rows and some: it should have {count} more")
        return np.frombuffer(data, self._dtype).reshape(count, *self._shape)
