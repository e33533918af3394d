"""``cache list``, ``cache explain``, ``cache clear``: what was computed before."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.models import imported
from holdfast.cluster.cli.output import open_client, show, table
from holdfast.errors import InvalidInput
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands"]

_FUNCTIONS = ("train", "convert", "index")
_HELP = """\
A training, a conversion or an index that was made before from the same code, inputs, config and numeric environment is not
made again, unless --no-cache asks for it.

examples:
  holdfast cache list
  holdfast cache explain run-0a1b2c3d4e5f              why this run was not answered by an older one
  holdfast cache explain wine_model:train --data wine --config '{"epochs": 30}'     whether this training would be
  holdfast cache clear --function index
"""
_LIST_HELP = """\
examples:
  holdfast cache list
  holdfast cache list --function train --json
"""
_EXPLAIN_HELP = """\
examples:
  holdfast cache explain run-0a1b2c3d4e5f              why this run was not answered by an older one
  holdfast cache explain wine_model:train --data wine --config '{"epochs": 30}'     whether this training would be
"""
_CLEAR_HELP = """\
examples:
  holdfast cache clear                                 everything
  holdfast cache clear --function index
"""


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    cache = commands.add_parser("cache", help="what was computed before, and need not be again", epilog=_HELP)
    verbs = cache.add_subparsers(title="verbs", metavar="VERB", required=True)
    listed = verbs.add_parser(
        "list",
        aliases=["ls"],
        parents=[connected],
        help="what is remembered, newest first",
        epilog=_LIST_HELP,
    )
    listed.add_argument("--function", choices=_FUNCTIONS, help="only these")
    listed.set_defaults(run=_list)

    explain = verbs.add_parser(
        "explain",
        parents=[connected],
        help="why something was, or would be, computed and not remembered",
        epilog=_EXPLAIN_HELP,
    )
    explain.add_argument(
        "what", help="a run, a key or a result; or package.module:function of a training, with --data"
    )
    explain.add_argument("--data", metavar="REF", help="of a training: the dataset")
    explain.add_argument(
        "--config", default="{}", metavar="JSON", help="of a training: settings for the function"
    )
    explain.add_argument("--seed", type=int, default=0, help="of a training")
    explain.add_argument("--workers", type=int, default=1, help="of a training")
    explain.set_defaults(run=_explain)

    clear = verbs.add_parser(
        "clear", parents=[connected], help="forget results; no block is removed", epilog=_CLEAR_HELP
    )
    what = clear.add_mutually_exclusive_group()
    what.add_argument("--function", choices=_FUNCTIONS, help="only these")
    what.add_argument("--key", metavar="CID", help="only the one with this key or this result")
    clear.set_defaults(run=_clear)


def _list(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        entries = client.cache.entries(function=arguments.function)
    rows = [
        (
            entry.function,
            entry.key,
            entry.result,
            entry.made_by,
            time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created)),
        )
        for entry in entries
    ]
    text = table(("FUNCTION", "KEY", "RESULT", "BY", "AT"), rows) if rows else "nothing is remembered"
    show(arguments, [entry.to_json() for entry in entries], text)


def _explain(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        if ":" in arguments.what:
            if arguments.data is None:
                raise InvalidInput("to explain a training that was not done yet, say on what: --data REF")
            try:
                config = json.loads(arguments.config)
            except ValueError as error:
                raise InvalidInput(f"--config is not JSON: {error}") from error
            explanation = client.explain_training(
                imported(arguments.what),
                arguments.data,
                config=config,
                seed=arguments.seed,
                workers=arguments.workers,
            )
        else:
            explanation = client.cache.explain_entry(arguments.what)
    show(arguments, explanation.to_json(), explanation.render())


def _clear(arguments: argparse.Namespace) -> None:
    key = Cid.parse(arguments.key) if arguments.key is not None else None
    with open_client(arguments) as client:
        gone = client.cache.clear(function=arguments.function, key=key)
    show(arguments, {"forgotten": gone}, f"forgot {gone} result{'s' * (gone != 1)}")
