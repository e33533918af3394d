"""What people write for a version, and which words a name, an alias or a tag may be."""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.errors import InvalidInput
from holdfast.registry.versions import VersionRange, is_version

__all__ = ["Reference", "checked_name", "checked_tag", "checked_version", "checked_word"]

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TITLE = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9._-]*(?:,? [A-Za-z0-9._-]+)*")
"""Words with a space, or a comma and a space, between them: still nothing else that a reference or a path could mean."""
_TITLED = {"dataset"}
"""Kinds whose names may be several words; the others' are part of URLs."""
MAX_TAG_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Reference:
    """What people write for a version: ``name`` (the newest), ``name:1.0.0``, ``name@alias``, or ``name:^1.2``, a range.

    Of a range the newest version is meant; see :class:`~holdfast.registry.versions.VersionRange`.
    """

    name: str
    version: str | None = None
    """One version, or a range of versions."""
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """The reference in ``text``.

        Raises:
            InvalidInput: It is not one.
        """
        name, colon, version = text.partition(":")
        if not colon:
            name, _, alias = text.partition("@")
            if "@" in text:
                return cls(_checked(_TITLE, name, "a name"), alias=checked_word(alias, "an alias"))
            return cls(_checked(_TITLE, name, "a name"))
        if not is_version(version):
            VersionRange.parse(version)
        return cls(_checked(_TITLE, name, "a name"), version=version)

    @property
    def range(self) -> VersionRange | None:
        """The range of versions, if it is one and not a single version."""
        if self.version is None or is_version(self.version):
            return None
        return VersionRange.parse(self.version)

    def __str__(self) -> str:
        return self.name + (f":{self.version}" if self.version else f"@{self.alias}" if self.alias else "")


def checked_name(kind: str, name: str) -> str:
    """``name``, if something of ``kind`` may be called so.

    Raises:
        InvalidInput: It may not.
    """
    return _checked(_TITLE if kind in _TITLED else _WORD, name, f"a name of a {kind}")


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
    if not is_version(version):
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
