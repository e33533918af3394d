"""What a node answers to programs: the Trustless Gateway, blocks and CARs that the receiver verifies.

Source: https://specs.ipfs.tech/http-gateways/trustless-gateway/. Whoever asks in this protocol hashes what it gets, so nothing is
hashed here on the way out, and the kernel sends larger blocks straight from the file in which they lie
(:class:`~holdfast.storage.block_store.SupportsExtent`). An answer that can't be finished is broken off: it never ends as if it were whole.

What is bounded: blocks (2 MiB) and two batches of a few MiB for each CAR stream, the number of those streams, the CIDs that they remember
and have still to visit, the length of a path, and how long a client may take for each piece.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from aiohttp import HttpVersion11, web

from holdfast.errors import HoldfastError, InvalidInput, NotFound, Unavailable
from holdfast.storage.block_store import SupportsExtent, inline_block
from holdfast.storage.cid import DAG_PB, Buffer, Cid, write_varint
from holdfast.storage.formats.car import car_frames
from holdfast.storage.formats.dag import RECORD_CODECS, links_of
from holdfast.storage.formats.dag_pb import UnixFsType
from holdfast.storage.formats.unixfs import unixfs_of
from holdfast.storage.gateway.dag_walk import (
    LEAF_CODECS,
    Resolved,
    Walk,
    resolve,
    walk,
    walk_entity,
    walk_range,
)
from holdfast.storage.gateway.gateway_request import (
    FORMATS,
    CarOptions,
    ContentPath,
    Format,
    byte_ranges,
    cache_control,
    content_disposition,
    knows,
    not_modified,
    only_if_cached,
    wanted_format,
)
from holdfast.telemetry import counter, get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from holdfast.storage.block_store import BlockStore

__all__ = ["TrustlessGateway", "add_block_routes"]

log = get_logger(__name__)

MAX_CAR_STREAMS = 16
"""At a time; who comes later is told to come again."""
MAX_SEEN_CIDS = 1 << 20
"""Remembered by all CAR streams without duplicates together: about 150 MB; at 1 MiB a block, 1 TiB under way."""
SEND_TIMEOUT_S = 120.0
"""For a client to take one piece, of at most 2 MiB and a little."""
SENDFILE_MIN_BYTES = 64 << 10
"""A smaller block is quicker read and sent together with its headers."""
BATCH_BYTES = 1 << 20
BATCH_PIECES = 64
THREADS = 8

_T = TypeVar("_T")


# ------------------------------------------------------------------------------------------------- sending


def _is_cached(handle: int, offset: int, length: int) -> bool:
    """Whether these bytes seem to be in memory: a kernel that sends them would otherwise wait for the disk, and the loop for it."""
    probe = [bytearray(1)]
    try:
        for at in (offset, offset + length // 2, offset + length - 1):
            os.preadv(handle, probe, at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:  # a file system that can't tell
        os.posix_fadvise(handle, offset, length, os.POSIX_FADV_WILLNEED)
    return True


def _send_at_once(transport: asyncio.Transport, handle: int, offset: int, length: int) -> int:
    """Have the kernel take what fits into the socket's buffer: usually all of a block, and without what the loop does to wait for it."""
    if transport.get_write_buffer_size() or transport.get_extra_info("sslcontext") is not None:
        return 0
    try:
        return os.sendfile(transport.get_extra_info("socket").fileno(), handle, offset, length)
    except OSError:  # no room; what else it may be, the loop finds out
        return 0


def _read_ahead(handle: int, offset: int, length: int) -> None:
    for at in range(offset, offset + length, 256 << 10):
        os.pread(handle, min(256 << 10, offset + length - at), at)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block to be sent: its bytes, or an open file that has them; ``loop.sendfile`` takes it as a file."""

    size: int
    data: bytes | None
    handle: int = -1
    offset: int = 0

    def fileno(self) -> int:
        return self.handle

    def close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A frame of a CAR whose block the kernel sends."""

    prefix: bytes
    cid: Cid
    size: int


