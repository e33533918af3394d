"""Measures lineage in a large registry: `python -m bench.bench_lineage [VERSIONS]` (100,000).

Models of 100 datasets are recorded and named directly in the table, as many registers would have left them. The yardstick is the
same question in a registry of 1,000 versions: what an index answers does not grow with the table.
"""

import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from bench.side_by_side import interleaved, report, seconds
from holdfast.registry import Database
from holdfast.registry.graph.lineage_graph import lineage_graph
from holdfast.registry.graph.made_from import MadeFrom
from holdfast.registry.versions import version_key
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats import dag_cbor
from holdfast.storage.local.local_store import LocalStore

VERSIONS = 100_000
SMALL = 1_000
DATASETS = 100


def record(value: dict[str, object]) -> tuple[Cid, bytes]:
    data = dag_cbor.encode(value)
    return Cid.of(data, DAG_CBOR), data


def build(folder: Path, versions: int, stack: ExitStack) -> tuple[ContentStore, MadeFrom, Cid, Cid]:
    """A registry of so many versions; with it a dataset of one model, and that model."""
    blocks = stack.enter_context(closing(LocalStore(folder / "blocks")))
    database = stack.enter_context(closing(Database(folder / "registry.db")))
    store = ContentStore(blocks)
    code, code_data = record({"kind": "code", "entry": "a:b"})
    pairs = [(code, code_data)]
    datasets = []
    for number in range(DATASETS + 1):
        dataset = {"kind": "dataset", "number": number, "splits": {}, "provenance": {}, "parent": None}
        pairs.append(record(dataset))
        datasets.append(pairs[-1][0])
    rows = []
    model = code
    for number in range(versions):
        data = datasets[number % DATASETS] if number < versions - 1 else datasets[-1]
        run = record({"kind": "run", "code": code, "data": data, "seed": number, "workers": 1, "config": {}})
        made = record({"kind": "model", "run": run[0], "framework": "pytorch", "metrics": {"accuracy": 0.9}})
        pairs += [run, made]
        model = made[0]
        version = f"1.{number // 1000}.0"
        rows.append(("model", f"m{number % 1000}", version, str(model), 0.0, version_key(version)))
    blocks.put_many(pairs)
    with database.writing() as sql:
        sql.executemany(
            "INSERT INTO versions (kind, name, version, cid, created, sort_key) VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )
    return store, MadeFrom(database, store), datasets[-1], model


def main() -> None:
    versions = int(sys.argv[1]) if len(sys.argv) > 1 else VERSIONS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="holdfast-bench-")))
        small = build(folder / "small", SMALL, stack)
        large = build(folder / "large", versions, stack)
        for name, (_, made_from, *_) in (("small", small), ("large", large)):
            print(f"{name}: the table is filled in {seconds(made_from.refresh):.2f} s")

        def ask(place: tuple[ContentStore, MadeFrom, Cid, Cid], *, down: bool) -> float:
            store, made_from, dataset, model = place
            root = dataset if down else model
            return 1e6 * seconds(lambda: lineage_graph(store, root, made_from=made_from))

        results = interleaved(
            {
                f"dataset, {SMALL:,} versions": lambda: ask(small, down=True),
                f"dataset, {versions:,} versions": lambda: ask(large, down=True),
                f"model, {SMALL:,} versions": lambda: ask(small, down=False),
                f"model, {versions:,} versions": lambda: ask(large, down=False),
            },
            rounds=15,
        )
        report("lineage", "microseconds", results, f"dataset, {SMALL:,} versions")


if __name__ == "__main__":
    main()
