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
    from holdfast.storage.datasets.dataset import Dataset, open_dataset, store_dataset
    from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
    from holdfast.storage.exchange.gateway_store import GatewayStore
    from holdfast.storage.exchange.routing import RoutingClient
    from holdfast.storage.formats.unixfs import PROFILES
    from holdfast.storage.kubo.kubo_store import KuboStore
    from holdfast.storage.loaders.batch_loader import BatchLoader
    from holdfast.storage.loaders.data_loader import IPFSDataLoader, ipfs_data_loader_context
    from holdfast.storage.loaders.ray_source import read_dataset
    from holdfast.storage.loaders.torch_dataset import TorchDataset
    from holdfast.storage.local.local_store import LocalStore
    from holdfast.storage.opening import get_block, open_store

_HOMES = {
    "PROFILES": "formats.unixfs",
    "BatchLoader": "loaders.batch_loader",
    "BlockStore": "block_store",
    "Cid": "cid",
    "ContentStore": "content",
    "Dataset": "datasets.dataset",
    "Fetcher": "exchange.fetcher",
    "FetchingStore": "exchange.fetcher",
    "GatewayStore": "exchange.gateway_store",
    "IPFSDataLoader": "loaders.data_loader",
    "KuboStore": "kubo.kubo_store",
    "LocalStore": "local.local_store",
    "Provider": "exchange.fetcher",
    "RoutingClient": "exchange.routing",
    "Stat": "content",
    "TorchDataset": "loaders.torch_dataset",
    "VerifyingStore": "block_store",
    "get_block": "opening",
    "ipfs_data_loader_context": "loaders.data_loader",
    "open_dataset": "datasets.dataset",
    "open_store": "opening",
    "read_dataset": "loaders.ray_source",
    "store_dataset": "datasets.dataset",
}
_ONE_FLOOR_UP = {"DatasetManager": "holdfast.registry.dataset_manager"}
"""Datasets by name are looked for here, but names live in the registry. Nothing on this floor may use what is listed."""

__all__ = [
    "PROFILES",
    "BatchLoader",
    "BlockStore",
    "Cid",
    "ContentStore",
    "Dataset",
    "DatasetManager",
    "Fetcher",
    "FetchingStore",
    "GatewayStore",
    "IPFSDataLoader",
    "KuboStore",
    "LocalStore",
    "Provider",
    "RoutingClient",
    "Stat",
    "TorchDataset",
    "VerifyingStore",
    "get_block",
    "ipfs_data_loader_context",
    "open_dataset",
    "open_store",
    "read_dataset",
    "store_dataset",
]


def __getattr__(name: str) -> Any:
    # Imported at first use: pyarrow and aiohttp take longer to load than most commands run.
    if name in _HOMES:
        return getattr(importlib.import_module(f"holdfast.storage.{_HOMES[name]}"), name)
    if name in _ONE_FLOOR_UP:
        return getattr(importlib.import_module(_ONE_FLOOR_UP[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
