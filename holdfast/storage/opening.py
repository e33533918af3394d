"""How the stores of a home are put together: local, then verified, then fetched from peers."""

from __future__ import annotations

import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.config import Settings, load_settings, read_token
from holdfast.errors import Corrupt, HoldfastError, InvalidInput, Unavailable, Unsupported
from holdfast.storage.block_store import BlockStore, VerifyingStore
from holdfast.storage.cid import RAW, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.exchange.announcing import AnnouncingPins, Cluster, Routing
from holdfast.storage.exchange.block_client import BlockConnection, BufferPool
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.formats.unixfs import profile_named
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.fsck import Report, check
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from holdfast.storage.local.sources import SourceCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from holdfast.storage.block_store import SupportsPins
    from holdfast.storage.kubo.kubo_store import KuboStore

__all__ = [
    "PeerState",
    "check_home",
    "get_block",
    "open_backing",
    "open_blocks",
    "open_collector",
    "open_local",
    "open_store",
    "peers_of",
    "read_cluster",
    "read_peers",
    "write_peers",
]

_PEERS = "peers.json"
_PROBE_S = 3.0


def open_backing(settings: Settings) -> LocalStore | KuboStore:
    """What keeps the home's own blocks: its store, or the IPFS daemon that ``storage.ipfs`` names.

    Raises:
        InvalidInput: ``storage.ipfs`` is no daemon's address, or a quota is set beside it.
        Unavailable: The daemon does not answer.
    """
    return _open_daemon(settings) if settings.storage.ipfs else open_local(settings)


def _open_daemon(settings: Settings) -> KuboStore:
    from holdfast.storage.kubo.kubo_store import KuboStore

    if settings.storage.max_bytes:
        raise InvalidInput(
            "storage.max_bytes is a quota of the home's own store, but its blocks are kept by the IPFS daemon of "
            "storage.ipfs: leave it out, and set the daemon's Datastore.StorageMax"
        )
    return KuboStore(settings.storage.ipfs, timeout_s=settings.fetch.timeout_s)


def open_local(settings: Settings) -> LocalStore:
    """The home's own blocks as they lie on the disk; with a quota, they make room for each other.

    Raises:
        Unsupported: An IPFS daemon keeps them.
    """
    if settings.storage.ipfs:
        raise Unsupported(
            f"the blocks of {settings.home} are kept by an IPFS daemon (setting storage.ipfs), so its garbage collection, "
            "checks and quota are the daemon's own: 'ipfs repo gc', 'ipfs repo verify', Datastore.StorageMax"
        )
    local = LocalStore(
        settings.home / "blocks",
        segment_size_bytes=settings.storage.segment_size_bytes,
        index_map_size_bytes=settings.storage.index_map_size_bytes,
        max_bytes=settings.storage.max_bytes or None,
    )
    local.make_room = Collector(local, Pins(local), grace_s=settings.storage.grace_s).make_room
    return local


def open_blocks(settings: Settings) -> BlockStore:
    """The home's own blocks, verified when read as ``storage.verify`` says; nothing is fetched."""
    return _checked(open_backing(settings), settings)


def _checked(local: LocalStore | KuboStore, settings: Settings) -> BlockStore:
    if settings.storage.verify == "ingest" or not isinstance(local, LocalStore):
        return local  # a daemon's blocks are hashed always
    return VerifyingStore(local, source=f"the disk under {settings.home}")


def open_store(home: str | Path | Settings | None = None, *, offline: bool = False) -> ContentStore:
    """The content of a home, filled up from its peers: the cluster's nodes and ``fetch.providers``.

    Args:
        home: Folder, settings, or None for ``$HOLDFAST_HOME``.
        offline: Fetch nothing.
    """
    settings = home if isinstance(home, Settings) else load_settings(home)
    profile = profile_named(settings.storage.profile, hash=settings.storage.hash)
    local = open_backing(settings)
    blocks = _checked(local, settings)
    pins, sources = _keepers(local)
    if not offline:
        routing = Routing(lambda: read_cluster(settings.home), routers=settings.fetch.routers)
        blocks = FetchingStore(blocks, _fetcher(settings, routing))
        pins = AnnouncingPins(pins, routing)
    return ContentStore(blocks, profile=profile, pins=pins, sources=sources)


def get_block(cid: Cid | str, *, home: str | Path | Settings | None = None) -> bytes:
    """The bytes of one block of a home, hashed again, and fetched from its peers if need be.

    For a single look; who reads more opens the store.

    Raises:
        NotFound: Nobody has it.
        Corrupt: The bytes are not what the CID says.
        InvalidInput: That is no CID.
    """
    wanted = Cid.parse(cid)
    with open_store(home) as store:
        data = bytes(store.blocks.get(wanted))
    wanted.check(data, source="the store")
    return data


