"""Following a path through a DAG, and visiting the blocks that a CAR of what lies at its end has to have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mmh3

from holdfast.errors import Corrupt, InvalidInput, NotFound, Unsupported
from holdfast.storage.cid import DAG_PB, RAW, Buffer, Cid
from holdfast.storage.formats.dag import RECORD_CODECS, decode_record
from holdfast.storage.formats.dag_pb import UnixFsType
from holdfast.storage.formats.unixfs import file_leaves, unixfs_of

__all__ = ["LEAF_CODECS", "Resolved", "Walk", "resolve", "walk", "walk_entity", "walk_range"]

MAX_PENDING_CIDS = 1 << 17
"""That one CAR stream has still to visit."""
MAX_REPEATS = 1 << 20
"""Pieces of one file that were sent already, in a row: a small DAG can claim to be a file of endless length."""
LEAF_CODECS = frozenset({RAW, 0x51, 0x0200})  # raw, cbor and json have no links
Get = Callable[[Cid], Buffer]


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a content path leads."""

    cid: Cid
    roots: tuple[Cid, ...]
    """The CID of the path, and of each name in it."""
    proof: tuple[Cid, ...]
    """Every block that was read on the way, in order, directory shards included."""


def resolve(get: Get, root: Cid, path: Sequence[str]) -> Resolved:
    """Follow a path through directories, directory shards, and the links in records.

    Raises:
        NotFound: A name is not there, or a block on the way.
        Unsupported: It leads to a part of a record that is no link.
        InvalidInput: It leads through a block whose codec is not known.
    """
    cid, names = root, list(path)
    roots, proof = [cid], []
    while names:
        proof.append(cid)
        if cid.codec == DAG_PB:
            cid = _entry(get, cid, names.pop(0), proof)
        elif cid.codec in RECORD_CODECS:
            cid = _link(cid, decode_record(cid, get(cid)), names)
        elif cid.codec in LEAF_CODECS:
            raise NotFound(f"{cid} is a file: there is no {names[0]!r} in it")
        else:
            raise InvalidInput(f"{cid} has the codec 0x{cid.codec:x}: no path leads through it")
        roots.append(cid)
    return Resolved(cid, tuple(roots), tuple(proof))


def _entry(get: Get, cid: Cid, name: str, proof: list[Cid]) -> Cid:
    """What ``name`` is in a directory; of a sharded one, only the shards on the way are read."""
    node, message = unixfs_of(cid, get)
    if message.type not in (UnixFsType.DIRECTORY, UnixFsType.HAMT_SHARD):
        raise NotFound(f"{cid} is a {message.type.name.lower()}, not a directory: there is no {name!r} in it")
    if message.type == UnixFsType.DIRECTORY:
        found = next((link.cid for link in node.links if link.name == name), None)
    else:
        digest = mmh3.hash64(name.encode(), signed=False, x64arch=True)[0].to_bytes(8, "big")
        for bucket in digest:
            if message.type != UnixFsType.HAMT_SHARD or message.fanout != 256:
                raise Corrupt(f"{proof[-1]} is a directory shard of a kind that does not exist")
            by_name = {link.name: link.cid for link in node.links}
            found = by_name.get(f"{bucket:02X}{name}")
            shard = by_name.get(f"{bucket:02X}")
            if found is not None or shard is None:
                break
            proof.append(shard)
            node, message = unixfs_of(shard, get, Corrupt)
    if found is None:
        raise NotFound(f"the directory {cid} has no entry {name!r}")
    return found


def _link(cid: Cid, value: Any, names: list[str]) -> Cid:
    """The first link in a record on the way that ``names`` describe; the names up to it are taken off."""
    while not isinstance(value, Cid):
        if not names:
            raise Unsupported(
                f"the path ends inside the record {cid}, at a value that is no link: ask for the record"
            )
        name = names.pop(0)
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isascii() and name.isdigit() and int(name[:9]) < len(value):
            value = value[int(name)]
        else:
            raise NotFound(f"the record {cid} has no {name!r} there")
    return value


Walk = Iterator[tuple[Cid, "Buffer | None"]]
"""CIDs with the bytes of their blocks; None where the bytes were not read yet."""


def walk_entity(cid: Cid, data: Buffer) -> list[Cid]:
    """The links of a block to the rest of its file or sharded directory; no others."""
    if cid.codec != DAG_PB:
        return []
    node, message = unixfs_of(cid, lambda _: data)
    if message.type in (UnixFsType.FILE, UnixFsType.RAW):
        return [link.cid for link in node.links]
    if message.type == UnixFsType.HAMT_SHARD:
        return [link.cid for link in node.links if len(link.name or "") == 2]
    return []


def walk(
    get: Get, root: Cid, links: Callable[[Cid, Buffer], list[Cid]], fresh: Callable[[Cid], bool]
) -> Walk:
    """Yield the blocks below ``root`` depth first; of those that are not ``fresh``, nor of what is below them, nothing."""
    pending = [root]
    while pending:
        cid = pending.pop()
        if not fresh(cid):
            continue
        if cid.codec in LEAF_CODECS:
            yield cid, None
            continue
        data = get(cid)
        yield cid, data
        below = links(cid, data)
        if len(pending) + len(below) > MAX_PENDING_CIDS:
            raise Unsupported(f"the DAG below {root} is too wide to be sent in one CAR; ask for parts of it")
        pending.extend(reversed(below))


def walk_range(get: Get, root: Cid, start: int, end: int, fresh: Callable[[Cid], bool]) -> Walk:
    """Yield the blocks of a file that prove its bytes from ``start`` to before ``end``, depth first."""
    read: list[tuple[Cid, Buffer]] = []

    def noted(cid: Cid) -> Buffer:
        data = get(cid)
        read.append((cid, data))
        return data

    repeats = 0
    for leaf in file_leaves(root, noted, lambda _: None, start, end):
        repeats += 1
        for block in [*read, *([(leaf.cid, None)] if leaf.data is None else [])]:
            if fresh(block[0]):
                yield block
                repeats = 0
        read.clear()
        if repeats > MAX_REPEATS:
            raise Unsupported(f"the file {root} repeats one piece without end; ask for it with dups=y")
