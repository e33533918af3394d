"""Content identifiers (CIDs): the only names that holdfast trusts.

A CID is the hash of some bytes together with how to read them. Source: the CID specification
(https://github.com/multiformats/cid) and the multihash and multicodec tables.
"""

from __future__ import annotations

import functools
import hashlib
from typing import TypeAlias

import libipld

from holdfast.errors import Corrupt, InvalidInput, Unsupported

__all__ = [
    "CODECS",
    "DAG_CBOR",
    "DAG_JSON",
    "DAG_PB",
    "HASHES",
    "RAW",
    "Buffer",
    "Cid",
    "as_raw",
    "read_varint",
    "write_varint",
]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are read and never kept."""

RAW = 0x55
DAG_PB = 0x70
DAG_CBOR = 0x71
DAG_JSON = 0x0129
CODECS: dict[int, str] = {RAW: "raw", DAG_PB: "dag-pb", DAG_CBOR: "dag-cbor", DAG_JSON: "dag-json"}
"""Multicodec numbers of the codecs that holdfast stores, with their names."""

_decode, _encode, _new = libipld.decode_multibase, libipld.encode_multibase, object.__new__

SHA2_256 = 0x12
BLAKE3 = 0x1E
IDENTITY = 0x00
HASHES: dict[str, int] = {"sha2-256": SHA2_256, "blake3": BLAKE3}
"""The hash functions that holdfast computes, by name, with their multihash numbers; digests of both have 32 bytes."""

MAX_IDENTITY_BYTES = 128
MAX_TEXT_CHARS = 2048  # base 58 takes quadratic time: a long text must not reach it
_V0_PREFIX = b"\x12\x20"
_SHORT_VARINTS = [bytes((number,)) for number in range(0x80)]
_V1_PREFIXES = {
    bytes((1, codec, function, 32)): codec
    for codec in (RAW, DAG_PB, DAG_CBOR)
    for function in HASHES.values()
}


def write_varint(number: int) -> bytes:
    """``number`` as an unsigned LEB128 varint."""
    if 0 <= number <= 0x7F:
        return _SHORT_VARINTS[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: Buffer, at: int) -> tuple[int, int]:
    """The unsigned varint at offset ``at``, and the offset behind it.

    Raises:
        Corrupt: Cut off, longer than 9 bytes, or not minimal.
    """
    if at < len(data) and data[at] < 0x80:  # most are of one byte
        return data[at], at + 1
    number = shift = 0
    view = memoryview(data)
    for position in range(at, min(at + 9, len(view))):
        byte = view[position]
        number |= (byte & 0x7F) << shift
        if not byte & 0x80:
            if byte == 0 and shift:
                raise Corrupt(f"the varint at byte {at} is not minimal")
            return number, position + 1
        shift += 7
    raise Corrupt(f"the varint at byte {at} is cut off or too long")


@functools.total_ordering
class Cid:
    """One content identifier: immutable, hashable, ordered by its bytes.

    Make one with :meth:`parse` (text, bytes or another Cid) or :meth:`of` (hash some bytes).

    >>> Cid.of(b"")
    Cid('bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku')
    """

    __slots__ = ("raw",)

    raw: bytes
    """The binary form, as links carry it."""

    def __init__(self, raw: bytes) -> None:
        if type(raw) is not bytes or raw[:4] not in _V1_PREFIXES or len(raw) != 36:
            _check(raw, raw)
        _set_raw(self, raw)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Cid can't be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Cid can't be changed")

    @classmethod
    def parse(cls, value: Cid | str | Buffer) -> Cid:
        """The Cid that ``value`` stands for; ``Cid.parse(str(c)) == c``.

        Args:
            value: A Cid, its bytes, or its text in any multibase or as CIDv0, with or without
                ``ipfs://`` or ``/ipfs/`` in front.

        Raises:
            InvalidInput: It is none of these; the message says what is wrong.
        """
        if isinstance(value, Cid):
            return value
        if isinstance(value, str):
            raw = _from_usual_text(value)
            if raw is None:
                raw = _from_text(value)
                _check(raw, value)
            self = _new(cls)  # checked just now: __init__ would do it again
            _set_raw(self, raw)
            return self
        if isinstance(value, (bytes, bytearray, memoryview)):
            return cls(bytes(value))
        raise InvalidInput(f"a CID is text or bytes, not {type(value).__name__}: {_short(value)}")

    @classmethod
    def of(
        cls,
        data: Buffer,
        codec: int = RAW,
        *,
        version: int = 1,
        hash: str = "sha2-256",  # noqa: A002 -- the name that everybody knows it by
    ) -> Cid:
        """The CID of ``data``.

        Args:
            data: What is hashed; the GIL is dropped meanwhile.
            codec: Multicodec number of its format.
            version: 0 or 1.
            hash: A name in :data:`HASHES`.

        Raises:
            InvalidInput: The hash or the version is not known, or version 0 is asked for with another hash.
        """
        if hash == "sha2-256":
            digest = hashlib.sha256(data).digest()
        elif hash in HASHES:
            digest = _blake3(data)
        else:
            raise InvalidInput(f"unknown hash {hash!r}; known: {', '.join(HASHES)}")
        if version == 1:
            if codec > 0x7F or hash != "sha2-256":
                return cls(b"\x01" + write_varint(codec) + bytes((HASHES[hash], 32)) + digest)
            raw = bytes((1, codec)) + _V0_PREFIX + digest
        elif version == 0 and hash == "sha2-256":
            raw = _V0_PREFIX + digest
        else:
            raise InvalidInput(f"there is no CID of version {version} with {hash}: take version 1")
        self = _new(cls)  # well-formed by its making
        _set_raw(self, raw)
        return self

    @property
    def version(self) -> int:
        """0 or 1."""
        return 0 if self.raw[:2] == _V0_PREFIX and len(self.raw) == 34 else 1

    @property
    def codec(self) -> int:
        """Multicodec number of the block's format, such as :data:`DAG_PB`."""
        known = _V1_PREFIXES.get(self.raw[:4])
        if known is not None:
            return known
        return DAG_PB if self.version == 0 else read_varint(self.raw, 1)[0]

    @property
    def multihash(self) -> bytes:
        """Hash function, digest length and digest: what the block store is keyed by."""
        if self.raw[:4] in _V1_PREFIXES:
            return self.raw[2:]
        return self.raw if self.version == 0 else self.raw[read_varint(self.raw, 1)[1] :]

    @property
    def hash_name(self) -> str:
        """Name of the hash function, such as ``"sha2-256"``; its number in hexadecimal where holdfast has no name."""
        function = read_varint(self.multihash, 0)[0]
        return _HASH_NAMES.get(function, f"0x{function:x}")

    def matches(self, data: Buffer) -> bool:
        """Whether ``data`` is what this CID names.

        Raises:
            Unsupported: The hash function is not one that holdfast computes.
        """
        multihash = self.multihash
        if multihash[:2] == _V0_PREFIX:
            return hashlib.sha256(data).digest() == multihash[2:]
        function, at = read_varint(multihash, 0)
        _, at = read_varint(multihash, at)
        digest = multihash[at:]
        if function == BLAKE3:
            return _blake3(data) == digest
        if function == IDENTITY:
            return bytes(data) == digest
        raise Unsupported(
            f"{self} uses hash function 0x{function:x}; holdfast checks sha2-256 (0x12) and blake3 (0x1e)"
        )

    def check(self, data: Buffer, *, source: str) -> None:
        """Return if ``data`` is what this CID names.

        Raises:
            Corrupt: It is not; the message names ``source``.
        """
        if not self.matches(data):
            raise Corrupt(f"{source} gave {memoryview(data).nbytes} bytes for {self} that do not hash to it")

    def __str__(self) -> str:
        text: str = _encode("b" if self.raw[0] == 1 else "z", self.raw)
        return text if self.raw[0] == 1 else text[1:]

    def __repr__(self) -> str:
        return f"Cid('{self}')"

    def __hash__(self) -> int:
        return hash(self.raw)

    def __eq__(self, other: object) -> bool:
        return self.raw == other.raw if isinstance(other, Cid) else NotImplemented

    def __lt__(self, other: Cid) -> bool:
        return self.raw < other.raw if isinstance(other, Cid) else NotImplemented

    def __reduce__(self) -> tuple[type[Cid], tuple[bytes]]:
        return Cid, (self.raw,)


