"""CAR: many blocks in one stream; version 1 is written, 1 and 2 are read.

Sources: https://ipld.io/specs/transport/car/carv1/ and https://ipld.io/specs/transport/car/carv2/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from holdfast.errors import Corrupt, InvalidInput, Unsupported
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import Buffer, Cid, read_varint, write_varint
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.chunkers import read_fully

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence

__all__ = ["CarReader", "car_blocks", "car_frames", "read_car"]

MAX_CID_BYTES = 256
MAX_FRAME_BYTES = MAX_BLOCK_BYTES + MAX_CID_BYTES
MAX_HEADER_BYTES = 1 << 20
"""Room for some 25 000 roots."""
_SKIP_BYTES = 1 << 20  # padding is read in pieces of this size
_V2_HEADER_BYTES = 40

Block: TypeAlias = tuple[Cid, bytes]


def car_frames(roots: Sequence[Cid], blocks: Iterable[tuple[Cid, Buffer]]) -> Iterator[bytes]:
    """Yield a CARv1's pieces: the header, then one frame a block."""
    header = dag_cbor.encode({"roots": list(roots), "version": 1})
    yield write_varint(len(header)) + header
    for cid, data in blocks:
        yield b"".join((write_varint(len(cid.raw) + memoryview(data).nbytes), cid.raw, data))


