"""The table of a home does what all names must do."""

from __future__ import annotations

import pytest

from holdfast.registry import SqliteNames
from tests.registry.names_conformance import NamesConformance


class TestSqliteNames(NamesConformance):
    @pytest.fixture
    def names(self, database, store):
        return SqliteNames(database, store, who="ann@laptop")

    @pytest.fixture
    def thing(self, store):
        return lambda number, kind="model": store.put_record({"kind": kind, "number": number})
