"""Which formats of files there are, and a split as one or more files of one format."""

from __future__ import annotations

import zipfile
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from holdfast.errors import Corrupt, Denied, HoldfastError, InvalidInput, NotFound
from holdfast.storage.datasets.schema import logical_batch, logical_schema
from holdfast.storage.datasets.sources.source import check_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from holdfast.storage.datasets.sources.source import BatchSource

__all__ = ["FORMATS", "as_schema", "common_schema", "file_errors", "format_of", "open_files", "total_size"]

FORMATS: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".csv.gz", ".csv.zst"),
    "tsv": (".tsv", ".tab", ".tsv.gz", ".tsv.zst"),
    "jsonl": (
        *(".jsonl", ".ndjson", ".json"),
        *(".jsonl.gz", ".ndjson.gz", ".json.gz", ".jsonl.zst", ".ndjson.zst", ".json.zst"),
    ),
    "arrow": (".arrow", ".ipc", ".arrows", ".feather"),
    "npy": (".npy",),
    "npz": (".npz",),
    "image": (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
}
"""Each format with the ends of file names that mean it."""
_DAMAGED = (pa.ArrowException, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_ALIASES = {"ndjson": "jsonl", "json": "jsonl", "ipc": "arrow", "feather": "arrow", "images": "image"}


def format_of(path: Path, given: str | None = None) -> str:
    """The format of a file: the one that was given, or what its name says.

    Raises:
        InvalidInput: Neither is known.
    """
    if given is not None:
        name = _ALIASES.get(given.lower(), given.lower())
        if name not in FORMATS:
            raise InvalidInput(f"format {given!r} is not known; the formats are {', '.join(FORMATS)}")
        return name
    ending = path.name.lower()
    for name, endings in FORMATS.items():
        if ending.endswith(endings):
            return name
    known = "; ".join(f"{name} ({' '.join(endings)})" for name, endings in FORMATS.items())
    raise InvalidInput(
        f"the name of {path} does not tell its format: say format=..., or rename it. The formats are {known}"
    )


def open_files(paths: Sequence[Path], file_format: str) -> BatchSource:
    """Files of one format, one after the other, as one source.

    Raises:
        InvalidInput: A file has other columns than the first, or something else that can't be stored.
        NotFound: A file is not there.
        Corrupt: A file is damaged, or not of this format.
    """
    return _opener(file_format)(paths)


def _opener(file_format: str) -> Callable[[Sequence[Path]], BatchSource]:
    from holdfast.storage.datasets.sources import (
        array_files,
        columnar_files,
        csv_files,
        image_files,
        jsonl_files,
    )

    return {
        "parquet": columnar_files.open_parquet,
        "arrow": columnar_files.open_ipc,
        "csv": csv_files.open_csv,
        "tsv": csv_files.open_tsv,
        "jsonl": jsonl_files.open_jsonl,
        "npy": array_files.open_npy,
        "npz": array_files.open_npz,
        "image": image_files.open_images,
    }[file_format]


@contextmanager
def file_errors(path: Path, file_format: str) -> Iterator[None]:
    """Turn whatever a library says about a file into an error that names it.

    Raises:
        NotFound: It is not there.
        Denied: It may not be read.
        Corrupt: It is damaged, ends too early, or is of another format.
    """
    try:
        yield
    except HoldfastError:
        raise
    except FileNotFoundError as error:
        raise NotFound(f"there is no file {path}") from error
    except PermissionError as error:
        raise Denied(f"no permission to read {path}") from error
    except IsADirectoryError as error:
        raise InvalidInput(f"{path} is a folder, not a file of the format {file_format}") from error
    except _DAMAGED as error:
        raise Corrupt(
            f"{path} is damaged, ends too early or is not of the format {file_format}: {error}"
        ) from error


def total_size(paths: Sequence[Path]) -> int:
    """How many bytes the files have together.

    Raises:
        NotFound: One is not there.
    """
    total = 0
    for path in paths:
        with file_errors(path, "any"):
            total += path.stat().st_size
    return total


def common_schema(paths: Sequence[Path], schema_of: Callable[[Path], pa.Schema]) -> pa.Schema:
    """The schema that all the files of a split have: the first one's, or as datasets have it where layouts differ.

    Raises:
        InvalidInput: Names or types differ; the message has the first that does.
    """
    first = schema_of(paths[0])
    check_columns(first.names, what=str(paths[0]))
    same = True
    for path in paths[1:]:
        other = schema_of(path)
        if not other.equals(first):
            check_columns(other.names, what=str(path))
            _check_same(first, other, first_path=paths[0], path=path)
            same = False
    return first if same else logical_schema(first)


def as_schema(batch: pa.RecordBatch, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows with exactly the columns of a :func:`common_schema`, without metadata that says where a file comes from."""
    columns = batch.select(schema.names)
    if columns.schema.equals(schema):
        yield pa.RecordBatch.from_arrays(columns.columns, schema=schema)
    else:
        yield from logical_batch(columns, schema)


def _check_same(first: pa.Schema, other: pa.Schema, *, first_path: Path, path: Path) -> None:
    if set(other.names) != set(first.names):
        missing = [name for name in first.names if name not in other.names]
        more = [name for name in other.names if name not in first.names]
        raise InvalidInput(
            f"{path} has other columns than {first_path}: it lacks {missing} and has {more} more"
        )
    wanted, found = logical_schema(first), logical_schema(other)
    for field in wanted:
        kind = found.field(field.name).type
        if kind != field.type:
            raise InvalidInput(
                f"{path} has the column {field.name!r} as {kind}, {first_path} as {field.type}: write both with one type"
            )
