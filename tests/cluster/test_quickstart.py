"""The main job, as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

DIGITS = "bafyreih3phjsi2kgsdi5firhivrsrqx4je7iihl4ogzm2vtkvn2lgas7ku"


def scratch() -> set[str]:
    """Temporary folders of ours that exist now."""
    folders = (tempfile.gettempdir(), "/tmp")
    return {
        path.name
        for folder in folders
        for path in Path(folder).iterdir()
        if path.name.startswith(("holdfast-", "hf-ray-"))
    }


def relatives(pid: int) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(pid).children(recursive=True)
    return found


@pytest.mark.timeout(280)
def test_the_main_job_works_end_to_end_and_leaves_nothing():
    before = scratch()
    done = subprocess.run(
        [sys.executable, "-m", "holdfast.cluster.cli", "quickstart", "--json"],
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["dataset"] == DIGITS
    assert summary["accuracy"] >= 0.95
    assert 0 <= summary["max_difference"] < 1e-3
    assert summary["requests_right"] >= 0.9 * summary["requests"]
    # The digit itself is in the corpus, so it is its own nearest neighbour; most others must be its like.
    assert summary["neighbour_labels"].count(summary["neighbours_of"]) >= 4
    # So few rows are one row group, of which each worker reads its part: both pulled the 131 kB, and the audit those and
    # the model.
    assert len(summary["bytes_pulled_by_workers"]) == 2
    assert all(120_000 < size < 160_000 for size in summary["bytes_pulled_by_workers"])
    assert 250_000 < summary["bytes_pulled_to_verify"] < 350_000
    assert "BAD" not in done.stderr
    for cid in ("run", "model", "conversion", "index"):
        assert summary[cid].startswith("bafyrei")
    assert scratch() <= before


@pytest.mark.timeout(240)
@pytest.mark.parametrize("marker", ["[1/8]", "worker-1  ", pytest.param("epoch 0", marks=pytest.mark.slow)])
def test_ctrl_c_at_any_step_stops_everything(marker: str, tmp_path: Path):
    before = scratch()
    log = tmp_path / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "holdfast.cluster.cli", "quickstart"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    for _ in range(2000):
        if marker in log.read_text(errors="replace"):
            break
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"the quickstart ended early: {log.read_text()}")
    family = relatives(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    _, left = psutil.wait_procs(family, timeout=5)
    assert not left
    text = log.read_text()
    assert "Traceback" not in text
    assert text.rstrip().endswith("interrupted")
    assert scratch() <= before
