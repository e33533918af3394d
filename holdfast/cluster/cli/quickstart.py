"""``holdfast quickstart``: the whole of holdfast once, on real data, with real processes on loopback."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.models import progress_line
from holdfast.cluster.client import connect
from holdfast.cluster.daemon import read_announcement
from holdfast.cluster.processes import adopt_orphans, free_port, spawn, stop, tail
from holdfast.config import token_for
from holdfast.errors import Corrupt, HoldfastError, NotFound, Unavailable
from holdfast.http_client import HttpClient
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    import numpy as np

    from holdfast.cluster.client import Client, Run
    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["run_quickstart"]

WORKERS = 2
START_TIMEOUT_S = 90.0
REQUESTS = 50
_STEPS = 8


class _Screen:
    """Prints the steps as they happen, to standard error, so that ``--json`` leaves standard output to the summary."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._step = 0
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        self._step += 1
        self.line(f"[{self._step}/{_STEPS}] {title}")
        started = time.monotonic()
        yield
        self.seconds[title.partition(":")[0]] = time.monotonic() - started

    def line(self, text: str = "") -> None:
        print(f"\r\x1b[K{text}" if self._live else text, file=sys.stderr, flush=True)

    def say(self, label: str, value: object) -> None:
        self.line(f"      {label:<12} {value}")

    def live(self, text: str) -> None:
        """A line that the next one replaces, on a terminal."""
        if self._live:
            print(f"\r\x1b[K      {text}", end="", file=sys.stderr, flush=True)
        else:
            self.line(f"      {text}")


