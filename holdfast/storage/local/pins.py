"""What a home keeps: pins that users set, holds that names set, and when content was used last."""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.block_store import Pin, VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.formats.dag import reachable
from holdfast.storage.local.packed_keys import PackedKeys

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from holdfast.storage.local.local_store import LocalStore

__all__ = ["Pins", "Root"]

_TABLE, _USES = "pins", "roots"
_PIN, _HOLD = b"p", b"h"
_REMEMBERED = 10_000
_RECURSIVE, _DIRECT = b"r", b"d"
MAX_LABEL_BYTES = 400
USED_RESOLUTION_S = 60.0
_TIME = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Root:
    """A reason to keep content."""

    cid: Cid
    recursive: bool
    why: str
    """Who wants it, in words."""


class Pins:
    """The pins of one local store, kept beside its blocks; implements :class:`SupportsPins`.

    A pin is the user's, one for each CID. A hold belongs to a label, such as the name of a model, and keeps whatever of its
    content is here; setting it again moves it.
    """

    def __init__(self, local: LocalStore) -> None:
        self._local = local
        self._get = VerifyingStore(local, source=f"the disk under {local.folder}").get
        self._recent: dict[bytes, float] = {}
        self._recent_lock = threading.Lock()

    def pin(self, cid: Cid, *, recursive: bool = True, name: str = "") -> None:
        """Keep ``cid``; pinning again changes the name, and recursive stays recursive.

        Raises:
            NotFound: A block of what is to be kept is not here; nothing changed.
            InvalidInput: The name is too long.
        """
        key = _PIN + cid.raw
        text = _label(name)
        with self._local.transaction() as txn:
            before = txn.get(_TABLE, key)
        recursive = recursive or (before is not None and before[:1] == _RECURSIVE)
        wanted = PackedKeys(below.multihash for below in reachable(self._get, cid, recursive=recursive))
        with self._local.transaction(write=True) as txn:
            # Their times are new from now on: a collector that has marked already will not sweep them.
            gone = txn.renew(wanted)
            if gone:
                below = reachable(self._get, cid, recursive=recursive)
                missing = next((block for block in below if block.multihash == gone[0]), gone[0].hex())
                raise NotFound(
                    f"{cid} can't be pinned: {len(gone)} of its blocks are not in this store, such as {missing}; "
                    "fetch it first"
                )
            txn.put(_TABLE, key, (_RECURSIVE if recursive else _DIRECT) + text)

    def unpin(self, cid: Cid) -> None:
        """Keep ``cid`` no longer on its own behalf.

        Raises:
            NotFound: It is not pinned.
        """
        with self._local.transaction(write=True) as txn:
            if not txn.delete(_TABLE, _PIN + cid.raw):
                raise NotFound(f"{cid} is not pinned")

    def pins(self) -> list[Pin]:
        """Every pin, sorted by CID."""
        return [
            Pin(cid=Cid(key[1:]), recursive=value[:1] == _RECURSIVE, name=value[1:].decode())
            for key, value in self._items(_PIN)
        ]

    def hold(self, label: str, cid: Cid, *, recursive: bool = True) -> None:
        """Keep as much of ``cid`` as is here, for as long as the label stands for it.

        Raises:
            InvalidInput: The label is empty or too long.
        """
        if not label:
            raise InvalidInput("a hold needs a label")
        with self._local.transaction(write=True) as txn:
            txn.put(_TABLE, _HOLD + _label(label), (_RECURSIVE if recursive else _DIRECT) + cid.raw)

    def release(self, label: str) -> None:
        """Forget a hold; one that is not there is fine."""
        with self._local.transaction(write=True) as txn:
            txn.delete(_TABLE, _HOLD + _label(label))

    def held(self, label: str) -> Cid | None:
        """What a label holds."""
        with self._local.transaction() as txn:
            value = txn.get(_TABLE, _HOLD + _label(label))
        return Cid(value[1:]) if value is not None else None

    def roots(self) -> list[Root]:
        """Everything that is kept, and why."""
        pinned = [
            Root(pin.cid, pin.recursive, f"the pin {pin.name!r}" if pin.name else "a pin")
            for pin in self.pins()
        ]
        held = [
            Root(Cid(value[1:]), value[:1] == _RECURSIVE, key[1:].decode())
            for key, value in self._items(_HOLD)
        ]
        return pinned + held

    def _items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        with self._local.transaction() as txn:
            return list(txn.items(_TABLE, prefix))

    def adding(self) -> AbstractContextManager[None]:
        """While this lasts, what this thread adds, or finds to be here already, can't be collected: time to pin it."""
        return self._local.adding()

    # ------------------------------------------------------------------------------------------------ use

    def used(self, cid: Cid) -> None:
        """Note that content was used now: a full store lets go of what was used longest ago.

        Nothing is written for a store without a quota.
        """
        if not self._local.max_bytes:
            return
        now = time.time()
        with self._recent_lock:
            if now - self._recent.get(cid.raw, 0.0) < USED_RESOLUTION_S:
                return
            if len(self._recent) > _REMEMBERED:
                self._recent.clear()
            self._recent[cid.raw] = now
        with self._local.transaction(write=True) as txn:
            txn.put(_USES, cid.raw, _TIME.pack(int(now)))

    def last_uses(self) -> dict[Cid, int]:
        """When each root was used last, in seconds since 1970."""
        with self._local.transaction() as txn:
            return {Cid(key): _TIME.unpack(value)[0] for key, value in txn.items(_USES)}

    def forget_uses(self, cids: list[Cid]) -> None:
        """Drop what is known of the use of roots that are gone."""
        with self._local.transaction(write=True) as txn:
            for cid in cids:
                txn.delete(_USES, cid.raw)


def _label(text: str) -> bytes:
    label = text.encode()
    if len(label) > MAX_LABEL_BYTES:
        raise InvalidInput(f"the name {text[:40]!r}... of a pin is longer than {MAX_LABEL_BYTES} bytes")
    return label
