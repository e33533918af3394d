"""An IPFS daemon as a block store: the blocks lie in its repository."""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from holdfast.errors import Conflict, InvalidInput, NotFound, Unavailable, Unsupported, disk_errors
from holdfast.storage.block_store import MAX_BLOCK_BYTES, inline_block
from holdfast.storage.cid import Cid, as_raw
from holdfast.storage.kubo.kubo_guard import MAX_GUARDED, Guards
from holdfast.storage.kubo.kubo_rpc import KuboAddress, KuboRpc, read_bounded
from holdfast.storage.kubo.kubo_transfer import Part, ReadAhead, Spool
from holdfast.storage.local.references import FileRange
from holdfast.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from holdfast.storage.block_store import Payload
    from holdfast.storage.cid import Buffer

__all__ = ["KuboStore"]

log = get_logger(__name__)

OLDEST_REPOSITORY = 12
"""Since this version of the repository (Kubo 0.12, 2022) the key of a block is its multihash."""
_STAYS_OFFLINE = re.compile(r"(kubo|go-ipfs)/")
_SEARCH_S = 2.0
"""How long a daemon that can't be told to stay offline may look for a block before its list is asked."""
_LISTING_S = 600.0
_SPOOL_MEMORY_BYTES = 32 << 20
_CHECKED_AT_ONCE = 256
_IMPORT_BYTES = 256 << 20
_SLOWEST_BYTES_PER_S = 1 << 20
_COUNT_SHARE = 50
"""A daemon counts its blocks one by one; it spends no more than this fraction of its time on it for us."""