@dataclass(slots=True)
class _Processes:
    """The daemons of this quickstart, each on a home below ``base``."""

    base: Path
    tied: bool
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, *arguments: str) -> None:
        """Start ``holdfast <arguments>`` on a home of its own."""
        command = [sys.executable, "-m", "holdfast.cluster.cli", *arguments, "--home", str(self.base / name)]
        self.running[name] = spawn(command, log=self.base / name / "logs" / "daemon.log", tied=self.tied)

    def wait(self, name: str, ready: Callable[[], Any]) -> Any:
        """What ``ready`` gives, once it stops raising NotFound.

        Raises:
            Unavailable: The process ended, or is not ready in time; the message is its own.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        log = self.base / name / "logs" / "daemon.log"
        while True:
            with contextlib.suppress(NotFound):
                return ready()
            if self.running[name].poll() is not None:
                raise Unavailable(f"the {name} did not start: {tail(log, 2)}")
            if time.monotonic() > deadline:
                raise Unavailable(f"the {name} was not ready within {START_TIMEOUT_S:.0f} s: {tail(log, 2)}")
            time.sleep(0.1)

    def stop(self, *names: str) -> None:
        """Stop those, or all, at the same time."""
        stop([self.running[name] for name in names or self.running], grace_s=4.0)


def run_quickstart(*, home: str | None, keep: bool, port: int, as_json: bool) -> int:
    """Run it; gives the exit status.

    Args:
        home: Folder for everything; default: a temporary one, which is removed unless ``keep``.
        keep: Leave the cluster running at the end.
        port: Of API and dashboard; 0 takes a free one.
        as_json: Print the summary as JSON.

    Raises:
        HoldfastError: A step failed; everything is stopped.
        KeyboardInterrupt: Ctrl-C, likewise.
    """
    adopt_orphans()
    # SIGTERM shall clean up exactly as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    base = (
        Path(home).expanduser().absolute() if home else Path(tempfile.mkdtemp(prefix="holdfast-quickstart-"))
    )
    base.mkdir(parents=True, exist_ok=True)
    processes = _Processes(base, tied=not keep)
    screen = _Screen()
    finished = False
    try:
        summary = _steps(screen, processes, port or free_port("127.0.0.1"))
        finished = True
    finally:
        if not (finished and keep):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave anything behind
            processes.stop()
            if home is None:
                shutil.rmtree(base, ignore_errors=True)
    with screen.step("summary"):
        _print_summary(screen, summary)
    if keep:
        screen.line(f"\nThe cluster is running. Its dashboard: {summary['dashboard']}")
        screen.line(f"Stop it with: holdfast down {base}")
    else:
        screen.line(f"\nStopped {len(processes.running)} processes; nothing is left running.")
    if as_json:
        print(json.dumps(summary, indent=2))
    return 0


def _steps(screen: _Screen, processes: _Processes, port: int) -> dict[str, Any]:
    started = time.monotonic()
    url = f"http://127.0.0.1:{port}"
    token = token_for(processes.base / "master")
    with contextlib.ExitStack() as stack:
        with screen.step("cluster: one master, two workers"):
            data = _start_cluster(screen, processes, url)
            client = stack.enter_context(connect(url, home=processes.base / "client", token=token))

        with screen.step("dataset: 1,797 handwritten digits"):
            dataset = client.datasets.store_dataset(data, name="digits", version="1.0.0")
            screen.say("CID", dataset.cid)
            screen.say("rows", ", ".join(f"{dataset.rows_in(split)} {split}" for split in dataset.splits))

        with screen.step("training: a small CNN on both workers"):
            run, pulled = _train(screen, client, dataset)

        with screen.step("registry: digits:1.0.0, alias champion"):
            entry = client.models.register("digits", run.model, "1.0.0", aliases=["champion"])
            screen.say("model", entry.cid)
            screen.say("weights", client.models.record("digits@champion").files)

        with screen.step("serving: ONNX over HTTP"):
            conversion, record = client.convert("digits@champion")
            difference = record.comparison["max_difference"]
            screen.say("ONNX", record.onnx)
            screen.say(
                "difference", f"at most {difference:.2g} from PyTorch on {record.comparison['samples']} rows"
            )
            served = _serve_and_ask(screen, processes, url, token, data["test"])

        with screen.step("search: neighbours of a digit it has not seen"):
            index = client.build_index("digits", corpus=dataset.cid, model=run.model, version="1.0.0")
            screen.say("index", f"{index.cid}  {len(index):,} vectors of {index.record.dim}")
            found = index.search(data["test"]["image"][0], k=6)[0]
            label = int(data["test"]["label"][0])
            screen.say(
                f"a {label} is like", ", ".join(f"{n.split}:{n.row} (a {n.values['label']})" for n in found)
            )

        with screen.step("verify: digits@champion, from an empty home"):
            audit = _audit(screen, processes.base / "auditor", url, token)
    return {
        "dataset": str(dataset.cid),
        "run": str(run.cid),
        "model": str(run.model),
        "conversion": str(conversion),
        "index": str(index.cid),
        "accuracy": run.metrics["test_accuracy"],
        "max_difference": difference,
        **served,
        "neighbours_of": label,
        "neighbour_labels": [int(n.values["label"]) for n in found],
        "bytes_pulled_by_workers": pulled,
        "bytes_pulled_to_verify": audit,
        "seconds": {
            **{k: round(v, 1) for k, v in screen.seconds.items()},
            "total": round(time.monotonic() - started, 1),
        },
        "dashboard": f"{url}/?token={token}",
    }


def _start_cluster(screen: _Screen, processes: _Processes, url: str) -> dict[str, dict[str, Any]]:
    """Start the daemons, and wait until all are ready; gives the digits, which are loaded meanwhile."""
    processes.start("master", "up", "--port", url.rpartition(":")[2])
    join = ("--join", url, "--token-file", str(processes.base / "master" / "token"), "--cpus", "1")
    for number in range(1, WORKERS + 1):
        processes.start(f"worker-{number}", "worker", *join, "--wait", str(START_TIMEOUT_S))
    from holdfast.training.examples import digits

    data = digits.load_digits()
    for name in processes.running:
        facts = processes.wait(name, functools.partial(read_announcement, processes.base / name))
        screen.say(name, f"{facts['url']}  pid {facts['pid']}")
    return data


def _train(screen: _Screen, client: Client, dataset: Dataset) -> tuple[Run, list[int]]:
    """Train on all workers; gives the run, and how many bytes each worker pulled."""
    from holdfast.training.examples import digits

    pulled: list[int] = []

    def follow(event: dict[str, Any]) -> None:
        if event["type"] == "worker_done":
            pulled.append(event["fetched"]["bytes"])
            screen.line(f"      {progress_line(event)}")
        elif (text := progress_line(event)) is not None:
            screen.live(text)

    run = client.train(digits.train, dataset.cid, workers=WORKERS, use_cache=False, on_event=follow)
    accuracy = run.metrics["test_accuracy"]
    screen.say("accuracy", f"{accuracy:.4f} on {dataset.rows_in('test')} digits it has not seen")
    screen.say("run", run.cid)
    return run, pulled


def _audit(screen: _Screen, home: Path, url: str, token: str) -> int:
    """Verify the champion from a home that holds nothing yet; gives the bytes that were pulled for it.

    Raises:
        Corrupt: Something is not what its CID says.
    """
    with connect(url, home=home, token=token) as auditor:
        tree = auditor.verify("digits@champion", deep=True)
        pulled: int = auditor.store.blocks.statistics()["bytes"]  # type: ignore[attr-defined]  # a FetchingStore
    for text in tree.render().splitlines():
        screen.line(f"      {text}")
    if not tree.ok:
        raise Corrupt("digits@champion does not verify; see the tree above")
    nodes = list(tree.flat())
    size, blocks = sum(node.size_bytes for node in nodes), sum(node.blocks for node in nodes)
    screen.say("hashed", f"{size:,} bytes in {blocks} blocks, all as their CIDs say")
    return pulled


def _serve_and_ask(
    screen: _Screen, processes: _Processes, url: str, token: str, test: dict[str, np.ndarray[Any, Any]]
) -> dict[str, Any]:
    """Start a server process, send it requests, and stop it."""
    home = processes.base / "server"
    port = free_port("127.0.0.1")
    token_for(home, token)
    processes.start("server", "serve", "digits@champion", "--address", url, "--port", str(port))
    http = HttpClient(f"http://127.0.0.1:{port}", token)

    def ready() -> None:
        try:
            http.get("/v2/health/ready")
        except HoldfastError as error:
            raise NotFound("not yet") from error

    processes.wait("server", ready)
    right = 0
    times = []
    for image, label in zip(test["image"][:REQUESTS], test["label"][:REQUESTS], strict=True):
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": image.ravel().tolist()}
        asked = time.perf_counter()
        answer = http.post("/v2/models/digits/infer", {"inputs": [tensor], "outputs": [{"name": "logits"}]})
        times.append(time.perf_counter() - asked)
        logits = answer["outputs"][0]["data"]
        right += logits.index(max(logits)) == int(label)
    processes.stop("server")
    median_ms = 1000 * sorted(times)[len(times) // 2]
    screen.say("server", f"http://127.0.0.1:{port}/v2/models/digits/infer")
    screen.say("answers", f"{right} of {REQUESTS} right, {median_ms:.1f} ms each (median, JSON over HTTP)")
    screen.say("receipt", f"each answer names its model: {answer['parameters']['model_cid']}")
    return {"requests": REQUESTS, "requests_right": right, "request_median_ms": round(median_ms, 2)}


def _print_summary(screen: _Screen, summary: dict[str, Any]) -> None:
    for name in ("dataset", "run", "model", "conversion", "index"):
        screen.say(name, summary[name])
    screen.say("accuracy", f"{summary['accuracy']:.4f}")
    screen.say("served", f"{summary['requests_right']} of {summary['requests']} requests right")
    pulled = ", ".join(human_size(size) for size in summary["bytes_pulled_by_workers"])
    screen.say(
        "moved", f"workers pulled {pulled}; the audit pulled {human_size(summary['bytes_pulled_to_verify'])}"
    )
    seconds = summary["seconds"]
    screen.say("seconds", ", ".join(f"{name} {value}" for name, value in seconds.items()))
