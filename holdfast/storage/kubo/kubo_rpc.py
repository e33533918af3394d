"""The RPC API of an IPFS daemon (``/api/v0``): where it is, control calls, streams, and what its errors mean.

Control calls go through ``ipfshttpclient.Client``, which is synchronous; ``connect()`` of the same package refuses every daemon
since 2021. Bulk goes through aiohttp, in one thread with an event loop. Kubo answers every failure with status 500 and a
sentence, so what went wrong has to be read from that.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import warnings
import weakref
from base64 import b64encode
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from holdfast.errors import Conflict, Corrupt, Denied, HoldfastError, InvalidInput, NotFound, Unavailable
from holdfast.loop_thread import LoopThread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Mapping

    import aiohttp

__all__ = ["KuboAddress", "KuboRpc"]

_T = TypeVar("_T")
_CONNECT_TIMEOUT_S = 5.0
_MAX_ERROR_BYTES = 64 << 10
_MULTIADDR = re.compile(r"/(?:ip4|ip6|dns|dns4|dns6)/([^/]+)/tcp/(\d+)(?:/(https?))?/?")
_MISSING = re.compile(
    r"not found|could not find|not pinned|is pinned indirectly|does not exist", re.IGNORECASE
)
_TIMED_OUT = re.compile(r"timed? ?out|deadline exceeded", re.IGNORECASE)
_FULL = re.compile(r"no space left|ENOSPC|quota exceeded", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class KuboAddress:
    """Where a daemon's RPC API listens."""

    scheme: str
    host: str
    port: int
    auth: tuple[str, str] | None = field(default=None, repr=False)
    """User and password, for a daemon whose ``API.Authorizations`` asks for them."""

    @classmethod
    def parse(cls, text: str) -> KuboAddress:
        """The address that ``text`` stands for.

        Args:
            text: ``http://[user:password@]host:port`` or a multiaddr such as ``/ip4/127.0.0.1/tcp/5001``.

        Raises:
            InvalidInput: It is neither.
        """
        if text.startswith("/"):
            match = _MULTIADDR.fullmatch(text)
            if match is not None and int(match[2]) < 1 << 16:
                return cls(match[3] or "http", match[1], int(match[2]))
        else:
            with suppress(ValueError):
                parts = urlsplit(text)
                port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
                known = parts.scheme in ("http", "https") and parts.hostname is not None
                alone = parts.path.rstrip("/") in ("", "/api/v0") and not parts.query and not parts.fragment
                if port is not None and known and alone:
                    auth = (
                        (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
                    )
                    return cls(parts.scheme, str(parts.hostname), port, auth)
        shown = re.sub(r"//[^/@]*@", "//***@", text)
        raise InvalidInput(
            f"{shown!r} is not the address of an IPFS daemon's RPC API: "
            "give http://127.0.0.1:5001 or /ip4/127.0.0.1/tcp/5001"
        )

    @property
    def url(self) -> str:
        """As a URL, without the password."""
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def multiaddr(self) -> str:
        """As ``ipfshttpclient`` wants it."""
        numeric = re.fullmatch(r"[0-9.]+", self.host)
        kind = "ip6" if ":" in self.host else "ip4" if numeric else "dns"
        return f"/{kind}/{self.host}/tcp/{self.port}/{self.scheme}"


class KuboRpc:
    """Calls to one daemon, from any thread. Nothing is sent before the first call.

    Args:
        address: Where it listens.
        timeout_s: Deadline of a call.
        concurrency: Streams at once.
    """

    def __init__(self, address: KuboAddress, *, timeout_s: float, concurrency: int) -> None:
        self.url = address.url
        self.timeout_s = timeout_s
        self.concurrency = concurrency
        self._address = address
        self._lock = threading.Lock()
        self._connections: _Connections | None = None
        self._inherited: _Connections | None = None
        self._closed = False

    # ----------------------------------------------------------------------------------------- control

    def control(self, call: Callable[[Any], Any]) -> dict[str, Any]:
        """The JSON object that ``call`` returns, which gets an ``ipfshttpclient.Client``; empty where there is none.

        Raises:
            NotFound: The daemon says that something is not there.
            Unavailable: Nothing listens, or it takes too long, or it failed.
            InvalidInput: What listens is not an IPFS daemon's RPC API.
            Denied: The daemon refuses.
            Conflict: This object is closed.
        """
        import ipfshttpclient.exceptions as errors

        self.must_be_open()
        try:
            answer = call(self._client())
            value = {} if answer is None else answer.as_json()
        except errors.StatusError as error:
            status = int(getattr(getattr(error.original, "response", None), "status_code", 0))
            described = isinstance(error, errors.ErrorResponse)
            raise (self._failure(status, str(error)) if described else self._refusal(status)) from error
        except errors.TimeoutError as error:
            raise self._slow() from error
        except errors.ConnectionError as error:
            raise self._absent() from error
        except (
            errors.Error,
            UnicodeError,
            AssertionError,
        ) as error:  # it asserts that an answer is one object
            raise self._stranger(str(error)) from error
        if not isinstance(value, dict):
            raise self._stranger(str(value))
        return value

    def _client(self) -> Any:
        import ipfshttpclient

        # It passes an argument to urllib3 that does nothing any more.
        warnings.filterwarnings("ignore", "The 'strict' parameter", FutureWarning)
        client = ipfshttpclient.Client(
            self._address.multiaddr, auth=self._address.auth, timeout=(_CONNECT_TIMEOUT_S, self.timeout_s)
        )
        # The daemon is asked directly: a proxy from the environment would be asked for its own loopback.
        client._client._session_props["trust_env"] = False  # noqa: SLF001 -- the package has no option for it
        return client

    # -------------------------------------------------------------------------------------------- bulk

    def run(self, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What the coroutine returns that ``work`` makes; it runs in this object's thread.

        Raises:
            Conflict: This object is closed.
        """
        return self._connected().thread.run(work())

    @asynccontextmanager
    async def stream(
        self,
        call: str,
        options: Mapping[str, str],
        *,
        body: aiohttp.MultipartWriter | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a call, once its status says that it succeeded. Only inside :meth:`run`.

        Raises:
            NotFound: The daemon says that something is not there.
            Unavailable: Nothing listens, or it takes too long, or it failed.
            InvalidInput: What listens is not an IPFS daemon's RPC API.
            Denied: The daemon refuses.
        """
        import aiohttp

        connections = self._connections
        if connections is None:
            raise Conflict(f"the connection to {self.url} is closed")
        total = aiohttp.ClientTimeout(
            total=timeout_s or self.timeout_s, sock_connect=min(_CONNECT_TIMEOUT_S, self.timeout_s)
        )
        try:
            async with (
                connections.gate,
                connections.session.post(
                    f"{self.url}/api/v0/{call}",
                    params=options,
                    data=body,
                    timeout=total,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status != 200:
                    raise self._answered(response.status, await response.content.read(_MAX_ERROR_BYTES))
                yield response
        except HoldfastError:
            raise
        except aiohttp.ClientConnectorError as error:
            raise self._absent() from error
        except TimeoutError as error:
            raise self._slow() from error
        except aiohttp.ClientResponseError as error:
            raise self._stranger(error.message) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(
                f"the connection to the IPFS daemon at {self.url} broke off during {call}: {error or type(error).__name__}"
            ) from error

    async def lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        """The JSON objects of an answer, one a line."""
        while True:
            try:
                line = await response.content.readline()
                value = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise self._stranger(str(error)) from error
            if not line:
                return
            if not isinstance(value, dict):
                raise self._stranger(str(line[:100]))
            if value:
                yield value

    def close(self) -> None:
        """Close connections and end the thread. Closing twice is fine."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.thread.close()

    def must_be_open(self) -> None:
        """Return unless :meth:`close` was called.

        Raises:
            Conflict: It was.
        """
        if self._closed:
            raise Conflict(f"the store in the IPFS daemon at {self.url} is closed")

    def _connected(self) -> _Connections:
        with self._lock:
            self.must_be_open()
            if self._connections is not None and self._connections.thread.process != os.getpid():
                # A fork inherits no thread. What it inherits must stay untouched: the parent works with it.
                self._inherited, self._connections = self._connections, None
            if self._connections is None:
                self._connections = _Connections(self._address, self.concurrency)
                weakref.finalize(self, self._connections.thread.close)  # for those who forget to, or exit
            return self._connections

    # ------------------------------------------------------------------------------------------ errors

    def _answered(self, status: int, body: bytes) -> HoldfastError:
        """The error that a status and a body other than success mean."""
        with suppress(ValueError):
            value = json.loads(body)
            if isinstance(value, dict) and isinstance(value.get("Message"), str):
                return self._failure(status, value["Message"])
        return self._refusal(status)

    def _failure(self, status: int, message: str) -> HoldfastError:
        """The error that the daemon describes."""
        if status not in (400, 500):
            return self._refusal(status)
        says = f"the IPFS daemon at {self.url} says: {message[:500]}"
        if _TIMED_OUT.search(message):
            return Unavailable(says)
        if _FULL.search(message):
            return Unavailable(f"the disk of the IPFS daemon at {self.url} is full; it says: {message[:500]}")
        if _MISSING.search(message):
            return NotFound(says)
        return InvalidInput(says) if status == 400 else Unavailable(says)

    def _refusal(self, status: int) -> HoldfastError:
        """The error for a status without a daemon's description."""
        if status in (401, 403):
            return Denied(
                f"{self.url} refuses (HTTP {status}): if it is an IPFS daemon, see API.Authorizations and "
                "API.HTTPHeaders in its configuration; user and password go into the address, http://user:password@host:port"
            )
        if status >= 500 or status == 429:
            return Unavailable(f"{self.url} does not serve at the moment (HTTP {status})")
        return self._stranger(f"HTTP status {status}")

    def _stranger(self, how: str) -> InvalidInput:
        return InvalidInput(
            f"{self.url} is not the RPC API of an IPFS daemon ({how[:200]}): Kubo's listens on port 5001; "
            "its gateway, on port 8080, is another thing"
        )

    def _slow(self) -> Unavailable:
        return Unavailable(f"the IPFS daemon at {self.url} did not answer within {self.timeout_s:g} s")

    def _absent(self) -> Unavailable:
        return Unavailable(
            f"nothing listens at {self.url}: is the IPFS daemon running? 'ipfs daemon' starts it, and "
            "'ipfs config Addresses.API' shows where it listens"
        )


class _Connections:
    """What lives in the thread: the connections, and the bound on streams."""

    def __init__(self, address: KuboAddress, concurrency: int) -> None:
        self.gate = asyncio.Semaphore(concurrency)
        self.thread = LoopThread("holdfast-kubo", at_end=self._end)
        self.session: aiohttp.ClientSession = self.thread.run(self._open(address, concurrency))

    async def _open(self, address: KuboAddress, concurrency: int) -> aiohttp.ClientSession:
        import aiohttp

        authorization = {}
        if address.auth is not None:
            authorization["Authorization"] = f"Basic {b64encode(':'.join(address.auth).encode()).decode()}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=concurrency),
            auto_decompress=False,  # a small answer can't become a large one
            headers={"Accept-Encoding": "identity"} | authorization,
        )

    async def _end(self) -> None:
        await self.session.close()


async def read_bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    """The body, read no further than ``max_bytes``.

    Raises:
        Corrupt: It is longer.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > max_bytes:
            raise Corrupt(f"{response.url.origin()} sends more than the {max_bytes} bytes of a block")
        pieces.append(piece)
    return b"".join(pieces)
