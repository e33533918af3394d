"""``registry export``, ``registry import``, ``registry copy``: names with all that they stand for, from place to place."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import Progress, open_client, show
from holdfast.config import read_token
from holdfast.errors import Corrupt, InvalidInput
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import argparse

    from holdfast.registry.archive.exporting import Exported
    from holdfast.registry.archive.importing import Imported

__all__ = ["add_commands"]

_HELP = """\
An archive is one CAR with names, the records of their lineage, and as many of the bytes as you choose. It is imported
offline, by anybody, with the same CIDs; a CAR that was tampered with, or lacks something, changes nothing.

examples:
  holdfast registry export digits wine:1.0.0 -o digits.car
  holdfast registry export -o all.car --bytes files           the whole registry, without the rows of datasets
  holdfast registry import digits.car --prefix partner-
  holdfast registry copy digits@champion --to http://10.0.0.1:7400 --to-token-file token
"""
_EXPORT_HELP = """\
examples:
  holdfast registry export digits wine:1.0.0 -o digits.car
  holdfast registry export --kind model -o models.car --bytes files     without the rows of datasets
"""
_IMPORT_HELP = """\
examples:
  holdfast registry import digits.car
  holdfast registry import digits.car --rename digits=numbers
"""
_COPY_HELP = """\
examples:
  holdfast registry copy digits@champion --to http://10.0.0.1:7400 --to-token-file token
  holdfast registry copy --kind dataset --to-home ~/.holdfast-2
"""


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    registry = commands.add_parser(
        "registry", help="names with all that they stand for, as one CAR", epilog=_HELP
    )
    verbs = registry.add_subparsers(title="verbs", metavar="VERB", required=True)
    export = verbs.add_parser(
        "export", parents=[connected], help="write names and their blocks as one CAR", epilog=_EXPORT_HELP
    )
    _add_choice(export, "default: the whole registry")
    export.add_argument("-o", "--output", metavar="FILE", required=True, help="the CAR")
    export.set_defaults(run=_export)

    imports = verbs.add_parser(
        "import", parents=[connected], help="take in what an archive holds", epilog=_IMPORT_HELP
    )
    imports.add_argument("car", help="an archive; - is standard input")
    _add_naming(imports)
    imports.set_defaults(run=_import)

    copy = verbs.add_parser(
        "copy", parents=[connected], help="names and their blocks to another registry", epilog=_COPY_HELP
    )
    _add_choice(copy, "default: the whole registry")
    _add_naming(copy)
    where = copy.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="URL", help="the other cluster's master")
    where.add_argument("--to-home", metavar="DIR", help="another home on this machine")
    copy.add_argument("--to-token-file", metavar="FILE", help="with --to: file with that cluster's token")
    copy.set_defaults(run=_copy)


def _add_choice(command: argparse.ArgumentParser, otherwise: str) -> None:
    command.add_argument(
        "refs",
        nargs="*",
        metavar="REF",
        help=f"name (all its versions), name:1.0.0 or name@alias; {otherwise}",
    )
    command.add_argument("--kind", choices=("model", "index", "dataset"), help="only names of this kind")
    command.add_argument(
        "--bytes",
        choices=("all", "files", "records"),
        default="all",
        help="all; files: all but the rows of datasets; records: the lineage alone (default: all)",
    )


def _add_naming(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prefix", default="", help="put this before each name")
    command.add_argument(
        "--rename", action="append", default=[], metavar="OLD=NEW", help="give this name another one"
    )


def _renamed(arguments: argparse.Namespace) -> dict[str, str]:
    found = {}
    for text in arguments.rename:
        old, equals, new = text.partition("=")
        if not (old and equals and new):
            raise InvalidInput(f"--rename {text!r} is not OLD=NEW")
        found[old] = new
    return found


def _export(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client, Progress("export") as progress:
        done = client.registry.export_to(
            arguments.output,
            refs=arguments.refs or None,
            kind=arguments.kind,
            amount=arguments.bytes,
            progress=progress,
        )
    lines = [f"{name.kind:<10}  {name.name}:{name.version}  {name.cid}" for name in done.names]
    lines.append(f"{arguments.output}  {human_size(done.size_bytes)}{_attested(done)}  {done.root}")
    show(arguments, done.to_json() | {"path": arguments.output}, "\n".join(lines))


def _import(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client, Progress("import") as progress:
        try:
            done = client.registry.import_from(
                sys.stdin.buffer if arguments.car == "-" else arguments.car,
                prefix=arguments.prefix,
                rename=_renamed(arguments),
                progress=progress,
            )
        except Corrupt as error:
            raise Corrupt(f"{arguments.car}: {error}") from error
    _show(arguments, done)


def _copy(arguments: argparse.Namespace) -> None:
    from holdfast.cluster.client import connect

    token = read_token(Path(arguments.to_token_file)) if arguments.to_token_file else None
    with open_client(arguments) as client:
        # Blocks pass through this client's own home on their way to another cluster.
        home = client.home if arguments.to else arguments.to_home
        with connect(arguments.to, home=home, token=token) as target, Progress("copy") as progress:
            done = client.registry.copy_to(
                target.registry,
                refs=arguments.refs or None,
                kind=arguments.kind,
                amount=arguments.bytes,
                prefix=arguments.prefix,
                rename=_renamed(arguments),
                progress=progress,
            )
    _show(arguments, done)


def _show(arguments: argparse.Namespace, done: Imported) -> None:
    lines = [f"{entry.kind:<10}  {entry.name}:{entry.version}  {entry.cid}" for entry in done.entries]
    lines += [f"{alias} points to another version here, and stays there" for alias in done.kept_aliases]
    if left := done.left_conversions:
        lines.append(
            f"{left} ONNX form{'s' * (left != 1)} of models that were here before left out: 'holdfast convert' makes them here"
        )
    lines.append(f"{_new(done)}, {human_size(done.new_bytes)} of new blocks{_attested(done)}")
    show(arguments, done.to_json(), "\n".join(lines))


def _new(done: Imported) -> str:
    if len(done.entries) == 1:
        return f"the version is {'new' if done.new else 'known'}"
    return f"{done.new} of {len(done.entries)} versions {'is' if done.new == 1 else 'are'} new"


def _attested(done: Exported | Imported) -> str:
    return f", {done.attestations} attestation{'s' * (done.attestations != 1)}" if done.attestations else ""
