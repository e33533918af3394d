"""Chunkers that know a file's format: they cut where tensors, column chunks or record batches begin.

So a changed tensor changes its own blocks only, wherever it lies in the file. The sections that a format gives are cut
by one rule: large ones into pieces from their own beginning; neighbours under 16 KiB are joined up to 64 KiB. A group of
these also ends behind a section whose hash says so (one in 16; the hash of a tensor's name, of other sections' bytes),
so that one section more or less moves the ends of the groups next to it only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, cast

from holdfast.errors import InvalidInput
from holdfast.storage.formats.chunkers import Chunker, FastCdcChunker, FixedChunker, read_fully

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FormatChunker"]

GROUP_BYTES = 64 << 10
_TINY_BYTES = 16 << 10
_GROUP_END_ONE_IN = 16
_HEADER_CHUNKER = FastCdcChunker(
    4 << 10, 16 << 10, GROUP_BYTES
)  # an edited header stores little more than the edit

Section: TypeAlias = tuple[int, bytes | Chunker | None]
"""Where a section ends; and what to hash to know whether a group ends there (None: its bytes), or how to cut it."""


@dataclass(frozen=True, slots=True)
class FormatChunker:
    """Cuts files of one format at its boundaries, and what is large between them with another chunker."""

    kind: str
    """``safetensors``, ``parquet`` or ``arrow``."""
    inner: Chunker

    @property
    def name(self) -> str:
        """Such as ``safetensors-1MiB`` or ``parquet-fastcdc2020-16KiB-64KiB-256KiB``."""
        return f"{self.kind}-{self.inner.name.removeprefix('fixed-')}"

    @property
    def max_chunk_bytes(self) -> int:
        """The inner chunker's, or that of a group if it is larger."""
        return max(self.inner.max_chunk_bytes, GROUP_BYTES)

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the pieces; see :class:`~holdfast.storage.formats.chunkers.Chunker`."""
        seekable = getattr(stream, "seekable", None)
        if seekable is None or not seekable():
            raise InvalidInput(
                f"the chunker {self.name} has to look ahead in the file, and this stream can't seek: "
                "write it to a file first, or choose a fixed or fastcdc chunker"
            )
        base = stream.tell()
        file = _File(stream, base, stream.seek(0, 2) - base)
        if file.size == 0:
            raise InvalidInput(f"an empty file is no {self.kind} file")
        return _pieces(file, _FORMATS[self.kind](file), self.inner)


class _File:
    """Ranges of a stream that has a known size."""

    def __init__(self, stream: BinaryIO, base: int, size: int) -> None:
        self._stream = stream
        self._base = base
        self.size = size

    def read(self, start: int, size: int) -> bytes:
        """Exactly these bytes."""
        self._stream.seek(self._base + start)
        data = read_fully(self._stream, size)
        if len(data) != size:
            raise InvalidInput("the file became shorter while it was read; add it again")
        return data

    def part(self, start: int, end: int) -> BinaryIO:
        """A stream of a range."""
        self._stream.seek(self._base + start)
        return cast("BinaryIO", _Part(self._stream, end - start))


class _Part:
    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def read(self, size: int) -> bytes:
        data = self._stream.read(min(size, self._left))
        self._left -= len(data)
        if not data and self._left and size:
            raise InvalidInput("the file became shorter while it was read; add it again")
        return data


def _pieces(file: _File, sections: Iterator[Section], inner: Chunker) -> Iterator[bytes]:
    start = group = 0  # the section's beginning, and that of the group before it
    for end, rule in sections:
        size = end - start
        if size >= _TINY_BYTES or isinstance(rule, (FixedChunker, FastCdcChunker)):
            if start > group:
                yield file.read(group, start - group)
            chunker = inner if rule is None or isinstance(rule, bytes) else rule
            yield from chunker.chunks(file.part(start, end))
            group = end
        elif size:
            if end - group > GROUP_BYTES:
                yield file.read(group, start - group)
                group = start
            decider = rule if isinstance(rule, bytes) else file.read(start, size)
            if hashlib.sha256(decider).digest()[0] % _GROUP_END_ONE_IN == 0:
                yield file.read(group, end - group)
                group = end
        start = end
    if start > group:
        yield file.read(group, start - group)


# -------------------------------------------------------------------------------------------- safetensors

MAX_SAFETENSORS_HEADER_BYTES = 8 << 20  # its JSON takes many times as much memory


def _safetensors_sections(file: _File) -> Iterator[Section]:
    """The header, then each tensor. Source: https://huggingface.co/docs/safetensors."""
    begin, tensors = _safetensors_header(file)
    yield begin, _HEADER_CHUNKER
    at = 0
    for first, last, name in tensors:
        if first != at or last < first or begin + last > file.size:
            raise _no_safetensors(f"the tensor {name[:100]!r} does not lie behind the one before it")
        at = last
        yield begin + last, name
    if begin + at != file.size:
        raise _no_safetensors(f"{file.size - begin - at} bytes behind its last tensor belong to none")