async def finish(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Send the whole response, to a client that takes it in time."""
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await response.prepare(request)
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        break_off(request, "the client does not read")
    return response


def break_off(request: web.Request, why: object) -> None:
    """End an answer that has begun so that the client can't take it for whole."""
    transport = request.transport
    log.info("%s %s is broken off: %s", request.method, request.rel_url.raw_path, why)
    counter("holdfast_gateway_broken_off_total", "Answers of the gateway that could not be finished.").inc()
    if transport is None:
        return
    if (
        request.version < HttpVersion11
    ):  # there the end of the connection is the end of the answer: reset it instead
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _served(size: int) -> None:
    counter("holdfast_served_bytes_total", "Bytes of blocks sent to other nodes.").inc(size)


def busy() -> web.Response:
    """The answer to who comes while too many are served."""
    error = Unavailable("too many streams are under way here; ask again in a moment")
    return web.json_response(error.to_json(), status=503, headers={"Retry-After": "2"})


class TrustlessGateway:
    """The answers to requests for blocks and CARs.

    Args:
        blocks: What they give is not hashed here. Where they tell in which files their larger blocks lie, these are not even read.
    """

    def __init__(self, blocks: BlockStore) -> None:
        self.blocks = blocks
        self._extents = blocks if isinstance(blocks, SupportsExtent) else None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="holdfast-gateway")
        self._streams = 0
        self._seen: set[_Seen] = set()

    async def close(self, _: object = None) -> None:
        """End the threads; what they do now is finished first."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)

    def statistics(self) -> dict[str, int]:
        """``streams`` of CARs under way, and how many CIDs they remember as ``seen``."""
        return {"streams": self._streams, "seen": sum(map(len, self._seen))}

    def get(self, cid: Cid) -> Buffer:
        """A block, also one that is part of its own CID.

        Raises:
            NotFound: It is not here.
        """
        inline = inline_block(cid)
        return self.blocks.get(cid) if inline is None else inline

    async def in_thread(self, work: Callable[..., _T], *arguments: Any) -> _T:
        """What ``work`` returns, without holding up the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def answer(
        self, request: web.Request, path: ContentPath, wanted: Format | None
    ) -> web.StreamResponse:
        """The block or the CAR that a request asks for.

        Raises:
            NotFound: It is not here.
            InvalidInput: The request names no format, or one that is not of this protocol, or one of its parameters is wrong.
        """
        if wanted is None:
            raise InvalidInput(
                f"{path.text[:200]}: say what you want: ?format=raw for one block, ?format=car for a DAG (or the same by Accept)"
            )
        if wanted.name == "raw":
            return await self._raw(request, path, wanted)
        if wanted.name == "car":
            return await self._car(request, path, wanted)
        if wanted.name == "ipns-record":
            raise InvalidInput("format=ipns-record is for /ipns/ paths; ask for format=raw or format=car")
        raise web.HTTPNotAcceptable(
            reason=f"format={wanted.name} is not served for this; ask for format=raw or format=car"
        )

    # ------------------------------------------------------------------------------------------------ blocks

    async def _raw(self, request: web.Request, path: ContentPath, wanted: Format) -> web.StreamResponse:
        if path.names:
            raise InvalidInput(
                f"{path.text[:200]}: format=raw takes a CID alone; ask for format=car to follow a path"
            )
        text = str(path.cid)
        headers = self._headers(request, path, wanted, f'"{text}.raw"', f"{text}.bin")
        headers |= {"X-Ipfs-Roots": text, "Accept-Ranges": "bytes"}
        block = await self._opened(path.cid) or await self._read(request, path.cid)
        try:
            if knows(request, headers["Etag"]):
                return not_modified(headers)
            start, end, status = 0, block.size, 200
            if (
                "Range" in request.headers
                and request.headers.get("If-Range", headers["Etag"]) == headers["Etag"]
            ):
                ranges = byte_ranges(request.headers["Range"], block.size)
                if ranges == []:
                    return web.Response(status=416, headers={"Content-Range": f"bytes */{block.size}"})
                if ranges is not None and len(ranges) == 1:  # several: the whole block is as quick
                    (start, end), status = ranges[0], 206
                    headers["Content-Range"] = f"bytes {start}-{end - 1}/{block.size}"
            if request.method == "HEAD":
                headers["Content-Length"] = str(end - start)
                return web.Response(status=status, headers=headers)
            _served(end - start)
            if block.data is None and end - start >= SENDFILE_MIN_BYTES:
                response = web.StreamResponse(status=status, headers=headers)
                return await self._send_by_kernel(request, block, response, (start, end))
            body = block.data[start:end] if block.data is not None else await self._pread(block, start, end)
            return await finish(request, web.Response(status=status, headers=headers, body=body))
        finally:
            block.close()

    async def _send_by_kernel(
        self, request: web.Request, block: _Block, response: web.StreamResponse, bounds: tuple[int, int]
    ) -> web.StreamResponse:
        start, end = bounds
        response.content_length = end - start
        try:
            await response.prepare(request)
            await self._sendfile(request, block, start, end)
            await response.write_eof()
        except OSError as error:  # time-outs and lost connections are among these
            break_off(request, error)
        return response

    async def _opened(self, cid: Cid) -> _Block | None:
        """A block that lies in a file; None for another one, or if it is not here."""
        for _ in range(
            3
        ):  # the file may be removed between the look and the opening; the block then lies in another one
            extent = None if self._extents is None else self._extents.extent(cid)
            if extent is None:
                return None
            try:
                return _Block(
                    extent.length, None, os.open(extent.path, os.O_RDONLY | os.O_CLOEXEC), extent.offset
                )
            except FileNotFoundError:
                continue
        return None

    async def _read(self, request: web.Request, cid: Cid) -> _Block:
        """A block's bytes, copied: a map of the disk may not be read in the loop."""
        try:
            if (
                only_if_cached(request)
                and inline_block(cid) is None
                and not await self.in_thread(self.blocks.has, cid)
            ):
                raise web.HTTPPreconditionFailed(reason=f"{cid} is not here")
            data = await self.in_thread(lambda: bytes(self.get(cid)))
        except NotFound as error:
            if only_if_cached(request):
                raise web.HTTPPreconditionFailed(reason=f"{cid} is not here") from error
            raise
        return _Block(len(data), data)

    async def _pread(self, block: _Block, start: int, end: int) -> bytes:
        data = bytearray(end - start)
        try:
            if os.preadv(block.handle, [data], block.offset + start, os.RWF_NOWAIT) == end - start:
                return bytes(data)
        except OSError:
            pass  # it is not in memory, or the file system can't tell
        return await self.in_thread(os.pread, block.handle, end - start, block.offset + start)

    async def _sendfile(self, request: web.Request, block: _Block, start: int, end: int) -> None:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        at = block.offset + start
        if not _is_cached(block.handle, at, end - start):
            await self.in_thread(_read_ahead, block.handle, at, end - start)
        at += _send_at_once(transport, block.handle, at, end - start)
        left = block.offset + end - at
        if left:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await asyncio.get_running_loop().sendfile(transport, block, at, left)  # type: ignore[arg-type]

    # -------------------------------------------------------------------------------------------------- CARs

    async def _car(self, request: web.Request, path: ContentPath, wanted: Format) -> web.StreamResponse:
        options = CarOptions.of(request.query, wanted.parameters)
        shown = f"{path.names}{options}"
        etag = f'W/"{path.cid}.car.{sha256(shown.encode(errors="surrogateescape")).hexdigest()[:16]}"'
        headers = self._headers(request, path, wanted, etag, f"{path.cid}.car")
        headers["Content-Type"] = (
            f"{FORMATS['car']}; version=1; order=dfs; dups={'y' if options.dups else 'n'}"
        )
        headers["Accept-Ranges"] = "none"
        if self._streams >= MAX_CAR_STREAMS:
            return busy()
        self._streams += 1
        seen = _Seen(self._seen) if not options.dups else None
        try:
            if only_if_cached(request):
                (await self._read(request, path.cid)).close()
            found, blocks = await self.in_thread(self._plan, path, options, seen)
            headers["X-Ipfs-Roots"] = ",".join(map(str, found.roots))
            if knows(request, etag):
                return not_modified(headers)
            response = web.StreamResponse(headers=headers)
            if request.method == "HEAD":
                return await finish(request, response)
            try:
                await self._stream_car(request, response, path.cid, blocks)
            except (HoldfastError, OSError) as error:
                break_off(request, error)
            return response
        finally:
            self._streams -= 1
            if seen is not None:
                seen.forget()

    def _plan(self, path: ContentPath, options: CarOptions, seen: _Seen | None) -> tuple[Resolved, Walk]:
        """Where the path leads, and the blocks to send; the block at its end is here."""
        found = resolve(self.get, path.cid, path.names)
        end = found.cid
        fresh = (lambda _: True) if seen is None else seen.first
        size: int | None
        if end.codec in LEAF_CODECS:
            size = self._size(end)
        elif options.scope == "all" and end.codec != DAG_PB and end.codec not in RECORD_CODECS:
            raise InvalidInput(
                f"{end} has the codec 0x{end.codec:x}, whose links are not known: ask for dag-scope=block"
            )
        else:
            data = self.get(end)
            size = self._file_size(end, data)
        links = {"block": lambda *_: [], "entity": walk_entity, "all": links_of}[options.scope]
        if options.first is None or size is None or (size and options.first == 0 and options.last is None):
            below = walk(self.get, end, links, fresh)
        else:
            start, behind = _resolved_range(options, size, end)
            if start < behind:
                below = walk_range(self.get, end, start, behind, fresh)
            else:
                below = walk(self.get, end, lambda *_: [], fresh)
        return found, self._path_then(found.proof, below, fresh)

    def _path_then(self, proof: tuple[Cid, ...], below: Walk, fresh: Callable[[Cid], bool]) -> Walk:
        for cid in proof:
            if fresh(cid):
                yield cid, self.get(cid)
        yield from below

    def _size(self, cid: Cid) -> int:
        """The size of a block, which must be here; if possible without reading it."""
        extent = None if self._extents is None else self._extents.extent(cid)
        return extent.length if extent is not None else memoryview(self.get(cid)).nbytes

    def _file_size(self, cid: Cid, data: Buffer) -> int | None:
        """The size of a file, by its root; None for what is no file."""
        if cid.codec != DAG_PB or (message := unixfs_of(cid, lambda _: data)[1]).type not in (
            UnixFsType.FILE,
            UnixFsType.RAW,
        ):
            return None
        return message.file_size if message.file_size is not None else len(message.data or b"")

    async def _stream_car(
        self, request: web.Request, response: web.StreamResponse, root: Cid, blocks: Walk
    ) -> None:
        """Send the blocks; the next batch is read while one is on its way."""
        header = next(car_frames([root], ()))
        reading = asyncio.ensure_future(self.in_thread(self._batch, blocks))
        try:
            await response.prepare(request)
            await response.write(header)
            while True:
                pieces, error, more = await reading
                if more:
                    reading = asyncio.ensure_future(self.in_thread(self._batch, blocks))
                for piece in pieces:
                    if isinstance(piece, _Leaf):
                        await self._send_leaf(request, response, piece)
                    else:
                        async with asyncio.timeout(SEND_TIMEOUT_S):
                            await response.write(piece)
                if error is not None:
                    raise error
                if not more:
                    break
            await response.write_eof()
        finally:
            await asyncio.wait([reading])  # it uses the generator; what it opens and reads is bounded

    def _batch(self, blocks: Walk) -> tuple[list[bytes | _Leaf], Exception | None, bool]:
        """The next pieces of a CAR; what went wrong behind them; whether there may be more."""
        pieces: list[bytes | _Leaf] = []
        frames: list[Buffer] = []
        read = sent = 0
        error: Exception | None = None
        more = False
        try:
            for cid, data in blocks:
                if inline_block(cid) is not None:
                    continue  # it is part of the block that links to it, and never sent
                extent = self._extents.extent(cid) if data is None and self._extents is not None else None
                if extent is not None and extent.length >= SENDFILE_MIN_BYTES:
                    pieces += [b"".join(frames)] if frames else []
                    frames = []
                    pieces.append(
                        _Leaf(write_varint(len(cid.raw) + extent.length) + cid.raw, cid, extent.length)
                    )
                    sent += extent.length
                else:
                    block = self.blocks.get(cid) if data is None else data
                    length = memoryview(block).nbytes
                    frames += [write_varint(len(cid.raw) + length), cid.raw, block]
                    read += length
                if read >= BATCH_BYTES or len(pieces) >= BATCH_PIECES:
                    more = True
                    break
        except Exception as reason:  # noqa: BLE001 -- what was read before it is sent first, then it is raised again
            error = reason
        pieces += [b"".join(frames)] if frames else []
        _served(read + sent)
        return pieces, error, more

    async def _send_leaf(self, request: web.Request, response: web.StreamResponse, leaf: _Leaf) -> None:
        """One frame of a CAR, its block by the kernel, as one chunk of the HTTP answer."""
        block = await self._opened(leaf.cid)
        if block is None:  # it has been moved to where no extent leads
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await response.write(
                    leaf.prefix + await self.in_thread(lambda: bytes(self.blocks.get(leaf.cid)))
                )
            return
        try:
            transport = request.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError("the client is gone")
            chunked = request.version >= HttpVersion11
            transport.write(
                b"%x\r\n%b" % (len(leaf.prefix) + leaf.size, leaf.prefix) if chunked else leaf.prefix
            )
            await self._sendfile(request, block, 0, leaf.size)
            if chunked:
                transport.write(b"\r\n")
        finally:
            block.close()

    def _headers(
        self, request: web.Request, path: ContentPath, wanted: Format, etag: str, filename: str
    ) -> dict[str, str]:
        headers = {
            "Content-Type": FORMATS[wanted.name],
            "Content-Disposition": content_disposition(
                "attachment", request.query.get("filename") or filename
            ),
            "Cache-Control": cache_control(request),
            "Etag": etag,
            "Vary": "Accept",
            "X-Content-Type-Options": "nosniff",
            "X-Ipfs-Path": path.text,
        }
        if wanted.negotiated:
            headers["Content-Location"] = str(request.rel_url.update_query(format=wanted.name))
        return headers


