"""Measures names: `python -m bench.bench_registry [FOLDER] [NAMES] [VERSIONS]`, 2,000 names of 50 versions unless told otherwise.

The table is filled by the same code that makes every change, in one transaction and without commit records: what is measured is
the reading of it. The yardstick of a look-up is what SQLite alone needs to read one row by its primary key, in the same file and
with the same connection; that of a search is a plain count of the table's rows. Last come changes, each durable, and the history.
"""

import contextlib
import itertools
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from bench.side_by_side import interleaved, report, seconds
from holdfast.errors import NotFound
from holdfast.registry import Database, SqliteNames
from holdfast.registry.names.changes import apply_change
from holdfast.registry.names.facts import facts_of_model, facts_to_record
from holdfast.storage.cid import Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.local.local_store import LocalStore
from holdfast.storage.local.pins import Pins

LOOKUPS = 2000
SEARCHES = 7
CHANGES = 200
DATASETS = 500


def fill(database: Database, names: int, versions: int) -> list[Cid]:
    """Every name with an alias, a tag, and for each version a metric and a dataset; gives the datasets."""
    datasets = [Cid.of(f"dataset {number}".encode()) for number in range(DATASETS)]
    with database.writing() as sql:
        for name in range(names):
            of = {"kind": "model", "name": f"model-{name:05}"}
            for version in range(versions):
                number = name * versions + version
                facts = facts_of_model(
                    metrics={"accuracy": number * 7919 % 100_003 / 100_003},
                    datasets=[datasets[number % DATASETS]],
                )
                made = {
                    "op": "register",
                    **of,
                    "version": f"1.{version}.0",
                    "cid": Cid.of(f"{number}".encode()),
                }
                apply_change(sql, made | {"facts": facts_to_record(facts)}, 0)
            newest = f"1.{versions - 1}.0"
            apply_change(sql, {"op": "alias", **of, "alias": "champion", "version": newest}, 0)
            stage = "prod" if name % 4 == 0 else "test"
            apply_change(sql, {"op": "tag", **of, "version": newest, "key": "stage", "value": stage}, 0)
    return datasets


def median_us(calls: Callable[[str], object], names: int) -> float:
    """The median of one call for each of many names, in microseconds."""
    times = []
    for number in range(LOOKUPS):
        name = f"model-{number * 7919 % names:05}"
        start = time.perf_counter()
        calls(name)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def lookups(database: Database, names: SqliteNames, count: int) -> None:
    assert database.path is not None
    plain = sqlite3.connect(database.path, isolation_level=None)
    by_key = "SELECT * FROM versions WHERE kind = 'model' AND name = ? AND version = '1.0.0'"

    def unknown(name: str) -> None:
        with contextlib.suppress(NotFound):
            names.resolve("model", name.replace("e", "x"))

    with closing(plain):
        candidates: dict[str, Callable[[str], object]] = {
            "SELECT by primary key": lambda name: plain.execute(by_key, (name,)).fetchone(),
            "resolve(name), the newest": lambda name: names.resolve("model", name),
            "resolve(name:1.0.0)": lambda name: names.resolve("model", f"{name}:1.0.0"),
            "resolve(name@champion)": lambda name: names.resolve("model", f"{name}@champion"),
            "resolve(name:^1.2), a range": lambda name: names.resolve("model", f"{name}:^1.2"),
            "an unknown name, with the nearest": unknown,
        }
        results = interleaved(
            {title: lambda call=call: median_us(call, count) for title, call in candidates.items()}  # type: ignore[misc]
        )
    report("Look-ups, each of another name", "microseconds", results, "SELECT by primary key")


