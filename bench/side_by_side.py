"""What every measurement shares: candidates that take turns, and how their results are printed."""

import gc
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PIECE_BYTES = 1 << 20
ROUNDS = 5


def interleaved(
    candidates: Mapping[str, Callable[[], float]], rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """What each candidate returns in each round.

    They take turns, so that a slow minute hits all of them, and each round has another order: what one leaves behind, such as
    memory that the kernel has to tidy up, would otherwise always hit the same one.
    """
    results: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        order = list(candidates)
        random.Random(number).shuffle(order)
        for name in order:
            results[name].append(candidates[name]())
    return results


def report(title: str, unit: str, results: dict[str, list[float]], *yardsticks: str) -> None:
    """Print medians, spreads, and the ratios to each yardstick."""
    ratios = ", ".join(f"ratio to {name}" for name in yardsticks)
    print(f"\n{title} ({unit}; median of {len(results[yardsticks[0]])}, spread, {ratios})")
    bases = [statistics.median(results[name]) for name in yardsticks]
    for name, values in results.items():
        median = statistics.median(values)
        times = "".join(f"{median / base:>8.2f} x" for base in bases)
        print(
            f"  {name:<38}{median:>12,.0f}  {min(values):>12,.0f} .. {max(values):<12,.0f}{times}", flush=True
        )


def seconds(run: Callable[[], object]) -> float:
    """How long ``run`` takes."""
    gc.collect()
    gc.disable()  # as timeit does: what else lives in this process is not the subject
    try:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    finally:
        gc.enable()


def rate(count: float, run: Callable[[], object]) -> float:
    """How many a second, when ``run`` does ``count`` of them."""
    return count / seconds(run)


def random_file(path: Path, size_bytes: int) -> Path:
    """A file of random bytes, on the disk."""
    with path.open("wb") as file:
        for _ in range(size_bytes // PIECE_BYTES):
            file.write(os.urandom(PIECE_BYTES))
        file.flush()
        os.fsync(file.fileno())
    return path


def copy_and_sync(source: Path, target: Path) -> None:
    """What ``cp`` does, in the kernel where it can, with a sync behind it."""
    with source.open("rb") as reading, target.open("wb") as writing:
        left = source.stat().st_size
        while left:
            left -= os.copy_file_range(reading.fileno(), writing.fileno(), left)
        os.fsync(writing.fileno())
