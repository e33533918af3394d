"""What to say about a name, a version or an alias that is not there: where it went, or what is most like it.

The most like ones are looked for in a short list that indexes give, so a mistake is answered as quickly among a hundred thousand
names as among ten: the neighbours of the text in the order of the names, and in the order of the names read backwards. One wrong
letter leaves the beginning or the end as it was.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from holdfast.registry.versions import VersionRange, is_version, version_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from holdfast.registry.database import Database
    from holdfast.registry.names.references import Reference

__all__ = ["unknown_name", "unknown_version"]

_SHOWN = 20
"""So many are simply listed."""
_NEIGHBOURS = 40
"""On each side."""
_NEAREST = 3
_MAX_RENAMINGS = 20


def unknown_name(database: Database, kinds: Sequence[str], name: str, others: Sequence[str]) -> str:
    """The message for a name that has no versions.

    Args:
        database: Where it was looked for.
        kinds: Of what it might have been.
        name: The name.
        others: Of which other kinds there is something of this name.
    """
    *first, last = kinds
    text = f"there is no {', '.join(first)}{' or ' if first else ''}{last} named {name!r}"
    for kind in kinds:
        if (target := _renamed_to(database, kind, name)) is not None:
            return f"{text} any more: {'it' if len(kinds) == 1 else f'the {kind}'} was renamed to {target!r}"
    also = f"; there is a {' and a '.join(others)} of this name" if others else ""

    def told(some: Iterable[tuple[str, str]]) -> str:
        return ", ".join(each if len(kinds) == 1 else f"{kind} {each}" for kind, each in some)

    some = [(k, row["name"]) for k in kinds for row in database.rows(_FIRST_NAMES, (k, _SHOWN + 1))]
    if len(some) <= _SHOWN:
        return f"{text}; there is {told(some) or 'none at all'}{also}"
    near: dict[str, set[str]] = {}
    for kind in kinds:
        for column, value in (("name", name), ("backwards", name[::-1])):
            for compared, order in ((">=", "ASC"), ("<", "DESC")):
                query = f"SELECT name FROM names WHERE kind = ? AND {column} {compared} ? ORDER BY {column} {order} LIMIT ?"  # noqa: S608 -- constants
                for row in database.rows(query, (kind, value, _NEIGHBOURS)):
                    near.setdefault(row["name"], set()).add(kind)
    found = difflib.get_close_matches(name, sorted(near), _NEAREST)
    nearest = told((kind, each) for each in found for kind in sorted(near[each]))
    return f"{text}; " + (f"the nearest are {nearest}" if nearest else "and none is like it") + also


_FIRST_NAMES = "SELECT name FROM names WHERE kind = ? ORDER BY name LIMIT ?"


def _renamed_to(database: Database, kind: str, name: str) -> str | None:
    """The name that a name's versions have now, or had last."""
    target = None
    for _ in range(_MAX_RENAMINGS):
        rows = database.rows("SELECT target FROM renamed WHERE kind = ? AND name = ?", (kind, target or name))
        if not rows:
            break
        target = rows[0]["target"]
    return target


def unknown_version(database: Database, kind: str, wanted: Reference) -> str:
    """The message for a version, a range of versions, or an alias that a name lacks."""
    text = f"there is no {kind} {wanted}; {wanted.name} has "
    of = (kind, wanted.name)
    versions = [row["version"] for row in database.rows(f"{_VERSIONS} DESC LIMIT ?", (*of, _SHOWN + 1))][::-1]
    aliases = [row["alias"] for row in database.rows(_ALIASES, of)]
    if len(versions) + len(aliases) <= _SHOWN:
        return text + ", ".join([f":{version}" for version in versions] + [f"@{alias}" for alias in aliases])
    if wanted.alias is not None:
        near = difflib.get_close_matches(wanted.alias, aliases, _NEAREST) or aliases[:_SHOWN]
        return f"{text}{', '.join(f'@{alias}' for alias in near) or 'no alias'}, and :{versions[-1]} is its newest version"
    key = version_key(wanted.version or "")
    if wanted.version is not None and not is_version(wanted.version):
        key = VersionRange.parse(wanted.version).low
    below = database.rows(_BELOW, (*of, key, _NEAREST))[::-1]
    above = database.rows(_ABOVE, (*of, key, _NEAREST))
    near = [row["version"] for row in (*below, *above)]
    return (
        f"{text}{', '.join(f':{version}' for version in near)} around it, and :{versions[-1]} is the newest"
    )


_VERSIONS = "SELECT version FROM versions WHERE kind = ? AND name = ? ORDER BY sort_key"
_ALIASES = "SELECT alias FROM aliases WHERE kind = ? AND name = ? ORDER BY alias LIMIT 1000"
_BELOW = (
    "SELECT version FROM versions WHERE kind = ? AND name = ? AND sort_key < ? ORDER BY sort_key DESC LIMIT ?"
)
_ABOVE = (
    "SELECT version FROM versions WHERE kind = ? AND name = ? AND sort_key >= ? ORDER BY sort_key LIMIT ?"
)
