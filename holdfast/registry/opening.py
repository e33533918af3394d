"""How the registry of a home is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.config import Settings, load_settings
from holdfast.registry.database import Database
from holdfast.registry.names import SqliteNames
from holdfast.registry.proof import KeyRing, Signatures, SqliteAttestations
from holdfast.storage.opening import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast.registry.proof import Attestations
    from holdfast.storage.content import ContentStore

__all__ = ["open_database", "open_registry", "open_signatures"]


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
