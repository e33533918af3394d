"""A master's names, asked over HTTP, do what all names must do."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from holdfast.cluster.remote import RemoteNames
from holdfast.errors import InvalidInput, NotFound
from holdfast.http_client import HttpClient
from tests.registry.names_conformance import NamesConformance
from tests.registry.names_machine import NamesMachine

from .conftest import listening_master

if TYPE_CHECKING:
    from collections.abc import Iterator

    from holdfast.cluster.master import Master


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    with listening_master(tmp_path / "master") as (made, _):
        yield made


@pytest.fixture
def http(master: Master) -> HttpClient:
    return HttpClient(master.url, master.token)


class TestRemoteNames(NamesConformance):
    @pytest.fixture
    def names(self, http):
        return RemoteNames(http, who="ann@laptop")

    @pytest.fixture
    def thing(self, master):
        return lambda number, kind="model": master.store.put_record({"kind": kind, "number": number})


def test_what_a_stranger_sends_is_refused_and_never_breaks_the_table(master, http):
    cid = str(master.store.put_record({"kind": "model"}))
    good = {"kind": "model", "name": "m", "version": None, "cid": cid}
    http.post("/api/v0/names", good)
    changes: list[dict[str, Any]] = [
        {"name": 5},
        {"kind": []},
        {"version": 1},
        {"cid": None},
        {"facts": [1]},
        {"who": {}},
    ]
    for change in changes:
        with pytest.raises(InvalidInput):
            http.post("/api/v0/names", {**good, **change})
    with pytest.raises(InvalidInput, match="is no dataset"):
        http.post("/api/v0/names", {**good, "kind": "dataset"})
    for path, body in {
        "names/search": {"unknown": 1},
        "names/search ": {"limit": [1]},
        "names/search  ": {"dataset": 5},
        "names/search   ": {"at": "yesterday"},
        "names/rename": {"kind": "model", "old": "m"},
        "tags": {"kind": "model", "name": "m", "version": "1.0.0", "key": "k", "value": 5},
        "aliases": {"kind": "model", "name": "m", "version": "1.0.0", "alias": "a", "expected": 5},
    }.items():
        with pytest.raises(InvalidInput):
            http.post(f"/api/v0/{path.strip()}", body)
    for path in ("names/resolve?kind=model", "names?at=x", "names/resolve?kind=model&ref=m&at=x"):
        with pytest.raises(InvalidInput):
            http.get(f"/api/v0/{path}")
    with pytest.raises(NotFound):
        http.delete("/api/v0/aliases?kind=model&name=m&alias=none")
    assert master.names.verify_history().commits == 1
    assert [entry.version for entry in master.names.entries()] == ["1.0.0"]


class RemoteMachine(NamesMachine):
    """The same names for all examples would be quicker, and would not be empty: each has a master of its own."""

    def open_names(self):
        self.running = ExitStack()
        folder = self.running.enter_context(tempfile.TemporaryDirectory())
        self.master, _ = self.running.enter_context(listening_master(Path(folder)))
        return RemoteNames(HttpClient(self.master.url, self.master.token))

    def reopen_names(self):
        self.names = RemoteNames(HttpClient(self.master.url, self.master.token))

    def close_names(self):
        self.running.close()

    def thing(self, kind, number):
        return self.master.store.put_record({"kind": kind, "number": number})


TestRemoteNamesModel = RemoteMachine.TestCase
TestRemoteNamesModel.settings = settings(max_examples=4, stateful_step_count=12, deadline=None)
