# ruff: noqa: N818 -- "Error" behind every name would say nothing new
"""Every error that holdfast raises, one class per reaction.

::

    HoldfastError
    ├── NotFound      (LookupError)          look elsewhere, or create it
    ├── Conflict      (RuntimeError)         somebody else changed it: read again, then retry
    ├── Corrupt       (ValueError)           the bytes are wrong: fetch them from another place
    ├── Unavailable   (ConnectionError)      a process, peer or resource is missing now: retry later
    ├── Denied        (PermissionError)      present the right token
    ├── InvalidInput  (ValueError)           change the call
    └── Unsupported   (NotImplementedError)  install an extra, or ask for something else

Each class also is the builtin error that fits, so ``except ValueError`` works for callers who don't
know holdfast. ``code`` is stable and append-only: the command line maps it to an exit status, the HTTP
servers to a response status and a JSON body.
"""

from __future__ import annotations

import errno
import importlib
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

__all__ = [
    "Conflict",
    "Corrupt",
    "Denied",
    "ErrorCode",
    "HoldfastError",
    "InvalidInput",
    "NotFound",
    "Unavailable",
    "Unsupported",
    "disk_errors",
    "error_from_json",
    "require",
]


class ErrorCode(StrEnum):
    """Machine-readable name of an error class. Append-only."""

    INTERNAL = "internal"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    CORRUPT = "corrupt"
    UNAVAILABLE = "unavailable"
    DENIED = "denied"
    INVALID_INPUT = "invalid_input"
    UNSUPPORTED = "unsupported"


class HoldfastError(Exception):
    """The root: catch it to catch everything that holdfast raises on purpose."""

    code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def to_json(self) -> dict[str, str]:
        """The body that every holdfast server sends for this error."""
        return {"error": str(self), "code": self.code.value}


class NotFound(HoldfastError, LookupError):
    """A CID, name, version or file is not there."""

    code = ErrorCode.NOT_FOUND
    exit_status = 3
    http_status = 404


class Conflict(HoldfastError, RuntimeError):
    """What should be changed is no longer what the caller saw, or exists already."""

    code = ErrorCode.CONFLICT
    exit_status = 4
    http_status = 409


class Corrupt(HoldfastError, ValueError):
    """Bytes do not match their CID, or a stored structure breaks its own format."""

    code = ErrorCode.CORRUPT
    exit_status = 5
    http_status = 502


class Unavailable(HoldfastError, ConnectionError):
    """A process, a peer, a port or disk space is not to be had at the moment."""

    code = ErrorCode.UNAVAILABLE
    exit_status = 6
    http_status = 503


class Denied(HoldfastError, PermissionError):
    """The token is missing or wrong."""

    code = ErrorCode.DENIED
    exit_status = 7
    http_status = 401


class InvalidInput(HoldfastError, ValueError):
    """The caller's argument, file or request can't be used as it is."""

    code = ErrorCode.INVALID_INPUT
    exit_status = 2
    http_status = 400


class Unsupported(HoldfastError, NotImplementedError):
    """Well-formed, but this build can't do it: an extra is missing, or a format is not handled."""

    code = ErrorCode.UNSUPPORTED
    exit_status = 8
    http_status = 501


_BY_CODE: dict[str, type[HoldfastError]] = {
    cls.code.value: cls
    for cls in (NotFound, Conflict, Corrupt, Unavailable, Denied, InvalidInput, Unsupported)
}


def error_from_json(body: Any, *, where: str) -> HoldfastError:
    """The error that a holdfast server described with :meth:`HoldfastError.to_json`.

    A body of any other shape gives an :class:`Unavailable` that names ``where``.
    """
    if isinstance(body, dict) and isinstance(body.get("error"), str):
        return _BY_CODE.get(str(body.get("code")), HoldfastError)(body["error"])
    return Unavailable(f"{where} gave an answer that is not holdfast's: {str(body)[:200]!r}")


def require(module: str, *, extra: str, why: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: Dotted name to import, such as ``"matplotlib.pyplot"``.
        extra: The holdfast extra that installs it, such as ``"plots"``.
        why: What needs it, as the subject of a sentence: ``"plotting a run"``.

    Raises:
        Unsupported: The module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise Unsupported(
            f"{why} needs the package {missing!r}, which is not installed: pip install 'holdfast[{extra}]'"
        ) from error


@contextmanager
def disk_errors(path: Path | str) -> Iterator[None]:
    """Turn a full or read-only disk under ``path`` into one clear error."""
    try:
        yield
    except OSError as error:
        if isinstance(error, HoldfastError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Unavailable(
                f"the disk that holds {path} is full: free some space and try again; nothing was stored"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise Denied(f"no permission to write under {path}: {error.strerror}") from error
        raise
