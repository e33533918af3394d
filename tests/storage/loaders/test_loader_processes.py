"""Workers as real processes over one home and one peer: one is killed, and goes on in another process."""

import json
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.loaders.pipeline.order import EpochOrder
from holdfast.storage.local.local_store import LocalStore

ROWS = 40_000
WORKER = Path(__file__).with_name("one_worker.py")


@pytest.mark.slow
def test_a_killed_worker_goes_on_where_it_was_and_no_row_is_lost_or_seen_twice(tmp_path, start_node):
    with closing(LocalStore(tmp_path / "other")) as other:
        values = np.random.default_rng(0).standard_normal((ROWS, 16), dtype=np.float32)
        table = pa.table({"id": np.arange(ROWS), **{f"c{n}": values[:, n] for n in range(16)}})
        made = store_dataset(ContentStore(other), table, chunk_size=64 << 10)
        node = start_node(other)
        running: list[subprocess.Popen[str]] = []

        def start(rank, *, state=None, pause_at=-1):
            task = {
                "home": str(tmp_path / "home"),
                "node": node.url,
                "dataset": str(made.cid),
                "rank": rank,
                "world_size": 2,
                "state": state,
                "pause_at": pause_at,
                "out": str(tmp_path / f"rank{rank}.jsonl"),
            }
            process = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            running.append(process)
            return process

        def lines(rank):
            return [json.loads(line) for line in (tmp_path / f"rank{rank}.jsonl").read_text().splitlines()]

        try:
            first, second = start(0), start(1, pause_at=150)
            assert second.stdout is not None
            assert second.stdout.readline() == "paused\n"
            second.kill()
            assert second.wait(60) == -signal.SIGKILL
            before = lines(1)
            assert len(before) == 151
            third = start(1, state=before[-1]["state"])
            assert first.wait(100) == third.wait(100) == 0
        finally:
            for process in running:
                process.kill()
                process.wait(60)
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()
        order = EpochOrder(
            [[group.rows for group in shard.groups] for shard in made.shards("train")],
            seed=3,
            epoch=0,
            shuffle=True,
        ).rows_at(np.arange(ROWS))
        for rank in range(2):
            seen = [each for line in lines(rank) for each in line["ids"]]
            np.testing.assert_array_equal(seen, order[rank::2])
