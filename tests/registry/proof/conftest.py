"""Two people with homes of their own, who look at the same store."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from holdfast.registry import Signatures
from holdfast.registry.proof import KeyRing, SqliteAttestations

if TYPE_CHECKING:
    from pathlib import Path

    from holdfast.registry import Database
    from holdfast.storage.content import ContentStore


@pytest.fixture
def attestations(database: Database, store: ContentStore) -> SqliteAttestations:
    return SqliteAttestations(database, store)


@pytest.fixture
def alice(store: ContentStore, attestations: SqliteAttestations, tmp_path: Path) -> Signatures:
    return Signatures(store, attestations, KeyRing(tmp_path / "alice"))


@pytest.fixture
def bob(store: ContentStore, attestations: SqliteAttestations, tmp_path: Path) -> Signatures:
    return Signatures(store, attestations, KeyRing(tmp_path / "bob"))
