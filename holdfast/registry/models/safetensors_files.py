"""Tensors as safetensors files, written and read tensor by tensor, so that memory stays flat.

Source: the format's description at https://huggingface.co/docs/safetensors. The bytes are those that the safetensors library
itself writes for the same tensors, so equal tensors have equal CIDs, whoever wrote them.
"""

from __future__ import annotations

import io
import json
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.formats.unixfs import profile_named
from holdfast.storage.stored_file import StoredFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["TYPES", "StoredTensors", "Tensor", "store_tensors"]

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "BOOL": "bool",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
}
"""What the format's types are called in NumPy, torch and JAX."""

# By rising alignment, as the library orders them; a file has the widest tensors first.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_RANK = {dtype: rank for rank, dtype in enumerate(_BITS)}
_ALIGNMENT = 8
_MAX_HEADER_BYTES = 8 << 20
"""As the store's chunker for this format: its JSON takes many times as much memory."""
_MOST_ELEMENTS = 2**62
"""More can't be addressed, not even where another dimension is 0."""
_READERS = 2
_WINDOW_BYTES = 16 << 20
"""What is hashed and used at once: so that memory is flat, and both threads are at one large tensor."""
_PROFILE = "unixfs-v1-2025"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file that is to be written."""

    dtype: str
    """As the format calls it: ``F32``, ``BF16``, ..."""
    shape: tuple[int, ...]
    data: Callable[[], memoryview]
    """Its bytes, row-major and little-endian; asked for when they are written."""

    @property
    def size_bytes(self) -> int:
        """Of its data."""
        return _size_bytes(self.dtype, self.shape)


def store_tensors(
    store: ContentStore, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Cid:
    """The CID of a safetensors file with these tensors; cut at their borders, so that versions share those that are equal.

    Args:
        store: Where to.
        tensors: By name.
        metadata: Texts for the header.

    Raises:
        InvalidInput: The header would be larger than what is read again.
    """
    # The hash is the store's, the cut is not: a tensor has the same blocks everywhere.
    profile = profile_named(_PROFILE, "safetensors", store.profile.hash)
    stream = io.BufferedReader(_Writing(tensors, metadata or {}), 1 << 20)
    return store.add_stream(cast("BinaryIO", stream), profile=profile, pin=False)


class _Writing(io.RawIOBase):
    """A file of tensors as a stream that can seek; one tensor's bytes are held at a time."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__()
        ordered = sorted(tensors.items(), key=lambda item: (-_RANK[item[1].dtype], item[0]))
        header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        at = 0
        for name, tensor in ordered:
            end = at + tensor.size_bytes
            header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, end]}
            at = end
        try:
            text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"the names of tensors must be texts that UTF-8 has: {error}") from error
        text += b" " * (-len(text) % _ALIGNMENT)
        if len(text) > _MAX_HEADER_BYTES:
            raise InvalidInput(
                f"the names of {len(tensors)} tensors take {len(text)} bytes, more than the {_MAX_HEADER_BYTES} of a header"
            )
        first = len(text).to_bytes(8, "little") + text
        self._parts: list[tuple[int, Callable[[], memoryview]]] = [(0, lambda: memoryview(first))]
        self._parts += [
            (len(first) + header[name]["data_offsets"][0], tensor.data)
            for name, tensor in ordered
            if tensor.size_bytes
        ]
        self._ends = [start for start, _ in self._parts[1:]] + [len(first) + at]
        self._at = self._part = 0
        self._data: memoryview | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._ends[-1])[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._ends[-1]:
            return 0
        while self._at >= self._ends[self._part]:
            self._part, self._data = self._part + 1, None
        while self._at < self._parts[self._part][0]:
            self._part, self._data = self._part - 1, None
        start, data = self._parts[self._part]
        if self._data is None:
            self._data = data().cast("B")
        piece = self._data[self._at - start :][: len(buffer)]
        buffer[: piece.nbytes] = piece
        self._at += piece.nbytes
        return piece.nbytes


@dataclass(frozen=True, slots=True)
class _Place:
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class StoredTensors:
    """A stored safetensors file, opened: its header is read and checked, its tensors are not read yet.

    Args:
        store: Where it is.
        cid: Of the file.

    Raises:
        Corrupt: It is no safetensors file.
        NotFound: Nobody has its first blocks.
    """

    def __init__(self, store: ContentStore, cid: Cid) -> None:
        self._file = StoredFile(store, cid)
        self._file.map()
        self._places: dict[str, _Place] = {}
        self.metadata: dict[str, str] = {}
        """The texts in the header."""
        self.ties: dict[str, str] = {}
        """Names that share the tensor of another one, which is stored: the first of them in order."""
        try:
            self._read_header()
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise Corrupt(f"{cid} is not a safetensors file: {error}") from error

    def _read_header(self) -> None:
        size = self._file.size
        length = int.from_bytes(self._file.view(0, min(8, size)), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"its header does not fit into its {size} bytes")
        header = json.loads(bytes(self._file.view(8, 8 + length)), object_pairs_hook=_each_once)
        self.metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        at = 0
        for name, entry in ordered:
            dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
            start, end = entry["data_offsets"]
            if (
                dtype not in _BITS
                or any(type(number) is not int for number in (*shape, start, end))
                or min(shape, default=0) < 0
                or math.prod(size or 1 for size in shape) > _MOST_ELEMENTS
                or (start, end) != (at, at + _size_bytes(dtype, shape))
            ):
                raise ValueError(
                    f"the tensor {name[:100]!r} is {dtype} of shape {shape} from byte {start} to {end}"
                )
            at = end
            self._places[name] = _Place(name, dtype, shape, 8 + length + start, 8 + length + end)
        if 8 + length + at != size:
            raise ValueError(f"{size - 8 - length - at} bytes behind its last tensor belong to none")
        # Other programs keep texts of their own in the header: {"format": "pt"} is no tie, be there a tensor "pt" or not.
        self.ties = {
            name: kept
            for name, kept in self.metadata.items()
            if kept in self._places and name not in self._places and kept < name
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def form(self, name: str) -> tuple[str, tuple[int, ...]]:
        """The type and shape of a tensor."""
        place = self._places[name]
        return place.dtype, place.shape

    def is_same(self, name: str, other: StoredTensors) -> bool:
        """Whether a tensor of this name is the same in another file; equal blocks are not read."""
        mine, its = self._places[name], other._places[name]
        if (mine.dtype, mine.shape) != (its.dtype, its.shape):
            return False
        if self._file.parts(mine.start, mine.end) == other._file.parts(its.start, its.end):
            return True
        return all(
            self._file.view(mine.start + at, min(mine.start + at + _WINDOW_BYTES, mine.end))
            == other._file.view(its.start + at, min(its.start + at + _WINDOW_BYTES, its.end))
            for at in range(0, mine.end - mine.start, _WINDOW_BYTES)
        )

    def read(self, use: Callable[[str, int, memoryview], object], names: Iterable[str] | None = None) -> None:
        """Give each tensor's bytes to ``use``, verified and read-only, in windows; two threads hash, and call it.

        Args:
            use: Takes a tensor's name, where in it the window begins, and the window: memory of the store, to be copied.
            names: Which tensors; default: all.

        Raises:
            Corrupt: A block is not what its CID says, and nobody has the right bytes.
            NotFound: A block is missing and nobody has it.
        """

        def one(window: tuple[str, int, int, int]) -> None:
            name, at, start, end = window
            use(name, at, self._file.view(start, end))

        chosen = [self._places[name] for name in (self._places if names is None else names)]
        windows = [
            (place.name, start - place.start, start, min(start + _WINDOW_BYTES, place.end))
            for place in chosen
            for start in range(place.start, place.end, _WINDOW_BYTES)
        ]
        with ThreadPoolExecutor(_READERS, thread_name_prefix="holdfast-tensors") as pool:
            for _ in pool.map(one, windows):
                pass  # so that an error is raised


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # other readers would take the other one
        raise ValueError("its header says a name twice")
    return found


def _size_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * _BITS[dtype] // 8
