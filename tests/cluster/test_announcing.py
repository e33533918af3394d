"""What nodes tell the master of roots, and what it answers to those who ask for providers."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from holdfast.cluster.worker import Worker
from holdfast.config import load_settings, token_for
from holdfast.errors import Denied, InvalidInput, NotFound
from holdfast.http_client import HttpClient
from holdfast.storage.cid import Cid
from holdfast.storage.exchange.peer_id import peer_id_of
from holdfast.storage.exchange.routing import RoutingClient
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.opening import open_store, read_cluster

from .conftest import listening_master

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anyio.from_thread import BlockingPortal

    from holdfast.cluster.master import Master

CID = Cid.of(b"a root")
TIMEOUT_S = 20.0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Master, BlockingPortal]]:
    with listening_master(tmp_path / "master") as started:
        yield started


@pytest.fixture
def master(running: tuple[Master, BlockingPortal]) -> Master:
    return running[0]


@pytest.fixture
def api(master: Master) -> HttpClient:
    return HttpClient(master.url, master.token)


def join(api: HttpClient, name: str, url: str, **more: Any) -> None:
    body = {"id": name, "url": url, "host": "127.0.0.1", "num_cpus": 1, "peer_id": f"12D3KooW{name}", **more}
    api.post("/api/v0/nodes", body)


def routed(master: Master, cid: str, accept: str | None = None) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of a routing request, as any other program would make it."""
    connection = http.client.HTTPConnection(urlsplit(master.url).netloc, timeout=TIMEOUT_S)
    with closing(connection):
        headers = {"Authorization": f"Bearer {master.token}"} | ({"Accept": accept} if accept else {})
        connection.request("GET", f"/routing/v1/providers/{cid}", headers=headers)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()


def test_an_announced_root_is_found_as_the_specification_wants_it(master: Master, api: HttpClient) -> None:
    join(api, "w1", "http://127.0.0.1:7001")
    assert api.post("/api/v0/providers", {"node": "w1", "cids": [str(CID)]})["ttl_s"] > 0
    status, headers, body = routed(master, str(CID))
    expected = {
        "Schema": "peer",
        "ID": "12D3KooWw1",
        "Addrs": ["/ip4/127.0.0.1/tcp/7001/http"],
        "Protocols": ["transport-ipfs-gateway-http"],
    }
    assert (status, json.loads(body)) == (200, {"Providers": [expected]})
    assert headers["Content-Type"].startswith("application/json")
    assert headers["Cache-Control"].startswith("public, max-age=")
    status, headers, body = routed(master, str(CID), "application/x-ndjson")
    assert (status, [json.loads(line) for line in body.splitlines()]) == (200, [expected])
    assert headers["Content-Type"].startswith("application/x-ndjson")


@pytest.mark.parametrize(("accept", "body"), [(None, '{"Providers": []}'), ("application/x-ndjson", "")])
def test_what_nobody_announced_is_an_empty_list_and_no_error(master: Master, accept: str, body: str) -> None:
    assert routed(master, str(CID), accept)[::2] == (200, body)


def test_what_is_no_cid_is_422_as_the_specification_wants_it(master: Master) -> None:
    status, _, body = routed(master, "nonsense")
    assert status == 422
    assert "nonsense" in json.loads(body)["error"]


def test_nodes_that_still_fetch_come_last_and_say_so(master: Master, api: HttpClient) -> None:
    for number, partial in ((1, True), (2, False)):
        join(api, f"w{number}", f"http://127.0.0.1:700{number}")
        api.post("/api/v0/providers", {"node": f"w{number}", "cids": [str(CID)], "partial": partial})
    found = RoutingClient(master.url, token=master.token).providers(CID)
    assert [(each.url[-4:], each.partial) for each in found] == [("7002", False), ("7001", True)]


def test_nodes_that_left_or_are_not_heard_of_are_not_named(master: Master, api: HttpClient) -> None:
    for number in (1, 2):
        join(api, f"w{number}", f"http://127.0.0.1:700{number}")
        api.post("/api/v0/providers", {"node": f"w{number}", "cids": [str(CID)]})
    api.delete("/api/v0/nodes/w1")
    master.members.get("w2").seen -= 1000
    assert master.providers_of(CID) == []
    api.post("/api/v0/nodes/w2/heartbeat", {"blocks": 0, "bytes": 0})
    assert len(master.providers_of(CID)) == 1


