"""What keeps a daemon's own garbage collection away from blocks that are not pinned yet.

A daemon holds its collector off while it imports a CAR, and pins the CAR's roots before it lets it go on. So each import brings a guard as its
root: a record that links to all blocks of the import, and to those that were there already. It is unpinned when the caller is done.
"""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, NotFound
from holdfast.storage.cid import DAG_CBOR, Cid, as_raw
from holdfast.storage.formats import dag_cbor
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from holdfast.storage.kubo.kubo_rpc import KuboRpc

__all__ = ["MAX_GUARDED", "Guards"]

log = get_logger(__name__)

MAX_GUARDED = 20_000
"""So many links make a record of about 800 KB; a block has at most 2 MiB."""


class Guards:
    """The guards of one daemon's store, of each thread for itself."""

    def __init__(self, rpc: KuboRpc) -> None:
        self._rpc = rpc
        self._threads = threading.local()

    @property
    def wanted(self) -> bool:
        """Whether this thread is in :meth:`standing`."""
        return bool(self._standing())

    @contextmanager
    def standing(self) -> Iterator[None]:
        """While this lasts, what this thread puts is guarded. A process that is killed meanwhile leaves its guards pinned."""
        mine: list[Cid] = []
        self._standing().append(mine)
        try:
            yield
        finally:
            self._standing().remove(mine)
            for guard in mine:
                self._drop(guard)

    def make(self, multihashes: Sequence[bytes]) -> tuple[Cid, bytes]:
        """A new guard over these blocks, to be imported as a root with them.

        It links to each as if it were raw, so that nothing below them need be there: collectors look at multihashes only.
        """
        value = {
            "holdfast": "guards an add that is under way: to be unpinned if none is",
            "nonce": secrets.token_bytes(16),  # nobody else has the same guard, and unpins it
            "blocks": [as_raw(multihash) for multihash in multihashes],
        }
        data = dag_cbor.encode(value)
        guard = Cid.of(data, DAG_CBOR)
        self._standing()[-1].append(guard)
        return guard, data

    def _standing(self) -> list[list[Cid]]:
        found: list[list[Cid]] = self._threads.__dict__.setdefault("standing", [])
        return found

    def _drop(self, guard: Cid) -> None:
        try:
            self._rpc.control(lambda client: client.pin.rm(str(guard)))
        except NotFound:
            return  # its import failed
        except HoldfastError as error:
            log.warning(
                "the pin of %s in the IPFS daemon stays, it keeps what was added just now: %s", guard, error
            )
