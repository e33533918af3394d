"""One block over HTTP/1.1: a connection that is kept, a deadline that holds, and no more memory than a block.

Sockets instead of an HTTP library, because three things have to hold together: the body goes from the kernel straight into
the buffer that is hashed and stored, the deadline covers the whole answer and not each wait for a byte, and another thread can
break off a request at any moment. Redirects are not followed, and nothing is unpacked: a block comes as it is.
"""

from __future__ import annotations

import functools
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from holdfast.errors import Corrupt, InvalidInput, NotFound, Unavailable
from holdfast.storage.block_store import MAX_BLOCK_BYTES

if TYPE_CHECKING:
    from holdfast.storage.cid import Buffer, Cid

__all__ = ["BlockConnection", "BufferPool", "Provider"]

_SCRATCH_BYTES = 64 << 10
_MAX_HEAD_BYTES = 16 << 10
_CONNECT_TIMEOUT_S = 5.0
_POOLED_FROM_BYTES = 128 << 10
"""Smaller blocks are copied out: they would keep far more memory alive than they have bytes."""
_STEP_BYTES = 256 << 10
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([0-9]{3})(?: |$)")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")
_SENDABLE = re.compile(r"[!-~]*")
_NOT_HERE = (404, 410, 412)


@dataclass(frozen=True, slots=True)
class Provider:
    """A gateway that may have blocks.

    ``token`` is sent to it, so give one only to nodes of the own cluster.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    announced: bool = False
    """It said that it has what is asked for; others are asked after it."""
    partial: bool = False
    """It is still fetching this itself: what it lacks now it may have soon."""


class BufferPool:
    """Buffers that are used again: fresh memory from the kernel costs nearly as much as hashing what goes in."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes = 0
        self._free: list[bytearray] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> bytearray:
        """A buffer of at least ``size`` bytes, and not of many more."""
        wanted = -(-size // _STEP_BYTES) * _STEP_BYTES
        with self._lock:
            for at in range(len(self._free) - 1, -1, -1):
                if len(self._free[at]) == wanted:
                    self._held_bytes -= wanted
                    return self._free.pop(at)
        return bytearray(wanted)

    def give(self, block: Buffer) -> None:
        """Take back the buffer of a block, which nobody reads any more."""
        buffer = block.obj if isinstance(block, memoryview) else None
        if isinstance(buffer, bytearray):
            with self._lock:
                if self._held_bytes + len(buffer) <= self._max_bytes:
                    self._held_bytes += len(buffer)
                    self._free.append(buffer)

    def clear(self) -> None:
        """Let all of them go."""
        with self._lock:
            self._free.clear()
            self._held_bytes = 0


class BlockConnection:
    """One connection to one provider, for one thread at a time; only :meth:`abort` may come from another one.

    Raises:
        InvalidInput: The provider's URL or token can't be used.
    """

    def __init__(self, provider: Provider) -> None:
        try:
            parts = urlsplit(provider.url if "//" in provider.url else f"http://{provider.url}")
            port = parts.port
        except ValueError as error:
            raise InvalidInput(f"{provider.url!r} is not the address of a gateway: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise InvalidInput(f"{provider.url!r} is not the address of a gateway: http(s)://<host>:<port>")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        token = provider.token or ""
        if not all(_SENDABLE.fullmatch(text) for text in (host, parts.path, token)):
            raise InvalidInput(f"the address {provider.url!r}, or the token for it, can't be sent")
        lines = [
            f"Host: {host}" + (f":{port}" if port else ""),
            "Accept: application/vnd.ipld.raw",
            "Accept-Encoding: identity",
            "User-Agent: holdfast",
        ]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        self._fields = "\r\n".join(lines)
        self._path = parts.path.rstrip("/")
        self._url = provider.url
        self._tls = parts.scheme == "https"
        self._address = (parts.hostname, port or (443 if self._tls else 80))
        self._socket: socket.socket | None = None
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._filled = self._read = 0  # what of the scratch buffer holds bytes, and what of that was used
        self._deadline = 0.0
        self._aborted = False
        self._answered = False

    def get(self, cid: Cid, *, timeout_s: float, buffers: BufferPool) -> Buffer:
        """The block, verified; large ones lie in a buffer of ``buffers``, to be given back.

        Raises:
            NotFound: The provider says that it has not got it.
            Corrupt: It sends bytes that are not the block.
            Unavailable: It does not answer in time, breaks off, or answers with something else; or :meth:`abort`.
        """
        data = self._ask("GET", cid, timeout_s, buffers)
        try:
            cid.check(data, source=self._url)
        except BaseException:
            buffers.give(data)
            raise
        return data

    def has(self, cid: Cid, *, timeout_s: float) -> bool:
        """Whether the provider has the block at hand, without going to look for it elsewhere.

        Raises:
            Unavailable: As :meth:`get` does.
        """
        try:
            self._ask("HEAD", cid, timeout_s, BufferPool(0))
        except NotFound:
            return False
        return True

    def abort(self) -> None:
        """Break off what another thread does with this connection; it can't be used again."""
        self._aborted = True
        opened = self._socket
        if opened is not None:
            with suppress(OSError):
                # Not the method of a TLS socket: that one would switch the encryption off under the other thread.
                socket.socket.shutdown(opened, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket; the next request opens another one."""
        opened, self._socket = self._socket, None
        if opened is not None:
            opened.close()

    def _ask(self, method: str, cid: Cid, timeout_s: float, buffers: BufferPool) -> Buffer:
        self._deadline = time.monotonic() + timeout_s
        reused = self._socket is not None
        try:
            try:
                return self._exchange(method, cid, buffers)
            except OSError:
                # The server may have closed a connection that was idle: that says nothing of the block.
                if not reused or self._answered or self._aborted or time.monotonic() >= self._deadline:
                    raise
                self.close()
                return self._exchange(method, cid, buffers)
        except (NotFound, Corrupt, Unavailable):
            raise
        except (OSError, ValueError) as error:
            self.close()
            text = "it did not answer in time" if isinstance(error, TimeoutError) else str(error)
            raise Unavailable(f"{self._url}: {text or type(error).__name__}") from error
        except BaseException:
            self.close()
            raise

    def _exchange(self, method: str, cid: Cid, buffers: BufferPool) -> Buffer:
        opened = self._socket or self._connect()
        self._filled = self._read = 0
        self._answered = False
        only_local = "\r\nCache-Control: only-if-cached" if method == "HEAD" else ""
        request = (
            f"{method} {self._path}/ipfs/{cid}?format=raw HTTP/1.1\r\n{self._fields}{only_local}\r\n\r\n"
        )
        opened.settimeout(self._left_s())
        opened.sendall(request.encode())
        status, fields, keep = self._head()
        body_expected = method != "HEAD" and status not in (204, 304)
        try:
            if status == 200:
                return self._body(fields, buffers) if body_expected else b""
            length = fields.get(b"content-length", b"")
            if body_expected and length.isdigit() and int(length) <= _SCRATCH_BYTES:
                self._fill_from(
                    int(length), memoryview(bytearray(int(length)))
                )  # the next answer comes behind it
            elif body_expected:
                keep = False
            if status in _NOT_HERE:
                raise NotFound(f"{self._url} does not have it")
            raise Unavailable(f"{self._url}: HTTP status {status}")
        except Corrupt:
            keep = False  # what is left of the body would be taken for the next answer
            raise
        finally:
            if not keep or (fields.get(b"connection", b"").lower() == b"close"):
                self.close()

    def _connect(self) -> socket.socket:
        reasons = []
        for family, kind, protocol, _, address in socket.getaddrinfo(*self._address, type=socket.SOCK_STREAM):
            opened = socket.socket(family, kind, protocol)
            self._socket = opened  # so that abort() finds it
            try:
                if self._aborted:
                    raise ConnectionAbortedError("broken off")
                opened.settimeout(min(_CONNECT_TIMEOUT_S, self._left_s()))
                opened.connect(address)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls:
                    opened.settimeout(self._left_s())
                    opened = _tls_context().wrap_socket(opened, server_hostname=self._address[0])
                    self._socket = opened
            except OSError as error:
                self.close()
                reasons.append(error)
            else:
                return opened
        raise reasons[0] if reasons else OSError(f"no address for {self._address[0]}")

    def _left_s(self) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _receive(self, into: memoryview) -> int:
        """Some more bytes, at least one."""
        opened = self._socket
        if opened is None or self._aborted:
            raise ConnectionAbortedError("broken off")
        opened.settimeout(self._left_s())
        count = opened.recv_into(into)
        if count == 0:
            raise ConnectionResetError("the connection was closed before the end of the answer")
        self._answered = True
        return count

    def _head(self) -> tuple[int, dict[bytes, bytes], bool]:
        """Status and header fields of the answer, and whether the connection may be used again."""
        while True:
            head = self._until(b"\r\n\r\n")
            first, *lines = head.split(b"\r\n")
            status = _STATUS_LINE.match(first)
            if status is None:
                raise ValueError(f"the answer is not HTTP/1.1: {first[:60]!r}")
            if not status[2].startswith(b"1"):  # else: 100 Continue and its like, the answer is still to come
                break
        fields: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            if not colon or (name == b"content-length" and fields.get(name, value) != value):
                raise ValueError(f"the answer has a broken header: {line[:60]!r}")
            fields[name] = value
        return int(status[2]), fields, status[1] == b"1"

    def _until(self, end: bytes) -> bytes:
        """The bytes before ``end``, which is used up as well; for heads and for lines between chunks."""
        while True:
            held = bytes(self._scratch[self._read : self._filled])
            at = held.find(end)
            if at >= 0:
                self._read += at + len(end)
                return held[:at]
            if len(held) > _MAX_HEAD_BYTES:
                raise ValueError("the head of the answer has no end")
            if self._filled > _SCRATCH_BYTES // 2:
                self._scratch[: len(held)] = held
                self._read, self._filled = 0, len(held)
            self._filled += self._receive(self._scratch[self._filled :])

    def _body(self, fields: dict[bytes, bytes], buffers: BufferPool) -> Buffer:
        length = fields.get(b"content-length")
        if b"transfer-encoding" in fields or length is None:
            return self._body_of_unknown_length(chunked=b"transfer-encoding" in fields)
        if not length.isdigit():
            raise ValueError(f"the length of the body is {length[:30]!r}")
        size = int(length)
        if size > MAX_BLOCK_BYTES:
            raise self._too_much()
        if size < _POOLED_FROM_BYTES:
            small = bytearray(size)
            self._fill_from(size, memoryview(small))
            return bytes(small)
        buffer = buffers.take(size)
        block = memoryview(buffer)[:size]
        try:
            self._fill_from(size, block)
        except BaseException:
            buffers.give(block)
            raise
        return block

    def _fill_from(self, size: int, target: memoryview) -> None:
        """Fill ``target`` with the next ``size`` bytes of the answer."""
        at = min(size, self._filled - self._read)
        target[:at] = self._scratch[self._read : self._read + at]
        self._read += at
        while at < size:
            at += self._receive(target[at:size])

    def _body_of_unknown_length(self, *, chunked: bool) -> bytes:
        """A body in chunks, or one that ends with the connection; read no further than a block may be long."""
        body = bytearray()
        while chunked or self._more():
            size = self._filled - self._read
            if chunked:
                text = self._until(b"\r\n").partition(b";")[0].strip()
                if not _CHUNK_SIZE.fullmatch(text):
                    raise ValueError(f"the length of a chunk is {text[:30]!r}")
                size = int(text, 16)
            if len(body) + size > MAX_BLOCK_BYTES:
                raise self._too_much()
            piece = bytearray(size)
            self._fill_from(size, memoryview(piece))
            body += piece
            if chunked and size == 0:
                while self._until(b"\r\n"):  # trailers
                    pass
                break
            if chunked and self._until(b"\r\n"):
                raise ValueError("a chunk is longer than it says")
        return bytes(body)

    def _more(self) -> bool:
        """Whether unused bytes are at hand, or come before the connection ends."""
        if self._read < self._filled:
            return True
        self._read = self._filled = 0
        try:
            self._filled = self._receive(self._scratch)
        except ConnectionResetError:
            if self._aborted:
                raise
            self.close()
            return False
        return True

    def _too_much(self) -> Corrupt:
        return Corrupt(f"{self._url} sends more than the {MAX_BLOCK_BYTES} bytes of a block")


@functools.cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()
