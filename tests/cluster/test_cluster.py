"""A cluster of real processes: what must hold across them."""

from __future__ import annotations

import json
import os
import signal
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

import holdfast
from holdfast.cluster.daemon import read_announcement
from holdfast.cluster.processes import stop
from holdfast.errors import Conflict, Denied, InvalidInput, NotFound, Unavailable
from holdfast.http_client import HttpClient
from holdfast.registry import ModelRecord, RunRecord, load_record

from .conftest import announced, cli_json, start_daemon, wait_for

if TYPE_CHECKING:
    from .conftest import Cluster

ROWS = 64


def numbers(seed: int = 0, rows: int = ROWS) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.random.default_rng(seed).normal(size=(rows, 3)).astype(np.float32)}


def fetched(events: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {event["rank"]: event["fetched"] for event in events if event["type"] == "worker_done"}


@pytest.mark.slow
def test_each_worker_pulls_its_share_and_the_sum_is_the_whole(cluster: Cluster, tmp_path: Path, user_code):
    events: list[dict[str, Any]] = []
    with cluster.connect(tmp_path / "client") as client:
        rows = 200_000  # 2.4 MB in about a hundred row groups
        data = client.datasets.store_dataset(numbers(rows=rows), chunk_size=24 << 10)
        whole = sum(shard.size_bytes for shard in data.shards("train"))
        config = {"batch_size": 1000, "epoch": 0}  # shuffled: in the stored order all workers read everything
        run = client.train(user_code.train, data.cid, config=config, workers=2, on_event=events.append)
        assert run.metrics == {"rows": rows, "mine": rows / 2, "world": 2}
        shares = fetched(events)
        for rank in (0, 1):
            # Half of the rows, the few row groups that it shares with the other, and what says where they are.
            assert whole * 0.5 <= shares[rank]["bytes"] < whole * 0.65
            assert shares[rank]["wrong_blocks"] == 0
        assert whole <= sum(share["bytes"] for share in shares.values())
        checkpoint = next(event["checkpoint"] for event in events if "checkpoint" in event)
        assert len(client.store.open(holdfast.Cid.parse(checkpoint))) > 0
        record = load_record(client.store, run.cid, RunRecord)
        assert (record.data, record.workers) == (data.cid, 2)
        assert load_record(client.store, run.model, ModelRecord).run == run.cid
        assert client.verify(run.model).ok


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_run_that_the_cluster_did_before_is_answered_by_its_master_and_starts_no_worker(
    cluster: Cluster, tmp_path: Path, user_code
):
    events: list[dict[str, Any]] = []
    with cluster.connect(tmp_path / "client") as client:
        data = client.datasets.store_dataset(numbers(7), chunk_size=64)
        first = client.train(user_code.train, data.cid, workers=2)
    with cluster.connect(tmp_path / "another client") as client:
        again = client.train(user_code.train, data.cid, workers=2, on_event=events.append)
        assert (again.cid, again.model, again.cached_from) == (first.cid, first.model, first.id)
        assert [event["type"] for event in events] == ["cached"]
        assert first.model in client.lineage(data.cid).nodes


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_same_run_twice_gives_the_same_cids(cluster: Cluster, tmp_path: Path, user_code):
    with cluster.connect(tmp_path / "client") as client:
        data = client.datasets.store_dataset(numbers(1), chunk_size=64)
        first, second = (
            client.train(user_code.train, data.cid, workers=2, use_cache=False) for _ in range(2)
        )
    assert first.id != second.id
    assert (first.cid, first.model) == (second.cid, second.model)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_failure_in_user_code_comes_back_in_its_own_words(cluster: Cluster, tmp_path: Path, user_code):
    with cluster.connect(tmp_path / "client") as client:
        data = client.datasets.store_dataset(numbers(2), chunk_size=64)
        with pytest.raises(InvalidInput, match=r"failed: ValueError: out of data \(.*\.py, line \d+\)$"):
            client.train(user_code.train, data.cid, workers=2, config={"fail": 1})
        failed = client.runs()[0]
        assert failed.state == "failed"
    log = (cluster.base / "master" / "logs" / f"{failed.id}.log").read_text()
    assert 'raise ValueError("out of data")' in log, "with the whole traceback of the worker"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_cancelled_run_stops_its_driver(cluster: Cluster, tmp_path: Path, user_code):
    http = HttpClient(cluster.url, cluster.token)
    failures: list[BaseException] = []
    with cluster.connect(tmp_path / "client") as client:
        data = client.datasets.store_dataset(numbers(3), chunk_size=64)

        def train() -> None:
            try:
                client.train(user_code.train, data.cid, workers=1, config={"sleep_s": 60})
            except Unavailable as error:
                failures.append(error)

        thread = threading.Thread(target=train)
        thread.start()

        def running() -> str:
            newest = http.get("/api/v0/runs")[0]
            assert newest["state"] == "running"
            return str(newest["id"])

        run = wait_for(running)
        http.post(f"/api/v0/runs/{run}/cancel")
        thread.join(30)
    assert not thread.is_alive()
    assert "cancelled" in str(failures[0])
    master = psutil.Process(cluster.daemons["master"].pid)
    drivers = [
        c for c in master.children(recursive=True) if "holdfast.training.ray_job" in " ".join(c.cmdline())
    ]
    assert not drivers
    with pytest.raises(Conflict, match="ended"):
        http.post(f"/api/v0/runs/{run}/cancel")


def test_a_run_that_can_never_start_is_refused_at_once(cluster: Cluster, tmp_path: Path, user_code):
    with cluster.connect(tmp_path / "client") as client:
        data = client.datasets.store_dataset(numbers(4))
        with pytest.raises(Unavailable, match=r"wants 9 workers.*holdfast worker --join"):
            client.train(user_code.train, data.cid, workers=9)


def test_names_and_versions_are_the_same_for_every_client(cluster: Cluster, tmp_path: Path):
    with cluster.connect(tmp_path / "a") as a, cluster.connect(tmp_path / "b") as b:
        stored = a.datasets.store_dataset(numbers(5), name="shared-name")
        loaded = b.datasets.load_dataset("shared-name")
        assert loaded.cid == stored.cid
        assert loaded.to_arrow().equals(stored.to_arrow())
        with pytest.raises(Conflict, match="never means two things"):
            b.datasets.store_dataset(numbers(6), name="shared-name", version="1.0.0")
        with pytest.raises(NotFound, match="no dataset named 'nowhere'"):
            b.datasets.load_dataset("nowhere")


def test_a_name_can_never_point_to_nothing(cluster: Cluster, tmp_path: Path):
    http = HttpClient(cluster.url, cluster.token)
    absent = holdfast.Cid.of(b"nobody has this", 0x71)
    body = {"kind": "model", "name": "ghost", "version": "1.0.0", "cid": str(absent)}
    with pytest.raises(NotFound, match=str(absent)):
        http.post("/api/v0/names", body)
    with cluster.connect(tmp_path / "client") as client:
        data = client.datasets.store_dataset(numbers(7))
        with pytest.raises(InvalidInput, match="is no model"):
            http.post("/api/v0/names", {**body, "cid": str(data.cid)})


def test_the_command_line_sees_what_the_client_stored(cluster: Cluster, tmp_path: Path):
    with cluster.connect(tmp_path / "client") as client:
        stored = client.datasets.store_dataset(numbers(8), name="for-the-cli")
    at = ("--address", cluster.url, "--token-file", str(cluster.base / "master" / "token"))
    status = cli_json("status", *at, "--home", str(tmp_path / "cli"))
    assert {node["role"] for node in status["nodes"]} == {"master", "worker"}
    assert [n["cid"] for n in status["names"] if n["name"] == "for-the-cli"] == [str(stored.cid)]
    source = tmp_path / "file.bin"
    source.write_bytes(os.urandom(3_000_000))
    cid = cli_json("add", str(source), *at, "--home", str(tmp_path / "cli"))["cid"]
    cli_json("get", cid, "-o", str(tmp_path / "back.bin"), *at, "--home", str(tmp_path / "another"))
    assert (tmp_path / "back.bin").read_bytes() == source.read_bytes()


def test_nothing_is_answered_without_the_token(cluster: Cluster, tmp_path: Path):
    with pytest.raises(Denied, match="token"):
        holdfast.connect(cluster.url, home=tmp_path / "client", token="0" * 64)
    worker = read_announcement(cluster.base / "worker-1")["url"]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for url in (f"{cluster.url}/api/v0/status", f"{cluster.url}/metrics", f"{worker}/metrics"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(url, timeout=5)
        assert refused.value.code == 401
        assert json.loads(refused.value.read())["code"] == "denied"
        refused.value.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_worker_is_noticed_and_another_can_take_its_place(cluster: Cluster, tmp_path: Path):
    http = HttpClient(cluster.url, cluster.token)
    token_file = str(cluster.base / "master" / "token")
    process = start_daemon(
        tmp_path, "extra", "worker", "--join", cluster.url, "--token-file", token_file, "--cpus", "1"
    )
    announced(tmp_path, "extra", process)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(http.get("/api/v0/status")["nodes"]) == 4
    process.send_signal(signal.SIGKILL)
    process.wait()

    def noticed() -> None:
        gone = [node for node in http.get("/api/v0/status")["nodes"] if not node["alive"]]
        assert len(gone) == 1

    wait_for(noticed, timeout_s=30)
    _, left = psutil.wait_procs(family, timeout=10)
    assert not left, f"Ray outlived its daemon: {left}"
    assert list(Path("/tmp").glob(f"hf-ray-{process.pid}-*"))
    another = start_daemon(
        tmp_path, "another", "worker", "--join", cluster.url, "--token-file", token_file, "--cpus", "1"
    )
    announced(tmp_path, "another", another)
    assert not list(Path("/tmp").glob(f"hf-ray-{process.pid}-*")), (
        "the next start cleans up after the killed one"
    )
    stop([another], grace_s=6.0)
