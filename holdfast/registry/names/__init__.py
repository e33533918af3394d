"""Names for CIDs: the only mutable thing. Versions never change, aliases and tags move by compare-and-swap.

Each change is also a commit record in the block store that links the one before it, so the history of every name can be
checked like everything else.
"""

from __future__ import annotations

from holdfast.registry.names.facts import Facts, facts_of_model
from holdfast.registry.names.history import Commit, HistoryCheck
from holdfast.registry.names.names import UNCHECKED, NameEntry, Names, PastNames
from holdfast.registry.names.references import Reference
from holdfast.registry.names.sqlite_names import SqliteNames
from holdfast.registry.versions import VersionRange

__all__ = [
    "UNCHECKED",
    "Commit",
    "Facts",
    "HistoryCheck",
    "NameEntry",
    "Names",
    "PastNames",
    "Reference",
    "SqliteNames",
    "VersionRange",
    "facts_of_model",
]
