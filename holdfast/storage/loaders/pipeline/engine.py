"""The threads of a pass: they fetch, verify, decode and gather ahead of the consumer, within bounds of memory and disk.

All state is under one lock. Loads are begun in the order of need, so whatever was read early is needed before what is not read
yet, and the next load that the consumer waits for always has room.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import Conflict, HoldfastError, InvalidInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from holdfast.storage.loaders.pipeline.counters import LoaderCounters
    from holdfast.storage.loaders.pipeline.gathering import Chunk, Columns, Entry
    from holdfast.storage.loaders.pipeline.schedule import Limits, Schedule

__all__ = ["Engine", "GroupReader", "GroupSource"]

_JOIN_S = 5.0
_LOOK_S = 2.0
_FETCHERS = 2
"""One fetches while what the other one got is made durable."""
_FETCH_AT_ONCE = 8
"""For how many loads a fetch may be, after the first ones: each ends with a sync of the disk."""
_FETCH_LOADS = 32
"""How many loads ahead of the reading one are fetched at least, if the disk bound allows it."""


class GroupReader(Protocol):
    """What reads the row groups of one shard; safe to use from several threads."""

    def read_group(self, index: int, columns: Sequence[str] | None = None) -> pa.RecordBatch:
        """One row group, verified."""
        ...


class GroupSource(Protocol):
    """Where row groups come from."""

    columns: Sequence[str] | None
    """Which ones are read, in this order; None for all."""
    fetches: bool
    """Whether some may have to be fetched from other nodes first."""

    def reader(self, shard: int) -> GroupReader:
        """What reads a shard; the same one again for as long as it is in use."""
        ...

    def is_here(self, shard: int) -> bool:
        """Whether a shard is known to be on this node; it was opened, then."""
        ...

    def near(self, places: Sequence[tuple[int, int]]) -> list[int]:
        """Fetch what is not here of some row groups, each given by its shard and its number; how many bytes each got."""
        ...

    def name(self, shard: int, index: int) -> str:
        """A row group, for messages: with the CID of its shard."""
        ...


class Engine:
    """Makes the chunks of a schedule, a few ahead of the one that is asked for.

    Args:
        schedule: What to read, in which order.
        columns: Which columns, and how they are kept.
        source: Where they come from.
        limits: What may be used.
        counters: Told what was done.
        finish: Called with each chunk, in a thread; what it returns takes the chunk's place.
    """

    def __init__(
        self,
        schedule: Schedule,
        columns: Columns,
        source: GroupSource,
        *,
        limits: Limits,
        counters: LoaderCounters,
        finish: Callable[[Chunk], Any] | None = None,
    ) -> None:
        self._schedule = schedule
        self._columns = columns
        self._source = source
        self._limits = limits
        self._counters = counters
        self._finish = finish
        self._inline = schedule.in_place and finish is None  # nothing to do that is worth a thread
        self._room = limits.memory_bytes - schedule.chunks_bytes - schedule.spare_bytes
        self._process = os.getpid()
        lock = threading.RLock()
        self._lock = lock
        self._work = threading.Condition(lock)
        self._fetch = threading.Condition(lock)
        self._ready = threading.Condition(lock)
        self._stopped = False
        self._failure: tuple[int, BaseException] | None = None
        """The first load that failed, and how."""
        self._next_fetch = 0
        self._fetched: dict[int, int] = {}
        """Loads that are on this node and not begun yet, with the bytes that came from peers."""
        self._fetched_bytes = 0
        self._next_load = 0
        self._loading = 0
        self._done: set[int] = set()
        self._prefix = 0
        """How many loads are done, with all before them."""
        self._entries: dict[int, Entry] = {}
        self._used = 0
        self._next_chunk = 0
        self._assembling = False
        self._made: dict[int, Any] = {}
        self._made_bytes: dict[int, int] = {}
        self._asked = 0
        self._horizon = 0
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads; they hold no reference to what asks for chunks."""
        if not self._schedule.chunks:
            return
        work = [(self._read, f"holdfast-load-{n}") for n in range(self._limits.threads)]
        if self._source.fetches:
            work += [(self._bring, f"holdfast-near-{n}") for n in range(min(_FETCHERS, self._schedule.loads))]
        for target, name in work:
            thread = threading.Thread(target=target, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def take(self, number: int) -> Any:
        """The chunk of this number; the one before it is let go. They are asked for one after the other.

        Raises:
            HoldfastError: As reading raises it; the message says which row group.
            Conflict: The pass was closed, or began in another process.
        """
        if os.getpid() != self._process:
            raise Conflict(
                "this pass began in another process, and its threads stayed there: begin a new one"
            )
        schedule = self._schedule
        with self._lock:
            self._asked = number
            self._horizon = int(schedule.edges[number]) + self._limits.prefetch * schedule.batch_size
            if self._inline:
                self._release(int(schedule.edges[number]))
            self._made_bytes.pop(number - 1, None)
            self._wake()
            needed = schedule.loads_for(number)
            while True:
                if self._stopped:
                    raise Conflict("this pass is closed: begin a new one")
                if number in self._made:
                    made = self._made.pop(number)
                    self._wake()
                    if isinstance(made, BaseException):
                        raise made
                    return made
                if self._inline and self._prefix >= needed:
                    break
                if self._failure is not None and self._failure[0] < needed:
                    raise self._failure[1]
                if not self._ready.wait(_LOOK_S) and not any(each.is_alive() for each in self._threads):
                    raise Unavailable("the threads of this pass are gone: begin a new one")
        return self._assemble(number)

    def stop(self, timeout_s: float = _JOIN_S) -> None:
        """End the threads, which finish what they are at, and drop what was read. Stopping twice is fine."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._stopped = True
            self._wake()
            self._ready.notify_all()
        if threading.current_thread() in self._threads:
            return  # the garbage collector calls from anywhere, also with the lock held
        ends = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))
        with self._lock:
            self._entries.clear()
            self._made.clear()

    # ------------------------------------------------------------------------------------------ the threads

    def _read(self) -> None:
        while True:
            with self._lock:
                chunk = load = None
                while not self._stopped:
                    chunk = self._chunk_to_make()
                    load = self._load_to_begin() if chunk is None else None
                    if chunk is not None or load is not None:
                        break
                    self._work.wait()
                if self._stopped:
                    return
                self._wake()  # there may be work for one more
            if chunk is not None:
                self._make(chunk)
            elif load is not None:
                self._load(load)

    def _bring(self) -> None:
        while True:
            with self._lock:
                while not self._stopped and not (loads := self._loads_to_fetch()):
                    self._fetch.wait()
                if self._stopped:
                    return
                self._wake()
            began = time.perf_counter()
            try:
                came = self._source.near([self._place(load) for load in loads])
            except BaseException:  # noqa: BLE001 -- the consumer gets it, whatever it is
                came = [self._bring_one(load) for load in loads]  # to know which one it is of
            self._counters.add(fetch_s=time.perf_counter() - began, bytes_from_peers=sum(came))
            with self._lock:
                self._fetched.update(zip(loads, came, strict=True))
                self._wake()

    def _bring_one(self, load: int) -> int:
        try:
            if not self._stopped and not self._failed_before(load):
                return sum(self._source.near([self._place(load)]))
        except BaseException as error:  # noqa: BLE001 -- as above
            self._fail(load, error)
        return 0

    def _wake(self) -> None:
        """Wake one thread of each kind if there is something for it to do; with the lock held.

        It wakes the next one. To wake all of them each time would cost more than their work.
        """
        if self._stopped:
            self._work.notify_all()
            self._fetch.notify_all()
            return
        self._pass_over_what_is_here()
        if self._chunk_is_due() or self._load_is_due():
            self._work.notify()
        if self._fetch_is_due():
            self._fetch.notify()

    def _place(self, load: int) -> tuple[int, int]:
        groups, group = self._schedule.groups, self._schedule.load_group[load]
        return int(groups.shard[group]), int(groups.index[group])

    def _failed_before(self, load: int) -> bool:
        return self._failure is not None and self._failure[0] <= load

    def _fail(self, load: int, error: BaseException) -> None:
        name = self._source.name(*self._place(load))
        if isinstance(error, HoldfastError):
            text = f"{name} can't be read: {error}"
            told = type(error)(text)
            told.__cause__ = error
            error = told
        else:
            error.add_note(f"while reading {name}")
        with self._lock:
            if not self._failed_before(load):
                self._failure = (load, error)
            self._ready.notify_all()

    # --------------------------------------------------------------------- what may be begun, with the lock held

    def _fetch_is_due(self) -> bool:
        load, schedule = self._next_fetch, self._schedule
        if not self._source.fetches or load >= schedule.loads or self._failed_before(load):
            return False
        ahead = load - self._next_load
        return ahead <= 0 or (
            self._fetched_bytes + self._group_bytes(load) <= self._limits.disk_bytes
            and (ahead < _FETCH_LOADS or schedule.load_first.item(load) < self._horizon)
        )

    def _pass_over_what_is_here(self) -> None:
        while (
            self._source.fetches
            and self._next_fetch < min(self._schedule.loads, self._next_load + _FETCH_LOADS)
            and self._source.is_here(self._place(self._next_fetch)[0])
        ):
            self._fetched[self._next_fetch] = 0
            self._fetched_bytes += self._group_bytes(self._next_fetch)
            self._next_fetch += 1

    def _loads_to_fetch(self) -> list[int]:
        loads: list[int] = []
        # Few at first, since they are waited for.
        most = min(_FETCH_AT_ONCE, 1 + self._next_fetch // _FETCHERS)
        while len(loads) < most and self._fetch_is_due():
            loads.append(self._next_fetch)
            self._fetched_bytes += self._group_bytes(self._next_fetch)
            self._next_fetch += 1
            self._counters.peak(peak_ahead_bytes=self._fetched_bytes)
        return loads

    def _load_is_due(self) -> bool:
        load, schedule = self._next_load, self._schedule
        if load >= schedule.loads or self._failed_before(load):
            return False
        if self._source.fetches and load not in self._fetched:
            return False
        due = self._due()
        if self._used + self._cost(load) > self._room:
            return load < due and not self._loading and not self._assembling
        return load - due < 2 * self._limits.threads or schedule.load_first.item(load) < self._horizon

    def _due(self) -> int:
        """Before which load all are needed for the next chunk."""
        schedule = self._schedule
        return schedule.loads_for(self._asked if self._inline else min(self._next_chunk, schedule.chunks - 1))

    def _load_to_begin(self) -> int | None:
        if not self._load_is_due():
            return None
        load = self._next_load
        cost = self._cost(load)
        if self._used + cost > self._room:  # all of it is needed at once, so to wait would be for ever
            error = InvalidInput(
                f"{self._source.name(*self._place(load))} does not fit into memory_bytes={self._limits.memory_bytes}: "
                f"{self._used} bytes are in use and it needs about {cost} more; allow more"
            )
            self._failure = (load, error)
            self._ready.notify_all()
            return None
        self._next_load += 1
        self._loading += 1
        self._hold(cost)
        if self._source.fetches:
            self._fetched_bytes -= self._group_bytes(load)
        return load

    def _chunk_is_due(self) -> bool:
        chunk, schedule = self._next_chunk, self._schedule
        if self._inline or self._assembling or chunk >= schedule.chunks:
            return False
        return chunk - self._asked <= schedule.ahead and self._prefix >= schedule.loads_for(chunk)

    def _chunk_to_make(self) -> int | None:
        if not self._chunk_is_due():
            return None
        chunk = self._next_chunk
        self._assembling = True
        self._next_chunk += 1
        return chunk

    def _group_bytes(self, load: int) -> int:
        return int(self._schedule.groups.memory_bytes[self._schedule.load_group[load]])

    def _cost(self, load: int) -> int:
        """What a load holds while it goes on: the decoded row group, and beside it what is picked from it."""
        group = self._group_bytes(load)
        if self._schedule.views:
            return group
        return group + sum(int(self._schedule.entry_bytes[e]) for e in self._schedule.entries_of(load))

    def _hold(self, more: int) -> None:
        self._used += more
        if more > 0:
            self._counters.peak(peak_memory_bytes=self._used + sum(self._made_bytes.values()))

    def _release(self, row: int) -> None:
        """Let go of the entries whose rows are all before this one."""
        for number in [n for n in self._entries if self._schedule.last_row(n) < row]:
            self._hold(-self._entries.pop(number).size_bytes)

    # ------------------------------------------------------------------------------------------------ the work

    def _load(self, load: int) -> None:
        began = time.perf_counter()
        shares, schedule = self._schedule.shares, self._schedule
        shard, index = self._place(load)
        size = self._group_bytes(load)
        entries: dict[int, Entry] = {}
        read = False
        try:
            group = self._source.reader(shard).read_group(index, self._source.columns)
            for number in schedule.entries_of(load):
                entries[number] = self._columns.entry(
                    group,
                    schedule.selection(number),
                    first=int(shares.first[number]),
                    stride=shares.stride,
                    count=int(shares.count[number]),
                )
            del group
            read = True
        except BaseException as error:  # noqa: BLE001 -- the consumer gets it, whatever it is
            self._fail(load, error)
        again = sum(int(schedule.entry_bytes[number]) for number in schedule.entries_of(load)[1:])
        with self._lock:
            came = self._fetched.pop(load, 0)
            self._loading -= 1
            if not read or self._stopped:
                entries.clear()
            self._hold(sum(entry.size_bytes for entry in entries.values()) - self._cost(load))
            self._entries.update(entries)
            if read:
                self._done.add(load)
            while self._prefix in self._done:
                self._done.discard(self._prefix)
                self._prefix += 1
            self._wake()
            self._ready.notify_all()
        self._counters.add(
            read_s=time.perf_counter() - began,
            groups=1,
            bytes_from_disk=max(0, size - came),
            bytes_from_memory=again,
        )

    def _make(self, number: int) -> None:
        made: Any
        try:
            made = self._assemble(number)
        except BaseException as error:  # noqa: BLE001 -- the consumer gets it, whatever it is
            made = error
        with self._lock:
            self._assembling = False
            self._wake()
        if self._finish is not None and not isinstance(made, BaseException):
            try:
                with self._counters.timed("transform_s"):
                    made = self._finish(made)
            except BaseException as error:  # noqa: BLE001 -- as above
                error.add_note(f"in batch {number} of this pass")
                made = error
        with self._lock:
            self._made[number] = made
            self._ready.notify_all()

    def _assemble(self, number: int) -> Chunk:
        began = time.perf_counter()
        begin, end = int(self._schedule.edges[number]), int(self._schedule.edges[number + 1])
        with self._lock:
            entries = [each for each in self._entries.values() if each.first < end]
        entries.sort(key=lambda entry: entry.first)
        chunk = self._columns.chunk(entries, begin, end)
        with self._lock:
            self._made_bytes[number] = chunk.size_bytes
            self._hold(0)
            if not self._inline:
                self._release(end)
                self._wake()
        self._counters.add(gather_s=time.perf_counter() - began)
        return chunk
