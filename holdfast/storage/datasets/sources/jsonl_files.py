"""JSON Lines, compressed or not: types from the first rows as for rows in memory, the rest read by Arrow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.sources.files import file_errors, total_size
from holdfast.storage.datasets.sources.rows import RowBatcher, columns_of, window
from holdfast.storage.datasets.sources.source import BatchSource, in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["open_jsonl"]

_CHUNK_BYTES = 4 << 20
_MAX_ROW_BYTES = 256 << 20
_EXACT = 2.0**53
"""From here on, not every integer is a float."""
_BOM = b"\xef\xbb\xbf"


def open_jsonl(paths: Sequence[Path]) -> BatchSource:
    """JSON Lines files as one source: an object a line, UTF-8, empty lines ignored. Texts stay texts.

    Raises:
        InvalidInput: A line is no object, the files have no rows, or values of one column don't go together.
        NotFound: A file is not there.
        Corrupt: A compressed file is damaged or ends too early.
    """
    size_bytes = total_size(paths)
    origins: list[tuple[str, int]] = []

    def first_rows() -> Iterator[Mapping[str, Any]]:
        for path in paths:
            with file_errors(path, "jsonl"):
                number = 0
                for line, chunk in _chunks(path):
                    for row in _parsed(path, chunk, line, number):
                        origins.append((str(path), number))
                        number += 1
                        yield row

    rows = window(first_rows())
    if not rows:
        raise InvalidInput(f"{paths[0]} has no rows: without one its columns are not known")
    schema = columns_of(rows, locate=origins.__getitem__)
    del rows

    def read() -> Iterator[pa.RecordBatch]:
        for path in paths:
            with file_errors(path, "jsonl"):
                yield from _batches(path, schema)

    return BatchSource(schema=schema, read=read, what=str(paths[0]), size_bytes=size_bytes)


def _batches(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    batcher = RowBatcher(schema, what=str(path))
    options = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    # Arrow's reader makes broken arrays of lists without any value.
    arrow_can = not any(_nulls_inside(field.type) for field in schema)
    rows = 0
    for line, chunk in _chunks(path):
        batches = _by_arrow(chunk, options, schema) if arrow_can else None
        if batches is None:
            # Python is slower, takes a little more (infinities), and says which row is wrong.
            parsed = list(_parsed(path, chunk, line, rows))
            batches = [batcher.batch(parsed, rows)] if parsed else []
        for batch in batches:
            yield pa.RecordBatch.from_arrays(batch.columns, schema=schema)
            rows += batch.num_rows


def _by_arrow(chunk: bytes, options: pj.ParseOptions, schema: pa.Schema) -> list[pa.RecordBatch] | None:
    """The rows of a chunk, or None where Arrow can't read it."""
    try:
        chunk.decode()  # Arrow takes any bytes for text
        read_options = pj.ReadOptions(block_size=len(chunk) + 1)
        table = pj.read_json(pa.BufferReader(chunk), read_options=read_options, parse_options=options)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    if table.num_rows != _object_lines(chunk):
        return None
    batches: list[pa.RecordBatch] = table.select(schema.names).combine_chunks().to_batches()
    if any(_rounded(column) for batch in batches for column in batch.columns):
        return None
    return batches


def _object_lines(chunk: bytes) -> int | None:
    """How many lines there are, if each is an object or several: Arrow takes these, those over many lines, and null."""
    lines = [line for line in map(bytes.strip, chunk.split(b"\n")) if line]
    return len(lines) if all(line[:1] == b"{" and line[-1:] == b"}" for line in lines) else None


def _rounded(array: pa.Array) -> bool:
    """Whether a float may stand for an integer that floats don't have: Arrow rounds those without a word."""
    if pa.types.is_floating(array.type):
        return bool(pc.any(pc.greater_equal(pc.abs(array), _EXACT)).as_py())
    if pa.types.is_struct(array.type) or pa.types.is_list(array.type):
        inner = array.flatten()
        return any(map(_rounded, inner if isinstance(inner, list) else [inner]))
    return False


def _nulls_inside(kind: pa.DataType) -> bool:
    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return any(pa.types.is_null(item) or _nulls_inside(item) for item in inner)


def _chunks(path: Path) -> Iterator[tuple[int, bytes]]:
    """The file in pieces of whole lines, each with the number of its first line, from 1."""
    line = 1
    rest: list[bytes] = []
    held = 0
    with pa.input_stream(str(path), compression="detect") as stream:
        data = stream.read(_CHUNK_BYTES)
        data = data.removeprefix(_BOM)
        if data.lstrip()[:1] == b"[":
            raise InvalidInput(
                f"{path} is one JSON array; JSON Lines has an object on each line (jq -c '.[]' makes it from an array)"
            )
        while data:
            end = data.rfind(b"\n") + 1
            if end:
                chunk = b"".join((*rest, data[:end]))
                yield line, chunk
                line += chunk.count(b"\n")
                rest, held = [data[end:]], len(data) - end
            else:
                rest.append(data)
                held += len(data)
                if held > _MAX_ROW_BYTES:
                    raise InvalidInput(f"{path}, line {line} has more than {_MAX_ROW_BYTES >> 20} MiB")
            data = stream.read(_CHUNK_BYTES)
        if held:
            yield line, b"".join(rest)


def _parsed(path: Path, chunk: bytes, first_line: int, first_row: int) -> Iterator[dict[str, Any]]:
    row = first_row
    for at, text in enumerate(chunk.split(b"\n")):
        if not text.strip():
            continue
        where = f"{path}, row {row} (the first is 0; line {first_line + at} of the file)"
        try:
            value = json.loads(text.decode(), object_pairs_hook=_no_key_twice)
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{where} is not UTF-8: {in_words(text)}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"{where} is not JSON: {in_words(text.decode())}: {error}") from error
        if not isinstance(value, dict):
            raise InvalidInput(f"{where} is {in_words(value)}: a row is an object with a key for each column")
        yield value
        row += 1


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has a key twice: {sorted({n for n in names if names.count(n) > 1})}")
    return found
