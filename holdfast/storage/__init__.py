"""The ground floor: bytes by CID.

``open_store(home)`` gives a :class:`ContentStore`: files, directories and records in the home's embedded block
store, verified when read, and fetched from other nodes where they are missing. Everything in it is plain IPFS: CIDv1,
UnixFS, DAG-CBOR, and the Trustless Gateway protocol between nodes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast.storage.block_store import BlockStore, VerifyingStore
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore, Stat
    from holdfast.storage.dataset import Dataset, open_dataset, store_dataset
    from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
    from holdfast.storage.exchange.gateway_store import GatewayStore
    from holdfast.storage.exchange.routing import RoutingClient
    from holdfast.storage.formats.unixfs import PROFILES
    from holdfast.storage.kubo.kubo_store import KuboStore
    from holdfast.storage.loader import iter_batches
    from holdfast.storage.local.local_store import LocalStore
    from holdfast.storage.opening import open_store

_HOMES = {
    "PROFILES": "formats.unixfs",
    "BlockStore": "block_store",
    "Cid": "cid",
    "ContentStore": "content",
    "Dataset": "dataset",
    "Fetcher": "exchange.fetcher",
    "FetchingStore": "exchange.fetcher",
    "GatewayStore": "exchange.gateway_store",
    "KuboStore": "kubo.kubo_store",
    "LocalStore": "local.local_store",
    "Provider": "exchange.fetcher",
    "RoutingClient": "exchange.routing",
    "Stat": "content",
    "VerifyingStore": "block_store",
    "iter_batches": "loader",
    "open_dataset": "dataset",
    "open_store": "opening",
    "store_dataset": "dataset",
}

__all__ = [
    "PROFILES",
    "BlockStore",
    "Cid",
    "ContentStore",
    "Dataset",
    "Fetcher",
    "FetchingStore",
    "GatewayStore",
    "KuboStore",
    "LocalStore",
    "Provider",
    "RoutingClient",
    "Stat",
    "VerifyingStore",
    "iter_batches",
    "open_dataset",
    "open_store",
    "store_dataset",
]


def __getattr__(name: str) -> Any:
    # Imported at first use: pyarrow and aiohttp take longer to load than most commands run.
    if name in _HOMES:
        return getattr(importlib.import_module(f"holdfast.storage.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