class CarReader:
    """The blocks of a CAR in a binary stream, each verified, in constant memory. Iterate over it once.

    Args:
        stream: Read from where it stands; it need not be able to seek.

    Raises:
        Corrupt: The stream is not a CAR, is cut off, or a block does not hash to its CID.
        Unsupported: It is a CAR of another version, or a block's hash function is not one that holdfast computes.
    """

    version: int
    """1 or 2."""
    roots: tuple[Cid, ...]
    """As the header states them: nothing says that they are in the CAR."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._parser = _Parser()
        self._steps = self._parser.steps()
        self._pending = self._next()
        self.version = self._parser.version
        self.roots = self._parser.roots

    def __iter__(self) -> Iterator[Block]:
        while self._pending is not None:
            block = self._pending
            yield block
            self._pending = self._next()

    def _next(self) -> Block | None:
        """The next block; reads the header first."""
        try:
            step = next(self._steps)
            while isinstance(step, int):
                step = self._steps.send(read_fully(self._stream, step))
        except StopIteration:
            return None
        return step


def car_blocks(stream: BinaryIO) -> CarReader:
    """The CAR in a binary stream: its ``version``, its ``roots``, and, when iterated over, its verified blocks.

    Raises:
        Corrupt: See :class:`CarReader`; so do the others, also while iterating.
    """
    return CarReader(stream)


async def read_car(read: Callable[[int], Awaitable[bytes]]) -> AsyncIterator[Block]:
    """Yield the blocks of a CAR stream, each verified, in constant memory.

    Args:
        read: Gives exactly so many bytes, fewer only at the stream's end.

    Raises:
        Corrupt: The stream is cut off, not a CAR, or a block does not hash to its CID.
        Unsupported: It is a CAR of another version, or a block's hash function is not one that holdfast computes.
    """
    steps = _Parser().steps()
    try:
        step = next(steps)
        while True:
            if isinstance(step, int):
                step = steps.send(await read(step))
            else:
                yield step
                step = next(steps)
    except StopIteration:
        return


class _Parser:
    """What both readers do with the bytes: asks for so many, or gives a block."""

    def __init__(self) -> None:
        self.version = 0
        self.roots: tuple[Cid, ...] = ()
        self._at = 0
        self._end: int | None = None  # of the blocks; where the stream ends in version 1

    def steps(self) -> Generator[int | Block, bytes, None]:
        """Yields a number to be sent so many bytes (fewer only at the stream's end), or a block to be passed on."""
        self.version, self.roots = yield from self._header()
        if self.version == 2:
            yield from self._enter_payload()
            _, self.roots = yield from self._header()
        while True:
            start = self._at
            frame = yield from self._frame(MAX_FRAME_BYTES)
            if frame is None:
                return
            yield self._block(frame, start)

    def _take(self, size: int) -> Generator[int, bytes, bytes]:
        if self._end is not None and self._at + size > self._end:
            raise Corrupt(f"the CAR has a frame at byte {self._at} that reaches over the end of its data")
        data = (yield size) if size else b""
        if len(data) != size:
            raise Corrupt(f"the CAR is cut off at byte {self._at + len(data)}")
        self._at += size
        return data

    def _frame(self, limit: int) -> Generator[int, bytes, bytes | None]:
        """The next frame without its length; None at the end."""
        start = self._at
        if start == self._end:
            return None
        prefix = yield 1
        if not prefix and self._end is None:
            return None
        if len(prefix) != 1:
            raise Corrupt(f"the CAR is cut off at byte {start}")
        self._at += 1
        while prefix[-1] & 0x80:
            if len(prefix) == 9:
                raise Corrupt(f"the CAR has a frame of impossible length at byte {start}")
            prefix += yield from self._take(1)
        try:
            size, _ = read_varint(prefix, 0)
        except Corrupt as error:
            raise Corrupt(f"the CAR has a frame of impossible length at byte {start}: {error}") from error
        if size > limit:
            raise Corrupt(f"the CAR has a frame of {size} bytes at byte {start}; at most {limit} are read")
        return (yield from self._take(size))

    def _header(self) -> Generator[int, bytes, tuple[int, tuple[Cid, ...]]]:
        start = self._at
        try:
            value = dag_cbor.decode((yield from self._frame(MAX_HEADER_BYTES)) or b"")
        except Corrupt as error:
            raise Corrupt(
                f"the stream is not a CAR: its header at byte {start} is broken: {error}"
            ) from error
        version = value.get("version") if isinstance(value, dict) else None
        if type(version) is not int:
            raise Corrupt(f"the stream is not a CAR: its header at byte {start} states no version")
        if version == 2 and not start:
            return 2, ()
        if version != 1:
            raise Unsupported(
                f"the CAR header at byte {start} states version {version}; holdfast reads versions 1 and 2"
                + (", and inside 2 there is 1" if start else "")
            )
        roots = value.get("roots")
        if not isinstance(roots, list) or not all(isinstance(root, Cid) for root in roots):
            raise Corrupt(f"the CAR's header at byte {start} has roots that are not CIDs")
        return 1, tuple(roots)

    def _enter_payload(self) -> Generator[int, bytes, None]:
        """Go to the CARv1 inside a CARv2; the index behind it is not needed."""
        start = self._at
        header = yield from self._take(_V2_HEADER_BYTES)
        # Sixteen bytes of characteristics say what an index holds.
        offset, size, index = (int.from_bytes(header[at : at + 8], "little") for at in (16, 24, 32))
        if offset < self._at or not size or offset + size >= 1 << 63 or (index and index < offset + size):
            raise Corrupt(
                f"the CARv2 header at byte {start} has impossible offsets: data at {offset}, {size} bytes, index at {index}"
            )
        while self._at < offset:
            yield from self._take(min(offset - self._at, _SKIP_BYTES))
        self._end = offset + size

    def _block(self, frame: bytes, start: int) -> Block:
        try:
            size = _cid_size(frame)
            cid = Cid(frame[:size])
        except (Corrupt, InvalidInput) as error:
            raise Corrupt(f"the CAR has a broken CID in its frame at byte {start}: {error}") from error
        block = frame[size:]
        if len(block) > MAX_BLOCK_BYTES:
            raise Corrupt(f"the CAR has a block of {len(block)} bytes at byte {start}: {cid}")
        cid.check(block, source=f"the CAR (frame at byte {start})")
        return cid, block


def _cid_size(frame: bytes) -> int:
    if frame[:2] == b"\x12\x20":
        return 34
    if frame[:1] == b"\x01" and frame[2:4] == b"\x12\x20" and frame[1] < 0x80:
        return 36
    at = 0
    for _ in range(3):
        _, at = read_varint(frame, at)
    digest, at = read_varint(frame, at)
    return at + digest
