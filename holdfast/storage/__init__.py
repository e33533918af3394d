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
    from holdfast.storage.fetcher import Fetcher, FetchingStore, Provider
    from holdfast.storage.kubo_store import KuboStore
    from holdfast.storage.loader import iter_batches
    from holdfast.storage.local_store import LocalStore
    from holdfast.storage.opening import open_store
    from holdfast.storage.unixfs import PROFILES

_HOMES = {
    "PROFILES": "unixfs",
    "BlockStore": "block_store",
    "Cid": "cid",
    "ContentStore": "content",
    "Dataset": "dataset",
    "Fetcher": "fetcher",
    "FetchingStore": "fetcher",
    "KuboStore": "kubo_store",
    "LocalStore": "local_store",
    "Provider": "fetcher",
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
    "KuboStore",
    "LocalStore",
    "Provider",
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
