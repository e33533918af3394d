"""Files and directories for browsers: the path gateway, over the trustless one.

Source: https://specs.ipfs.tech/http-gateways/path-gateway/. A browser verifies nothing, so every block is hashed here before a byte of
it leaves. What is served may come from strangers and shares its origin with the dashboard of a node: it is sandboxed
(``Content-Security-Policy: sandbox`` without ``allow-same-origin``), so its scripts have an origin of their own and no cookie.
"""

from __future__ import annotations

import asyncio
import codecs
import hmac
import html
import json
import mimetypes
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from aiohttp import web

from holdfast import __version__
from holdfast.errors import HoldfastError, InvalidInput, NotFound, Unsupported
from holdfast.printable import printable
from holdfast.sizes import human_size
from holdfast.storage.block_store import SupportsPrefetch, VerifyingStore, inline_block
from holdfast.storage.cid import DAG_CBOR, DAG_PB, RAW, Buffer, Cid
from holdfast.storage.content import ContentStore
from holdfast.storage.formats import dag_cbor, dag_json
from holdfast.storage.formats.dag import RECORD_CODECS, decode_record
from holdfast.storage.formats.dag_pb import UnixFsType
from holdfast.storage.formats.unixfs import DirectoryEntry, unixfs_of
from holdfast.storage.gateway.dag_walk import Resolved, resolve
from holdfast.storage.gateway.gateway_request import (
    FORMATS,
    ContentPath,
    Format,
    byte_ranges,
    cache_control,
    content_disposition,
    knows,
    not_modified,
    only_if_cached,
    wanted_format,
)
from holdfast.storage.gateway.node_server import SEND_TIMEOUT_S, TrustlessGateway, break_off, busy, finish
from holdfast.telemetry import counter
from holdfast.web import bearer_token, errors_as_json, metrics, token_cookie

if TYPE_CHECKING:
    from collections.abc import Iterator

    from aiohttp.typedefs import Middleware

    from holdfast.storage.block_store import BlockStore

__all__ = ["add_gateway_routes", "gateway_app"]

MAX_LISTED = 10_000
"""Entries of a directory in one page."""
MAX_LOOKED_INTO = 256
"""Entries whose kind and size a page shows; of more, only their names and the sizes that the directory states."""
MAX_FILES = 64
"""Sent at a time; who comes later is told to come again."""
MAX_RANGES = 16
MAX_SHOWN_RECORD_BYTES = 256 << 10
SNIFFED_BYTES = 1024

SANDBOX = "sandbox allow-scripts allow-forms allow-popups allow-modals allow-downloads"
"""For what is served: scripts run, but in an origin of their own, without this one's cookies and storage."""
OWN_PAGE = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
"""For pages made here, which have no scripts."""

_JSON, _CBOR = 0x0200, 0x51
_BLOCK_TYPES = {_JSON: "application/json", _CBOR: "application/cbor"}
_TYPES = mimetypes.MimeTypes()  # Python's own table: the machine's would give other answers on other machines
for _suffix, _type in {
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".parquet": "application/vnd.apache.parquet",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}.items():
    _TYPES.add_type(_type, _suffix)
_PACKED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/x-brotli",
}
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"<!doctype html", "text/html"),
    (b"<html", "text/html"),
    (b"<svg", "image/svg+xml"),
)


Part: TypeAlias = tuple[bytes, int, int]
"""Of a body: some text, and then the bytes of the file from and to before these offsets."""


def _next_or_error(content: Iterator[memoryview]) -> memoryview | HoldfastError | None:
    try:
        return next(content, None)
    except HoldfastError as error:
        return error


def _or_raise(piece: memoryview | HoldfastError | None) -> memoryview | None:
    if isinstance(piece, HoldfastError):
        raise piece
    return piece


