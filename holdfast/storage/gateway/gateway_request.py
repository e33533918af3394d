"""What a request to a gateway asks for, by its path, its query and its headers.

Sources: https://specs.ipfs.tech/http-gateways/trustless-gateway/, https://specs.ipfs.tech/http-gateways/path-gateway/ and RFC 9110.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from aiohttp import web

from holdfast.errors import InvalidInput
from holdfast.storage.cid import Cid

__all__ = [
    "FORMATS",
    "CarOptions",
    "ContentPath",
    "Format",
    "byte_ranges",
    "cache_control",
    "content_disposition",
    "knows",
    "not_modified",
    "only_if_cached",
    "wanted_format",
]

FORMATS = {
    "raw": "application/vnd.ipld.raw",
    "car": "application/vnd.ipld.car",
    "dag-json": "application/vnd.ipld.dag-json",
    "dag-cbor": "application/vnd.ipld.dag-cbor",
    "json": "application/json",
    "cbor": "application/cbor",
    "tar": "application/x-tar",
    "ipns-record": "application/vnd.ipfs.ipns-record",
}
"""What the gateways' specifications know, with the media types; not all of it is served."""

MAX_PATH_NAMES = 128
_PLAIN_NAME = re.compile(r"[0-9A-Za-z._-]{1,255}")


@dataclass(frozen=True, slots=True)
class ContentPath:
    """The CID and the names behind it, of a request's path."""

    cid: Cid
    names: tuple[str, ...]
    text: str
    """As it was asked for, percent-encoded."""

    @classmethod
    def of(cls, request: web.Request) -> ContentPath:
        """The content path of a request to ``/ipfs/{path}``.

        Raises:
            InvalidInput: It does not begin with a CID, is too deep, or not UTF-8.
        """
        text = request.rel_url.raw_path
        # Split before decoding: a slash that is encoded is part of a name (and of base 64).
        first, *rest = [part for part in text.split("/") if part][1:] or [""]
        if len(rest) > MAX_PATH_NAMES:
            raise InvalidInput(
                f"the path has {len(rest)} names behind its CID; at most {MAX_PATH_NAMES} are resolved"
            )
        try:
            names = tuple(unquote(part, errors="strict") for part in rest)
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{text[:100]!r} is not UTF-8: {error}") from error
        return cls(Cid.parse(unquote(first)), names, text)


@dataclass(frozen=True, slots=True)
class Format:
    """A format by its name in :data:`FORMATS`, and the parameters that ``Accept`` states for it."""

    name: str
    parameters: dict[str, str] = field(default_factory=dict)
    negotiated: bool = False
    """It was found in ``Accept``, not in the URL."""


def accepted(header: str) -> list[tuple[str, dict[str, str]]]:
    """The media types of an ``Accept`` header with their parameters, the preferred first."""
    found: list[tuple[float, bool, str, dict[str, str]]] = []
    for item in header.split(","):
        kind, *pairs = (part.strip() for part in item.split(";"))
        named = (pair.partition("=") for pair in pairs)
        parameters = {name.strip().lower(): value.strip().strip('"') for name, _, value in named}
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 1.0
        if kind and quality > 0:
            found.append((-quality, "*" in kind, kind.lower(), parameters))
    found.sort(key=lambda one: one[:2])
    return [(kind, parameters) for _, _, kind, parameters in found]


