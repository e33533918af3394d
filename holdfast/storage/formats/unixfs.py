"""UnixFS: files and directories as blocks, and back.

The writer gives, for each profile, the CIDs that Kubo and Helia give, byte for byte. Sources: the UnixFS specification
(https://specs.ipfs.tech/unixfs/) and IPIP-499 for the profiles.
"""

from __future__ import annotations

import itertools
import operator
import os
import stat
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar

import mmh3

from holdfast.errors import Conflict, Corrupt, HoldfastError, InvalidInput
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import DAG_PB, HASHES, RAW, Buffer, Cid, write_varint
from holdfast.storage.formats.chunkers import Chunker, FixedChunker, chunker_named
from holdfast.storage.formats.dag_pb import PbLink, PbNode, UnixFs, UnixFsType, decode_node, encode_node

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    Blocks = Generator[tuple[Cid, Buffer], None, "Node"]
    Placed = Generator[tuple[Cid, Buffer | int], None, "Node"]

__all__ = [
    "PROFILES",
    "DirectoryEntry",
    "Node",
    "Profile",
    "directory_blocks",
    "directory_entries",
    "file_blocks",
    "file_leaves",
    "file_name",
    "file_places",
    "profile_named",
    "symlink_blocks",
]

_T = TypeVar("_T")
MAX_FILE_DEPTH = 32
_HAMT_HASH = 0x22  # murmur3-x64-64
_HAMT_FANOUT = 256
_HASHERS = min(4, os.cpu_count() or 1)
_BATCH_BYTES = 1 << 20
_LARGEST_BATCH_BYTES = 16 << 20
_LEAF_WRAPPER_BYTES = 32  # at least what a leaf has besides its chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything that decides which CID a file or directory gets."""

    name: str
    cid_version: int
    chunker: Chunker
    hash: str = "sha2-256"
    """A name in :data:`~holdfast.storage.cid.HASHES`."""
    max_links: int
    raw_leaves: bool
    hamt_threshold_bytes: int = 256 << 10
    hamt_measure: Literal["node", "links"]
    """What must exceed the threshold: the serialized node, or the names and CIDs of its links."""

    def __post_init__(self) -> None:
        if self.hash not in HASHES:
            raise InvalidInput(f"unknown hash {self.hash!r}; known: {', '.join(HASHES)}")
        if self.cid_version == 0 and self.hash != "sha2-256":
            raise InvalidInput(
                f"the profile {self.name} gives CIDs of version 0, which are sha2-256, not {self.hash}: "
                "choose unixfs-v1-2025"
            )
        if not self.raw_leaves and self.chunker.max_chunk_bytes > MAX_BLOCK_BYTES - _LEAF_WRAPPER_BYTES:
            raise InvalidInput(
                f"the profile {self.name} wraps every chunk, so chunks of {self.chunker.name} would give blocks "
                f"of more than {MAX_BLOCK_BYTES} bytes: choose a smaller size, or unixfs-v1-2025"
            )

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """All that decides a file's CID, as text: the profile's name, the chunker with its parameters, the hash."""
        return f"{self.name} {self.chunker.name} {self.hash}"

    def cid(self, data: Buffer, codec: int) -> Cid:
        """The CID of a block in this profile."""
        return Cid.of(data, codec, version=self.cid_version, hash=self.hash)


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="unixfs-v1-2025",
            cid_version=1,
            chunker=FixedChunker(1 << 20),
            max_links=1024,
            raw_leaves=True,
            hamt_measure="node",
        ),
        Profile(
            name="unixfs-v0-2015",
            cid_version=0,
            chunker=FixedChunker(256 << 10),
            max_links=174,
            raw_leaves=False,
            hamt_measure="links",
        ),
        Profile(
            name="kubo-v1-raw",
            cid_version=1,
            chunker=FixedChunker(256 << 10),
            max_links=174,
            raw_leaves=True,
            hamt_measure="links",
        ),
    )
}
"""The profiles by name: IPIP-499's, Kubo's old default, and Kubo's ``--cid-version=1 --raw-leaves``."""