def _parts(
    ranges: list[tuple[int, int]] | None, size: int, headers: dict[str, str]
) -> tuple[int, list[Part], bytes]:
    """Status, parts and closing text of an answer with these ranges of a file; completes its headers."""
    if ranges is None or len(ranges) > MAX_RANGES or sum(end - start for start, end in ranges) > size:
        return 200, [(b"", 0, size)], b""  # many, or the same bytes again and again: the whole is cheaper
    stated = [f"bytes {start}-{end - 1}/{size}" for start, end in ranges]
    if len(ranges) == 1:
        headers["Content-Range"] = stated[0]
        return 206, [(b"", *ranges[0])], b""
    kind, mark = headers["Content-Type"], secrets.token_hex(16)
    headers["Content-Type"] = f"multipart/byteranges; boundary={mark}"
    parts = [
        (f"\r\n--{mark}\r\nContent-Type: {kind}\r\nContent-Range: {text}\r\n\r\n".encode(), *bounds)
        for text, bounds in zip(stated, ranges, strict=True)
    ]
    return 206, parts, f"\r\n--{mark}--\r\n".encode()


class _Checked(VerifyingStore):
    """Blocks for browsers: hashed, unless the store does that itself, and fetched ahead where that is possible."""

    def __init__(self, blocks: BlockStore) -> None:
        super().__init__(blocks, source="this node's store")
        self._blocks = blocks
        self._ahead = blocks if isinstance(blocks, SupportsPrefetch) else None

    def get(self, cid: Cid) -> Buffer:
        inline = inline_block(cid)
        if inline is not None:
            return inline
        return self._blocks.get(cid) if isinstance(self._blocks, VerifyingStore) else super().get(cid)

    def prefetch(self, cids: list[Cid], *, root: Cid | None = None) -> None:
        if self._ahead is not None:
            self._ahead.prefetch(cids, root=root)


def media_type(name: str, head: bytes) -> str:
    """The content type of a file, by its name and else by its first bytes."""
    guessed, packed = _TYPES.guess_type(f"x/{name}", strict=False)
    if packed is not None:
        return _PACKED.get(packed, "application/octet-stream")
    start = head.lstrip()[:32].lower()
    if guessed is None:
        guessed = next(
            (kind for sign, kind in _SIGNATURES if head.startswith(sign) or start.startswith(sign)), None
        )
    is_text = b"\0" not in head
    with suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(
            head, len(head) < SNIFFED_BYTES
        )  # else the last letter may be cut
        if guessed is None:
            guessed = "text/plain" if is_text else None
        if guessed is not None and guessed.startswith("text/"):
            return f"{guessed}; charset=utf-8"
    return guessed or "application/octet-stream"


def wants_html(request: web.Request) -> bool:
    """Whether the client is one that shows pages."""
    return "text/html" in request.headers.get("Accept", "")


