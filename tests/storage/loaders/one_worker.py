"""One worker of an epoch in a process of its own: writes what it got, and its state, line by line."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.exchange.fetcher import Fetcher, FetchingStore, Provider
from holdfast.storage.loaders.batch_loader import BatchLoader
from holdfast.storage.local.local_store import LocalStore


def main() -> None:
    task = json.loads(sys.argv[1])
    local = VerifyingStore(LocalStore(Path(task["home"])), source="the disk")
    fetcher = Fetcher(lambda: [Provider(task["node"])])
    with closing(FetchingStore(local, fetcher)) as blocks, Path(task["out"]).open("a") as out:
        dataset = open_dataset(ContentStore(blocks), Cid.parse(task["dataset"]))
        loader = BatchLoader(
            dataset, batch_size=64, shuffle=True, seed=3, rank=task["rank"], world_size=task["world_size"]
        )
        if task["state"] is not None:
            loader.load_state_dict(task["state"])
        for number, batch in enumerate(loader):
            out.write(json.dumps({"ids": batch["id"].tolist(), "state": loader.state_dict()}) + "\n")
            out.flush()
            if number == task["pause_at"]:
                print("paused", flush=True)  # noqa: T201 -- the test waits for it
                sys.stdin.readline()


if __name__ == "__main__":
    main()