def wanted_format(request: web.Request) -> Format | None:
    """The format that a request names; None if it leaves that to the server.

    Raises:
        InvalidInput: It names one that does not exist.
    """
    name = request.query.get("format")
    header = request.headers.get("Accept", "")
    if name is None and (not header or header == "*/*"):
        return None
    kinds = accepted(header) if header else []
    if name is not None:
        if name not in FORMATS:
            raise InvalidInput(f"format={name[:50]!r} does not exist; ask for format=raw or format=car")
        return Format(name, next((found for kind, found in kinds if kind == FORMATS[name]), {}))
    for kind, parameters in kinds:
        if kind in ("text/html", "*/*"):
            return None
        for known, media_type in FORMATS.items():
            if kind == media_type:
                return Format(known, parameters, negotiated=True)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CarOptions:
    """Which blocks a CAR is to have."""

    scope: str = "all"
    first: int | None = None
    """First byte of ``entity-bytes``, negative from the end; None where no range is asked for."""
    last: int | None = None
    """Its last byte, inclusive; None for the end of the file."""
    dups: bool = False

    @classmethod
    def of(cls, query: Any, parameters: dict[str, str]) -> CarOptions:
        """The options in a query, and in the parameters of ``Accept``; the query wins.

        Raises:
            InvalidInput: One of them has a value that does not exist, or is not served.
        """

        def option(name: str, values: tuple[str, ...], default: str) -> str:
            value: str = query.get(f"car-{name}") or parameters.get(name) or default
            if value not in values:
                raise InvalidInput(
                    f"a CAR with {name}={value[:50]!r} is not served; ask for {' or '.join(values)}"
                )
            return value

        option("version", ("1",), "1")
        option("order", ("dfs", "unk"), "dfs")
        dups = option("dups", ("y", "n"), "n") == "y"
        scope = query.get("dag-scope", "all")
        if scope not in ("block", "entity", "all"):
            raise InvalidInput(f"dag-scope={scope[:50]!r} does not exist; ask for block, entity or all")
        if "entity-bytes" not in query:
            return cls(scope=scope, dups=dups)
        text = query["entity-bytes"]
        try:
            first, last = text.split(":")
            start, end = int(first), None if last == "*" else int(last)
        except ValueError as error:
            raise InvalidInput(
                f"entity-bytes={text[:50]!r} is not from:to, such as 0:1023, 512:* or -1024:*"
            ) from error
        if end is not None and start >= 0 and 0 <= end < start:
            raise InvalidInput(f"entity-bytes={text[:50]} ends before it begins")
        return cls(scope="entity", first=start, last=end, dups=dups)

    def __str__(self) -> str:
        bounds = "" if self.first is None else f".{self.first}:{'*' if self.last is None else self.last}"
        return f"{self.scope}{bounds}.{'y' if self.dups else 'n'}"


def byte_ranges(header: str, size: int) -> list[tuple[int, int]] | None:
    """The ranges of a ``Range`` header that have bytes in them, as offsets from and behind.

    Returns:
        None if it is to be ignored (no byte ranges, or malformed); no ranges if none of them can be satisfied.
    """
    unit, _, text = header.partition("=")
    if unit.strip().lower() != "bytes":
        return None
    found = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        digits = [part for part in (first, last) if part]
        if (
            not dash
            or not digits
            or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in digits)
        ):
            return None
        start, end = (
            (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
        )
        if first and last and end <= start:
            return None
        if start < size and start < end:
            found.append((start, min(end, size)))
    return found


def knows(request: web.Request, etag: str) -> bool:
    """Whether the client has what ``etag`` names, as its ``If-None-Match`` says."""
    known = request.headers.get("If-None-Match")
    if known is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in known.split(",")]
    return etag.removeprefix("W/") in tags or tags == ["*"]


def only_if_cached(request: web.Request) -> bool:
    """Whether the client wants what is here at once, or nothing."""
    return "only-if-cached" in request.headers.get("Cache-Control", "")


def cache_control(request: web.Request, how: str = "max-age=29030400, immutable") -> str:
    """A ``Cache-Control``; what was given to somebody with a token is for that client's cache alone."""
    secret = "Authorization" in request.headers or "Cookie" in request.headers
    return f"{'private' if secret else 'public'}, {how}"


def not_modified(headers: dict[str, str]) -> web.Response:
    """The answer to who has it already."""
    return web.Response(
        status=304, headers={name: headers[name] for name in ("Etag", "Cache-Control", "Vary")}
    )


def content_disposition(kind: str, filename: str) -> str:
    """A ``Content-Disposition``: ``kind`` is inline or attachment."""
    if _PLAIN_NAME.fullmatch(filename):  # as those that are a CID
        return f'{kind}; filename="{filename}"'
    name = "".join("_" if letter in '"\\/' or not letter.isprintable() else letter for letter in filename)[
        :255
    ]
    plain = name.encode("ascii", "replace").decode().replace("?", "_")
    extended = "" if plain == name else f"; filename*=UTF-8''{quote(name.encode(errors='replace'), safe='')}"
    return f'{kind}; filename="{plain}"{extended}'
