"""DAG-PB nodes and the UnixFS message inside them, as two small protobuf codecs.

Sources: https://ipld.io/specs/codecs/dag-pb/spec/ and https://specs.ipfs.tech/unixfs/. Both messages are fixed and
tiny, so no protobuf runtime is used. The decoder of the node accepts canonical bytes only.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import Cid, read_varint, write_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PbLink", "PbNode", "UnixFs", "UnixFsType", "decode_node", "encode_node", "link_cids"]


@dataclass(frozen=True, slots=True)
class PbLink:
    """One link of a node: to what, under which name, and how large everything below it is."""

    cid: Cid
    name: str | None = ""
    tsize: int | None = 0


@dataclass(frozen=True, slots=True)
class PbNode:
    """A DAG-PB node; ``data`` is None where the field is absent."""

    links: tuple[PbLink, ...] = ()
    data: bytes | None = None


def _field(number: int, payload: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + write_varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return bytes((number << 3,)) + write_varint(value)


def encode_node(node: PbNode) -> bytes:
    """The node's canonical bytes: links in the given order, before the data."""
    parts: list[bytes] = []
    for link in node.links:  # written out: a large directory has many of them
        raw = link.cid.raw
        body = b"\x0a" + write_varint(len(raw)) + raw
        if link.name is not None:
            name = link.name.encode()
            body += b"\x12" + write_varint(len(name)) + name
        if link.tsize is not None:
            body += b"\x18" + write_varint(link.tsize)
        parts += (b"\x12", write_varint(len(body)), body)
    if node.data is not None:
        parts.append(_field(1, node.data))
    return b"".join(parts)


def _fields(data: bytes, what: str) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers with their values: int for varints, bytes for length-delimited ones."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            number, at = read_varint(data, at)
            yield tag >> 3, number
        elif tag & 7 == 2:
            size, at = read_varint(data, at)
            if at + size > len(data):
                raise Corrupt(f"{what} is cut off")
            yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise Corrupt(f"{what} has a field of wire type {tag & 7}")


def decode_node(data: bytes) -> PbNode:
    """The node in ``data``.

    Raises:
        Corrupt: Not a canonical DAG-PB node.
    """
    links: list[PbLink] = []
    payload: bytes | None = None
    for number, value in _fields(data, "the DAG-PB node"):
        if payload is not None:
            raise Corrupt("the DAG-PB node has a field behind its data")
        if number == 2 and isinstance(value, bytes):
            links.append(_decode_link(value))
        elif number == 1 and isinstance(value, bytes):
            payload = value
        else:
            raise Corrupt(f"the DAG-PB node has an unknown field {number}")
    return PbNode(tuple(links), payload)


def link_cids(data: bytes) -> list[Cid]:
    """The CIDs of a node's links, in order: those of :func:`decode_node`, at a tenth of its time.

    Names and sizes of the links are passed over, and so are faults in them.

    Raises:
        Corrupt: Not a DAG-PB node.
    """
    found: list[Cid] = []
    at, end = 0, len(data)
    try:
        while at < end and data[at] == 0x12:
            size = data[at + 1]
            at += 2
            if size & 0x80:  # a length of two bytes; longer ones are read by the book
                size += (data[at] - 1) << 7
                at += 1
            if data[at - 1] & 0x80 or data[at] != 0x0A or data[at + 1] + 2 > size or at + size > end:
                return [link.cid for link in decode_node(data).links]
            found.append(Cid(data[at + 2 : at + 2 + data[at + 1]]))
            at += size
    except (IndexError, InvalidInput) as error:
        raise Corrupt(f"a DAG-PB link is broken: {error}") from error
    if at < end:
        decode_node(data[at:])
    return found


def _decode_link(data: bytes) -> PbLink:
    # Nearly all links of a file have this shape: a CID and an empty name of less than 128 bytes, and a size.
    at = data[1] + 2 if len(data) > 6 and data[0] == 0x0A and data[1] < 0x80 else len(data)
    if data[at : at + 3] == b"\x12\x00\x18":
        with suppress(InvalidInput):
            size, end = read_varint(data, at + 3)
            if end == len(data):
                return PbLink(Cid(data[2:at]), "", size)
    cid: Cid | None = None
    name: str | None = None
    tsize: int | None = None
    last = 0
    for number, value in _fields(data, "a DAG-PB link"):
        if number <= last:
            raise Corrupt("the fields of a DAG-PB link are out of order")
        last = number
        try:
            if number == 1 and isinstance(value, bytes):
                cid = Cid(value)
            elif number == 2 and isinstance(value, bytes):
                name = value.decode()
            elif number == 3 and isinstance(value, int):
                tsize = value
            else:
                raise Corrupt(f"a DAG-PB link has an unknown field {number}")
        except (InvalidInput, UnicodeDecodeError) as error:
            raise Corrupt(f"a DAG-PB link is broken: {error}") from error
    if cid is None:
        raise Corrupt("a DAG-PB link has no CID")
    return PbLink(cid, name, tsize)


class UnixFsType(IntEnum):
    """What a UnixFS node is."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class UnixFs:
    """The UnixFS message in the data of a DAG-PB node."""

    type: UnixFsType
    data: bytes | None = None
    file_size: int | None = None
    block_sizes: tuple[int, ...] = ()
    hash_type: int | None = None
    fanout: int | None = None

    def encode(self) -> bytes:
        """The message's bytes, as Kubo writes them."""
        out = _number(1, self.type)
        if self.data is not None:
            out += _field(2, self.data)
        if self.file_size is not None:
            out += _number(3, self.file_size)
        out += b"".join(_number(4, size) for size in self.block_sizes)
        if self.hash_type is not None:
            out += _number(5, self.hash_type)
        if self.fanout is not None:
            out += _number(6, self.fanout)
        return out

    @classmethod
    def decode(cls, data: bytes) -> UnixFs:
        """The message in ``data``; unknown fields (mode, mtime) are passed over.

        Raises:
            Corrupt: Not a UnixFS message.
        """
        kind: int | bytes | None = None
        payload: bytes | None = None
        numbers: dict[int, int] = {}
        sizes: list[int] = []
        for number, value in _fields(data, "the UnixFS message"):
            if number == 1:
                kind = value
            elif number == 2 and isinstance(value, bytes):
                payload = value
            elif number == 4 and isinstance(value, int):
                sizes.append(value)
            elif number in (3, 5, 6) and isinstance(value, int):
                numbers[number] = value
        try:
            known = UnixFsType(kind if isinstance(kind, int) else -1)
        except ValueError as error:
            raise Corrupt(f"the UnixFS message has no known type: {kind!r}") from error
        return cls(
            type=known,
            data=payload,
            file_size=numbers.get(3),
            block_sizes=tuple(sizes),
            hash_type=numbers.get(5),
            fanout=numbers.get(6),
        )
