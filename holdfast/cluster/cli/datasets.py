"""``dataset add``, ``ls``, ``show``, ``query``, ``diff``, ``split``, ``rm``."""

from __future__ import annotations

import base64
import json
import math
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import Progress, open_client, show, table
from holdfast.errors import InvalidInput
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from holdfast.storage.datasets.dataset import Dataset
    from holdfast.storage.datasets.row_groups import Rows

__all__ = ["add_commands"]

_REF = "a CID, name, name:1.0.0 or name@alias"
_CELL_CHARS = 40
_CHANGED_KEY = "changed"

_HELP = """\
examples:
  holdfast dataset add wine.csv --name wine          rows become shards; prints the CID, the same everywhere
  holdfast dataset show wine                         columns, splits, statistics, first rows
  holdfast dataset query wine --where 'alcohol > 13 and kind in ["red"]' --columns alcohol,kind
  holdfast dataset split wine --name wine-split --stratify kind
  holdfast dataset diff wine:1.0.0 wine --key id
"""
_ADD_HELP = """\
files       Parquet, CSV, JSONL, Arrow, NumPy; a folder of them; a folder of images in a folder for each class.
            Folders and file names such as train and test become splits.

examples:
  holdfast dataset add wine.csv --name wine
  holdfast dataset add photos/ --name photos --to arrow      shards that are read without decoding
  holdfast dataset add export.txt --format csv --metadata '{"source": "the lab"}'
"""
_LS_HELP = """\
examples:
  holdfast dataset ls
  holdfast dataset ls --json
"""
_SHOW_HELP = """\
Statistics come from the manifest; the first rows are the only ones that are fetched.

examples:
  holdfast dataset show wine
  holdfast dataset show wine:1.0.0 --split test --rows 20
"""
_QUERY_HELP = """\
Only what can hold a wanted row is fetched and read: shards and row groups by their statistics, and of those the columns
that are asked for.

examples:
  holdfast dataset query wine --limit 5
  holdfast dataset query wine --where 'alcohol > 13 and kind == "red"' --columns kind,alcohol
  holdfast dataset query wine --where 'sugar is None or not (ph < 3.5)' --limit 0 --json
"""
_DIFF_HELP = """\
Shards and row groups that both have are not read. Without --key rows are compared by all of their values, in any order.

examples:
  holdfast dataset diff wine:1.0.0 wine:1.1.0
  holdfast dataset diff wine:1.0.0 wine --key id --rows 10      what the first 10 changed rows were and became
"""
_SPLIT_HELP = """\
The same seed gives the same split, and so the same CID, everywhere.

examples:
  holdfast dataset split wine --name wine-split --test-size 0.25 --seed 7
  holdfast dataset split wine --name wine-split --stratify kind
  holdfast dataset split wine --name wine-split --split-column fold
"""
_RM_HELP = """\
Removes names. The rows go with the next 'holdfast gc --yes', unless a pin, another name, a run or a newer version keeps them.

examples:
  holdfast dataset rm wine:1.0.0
  holdfast dataset rm wine --all
"""


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    dataset = commands.add_parser("dataset", help="store, look at, compare and cut tables", epilog=_HELP)
    verbs = dataset.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        name: str, run: Any, help_line: str, epilog: str, aliases: Sequence[str] = ()
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(
            name, parents=[connected], help=help_line, epilog=epilog, aliases=aliases
        )
        parser.set_defaults(run=run)
        return parser

    add = verb("add", _add, "store a file or a folder as a dataset; prints its CID", _ADD_HELP)
    add.add_argument("path", help="file or folder")
    _add_name(add)
    add.add_argument("--format", help="what the files are, where their names don't tell")
    add.add_argument("--to", choices=("parquet", "arrow"), help="what shards are (default: parquet)")
    add.add_argument("--chunk-size", type=int, metavar="BYTES", help="of a row group (default: 4 MiB)")
    add.add_argument(
        "--verify-images",
        choices=("fail", "skip"),
        help="decode each image once; at one that can't be, fail, or leave it out",
    )
    add.add_argument("--metadata", metavar="JSON", help="values for the manifest, as a JSON object")

    verb("ls", _ls, "all versions of all datasets", _LS_HELP, aliases=["list"])

    about = verb("show", _show, "columns, splits, statistics and the first rows of a dataset", _SHOW_HELP)
    about.add_argument("ref", help=_REF)
    about.add_argument("--split", help="whose rows to show (default: the only one, or train)")
    about.add_argument("--rows", type=int, default=5, help="how many of them (default: 5; 0 fetches none)")

    query = verb("query", _query, "the rows that meet a condition", _QUERY_HELP)
    query.add_argument("ref", help=_REF)
    query.add_argument("--columns", metavar="A,B", help="which columns (default: all)")
    query.add_argument("--where", metavar="CONDITION", help="such as 'a > 3 and b in [1, 2]'")
    query.add_argument("--split", help="which split (default: the only one, or train)")
    query.add_argument("--limit", type=int, default=20, help="how many rows (default: 20; 0 for all)")

    diff = verb("diff", _diff, "rows added, removed and changed between two datasets", _DIFF_HELP)
    diff.add_argument("a", help=_REF)
    diff.add_argument("b", help=_REF)
    diff.add_argument("--key", action="append", metavar="COLUMN", help="which row is which; may be repeated")
    diff.add_argument("--split", help="compare this one only")
    diff.add_argument("--rows", type=int, default=0, help="show up to so many of each kind (default: 0)")

    split = verb("split", _split, "cut a dataset into train and test", _SPLIT_HELP)
    split.add_argument("ref", help=_REF)
    _add_name(split)
    split.add_argument("--test-size", default="0.2", help="a part of the rows, or how many (default: 0.2)")
    split.add_argument("--seed", type=int, default=0, help="(default: 0)")
    split.add_argument("--stratify", metavar="COLUMN", help="keep the proportions of its values")
    split.add_argument("--split-column", metavar="COLUMN", help="it says where each row goes")
    split.add_argument("--split", help="the split to cut (default: the only one)")

    rm = verb("rm", _rm, "remove a version of a name, or the whole name", _RM_HELP)
    rm.add_argument("name", help="name:1.0.0, or a name with --all")
    rm.add_argument("--all", action="store_true", help="remove all versions of the name")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="register it under this name")
    parser.add_argument("--version", help="with --name: the version (default: the next minor one)")


