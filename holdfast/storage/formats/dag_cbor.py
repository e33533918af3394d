"""DAG-CBOR: the one encoding of every holdfast record.

The encoder is canonical (equal values give equal bytes) and the decoder accepts canonical bytes only, so
``encode(decode(b)) == b`` for everything it accepts. Links are :class:`~holdfast.storage.Cid`. Source:
https://ipld.io/specs/codecs/dag-cbor/spec/.

We have our own because a record's CID must mean one thing: libipld 3 turns byte strings that look like CIDs into
links and reads links back as plain bytes, and dag-cbor 0.3 brings its own, slow CID type.
"""

from __future__ import annotations

import math
import struct
from typing import Any

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import Cid

__all__ = ["decode", "encode"]

MAX_DEPTH = 128
_LINK_TAG = 42
_FORMATS = {24: ">B", 25: ">H", 26: ">I", 27: ">Q"}


def encode(value: Any) -> bytes:
    """``value`` as canonical DAG-CBOR.

    Args:
        value: None, bool, int (64 bits), finite float, str, bytes, Cid, and lists, tuples and
            dicts (text keys) of these.

    Raises:
        InvalidInput: Something else is in it; the message says where.
    """
    out = bytearray()
    _encode(value, out, "", 0)
    return bytes(out)


def _head(major: int, number: int, out: bytearray) -> None:
    if number < 24:
        out.append(major << 5 | number)
        return
    for info, form in _FORMATS.items():
        if number < 1 << 8 * struct.calcsize(form):
            out.append(major << 5 | info)
            out += struct.pack(form, number)
            return
    raise InvalidInput(f"the integer {number} does not fit into 64 bits")


def _encode(  # noqa: C901, PLR0912 -- one branch for each type
    value: Any, out: bytearray, path: str, depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"a record is nested deeper than {MAX_DEPTH} at {path[:80]!r}")
    if value is None or isinstance(value, bool):
        out.append({None: 0xF6, True: 0xF5, False: 0xF4}[value])
    elif isinstance(value, int):
        _head(0 if value >= 0 else 1, value if value >= 0 else -1 - value, out)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidInput(f"a record can't hold {value} (at {path!r}): DAG-CBOR has finite floats only")
        out.append(0xFB)
        out += struct.pack(">d", value)
    elif isinstance(value, str):
        _text(_utf8(value, path), out)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        _head(2, memoryview(value).nbytes, out)
        out += memoryview(value).tobytes()
    elif isinstance(value, Cid):
        _head(6, _LINK_TAG, out)
        _head(2, len(value.raw) + 1, out)
        out.append(0)
        out += value.raw
    elif isinstance(value, (list, tuple)):
        _head(4, len(value), out)
        for index, item in enumerate(value):
            _encode(item, out, f"{path}/{index}", depth + 1)
    elif isinstance(value, dict):
        _head(5, len(value), out)
        for key in value:
            if not isinstance(key, str):
                raise InvalidInput(f"a key at {path!r} is {type(key).__name__}, not text: {key!r}")
        for data, key in sorted(
            ((_utf8(k, path), k) for k in value), key=lambda pair: (len(pair[0]), pair[0])
        ):
            _text(data, out)
            _encode(value[key], out, f"{path}/{key}", depth + 1)
    else:
        raise InvalidInput(f"a record can't hold a {type(value).__name__} (at {path!r}): {str(value)[:60]}")


def _utf8(text: str, path: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the text at {path!r} is not valid Unicode: {error}") from error


def _text(data: bytes, out: bytearray) -> None:
    _head(3, len(data), out)
    out += data


def decode(data: bytes | bytearray | memoryview) -> Any:
    """The value of canonical DAG-CBOR bytes.

    Raises:
        Corrupt: The bytes are not canonical DAG-CBOR.
    """
    reader = _Reader(bytes(data))
    value = reader.item(0)
    if reader.at != len(reader.data):
        raise Corrupt(f"{len(reader.data) - reader.at} bytes follow the DAG-CBOR value")
    return value


class _Reader:
    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise Corrupt("the DAG-CBOR value is cut off")
        self.at += size
        return piece

    def head(self) -> tuple[int, int, int]:
        """Major type, additional information, and the number that follows (not for floats)."""
        byte = self.take(1)[0]
        major, info = byte >> 5, byte & 31
        if info < 24 or major == 7:
            return major, info, info
        if info not in _FORMATS:
            raise Corrupt("DAG-CBOR has no indefinite lengths")
        form = _FORMATS[info]
        number: int = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        if number < (24 if info == 24 else 1 << 4 * struct.calcsize(form)):
            raise Corrupt(f"the number {number} is not written in its shortest form")
        return major, info, number

    def item(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise Corrupt(f"the DAG-CBOR value is nested deeper than {MAX_DEPTH}")
        major, info, number = self.head()
        if major == 0:
            return number
        if major == 1:
            return -1 - number
        if major == 2:
            return self.take(number)
        if major == 3:
            return self.text(number)
        if major == 4:
            return [self.item(depth + 1) for _ in range(self.count(number))]
        if major == 5:
            return self.mapping(self.count(number), depth)
        if major == 6:
            return self.link(number)
        return self.simple(info)

    def count(self, number: int) -> int:
        # Each item takes at least one byte: a huge count in a short block can't reserve memory.
        if number > len(self.data) - self.at:
            raise Corrupt("the DAG-CBOR value is cut off")
        return number

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            raise Corrupt(f"a text in the DAG-CBOR value is not UTF-8: {error}") from error

    def mapping(self, count: int, depth: int) -> dict[str, Any]:
        out: dict[str, Any] = {}
        last: tuple[int, bytes] | None = None
        for _ in range(count):
            start = self.at
            major, _, size = self.head()
            if major != 3:
                raise Corrupt("a key of a DAG-CBOR map is not text")
            key = self.text(size)
            order = (size, self.data[start : self.at][-size:] if size else b"")
            if last is not None and order <= last:
                raise Corrupt(f"the key {key!r} of a DAG-CBOR map is out of order or there twice")
            last = order
            out[key] = self.item(depth + 1)
        return out

    def link(self, tag: int) -> Cid:
        major, _, size = self.head()
        data = self.take(size) if major == 2 else b""
        if tag != _LINK_TAG or data[:1] != b"\x00":
            raise Corrupt(f"tag {tag} of the DAG-CBOR value is not a link")
        try:
            return Cid(data[1:])
        except InvalidInput as error:
            raise Corrupt(f"a link in the DAG-CBOR value is broken: {error}") from error

    def simple(self, info: int) -> bool | float | None:
        if info in (20, 21, 22):
            return {20: False, 21: True, 22: None}[info]
        if info == 27:
            number: float = struct.unpack(">d", self.take(8))[0]
            if math.isfinite(number):
                return number
        raise Corrupt("DAG-CBOR has no such simple value: only false, true, null and finite 64-bit floats")
