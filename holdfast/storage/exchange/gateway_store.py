"""One gateway as a block store that can be read: any Trustless Gateway, such as another node or a public one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.errors import Conflict, Unsupported
from holdfast.storage.block_store import inline_block
from holdfast.storage.exchange.block_client import BlockConnection, Provider
from holdfast.storage.exchange.fetcher import Fetcher

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from holdfast.storage.block_store import Payload
    from holdfast.storage.cid import Buffer, Cid

__all__ = ["GatewayStore"]


class GatewayStore:
    """The blocks of one gateway, each verified when it is read; nothing is kept here, and nothing can be stored.

    Args:
        url: Of the gateway, ``http(s)://<host>:<port>``.
        token: Sent as bearer token.
        timeout_s: Deadline of one request.

    Raises:
        InvalidInput: The URL or the token can't be used.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self._provider = Provider(url.rstrip("/"), token)
        self._timeout_s = timeout_s
        BlockConnection(self._provider)  # raises what is wrong with it; nothing is connected yet
        self._fetcher = Fetcher(lambda: [self._provider], timeout_s=timeout_s)
        self._closed = False

    def get(self, cid: Cid) -> Buffer:
        """The block.

        Raises:
            NotFound: The gateway says that it has not got it.
            Corrupt: It sends other bytes.
            Unavailable: It does not answer.
            Conflict: The store is closed.
        """
        self._check_open()
        return self._fetcher.fetch([cid])[0]

    def has(self, cid: Cid) -> bool:
        """Whether the gateway has the block at hand; it is not made to look for it elsewhere.

        Raises:
            Unavailable: It does not answer.
            Conflict: The store is closed.
        """
        self._check_open()
        if inline_block(cid) is not None:
            return True
        connection = BlockConnection(self._provider)
        try:
            return connection.has(cid, timeout_s=self._timeout_s)
        finally:
            connection.close()

    def put_many(self, blocks: Iterable[tuple[Cid, Payload]], *, resume: bytes | None = None) -> int:  # noqa: ARG002 -- the contract's
        """Nothing can be stored in a gateway.

        Raises:
            Unsupported: Always.
            Conflict: The store is closed.
        """
        self._check_open()
        raise Unsupported(f"the gateway {self._provider.url} can only be read: add to a store of your own")

    def multihashes(self) -> Iterator[bytes]:
        """A gateway does not list what it has.

        Raises:
            Unsupported: Always.
        """
        raise Unsupported(f"the gateway {self._provider.url} does not tell which blocks it has")

    def close(self) -> None:
        """Close the connections. Closing twice is fine."""
        self._closed = True
        self._fetcher.close()

    def _check_open(self) -> None:
        if self._closed:
            raise Conflict(f"the store of the gateway {self._provider.url} is closed")
