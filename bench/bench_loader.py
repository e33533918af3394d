"""Feeding training: holdfast's loader against plain pyarrow, Ray Data and MosaicML Streaming, on the same rows.

    python -m bench.bench_loader [PART ...] [--mib 512] [--rounds 5]

Parts: ``files`` (a plain pyarrow loop over the same Parquet files), ``ray``, ``mosaic``, ``peer``, ``workers``, ``resume``. MosaicML Streaming does not
install beside the CPU build of torch: ``MOSAIC`` names the Python of a virtual environment of its own that has it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bench.side_by_side import ROUNDS, interleaved, rate, report
from holdfast.config import load_settings
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.dataset import Dataset, open_dataset, store_dataset
from holdfast.storage.loaders.batch_loader import BatchLoader
from holdfast.storage.opening import open_store

# torch warns of read-only memory; on both sides of each comparison tensors share it.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

MIB = 1 << 20
COLUMNS = 32
BATCH = 4096
SAMPLE_BYTES = 4096
SAMPLES_A_BATCH = 256


def numbers(mib: int) -> Iterator[pa.Table]:
    """Tables of 32 columns of random float32."""
    random = np.random.default_rng(0)
    for _ in range(mib // 8):
        yield pa.table(
            {f"f{i}": random.standard_normal(8 * MIB // 4 // COLUMNS, np.float32) for i in range(COLUMNS)}
        )


def samples(mib: int) -> np.ndarray[Any, Any]:
    """Samples of 4 KiB each."""
    return np.random.default_rng(0).integers(0, 256, (mib * MIB // SAMPLE_BYTES, SAMPLE_BYTES), np.uint8)


def stored(store: ContentStore, tables: Any, form: str) -> Dataset:
    """The dataset of an iterator of tables, or of one value."""
    if isinstance(tables, Iterator):
        first = next(tables)
        reader = pa.RecordBatchReader.from_batches(
            first.schema, (batch for table in (first, *tables) for batch in table.to_batches())
        )
        return store_dataset(store, reader, format=form)
    return store_dataset(store, tables, format=form)


def consumed(batches: Any) -> int:
    """Make torch tensors of every batch, without a copy; how many rows there were."""
    rows = 0
    for batch in batches:
        tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
        rows += len(next(iter(tensors.values())))
    return rows


def loaded(dataset: Dataset, batch_size: int = BATCH, **options: Any) -> Callable[[], int]:
    """A run through one epoch of holdfast's loader."""

    def run() -> int:
        with BatchLoader(dataset, batch_size=batch_size, **options) as loader:
            return consumed(loader)

    return run


def _tensors(table: pa.Table, batch_size: int) -> Iterator[dict[str, np.ndarray[Any, Any]]]:
    columns = {name: table.column(name).combine_chunks().to_numpy() for name in table.column_names}
    for at in range(0, table.num_rows, batch_size):
        yield {name: values[at : at + batch_size] for name, values in columns.items()}


def plain_loops(files: list[Path]) -> dict[str, Callable[[], int]]:
    """The best loops that plain pyarrow allows for."""

    def tables() -> int:
        return consumed(
            batch for file in files for batch in _tensors(pq.read_table(file, memory_map=True), BATCH)
        )

    def groups() -> Iterator[tuple[pq.ParquetFile, int]]:
        for file in files:
            opened = pq.ParquetFile(file, memory_map=True)
            yield from ((opened, i) for i in range(opened.num_row_groups))

    def by_group() -> int:
        return consumed(
            batch
            for file, i in groups()
            for batch in _tensors(file.read_row_group(i, use_threads=True), BATCH)
        )

    def ahead() -> int:
        def read(file: Path) -> list[pa.Table]:
            opened = pq.ParquetFile(file, memory_map=True)
            return [opened.read_row_group(i, use_threads=False) for i in range(opened.num_row_groups)]

        with ThreadPoolExecutor(2) as pool:
            return consumed(
                batch
                for tables in pool.map(read, files)
                for table in tables
                for batch in _tensors(table, BATCH)
            )

    return {"pyarrow, by file": tables, "pyarrow, by row group": by_group, "pyarrow, 2 threads ahead": ahead}


def written_out(dataset: Dataset, folder: Path) -> list[Path]:
    """The shards as files."""
    folder.mkdir()
    files = []
    for i, shard in enumerate(dataset.shards("train")):
        files.append(folder / f"{i:05}.parquet")
        dataset.store.get(shard.cid, files[-1])
    return files


def compare(
    title: str, unit: str, rounds: int, count: float, runs: Mapping[str, Callable[[], object]], *bases: str
) -> None:
    """Let the runs take turns, and print their rates."""
    rates = {name: partial(rate, count, run) for name, run in runs.items()}
    report(title, unit, interleaved(rates, rounds), *bases)


