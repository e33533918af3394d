"""A node's block server: ``GET /ipfs/{cid}?format=raw``, the smallest Trustless Gateway.

Source: https://specs.ipfs.tech/http-gateways/trustless-gateway/. The bytes that leave are verified on the way out, so
a node with a failing disk says so instead of spreading it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from aiohttp import web

from holdfast.errors import InvalidInput, NotFound, Unsupported
from holdfast.storage.block_store import VerifyingStore
from holdfast.storage.cid import Cid
from holdfast.telemetry import counter

if TYPE_CHECKING:
    from holdfast.storage.block_store import BlockStore

__all__ = ["add_block_routes"]

RAW_TYPE = "application/vnd.ipld.raw"


def add_block_routes(app: web.Application, blocks: BlockStore) -> None:
    """Serve ``blocks`` from ``app``: GET and HEAD on ``/ipfs/{cid}``."""
    checked = (
        blocks if isinstance(blocks, VerifyingStore) else VerifyingStore(blocks, source="this node's store")
    )

    async def block(request: web.Request) -> web.Response:
        cid = _requested(request)
        etag = f'"{cid}.raw"'
        headers = {
            "Content-Type": RAW_TYPE,
            "Content-Disposition": f'attachment; filename="{cid}.bin"',
            "Cache-Control": "public, max-age=29030400, immutable",
            "Etag": etag,
            "X-Content-Type-Options": "nosniff",
            "X-Ipfs-Path": f"/ipfs/{cid}",
        }
        if etag in request.headers.get("If-None-Match", ""):
            return web.Response(status=304, headers={"Etag": etag})
        try:
            data = await asyncio.to_thread(checked.get, cid)
        except NotFound:
            if "only-if-cached" in request.headers.get("Cache-Control", ""):
                raise web.HTTPPreconditionFailed(reason="the block is not here") from None
            raise
        counter("holdfast_served_bytes_total", "Bytes of blocks sent to other nodes.").inc(len(data))
        if request.method == "HEAD":
            return web.Response(headers=headers | {"Content-Length": str(len(data))})
        return web.Response(body=bytes(data), headers=headers)

    app.router.add_get("/ipfs/{path:.+}", block, allow_head=True)


def _requested(request: web.Request) -> Cid:
    path = request.match_info["path"].strip("/")
    if "/" in path:
        raise Unsupported(f"/ipfs/{path}: this node serves single blocks; ask for /ipfs/<cid>?format=raw")
    wanted = request.query.get("format")
    if wanted is None and RAW_TYPE in request.headers.get("Accept", ""):
        wanted = "raw"
    if wanted != "raw":
        raise InvalidInput(f"format={wanted or ''} is not served here; ask for format=raw")
    return Cid.parse(path)