def searches(names: SqliteNames, datasets: list[Cid]) -> None:
    def timed(**search: object) -> Callable[[], float]:
        return lambda: seconds(lambda: names.search("model", **search)) * 1e6  # type: ignore[arg-type]

    searching = {
        "name='model-01*'": {"name": "model-01*"},
        "name='*99*'": {"name": "*99*"},
        "tag={'stage': 'prod'}": {"tag": {"stage": "prod"}},
        "alias='champion'": {"alias": "champion"},
        "metric={'accuracy': ('>', 0.999)}": {"metric": {"accuracy": (">", 0.999)}},
        "metric={'accuracy': ('>', 0.1)}": {"metric": {"accuracy": (">", 0.1)}},
        "dataset=cid": {"dataset": datasets[7]},
        "all four of them": {
            "name": "model-0*",
            "tag": {"stage": "prod"},
            "metric": {"accuracy": (">", 0.5)},
            "dataset": datasets[149::100],
        },
    }
    counting = "count(*) of the table"
    query = "SELECT count(*) FROM versions WHERE created >= 0"
    rows = {
        f"{title} ({len(names.search('model', **search))})": timed(**search)  # type: ignore[arg-type]
        for title, search in searching.items()
    }
    plain = {counting: lambda: seconds(lambda: names._database.rows(query)) * 1e6}  # noqa: SLF001
    report(
        "Searches (entries found, at most 1,000)",
        "microseconds",
        interleaved(plain | rows, SEARCHES),
        counting,
    )


def changes(folder: Path) -> None:
    """Changes beside a plain durable INSERT, and the history that they leave."""
    with (
        closing(LocalStore(folder / "changed" / "blocks")) as blocks,
        closing(Database(folder / "changed" / "registry.db")) as database,
        closing(sqlite3.connect(folder / "plain.db", isolation_level=None)) as plain,
    ):
        names = SqliteNames(database, ContentStore(blocks, pins=Pins(blocks)))
        for version in range(2):
            names.register("model", "m", f"1.{version}.0", Cid.of(f"m {version}".encode()))
        plain.execute("PRAGMA journal_mode = WAL")
        plain.execute("PRAGMA synchronous = FULL")
        plain.execute("CREATE TABLE versions (name TEXT, cid TEXT)")
        numbers = itertools.count()

        def each(change: Callable[[int], object]) -> Callable[[], float]:
            return lambda: seconds(lambda: [change(next(numbers)) for _ in range(CHANGES)]) / CHANGES * 1e6

        insert = "INSERT INTO versions VALUES (?, ?)"
        results = interleaved(
            {
                "INSERT, durable": each(lambda n: plain.execute(insert, (f"m{n}", str(Cid.of(b"%d" % n))))),
                "register": each(lambda n: names.register("model", f"m-{n % 50}", None, Cid.of(b"%d" % n))),
                "set_alias": each(lambda n: names.set_alias("model", "m", "champion", f"1.{n % 2}.0")),
            }
        )
        report("Changes, each with its commit record", "microseconds", results, "INSERT, durable")
        count = len(names.history())
        results = interleaved(
            {
                "history()": lambda: seconds(names.history) / count * 1e6,
                "at(), all of it": lambda: seconds(lambda: names.at(time.time()).close()) / count * 1e6,
                "verify_history()": lambda: seconds(names.verify_history) / count * 1e6,
            }
        )
        report(f"History of {count:,} commits", "microseconds for each commit", results, "history()")


def measure(folder: Path, count: int, versions: int) -> None:
    with (
        closing(Database(folder / "registry.db")) as database,
        closing(LocalStore(folder / "blocks")) as blocks,
    ):
        start = time.perf_counter()
        datasets = fill(database, count, versions)
        took = time.perf_counter() - start
        names = SqliteNames(database, ContentStore(blocks, pins=Pins(blocks)))
        print(f"{count:,} names of {versions} versions, {count * versions:,} in all, filled in {took:.1f} s")
        lookups(database, names, count)
        searches(names, datasets)
    changes(folder)


def main() -> None:
    arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory(dir=arguments[0] if arguments else None) as folder:
        measure(
            Path(folder),
            int(arguments[1]) if len(arguments) > 1 else 2000,
            int(arguments[2]) if len(arguments) > 2 else 50,
        )


if __name__ == "__main__":
    main()
