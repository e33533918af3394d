"""What people write for a version, and which words a name, an alias or a tag may be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast.errors import InvalidInput
from holdfast.registry.versions import VersionRange, is_version
from holdfast.storage.cid import Cid

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Reference", "checked_name", "checked_tag", "checked_version", "checked_word"]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TITLE = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9._-]*(?:,? [A-Za-z0-9._-]+)*")
"""Words with a space, or a comma and a space, between them: still nothing else that a reference or a path could mean."""
_OF_CIDS = {"conversion"}
"""Kinds whose names are the CIDs of what they are forms of."""
_TITLED = {"dataset"}
"""Kinds whose names may be several words; the others' are part of URLs."""
_A = {"model": "a model", "index": "an index", "dataset": "a dataset", "conversion": "a conversion"}
"""What may stand before a name and a slash, in words."""
MAX_TAG_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Reference:
    """What people write for a version: ``name`` (the newest), ``name:1.0.0``, ``name@alias``, or ``name:^1.2``, a range.

    Of a range the newest version is meant; see :class:`~holdfast.registry.versions.VersionRange`. Where several kinds of things
    have a name, ``dataset/name`` says which is meant.
    """

    name: str
    version: str | None = None
    """One version, or a range of versions."""
    alias: str | None = None
    kind: str | None = None
    """``model``, ``index``, ``dataset`` or ``conversion``, if it is said."""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference in ``text``.

        Raises:
            InvalidInput: It is not one.
        """
        if not isinstance(text, str):
            raise InvalidInput(f"a reference is text such as 'name' or 'name:1.0.0', not {text!r:.100}")
        before, slash, rest = text.partition("/")
        kind, said = (before, rest) if slash and before in _A else (None, text)
        name, colon, version = said.partition(":")
        if not colon:
            name, at, alias = said.partition("@")
            word = checked_word(alias, "an alias") if at else None
            return cls(_checked(_TITLE, name, "a name"), alias=word, kind=kind)
        if not is_version(version):
            VersionRange.parse(version)
        return cls(_checked(_TITLE, name, "a name"), version=version, kind=kind)

    def kinds(self, wanted: str | None, every: Sequence[str]) -> Sequence[str]:
        """Among things of which kinds to look: of the one that is wanted or said, else of every one.

        Raises:
            InvalidInput: Another kind is said than is wanted.
        """
        if wanted and self.kind and wanted != self.kind:
            raise InvalidInput(f"{self} is {_A[self.kind]}, and {_A.get(wanted, wanted)} is wanted here")
        kind = wanted or self.kind
        return every if kind is None else (kind,)

    @property
    def range(self) -> VersionRange | None:
        """The range of versions, if it is one and not a single version."""
        if self.version is None or is_version(self.version):
            return None
        return VersionRange.parse(self.version)

    def __str__(self) -> str:
        which = f":{self.version}" if self.version else f"@{self.alias}" if self.alias else ""
        return (f"{self.kind}/" if self.kind else "") + self.name + which


def checked_name(kind: str, name: str) -> str:
    """``name``, if something of ``kind`` may be called so.

    Raises:
        InvalidInput: It may not.
    """
    _checked(_TITLE if kind in _TITLED else _WORD, name, f"a name of a {kind}")
    if kind in _OF_CIDS:
        return name
    try:
        Cid.parse(name)
    except InvalidInput:
        return name
    raise InvalidInput(f"{name!r} can't be a name of a {kind}: wherever it stands, the CID would be meant")


def checked_word(text: str, what: str) -> str:
    """``text``, if it can be ``what``: an alias, or the key of a tag.

    Raises:
        InvalidInput: It can't.
    """
    return _checked(_WORD, text, what)


def checked_version(version: str) -> str:
    """``version``, if it is one version and not a range.

    Raises:
        InvalidInput: It is not.
    """
    if not isinstance(version, str) or not is_version(version):
        raise InvalidInput(f"{version!r} is not a version: three numbers such as 1.0.0, or 1.0.0-rc.1")
    return version


def checked_tag(value: str) -> str:
    """``value``, if a tag may have it.

    Raises:
        InvalidInput: It may not.
    """
    if (
        not isinstance(value, str)
        or not value.isprintable()
        or not 0 < len(value) <= MAX_TAG_CHARACTERS
        or value == "*"
    ):
        raise InvalidInput(
            f"{value!r:.60} is no value of a tag: one line of up to {MAX_TAG_CHARACTERS} characters, and not '*', "
            "which stands for any"
        )
    return value


def _checked(pattern: re.Pattern[str], text: str, what: str) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        words = "words of " if pattern is _TITLE else ""
        raise InvalidInput(
            f"{text!r} is not {what}: {words}letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    return text
