"""One call of ``put_many``: what it wrote, what it skipped, what it has staged, and how all of it becomes visible."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeAlias

import lmdb

from holdfast.errors import Conflict, HoldfastError, InvalidInput, NotFound, Unavailable, disk_errors
from holdfast.storage.block_store import MAX_BLOCK_BYTES
from holdfast.storage.cid import IDENTITY, RAW, Buffer, Cid
from holdfast.storage.local.index_changes import RENEW_AFTER_S, Change
from holdfast.storage.local.index_rows import EMPTY_PLACE, ENTRY, EPOCH, PLACE, REFERENCE
from holdfast.storage.local.packed_keys import PackedKeys
from holdfast.storage.local.quota import NoRoom, Quota
from holdfast.storage.local.references import FileRange, FileTable
from holdfast.storage.local.segments import Segments, SegmentWriter, lock_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from holdfast.storage.local.epochs import Epochs, Membership
    from holdfast.storage.local.index import Index

    Payload: TypeAlias = Buffer | FileRange | None

__all__ = ["Writing", "WritingContext", "drop_stale"]

STAGE_BYTES = 256 << 20
STAGE_S = 5.0
HARD_LIMIT = 16
"""A segment grows beyond its size, up to so many times, rather than tear a file in two."""
HOLD_S = 3600
"""While an add lets a collector work for it, what it skipped has a time that lies so far ahead."""
COLLECTOR_WAIT_S = 600.0
_SESSION_BYTES = 16
_CALL_BYTES = 4

_active = threading.local()
"""The calls that this thread is in, innermost last: a source of blocks may itself store blocks."""


class WritingContext:
    """What all calls on one store share."""

    def __init__(self, index: Index, segments: Segments, epochs: Epochs, quota: Quota | None) -> None:
        self.index = index
        self.segments = segments
        self.epochs = epochs
        self.quota = quota
        self.make_room: Callable[[int], None] | None = None


class Writing:
    """One call of ``put_many`` or ``replace_many``.

    Args:
        context: The store's.
        replace: Write every block, whether there is one already or not.
        resume: Names the work, to go on where it was interrupted.
    """

    def __init__(
        self, context: WritingContext, *, replace: bool = False, resume: bytes | None = None
    ) -> None:
        self._context = context
        self._index = context.index
        self._replace = replace
        self._places: dict[bytes, bytes] = {}
        self._aged: set[bytes] = set()
        self._recent: set[bytes] = set()
        self._writers: list[SegmentWriter] = []
        self._after_node = False
        self._gathered: PackedKeys | None = None
        self._files = FileTable()
        self._new_bytes = 0
        self._call = os.urandom(_CALL_BYTES)
        self._staged_keys = PackedKeys()
        # Of what another call has staged; the rest is another version's of the same work.
        self._wanted: set[bytes] = set()
        self._entering = False
        self._cutoff_s = 0
        self._held = False
        self._session = hashlib.sha256(resume).digest()[:_SESSION_BYTES] if resume is not None else None
        self._session_lock: int | None = None
        self._staged = False
        self._stage_at_bytes = STAGE_BYTES
        self._stage_at_s = time.monotonic() + STAGE_S
        self._written_bytes = 0
        self._membership: Membership | None = None

    def run(self, blocks: Iterable[tuple[Cid, Payload]]) -> int:
        """Store the blocks; returns how many bytes were new."""
        calls = _calls(self._index.folder)
        calls.append(self)
        try:
            with disk_errors(self._index.folder):
                self._enter()
                # The calls around this one wait for it; a collector should not have to wait for them.
                for call in calls[:-1]:
                    call._keep_up(self._membership)  # noqa: SLF001 -- of the same class
                self._find_staged()
            try:
                for cid, data in blocks:  # what this raises is not about our disk, and passes as it is
                    self._take(cid, data)
                with disk_errors(self._index.folder):
                    self._commit()
            except BaseException as error:
                self._undo(keep_staged=not isinstance(error, Exception))
                raise
            for call in calls:
                if call._gathered is not None:  # noqa: SLF001
                    for keys in (self._places, self._staged_keys, self._wanted, self._skipped()):
                        call._gathered.extend(keys)  # noqa: SLF001
        finally:
            calls.remove(self)
            for writer in self._writers:
                writer.close()
            self._leave()
            self._unlock_session()
        return self._new_bytes

    @contextmanager
    def around(self) -> Iterator[None]:
        """Be a call that takes no blocks, around others of this thread.

        It builds on what those put or skip: a collector waits for it, or has it renew all of that before it moves on.
        """
        self._gathered = PackedKeys()
        calls = _calls(self._index.folder)
        calls.append(self)
        try:
            with disk_errors(self._index.folder):
                self._enter()
            yield
        finally:
            calls.remove(self)
            self._leave()

    # ---------------------------------------------------------------------------------------- block by block

    def _take(self, cid: Cid, data: Payload) -> None:
        key = cid.multihash
        if key[0] == IDENTITY:
            return  # the block is part of its own name
        if type(data) is bytes:
            size = len(data)
        elif data is None:
            self._rely(cid, key)
            return
        elif isinstance(data, FileRange):
            size = data.length
        else:
            data = memoryview(data).cast("B")
            size = len(data)
        if size > MAX_BLOCK_BYTES:
            raise InvalidInput(f"{cid} has {size} bytes; a block has at most {MAX_BLOCK_BYTES}")
        if key in self._places or key in self._aged or key in self._recent or key in self._wanted:
            return
        refers = isinstance(data, FileRange) and size > 0
        if not self._replace and self._here(key, refers=refers):
            return
        try:
            self._write(cid, key, data, size)
        except OSError:
            # Only now, and not around it all: to enter this costs as much as half a block.
            with disk_errors(self._index.folder):
                raise

    def _write(self, cid: Cid, key: bytes, data: Buffer | FileRange, size: int) -> None:
        if size == 0:
            self._places[key] = EMPTY_PLACE
        elif isinstance(data, FileRange):
            self._places[key] = self._files.place(cid, data)
        else:
            writer = self._writer(cid, size)
            self._places[key] = PLACE.pack(writer.number, writer.end, size)
            writer.append(data, size)
            self._written_bytes += size
        if self._session is not None and (
            self._written_bytes >= self._stage_at_bytes or time.monotonic() >= self._stage_at_s
        ):
            self._stage()

    def _here(self, key: bytes, *, refers: bool) -> bool:
        """Whether the block is here to stay; then its time is renewed when the call ends."""
        index, staged = self._index, None
        while True:
            try:
                with index.begin() as txn:
                    entry = txn.get(key, db=index.blocks)
                    epoch = index.packed_totals(txn)[EPOCH]
                    if entry is None and self._staged and self._session is not None:
                        staged = txn.get(self._session + key, db=index.tables["staged"])
            except lmdb.Error as error:
                raise index.error(error) from error
            if self._membership is None or epoch == self._membership.packed:
                break
            for call in _calls(self._index.folder):
                call._move_on(epoch)  # noqa: SLF001 -- of the same class
        if entry is None:
            if staged is not None:
                self._wanted.add(key)
            return staged is not None
        segment, _, _, time_s = ENTRY.unpack(entry)
        if time_s < self._cutoff_s or (segment & REFERENCE and not refers):
            return False  # about to be collected, or in a file that is not ours, and now we get the bytes
        if segment & REFERENCE and not self._files.is_unchanged(self._index, segment ^ REFERENCE):
            return False
        (self._aged if time_s < int(time.time()) - RENEW_AFTER_S else self._recent).add(key)
        return True

    def _rely(self, cid: Cid, key: bytes) -> None:
        known = key in self._places or key in self._aged or key in self._recent or key in self._wanted
        if not known and not self._here(key, refers=True):
            raise NotFound(f"{cid} is not in the store {self._index.folder} any more; add its file again")

    # --------------------------------------------------------------------------------------------- segments

    def _writer(self, cid: Cid, size: int) -> SegmentWriter:
        """The segment for the next block, with room reserved for it."""
        limit = self._context.segments.size_bytes
        writer = self._writers[-1] if self._writers else None
        # A file's leaves come first and its other blocks after them, so behind a block that is no leaf a file has ended.
        if writer is None or (
            writer.end >= limit and (self._after_node or writer.end + size > HARD_LIMIT * limit)
        ):
            if writer is not None:
                writer.flush()
            writer = self._context.segments.claim()
            self._writers.append(writer)
        self._after_node = cid.codec != RAW
        quota = self._context.quota
        if quota is not None and writer.end + size > writer.reserved_end:
            try:
                quota.reserve(writer, size, blocks=len(self._places) + 1)
            except NoRoom as full:
                self._make_room(full)
                try:
                    quota.reserve(writer, size, blocks=len(self._places) + 1)
                except NoRoom:
                    raise self._full() from None
        return writer

    def _full(self) -> Unavailable:
        quota = self._context.quota
        limit = quota.max_bytes if quota is not None else 0
        return Unavailable(
            f"the store's quota of {limit} bytes (storage.max_bytes) is reached: unpin and collect, or raise it; "
            "nothing was stored"
        )

    def _make_room(self, full: NoRoom) -> None:
        """Let the collector work. What this thread's calls build on is held meanwhile by a time that lies ahead."""
        make_room = self._context.make_room
        if make_room is None:
            raise self._full()
        calls = list(_calls(self._index.folder))
        try:
            for call in calls:
                call._hold()  # noqa: SLF001 -- of the same class
            try:
                make_room(full.missing_bytes)
            except Conflict:
                self._context.epochs.wait_for_collector(COLLECTOR_WAIT_S)
            except Unavailable:
                pass  # other adds did not move on in time; perhaps there is room all the same
        finally:
            for call in calls:
                call._enter()  # noqa: SLF001

    # ----------------------------------------------------------------------------------------------- epochs

    def _enter(self) -> None:
        if self._membership is None:
            self._membership = self._context.epochs.enter()
        self._cutoff_s = int.from_bytes(self._membership.packed[8:], "little")

    def _leave(self) -> None:
        if self._membership is not None:
            self._membership.leave()
            self._membership = None

    def _keep_up(self, other: Membership | None) -> None:
        if other is not None and self._membership is not None and other.packed != self._membership.packed:
            self._move_on(other.packed)

    def _move_on(self, epoch: bytes) -> None:
        """Become a member of the present epoch: whatever was skipped is renewed before the old one is left."""
        old = self._membership
        if old is not None and old.packed[:8] == epoch[:8]:  # the collector has ended
            old.packed = epoch
            self._enter()
            return
        self._membership = None
        try:
            self._enter()
            self._renew_skipped()
        finally:
            if old is not None:
                old.leave()

    def _hold(self) -> None:
        if self._renew_skipped(until_s=int(time.time()) + HOLD_S):
            self._held = True
        self._leave()

    def _skipped(self) -> Iterator[bytes]:
        """What this call, and those that it is around, build on without having written it."""
        yield from self._aged
        yield from self._recent
        if self._gathered is not None:
            yield from self._gathered

    def _renew_skipped(self, *, until_s: int | None = None) -> bool:
        """Whether there was anything to renew."""
        if not (self._aged or self._recent or self._gathered):
            return False
        with self._index.changing() as change:
            self._renew(change, self._skipped(), until_s=until_s)
        return True

    def _renew(self, change: Change, keys: Iterable[bytes], *, until_s: int | None = None) -> None:
        missing = change.renew(keys, until_s=until_s)
        if missing:
            raise Conflict(
                f"{len(missing)} blocks that this add builds on were removed from {self._index.folder} meanwhile, "
                f"such as the one with the multihash {missing[0].hex()}; add it again"
            )

    # --------------------------------------------------------------------------------------------- the end

    def _commit(self) -> None:
        nothing = not (self._places or self._aged or self._staged or self._held)
        if nothing and not (self._recent and self._index.totals().cutoff_s):
            return
        for writer in self._writers:
            writer.sync()
        quota = self._context.quota
        if quota is None:
            self._enter_blocks()
            return
        blocks = len(self._places) + len(self._aged) + len(self._wanted) + len(self._staged_keys)
        try:
            with quota.committing(self._writers, blocks=blocks):
                self._enter_blocks()
        except NoRoom as full:
            self._make_room(full)
            try:
                with quota.committing(self._writers, blocks=blocks):
                    self._enter_blocks()
            except NoRoom:
                raise self._full() from None

    def _enter_blocks(self) -> None:
        """Make it all visible: first, in several transactions, what is staged, and last what the caller waits for."""
        self._new_bytes = 0
        self._entering = True
        while self._staged and self._session is not None:
            self._staged = self._enter_some_staged(self._session)
        with self._index.changing() as change:
            for writer in self._writers:
                change.set_end(writer.number, writer.end)
            self._put(change, self._files.settle(change, self._places))
            # What is young enough without renewal may yet be older than the cut-off of a collector at work.
            doubtful = self._held or change.totals.cutoff_s
            self._renew(change, self._skipped() if doubtful else self._aged)

    def _enter_some_staged(self, session: bytes) -> bool:
        """Whether there may be more."""
        with self._index.changing() as change:
            rows = change.unstage(session)
            wanted = (key for key, (_, call) in rows.items() if call == self._call or key in self._wanted)
            self._put(change, {key: rows[key][0] for key in wanted})
        return bool(rows)

    def _put(self, change: Change, places: dict[bytes, bytes]) -> None:
        self._new_bytes += sum(place[2] for place in PLACE.iter_unpack(b"".join(places.values())))
        change.put(places, replace=self._replace)

    def _undo(self, *, keep_staged: bool) -> None:
        """Take back what is not visible yet, as far as the disk lets us; what remains counts as garbage."""
        try:
            if self._staged and self._session is not None and not keep_staged:
                _drop_session(self._index, self._session)
            if self._staged and not keep_staged and not self._entering:  # else some of it is visible
                with self._index.changing() as change:
                    for writer in self._writers:
                        row = change.segment(writer.number)
                        if row.end > writer.start:
                            change.set_end(writer.number, writer.start)
            for writer in self._writers:
                use = self._index.segment(writer.number)
                writer.cut(use.end if use is not None else 0)
        except (OSError, HoldfastError):
            return  # the error that led here is the one to report

    # --------------------------------------------------------------------------------------------- staging

    def _find_staged(self) -> None:
        """Take up what an interrupted call with the same name has staged."""
        if self._session is None:
            return
        with self._index.reading() as txn:
            known = txn.get(self._session, db=self._index.tables["sessions"]) is not None
        if known and self._lock_session():
            self._staged = True

    def _lock_session(self) -> bool:
        """Whether the name is this call's; else somebody else works under it, and this call can't be resumed."""
        if self._session_lock is None and self._session is not None:
            self._session_lock = lock_file(_session_path(self._index.folder, self._session))
            if self._session_lock is None:
                self._session = None
        return self._session_lock is not None

    def _unlock_session(self) -> None:
        if self._session_lock is not None and self._session is not None:
            _session_path(self._index.folder, self._session).unlink(missing_ok=True)
            os.close(self._session_lock)
            self._session_lock = None

    def _stage(self) -> None:
        """Make what is written durable, visible to nobody but a later call with the same name."""
        own = {key: place for key, place in self._places.items() if not _refers(place)}
        if own and self._lock_session():
            for writer in self._writers:
                writer.sync()
            quota = self._context.quota
            if quota is None:
                self._enter_staged(own)
            else:
                with suppress(NoRoom), quota.committing(self._writers, blocks=len(own)):
                    self._enter_staged(own)
                    for writer in self._writers:
                        writer.reserved_end = writer.end
        self._stage_at_bytes = self._written_bytes + STAGE_BYTES
        self._stage_at_s = time.monotonic() + STAGE_S

    def _enter_staged(self, own: dict[bytes, bytes]) -> None:
        if self._session is None:
            return
        with self._index.changing() as change:
            for writer in self._writers:
                change.set_end(writer.number, writer.end)
            change.stage(self._session, self._call, own)
        self._staged = True
        self._staged_keys.extend(own)
        for key in own:
            del self._places[key]


