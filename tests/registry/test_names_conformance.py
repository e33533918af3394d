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


def test_who_made_a_change_is_one_line_that_can_be_shown(database, store):
    names = SqliteNames(database, store).by("ann\n2026-01-01 bob\x1b[2J" + "x" * 500)
    names.register("model", "m", None, store.put_record({"kind": "model"}))
    who = names.history()[0].who
    assert who.startswith("ann?2026-01-01 bob?[2J")
    assert who.isprintable()
    assert len(who) == 200
    SqliteNames(database, store).set_alias("model", "m", "champion", "1.0.0")
    assert "@" in names.history()[0].who, "user@host of this process"
