"""The table of a home against plain dicts, opened anew now and then; and what it keeps in the store."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings

from holdfast.registry import Database, SqliteNames
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins
from tests.registry.names_machine import NamesMachine


class SqliteMachine(NamesMachine):
    def open_names(self):
        self.folder = tempfile.TemporaryDirectory()
        self.blocks = LocalStore(Path(self.folder.name) / "blocks")
        self.reopen_names()
        return self.names

    def reopen_names(self):
        if self.names is not None:
            self.names.close()
        database = Database(Path(self.folder.name) / "registry.db")
        self.names = SqliteNames(database, ContentStore(self.blocks, pins=Pins(self.blocks)))

    def close_names(self):
        self.names.close()
        self.blocks.close()
        self.folder.cleanup()

    def thing(self, kind, number):
        return Cid.of(f"{kind} {number}".encode())

    def holds_are_right(self, entries):
        held = {root.why: root.cid for root in Pins(self.blocks).roots()}
        named = {f"{entry.kind} {entry.name}:{entry.version}": entry.cid for entry in entries}
        commits = {f"commit {commit.cid}": commit.cid for commit in self.names.history()}
        assert held == named | commits


TestSqliteNamesModel = SqliteMachine.TestCase
TestSqliteNamesModel.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