def _keepers(local: LocalStore | KuboStore) -> tuple[SupportsPins, SourceCache | None]:
    """What pins in a backing, and what remembers the files that were added to it."""
    if isinstance(local, LocalStore):
        return Pins(local), SourceCache(local)
    from holdfast.storage.kubo.kubo_pins import KuboPins

    return KuboPins(local), None


def _fetcher(settings: Settings, routing: Routing | None = None) -> Fetcher:
    def providers() -> Sequence[Provider]:
        return [*_configured(settings), *read_peers(settings.home)]

    return Fetcher(
        providers,
        timeout_s=settings.fetch.timeout_s,
        concurrency=settings.fetch.concurrency,
        routing=routing,
    )


def _configured(settings: Settings) -> list[Provider]:
    return [Provider(url.rstrip("/")) for url in settings.fetch.providers]


@contextmanager
def open_collector(settings: Settings) -> Iterator[Collector]:
    """What collects the garbage of a home."""
    with open_local(settings) as local:
        yield Collector(local, Pins(local), grace_s=settings.storage.grace_s)


def check_home(
    settings: Settings, *, repair: bool = False, progress: Callable[[int], object] | None = None
) -> Report:
    """Hash everything that a home has; see :func:`holdfast.storage.local.fsck.check`.

    Args:
        settings: Of the home.
        repair: Get right blocks for bad ones from its peers.
        progress: Told how many more bytes were hashed.
    """
    with open_local(settings) as local, closing(_fetcher(settings)) as fetcher:
        return check(local, Pins(local), fetch=fetcher.fetch if repair else None, progress=progress)


@dataclass(frozen=True, slots=True)
class PeerState:
    """Somebody whom a home asks for blocks."""

    url: str
    source: str
    """Who named it: ``cluster`` or ``settings``."""
    answers: bool


def peers_of(settings: Settings) -> list[PeerState]:
    """Whom a home asks for blocks, each asked just now whether it is there."""
    known = [(provider, "settings") for provider in _configured(settings)]
    known += [(provider, "cluster") for provider in read_peers(settings.home)]
    probe = Cid(bytes((1, RAW, 0, 0)))  # the empty block, inside its own name: every gateway has it

    def asked(peer: tuple[Provider, str]) -> PeerState:
        provider, source = peer
        connection = BlockConnection(provider)
        try:
            connection.get(probe, timeout_s=_PROBE_S, buffers=BufferPool(0))
            answers = True
        except Unavailable:
            answers = False
        except HoldfastError:
            answers = True  # it is there, though it has its own view of the empty block
        finally:
            connection.close()
        return PeerState(provider.url, source, answers)

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(asked, known))


def write_peers(
    home: Path, urls: Sequence[str], *, master: str = "", node_id: str = "", node_url: str = ""
) -> None:
    """Note what every process that opens this home should know of the cluster.

    Args:
        home: Of this node.
        urls: Block servers of the other nodes.
        master: Where to ask who has what; empty if nobody is to be asked.
        node_id: The name of this node in the cluster; empty for one that serves nothing.
        node_url: The block server of this node, as the others reach it.
    """
    known = {"urls": list(urls), "master": master, "node": {"id": node_id, "url": node_url}}
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f".{_PEERS}.{secrets.token_hex(4)}.part"
    partial.write_text(json.dumps(known), encoding="utf-8")
    partial.rename(home / _PEERS)


def read_cluster(home: Path) -> Cluster:
    """What the home knows of the cluster that it belongs to; nothing for a home on its own."""
    try:
        known = json.loads((home / _PEERS).read_text(encoding="utf-8"))
        node = known.get("node", {})  # homes of earlier versions know their peers only
        peers, master = tuple(map(str, known["urls"])), str(known.get("master", ""))
        node_id, node_url = str(node.get("id", "")), str(node.get("url", ""))
    except FileNotFoundError:
        return Cluster()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            f"{home / _PEERS} can't be read: {error}; remove it and join the cluster again"
        ) from error
    try:
        token = read_token(home / "token")
    except HoldfastError:
        token = None
    return Cluster(peers=peers, master=master, node_id=node_id, node_url=node_url, token=token)


def read_peers(home: Path) -> list[Provider]:
    """The other nodes of the cluster that this home belongs to; none for a home on its own."""
    cluster = read_cluster(home)
    return [Provider(url, cluster.token) for url in cluster.peers]
