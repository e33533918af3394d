"""``names ls``, ``search``, ``history``, ``verify``, ``rename``, ``rm``, ``tag``, ``untag``."""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import open_client, show, table
from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from holdfast.registry.names import Commit, NameEntry, Names, PastNames

__all__ = ["add_commands"]

_FOUND_AT_MOST = 1000
_KINDS = ("model", "dataset", "index", "conversion")
_HELP = """\
examples:
  holdfast names ls --at 2026-11-17                  every name as it was then
  holdfast names search 'dig*' --tag stage=prod --metric 'accuracy>0.9'
  holdfast names tag digits@champion stage=prod --expected test
  holdfast names rename digits numbers
  holdfast names rm digits:1.0.0
  holdfast names history digits
  holdfast names verify                              hash every change, and compare with the names
"""
_SEARCH_HELP = """\
All that is given must be true. A pattern may hold *, ? and [a-z].

examples:
  holdfast names search 'dig*' --kind model
  holdfast names search --tag stage=prod --tag owner='*'
  holdfast names search --metric 'accuracy>=0.9' --metric 'loss<0.2' --dataset wine:1.0.0
"""
_TAG_HELP = """\
With --expected the tag must have this value now, or none (--expected ''): else nothing changes, and the exit status is 4.

examples:
  holdfast names tag digits:1.0.0 stage=prod
  holdfast names tag digits@champion stage=prod --expected test
"""
_UNTAG_HELP = """\
examples:
  holdfast names untag digits:1.0.0 stage
  holdfast names untag digits@champion stage --expected test
"""
_LS_HELP = """\
examples:
  holdfast names ls --kind dataset
  holdfast names ls --at 2026-11-17T08:30
"""
_HISTORY_HELP = """\
examples:
  holdfast names history                             every change of the registry
  holdfast names history digits --kind model
"""
_VERIFY_HELP = """\
examples:
  holdfast names verify
  holdfast names verify --json
"""
_RENAME_HELP = """\
Versions, aliases and tags go along. The old name then answers where they went.

examples:
  holdfast names rename digits numbers
  holdfast names rename wine wines --kind dataset
"""
_RM_HELP = """\
Removes names, with the aliases that point there. The bytes go with the next 'holdfast gc --yes', unless a pin, another name or a
run keeps them.

examples:
  holdfast names rm digits:1.0.0
  holdfast names rm digits-index --kind index --all
"""
_COMPARISON = re.compile(r"(.+?)(>=|<=|==|!=|>|<|=)(.+)")


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    names = commands.add_parser(
        "names",
        help="find, tag and rename what is named, and see its history",
        epilog=_HELP,
    )
    verbs = names.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(
        name: str, run: Any, help_line: str, epilog: str, *, aliases: tuple[str, ...] = ()
    ) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = verbs.add_parser(
            name, aliases=aliases, parents=[connected], help=help_line, epilog=epilog
        )
        parser.set_defaults(run=run)
        return parser

    listed = verb("ls", _ls, "every version of every name", _LS_HELP, aliases=("list",))
    _add_kind(listed, None)
    _add_at(listed)

    search = verb("search", _search, "the versions of which all that is given is true", _SEARCH_HELP)
    search.add_argument("name", nargs="?", help="a name, or a pattern")
    _add_kind(search, None)
    search.add_argument("--alias", help="an alias that points there, or a pattern")
    search.add_argument(
        "--tag", action="append", default=[], metavar="KEY=VALUE", help="a tag; the value * stands for any"
    )
    search.add_argument(
        "--metric", action="append", default=[], metavar="NAME>NUMBER", help="one of > >= < <= == !="
    )
    search.add_argument("--dataset", metavar="REF", help="made from this dataset: a CID, or a name")
    search.add_argument(
        "--limit", type=int, default=_FOUND_AT_MOST, help=f"how many at most (default: {_FOUND_AT_MOST})"
    )
    _add_at(search)

    history = verb("history", _history, "every change, newest first, and who made it", _HISTORY_HELP)
    history.add_argument("name", nargs="?", help="only of this name, and of those that it had before")
    _add_kind(history, None)

    verb(
        "verify", _verify, "hash every change, and compare the names with what the changes tell", _VERIFY_HELP
    )

    rename = verb("rename", _rename, "give all versions of a name another name", _RENAME_HELP)
    rename.add_argument("old")
    rename.add_argument("new")
    _add_kind(rename, "model")

    rm = verb("rm", _rm, "remove a version of a name, or the whole name", _RM_HELP)
    rm.add_argument("name", help="name:1.0.0, or a name with --all")
    rm.add_argument("--all", action="store_true", help="remove all versions of the name")
    _add_kind(rm, "model")

    tag = verb("tag", _tag, "set a tag of a version", _TAG_HELP)
    tag.add_argument("ref", help="name:1.0.0, name@alias, or a name, whose newest version is meant")
    tag.add_argument("tag", metavar="KEY=VALUE")
    untag = verb("untag", _untag, "remove a tag of a version", _UNTAG_HELP)
    untag.add_argument("ref", help="name:1.0.0, name@alias, or a name, whose newest version is meant")
    untag.add_argument("key")
    for parser in (tag, untag):
        parser.add_argument("--expected", metavar="VALUE", help="fail unless it has this value now")
        _add_kind(parser, "model")


def _add_kind(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--kind", choices=_KINDS, default=default, help=f"of what (default: {default or 'everything'})"
    )


