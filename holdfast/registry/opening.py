"""How the registry of a home is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.config import Settings, load_settings
from holdfast.registry.compute.compute_cache import ComputeCache
from holdfast.registry.database import Database
from holdfast.registry.names import SqliteNames
from holdfast.registry.proof import NODE_KEY, KeyRing, Signatures, SqliteAttestations
from holdfast.storage.opening import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast.registry.proof import Attestations
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["open_compute_cache", "open_database", "open_registry", "open_signatures"]


def open_database(settings: Settings) -> Database:
    """The registry file of a home."""
    return Database(settings.home / "registry.db")


def open_registry(home: str | Path | Settings | None = None) -> tuple[ContentStore, SqliteNames]:
    """The content and the names of a home."""
    settings = home if isinstance(home, Settings) else load_settings(home)
    store = open_store(settings)
    return store, SqliteNames(open_database(settings), store)


def open_signatures(
    settings: Settings, store: ContentStore, attestations: Attestations | None = None
) -> Signatures:
    """Who signed what, with the keys and the policy of a home.

    Args:
        settings: Of the home.
        store: Where records are.
        attestations: Where they are found; default: in the home's own registry.
    """
    found = attestations or SqliteAttestations(open_database(settings), store)
    return Signatures(store, found, KeyRing(settings.home), required=settings.registry.require_signed_by)


def open_compute_cache(
    settings: Settings, store: ContentStore, database: Database, attestations: Attestations
) -> ComputeCache:
    """The compute cache of a home: what it remembers is signed with the node's key, and answers only with a right signature.

    Args:
        settings: Of the home.
        store: Where results are.
        database: The home's registry.
        attestations: Where signatures are found.
    """
    signatures = open_signatures(settings, store, attestations)

    def is_signed(claim: Cid, attestation: Cid | None) -> bool:
        """Whether a key that this home owns or trusts vouches for the claim."""
        found = signatures.of([claim]).get(claim, []) if attestation is not None else []
        return any(one.vouches and one.name is not None for one in found)

    return ComputeCache(
        database, store, signer=lambda claim: signatures.sign(claim, key=NODE_KEY), verifier=is_signed
    )