# -------------------------------------------------------------------------------------------- commands


def _add(arguments: argparse.Namespace) -> None:
    try:
        metadata = json.loads(arguments.metadata or "{}")
    except ValueError as error:
        raise InvalidInput(f"--metadata is not JSON: {error}") from error
    if not isinstance(metadata, dict):
        raise InvalidInput("--metadata must be a JSON object")
    with open_client(arguments) as client, Progress("add", unit="rows") as progress:
        stored = client.datasets.store_dataset(
            dataset_path=Path(arguments.path),
            name=arguments.name,
            version=arguments.version,
            format=arguments.format,
            chunk_size=arguments.chunk_size,
            metadata=metadata,
            convert_to=arguments.to,
            verify_images=arguments.verify_images,
            progress=progress,
        )
    _show_made(arguments, stored)


def _show_made(arguments: argparse.Namespace, made: Dataset) -> None:
    rows = {split: made.rows_in(split) for split in made.splits}
    value = {"cid": str(made.cid), "rows": rows, "bytes": made.size_bytes, "name": arguments.name}
    told = ", ".join(f"{count:,} {split}" for split, count in rows.items())
    show(arguments, value, f"{made.cid}\n{told} rows, {human_size(made.size_bytes)}")


def _ls(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        entries = client.datasets.list_datasets()
    lines = [(entry.name, entry.version, ", ".join(entry.aliases), entry.cid) for entry in entries]
    text = table(("NAME", "VERSION", "ALIASES", "CID"), lines) if lines else "there are no datasets yet"
    show(arguments, [entry.to_json() for entry in entries], text)


def _show(arguments: argparse.Namespace) -> None:
    from holdfast.storage.datasets.queries import preview, statistics

    with open_client(arguments) as client:
        dataset = client.datasets.open(arguments.ref)
        known = statistics(dataset)
        split = arguments.split or dataset.default_split()
        rows = []
        if arguments.rows:
            rows = preview(dataset, split=split, rows=arguments.rows).to_pylist()
    splits = {
        name: {
            "rows": summary.rows,
            "bytes": summary.size_bytes,
            "shards": summary.shards,
            "statistics": {column: each.to_json() for column, each in known[name].items()},
        }
        for name, summary in dataset.summaries.items()
    }
    value = {
        "cid": str(dataset.cid),
        "format": dataset.format,
        "chunk_size": dataset.chunk_size,
        "columns": dict(dataset.columns),
        "splits": splits,
        "metadata": _plain(dataset.metadata),
        "provenance": _plain(dataset.provenance),
        "parent": str(dataset.parent) if dataset.parent else None,
        "preview": {"split": split, "rows": _plain(rows)},
    }
    show(arguments, value, "\n\n".join(_described(value)))


def _described(value: dict[str, Any]) -> Iterator[str]:
    facts = [
        ("CID", value["cid"]),
        ("format", f"{value['format']}, row groups of {human_size(value['chunk_size'])}"),
    ]
    facts += [("parent", value["parent"])] if value["parent"] else []
    facts += [(name, _cell(value[name])) for name in ("metadata", "provenance") if value[name]]
    yield "\n".join(f"{name:<10}  {fact}" for name, fact in facts)
    yield table(
        ("SPLIT", "ROWS", "SIZE", "SHARDS"),
        [
            (name, f"{s['rows']:,}", human_size(s["bytes"]), s["shards"])
            for name, s in value["splits"].items()
        ],
    )
    for name, split in value["splits"].items():
        lines = [
            (
                column,
                each["type"],
                "?" if each["nulls"] is None else each["nulls"],
                _cell(each["min"]),
                _cell(each["max"]),
            )
            for column, each in split["statistics"].items()
        ]
        yield table((f"COLUMN ({name})", "TYPE", "MISSING", "MIN", "MAX"), lines)
    if value["preview"]["rows"]:
        yield f"first rows of {value['preview']['split']}\n{_rows_as_text(value['preview']['rows'])}"


def _query(arguments: argparse.Namespace) -> None:
    from holdfast.storage.datasets.queries import query

    with open_client(arguments) as client, Progress("query", unit="rows") as progress:
        asked = query(
            client.datasets.open(arguments.ref),
            columns=[name.strip() for name in arguments.columns.split(",")] if arguments.columns else None,
            where=arguments.where,
            split=arguments.split,
            limit=arguments.limit or None,
        )
        rows = []
        for batch in asked:
            rows += _plain(batch.to_pylist())
            progress(batch.num_rows)
    counts = asked.counts.to_json()
    text = (
        f"{_rows_as_text(rows) if rows else 'no row meets the condition'}\n\n{_many(len(rows), 'row')}; "
        f"read {_many(counts['groups_read'], 'row group')} ({human_size(counts['bytes_read'])}), "
        f"skipped {counts['groups_skipped']:,} ({human_size(counts['bytes_skipped'])})"
    )
    show(arguments, {"rows": rows, "counts": counts}, text)


def _diff(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client, Progress("diff", unit="rows") as progress:
        found = client.datasets.diff(
            arguments.a, arguments.b, key=arguments.key, split=arguments.split, progress=progress
        )
        value = found.to_json()
        shown: list[str] = []
        for name, split in found.splits.items():
            added, removed = _first(split.added, arguments.rows), _first(split.removed, arguments.rows)
            changed = [
                row
                for batch in islice(split.changed.batches() if arguments.rows else (), 1)
                for row in batch.slice(0, arguments.rows).to_pylist()
            ]
            rows = {"added": added, "removed": removed, _CHANGED_KEY: _plain(changed)}
            value["splits"][name]["rows"] = rows
            shown += [f"added in {name}\n{_rows_as_text(added)}"] if added else []
            shown += [f"removed in {name}\n{_rows_as_text(removed)}"] if removed else []
            shown += [f"changed in {name}\n{_changes_as_text(changed)}"] if changed else []
    lines = [
        (name, *(f"{split[kind]:,}" for kind in ("added", "removed", _CHANGED_KEY, "unchanged")))
        for name, split in value["splits"].items()
    ]
    parts = ["the same rows in the same columns" if found.same else "", _schema_text(value["schema"])]
    parts.append(table(("SPLIT", "ADDED", "REMOVED", "CHANGED", "UNCHANGED"), lines))
    show(arguments, value, "\n\n".join(part for part in [*parts, *shown] if part))


def _first(rows: Rows, count: int) -> list[Any]:
    found: list[Any] = []
    for batch in rows.batches() if count and len(rows) else ():
        found += _plain(batch.slice(0, count - len(found)).to_pylist())
        if len(found) >= count:
            break
    return found


def _schema_text(schema: dict[str, Any]) -> str:
    lines = [f"column {name} was added: {kind}" for name, kind in schema["added"].items()]
    lines += [f"column {name} was removed: {kind}" for name, kind in schema["removed"].items()]
    lines += [f"column {name} was {kinds[0]}, and is {kinds[1]}" for name, kinds in schema["retyped"].items()]
    return "\n".join(lines)


def _split(arguments: argparse.Namespace) -> None:
    size = arguments.test_size
    try:
        test_size = int(size) if size.isdigit() else float(size)
    except ValueError as error:
        raise InvalidInput(
            f"--test-size {size!r} is neither a part, such as 0.2, nor a number of rows"
        ) from error
    with open_client(arguments) as client, Progress("split", unit="rows") as progress:
        made = client.datasets.create_train_test_split(
            arguments.ref,
            arguments.name,
            test_size=test_size,
            random_state=arguments.seed,
            stratify=arguments.stratify,
            split_column=arguments.split_column,
            version=arguments.version,
            split=arguments.split,
            progress=progress,
        )
    _show_made(arguments, made)


def _rm(arguments: argparse.Namespace) -> None:
    if ":" not in arguments.name and not arguments.all:
        raise InvalidInput(
            f"which version of {arguments.name}? Give {arguments.name}:VERSION, or --all for all of them"
        )
    if ":" in arguments.name and arguments.all:
        raise InvalidInput(f"{arguments.name} is one version: leave out --all")
    with open_client(arguments) as client:
        gone = client.datasets.delete_dataset(arguments.name)
    text = "\n".join(f"removed {entry.name}:{entry.version}  {entry.cid}" for entry in gone)
    show(arguments, [entry.to_json() for entry in gone], text)


# ------------------------------------------------------------------------------------------- formatting


def _plain(value: Any) -> Any:
    """A value as JSON has it: dates as ISO 8601, bytes as base64, and null for NaN and infinity."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _rows_as_text(rows: list[dict[str, Any]]) -> str:
    header = list(rows[0])
    return table(header, [[_cell(row[name]) for name in header] for row in rows])


def _changes_as_text(rows: list[dict[str, Any]]) -> str:
    """The key of each changed row, and of its other columns those that differ."""
    key = [name for name in rows[0] if name not in ("before", "after")]
    lines = []
    for row in rows:
        before, after = row["before"], row["after"]
        changes = [
            f"{name} {' → '.join(_two_cells(before.get(name), after.get(name)))}"
            for name in {**before, **after}
            if repr(before.get(name)) != repr(after.get(name))  # which NaN is equal to itself in
        ]
        lines.append((*(_cell(_plain(row[name])) for name in key), ", ".join(changes)))
    return table([*key, "CHANGES"], lines)


def _two_cells(before: Any, after: Any) -> tuple[str, str]:
    """What two values differ in, even if they begin alike."""
    a, b = (_text(str(each) if isinstance(each, float) else _plain(each)) for each in (before, after))
    alike = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), 0)
    if max(len(a), len(b)) > _CELL_CHARS and alike > _CELL_CHARS // 2:
        a, b = (f"…{each[alike - _CELL_CHARS // 4 :]}" for each in (a, b))
    return _cut(a), _cut(b)


def _cell(value: Any) -> str:
    return _cut(_text(value))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