def profile_named(
    name: str,
    chunker: str | None = None,
    hash: str | None = None,  # noqa: A002 -- the name that everybody knows it by
) -> Profile:
    """The profile called ``name``, with another chunker or hash where one is given.

    Args:
        name: One of :data:`PROFILES`.
        chunker: A name that :func:`~holdfast.storage.formats.chunkers.chunker_named` knows.
        hash: A name in :data:`~holdfast.storage.cid.HASHES`.

    Raises:
        InvalidInput: One of the names is not known, or they don't go together.
    """
    if name not in PROFILES:
        raise InvalidInput(f"unknown profile {name!r}; known: {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if chunker is not None:
        profile = replace(profile, chunker=chunker_named(chunker))
    return profile if hash is None else replace(profile, hash=hash)


@dataclass(frozen=True, slots=True)
class Node:
    """What was built: its CID, the size of the file in it, and of all blocks below and including it."""

    cid: Cid
    file_size: int
    total_size: int


# ------------------------------------------------------------------------------------------------ writing


def file_blocks(
    stream: BinaryIO, profile: Profile, progress: Callable[[int], object] | None = None
) -> Blocks:
    """Yield a file's blocks, leaves first and in order; the return value is its root.

    Memory stays bounded by a few chunks, whatever the file's size.

    Raises:
        InvalidInput: The profile's chunker can't cut what the stream gives.
        Conflict: A file became shorter while it was read.
    """
    ranges = _fixed_ranges(stream, profile)
    if ranges is not None:
        leaves = _hashed_ranges(*ranges, profile)
        return (yield from _file_of(leaves, profile, progress))
    return (yield from _chunked(stream, profile, progress))


def file_places(
    stream: BinaryIO, profile: Profile, progress: Callable[[int], object] | None = None
) -> Placed:
    """As :func:`file_blocks`; in place of a raw leaf's bytes comes their number, if the file has several and they are all alike."""
    ranges = _fixed_ranges(stream, profile)
    if ranges is None or not profile.raw_leaves:
        return (yield from file_blocks(stream, profile, progress))
    parents = _Parents(profile)
    for size, cid in _hashed_places(*ranges, profile):
        parents.add(Node(cid, size, size))
        yield cid, size
        if progress is not None:
            progress(size)
    return (yield from parents.blocks())


def _chunked(stream: BinaryIO, profile: Profile, progress: Callable[[int], object] | None) -> Blocks:
    chunks = profile.chunker.chunks(stream)
    first, second = next(chunks, b""), next(chunks, None)
    if second is None:  # one leaf: a thread would cost more than the hash
        block = _leaf(first, profile)
        cid = profile.cid(block, RAW if profile.raw_leaves else DAG_PB)
        yield cid, block
        if progress is not None:
            progress(len(first))
        return Node(cid, len(first), len(block))
    leaves = _hashed_leaves(itertools.chain((first, second), chunks), profile)
    del first, second
    return (yield from _file_of(leaves, profile, progress))


def _file_of(
    leaves: Iterator[tuple[int, bytes, Cid]], profile: Profile, progress: Callable[[int], object] | None
) -> Blocks:
    """Yield the leaves' blocks, and those above them."""
    parents = _Parents(profile)
    for size, block, cid in leaves:
        parents.add(Node(cid, size, len(block)))
        yield cid, block
        if progress is not None:
            progress(size)
    return (yield from parents.blocks())


class _Parents:
    """The nodes above a file's leaves: made as soon as their children are known, given when the leaves have ended.

    A leaf takes some fifty bytes in the block that links to it, and several times that as an object.
    """

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._children: list[Node] = []
        self._made: list[Node] = []
        self._blocks: list[tuple[Cid, Buffer]] = []

    def add(self, child: Node) -> None:
        """The next leaf."""
        self._children.append(child)
        if len(self._children) == self._profile.max_links:
            self._make()

    def blocks(self) -> Blocks:
        """Yield the nodes, level by level; the return value is the root."""
        if not self._made and len(self._children) == 1:
            return self._children[0]
        if self._children:
            self._make()
        yield from self._blocks
        above = _Parents(self._profile)
        for node in self._made:
            above.add(node)
        return (yield from above.blocks())

    def _make(self) -> None:
        block, node = _file_parent(self._children, self._profile)
        self._blocks.append((node.cid, block))
        self._made.append(node)
        self._children = []


def _fixed_ranges(stream: BinaryIO, profile: Profile) -> tuple[int, int, int] | None:
    """Handle, start and end of what is left of a file of several chunks, if it is one on a disk and the chunks are all alike."""
    if not isinstance(profile.chunker, FixedChunker):
        return None
    try:
        handle, start = stream.fileno(), stream.tell()
    except (AttributeError, OSError):
        return None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size - start <= profile.chunker.max_chunk_bytes:
        return None
    return handle, start, status.st_size


def _hashed_ranges(handle: int, start: int, end: int, profile: Profile) -> Iterator[tuple[int, bytes, Cid]]:
    """As :func:`_hashed_leaves`; what reads a chunk also hashes it, while it is in the processor's cache."""
    codec = RAW if profile.raw_leaves else DAG_PB
    size = profile.chunker.max_chunk_bytes
    step = size * max(1, _BATCH_BYTES // size)

    def leaves_from(offset: int) -> list[tuple[int, bytes, Cid]]:
        found = []
        for at in range(offset, min(offset + step, end), size):
            chunk = os.pread(handle, min(size, end - at), at)
            if len(chunk) != min(size, end - at):
                raise Conflict("the file changed while it was read: it became shorter; add it again")
            block = _leaf(chunk, profile)
            found.append((len(chunk), block, profile.cid(block, codec)))
        return found

    yield from _in_order(leaves_from, range(start, end, step))


def _hashed_places(handle: int, start: int, end: int, profile: Profile) -> Iterator[tuple[int, Cid]]:
    """Size and CID of each raw leaf. Each thread reads into one buffer, again and again: it stays in the processor's cache."""
    size = profile.chunker.max_chunk_bytes
    batch = min(_LARGEST_BATCH_BYTES, max(_BATCH_BYTES, (end - start) // (8 * _HASHERS)))
    step = size * max(1, batch // size)
    buffers = threading.local()

    def leaves_from(offset: int) -> list[tuple[int, Cid]]:
        buffer: memoryview | None = getattr(buffers, "buffer", None)
        if buffer is None:
            buffer = buffers.buffer = memoryview(bytearray(size))
        found = []
        for at in range(offset, min(offset + step, end), size):
            chunk = buffer[: min(size, end - at)]
            if os.preadv(handle, [chunk], at) != len(chunk):
                raise Conflict("the file changed while it was read: it became shorter; add it again")
            found.append((len(chunk), profile.cid(chunk, RAW)))
        return found

    yield from _in_order(leaves_from, range(start, end, step))


def _in_order(work: Callable[[int], list[_T]], offsets: Iterable[int]) -> Iterator[_T]:
    """What ``work`` gives for each offset, in order, from threads that are a little ahead."""
    pending: deque[Future[list[_T]]] = deque()
    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="holdfast-hash") as pool:
        for offset in offsets:
            pending.append(pool.submit(work, offset))
            if len(pending) > 2 * _HASHERS:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def _hashed_leaves(chunks: Iterable[bytes], profile: Profile) -> Iterator[tuple[int, bytes, Cid]]:
    """Each chunk's size with its leaf block and CID, in order; hashed in threads while the next ones are read."""
    codec = RAW if profile.raw_leaves else DAG_PB
    pending: deque[tuple[list[int], list[bytes], Future[list[Cid]]]] = deque()

    def cids_of(blocks: list[bytes]) -> list[Cid]:
        return [profile.cid(block, codec) for block in blocks]

    with ThreadPoolExecutor(_HASHERS, thread_name_prefix="holdfast-hash") as pool:
        for batch in _batches(chunks):
            blocks = [_leaf(chunk, profile) for chunk in batch]
            pending.append(([len(chunk) for chunk in batch], blocks, pool.submit(cids_of, blocks)))
            if len(pending) > _HASHERS:
                sizes, blocks, cids = pending.popleft()
                yield from zip(sizes, blocks, cids.result(), strict=True)
        while pending:
            sizes, blocks, cids = pending.popleft()
            yield from zip(sizes, blocks, cids.result(), strict=True)


def _batches(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Several chunks at once, enough of them to be worth a thread's attention."""
    batch: list[bytes] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _leaf(chunk: bytes, profile: Profile) -> bytes:
    if profile.raw_leaves:
        return chunk
    if not chunk:
        return encode_node(PbNode(data=UnixFs(type=UnixFsType.FILE, file_size=0).encode()))
    # What the two encoders would give, with one copy of the chunk in place of four.
    size = write_varint(len(chunk))
    message_size = len(chunk) + 2 * len(size) + 4
    return b"".join((b"\x0a", write_varint(message_size), b"\x08\x02\x12", size, chunk, b"\x18", size))


def _file_parent(children: list[Node], profile: Profile) -> tuple[bytes, Node]:
    message = UnixFs(
        type=UnixFsType.FILE,
        file_size=sum(child.file_size for child in children),
        block_sizes=tuple(child.file_size for child in children),
    )
    links = tuple(PbLink(child.cid, "", child.total_size) for child in children)
    return _node(PbNode(links, message.encode()), profile, file_size=message.file_size or 0)


def _node(node: PbNode, profile: Profile, *, file_size: int = 0) -> tuple[bytes, Node]:
    block = encode_node(node)
    total_size = len(block) + sum(link.tsize or 0 for link in node.links)
    return block, Node(profile.cid(block, DAG_PB), file_size, total_size)


def _one(block: bytes, node: Node) -> Blocks:
    yield node.cid, block
    return node


def symlink_blocks(target: str, profile: Profile) -> Blocks:
    """Yield the one block of a symbolic link; the return value is its node."""
    message = UnixFs(type=UnixFsType.SYMLINK, data=os.fsencode(target))
    return (yield from _one(*_node(PbNode(data=message.encode()), profile)))


def file_name(name: str) -> str:
    """``name``, if a directory can have an entry of this name.

    Raises:
        InvalidInput: It can't; the message says why.
    """
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InvalidInput(f"{name!r} is no file name")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"the name {name!r} is not valid Unicode; IPFS can't carry it") from error
    return name


def directory_blocks(children: Iterable[tuple[str, Node]], profile: Profile) -> Blocks:
    """Yield a directory's blocks (one, or HAMT shards above the threshold); the return value is its root."""
    named = sorted(
        (
            (name.encode(), PbLink(node.cid, name, node.total_size))
            for name, node in children
            if file_name(name)
        ),
        key=operator.itemgetter(0),
    )
    size = sum(len(name) + len(link.cid.raw) for name, link in named)
    if size <= profile.hamt_threshold_bytes:  # the serialized node is larger than this sum
        plain = PbNode(tuple(link for _, link in named), UnixFs(type=UnixFsType.DIRECTORY).encode())
        if profile.hamt_measure == "links" or len(encode_node(plain)) <= profile.hamt_threshold_bytes:
            return (yield from _one(*_node(plain, profile)))
    return (yield from _hamt_shard([(_hamt_hash(name), link) for name, link in named], 0, profile))


def _hamt_hash(name: bytes) -> bytes:
    return mmh3.hash64(name, signed=False, x64arch=True)[0].to_bytes(8, "big")


def _hamt_shard(entries: list[tuple[bytes, PbLink]], depth: int, profile: Profile) -> Blocks:
    if depth == 8:
        raise InvalidInput(f"two names of a directory have the same 64-bit hash: {entries[0][1].name!r}")
    buckets: dict[int, list[tuple[bytes, PbLink]]] = {}
    for entry in entries:
        buckets.setdefault(entry[0][depth], []).append(entry)
    links = []
    bits = 0
    for index in sorted(buckets):
        bits |= 1 << index
        bucket = buckets[index]
        if len(bucket) == 1:
            link = bucket[0][1]
            links.append(PbLink(link.cid, f"{index:02X}{link.name}", link.tsize))
        else:
            shard = yield from _hamt_shard(bucket, depth + 1, profile)
            links.append(PbLink(shard.cid, f"{index:02X}", shard.total_size))
    message = UnixFs(
        type=UnixFsType.HAMT_SHARD,
        data=bits.to_bytes((bits.bit_length() + 7) // 8, "big"),
        hash_type=_HAMT_HASH,
        fanout=_HAMT_FANOUT,
    )
    return (yield from _one(*_node(PbNode(tuple(links), message.encode()), profile)))


# ------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True, slots=True)
class Leaf:
    """A piece of a file: a raw block of its own, or bytes inside a DAG-PB node."""

    cid: Cid
    offset: int
    """Where in the file it begins."""
    size: int | None
    """As its parent states it; None for a file that is one raw block, which has no parent."""
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory; ``total_size`` counts all blocks below it."""

    name: str
    cid: Cid
    total_size: int


def unixfs_of(
    cid: Cid, get: Callable[[Cid], Buffer], wrong: type[HoldfastError] = InvalidInput
) -> tuple[PbNode, UnixFs]:
    """The DAG-PB node and UnixFS message of a block.

    Raises:
        Corrupt: The block is neither.
        InvalidInput: The CID's codec says it can't be one; another error where ``wrong`` names it.
    """
    if cid.codec != DAG_PB:
        raise wrong(f"{cid} is not a UnixFS node: its codec is 0x{cid.codec:x}")
    try:
        node = decode_node(bytes(get(cid)))
        return node, UnixFs.decode(node.data or b"")
    except Corrupt as error:
        raise Corrupt(f"{cid}: {error}") from error


def file_leaves(
    cid: Cid,
    get: Callable[[Cid], Buffer],
    near: Callable[[list[Cid]], object],
    start: int = 0,
    end: int | None = None,
) -> Iterator[Leaf]:
    """Yield the pieces of a file that have bytes in ``start`` to ``end`` (exclusive), in order.

    Raw leaves are not read, only named; of the nodes above them only those on the way.

    Args:
        cid: The file's root.
        get: Gives a block.
        near: Told of the children of each node before they are read, to fetch several at once.
        start: First byte of interest.
        end: Byte behind the last one of interest; None for the file's end.

    Raises:
        InvalidInput: ``cid`` is a directory, or not UnixFS at all.
        Corrupt: The sizes that the nodes state contradict each other.
    """
    yield from _file_leaves(Leaf(cid, 0, None), get, near, (start, end), 0)


def _file_leaves(
    part: Leaf,
    get: Callable[[Cid], Buffer],
    near: Callable[[list[Cid]], object],
    wanted: tuple[int, int | None],
    depth: int,
) -> Iterator[Leaf]:
    cid = part.cid
    if depth > MAX_FILE_DEPTH:
        raise Corrupt(f"the file at {cid} is nested deeper than {MAX_FILE_DEPTH}")
    if cid.codec == RAW:
        yield part
        return
    wrong = Corrupt if depth else InvalidInput  # the root is the caller's choice, what is below it is not
    node, message = unixfs_of(cid, get, wrong)
    if message.type in (UnixFsType.DIRECTORY, UnixFsType.HAMT_SHARD):
        raise wrong(f"{cid} is a directory, not a file")
    if message.type == UnixFsType.SYMLINK:
        raise wrong(f"{cid} is a symbolic link, not a file")
    inline = message.data or b""
    stated = len(inline) + sum(message.block_sizes)
    if len(message.block_sizes) != len(node.links) or stated != (message.file_size or 0):
        raise Corrupt(f"{cid} states a file size that its parts don't have")
    if part.size is not None and stated != part.size:
        raise Corrupt(f"{cid} has {stated} bytes where its parent states {part.size}")
    if not node.links or (inline and part.offset + len(inline) > wanted[0]):
        yield Leaf(cid, part.offset, len(inline), inline)
    parts = _parts_within(node, message.block_sizes, part.offset + len(inline), wanted)
    near([child.cid for child in parts])
    for child in parts:
        yield from _file_leaves(child, get, near, wanted, depth + 1)


def _parts_within(
    node: PbNode, sizes: tuple[int, ...], offset: int, wanted: tuple[int, int | None]
) -> list[Leaf]:
    """The children of a file's node that have bytes in the wanted range.

    Those of no bytes are passed over, so that no file has more pieces than bytes, however its nodes share children.
    """
    start, end = wanted
    parts: list[Leaf] = []
    for link, size in zip(node.links, sizes, strict=True):
        if size and offset + size > start and (end is None or offset < end):
            parts.append(Leaf(link.cid, offset, size))
        offset += size
    return parts


def directory_entries(
    cid: Cid, get: Callable[[Cid], Buffer], near: Callable[[list[Cid]], object]
) -> list[DirectoryEntry]:
    """The entries of a directory, plain or sharded, sorted by the bytes of their names.

    Raises:
        InvalidInput: ``cid`` is not a directory.
        Corrupt: A name is there twice, or can't be a file's name.
    """
    entries = sorted(_directory_entries(cid, get, near, set(), 0), key=lambda entry: entry.name.encode())
    for before, entry in zip([None, *entries], entries, strict=False):
        if before is not None and before.name == entry.name:
            raise Corrupt(f"the directory {cid} has the name {entry.name!r} twice")
        try:
            file_name(entry.name)
        except InvalidInput as error:
            raise Corrupt(f"the directory {cid} has an entry that could leave it: {error}") from error
    return entries


def _directory_entries(
    cid: Cid, get: Callable[[Cid], Buffer], near: Callable[[list[Cid]], object], seen: set[Cid], depth: int
) -> Iterator[DirectoryEntry]:
    if cid in seen:  # its names would be there twice; and a few shards could stand for endlessly many
        raise Corrupt(f"the directory shard {cid} is there twice")
    seen.add(cid)
    wrong = Corrupt if depth else InvalidInput
    if cid.codec == RAW:
        raise wrong(f"{cid} is a file, not a directory")
    node, message = unixfs_of(cid, get, wrong)
    if message.type == UnixFsType.DIRECTORY:
        if depth:
            raise Corrupt(f"{cid} is a directory where a shard of one is expected")
        for link in node.links:
            yield DirectoryEntry(link.name or "", link.cid, link.tsize or 0)
        return
    if message.type != UnixFsType.HAMT_SHARD:
        raise wrong(f"{cid} is not a directory")
    if depth > 8 or message.fanout != _HAMT_FANOUT or message.hash_type != _HAMT_HASH:
        raise Corrupt(f"{cid} is a directory shard of a kind that does not exist")
    near([link.cid for link in node.links if len(link.name or "") == 2])
    for link in node.links:
        name = link.name or ""
        if len(name) == 2:
            yield from _directory_entries(link.cid, get, near, seen, depth + 1)
        else:
            yield DirectoryEntry(name[2:], link.cid, link.tsize or 0)
