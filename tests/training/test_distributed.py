"""Two real workers over gloo on loopback: what they learn is what one would learn from all their rows."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from holdfast.registry import RunSpec
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.training.job import _global_state_kept, run_worker

if TYPE_CHECKING:
    from pathlib import Path

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
from holdfast.storage.local_store import LocalStore
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


def run_workers(tmp_path: Path, spec: RunSpec, world_size: int) -> list[dict[str, object] | None]:
    """What each worker of a run printed, in processes of their own."""
    job = {
        "spec": spec.to_json(),
        "world_size": world_size,
        "blocks": str(tmp_path / "home" / "blocks"),
        "meeting": str(tmp_path / f"meeting-{world_size}"),
    }
    environment = {"GLOO_SOCKET_IFNAME": "lo", "PATH": "", "PYTHONWARNINGS": "ignore"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(world_size)
    ]
    try:
        for rank, process in enumerate(running):
            assert process.stdin is not None
            process.stdin.write(json.dumps(job | {"rank": rank}))
            process.stdin.close()
            process.stdin = None
        answers = []
        for process in running:
            out, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
            answers.append(json.loads(out.splitlines()[-1]))
    finally:
        for process in running:
            process.kill()
            process.wait()
    return answers


def weights_of(store: ContentStore, answer: dict[str, object]) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return dict(load(bytes(store.read(Cid.parse(str(answer["weights"]))))))


def test_two_workers_learn_what_one_would_from_all_the_rows(tmp_path, store, spec_of):
    one, two = spec_of(ONE_STEP), spec_of(ONE_STEP, workers=2)
    with _global_state_kept():
        outcome = run_worker(one, store, rank=0, world_size=1, report=lambda _: None)
    assert outcome is not None
    first, second = run_workers(tmp_path, two, 2)
    assert second is None, "only worker 0 brings an outcome"
    assert first is not None
    alone, together = weights_of(store, outcome.to_json()), weights_of(store, first)
    assert alone.keys() == together.keys() == {"line.weight", "line.bias"}, (
        "no 'module.' of the wrapper in it"
    )
    for name, value in alone.items():
        # The mean of two means of 32 rows is that of 64 rows up to the order of float32 additions.
        torch.testing.assert_close(together[name], value, rtol=0, atol=1e-6)
        assert not torch.equal(value, torch.full_like(value, 0.125)), "the step must have changed it"
    assert isinstance(first["history"], list)
    (report,) = first["history"]
    assert (report["rows"], report["ranks"], report["large"]) == (64.0, 11.0, 2.0**53)
    assert report["loss"] == pytest.approx(outcome.history[0]["loss"], abs=1e-6)