_HASH_NAMES = {IDENTITY: "identity"} | {number: name for name, number in HASHES.items()}
_set_raw = Cid.__dict__["raw"].__set__  # past __setattr__, at a third of object.__setattr__'s cost


def as_raw(multihash: bytes) -> Cid:
    """The CID of a block as nothing but bytes: what any block may be called whose codec is not known, or does not matter."""
    return Cid(bytes((1, RAW)) + multihash)


def _blake3(data: Buffer) -> bytes:
    import blake3  # not everybody uses it

    return blake3.blake3(data).digest()


def _from_usual_text(value: str) -> bytes | None:
    """The bytes of a CID in the text that nearly all have, without detours; None for any other text."""
    try:
        if len(value) == 59 and value[0] == "b":
            raw: bytes = _decode(value)[1]
            return raw if raw[:4] in _V1_PREFIXES and len(raw) == 36 else None
        if len(value) == 46 and value[:2] == "Qm":
            raw = _decode("z" + value)[1]
            return raw if raw[:2] == _V0_PREFIX and len(raw) == 34 else None
    except ValueError:
        return None  # what is wrong is found out where there is time for it
    return None


def _from_text(value: str) -> bytes:
    """The bytes that a CID's text stands for, whatever they are."""
    text = value
    if not value.isalnum():  # else there is nothing to take off
        text = value.strip()
        for prefix in ("ipfs://", "/ipfs/"):
            text = text.removeprefix(prefix)
        if not text.startswith(("m", "M")):  # in base 64 the slash is a digit
            text = text.rstrip("/")
        if not text:
            raise InvalidInput(f"{_short(value)} is not a CID: it is empty")
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidInput(f"{_short(value)} is not a CID: it is {len(text)} characters long")
    v0 = len(text) == 46 and text.startswith("Qm")
    try:
        raw: bytes = _decode("z" + text if v0 else text)[1]
    except Exception as error:
        raise InvalidInput(f"{_short(value)} is not a CID: {error}") from error
    if raw[:1] == b"\x12" and not v0:
        raise InvalidInput(f"{_short(value)} is not a CID: version 0 is written in base58 without a prefix")
    return raw


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else value if isinstance(value, str) else str(value)
    return repr(text if len(text) <= 100 else f"{text[:97]}...")