def _safetensors_header(file: _File) -> tuple[int, list[tuple[int, int, bytes]]]:
    """Where the header ends; and the offsets of each tensor behind it with its name, in the order of the offsets."""
    import json

    if file.size < 8:
        raise _no_safetensors("it is too short")
    length = int.from_bytes(file.read(0, 8), "little")
    if length > min(file.size - 8, MAX_SAFETENSORS_HEADER_BYTES):
        raise _no_safetensors(
            f"its header of {length} bytes does not fit into it, or is larger than the "
            f"{MAX_SAFETENSORS_HEADER_BYTES} that are read"
        )
    try:
        header = json.loads(file.read(8, length))
    except (ValueError, RecursionError) as error:
        raise _no_safetensors(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise _no_safetensors("its header is not a JSON object")
    tensors: list[tuple[int, int, bytes]] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(at) is int for at in offsets)):
            raise _no_safetensors(f"the tensor {name[:100]!r} has no data_offsets")
        tensors.append((offsets[0], offsets[1], name.encode("utf-8", "surrogatepass")))
    return 8 + length, sorted(tensors)


def _no_safetensors(why: str) -> InvalidInput:
    return InvalidInput(f"this is no valid safetensors file: {why}; choose another chunker")


# ------------------------------------------------------------------------------------------------ parquet

MAX_PARQUET_FOOTER_BYTES = 16 << 20


def _parquet_sections(file: _File) -> Iterator[Section]:
    """The column chunks as the footer tells, what lies between them, and the footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def wrong(why: object) -> InvalidInput:
        return InvalidInput(f"this is no valid Parquet file: {why}; choose another chunker")

    if file.size < 12 or file.read(0, 4) != b"PAR1":
        raise wrong("it does not begin with PAR1")
    tail = file.read(file.size - 8, 8)
    length = int.from_bytes(tail[:4], "little")
    if tail[4:] != b"PAR1":
        raise wrong("it does not end with PAR1, or its footer is encrypted")
    if length > min(file.size - 12, MAX_PARQUET_FOOTER_BYTES):
        raise wrong(f"its footer of {length} bytes does not fit into it, or is larger than is read")
    footer = file.size - 8 - length
    try:
        metadata = pq.read_metadata(pa.BufferReader(b"PAR1" + file.read(footer, length + 8)))
        ends = _column_chunk_bounds(metadata)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise wrong(error) from error
    for end in sorted(
        end for end in ends if 0 < end < footer
    ):  # whatever the footer says, these are only cuts
        yield end, None
    yield footer, None
    yield file.size, _HEADER_CHUNKER


def _column_chunk_bounds(metadata: Any) -> set[int]:
    bounds = {4}  # behind the magic bytes
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            start = column.data_page_offset
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                start = min(start, column.dictionary_page_offset)
            bounds.update((start, start + column.total_compressed_size))
    return bounds


# -------------------------------------------------------------------------------------------------- arrow

MAX_ARROW_METADATA_BYTES = 16 << 20
_SCHEMA = 1  # the kind of message that comes first


def _arrow_sections(file: _File) -> Iterator[Section]:
    """Each message (schema, dictionary or record batch) of an IPC file or stream, and what follows the last.

    Source: https://arrow.apache.org/docs/format/Columnar.html.
    """
    at = 8 if file.size >= 8 and file.read(0, 6) == b"ARROW1" else 0
    if at:
        yield at, None
    first = True
    while at < file.size:
        length, kind = _arrow_message(file, at)
        if not length and not first:
            break
        if first and kind != _SCHEMA:
            raise _no_arrow("it does not begin with a schema")
        at += length
        if at > file.size:
            raise _no_arrow(f"the message that ends at byte {at} is cut off")
        yield at, None
        first = False
    if first:
        raise _no_arrow("it has no schema")
    yield file.size, None


def _arrow_message(file: _File, at: int) -> tuple[int, int]:
    """Length and kind of the message at ``at``; length 0 for the mark that none follow."""
    prefix = file.read(at, min(8, file.size - at))
    if prefix[:4] == b"\xff\xff\xff\xff":
        head, length = 8, int.from_bytes(prefix[4:8], "little")
    else:
        head, length = 4, int.from_bytes(prefix[:4], "little")  # as before Arrow 0.15
    if len(prefix) >= head and not length:
        return 0, 0
    if len(prefix) < head or not 8 <= length <= min(file.size - at - head, MAX_ARROW_METADATA_BYTES):
        raise _no_arrow(f"the message at byte {at} has impossible metadata of {length} bytes")
    try:
        kind, body = _message(file.read(at + head, length))
    except IndexError as error:
        raise _no_arrow(f"the metadata of the message at byte {at} is cut off") from error
    return head + length + body, kind


def _no_arrow(why: str) -> InvalidInput:
    return InvalidInput(f"this is no valid Arrow IPC file or stream: {why}; choose another chunker")


def _message(metadata: bytes) -> tuple[int, int]:
    """Kind and body length of a message, from its FlatBuffers table.

    Raises:
        IndexError: An offset leads out of the metadata.
    """

    def number(at: int, size: int, *, signed: bool = False) -> int:
        if not 0 <= at <= len(metadata) - size:
            raise IndexError
        return int.from_bytes(metadata[at : at + size], "little", signed=signed)

    table = number(0, 4)
    fields = table - number(table, 4, signed=True)
    count = (number(fields, 2) - 4) // 2

    def field(index: int, size: int) -> int:
        offset = number(fields + 4 + 2 * index, 2) if index < count else 0
        return number(table + offset, size, signed=size == 8) if offset else 0

    kind, body = field(1, 1), field(3, 8)
    if body < 0:
        raise IndexError
    return kind, body


_FORMATS: dict[str, Callable[[_File], Iterator[Section]]] = {
    "safetensors": _safetensors_sections,
    "parquet": _parquet_sections,
    "arrow": _arrow_sections,
}