def _add_at(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--at", metavar="WHEN", help="as it was then: 2026-11-17, 2026-11-17T08:30, or the CID of a change"
    )


def _then(names: Names, at: str | None) -> PastNames:
    """The names of now, or of the time or commit in ``at``."""
    from holdfast.storage.cid import Cid

    if at is None:
        return names
    try:
        return names.at(datetime.fromisoformat(at))
    except ValueError as error:
        try:
            return names.at(Cid.parse(at))
        except InvalidInput:
            raise InvalidInput(
                f"--at {at!r} is neither a time, such as 2026-11-17 or 2026-11-17T08:30, nor the CID of a change"
            ) from error


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"{text!r} is not KEY=VALUE, such as stage=prod")
    return key, value


def _metric(text: str) -> tuple[str, tuple[str, float]]:
    name, operator, number = match.groups() if (match := _COMPARISON.fullmatch(text)) else ("", "", "")
    try:
        return name.strip(), ("==" if operator == "=" else operator, float(number))
    except ValueError as error:
        raise InvalidInput(f"--metric {text!r} is not a comparison, such as 'accuracy>0.9'") from error


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _listed(arguments: argparse.Namespace, entries: Iterable[NameEntry]) -> None:
    entries = list(entries)
    rows = [
        (
            entry.kind,
            f"{entry.name}:{entry.version}",
            " ".join([f"@{alias}" for alias in entry.aliases] + [f"{k}={v}" for k, v in entry.tags.items()]),
            _when(entry.created),
            entry.cid,
        )
        for entry in entries
    ]
    text = table(("KIND", "VERSION", "ALIASES, TAGS", "CREATED", "CID"), rows) if rows else "nothing"
    show(arguments, [entry.to_json() for entry in entries], text)


def _ls(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        _listed(arguments, _then(client.names, arguments.at).entries(arguments.kind))


def _search(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        names = _then(client.names, arguments.at)
        found = names.search(
            arguments.kind,
            name=arguments.name,
            alias=arguments.alias,
            tag=dict(_pair(text) for text in arguments.tag),
            metric=dict(_metric(text) for text in arguments.metric),
            dataset=None if arguments.dataset is None else client.datasets.resolve(arguments.dataset),
            limit=arguments.limit,
        )
        _listed(arguments, found)


def _history(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        commits = client.names.history(arguments.kind, arguments.name)
    rows = [(_when(commit.time), commit.who or "-", _told(commit), commit.cid) for commit in commits]
    text = table(("TIME", "WHO", "CHANGE", "COMMIT"), rows) if rows else "nothing"
    show(arguments, [commit.to_json() for commit in commits], text)


def _told(commit: Commit) -> str:
    """A change in words."""
    change = commit.change
    name = f"{change['kind']} {change['name']}"
    match change["op"]:
        case "rename":
            return f"{name} is {change['to']} now"
        case "alias":
            return f"{name}@{change['alias']} from {change['was'] or 'nothing'} to {change['version']}"
        case "unalias":
            return f"{name}@{change['alias']} removed, was {change['was']}"
        case "tag" if change["value"] is None:
            return f"{name}:{change['version']} tag {change['key']} removed, was {change['was']}"
        case "tag":
            return f"{name}:{change['version']} {change['key']}={change['value']}"
        case "unregister":
            return f"{name}:{change['version']} removed, was {change['was']}"
        case "register":
            return f"{name}:{change['version']} is {change['cid']}"
    return f"{name}:{change['version']} {change['op']}"


def _verify(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        found = client.names.verify_history()
    newest = f"; the newest is {found.newest}" if found.newest else ""
    text = f"{found.commits} changes hashed, {found.versions} versions are what they tell{newest}"
    show(arguments, found.to_json(), text)


def _rename(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        moved = client.names.rename(arguments.kind, arguments.old, arguments.new)
    text = f"{arguments.old} is {arguments.new} now: " + ", ".join(entry.version for entry in moved)
    show(arguments, [entry.to_json() for entry in moved], text)


def _rm(arguments: argparse.Namespace) -> None:
    name, colon, version = arguments.name.partition(":")
    if not colon and not arguments.all:
        raise InvalidInput(f"which version of {name}? Give {name}:VERSION, or --all for all of them")
    if colon and arguments.all:
        raise InvalidInput(f"{arguments.name} is one version: leave out --all")
    with open_client(arguments) as client:
        gone = client.names.unregister(arguments.kind, name, version if colon else None)
    text = "\n".join(f"removed {entry.kind} {entry.name}:{entry.version}  {entry.cid}" for entry in gone)
    show(arguments, [entry.to_json() for entry in gone], text)


def _tag(arguments: argparse.Namespace) -> None:
    key, value = _pair(arguments.tag)
    _set_tag(arguments, key, value)


def _untag(arguments: argparse.Namespace) -> None:
    _set_tag(arguments, arguments.key, None)


def _set_tag(arguments: argparse.Namespace, key: str, value: str | None) -> None:
    from holdfast.registry.names import UNCHECKED

    expected = UNCHECKED if arguments.expected is None else arguments.expected or None
    with open_client(arguments) as client:
        names = client.names
        found = names.resolve(arguments.kind, arguments.ref)
        entry = names.set_tag(found.kind, found.name, found.version, key, value, expected=expected)
    text = " ".join(f"{k}={v}" for k, v in entry.tags.items())
    show(arguments, entry.to_json(), f"{entry.name}:{entry.version}  {text or 'no tags'}")
