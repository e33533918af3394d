"""CSV and TSV files, compressed or not: read by Arrow block by block, with types from the first block."""

from __future__ import annotations

import csv
import io
import itertools
import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from holdfast.errors import HoldfastError, InvalidInput
from holdfast.storage.datasets.sources.files import file_errors, total_size
from holdfast.storage.datasets.sources.source import BatchSource, check_columns, in_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["open_csv", "open_tsv"]

_BLOCK_BYTES = 4 << 20
"""Arrow reads up to 32 of them ahead. A row must fit into one."""
_GROUP_ROWS = 4096
_EXACT = 2.0**53
"""From here on, not every integer is a float."""
MISSING = (
    *("NA", "N/A", "#N/A", "#N/A N/A", "#NA", "n/a"),
    *("NULL", "null", "NaN", "nan", "-NaN", "-nan", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
"""What stands for no value in columns that are not text, besides an empty field."""
_INTEGER = r"^\s*[+-]?\d+\s*$"


def open_csv(paths: Sequence[Path]) -> BatchSource:
    """CSV files as one source: UTF-8, a header each, commas, RFC 4180 quotes.

    Empty fields and those of :data:`MISSING` are nulls in columns that are not text.

    Raises:
        InvalidInput: No header, columns of one name, other columns than the first file, text that is not UTF-8, or a quote
            that is never closed.
        NotFound: A file is not there.
        Corrupt: A compressed file is damaged or ends too early.
    """
    return _open(paths, ",", "csv")


def open_tsv(paths: Sequence[Path]) -> BatchSource:
    """Like :func:`open_csv`, with tabs between the fields."""
    return _open(paths, "\t", "tsv")


def _open(paths: Sequence[Path], delimiter: str, file_format: str) -> BatchSource:
    size_bytes = total_size(paths)
    schema = _schema(paths, delimiter, file_format)

    def read() -> Iterator[pa.RecordBatch]:
        for path in paths:
            with file_errors(path, file_format):
                yield from _batches(path, delimiter, schema, first=paths[0])

    return BatchSource(schema=schema, read=read, what=str(paths[0]), size_bytes=size_bytes)


def _schema(paths: Sequence[Path], delimiter: str, file_format: str) -> pa.Schema:
    """The columns of the first file; of those with no value in its first block, the types of the next files' first."""
    schema = _checked_first_block(paths[0], delimiter, file_format)
    for path in paths[1:]:
        if not any(pa.types.is_null(field.type) for field in schema):
            break
        found = _checked_first_block(path, delimiter, file_format)
        _check_header(found, schema, path=path, first=paths[0])
        schema = pa.schema([found.field(f.name) if pa.types.is_null(f.type) else f for f in schema])
    return schema


def _checked_first_block(path: Path, delimiter: str, file_format: str) -> pa.Schema:
    with file_errors(path, file_format):
        schema = _first_block(path, delimiter, {})
    check_columns(schema.names, what=str(path))
    return schema


def _first_block(path: Path, delimiter: str, types: Mapping[str, pa.DataType]) -> pa.Schema:
    try:
        with _reader(path, delimiter, types) as reader:
            schema: pa.Schema = reader.schema
            schema.names  # noqa: B018 -- decodes the header
            batch = next(iter(reader), None)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the header of {path} is not UTF-8: {error}") from error
    except pa.ArrowException as error:
        raise _located(path, delimiter, types, 0, error) from error
    binary = [field.name for field in schema if pa.types.is_binary(field.type)]
    if binary:  # what Arrow makes of text that is not UTF-8
        as_text = {name: pa.string() for name in binary}
        raise _located(path, delimiter, as_text, 0, ValueError(f"columns {binary} are not UTF-8"))
    return schema if batch is None else _without_rounded(path, delimiter, batch)


def _without_rounded(path: Path, delimiter: str, batch: pa.RecordBatch) -> pa.Schema:
    """The first block's schema, with integers of more than 64 bits as text, which Arrow would round to floats."""
    schema = batch.schema
    large = [
        name
        for name, values in zip(schema.names, batch.columns, strict=True)
        if pa.types.is_floating(values.type)
        and schema.names.count(name) == 1
        and pc.any(pc.greater_equal(pc.abs(values), _EXACT)).as_py()
    ]
    if large:
        with _reader(path, delimiter, dict.fromkeys(large, pa.string())) as reader:
            texts = next(iter(reader))
        for name in large:
            values = pc.utf8_trim_whitespace(texts.column(name))
            missing = pc.is_in(values, pa.array(["", *MISSING]))
            if pc.all(pc.or_(missing, pc.match_substring_regex(values, _INTEGER))).as_py():
                schema = schema.set(schema.get_field_index(name), pa.field(name, pa.string()))
    return schema


def _batches(path: Path, delimiter: str, schema: pa.Schema, *, first: Path) -> Iterator[pa.RecordBatch]:
    types = {field.name: field.type for field in schema}
    rows = 0
    try:
        with _reader(path, delimiter, types) as reader, ExitStack() as opened:
            check_columns(reader.schema.names, what=str(path))
            _check_header(reader.schema, schema, path=path, first=first)
            texts: Iterator[pa.RecordBatch] | None = None
            for number, batch in enumerate(reader):
                columns = [batch.column(name) for name in schema.names]
                if texts is None and any(map(_may_be_rounded, columns)):
                    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
                    as_text = dict.fromkeys(floats, pa.string())
                    again = opened.enter_context(_reader(path, delimiter, as_text, columns=floats))
                    texts = itertools.islice(again, number, None)  # in the same blocks
                if texts is not None:
                    _refuse_rounded(batch, next(texts), path, rows)
                yield pa.RecordBatch.from_arrays(columns, schema=schema)
                rows += batch.num_rows
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the header of {path} is not UTF-8: {error}") from error
    except pa.ArrowException as error:
        raise _located(path, delimiter, types, rows, error) from error
    _refuse_open_quote(path, delimiter)


def _may_be_rounded(values: pa.Array) -> bool:
    return pa.types.is_floating(values.type) and bool(
        pc.any(pc.greater_equal(pc.abs(values), _EXACT)).as_py()
    )


def _refuse_rounded(batch: pa.RecordBatch, texts: pa.RecordBatch, path: Path, first_row: int) -> None:
    """Refuse integers in a column of floats that are no float; Arrow rounds them without a word."""
    for name in texts.schema.names:
        if not _may_be_rounded(batch.column(name)):
            continue
        large = pc.greater_equal(pc.abs(batch.column(name)), _EXACT)
        integers = pc.match_substring_regex(texts.column(name), _INTEGER)
        for row in pc.indices_nonzero(pc.and_(large, integers)).to_pylist():
            text = texts.column(name)[row].as_py()
            value = batch.column(name)[row].as_py()
            if not math.isfinite(value) or int(text) != int(value):
                raise InvalidInput(
                    f"{path}, row {first_row + row} (the first is 0), column {name!r}: {in_words(text)} is an integer that is no "
                    "float, and the column has floats: it would be rounded"
                )


def _refuse_open_quote(path: Path, delimiter: str) -> None:
    """Refuse a file that ends inside of quotes: Arrow takes all behind the last one for one field.

    Quotes come in pairs, unless a field without quotes has one, so that few files are looked at twice.
    """
    quotes = 0
    with pa.input_stream(str(path), compression="detect") as stream:
        while data := stream.read(_BLOCK_BYTES):
            quotes += data.count(b'"')
    if quotes % 2 == 0:
        return
    number, first_line, found = -2, 1, [""]  # the header makes -1 of it
    with pa.input_stream(str(path), compression="detect") as stream, _long_fields():
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        lines = csv.reader(itertools.chain(text, ["end"]), delimiter=delimiter)
        next_line = 1
        for found in lines:
            first_line, next_line = next_line, lines.line_num + 1
            number += bool(found)
    if found != ["end"] or first_line != lines.line_num:
        where = (
            f"row {number} (the first is 0; line {first_line} of the file)" if number >= 0 else "its header"
        )
        raise InvalidInput(f"{path}, {where}: the file ends inside of quotes that are opened there")


@contextmanager
def _reader(
    path: Path, delimiter: str, types: Mapping[str, pa.DataType], *, columns: Sequence[str] = ()
) -> Iterator[Any]:
    with (
        pa.input_stream(str(path), compression="detect") as stream,
        pcsv.open_csv(
            stream,
            read_options=pcsv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=_parse_options(delimiter),
            convert_options=_convert_options(types, columns),
        ) as reader,
    ):
        yield reader


def _convert_options(types: Mapping[str, pa.DataType], columns: Sequence[str] = ()) -> Any:
    return pcsv.ConvertOptions(
        column_types=dict(types), null_values=["", *MISSING], include_columns=list(columns)
    )


def _parse_options(delimiter: str) -> pcsv.ParseOptions:
    return pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True)


def _check_header(found: pa.Schema, wanted: pa.Schema, *, path: Path, first: Path) -> None:
    if sorted(found.names) != sorted(wanted.names):
        missing = [name for name in wanted.names if name not in found.names]
        more = [name for name in found.names if name not in wanted.names]
        raise InvalidInput(f"{path} has other columns than {first}: it lacks {missing} and has {more} more")


# ----------------------------------------------------------------------------- which row an error is about


def _located(
    path: Path, delimiter: str, types: Mapping[str, pa.DataType], rows: int, error: Exception
) -> InvalidInput:
    """The error of Arrow's reader with the row, column and value that it is about.

    ``rows`` were read without an error, so the first bad one comes after them. Arrow's own messages have no row when several
    threads read.
    """
    try:
        with _long_fields():
            found = _first_bad(path, delimiter, types, rows)
    except (csv.Error, OSError, pa.ArrowException) as second:
        if isinstance(second, HoldfastError):
            raise
        if "limit" in str(second):
            return InvalidInput(
                f"{path} has a row of more than {_BLOCK_BYTES >> 20} MiB, or a quote that is never closed: store it as JSON Lines "
                "or Parquet, or mend it"
            )
        found = None
    return InvalidInput(found or f"{path} can't be read on after row {rows}: {error}")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Python's reader takes fields as long as Arrow does."""
    limit = csv.field_size_limit(_BLOCK_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _first_bad(path: Path, delimiter: str, types: Mapping[str, pa.DataType], rows: int) -> str | None:
    with pa.input_stream(str(path), compression="detect") as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        lines = csv.reader(text, delimiter=delimiter)
        header = next(lines, None)
        if header is None:
            return f"{path} is empty: it has no header"
        every = enumerate((lines.line_num, row) for row in lines if row)
        numbered = itertools.islice(every, rows, None)
        for group in _groups(numbered):
            problems = [_bad_value(group, at, types.get(name)) for at, name in enumerate(header)]
            problems.append(next((number for number, (_, row) in group if len(row) != len(header)), None))
            found = [(number, at) for at, number in enumerate(problems) if number is not None]
            if not found:
                continue
            number, at = min(found)
            line, row = group[number - group[0][0]][1]
            where = f"{path}, row {number} (the first is 0; line {line} of the file)"
            if at == len(header) or len(row) != len(header):
                return f"{where}: it has {len(row)} values, the header {len(header)}: {in_words(delimiter.join(row))}"
            kind = types[header[at]]
            reason = (
                "comes after a start in which the column had no value at all, so that its type is not known"
                if pa.types.is_null(kind)
                else "is not UTF-8"
                if pa.types.is_string(kind)
                else f"is no {kind}, the type of the values at the beginning"
            )
            return f"{where}, column {header[at]!r}: {in_words(row[at])} {reason}"
    return None


def _groups(numbered: Iterator[tuple[int, tuple[int, list[str]]]]) -> Iterator[list[Any]]:
    """The rows by the thousands, or by fewer where they are long."""
    group: list[Any] = []
    chars = 0
    for number, (line, row) in numbered:
        group.append((number, (line, row)))
        chars += sum(map(len, row))
        if len(group) >= _GROUP_ROWS or chars >= _BLOCK_BYTES:
            yield group
            group, chars = [], 0
    if group:
        yield group


def _bad_value(group: list[Any], at: int, kind: pa.DataType | None) -> int | None:
    """The number of the first row whose field ``at`` is not of the type, by Arrow's own rules."""
    values = [(number, row[at]) for number, (_, row) in group if len(row) > at]
    if kind is None or not values or _fit([text for _, text in values], kind):
        return None
    good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        if _fit([text for _, text in values[:middle]], kind):
            good = middle
        else:
            bad = middle
    number: int = values[bad - 1][0]
    return number


def _fit(values: list[str], kind: pa.DataType) -> bool:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=csv.QUOTE_ALL).writerows([value] for value in ("column", *values))
    data = buffer.getvalue().encode("utf-8", "surrogateescape")
    try:
        pcsv.read_csv(
            pa.BufferReader(data),
            read_options=pcsv.ReadOptions(block_size=len(data) + 1),
            parse_options=_parse_options(","),
            convert_options=_convert_options({"column": kind}),
        )
    except pa.ArrowException:
        return False
    return True
