"""How the stores of a home are put together: local, then verified, then fetched from peers."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

from holdfast.config import Settings, load_settings, read_token
from holdfast.errors import Corrupt, HoldfastError
from holdfast.storage.block_store import BlockStore, VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.local_store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["open_blocks", "open_local", "open_store", "read_peers", "write_peers"]

_PEERS = "peers.json"


def open_local(settings: Settings) -> LocalStore:
    """The home's own blocks as they lie on the disk."""
    return LocalStore(
        settings.home / "blocks",
        segment_size_bytes=settings.storage.segment_size_bytes,
        index_map_size_bytes=settings.storage.index_map_size_bytes,
    )


def open_blocks(settings: Settings) -> BlockStore:
    """The home's own blocks, verified when read as ``storage.verify`` says; nothing is fetched."""
    local = open_local(settings)
    if not settings.storage.verify:
        return local
    return VerifyingStore(local, source=f"the disk under {settings.home}")


def open_store(home: str | Path | Settings | None = None) -> ContentStore:
    """The content of a home, filled up from its peers: the cluster's nodes and ``fetch.providers``.

    Args:
        home: Folder, settings, or None for ``$HOLDFAST_HOME``.
    """
    settings = home if isinstance(home, Settings) else load_settings(home)

    def providers() -> Sequence[Provider]:
        return [*read_peers(settings.home), *(Provider(url.rstrip("/")) for url in settings.fetch.providers)]

    fetcher = Fetcher(providers, timeout_s=settings.fetch.timeout_s, concurrency=settings.fetch.concurrency)
    return ContentStore(FetchingStore(open_blocks(settings), fetcher), profile=settings.storage.profile)


def write_peers(home: Path, urls: Sequence[str]) -> None:
    """Note the other nodes of the cluster, for every process that opens this home."""
    home.mkdir(parents=True, exist_ok=True)
    partial = home / f".{_PEERS}.{secrets.token_hex(4)}.part"
    partial.write_text(json.dumps({"urls": list(urls)}), encoding="utf-8")
    partial.rename(home / _PEERS)


def read_peers(home: Path) -> list[Provider]:
    """The other nodes of the cluster that this home belongs to; none for a home on its own."""
    try:
        urls = json.loads((home / _PEERS).read_text(encoding="utf-8"))["urls"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(
            f"{home / _PEERS} can't be read: {error}; remove it and join the cluster again"
        ) from error
    try:
        token = read_token(home / "token")
    except HoldfastError:
        token = None
    return [Provider(url, token) for url in urls]