class WebGateway:
    """The answers to requests for files, directories and records.

    Args:
        store: What to serve; its blocks are hashed before they are sent.
        trustless: Answers requests for blocks and CARs, and has the threads.
    """

    def __init__(self, store: ContentStore, trustless: TrustlessGateway) -> None:
        self._blocks = _Checked(store.blocks)
        self._store = ContentStore(self._blocks)
        self._trustless = trustless
        self._files = 0

    def statistics(self) -> dict[str, int]:
        """``files`` under way."""
        return {"files": self._files}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Whatever is asked for under ``/ipfs/``; errors as pages for who shows pages."""
        try:
            return await self._answer(request)
        except (HoldfastError, web.HTTPException) as error:
            if not wants_html(request) or (isinstance(error, web.HTTPException) and error.status < 400):
                raise
            status = error.status if isinstance(error, web.HTTPException) else error.http_status
            return error_page(status, error.reason if isinstance(error, web.HTTPException) else str(error))

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        wanted = wanted_format(request)
        path = ContentPath.of(request)
        if wanted is not None and wanted.name in ("raw", "car", "tar", "ipns-record"):
            return await self._trustless.answer(request, path, wanted)
        if request.headers.get("Service-Worker") == "script":
            raise InvalidInput("what is served here can't become a service worker: its origin is not its own")
        if only_if_cached(request) and not self._blocks.has(path.cid) and inline_block(path.cid) is None:
            raise web.HTTPPreconditionFailed(reason=f"{path.cid} is not here")
        found = await self._trustless.in_thread(resolve, self._blocks.get, path.cid, path.names)
        cid = found.cid
        if cid.codec == RAW or cid.codec in _BLOCK_TYPES:
            return await self._file(request, path, found, cid)
        if cid.codec in RECORD_CODECS:
            return await self._record(request, path, found, wanted)
        if cid.codec != DAG_PB:
            raise InvalidInput(f"{cid} has the codec 0x{cid.codec:x}: ask for its block with ?format=raw")
        if wanted is not None and not wanted.negotiated:
            raise web.HTTPNotAcceptable(
                reason=f"{cid} is a file or a directory, which is not converted to {wanted.name}"
            )
        _, message = await self._trustless.in_thread(unixfs_of, cid, self._blocks.get)
        if message.type == UnixFsType.SYMLINK:
            headers = self._headers(request, path, found, f'"{cid}"') | {
                "Content-Type": "text/plain; charset=utf-8"
            }
            return await finish(request, web.Response(body=message.data or b"", headers=headers))
        if message.type in (UnixFsType.DIRECTORY, UnixFsType.HAMT_SHARD):
            return await self._directory(request, path, found)
        return await self._file(request, path, found, cid)

    # ------------------------------------------------------------------------------------------------- files

    async def _file(
        self, request: web.Request, path: ContentPath, found: Resolved, cid: Cid, name: str = ""
    ) -> web.StreamResponse:
        """The bytes of the file ``cid``, or ranges of them."""
        etag = f'"{found.cid}"'
        headers = self._headers(request, path, found, etag)
        if knows(request, etag):
            return not_modified(headers)
        if self._files >= MAX_FILES:
            return busy()
        self._files += 1
        try:
            given = request.query.get("filename", "")
            download = request.query.get("download", "").lower() in ("1", "true", "yes")
            name = given or name or (path.names[-1] if path.names else "")
            size, head = await self._trustless.in_thread(self._facts, cid)
            kind = _BLOCK_TYPES.get(cid.codec) or media_type(name, head)
            headers |= {"Content-Type": kind, "Accept-Ranges": "bytes"}
            if given or download:
                disposition = content_disposition("attachment" if download else "inline", name or str(cid))
                headers["Content-Disposition"] = disposition
            if (
                kind == "application/pdf"
            ):  # browsers show none in a sandbox, and its scripts can't reach the origin anyway
                del headers["Content-Security-Policy"]
            ranges = None
            if "Range" in request.headers and request.headers.get("If-Range", etag) == etag:
                ranges = byte_ranges(request.headers["Range"], size)
            if ranges == []:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
            status, parts, closing = _parts(ranges, size, headers)
            response = web.StreamResponse(status=status, headers=headers)
            response.content_length = sum(len(text) + end - start for text, start, end in parts) + len(
                closing
            )
            if request.method == "HEAD":
                return await finish(request, response)
            return await self._send(request, response, self._content(cid, parts, closing))
        finally:
            self._files -= 1

    def _facts(self, cid: Cid) -> tuple[int, bytes]:
        """A file's size and its first bytes; no bytes where their block is missing, for other ranges may be here."""
        size = self._store.stat(cid).size if cid.codec == DAG_PB else memoryview(self._blocks.get(cid)).nbytes
        head = b""
        with suppress(NotFound):
            for piece in self._pieces(cid, 0, SNIFFED_BYTES):
                head += bytes(piece)
        return size, head

    def _pieces(self, cid: Cid, start: int, end: int) -> Iterator[memoryview]:
        """A file's bytes from ``start`` to before ``end``, in pieces of at most a block, each hashed."""
        if cid.codec == DAG_PB:
            yield from self._store.stream(cid, start, end)
        else:
            yield memoryview(self._blocks.get(cid))[start:end]

    def _content(self, cid: Cid, parts: list[Part], closing: bytes) -> Iterator[memoryview]:
        """What the body of an answer consists of."""
        for text, start, end in parts:
            if text:
                yield memoryview(text)
            if start < end:
                yield from self._pieces(cid, start, end)
        if closing:
            yield memoryview(closing)

    async def _send(
        self, request: web.Request, response: web.StreamResponse, content: Iterator[memoryview]
    ) -> web.StreamResponse:
        """Send a body; the next piece is read and hashed while one is on its way."""

        def following() -> asyncio.Future[memoryview | HoldfastError | None]:
            return asyncio.ensure_future(self._trustless.in_thread(_next_or_error, content))

        reading = following()
        try:
            piece = await asyncio.shield(reading)
            if isinstance(piece, HoldfastError):
                raise piece  # nothing has been sent: it can still be told
            try:
                await response.prepare(request)
                while piece is not None:
                    reading = following()
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await response.write(piece)
                    counter("holdfast_gateway_file_bytes_total", "Bytes of files sent to browsers.").inc(
                        len(piece)
                    )
                    piece = _or_raise(await asyncio.shield(reading))
                await response.write_eof()
            except (HoldfastError, OSError) as error:
                break_off(request, error)
            return response
        finally:
            await asyncio.wait([reading])  # it uses the generator

    # ------------------------------------------------------------------------------------------- directories

    async def _directory(
        self, request: web.Request, path: ContentPath, found: Resolved
    ) -> web.StreamResponse:
        if not path.text.endswith("/"):  # so that relative links in it work
            query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
            raise web.HTTPMovedPermanently(f"{path.text}/{query}")
        with suppress(NotFound):
            below = await self._trustless.in_thread(resolve, self._blocks.get, found.cid, ["index.html"])
            return await self._file(request, path, found, below.cid, "index.html")
        etag = f'"DirIndex-{__version__}_CID-{found.cid}"'
        headers = self._headers(request, path, found, etag)
        headers["Cache-Control"] = cache_control(request, "max-age=604800, stale-while-revalidate=2678400")
        if knows(request, etag) or knows(request, f'"{found.cid}"'):
            return not_modified(headers)
        entries, complete = await self._trustless.in_thread(self._entries, found.cid)
        page = await self._trustless.in_thread(self._listing, path, found.cid, entries, complete)
        headers |= {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": OWN_PAGE}
        return await finish(request, web.Response(body=page, headers=headers))

    def _entries(self, cid: Cid) -> tuple[list[DirectoryEntry], bool]:
        """The entries of a directory, sorted, and whether these are all; no more shards are read than that takes."""
        found: list[DirectoryEntry] = []
        pending, seen = [cid], {cid}
        while pending:
            node, message = unixfs_of(pending.pop(), self._blocks.get)
            shards = []
            for link in node.links:
                name = link.name or ""
                if message.type == UnixFsType.HAMT_SHARD and len(name) == 2:
                    shards.append(link.cid)
                    continue
                if len(found) == MAX_LISTED:
                    return sorted(found, key=lambda entry: entry.name), False
                name = name[2:] if message.type == UnixFsType.HAMT_SHARD else name
                found.append(DirectoryEntry(name, link.cid, link.tsize or 0))
            self._blocks.prefetch(shards, root=cid)
            pending += [shard for shard in reversed(shards) if shard not in seen]
            seen.update(shards)
        return sorted(found, key=lambda entry: entry.name), True

    def _listing(self, path: ContentPath, cid: Cid, entries: list[DirectoryEntry], complete: bool) -> bytes:  # noqa: FBT001
        rows = []
        if path.names:
            rows.append('<tr><td class="n up"><a href="..">Parent directory</a></td><td></td><td></td></tr>')
        for entry in entries:
            kind, size = (
                ("", entry.total_size) if len(entries) > MAX_LOOKED_INTO else self._kind_and_size(entry)
            )
            slash = "/" if kind == "dir" else ""
            link = quote(entry.name, safe="")
            other = f"/ipfs/{entry.cid}?filename={link}"
            rows.append(
                f'<tr><td class="n {kind}"><a href="./{link}{slash}">{html.escape(printable(entry.name))}{slash}</a></td>'
                f'<td class="s">{human_size(size)}</td>'
                f'<td class="c"><a href="{html.escape(other)}" title="{entry.cid}">{str(entry.cid)[:6]}…{str(entry.cid)[-6:]}</a></td></tr>'
            )
        count = f"{len(entries):,} {'entry' if len(entries) == 1 else 'entries'}"
        notes = (
            count
            if complete
            else f"the first {count} that the directory names; it has more: get them with the CAR, or by their names"
        )
        if not entries:
            rows.append('<tr><td class="none" colspan="3">This directory is empty.</td></tr>')
        steps = [f'<a href="/ipfs/{path.cid}/">{str(path.cid)[:10]}…{str(path.cid)[-6:]}</a>']
        for at, name in enumerate(path.names):
            link = "/".join(quote(part, safe="") for part in path.names[: at + 1])
            steps.append(f'<a href="/ipfs/{path.cid}/{link}/">{html.escape(printable(name))}</a>')
        body = (
            f'<nav aria-label="Path">{"<i>/</i>".join(steps)}</nav>'
            f"<table><thead><tr><th>Name</th><th>Size</th><th>CID</th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f'<footer><span>{notes}</span><span class="id">{cid}</span>'
            f'<a href="/ipfs/{cid}?format=car">Download as CAR</a></footer>'
        )
        title = path.names[-1] if path.names else str(path.cid)
        return page(f"Index of {printable(title)}", body)

    def _kind_and_size(self, entry: DirectoryEntry) -> tuple[str, int]:
        """What an entry is, where its block is here; the size of a file without that of its nodes."""
        with suppress(HoldfastError):
            if entry.cid.codec == DAG_PB and (
                inline_block(entry.cid) is not None or self._blocks.has(entry.cid)
            ):
                kind = self._store.stat(entry.cid)
                short = {"directory": "dir", "symlink": "link"}.get(kind.kind, "")
                return short, kind.size
        return "", entry.total_size

    # ----------------------------------------------------------------------------------------------- records

    async def _record(
        self, request: web.Request, path: ContentPath, found: Resolved, wanted: Format | None
    ) -> web.StreamResponse:
        """A record: its block, or converted, or a page that shows it."""
        cid = found.cid
        own = "dag-cbor" if cid.codec == DAG_CBOR else "dag-json"
        shows = wanted is None and wants_html(request) and "download" not in request.query
        name = "html" if shows else own if wanted is None else wanted.name
        etag = f'"{cid}"' if name == own else f'"{cid}.{name}.{__version__}"' if shows else f'"{cid}.{name}"'
        headers = self._headers(request, path, found, etag)
        if knows(request, etag):
            return not_modified(headers)
        data = await self._trustless.in_thread(lambda: bytes(self._blocks.get(cid)))
        value = await self._trustless.in_thread(decode_record, cid, data)
        if shows:
            body = await self._trustless.in_thread(_record_page, path, cid, value)
            headers |= {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": OWN_PAGE}
            headers["Cache-Control"] = cache_control(
                request, "max-age=604800, stale-while-revalidate=2678400"
            )
            return await finish(request, web.Response(body=body, headers=headers))
        if name not in (own, own.removeprefix("dag-")):
            encode = dag_cbor.encode if name in ("dag-cbor", "cbor") else dag_json.encode
            data = await self._trustless.in_thread(encode, value)
        suffix = "json" if "json" in name else "cbor"
        given = request.query.get("filename") or f"{cid}.{suffix}"
        inline = suffix == "json" and request.query.get("download", "").lower() not in ("1", "true", "yes")
        headers |= {
            "Content-Type": FORMATS[name],
            "Content-Disposition": content_disposition("inline" if inline else "attachment", given),
        }
        return await finish(request, web.Response(body=data, headers=headers))

    def _headers(self, request: web.Request, path: ContentPath, found: Resolved, etag: str) -> dict[str, str]:
        return {
            "Cache-Control": cache_control(request),
            "Content-Security-Policy": SANDBOX,
            "Etag": etag,
            "Referrer-Policy": "no-referrer",
            "Vary": "Accept",
            "X-Content-Type-Options": "nosniff",
            "X-Ipfs-Path": path.text,
            "X-Ipfs-Roots": ",".join(map(str, found.roots)),
        }


# --------------------------------------------------------------------------------------------------- pages

_STYLE = """
:root{color-scheme:light dark;--page:#f6f7f8;--panel:#fff;--line:#e3e6e9;--soft:#57616b;--text:#15191d;--accent:#0b6b62;--hover:#f1f5f5}
@media(prefers-color-scheme:dark){:root{--page:#0d0f11;--panel:#14171a;--line:#272c31;--soft:#9aa4ad;--text:#eceff1;--accent:#5fd0c0;--hover:#1a1f22}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums}
main{max-width:880px;margin:40px auto;padding:0 20px}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
a:focus-visible,button:focus-visible,input:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:3px}
nav{font-size:18px;font-weight:600;margin:0 0 16px;overflow-wrap:anywhere}nav i{font-style:normal;font-weight:400;color:var(--soft);margin:0 6px}
table,.card{width:100%;background:var(--panel);border:1px solid var(--line);border-radius:10px;border-spacing:0;overflow:hidden}
.card{padding:24px 28px}.card p{margin:8px 0}.card h1{font-size:22px;line-height:1.3;margin:0 0 8px;overflow-wrap:anywhere}
th{font-size:12px;font-weight:600;color:var(--soft);text-align:left;padding:9px 16px;border-bottom:1px solid var(--line)}
td{padding:7px 16px;border-top:1px solid var(--line);vertical-align:baseline}tbody tr:first-child td{border-top:0}tbody tr:hover{background:var(--hover)}
.n{width:100%;position:relative;padding-left:40px;overflow-wrap:anywhere}
.n::before{content:"";position:absolute;left:18px;top:12px;width:10px;height:13px;border:1.5px solid var(--soft);border-radius:2px 5px 2px 2px;opacity:.5}
.n.dir::before{left:16px;top:14px;width:15px;height:11px;background:var(--accent);border-color:var(--accent);border-radius:1px 4px 2px 2px;opacity:1}
.n.link::before{border-style:dashed}.n.up::before{content:none}
th:nth-child(2),.s{text-align:right;white-space:nowrap}.s,.none,footer,.soft{color:var(--soft)}.none{text-align:center;padding:40px}
.c,.id,pre,code{font-family:ui-monospace,SFMono-Regular,Menlo,monospace;font-size:13px}.c{white-space:nowrap}.c a{color:var(--soft)}
footer{display:flex;flex-wrap:wrap;gap:6px 18px;margin:14px 2px;font-size:13px}.id{overflow-wrap:anywhere;flex:1}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.55}
form{display:flex;gap:8px;margin-top:18px}input{flex:1;min-width:0;font:inherit;padding:8px 12px;color:inherit;background:var(--page);border:1px solid var(--line);border-radius:7px}
button{font:inherit;font-weight:600;padding:8px 18px;border:0;border-radius:7px;background:var(--accent);color:var(--panel);cursor:pointer}
@media(max-width:600px){main{margin:20px auto;padding:0 12px}.c,th:nth-child(3){display:none}td,th{padding-right:12px}}
"""


def page(title: str, body: str) -> bytes:
    """A whole page, as UTF-8; ``body`` is HTML, ``title`` is not."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<title>{html.escape(title)}</title><link rel="icon" href="data:,"><style>{_STYLE}</style></head><body><main>{body}</main></body></html>'
    ).encode("utf-8", "replace")


_TITLES = {400: "That address can't be read", 404: "Not found here", 412: "Not here now", 503: "Too busy"}


def error_page(status: int, text: str) -> web.Response:
    """A failure, for people."""
    title = _TITLES.get(status, "That did not work")
    body = f'<div class="card"><h1>{title}</h1><p>{html.escape(printable(text))}</p><p class="soft">Status {status}</p></div>'
    headers = {"Content-Security-Policy": OWN_PAGE, "X-Content-Type-Options": "nosniff"}
    return web.Response(
        body=page(title, body), status=status, content_type="text/html", charset="utf-8", headers=headers
    )


def _record_page(path: ContentPath, cid: Cid, value: Any) -> bytes:
    encoded = dag_json.encode(value)
    if len(encoded) > MAX_SHOWN_RECORD_BYTES:
        shown = f"The record has {human_size(len(encoded))} as DAG-JSON: too much to show, but you can download it."
    else:
        text = html.escape(_shown_lines(json.dumps(json.loads(encoded), indent=2, ensure_ascii=False)))
        shown = re.sub(
            r"(\{\s*&quot;/&quot;: &quot;)(\w{46,200})(?=&quot;\s*\})", r'\1<a href="/ipfs/\2">\2</a>', text
        )
    body = (
        f'<nav aria-label="Record">{html.escape(printable(path.names[-1] if path.names else "Record"))}</nav><div class="card"><pre>{shown}</pre></div>'
        f'<footer><span class="id">{cid}</span><a href="/ipfs/{cid}?format=dag-json">DAG-JSON</a>'
        f'<a href="/ipfs/{cid}?format=dag-cbor">DAG-CBOR</a><a href="/ipfs/{cid}?format=car">CAR with all it links to</a></footer>'
    )
    return page(f"Record {cid}", body)


def _shown_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _start(request: web.Request, token: str | None) -> web.Response:
    """The page to start from; also where its form, and the link with the token, lead."""
    given = request.query.get("token")
    if given is not None and token is not None:
        # As in the dashboard: the token moves into a cookie, and out of the address bar.
        if not hmac.compare_digest(given.encode(errors="surrogateescape"), token.encode()):
            return error_page(401, "the token is wrong")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(token_cookie(request), token, httponly=True, samesite="Strict")
        return response
    if "path" in request.query:
        first, _, rest = (
            request.query["path"].strip().removeprefix("ipfs://").removeprefix("/ipfs/").partition("/")
        )
        try:
            cid = Cid.parse(first)
        except InvalidInput as error:
            return error_page(400, str(error))
        raise web.HTTPFound(f"/ipfs/{cid}/{quote(rest)}" if rest else f"/ipfs/{cid}")
    body = (
        '<div class="card"><h1>holdfast gateway</h1><p class="soft">Files and records of one store, by CID.</p>'
        '<form action="/" role="search"><input name="path" required autofocus aria-label="CID or ipfs:// address" placeholder="CID, or ipfs://…/path">'
        "<button>Open</button></form></div>"
    )
    headers = {
        "Content-Security-Policy": OWN_PAGE,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return web.Response(
        body=page("holdfast gateway", body), content_type="text/html", charset="utf-8", headers=headers
    )


# ---------------------------------------------------------------------------------------------- applications


def add_gateway_routes(
    app: web.Application, store: ContentStore, *, blocks: BlockStore | None = None
) -> None:
    """Serve a store from ``app`` under ``/ipfs/``: to programs as a Trustless Gateway, to browsers as files.

    Args:
        app: The application.
        store: What browsers get; hashed before it leaves. One that fetches makes a gateway that fetches.
        blocks: What programs get, unhashed; quick if it is a store that tells where its blocks lie. Default: the store's blocks.
    """
    trustless = TrustlessGateway(store.blocks if blocks is None else blocks)
    gateway = WebGateway(store, trustless)
    app.router.add_get(r"/ipfs/{path:[\s\S]+}", gateway.answer, allow_head=True)
    app.on_cleanup.append(trustless.close)


def gateway_app(
    store: ContentStore,
    *,
    token: str | None = None,
    blocks: BlockStore | None = None,
    allow_origin: str | None = None,
) -> web.Application:
    """An application that serves a store, with ``/healthz``, ``/metrics`` and a page to start from.

    Args:
        store: What to serve; it is not closed with the application.
        token: Asked for at every address but ``/`` and ``/healthz``; None serves everybody who reaches the port.
        blocks: See :func:`add_gateway_routes`.
        allow_origin: The origin whose pages may read answers by script, or ``*``; None for none but this one.
    """
    middlewares: list[Middleware] = [errors_as_json]
    if token is not None:
        middlewares.append(bearer_token(token, free=("/", "/healthz")))
    app = web.Application(middlewares=middlewares, client_max_size=1 << 16)
    add_gateway_routes(app, store, blocks=blocks)

    async def start(request: web.Request) -> web.Response:
        return _start(request, token)

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def names(request: web.Request) -> web.Response:
        raise Unsupported(f"{request.path[:200]}: mutable names are not served here; ask for /ipfs/<cid>")

    async def share(_: web.Request, response: web.StreamResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = allow_origin or ""
        response.headers["Access-Control-Expose-Headers"] = (
            "Content-Length, Content-Range, Etag, X-Ipfs-Path, X-Ipfs-Roots"
        )

    app.router.add_get("/", start)
    app.router.add_get("/healthz", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/ipns/{path:.+}", names)
    if allow_origin is not None:
        app.on_response_prepare.append(share)
    return app