class KuboStore:
    """The blocks of an IPFS daemon: Kubo, or another one with its RPC API.

    Everything that the daemon sends is hashed before anybody sees it: it is another process. It is never made to search
    the network: what it has not got is NotFound.

    What holds for :meth:`put_many`: the blocks are read to their end before the daemon gets any, so a source that
    breaks leaves nothing behind. The import itself is no transaction in Kubo: if the daemon fails in the middle of it, some
    blocks may stay. They are whole, unpinned, and go with its next garbage collection. Blocks are as durable as the
    daemon's datastore makes them; Kubo's default, ``flatfs`` with ``sync``, syncs each. What is neither pinned nor held
    (see :class:`~holdfast.storage.kubo.kubo_pins.KuboPins`) is the prey of the daemon's garbage collection, at any time.

    Args:
        address: ``http://[user:password@]host:port``, or a multiaddr such as ``/ip4/127.0.0.1/tcp/5001``.
        timeout_s: Deadline of a call; uploads and recursive pins have more.
        concurrency: Requests at once, and blocks that are read ahead.
        scratch: Folder for what waits to be sent, if it is more than 32 MiB; default: the system's.

    Raises:
        InvalidInput: The address is not of these forms, or no daemon's RPC API.
        Unavailable: Nothing listens there, or it does not answer.
        Denied: The daemon refuses.
        Unsupported: The daemon is too old.
    """

    def __init__(
        self, address: str, *, timeout_s: float = 30.0, concurrency: int = 16, scratch: Path | None = None
    ) -> None:
        self.rpc = KuboRpc(KuboAddress.parse(address), timeout_s=timeout_s, concurrency=concurrency)
        self._scratch = str(scratch or tempfile.gettempdir())
        self._ahead = ReadAhead(self._fetch, concurrency)
        self._guards = Guards(self.rpc)
        self._counting = threading.Lock()
        self._counted: dict[str, int] | None = None
        self._count_at = 0.0
        version = self.rpc.control(lambda client: client.version())
        agent = self.rpc.control(lambda client: client.id()).get("AgentVersion")
        repository = re.search(r"\d+", str(version.get("Repo")))
        if not isinstance(agent, str) or repository is None:
            raise InvalidInput(f"{self.url} does not answer as an IPFS daemon does: {str(version)[:200]}")
        if int(repository[0]) < OLDEST_REPOSITORY:
            raise Unsupported(
                f"the IPFS daemon at {self.url} is {agent} with a repository of version {repository[0]}; "
                f"holdfast needs {OLDEST_REPOSITORY} or later (Kubo 0.12, of 2022): update it"
            )
        self.agent: str = agent
        """Name and version of the daemon, as it states them."""
        self.stays_offline = _STAYS_OFFLINE.match(agent) is not None
        """Whether it can be told not to search the network. js-ipfs can't, and looks for a missing block until a timeout."""

    @property
    def url(self) -> str:
        """The address of the daemon, without the password."""
        return self.rpc.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------------------------------- reading

    def get(self, cid: Cid) -> bytes:
        """The block, hashed just now.

        Raises:
            NotFound: The daemon has not got it.
            Corrupt: What it sent does not hash to ``cid``.
            Unavailable: The daemon does not answer.
        """
        inline = inline_block(cid)
        return inline if inline is not None else self.rpc.run(lambda: self._read(cid))

    def has(self, cid: Cid) -> bool:
        """Whether the daemon has the block, as it states."""
        return not self.lacking([cid])

    def lacking(self, cids: Sequence[Cid]) -> list[Cid]:
        """Those of ``cids`` that the daemon has not got, as it states."""
        absent = self.rpc.run(lambda: self._lacking(cids, None))
        return [cid for cid in cids if cid.multihash in absent]

    def prefetch(self, cids: Iterable[Cid], *, root: Cid | None = None) -> None:  # noqa: ARG002 -- the daemon looks nowhere else
        """Read ahead: begin to get these blocks, in this order, several at a time. What is missing shows when it is read."""
        wanted = [cid for cid in cids if inline_block(cid) is None]

        async def begin() -> None:
            self._ahead.begin(wanted)

        self.rpc.run(begin)

    def multihashes(self) -> Iterator[bytes]:
        """The multihash of every block, in the order of their bytes; they are sorted in memory."""
        return iter(sorted(self.rpc.run(self._listed)))

    def statistics(self) -> dict[str, int]:
        """``blocks`` and ``bytes`` in the daemon's repository.

        A large one takes long to count, and is counted the less often. If the daemon does not answer, what it said last stands.

        Raises:
            Unavailable: It never answered.
        """
        with self._counting:
            now = time.monotonic()
            if self._counted is None or now > self._count_at:
                try:
                    self._counted = self._count()
                except Unavailable as error:
                    if self._counted is None:
                        raise
                    log.warning("%s", error)
                self._count_at = time.monotonic() + _COUNT_SHARE * (time.monotonic() - now)
            return dict(self._counted)

    def _count(self) -> dict[str, int]:
        answer = self.rpc.control(lambda client: client.repo.stat())
        try:
            return {"blocks": int(answer["NumObjects"]), "bytes": int(answer["RepoSize"])}
        except (KeyError, TypeError, ValueError) as error:
            raise Unavailable(
                f"{self.url} does not describe its repository as an IPFS daemon does: {str(answer)[:200]}"
            ) from error

    async def _read(self, cid: Cid) -> bytes:
        return await (self._ahead.take(cid) or self._fetch(cid))

    async def _fetch(self, cid: Cid) -> bytes:
        try:
            if self.stays_offline:
                return await self._block(cid, self.rpc.timeout_s)
            try:
                return await self._block(cid, min(_SEARCH_S, self.rpc.timeout_s))
            except Unavailable:
                if cid.multihash in await self._listed():
                    return await self._block(cid, self.rpc.timeout_s)
                raise NotFound(f"the IPFS daemon at {self.url} does not list it") from None
        except NotFound as error:
            raise NotFound(f"{cid} is not in the IPFS daemon at {self.url} ({error})") from error

    async def _block(self, cid: Cid, timeout_s: float) -> bytes:
        options = {"arg": str(as_raw(cid.multihash)), "offline": "true", "timeout": f"{timeout_s:g}s"}
        async with self.rpc.stream("block/get", options, timeout_s=timeout_s + 1.0) as response:
            data = await read_bounded(response, MAX_BLOCK_BYTES)
        cid.check(data, source=f"the IPFS daemon at {self.url}")
        return data

    async def _lacking(self, cids: Sequence[Cid], listed: set[bytes] | None) -> set[bytes]:
        """The multihashes of those of ``cids`` that the daemon has not got; ``listed`` is what it listed just now."""
        asked = {cid.multihash for cid in cids if inline_block(cid) is None}
        if not asked:
            return set()
        if not self.stays_offline:
            return asked - (await self._listed() if listed is None else listed)

        async def lacks(multihash: bytes) -> bool:
            options = {"arg": str(as_raw(multihash)), "offline": "true"}
            try:
                async with self.rpc.stream("block/stat", options) as response:
                    await read_bounded(response, MAX_BLOCK_BYTES)
            except NotFound:
                return True
            return False

        tasks = {multihash: asyncio.ensure_future(lacks(multihash)) for multihash in asked}
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        return {multihash for multihash, task in tasks.items() if task.result()}

    async def _listed(self) -> set[bytes]:
        """The multihash of every block. Kubo writes CIDs in base 32, js-ipfs in base 58 at times: their bytes count."""
        found: set[bytes] = set()
        async with self.rpc.stream("refs/local", {}, timeout_s=_LISTING_S) as response:
            async for line in self.rpc.lines(response):
                if line.get("Err") or not isinstance(line.get("Ref"), str):
                    raise Unavailable(
                        f"the IPFS daemon at {self.url} can't list its blocks: {str(line)[:200]}"
                    )
                found.add(Cid.parse(line["Ref"]).multihash)
        return found

    # ----------------------------------------------------------------------------------------- writing

    def put_many(self, blocks: Iterable[tuple[Cid, Payload]], *, resume: bytes | None = None) -> int:  # noqa: ARG002 -- nothing is staged
        """Store blocks in the daemon; see the class for what holds when something fails.

        Raises:
            NotFound: A block that is said to be here already is not.
            InvalidInput: A block is larger than peers exchange; nothing was stored.
            Unsupported: A block lies in a file of the user's own; nothing was stored.
            Unavailable: The daemon does not answer, or a disk is full.
        """
        self.rpc.must_be_open()
        listed: set[bytes] | None = None
        batch: dict[bytes, bytes | None] = {}
        batch_bytes = 0
        with tempfile.SpooledTemporaryFile(_SPOOL_MEMORY_BYTES, dir=self._scratch) as file:
            spool = Spool(file)
            there: list[bytes] = []
            for cid, data in blocks:
                key = cid.multihash
                if inline_block(cid) is None and key not in spool.multihashes and batch.get(key) is None:
                    checked = None if data is None else self._checked(cid, data)
                    batch[key] = checked
                    batch_bytes += len(checked or b"")
                if len(batch) >= _CHECKED_AT_ONCE or batch_bytes > _SPOOL_MEMORY_BYTES:
                    if listed is None and not self.stays_offline:
                        listed = self.rpc.run(self._listed)
                    there += self._spool_new(spool, batch, listed)
                    batch, batch_bytes = {}, 0
            there += self._spool_new(spool, batch, listed)
            if self._guards.wanted:
                self._import_guarded(spool, there)
            else:
                for part in spool.parts(_IMPORT_BYTES, MAX_GUARDED):
                    self._import(part)
            return spool.payload_bytes

    def _checked(self, cid: Cid, data: Buffer | FileRange) -> bytes:
        if isinstance(data, FileRange):
            raise Unsupported(
                f"{data.path} can't be added by reference: this home keeps its blocks in the IPFS daemon at {self.url}, "
                "which has a copy of its own; add it without --no-copy"
            )
        size = memoryview(data).nbytes
        if size > MAX_BLOCK_BYTES:
            raise InvalidInput(f"the block {cid} has {size} bytes; peers exchange at most {MAX_BLOCK_BYTES}")
        return bytes(data)

    def _spool_new(
        self, spool: Spool, batch: dict[bytes, bytes | None], listed: set[bytes] | None
    ) -> list[bytes]:
        """Spool what the daemon has not got; the multihashes of what it has.

        Raises:
            NotFound: It has not got a block that is said to be there.
        """
        cids = [as_raw(multihash) for multihash in batch]
        absent = self.rpc.run(lambda: self._lacking(cids, listed))
        with disk_errors(self._scratch):
            for cid in cids:
                data = batch[cid.multihash]
                if cid.multihash not in absent:
                    continue
                if data is None:
                    raise NotFound(f"{cid} is not in the IPFS daemon at {self.url} any more; add it again")
                spool.write(cid, data)
        return [multihash for multihash in batch if multihash not in absent]

    def guarding(self) -> AbstractContextManager[None]:
        """While this lasts, the daemon's garbage collection takes nothing of what this thread puts, or finds to be there."""
        return self._guards.standing()

    def _import_guarded(self, spool: Spool, there: list[bytes]) -> None:
        """Import everything with guards; what is there already first, as nothing holds that yet.

        Raises:
            Conflict: Something that was there was collected before it was guarded.
        """
        for at in range(0, len(there), MAX_GUARDED):
            guard = self._guards.make(there[at : at + MAX_GUARDED])
            self._import(Part(spool.file, 0, 0, [], guard))
        for part in spool.parts(_IMPORT_BYTES, MAX_GUARDED):
            self._import(replace(part, guard=self._guards.make([cid.multihash for cid in part.cids])))

    def _import(self, part: Part) -> None:
        arrived = self.rpc.run(lambda: self._send(part))
        if arrived > 0 and part.guard is not None:
            arrived -= 1
        # An error in the middle of an answer comes as a trailer, which Python's HTTP clients don't show: the count tells.
        if arrived != len(part.cids) and (lost := self.lacking(part.cids)):
            raise Unavailable(
                f"the IPFS daemon at {self.url} took {len(part.cids) - len(lost)} of {len(part.cids)} blocks and reported no "
                f"error; {lost[0]} is not there: see the daemon's own log"
            )

    async def _send(self, part: Part) -> int:
        """Import a part as a CAR; gives how many blocks arrived, or -1 from a daemon that does not count them."""
        import aiohttp

        form = aiohttp.MultipartWriter("form-data")
        car = aiohttp.payload.AsyncIterablePayload(part.car(), content_type="application/vnd.ipld.car")
        car.set_content_disposition("form-data", name="file", filename="blocks.car")
        form.append_payload(car)  # js-ipfs takes no part without a content type
        allowed_s = self.rpc.timeout_s + (part.end - part.start) / _SLOWEST_BYTES_PER_S
        arrived = -1
        pin = "false" if part.guard is None else "true"
        try:
            async with self.rpc.stream(
                "dag/import", {"pin-roots": pin, "stats": "true"}, body=form, timeout_s=allowed_s
            ) as response:
                async for line in self.rpc.lines(response):
                    root = line.get("Root")
                    if part.guard is not None and isinstance(root, dict) and root.get("PinErrorMsg"):
                        raise Conflict(
                            f"the IPFS daemon at {self.url} has collected blocks that this add builds on; add it again. "
                            f"It says: {str(root['PinErrorMsg'])[:200]}"
                        )
                    statistics = line.get("Stats")
                    if isinstance(statistics, dict) and isinstance(statistics.get("BlockCount"), int):
                        arrived = statistics["BlockCount"]
        except NotFound as error:  # nothing was asked for that could be missing
            raise Unavailable(str(error)) from error
        return arrived

    def close(self) -> None:
        """Close the connections; the daemon goes on. Closing twice is fine."""
        self.rpc.close()
