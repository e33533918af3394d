"""``lineage`` and ``seen``: what is made of what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import open_client, show, table
from holdfast.errors import Conflict, InvalidInput, disk_errors

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands"]

_LINEAGE_HELP = """\
Reads records only, and hashes nothing again: 'holdfast verify' does that. Where a dataset and a model have one name, dataset/wine
means the dataset; the model is meant otherwise.

examples:
  holdfast lineage digits@champion                  what it is made of, and what was made from it
  holdfast lineage dataset/wine:1.0.0 --downstream  every run, model and index that came of this dataset
  holdfast lineage digits --svg digits.svg          a picture, light or dark as its viewer is set
"""
_ROW_HELP = """\
Looks into the datasets that models were made from, and into no others. A column or a split that none of them has is an error.

examples:
  holdfast seen '{"patient": 4711}'                 models trained on a dataset version that has such a row
  holdfast seen '{"patient": 4711}' --split train   in the split that was trained on
"""


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    lineage = commands.add_parser(
        "lineage",
        parents=[connected],
        help="what a thing is made of, and what was made from it",
        epilog=_LINEAGE_HELP,
    )
    lineage.add_argument(
        "ref", help="a CID, name, name:1.0.0 or name@alias; dataset/name where a model is called so, too"
    )
    way = lineage.add_mutually_exclusive_group()
    way.add_argument("--upstream", action="store_true", help="only what it is made of")
    way.add_argument("--downstream", action="store_true", help="only what was made from it")
    lineage.add_argument("--svg", metavar="FILE", help="write a picture as SVG")
    lineage.add_argument("--png", metavar="FILE", help="write a picture as PNG (needs Matplotlib)")
    lineage.add_argument("--dark", action="store_true", help="with --png: light on dark")
    lineage.add_argument("--depth", type=int, metavar="N", help="at most so many steps (default: 32)")
    lineage.add_argument("--max", type=int, metavar="N", help="at most so many things (default: 300)")
    lineage.set_defaults(run=_lineage)

    row = commands.add_parser(
        "seen",
        parents=[connected],
        help="the models that were trained on data with a row in it",
        epilog=_ROW_HELP,
    )
    row.add_argument("row", metavar="JSON", help="values by column, of all columns or those that matter")
    row.add_argument("--split", help="look in this one only, such as train")
    row.set_defaults(run=_seen)


def _lineage(arguments: argparse.Namespace) -> None:
    if arguments.dark and not arguments.png:
        raise InvalidInput("--dark is for --png FILE; an SVG is light or dark as its viewer is set")
    limits = {"max_depth": arguments.depth, "max_nodes": arguments.max}
    for file in filter(None, (arguments.svg, arguments.png)):
        if Path(file).exists():
            raise Conflict(f"{file} exists: choose another name, or remove it first")
    with open_client(arguments) as client:
        graph = client.lineage(
            arguments.ref,
            upstream=not arguments.downstream,
            downstream=not arguments.upstream,
            **{name: value for name, value in limits.items() if value is not None},
        )
    written = []
    if arguments.svg:
        written.append(_write(arguments.svg, graph.to_svg().encode()))
    if arguments.png:
        written.append(_write(arguments.png, graph.to_png(dark=arguments.dark)))
    show(arguments, graph.to_json(), "\n".join(written) or graph.render())


def _write(file: str, data: bytes) -> str:
    target = Path(file)
    with disk_errors(target.parent):
        try:
            target.write_bytes(data)
        except FileNotFoundError as error:
            raise InvalidInput(f"there is no folder {target.parent} to write {target.name} to") from error
    return str(target)


def _seen(arguments: argparse.Namespace) -> None:
    try:
        row = json.loads(arguments.row)
    except ValueError as error:
        raise InvalidInput(f"the row is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidInput('the row must be a JSON object, such as {"patient": 4711}')
    unread: list[str] = []
    with open_client(arguments) as client:
        found = client.models_with_row(
            row, split=arguments.split, on_unread=lambda cid, error: unread.append(f"{cid}: {error}")
        )
        named: dict[str, str] = {}
        for cid in {one.model for one in found}:
            if (entry := client.names.name_of(cid, "model")) is not None:
                named[str(cid)] = f"{entry.name}:{entry.version}"
    value = {
        "models": [
            {
                "model": str(one.model),
                "name": named.get(str(one.model)),
                "dataset": str(one.dataset),
                "trained_on_it": one.itself,
            }
            for one in found
        ],
        "unread": unread,
    }
    rows = [
        (
            named.get(str(one.model), "-"),
            one.model,
            "trained on" if one.itself else "made from a model of",
            one.dataset,
        )
        for one in found
    ]
    text = (
        table(("NAME", "MODEL", "", "DATASET"), rows)
        if rows
        else "no model that is known was made from such a row"
    )
    show(arguments, value, text)
    for line in unread:
        print(f"holdfast: not looked into, for nobody has its rows: {line}", file=sys.stderr)
