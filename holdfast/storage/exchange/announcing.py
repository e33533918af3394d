"""What one process asks and tells its cluster about roots, in the background: nothing here ever fails a fetch or an add."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError
from holdfast.http_client import HttpClient
from holdfast.storage.exchange.block_client import Provider
from holdfast.storage.exchange.routing import RoutingClient
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from holdfast.storage.block_store import Pin, SupportsPins
    from holdfast.storage.cid import Cid

__all__ = ["AnnouncingPins", "Cluster", "Routing"]

log = get_logger(__name__)

_FRESH_FROM_S, _FRESH_TO_S = 0.2, 3.0
"""How old an answer may be: little when a root is new here, as others may begin to fetch it at the same time."""
_FIRST_WAIT_S = 1.0
_MAX_LOOKUPS = 1024
_IDLE_S = 10.0
_SETTLE_S = 0.05
_JOIN_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a home knows of the cluster that it belongs to; all of it is empty for a home on its own."""

    peers: tuple[str, ...] = ()
    """Block servers of the other nodes."""
    master: str = ""
    """URL of the master."""
    node_id: str = ""
    node_url: str = ""
    """The block server of this home, as the others reach it."""
    token: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class _Lookup:
    providers: tuple[Provider, ...] = ()
    since: float = field(default_factory=time.monotonic)
    asked: float = 0.0
    pending: bool = False
    done: threading.Event = field(default_factory=threading.Event)


