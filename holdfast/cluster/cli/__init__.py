"""The command line: parse, call the client, print. Nothing else happens here.

Every command takes ``--json`` and then prints one JSON value to standard output. Progress goes to standard error. The exit status
tells the class of an error; see :mod:`holdfast.errors`.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING, Any

from holdfast import __version__
from holdfast.cluster.cli import (
    cache,
    content,
    daemons,
    datasets,
    ecosystem,
    lineage,
    models,
    names,
    proof,
    registry,
    storage,
)
from holdfast.errors import HoldfastError, Unavailable, Unsupported, disk_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_EPILOG = """\
examples:
  holdfast quickstart                        see everything work, on real data, in about a minute
  holdfast up                                start a cluster; workers join with 'holdfast worker --join URL'
  holdfast add data.parquet                  store a file; prints its CID
  holdfast dataset add wine.csv --name wine  store a table as a dataset, known by its CID
  holdfast verify digits@champion --deep     hash everything that a model was made from
  holdfast lineage digits --svg digits.svg   draw what it is made of, and what was made from it

exit status:
  0 done   2 wrong input   3 not found   4 conflict   5 corrupt   6 unavailable   7 denied   8 unsupported
  130 interrupted   1 anything else
"""


class _Command(argparse.ArgumentParser):
    """A command, or all of them: its help keeps the lines of its examples, and it says itself which arguments it does not know."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, *given: Any, **options: Any) -> Any:
        """As argparse's own, which leaves what is unknown to the parser of all commands."""
        known, unknown = super().parse_known_args(*given, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse's own, which lists every command where one is mistyped."""
        if action.nargs == argparse.PARSER and action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), list(action.choices), 1)
            advice = f"did you mean {near[0]!r}?" if near else f"'{self.prog} --help' lists them"
            self.exit(2, f"{self.prog}: there is no command {value!r}: {advice}\n")
        super()._check_value(action, value)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = _Command(
        prog="holdfast",
        description="An ML cluster in which every dataset, run, model and index is a CID.",
        epilog=_EPILOG,
    )
    root.add_argument("--version", action="version", version=f"holdfast {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--home", help="folder of this node or client (default: $HOLDFAST_HOME, or ~/.holdfast)"
    )
    common.add_argument("--json", action="store_true", help="print one JSON value instead of text")
    common.add_argument(
        "--debug", action="store_true", help="print a traceback with an error, and all log records"
    )
    connected = argparse.ArgumentParser(add_help=False, parents=[common])
    connected.add_argument(
        "--address",
        default=os.environ.get("HOLDFAST_ADDRESS"),
        help="the master's URL (default: $HOLDFAST_ADDRESS, or the daemon on this home, or none: embedded)",
    )
    connected.add_argument("--token-file", help="file with the cluster's token (default: <home>/token)")
    daemons.add_commands(commands, common, connected)
    content.add_commands(commands, connected)
    datasets.add_commands(commands, connected)
    models.add_commands(commands, connected)
    names.add_commands(commands, connected)
    lineage.add_commands(commands, connected)
    cache.add_commands(commands, connected)
    registry.add_commands(commands, connected)
    proof.add_commands(commands, common, connected)
    ecosystem.add_commands(commands, connected)
    storage.add_commands(commands, common)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status."""
    if not (sys.argv[1:] if argv is None else argv):
        parser().print_help()
        return 0
    arguments = parser().parse_args(argv)
    try:
        with disk_errors(arguments.home or "the holdfast home"):
            result: int = arguments.run(arguments) or 0
            sys.stdout.flush()
            return result
    except HoldfastError as error:
        return _failed(error, arguments)
    except ModuleNotFoundError as error:
        missing = Unsupported(
            f"the package {error.name!r} is missing: install holdfast again (pip install holdfast)"
        )
        return _failed(missing, arguments)
    except KeyboardInterrupt:
        print("holdfast: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on: no noise at exit
        return 0
    except OSError as error:
        return _failed(Unavailable(f"{error.filename or 'the system'}: {error.strerror or error}"), arguments)


def _failed(error: HoldfastError, arguments: argparse.Namespace) -> int:
    if arguments.debug:
        traceback.print_exc()
    if arguments.json:
        print(json.dumps(error.to_json()))
    else:
        print(f"holdfast: {error}", file=sys.stderr)
    return error.exit_status
