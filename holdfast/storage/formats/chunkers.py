"""Where a file is cut into blocks.

A chunker's name carries every parameter that decides a cut, so that the name, the profile and the hash together say
which CID a file gets. ``chunker_named`` makes one from its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from holdfast.errors import InvalidInput
from holdfast.storage.block_store import MAX_BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["CHUNKER_FORMS", "Chunker", "FastCdcChunker", "FixedChunker", "chunker_named", "cut_in_windows"]

CHUNKER_FORMS: tuple[str, ...] = (
    "fixed-<size>",
    "buzhash",
    "fastcdc2020-<min>-<average>-<max>",
    "safetensors-<size>",
    "parquet-fastcdc2020-<min>-<average>-<max>",
    "arrow-<size>",
)
"""The forms of chunkers' names, for messages and help; sizes are ``1MiB``, ``256KiB`` or a number of bytes."""

_SHORT = {
    "fixed": "fixed-1MiB",
    "buzhash": "buzhash-128KiB-512KiB-17",
    "fastcdc": "fastcdc2020-256KiB-1MiB-2MiB",
    "fastcdc2020": "fastcdc2020-256KiB-1MiB-2MiB",
    "safetensors": "safetensors-1MiB",
    "parquet": "parquet-fastcdc2020-16KiB-64KiB-256KiB",
    "arrow": "arrow-1MiB",
}
_SIZE = re.compile(r"([1-9][0-9]{0,9})(KiB|MiB)?")
_UNITS = {None: 1, "KiB": 1 << 10, "MiB": 1 << 20}
_READ_BYTES = 1 << 20


class Chunker(Protocol):
    """Decides where a file is cut. Chunkers are immutable; those of one name are equal and cut alike."""

    @property
    def name(self) -> str:
        """The canonical name, with every parameter that decides a cut."""
        ...

    @property
    def max_chunk_bytes(self) -> int:
        """No piece is longer."""
        ...

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the bytes from the stream's position to its end, in pieces, in constant memory.

        Nothing for an empty stream. No piece is empty, except that Kubo's buzhash may end with one, as in Kubo.

        Raises:
            InvalidInput: The bytes are not of the format that this chunker cuts, or it has to seek and can't.
        """
        ...


def chunker_named(text: str) -> Chunker:
    """The chunker that ``text`` names; ``chunker_named(c.name) == c``.

    Args:
        text: A name as in :data:`CHUNKER_FORMS`, or only its first word for the usual parameters: ``fixed``, ``buzhash``,
            ``fastcdc``, ``safetensors``, ``parquet``, ``arrow``. The three formats take ``<size>`` as well as
            ``fastcdc2020-<min>-<average>-<max>`` for pieces of what is large.

    Raises:
        InvalidInput: There is no such chunker, or a size is impossible.
    """
    name = _SHORT.get(text, text)
    kind, _, rest = name.partition("-")
    try:
        if kind in ("safetensors", "parquet", "arrow"):
            from holdfast.storage.formats.format_chunkers import FormatChunker

            return FormatChunker(
                kind, _plain(rest) if rest.startswith("fastcdc") else FixedChunker(_size(rest))
            )
        return _plain(name)
    except InvalidInput as error:
        raise InvalidInput(
            f"there is no chunker {text[:100]!r}: {error}; the forms are {', '.join(CHUNKER_FORMS)}"
        ) from error


def _plain(name: str) -> Chunker:
    kind, *parameters = name.split("-")
    if kind == "fixed" and len(parameters) == 1:
        return FixedChunker(_size(parameters[0]))
    if kind in ("fastcdc", "fastcdc2020") and len(parameters) == 3:
        return FastCdcChunker(*map(_size, parameters))
    if name == _SHORT["buzhash"]:
        from holdfast.storage.formats.buzhash import BuzhashChunker

        return BuzhashChunker()
    raise InvalidInput(f"{name[:100]!r} is of no known form")


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text[:100]!r} is not a size such as 1MiB, 256KiB or 1000")
    return int(match[1]) * _UNITS[match[2]]


def size_text(size_bytes: int) -> str:
    """A size as canonical names have it: ``1MiB``, ``256KiB``, ``1000``."""
    for unit in ("MiB", "KiB"):
        if size_bytes % _UNITS[unit] == 0:
            return f"{size_bytes // _UNITS[unit]}{unit}"
    return str(size_bytes)


def read_fully(stream: BinaryIO, size: int) -> bytes:
    """``size`` bytes, fewer only at the stream's end, however small the pieces that it gives."""
    piece = stream.read(size)
    if len(piece) == size or not piece:
        return piece
    pieces, missing = [piece], size - len(piece)
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces) if len(pieces) > 1 else pieces[0]