class Routing:
    """Finds and announces roots.

    Args:
        cluster: What the home knows of its cluster at the moment.
        routers: Routing endpoints to ask besides the master.

    It starts one thread when there is something to do; it ends after a while, and in :meth:`close`.
    """

    def __init__(self, cluster: Callable[[], Cluster], *, routers: Sequence[str] = ()) -> None:
        self._read = cluster
        self._routers = [RoutingClient(url) for url in routers]
        self._work = _Work(self._routers, self._read)
        weakref.finalize(self, _Work.close, self._work)  # for those who forget to, or exit

    @property
    def own_url(self) -> str:
        """The block server of this home; empty if it has none."""
        return self._cluster().node_url

    def find(self, root: Cid) -> Sequence[Provider]:
        """Who said that they have ``root``; at most a few seconds old.

        If nobody is known to, those who had what was asked for before: what is wanted now may be a part of it. Only the
        first question of all takes time.
        """
        if not self._routers and not self._cluster().master:
            return ()
        return self._worker().find(root)

    def began(self, root: Cid) -> None:
        """Tell the cluster that this node is fetching ``root``, and will serve of it what it has."""
        self._announce(root, partial=True)

    def ended(self, root: Cid) -> None:
        """Tell the cluster that this node is not fetching ``root`` any more: what it has not got now it will not get."""
        self._announce(root, partial=False)

    def announce(self, root: Cid) -> None:
        """Tell the cluster that this node has ``root``."""
        self._announce(root, partial=False)

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything was told; False when the time is over before."""
        return self._work.flush(timeout_s)

    def close(self) -> None:
        """Tell what is still to be told, and end the thread. Closing twice is fine."""
        self._work.close()

    def _cluster(self) -> Cluster:
        try:
            return self._read()
        except HoldfastError as error:
            log.warning("nobody is asked or told who has what: %s", error)
            return Cluster()

    def _announce(self, root: Cid, *, partial: bool) -> None:
        cluster = self._cluster()
        if cluster.master and cluster.node_url:
            self._worker().announce(root, partial=partial)

    def _worker(self) -> _Work:
        if self._work.process != os.getpid():  # a fork inherits no thread
            self._work = _Work(self._routers, self._read)
            weakref.finalize(self, _Work.close, self._work)
        return self._work


class _Work:
    """The thread, and what it has to do. It holds no reference to :class:`Routing`, so that can be forgotten."""

    def __init__(self, routers: Sequence[RoutingClient], cluster: Callable[[], Cluster]) -> None:
        self.process = os.getpid()
        self._routers = routers
        self._cluster = cluster
        self._changed = threading.Condition()
        self._lookups: OrderedDict[Cid, _Lookup] = OrderedDict()
        self._recent: tuple[Provider, ...] = ()
        self._to_find: dict[Cid, None] = {}
        self._to_tell: dict[Cid, bool] = {}
        self._thread: threading.Thread | None = None
        self._busy = False
        self._closed = False

    def find(self, root: Cid) -> Sequence[Provider]:
        with self._changed:
            lookup = self._lookups.setdefault(root, _Lookup())
            self._lookups.move_to_end(root)
            while len(self._lookups) > _MAX_LOOKUPS:
                self._lookups.popitem(last=False)
            now = time.monotonic()
            fresh_s = max(_FRESH_FROM_S, min(_FRESH_TO_S, (now - lookup.since) / 2))
            if not lookup.pending and lookup.asked + fresh_s < now and not self._closed:
                lookup.pending = True
                self._to_find[root] = None
                self._wake()
            recent = self._recent
        if not lookup.asked and not recent:
            lookup.done.wait(_FIRST_WAIT_S)
        return lookup.providers or recent

    def announce(self, root: Cid, *, partial: bool) -> None:
        with self._changed:
            if not self._closed:
                self._to_tell[root] = partial
                self._wake()

    def flush(self, timeout_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._idle() or self._thread is None, timeout_s)

    def close(self) -> None:
        if self.process != os.getpid():
            return
        with self._changed:
            self._closed = True
            self._to_find.clear()
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_JOIN_S)

    def _idle(self) -> bool:
        return not (self._to_find or self._to_tell or self._busy)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="holdfast-routing", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closed or not self._idle(), _IDLE_S)
                if self._idle():
                    self._thread = None
                    return
                self._busy = True
                find, self._to_find = list(self._to_find), {}
                if not find and not self._closed:
                    self._changed.wait_for(
                        lambda: self._closed or self._to_find, _SETTLE_S
                    )  # it may end soon
                tell, self._to_tell = self._to_tell, {}
            try:
                self._tell(tell)
                for root in find:
                    self._find(root)
            except Exception:  # the thread must go on: others wait for its answers
                log.exception("asking or telling who has what failed")

    def _tell(self, roots: dict[Cid, bool]) -> None:
        cluster = self._cluster()
        for partial in (True, False):
            cids = [str(root) for root, state in roots.items() if state is partial]
            if cids and cluster.master:
                body = {"node": cluster.node_id, "cids": cids, "partial": partial}
                try:
                    HttpClient(cluster.master, cluster.token, timeout_s=5.0).post("/api/v0/providers", body)
                except HoldfastError as error:
                    log.info("%d roots were not announced: %s", len(cids), error)

    def _find(self, root: Cid) -> None:
        cluster = self._cluster()
        routers = list(self._routers)
        if cluster.master:
            routers.insert(0, RoutingClient(cluster.master, token=cluster.token))
        found: dict[str, Provider] = {}
        for router in routers:
            if self._closed:
                break
            try:
                for provider in router.providers(root):
                    found.setdefault(provider.url, provider)
            except HoldfastError as error:
                log.info("%s", error)
        with self._changed:
            lookup = self._lookups.get(root, _Lookup())
            lookup.providers, lookup.asked, lookup.pending = tuple(found.values()), time.monotonic(), False
            lookup.done.set()
            if found:
                self._recent = tuple(Provider(each.url, each.token) for each in found.values())


class AnnouncingPins:
    """Pins that tell the cluster of what is pinned whole: that is what this node is going to keep."""

    def __init__(self, pins: SupportsPins, routing: Routing) -> None:
        self._pins = pins
        self._routing = routing

    def pin(self, cid: Cid, *, recursive: bool = True, name: str = "") -> None:
        """Keep ``cid``, and announce it."""
        self._pins.pin(cid, recursive=recursive, name=name)
        if recursive:
            self._routing.announce(cid)

    def adding(self) -> AbstractContextManager[None]:
        """While this lasts, what this thread adds can't be collected."""
        return self._pins.adding()

    def unpin(self, cid: Cid) -> None:
        """Keep ``cid`` no longer on its own behalf."""
        self._pins.unpin(cid)

    def pins(self) -> list[Pin]:
        """Every pin, sorted by CID."""
        return self._pins.pins()

    def hold(self, label: str, cid: Cid, *, recursive: bool = True) -> None:
        """Keep as much of ``cid`` as is here, for as long as the label stands for it."""
        self._pins.hold(label, cid, recursive=recursive)

    def release(self, label: str) -> None:
        """Forget a hold; one that is not there is fine."""
        self._pins.release(label)

    def used(self, cid: Cid) -> None:
        """Note that content was used now."""
        self._pins.used(cid)