def files_part(folder: Path, mib: int, rounds: int) -> None:
    """Against plain pyarrow, over the same Parquet files; sha2-256, blake3 and without verification."""
    runs: dict[str, Callable[[], object]] = {}
    stores = []
    for name, settings in {
        "sha2-256": {},
        "blake3": {"hash": "blake3"},
        "verify=ingest": {"verify": "ingest"},
    }.items():
        home = folder / name
        home.mkdir()
        lines = "".join(f'{key} = "{value}"\n' for key, value in settings.items())
        (home / "config.toml").write_text(f"[storage]\n{lines}")
        store = open_store(load_settings(home))
        stores.append(store)
        for form in ("parquet", "arrow"):
            dataset = stored(store, numbers(mib), form)
            runs[f"holdfast, {form}, {name}"] = loaded(dataset)
            if form == "parquet" and name == "sha2-256":
                runs |= plain_loops(written_out(dataset, folder / "files"))
                runs["holdfast, parquet, shuffled"] = loaded(dataset, shuffle=True)
                first_batch(dataset, rounds)
    compare("one epoch, 32 float32 columns", "MiB/s", rounds, mib, runs, *(n for n in runs if "pyarrow" in n))
    for store in stores:
        store.close()


def first_batch(dataset: Dataset, rounds: int) -> None:
    """From the CID to the first batch."""

    def first(*, shuffle: bool) -> float:
        began = time.perf_counter()
        with BatchLoader(open_dataset(dataset.store, dataset.cid), batch_size=256, shuffle=shuffle) as loader:
            next(iter(loader))
            return (time.perf_counter() - began) * 1e3

    runs = {"in order": lambda: first(shuffle=False), "shuffled": lambda: first(shuffle=True)}
    report("from the CID to the first batch", "ms", interleaved(runs, rounds), "in order")


def ray_part(folder: Path, mib: int, rounds: int) -> None:
    """Against Ray Data's iter_torch_batches."""
    import ray

    with open_store(load_settings(folder / "home")) as store:
        dataset = stored(store, numbers(mib), "parquet")
        files = written_out(dataset, folder / "files")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False

        def by_ray() -> int:
            return sum(
                len(batch["f0"])
                for batch in ray.data.read_parquet([str(f) for f in files]).iter_torch_batches(
                    batch_size=BATCH
                )
            )

        try:
            runs = {"holdfast": loaded(dataset), "Ray Data iter_torch_batches": by_ray}
            compare(
                "one epoch, 32 float32 columns", "MiB/s", rounds, mib, runs, "Ray Data iter_torch_batches"
            )
        finally:
            ray.shutdown()


MOSAIC = """
import shutil, sys, time
import numpy as np
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader
out, mib, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = np.random.default_rng(0).integers(0, 256, (mib << 8, 4096), np.uint8)
with MDSWriter(out=out, columns={"x": "ndarray:uint8:4096"}) as writer:
    for row in data:
        writer.write({"x": row})
print("ready", flush=True)
for line in sys.stdin:
    dataset = StreamingDataset(local=out, shuffle=line.strip() == "shuffled", batch_size=batch)
    loader = DataLoader(dataset, batch_size=batch, num_workers=0)
    start = time.perf_counter()
    rows = sum(len(each["x"]) for each in loader)
    print(rows / (time.perf_counter() - start), flush=True)
    assert rows == len(data), rows
"""


