"""A home of its own for each test, and code that lives in files as users' code does."""

from __future__ import annotations

import importlib
import sys
import textwrap
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from holdfast.registry import Database, KeyRing, ModelRegistry, Signatures, SqliteNames
from holdfast.registry.proof import SqliteAttestations
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import ModuleType


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    with closing(LocalStore(tmp_path / "home" / "blocks")) as blocks:
        yield ContentStore(VerifyingStore(blocks, source="the disk"), pins=Pins(blocks))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "home" / "registry.db")) as opened:
        yield opened


@pytest.fixture
def names(database: Database, store: ContentStore) -> SqliteNames:
    return SqliteNames(database, store)


@pytest.fixture
def signatures(store: ContentStore, database: Database, tmp_path: Path) -> Signatures:
    """Of the home, with keys of its own."""
    return Signatures(store, SqliteAttestations(database, store), KeyRing(tmp_path / "home"))


@pytest.fixture
def registry(store: ContentStore, names: SqliteNames, signatures: Signatures) -> ModelRegistry:
    return ModelRegistry(store, names, signatures=signatures)


@pytest.fixture
def module_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes ``<name>.py`` where it can be imported; forgets the modules afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)

    def write(name: str, source: str) -> Path:
        path = folder / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source), encoding="utf-8")
        importlib.invalidate_caches()
        return path

    yield write
    for name in set(sys.modules) - before:
        module = sys.modules[name]
        if str(getattr(module, "__file__", None)).startswith(str(folder)) or name.startswith(
            "holdfast_code_"
        ):
            del sys.modules[name]


@pytest.fixture
def module(module_file: Callable[..., Path]) -> Callable[[str, str], ModuleType]:
    """Writes a module and imports it."""

    def make(name: str, source: str) -> ModuleType:
        module_file(name, source)
        return importlib.import_module(name)

    return make
