"""Semantic versions: which texts are one, which of two is newer, and which ones a range means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from holdfast.errors import InvalidInput

__all__ = ["VersionRange", "is_version", "next_minor", "version_key"]

_NUMBER = r"(0|[1-9][0-9]{0,8})"
_PRE = r"(?:0|[1-9][0-9]{0,17}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_TAIL = rf"(?:-(?=.{{1,64}}$)({_PRE}(?:\.{_PRE})*))?"
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}{_TAIL}")
"""Semantic versions (semver.org, item 9): no leading zeros, so that no two versions are equal in order."""
_ANY = r"[xX*]"
_PART = rf"(?:{_NUMBER[1:-1]}|{_ANY})"
_TERM = re.compile(
    rf"(?P<operator>\^|~|>=|<=|>|<|=)?(?P<major>{_PART})(?:\.(?P<minor>{_PART})(?:\.(?P<patch>{_PART}){_TAIL})?)?"
)
_NUMBER_BYTES = 4
TRIPLE_BYTES = 3 * _NUMBER_BYTES
"""The three numbers at the beginning of a :func:`version_key`; what follows is the pre-release."""
RELEASE = b"\xff"
"""What follows them where there is no pre-release, which is behind all that have one."""
_END, _NUMERIC, _TEXT = b"\x00", b"\x01", b"\x02"
_OPEN_END = b"\xff" * TRIPLE_BYTES
"""Behind every version: their numbers have nine digits at most."""


def is_version(text: str) -> bool:
    """Whether ``text`` is one version, such as ``1.0.0`` or ``1.0.0-rc.1``."""
    return _VERSION.fullmatch(text) is not None


def version_key(version: str) -> bytes:
    """Bytes that order versions as semver.org, item 11, does; no key is the beginning of another.

    What is no version has an empty key, and so comes before all versions.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        return b""
    major, minor, patch, pre = match.groups()
    return _triple(int(major), int(minor), int(patch)) + _pre_key(pre)


def _triple(major: int, minor: int, patch: int) -> bytes:
    return b"".join(number.to_bytes(_NUMBER_BYTES, "big") for number in (major, minor, patch))


def _pre_key(pre: str | None) -> bytes:
    if pre is None:
        return RELEASE
    parts = [
        _NUMERIC + int(part).to_bytes(8, "big") if part.isdigit() else _TEXT + part.encode() + b"\x00"
        for part in pre.split(".")
    ]
    return b"".join(parts) + _END


def next_minor(newest: bytes | None) -> str:
    """The version after the newest one, which is given by its key; ``1.0.0`` after none.

    Raises:
        InvalidInput: There is none: a number of a version has nine digits at most.
    """
    if not newest:
        return "1.0.0"
    major, minor = (int.from_bytes(newest[at : at + _NUMBER_BYTES], "big") for at in (0, _NUMBER_BYTES))
    version = f"{major}.{minor + 1}.0"
    if not is_version(version):
        raise InvalidInput(
            f"{version!r} is not a version: its numbers have nine digits at most; give the version yourself"
        )
    return version


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRange:
    """The versions from one to another: ``^1.2``, ``~1.2.3``, ``>=1.0,<2``, ``1.x``, ``1``, ``*``.

    Terms with a comma between them must all be true. Missing numbers, and ``x``, ``X`` and ``*``, stand for any.

    ============== ========================================================================
    ``1``, ``1.x`` at least 1.0.0 and below 2.0.0
    ``1.2``        at least 1.2.0 and below 1.3.0
    ``^1.2.3``     at least 1.2.3, and the first number that is not zero stays: below 2.0.0
    ``~1.2.3``     at least 1.2.3 and below 1.3.0; ``~1`` is ``1``
    ``>1.2``       above all of 1.2: at least 1.3.0
    ``<=1.2``      all of 1.2, too: below 1.3.0
    ============== ========================================================================

    A pre-release is meant only if a term names a pre-release of the same three numbers: ``>=1.0.0-rc.1`` means 1.0.0-rc.2
    and 1.1.0, and not 1.1.0-rc.1.
    """

    low: bytes
    """The least :func:`version_key`."""
    high: bytes
    """The first key that is too great."""
    pre_release_of: frozenset[bytes] = frozenset()
    """The numbers, as their part of the key, of which pre-releases are meant, too."""

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """The range in ``text``.

        Raises:
            InvalidInput: It is none.
        """
        low, high = b"", _OPEN_END
        named: set[bytes] = set()
        for term in re.split(", ?", text):
            match = _TERM.fullmatch(term)
            if match is None:
                raise InvalidInput(
                    f"{text!r} is neither a version, such as 1.0.0 or 1.0.0-rc.1, nor a range of versions, such as ^1.2, "
                    "~1.2.3, 1.x or >=1.0,<2"
                )
            given = [_number(match[part]) for part in ("major", "minor", "patch")]
            pre = match[match.re.groups]
            if pre is not None and None not in given:
                named.add(_triple(*(number or 0 for number in given)))
            least, limit = _bounds(match["operator"] or "=", given, pre, text)
            low, high = max(low, least), min(high, limit)
        return cls(low=low, high=high, pre_release_of=frozenset(named))

    def __contains__(self, version: str) -> bool:
        key = version_key(version)
        if not self.low <= key < self.high:
            return False
        return key[TRIPLE_BYTES:] == RELEASE or key[:TRIPLE_BYTES] in self.pre_release_of


def _number(part: str | None) -> int | None:
    return int(part) if part is not None and part.isdigit() else None


def _bounds(operator: str, given: list[int | None], pre: str | None, text: str) -> tuple[bytes, bytes]:
    """The least key of a term, and the first that is too great."""
    known = next((at for at, number in enumerate(given) if number is None), 3)
    if known == 0:
        if operator not in "=^~":
            raise InvalidInput(f"{text!r}: there is nothing to compare with; give at least a first number")
        return b"", _OPEN_END
    numbers = [number or 0 for number in given[:known]]
    if known == 3:
        least = limit = _filled(numbers) + _pre_key(pre)
        behind = behind_all = least + b"\x00"
    else:
        # Nothing below ends before the pre-releases of its numbers, and nothing above begins with them.
        limit, behind = _filled(numbers), _filled(_raised(numbers, known - 1))
        least, behind_all = limit + RELEASE, behind + RELEASE
    if operator == "^":
        place = next((at for at, number in enumerate(numbers) if number), known - 1)
        return least, _filled(_raised(numbers, place))
    if operator == "~":
        return least, _filled(_raised(numbers, min(known - 1, 1)))
    return (
        {">=": least, ">": behind_all, "=": least}.get(operator, b""),
        {"<": limit, "<=": behind, "=": behind}.get(operator, _OPEN_END),
    )


def _raised(numbers: list[int], place: int) -> list[int]:
    return [*numbers[:place], numbers[place] + 1]


def _filled(numbers: list[int]) -> bytes:
    return _triple(*numbers, *[0] * (3 - len(numbers)))