@dataclass(frozen=True, slots=True)
class FixedChunker:
    """Pieces of one size; only the last one may be shorter."""

    size_bytes: int

    def __post_init__(self) -> None:
        if not 0 < self.size_bytes <= MAX_BLOCK_BYTES:
            raise InvalidInput(f"a chunk has 1 to {MAX_BLOCK_BYTES} bytes, not {self.size_bytes}")

    @property
    def name(self) -> str:
        """Such as ``fixed-1MiB``."""
        return f"fixed-{size_text(self.size_bytes)}"

    @property
    def max_chunk_bytes(self) -> int:
        """The size."""
        return self.size_bytes

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the pieces; see :class:`Chunker`."""
        size = self.size_bytes
        while piece := read_fully(stream, size):
            yield piece
            if len(piece) < size:
                return


@dataclass(frozen=True, slots=True)
class FastCdcChunker:
    """Pieces that end where the bytes themselves say so: an insertion changes the pieces around it only.

    FastCDC as published in 2020 (https://ieeexplore.ieee.org/document/9055082), normalization level 1, the usual table:
    by its library's word, the cuts of the Rust crate
    ``fastcdc``'s module ``v2020``.
    """

    min_bytes: int
    average_bytes: int
    max_bytes: int

    def __post_init__(self) -> None:
        if not 64 <= self.min_bytes < self.average_bytes < self.max_bytes <= MAX_BLOCK_BYTES:
            raise InvalidInput(
                f"FastCDC takes 64 <= min < average < max <= {MAX_BLOCK_BYTES} bytes, "
                f"not {self.min_bytes}, {self.average_bytes}, {self.max_bytes}"
            )
        if self.min_bytes > 1 << 20 or self.average_bytes < 256 or self.max_bytes < 1024:
            raise InvalidInput("FastCDC takes min <= 1MiB, average >= 256 and max >= 1KiB")

    @property
    def name(self) -> str:
        """Such as ``fastcdc2020-256KiB-1MiB-2MiB``."""
        return "-".join(
            ["fastcdc2020", *map(size_text, (self.min_bytes, self.average_bytes, self.max_bytes))]
        )

    @property
    def max_chunk_bytes(self) -> int:
        """The largest size."""
        return self.max_bytes

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the pieces; see :class:`Chunker`."""
        return cut_in_windows(stream, self.max_bytes, self._cutter())

    def _cutter(self) -> Callable[[memoryview], int]:
        """Gives the length of the first piece of some bytes. All that depends on the library is here."""
        import pyfastcdc

        cutter = pyfastcdc.FastCDC(self.average_bytes, min_size=self.min_bytes, max_size=self.max_bytes)
        return lambda window: next(cutter.cut_buf(window)).length


def cut_in_windows(
    stream: BinaryIO, longest: int, length_of_first: Callable[[memoryview], int]
) -> Iterator[bytes]:
    """Yield the pieces of a stream, where a cut depends on no more than ``longest`` bytes from the piece's beginning on.

    Args:
        stream: Read to its end.
        longest: No piece is longer.
        length_of_first: Gives the length of the first piece of what it is shown: ``longest`` bytes, or all that is left.
    """
    window = bytearray(max(4 * longest, _READ_BYTES))  # one for all: fresh memory costs more than the cutting
    filled = 0
    final = False
    with memoryview(window) as view:
        while not final:
            while filled < len(window) and not final:
                fresh = stream.read(min(len(window) - filled, _READ_BYTES))
                view[filled : filled + len(fresh)] = fresh
                filled += len(fresh)
                final = not fresh
            at = 0
            while filled - at >= longest or (final and at < filled):
                end = at + length_of_first(view[at : min(at + longest, filled)])
                yield bytes(view[at:end])
                at = end
            view[: filled - at] = view[at:filled]
            filled -= at
