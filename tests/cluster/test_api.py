"""The master's JSON API on a real socket, without Ray: what strangers may send, and what they get."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest

import holdfast
from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound, Unavailable
from holdfast.http_client import HttpClient
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.formats.car import car_frames
from holdfast.storage.formats.dag_cbor import encode

from .conftest import listening_master

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from holdfast.cluster.master import Master


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A master that listens; its Ray is not started."""
    with listening_master(tmp_path / "master") as (made, _):
        yield made


@pytest.fixture
def api(master: Master) -> HttpClient:
    return HttpClient(master.url, master.token)


def raw(master: Master, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
    """Status and JSON of a request that no client of ours would send."""
    connection = http.client.HTTPConnection(master.url.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {master.token}"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def record(value: Any) -> tuple[Cid, bytes]:
    data = encode(value)
    return Cid.of(data, DAG_CBOR), data


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"kind": "model"}', b"\xff\xfe"])
def test_a_body_that_is_not_the_json_it_must_be_is_a_400(master, body):
    status, answer = raw(master, "POST", "/api/v0/names", body)
    assert status == 400
    assert answer["code"] == "invalid_input"


def test_a_number_that_is_not_json_is_refused(master, api):
    status, answer = raw(master, "POST", "/api/v0/runs/x/events", b'{"type": "report", "loss": NaN}')
    assert (status, answer["code"]) == (400, "invalid_input")
    assert "NaN" in answer["error"]
    json.dumps(api.get("/api/v0/status"), allow_nan=False)


def test_an_unknown_path_and_a_wrong_method_are_told_in_json(master):
    assert raw(master, "GET", "/api/v0/nothing")[0] == 404
    assert raw(master, "DELETE", "/api/v0/status")[0] == 405


def test_blocks_sent_as_a_car_are_there_and_are_not_asked_for_again(api):
    blocks = [record({"number": number, "padding": bytes(10_000)}) for number in range(300)]
    cids = [str(cid) for cid, _ in blocks]
    assert api.post("/api/v0/blocks/missing", {"cids": cids})["missing"] == cids
    answer = api.post("/api/v0/car", car_frames([blocks[0][0]], blocks))
    assert answer == {"blocks": 300, "new_bytes": sum(len(data) for _, data in blocks)}
    assert api.post("/api/v0/blocks/missing", {"cids": cids})["missing"] == []
    assert api.post("/api/v0/car", car_frames([], blocks))["new_bytes"] == 0


def test_a_car_with_a_wrong_block_stores_nothing_of_its_batch(master, api):
    good, wrong = record("good"), (record("right")[0], b"wrong")
    with pytest.raises(Corrupt, match=str(wrong[0])):
        api.post("/api/v0/car", car_frames([], [good, wrong]))
    assert not master.blocks.has(good[0])
    with pytest.raises(Corrupt):
        api.post("/api/v0/car", [b"this is no CAR"])


def test_names_over_http_are_the_names_of_the_master(master, api):
    cid, data = record({"kind": "model", "fake": False})
    api.post("/api/v0/car", car_frames([cid], [(cid, data)]))
    entry = api.post("/api/v0/names", {"kind": "model", "name": "m", "version": None, "cid": str(cid)})
    assert (entry["version"], entry["cid"]) == ("1.0.0", str(cid))
    alias = {"kind": "model", "name": "m", "alias": "champion", "version": "1.0.0", "expected": None}
    assert api.post("/api/v0/aliases", alias)["aliases"] == ["champion"]
    with pytest.raises(Conflict, match="look again before you move it"):
        api.post("/api/v0/aliases", {**alias, "expected": None})
    assert api.get("/api/v0/names/resolve", kind="model", ref="m@champion")["cid"] == str(cid)
    assert master.names.resolve("model", "m").cid == cid
    with pytest.raises(NotFound):
        api.get("/api/v0/names/resolve", kind="model", ref="other")
    with pytest.raises(InvalidInput, match="needs the query arguments ref"):
        api.get("/api/v0/names/resolve", kind="model")


def test_a_new_version_of_a_large_dataset_does_not_bring_all_of_it_to_the_client(master, tmp_path):
    with holdfast.connect(master.url, home=tmp_path / "writer", token=master.token) as writer:
        data = {"x": list(range(5000))}
        parent = writer.datasets.store_dataset(data, name="numbers", chunk_size=128)
        first = [shard.cid for shard in parent.shards("train")]
    assert len(first) > 8
    with holdfast.connect(master.url, home=tmp_path / "client", token=master.token) as client:
        child = client.datasets.append("numbers", {"x": [5000]}, name="numbers")
        here = [cid for cid in first if client.store.blocks.has(cid)]
        assert here == first[-1:]
        assert client.datasets.resolve("numbers:1.1.0") == child.cid
    assert {cid for cid, _ in master.store.walk(child.cid)} > {*first, child.cid, parent.cid}
    for missing in (first[3], parent.summaries["train"].lists[0]):
        with holdfast.connect(master.url, home=tmp_path / f"{missing}", token=master.token) as client:
            kept = client.store.put_record({"kind": "dataset", "link": missing, "other": Cid.of(b"nowhere")})
            with pytest.raises(NotFound):
                client.backend.publish(kept)


def test_a_client_removes_names_from_the_master_and_the_history_says_so(master, tmp_path):
    with holdfast.connect(master.url, home=tmp_path / "client", token=master.token) as client:
        names = client.names
        cids = [client.datasets.store_dataset({"x": [number]}, name="rows of May").cid for number in (1, 2)]
        names.set_alias("dataset", "rows of May", "best", "1.0.0")
        (gone,) = names.unregister("dataset", "rows of May", "1.0.0")
        assert (gone.cid, gone.aliases) == (cids[0], ("best",))
        with pytest.raises(NotFound, match=r"rows of May has :1\.1\.0"):
            names.unregister("dataset", "rows of May", "1.0.0")
        assert [entry.cid for entry in names.unregister("dataset", "rows of May")] == [cids[1]]
        assert names.entries() == []
    assert [commit.change["op"] for commit in master.names.history()[:2]] == ["unregister"] * 2
    for path in ("/api/v0/names", "/api/v0/names?kind=dataset", "/api/v0/names?name=d"):
        assert raw(master, "DELETE", path)[0] == 400
    connection = http.client.HTTPConnection(master.url.removeprefix("http://"), timeout=10)
    connection.request("DELETE", "/api/v0/names?kind=dataset&name=d")
    assert connection.getresponse().status == 401
    connection.close()


def test_a_worker_joins_beats_and_leaves(master, api):
    body = {"id": "w1", "url": "http://127.0.0.1:1", "host": "127.0.0.1", "num_cpus": 2}
    joined = api.post("/api/v0/nodes", body)
    assert joined["ray_address"] == master.ray.address
    assert joined["peers"] == [master.url]
    assert joined["node_ip"].startswith("127.")
    assert joined["node_ip"] != master.ray.node_ip
    second = api.post("/api/v0/nodes", {**body, "id": "w2", "url": "http://127.0.0.1:2"})
    assert second["node_ip"] != joined["node_ip"]
    assert second["peers"] == [master.url, "http://127.0.0.1:1"]
    assert api.post("/api/v0/nodes", body)["node_ip"] == joined["node_ip"]
    assert api.post("/api/v0/nodes/w1/heartbeat", {"blocks": 7, "bytes": 70})["peers"][0] == master.url
    node = next(n for n in api.get("/api/v0/status")["nodes"] if n["id"] == "w1")
    assert (node["blocks"], node["bytes"], node["alive"]) == (7, 70, True)
    with pytest.raises(NotFound, match="has not joined"):
        api.post("/api/v0/nodes/stranger/heartbeat", {"blocks": 0, "bytes": 0})
    api.delete("/api/v0/nodes/w1")
    assert "w1" not in {n["id"] for n in api.get("/api/v0/status")["nodes"]}


@pytest.mark.parametrize(
    "change", [{"num_cpus": 0}, {"num_cpus": "2"}, {"num_cpus": True}, {"id": ""}, {"url": None}]
)
def test_a_worker_that_can_not_be_is_refused(api, change):
    body = {"id": "w1", "url": "http://127.0.0.1:1", "host": "127.0.0.1", "num_cpus": 2}
    with pytest.raises(InvalidInput):
        api.post("/api/v0/nodes", {**body, **change})


def test_a_run_without_its_blocks_or_without_room_is_refused(api):
    code, data = record({"kind": "code"}), record({"kind": "dataset"})
    spec = {
        "code": str(code[0]),
        "data": str(data[0]),
        "config": {},
        "seed": 0,
        "workers": 1,
        "threads_per_worker": 1,
    }
    with pytest.raises(NotFound, match="send it first"):
        api.post("/api/v0/runs", spec)
    api.post("/api/v0/car", car_frames([], [code, data]))
    with pytest.raises(Unavailable, match="room for 0"):
        api.post("/api/v0/runs", spec)
    with pytest.raises(InvalidInput):
        api.post("/api/v0/runs", {**spec, "unknown": 1})
    assert api.get("/api/v0/runs") == []
    for path in ("/api/v0/runs/none", "/api/v0/runs/none/events"):
        with pytest.raises(NotFound, match="none"):
            api.get(path)


def test_the_token_is_asked_for_everywhere(master):
    stranger = HttpClient(master.url)
    for path in ("/api/v0/status", "/api/v0/names", "/metrics", f"/ipfs/{Cid.of(b'')}?format=raw"):
        with pytest.raises(Denied):
            stranger.get(path)
    assert stranger.get("/healthz") == {"status": "ok"}


def test_an_embedded_client_may_use_the_masters_home_beside_it(master, tmp_path):
    with holdfast.connect(home=tmp_path / "master") as client:
        cid = client.store.put_record({"kind": "dataset", "by": "somebody else"})
    assert master.blocks.has(cid)
