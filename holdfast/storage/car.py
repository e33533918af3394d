"""CARv1: many blocks in one stream. Source: https://ipld.io/specs/transport/car/carv1/."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.errors import Corrupt, InvalidInput, Unsupported
from holdfast.storage import dag_cbor
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import Buffer, Cid, read_varint, write_varint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence

__all__ = ["car_frames", "read_car"]

MAX_FRAME_BYTES = MAX_BLOCK_BYTES + 128


def car_frames(roots: Sequence[Cid], blocks: Iterable[tuple[Cid, Buffer]]) -> Iterator[bytes]:
    """Yield a CAR's pieces: the header, then one frame a block."""
    header = dag_cbor.encode({"roots": list(roots), "version": 1})
    yield write_varint(len(header)) + header
    for cid, data in blocks:
        yield b"".join((write_varint(len(cid.raw) + memoryview(data).nbytes), cid.raw, data))


async def read_car(read: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[tuple[Cid, bytes]]:
    """Yield the blocks of a CARv1 stream, each verified, in constant memory.

    Args:
        read: Gives exactly so many bytes, fewer only at the stream's end.

    Raises:
        Corrupt: The stream is cut off, not a CAR, or a block does not hash to its CID.
        Unsupported: It is a CAR of another version.
    """
    header = await _frame(read)
    try:
        value = dag_cbor.decode(header or b"")
    except Corrupt as error:
        raise Corrupt(f"the stream is not a CAR: {error}") from error
    version = value.get("version") if isinstance(value, dict) else None
    if not isinstance(version, int):
        raise Corrupt("the stream is not a CAR: its header states no version")
    if version != 1:
        raise Unsupported(f"the stream is a CAR of version {version}; holdfast reads version 1")
    while (frame := await _frame(read)) is not None:
        size = _cid_size(frame)
        try:
            cid = Cid(frame[:size])
        except InvalidInput as error:
            raise Corrupt(f"a CID in the CAR is broken: {error}") from error
        block = frame[size:]
        cid.check(block, source="the CAR")
        yield cid, block


def _cid_size(frame: bytes) -> int:
    if frame[:2] == b"\x12\x20":
        return 34
    at = 0
    for _ in range(3):
        _, at = read_varint(frame, at)
    digest, at = read_varint(frame, at)
    return at + digest


async def _frame(read: Callable[[int], Awaitable[bytes]]) -> bytes | None:
    prefix = b""
    while not prefix or prefix[-1] & 0x80:
        byte = await read(1)
        if not byte:
            if prefix:
                raise Corrupt("the CAR is cut off")
            return None
        prefix += byte
        if len(prefix) > 9:
            raise Corrupt("the CAR has a frame of impossible length")
    size, _ = read_varint(prefix, 0)
    if size > MAX_FRAME_BYTES:
        raise Corrupt(f"the CAR has a frame of {size} bytes; at most {MAX_FRAME_BYTES} are read")
    frame = await read(size)
    if len(frame) != size:
        raise Corrupt("the CAR is cut off")
    return frame
