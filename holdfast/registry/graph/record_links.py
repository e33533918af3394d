"""The links of a record, by what they mean: which thing is a part of which, and in what role."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.printable import printable
from holdfast.storage.formats.dag import links_with_paths

if TYPE_CHECKING:
    from holdfast.storage.cid import Cid

__all__ = ["DATASET", "Link", "links_in", "role_name"]

DATASET, RUN = "dataset", "run"
ANCESTORS = ("parent", "provenance")
"""The fields of a dataset's manifest that link other datasets; its other links are its rows, which are no parts here."""
OUTPUTS = "outputs"
"""The field of a run that links what it made: there the arrow points the other way."""


@dataclass(frozen=True, slots=True, order=True)
class Link:
    """One arrow: ``whole`` is made of ``part``."""

    part: Cid
    role: str
    """The field that links it, such as ``data``; inside of it dotted, and without numbers of lists."""
    whole: Cid


def links_in(cid: Cid, record: Any) -> list[Link]:
    """The arrows that a record tells of, each once, in the order of its fields.

    What a run links as its outputs is made by it, and not part of it: the arrow goes from the run to the file. Of a dataset
    only those that it was made from are parts, never its shards.
    """
    if not isinstance(record, dict):
        return []
    kind = record.get("kind")
    body = {name: record.get(name) for name in ANCESTORS} if kind == DATASET else record
    found: dict[Link, None] = {}
    for path, link in links_with_paths(body):
        role = ".".join(key for key in path if isinstance(key, str))
        made = kind == RUN and role.partition(".")[0] == OUTPUTS
        found[Link(cid, role, link) if made else Link(link, role, cid)] = None
    return list(found)


def role_name(role: str) -> str:
    """The word that people read for a role: the field's name, and ``made by`` for what a run put out."""
    field = role.partition(".")[0]
    return "made by" if field == OUTPUTS else printable(field)
