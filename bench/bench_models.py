"""Models in and out of the registry, against MLflow and the safetensors library: `python -m bench.bench_models [PART ...] [--mib 1024]`.

Parts: ``register`` (a safetensors file; MLflow copies it into its artifact folder and names it, and syncs nothing: so a copy that is
synced stands beside them), ``load`` (into torch tensors),
``memory`` (a module of twice the size). ``MLFLOW`` names the Python of a virtual environment that has MLflow.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from bench.bench_memory import Watched
from bench.side_by_side import ROUNDS, interleaved, rate, report
from holdfast.registry import ModelRegistry, open_registry

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
TENSOR_MIB = 32

MLFLOW = """
import sys, time
import mlflow
from mlflow import MlflowClient
mlflow.set_tracking_uri("file://" + sys.argv[1])
client = MlflowClient()
client.create_registered_model("big")
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    with mlflow.start_run() as run:
        mlflow.log_artifact(line.strip())
    client.create_model_version("big", run.info.artifact_uri, run.info.run_id)
    print(time.perf_counter() - start, flush=True)
"""


def tensors(mib: int) -> dict[str, torch.Tensor]:
    """Random float32 tensors of 32 MiB each."""
    size = TENSOR_MIB * MIB // 4
    return {f"layer{i}.weight": torch.randn(size).reshape(2048, -1) for i in range(mib // TENSOR_MIB)}


def register_part(folder: Path, file: Path, mib: int, rounds: int) -> None:
    """A file that is new to the store, until it is durable and has a name."""
    python = os.environ.get("MLFLOW")
    homes = iter(range(1000))

    def ours() -> float:
        home = folder / f"home{next(homes)}"
        store, names = open_registry(home)
        value = rate(mib, lambda: ModelRegistry(store, names).register("big", file))
        names.close()
        store.close()
        shutil.rmtree(home)
        return value

    def copied() -> float:
        target = folder / "copy.safetensors"

        def copy() -> None:
            shutil.copyfile(file, target)
            with target.open("rb") as written:
                os.fsync(written.fileno())

        value = rate(mib, copy)
        target.unlink()
        return value

    runs: dict[str, Callable[[], float]] = {"holdfast": ours, "a copy that is synced": copied}
    if not python:
        print("\nMLFLOW does not name the Python that has MLflow: left out")
        report("register a safetensors file", "MiB/s", interleaved(runs, rounds), "a copy that is synced")
        return
    command = [python, "-W", "ignore", "-c", MLFLOW, str(folder / "mlruns")]
    environment = {**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "ready"

        def mlflow() -> float:
            assert other.stdout is not None
            print(file, file=other.stdin, flush=True)
            value = mib / float(other.stdout.readline())
            for copy in (folder / "mlruns").rglob("*.safetensors"):
                copy.unlink()  # room for the next one
            return value

        report(
            "register a safetensors file",
            "MiB/s",
            interleaved(runs | {"MLflow log_artifact, create_model_version": mlflow}, rounds),
            "a copy that is synced",
            "MLflow log_artifact, create_model_version",
        )
        other.stdin.close()


def load_part(folder: Path, file: Path, mib: int, rounds: int) -> None:
    """Into torch tensors, from the page cache; the library maps the file, and reads and verifies nothing by itself."""
    store, names = open_registry(folder / "home")
    registry = ModelRegistry(store, names)
    cid = registry.register("big", file).cid

    def copied() -> dict[str, torch.Tensor]:
        # All at once, as a model has them: one after the other would use the same warm memory again and again.
        return {name: tensor.clone() for name, tensor in load_file(file).items()}

    runs: dict[str, Callable[[], object]] = {
        "holdfast, verified, memory of its own": lambda: registry.load(cid),
        "load_file (a map, nothing is read)": lambda: load_file(file),
        "load_file, memory of its own": copied,
    }
    results = interleaved({name: partial(rate, mib, run) for name, run in runs.items()}, rounds)
    report("load to torch", "MiB/s", results, *list(runs)[1:])
    names.close()
    store.close()


MEMORY = """
import sys
import torch
from holdfast.registry import ModelRegistry, open_registry
from bench.bench_models import Layers
store, names = open_registry(sys.argv[1])
registry = ModelRegistry(store, names)
count = int(sys.argv[3])
if sys.argv[2] == "register":
    registry.register("layers", Layers(count))
else:
    registry.get("layers")
store.close()
"""


class Layers(torch.nn.Module):
    """Linear layers of 32 MiB each."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.config = {"count": count}
        side = int((TENSOR_MIB * MIB // 4) ** 0.5) // 64 * 64
        self.layers = torch.nn.ModuleList(torch.nn.Linear(side, side, bias=False) for _ in range(count))


def memory_part(folder: Path, file: Path, mib: int, rounds: int) -> None:
    """The most memory that a process had, above that of the model itself."""
    del file, rounds
    model = sum(each.nbytes for each in Layers(1).state_dict().values()) * (2 * mib // TENSOR_MIB)
    for action in ("register", "load"):
        command = [sys.executable, "-c", MEMORY, str(folder / "layers"), action, str(2 * mib // TENSOR_MIB)]
        with subprocess.Popen(command, text=True) as process:
            watched = Watched(process)
            watched.until_it_ends()
        most = watched.most["VmHWM"]
        print(
            f"\n{action} a module of {model / 1e6:,.0f} MB: {most / 1e6:,.0f} MB at most, {(most - model) / 1e6:,.0f} MB more, "
            f"of which Python, torch and holdfast are some 230; {watched.seconds:.1f} s"
        )


PARTS = {"register": register_part, "load": load_part, "memory": memory_part}


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as name:
        folder = Path(name)
        file = folder / "big.safetensors"
        save_file(tensors(arguments.mib), file)
        for part in arguments.parts or PARTS:
            began = time.perf_counter()
            PARTS[part](folder, file, arguments.mib, arguments.rounds)
            print(f"  ({part}: {time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