def _check(raw: bytes, given: object) -> None:
    """Raise InvalidInput unless ``raw`` is one whole, well-formed CID; the message shows what was ``given``."""
    if not isinstance(raw, bytes):
        raise InvalidInput(f"Cid() takes bytes, not {type(raw).__name__}; use Cid.parse({_short(given)})")
    fault = _fault(raw)
    if fault is not None:
        raise InvalidInput(f"{_short(given)} is not a CID: {fault}")


def _fault(raw: bytes) -> str | None:
    if raw[:2] == _V0_PREFIX:
        return None if len(raw) == 34 else f"version 0 has 34 bytes, not {len(raw)}"
    try:
        version, at = read_varint(raw, 0)
        if version != 1:
            return f"version {version} does not exist"
        _, at = read_varint(raw, at)
        function, at = read_varint(raw, at)
        size, at = read_varint(raw, at)
    except Corrupt as error:
        return str(error)
    if len(raw) - at != size:
        return f"the digest has {len(raw) - at} bytes, not {size}"
    if function == IDENTITY and size > MAX_IDENTITY_BYTES:
        return f"an identity digest has at most {MAX_IDENTITY_BYTES} bytes, not {size}"
    if function in (SHA2_256, BLAKE3) and size != 32:  # a shorter one would be easy to forge
        return f"a {_HASH_NAMES[function]} digest has 32 bytes, not {size}"
    return None
