"""What names can do, wherever they are kept: the entry of one version, and the protocol of all names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import InvalidInput
from holdfast.registry.names.searching import FOUND_AT_MOST, Search
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from holdfast.registry.names.facts import Facts
    from holdfast.registry.names.history import Commit, HistoryCheck
    from holdfast.registry.names.searching import Comparison

__all__ = ["KINDS", "UNCHECKED", "NameEntry", "Names", "PastNames"]

KINDS = ("model", "index", "dataset")
"""What a reference may mean where nobody says of what kind it is: the first of these that has it."""
UNCHECKED = "*"
"""``expected`` of a change: whatever is there now may be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NameEntry:
    """One version of one name."""

    kind: str
    name: str
    version: str
    cid: Cid
    aliases: tuple[str, ...] = ()
    """Sorted."""
    tags: Mapping[str, str] = field(default_factory=dict, hash=False)
    created: float = 0.0
    """Seconds since 1970."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "cid": str(self.cid),
            "aliases": list(self.aliases),
            "tags": dict(self.tags),
            "created": self.created,
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> NameEntry:
        """The entry that :meth:`to_json` wrote.

        Raises:
            InvalidInput: It is none.
        """
        try:
            return cls(**{**body, "cid": Cid.parse(body["cid"]), "aliases": tuple(body["aliases"])})
        except (KeyError, TypeError) as error:
            raise InvalidInput(f"this is no entry of a name: {body!r:.100}") from error


class PastNames(Protocol):
    """Names that can be read: those of now, or those of a moment that has passed."""

    def resolve(self, kind: str | None, ref: str) -> NameEntry:
        """The version that a reference means.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``. None: a model, or else an index, or else a dataset.
            ref: ``name`` (the newest version), ``name:1.0.0``, ``name@alias``, or a range such as ``name:^1.2``, of which
                the newest is meant; see :class:`~holdfast.registry.versions.VersionRange`. ``dataset/name`` says the kind.

        Raises:
            NotFound: No such name, version or alias; the message names the nearest.
            InvalidInput: ``ref`` is no reference.
        """
        ...

    def entries(self, kind: str | None = None) -> list[NameEntry]:
        """All versions of all names, newest last within a name."""
        ...

    def search(
        self,
        kind: str | None = None,
        *,
        name: str | None = None,
        cid: Cid | str | None = None,
        alias: str | None = None,
        tag: Mapping[str, str] | None = None,
        metric: Mapping[str, Comparison] | None = None,
        dataset: Cid | str | Iterable[Cid | str] | None = None,
        fact: Mapping[str, Comparison] | None = None,
        limit: int | None = FOUND_AT_MOST,
    ) -> list[NameEntry]:
        """The versions of which everything that is given is true, newest last within a name.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``; default: all kinds.
            name: A name, or a pattern with ``*``, ``?`` and ``[a-z]``: ``dig*``.
            cid: What it names.
            alias: One that points there, or a pattern.
            tag: Tags with their values; ``*`` stands for any value.
            metric: Numbers by name, each with what it must be: ``{"accuracy": (">", 0.9)}``. One of ``>``, ``>=``, ``<``,
                ``<=``, ``==`` and ``!=``; a number alone must be equal.
            dataset: The dataset version that it was made from, or several, of which one will do.
            fact: The same for all other facts that it was registered with: ``{"framework": "pytorch"}``.
            limit: How many at most, the first by kind and name; None for all.

        Raises:
            InvalidInput: A condition can't be compared.
        """
        search = Search.of(
            kind,
            name=name,
            cid=cid,
            alias=alias,
            tag=tag,
            metric=metric,
            dataset=dataset,
            fact=fact,
            limit=limit,
        )
        return self.find(search)

    def name_of(self, cid: Cid, kind: str | None = None) -> NameEntry | None:
        """What a CID is called where nothing else says it: of its names the oldest; None where it has none."""
        return min(self.search(kind, cid=cid, limit=None), key=lambda entry: entry.created, default=None)

    def meant(self, kind: str | None, ref: str | Cid) -> tuple[Cid, NameEntry | None]:
        """What a reference means, and what that is called: as it was asked for, and of a CID its oldest name.

        Raises:
            NotFound: As of :meth:`resolve`.
            InvalidInput: As of :meth:`resolve`.
        """
        found = self._cid_or_entry(kind, ref)
        return (found, self.name_of(found, kind)) if isinstance(found, Cid) else (found.cid, found)

    def cid_of(self, kind: str | None, ref: str | Cid) -> Cid:
        """The CID that a reference means, or that it is.

        Raises:
            NotFound: As of :meth:`resolve`.
            InvalidInput: As of :meth:`resolve`.
        """
        found = self._cid_or_entry(kind, ref)
        return found if isinstance(found, Cid) else found.cid

    def _cid_or_entry(self, kind: str | None, ref: str | Cid) -> Cid | NameEntry:
        try:
            return Cid.parse(str(ref))
        except InvalidInput:
            return self.resolve(kind, str(ref))

    def find(self, search: Search) -> list[NameEntry]:
        """The versions of which everything in ``search`` is true, newest last within a name."""
        ...


class Names(PastNames, Protocol):
    """Where names are kept: a home's own table, or a master's over HTTP.

    Of several who change the same thing at once exactly one wins; the others get a ``Conflict`` that says what is there and what
    they wanted.
    """

    def register(
        self, kind: str, name: str, version: str | None, cid: Cid, facts: Facts | None = None
    ) -> NameEntry:
        """Give ``cid`` a version of a name; doing it twice is fine.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``.
            name: Letters, digits, dots, dashes and underscores; of a dataset, several such words.
            version: Like ``1.0.0``; None takes the next minor one.
            cid: What it names.
            facts: What a search finds it by; see :func:`~holdfast.registry.names.facts.facts_of_model`. They replace those of
                an earlier registration; None leaves them.

        Raises:
            Conflict: The version names something else already, or did before it was removed; versions never change.
        """
        ...

    def unregister(self, kind: str, name: str, version: str | None = None) -> list[NameEntry]:
        """Remove a version of a name, or all of them, with the aliases that point there.

        What they named goes with the next garbage collection, unless something else keeps it. The version can be given to the
        same thing again, and never to another.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``.
            name: Whose version.
            version: Which one; None for all.

        Returns:
            What was removed.

        Raises:
            NotFound: No such name or version.
        """
        ...

    def rename(self, kind: str, old: str, new: str) -> list[NameEntry]:
        """Give all versions of a name, with aliases, tags and facts, another name; gives them under it.

        The old name then answers where they went. Its versions can be given to the same things again, and never to others.

        Raises:
            NotFound: There is no such name.
            Conflict: There is a thing called ``new``, or one of its removed versions was something else.
        """
        ...

    def set_alias(
        self, kind: str, name: str, alias: str, version: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Point an alias at a version.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``.
            name: Whose alias.
            alias: Such as ``champion``.
            version: Where it shall point.
            expected: Where it must point now; None if it must not exist; default: anywhere.

        Raises:
            Conflict: It points somewhere else than ``expected``.
            NotFound: No such version.
        """
        ...

    def delete_alias(
        self, kind: str, name: str, alias: str, *, expected: str | None = UNCHECKED
    ) -> NameEntry:
        """Remove an alias; gives the version that it pointed to.

        Raises:
            Conflict: It points somewhere else than ``expected``.
            NotFound: No such alias.
        """
        ...

    def set_tag(
        self,
        kind: str,
        name: str,
        version: str,
        key: str,
        value: str | None,
        *,
        expected: str | None = UNCHECKED,
    ) -> NameEntry:
        """Tag a version.

        Args:
            kind: ``dataset``, ``model``, ``index`` or ``conversion``.
            name: Whose version.
            version: Which one.
            key: Such as ``stage``; letters, digits, dots, dashes and underscores.
            value: One line of text; None removes the tag.
            expected: The value that must be there now; None if there must be none; default: any.

        Raises:
            Conflict: The tag has another value than ``expected``.
            NotFound: No such version.
        """
        ...

    def at(self, when: float | datetime | Cid) -> PastNames:
        """The names as they were, rebuilt from the commit records.

        Args:
            when: Seconds since 1970, a time (without a zone: local time), or the CID of a commit, whose change is the last that
                counts.

        Raises:
            NotFound: There is no such commit in the history.
        """
        ...

    def history(self, kind: str | None = None, name: str | None = None) -> list[Commit]:
        """Every change, newest first, read by following the links of the commit records.

        Args:
            kind: Only changes of this kind.
            name: Only changes of this name; also those of the names that it had before it was renamed.

        Raises:
            Corrupt: A record is not what its CID says.
            NotFound: A record is missing.
        """
        ...

    def verify_history(self) -> HistoryCheck:
        """Every commit hashed again, and what follows from them compared with the names as they are.

        Raises:
            Corrupt: A commit is not what its CID says, or the tables hold something else than the commits tell; the
                message names each.
            NotFound: A commit is missing.
        """
        ...