def _refers(place: bytes) -> bool:
    return bool(PLACE.unpack(place)[0] & REFERENCE)


def drop_stale(context: WritingContext, older_than_s: float) -> int:
    """Drop what was staged by calls that died so long ago and were not taken up again; returns the bytes."""
    index = context.index
    before_s = time.time() - older_than_s
    with index.reading() as txn, txn.cursor(db=index.tables["sessions"]) as cursor:
        times = {key: int.from_bytes(value, "little") for key, value in cursor}
    known = {_session_path(index.folder, session) for session in times}
    for path in (index.folder / "locks").glob("session-*"):
        if path not in known:  # its owner died before it staged anything
            handle = lock_file(path, create=False)
            if handle is not None:
                path.unlink(missing_ok=True)
                os.close(handle)
    dropped = 0
    for session in [session for session, time_s in times.items() if time_s <= before_s]:
        path = _session_path(index.folder, session)
        lock = lock_file(path)
        if lock is None:
            continue
        try:
            dropped += _drop_session(index, session)
            path.unlink(missing_ok=True)
        finally:
            os.close(lock)
    return dropped


def _drop_session(index: Index, session: bytes) -> int:
    """Let what is staged become garbage; returns the bytes."""
    dropped, more = 0, True
    while more:
        with index.changing() as change:
            before = change.totals.staged_bytes
            more = bool(change.unstage(session))
            dropped += before - change.totals.staged_bytes
    return dropped


def _session_path(folder: Path, session: bytes) -> Path:
    return folder / "locks" / f"session-{session.hex()}"


def _calls(folder: Path) -> list[Writing]:
    """The calls on a store that this thread is in."""
    stores: dict[Path, list[Writing]] = _active.__dict__.setdefault("stores", {})
    return stores.setdefault(folder, [])