class _Seen:
    """The CIDs that one stream has sent, within what all streams of ``others`` may remember together."""

    def __init__(self, others: set[_Seen]) -> None:
        self._others = others
        self._cids: set[bytes] = set()
        others.add(self)

    def __len__(self) -> int:
        return len(self._cids)

    def first(self, cid: Cid) -> bool:
        """Whether it is the first time that the stream comes to ``cid``."""
        if cid.raw in self._cids:
            return False
        if sum(map(len, tuple(self._others))) >= MAX_SEEN_CIDS:
            raise Unavailable(
                "the CAR streams under way have too many blocks to leave out duplicates; ask for dups=y, or parts"
            )
        self._cids.add(cid.raw)
        return True

    def forget(self) -> None:
        """Give the room back."""
        self._others.discard(self)


def _resolved_range(options: CarOptions, size: int, cid: Cid) -> tuple[int, int]:
    """The bytes from and behind that ``entity-bytes`` means in a file of ``size`` bytes.

    Raises:
        InvalidInput: All of them lie outside of the file.
    """
    first = options.first or 0
    start = max(0, size + first) if first < 0 else first
    behind = size if options.last is None else (size + options.last if options.last < 0 else options.last) + 1
    if size and (start >= size or behind <= 0):
        raise InvalidInput(f"entity-bytes is outside of {cid}, which has {size} bytes")
    return start, min(behind, size)


def add_block_routes(app: web.Application, blocks: BlockStore) -> TrustlessGateway:
    """Serve ``blocks`` from ``app`` as a Trustless Gateway: GET and HEAD on ``/ipfs/{cid}[/path]``.

    They leave unhashed, as far as ``blocks`` does not verify what it reads; what the kernel sends is not read.
    """
    gateway = TrustlessGateway(blocks)

    async def answer(request: web.Request) -> web.StreamResponse:
        return await gateway.answer(request, ContentPath.of(request), wanted_format(request))

    app.router.add_get(r"/ipfs/{path:[\s\S]+}", answer, allow_head=True)
    app.on_cleanup.append(gateway.close)
    return gateway