def mosaic_part(folder: Path, mib: int, rounds: int) -> None:
    """Against MosaicML Streaming, on samples of 4 KiB, with no worker processes on either side."""
    python = os.environ.get("MOSAIC")
    if not python:
        print("\nMOSAIC does not name the Python that has MosaicML Streaming: left out")
        return
    values = samples(mib)
    command = [python, "-W", "ignore", "-c", MOSAIC, str(folder / "mds"), str(mib), str(SAMPLES_A_BATCH)]
    with (
        open_store(load_settings(folder / "home")) as store,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        dataset = stored(store, {"x": values}, "parquet")
        arrow = stored(store, {"x": values}, "arrow")
        assert other.stdout.readline().strip() == "ready"

        def mosaic(how: str) -> float:
            assert other.stdout is not None
            print(how, file=other.stdin, flush=True)
            return float(other.stdout.readline())

        def compared(how: str, *, shuffle: bool) -> None:
            runs: dict[str, Callable[[], float]] = {
                f"holdfast, {each.format}": partial(
                    rate, len(values), loaded(each, SAMPLES_A_BATCH, shuffle=shuffle)
                )
                for each in (dataset, arrow)
            }
            runs["MosaicML Streaming"] = partial(mosaic, how)
            report(f"4 KiB samples, {how}", "samples/s", interleaved(runs, rounds), "MosaicML Streaming")

        compared("in order", shuffle=False)
        compared("shuffled", shuffle=True)
        other.stdin.close()


NODE = """
import sys, time
from holdfast.config import load_settings
from holdfast.storage.opening import open_store
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.loaders.batch_loader import BatchLoader
from bench.bench_loader import loaded
home, cid, rank, world, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
with open_store(load_settings(home)) as store:
    from holdfast.storage.cid import Cid
    dataset = open_dataset(store, Cid.parse(cid))
    run = loaded(dataset, shuffle=True, rank=rank, world_size=world, threads=threads)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        rows = run()
        print(rows, time.perf_counter() - start, flush=True)
"""


def workers_part(folder: Path, mib: int, rounds: int) -> None:
    """Two workers, each with one thread, against one."""
    with open_store(load_settings(folder / "home")) as store:
        dataset = stored(store, numbers(mib), "parquet")

    def start(rank: int, world: int) -> subprocess.Popen[str]:
        command = [
            sys.executable,
            "-c",
            NODE,
            str(folder / "home"),
            str(dataset.cid),
            str(rank),
            str(world),
            "1",
        ]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    def epoch(processes: list[subprocess.Popen[str]]) -> float:
        began = time.perf_counter()
        for process in processes:
            print("go", file=process.stdin, flush=True)
        rows = 0
        for process in processes:
            assert process.stdout is not None
            rows += int(process.stdout.readline().split()[0])
        assert rows == dataset.rows
        return mib / (time.perf_counter() - began)

    groups = {"one worker": [start(0, 1)], "two workers": [start(rank, 2) for rank in range(2)]}
    runs = {name: partial(epoch, processes) for name, processes in groups.items()}
    report("one epoch, shuffled, one thread each", "MiB/s", interleaved(runs, rounds), "one worker")
    for process in (each for processes in groups.values() for each in processes):
        process.communicate()


def resume_part(folder: Path, mib: int, rounds: int) -> None:
    """How many bytes are read again by a loader that resumes at 90 % of an epoch."""
    del rounds  # a count of bytes is the same every time
    with open_store(load_settings(folder / "home")) as store:
        dataset = stored(store, numbers(mib), "parquet")
        for shuffle in (False, True):
            with BatchLoader(dataset, batch_size=BATCH, shuffle=shuffle) as loader:
                batches = iter(loader)
                for _ in range(int(len(loader) * 0.9)):
                    next(batches)
                state = loader.state_dict()
            with BatchLoader(dataset, batch_size=BATCH, shuffle=shuffle) as whole:
                consumed(whole)
            with BatchLoader(dataset, batch_size=BATCH, shuffle=shuffle) as rest:
                rest.load_state_dict(state)
                rows = consumed(rest)
            read, all_bytes = (each.counters["bytes_from_disk"] for each in (rest, whole))
            again = read / all_bytes - rows / dataset.rows
            print(
                f"\nresumed at 90 %, {'shuffled' if shuffle else 'in order'}: {again:.2%} of {all_bytes / MIB:,.0f} MiB read again"
            )


def peer_part(folder: Path, mib: int, rounds: int) -> None:
    """A home that has nothing, reading from a node on loopback, against the same home when it has everything."""
    command = [sys.executable, "-m", "holdfast.cluster.cli", "gateway", "--port", "0"]
    with open_store(load_settings(folder / "home")) as store:
        dataset = stored(store, numbers(mib), "parquet")
    environment = {**os.environ, "HOLDFAST_HOME": str(folder / "home")}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout is not None
        url = next(
            word for line in node.stdout for word in line.split() if word.startswith("http://")
        ).rstrip("/")

        def cold() -> float:
            home = folder / "cold"
            home.mkdir()
            (home / "config.toml").write_text(f'[fetch]\nproviders = ["{url}"]\n')
            with open_store(load_settings(home)) as far:
                value = rate(mib, loaded(open_dataset(far, dataset.cid), shuffle=True))
            shutil.rmtree(home)
            return value

        def warm() -> float:
            with open_store(load_settings(folder / "home")) as near:
                return rate(mib, loaded(open_dataset(near, dataset.cid), shuffle=True))

        try:
            report(
                "one epoch, shuffled",
                "MiB/s",
                interleaved({"warm": warm, "cold, from a peer": cold}, rounds),
                "warm",
            )
        finally:
            node.terminate()


PARTS = {
    "files": files_part,
    "ray": ray_part,
    "mosaic": mosaic_part,
    "peer": peer_part,
    "workers": workers_part,
    "resume": resume_part,
}


def main() -> None:
    """Run the parts that are asked for, each in a folder of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="default: all of them")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    for name in arguments.parts or PARTS:
        with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as folder:
            PARTS[name](Path(folder), arguments.mib, arguments.rounds)


if __name__ == "__main__":
    main()
