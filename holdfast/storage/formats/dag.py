"""Walking from block to block: links of every codec, without or with fetching."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, NotFound, Unsupported
from holdfast.storage.block_store import inline_block
from holdfast.storage.cid import DAG_CBOR, DAG_JSON, DAG_PB, RAW, Buffer, Cid
from holdfast.storage.formats import dag_cbor, dag_json
from holdfast.storage.formats.dag_pb import link_cids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["RECORD_CODECS", "decode_record", "links_of", "links_with_paths", "reachable"]

_DECODERS: dict[int, Callable[[Buffer], Any]] = {
    DAG_CBOR: dag_cbor.decode,
    DAG_JSON: dag_json.decode,
}
RECORD_CODECS = frozenset(_DECODERS)
"""Codecs of records: values with links in them."""


def decode_record(cid: Cid, data: Buffer) -> Any:
    """The value of a record's block.

    Raises:
        Corrupt: The block is not what its codec says.
        Unsupported: The codec is no record's.
    """
    decode = _DECODERS.get(cid.codec)
    if decode is None:
        raise Unsupported(f"{cid} has the codec 0x{cid.codec:x}, which holdfast does not read")
    try:
        return decode(data)
    except Corrupt as error:
        raise Corrupt(f"{cid}: {error}") from error


def links_of(cid: Cid, data: Buffer) -> list[Cid]:
    """The CIDs that a block links to, in order.

    Raises:
        Corrupt: The block is not what its codec says.
        Unsupported: The codec is not one that holdfast reads.
    """
    if cid.codec == RAW:
        return []
    if cid.codec == DAG_PB:
        return link_cids(bytes(data))
    found: list[Cid] = []
    pending = [decode_record(cid, data)]
    while pending:
        value = pending.pop()
        if isinstance(value, Cid):
            found.append(value)
        elif isinstance(value, dict):
            pending.extend(reversed(value.values()))
        elif isinstance(value, list):
            pending.extend(reversed(value))
    return found


def links_with_paths(value: object) -> Iterator[tuple[tuple[str | int, ...], Cid]]:
    """Yield every link in a record's value, in order, with the keys and the places in lists on the way to it."""
    pending: list[tuple[tuple[str | int, ...], object]] = [((), value)]
    while pending:
        path, each = pending.pop()
        if isinstance(each, Cid):
            yield path, each
        elif isinstance(each, dict):
            pending.extend(((*path, key), item) for key, item in reversed(each.items()))
        elif isinstance(each, list):
            pending.extend(((*path, at), each[at]) for at in reversed(range(len(each))))


def reachable(
    get: Callable[[Cid], Buffer], root: Cid, *, recursive: bool = True, seen: set[bytes] | None = None
) -> Iterator[Cid]:
    """Yield each block that a DAG names once, whether it is here or not; leaves are not read.

    Args:
        get: Gives a block, or raises NotFound: what lies below that one is not known.
        root: Where to begin.
        recursive: Go below the root.
        seen: Multihashes that are not visited again; those that are, are added.

    Raises:
        Corrupt: A block that may have links can't be read.
    """
    seen = set() if seen is None else seen
    pending = [root]
    while pending:
        cid = pending.pop()
        if cid.multihash in seen:
            continue
        seen.add(cid.multihash)
        data: Buffer | None = inline_block(cid)
        if data is None:  # else it is part of its own name, and lies in no store
            yield cid
        if cid.codec == RAW or not recursive:
            continue
        try:
            data = get(cid) if data is None else data
        except NotFound:
            continue
        pending.extend(reversed(links_of(cid, data)))
