"""Two real workers over gloo on loopback: what they learn is what one would learn from all their rows."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load

from holdfast.registry import ModelRecord, load_record
from holdfast.training.job import _global_state_kept, run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from holdfast.registry import RunSpec
    from holdfast.storage.content import ContentStore
    from holdfast.training.job import Outcome

ONE_STEP = """
def train(context):
    model = Net()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.125)
    parallel = context.prepare(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (batch,) = context.batches("train", batch_size=64 // context.world_size)
    loss = ((parallel(batch["x"]) - batch["y"]) ** 2).mean()
    loss.backward()
    optimizer.step()
    context.report(
        loss=context.mean(loss.item()),
        rows=context.sum(len(batch["x"])),
        ranks=context.sum(10.0 ** context.rank),
        large=context.sum(2.0**53 / context.world_size),
    )
    return parallel
"""

WORKER = """
import json, os, sys
import torch.distributed
from datetime import timedelta
from pathlib import Path
from holdfast.registry import RunSpec
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.training.job import run_worker

job = json.loads(sys.stdin.read())
rank, world_size = job["rank"], job["world_size"]
torch.distributed.init_process_group(
    "gloo", init_method="file://" + job["meeting"], rank=rank, world_size=world_size, timeout=timedelta(seconds=40)
)
with LocalStore(Path(job["blocks"])) as blocks:
    spec = RunSpec.from_json(job["spec"])
    outcome = run_worker(spec, ContentStore(blocks), rank=rank, world_size=world_size, report=lambda _: None)
torch.distributed.destroy_process_group()
print(json.dumps(outcome and outcome.to_json()))
"""


@contextmanager
def second_worker(tmp_path: Path, spec: RunSpec) -> Iterator[None]:
    """Worker 1 in a process of its own, while this process is worker 0."""
    meeting = str(tmp_path / "meeting")
    job = {"spec": spec.to_json(), "rank": 1, "world_size": 2, "meeting": meeting}
    other = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdin is not None
        other.stdin.write(json.dumps(job | {"blocks": str(tmp_path / "home" / "blocks")}))
        other.stdin.close()
        other.stdin = None
        timeout = timedelta(seconds=60)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=0, world_size=2, timeout=timeout
        )
        try:
            yield
            out, errors = other.communicate(timeout=60)
        finally:
            torch.distributed.destroy_process_group()
        assert other.returncode == 0, errors
        assert out.splitlines()[-1] == "null", "only worker 0 brings an outcome"
    finally:
        other.kill()
        other.communicate()


def weights_of(store: ContentStore, outcome: Outcome) -> dict[str, torch.Tensor]:
    files = load_record(store, outcome.model, ModelRecord).files
    return dict(load(bytes(store.open(store.resolve(f"{files}/model.safetensors")))))


def test_two_workers_learn_what_one_would_from_all_the_rows(tmp_path, monkeypatch, store, spec_of):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    one, two = spec_of(ONE_STEP), spec_of(ONE_STEP, workers=2)
    with _global_state_kept():
        alone = run_worker(one, store, rank=0, world_size=1, report=lambda _: None)
        with second_worker(tmp_path, two):
            together = run_worker(two, store, rank=0, world_size=2, report=lambda _: None)
    assert alone is not None
    assert together is not None
    wanted, found = weights_of(store, alone), weights_of(store, together)
    assert wanted.keys() == found.keys() == {"line.weight", "line.bias"}, "no 'module.' of the wrapper in it"
    for name, value in wanted.items():
        # The mean of two means of 32 rows is that of 64 rows up to the order of float32 additions.
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
        assert not torch.equal(value, torch.full_like(value, 0.125)), "the step must have changed it"
    (report,) = together.history
    assert (report["rows"], report["ranks"], report["large"]) == (64.0, 11.0, 2.0**53)
    assert report["loss"] == pytest.approx(alone.history[0]["loss"], abs=1e-6)