def test_strangers_can_neither_announce_nor_ask(master: Master, api: HttpClient) -> None:
    stranger = HttpClient(master.url)
    for path in (f"/routing/v1/providers/{CID}", "/api/v0/providers"):
        with pytest.raises(Denied):
            stranger.get(path)
    with pytest.raises(Denied):
        stranger.post("/api/v0/providers", {"node": "master", "cids": []})
    with pytest.raises(NotFound, match="has not joined"):
        api.post("/api/v0/providers", {"node": "nobody", "cids": [str(CID)]})
    with pytest.raises(NotFound, match="has not joined"):
        api.get("/api/v0/providers", node="nobody")


@pytest.mark.parametrize(
    "body",
    [
        {"node": "master", "cids": "x"},
        {"node": "master", "cids": ["x"]},
        {"node": "master", "cids": [1]},
        {"node": 1, "cids": []},
        {"node": "master"},
    ],
)
def test_a_broken_announcement_is_refused_whole(
    master: Master, api: HttpClient, body: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput):
        api.post("/api/v0/providers", body)
    assert len(master.providers) == 0


def test_a_node_with_an_address_that_is_none_can_not_join(api: HttpClient) -> None:
    with pytest.raises(InvalidInput, match="address"):
        join(api, "w1", "nowhere")


def test_what_the_master_itself_pins_is_announced_and_renewed_while_it_is_there(master: Master) -> None:
    with open_store(master.settings) as store:
        kept = store.add_bytes(b"kept")
        assert store.blocks.fetcher.routing.flush(TIMEOUT_S)  # type: ignore[attr-defined]
    master.providers.announce("master", [CID])  # which is not there
    (found,) = RoutingClient(master.url, token=master.token).providers(kept)
    assert found.url == master.url
    before = master.providers._entries[kept.multihash, "master"].until
    master.renew()
    assert master.providers._entries[kept.multihash, "master"].until > before


def test_a_worker_renews_what_it_still_has(
    running: tuple[Master, BlockingPortal], api: HttpClient, tmp_path: Path
) -> None:
    master, portal = running
    home = tmp_path / "worker"
    token_for(home, master.token)
    settings = load_settings(home)

    async def make() -> Worker:
        return Worker(settings, master_url=master.url, token=master.token)

    worker = portal.call(make)
    try:
        worker.url = "http://127.0.0.1:9"
        portal.call(worker._join)
        cluster = read_cluster(home)
        assert (cluster.master, cluster.node_id, cluster.node_url) == (master.url, worker.id, worker.url)
        assert master.members.get(worker.id).peer_id == peer_id_of(home)
        with open_store(settings) as store:  # any process that opens this home
            kept = store.add_bytes(b"kept")
            assert store.blocks.fetcher.routing.flush(TIMEOUT_S)  # type: ignore[attr-defined]
        api.post(
            "/api/v0/providers", {"node": worker.id, "cids": [str(CID)]}
        )  # which it has not got any more
        (record,) = master.providers_of(kept)
        assert record["ID"] == peer_id_of(home)
        before = {cid: master.providers._entries[cid.multihash, worker.id].until for cid in (kept, CID)}
        portal.call(worker._beat)
        after = {cid: master.providers._entries[cid.multihash, worker.id].until for cid in (kept, CID)}
        assert after[kept] > before[kept]
        assert after[CID] == before[CID]
    finally:
        portal.call(worker.aclose)


def test_a_fetch_of_one_node_is_answered_by_the_node_that_announced(
    running: tuple[Master, BlockingPortal], tmp_path: Path
) -> None:
    """From a home whose note names no peers: the block server of the master is found through its announcement."""
    master, _ = running
    with open_store(master.settings) as store:
        root = store.add_bytes(bytes(3 << 20))
        assert store.blocks.fetcher.routing.flush(TIMEOUT_S)  # type: ignore[attr-defined]
    home = tmp_path / "other"
    token_for(home, master.token)
    (home / "peers.json").write_text(json.dumps({"urls": [], "master": master.url, "node": {}}))
    with open_store(home) as store:
        assert store.open(root) == bytes(3 << 20)
    with closing(LocalStore(home / "blocks")) as blocks:
        assert blocks.has(root)
