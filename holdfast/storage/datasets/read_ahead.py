"""The next things are read while the present one is used."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["in_order"]

T = TypeVar("T")

_READERS = min(4, os.cpu_count() or 1)


def in_order(calls: Iterable[Callable[[], T]], *, ahead: int = 2) -> Iterator[T]:
    """What the calls give, in their order; up to ``ahead`` of the next ones run meanwhile in threads.

    A call that fails ends it with its error. Calls are drawn from the iterable only as they are begun.
    """
    drawn = iter(calls)
    first = list(islice(drawn, 2))
    if len(first) < 2:
        yield from (call() for call in first)
        return
    pool = ThreadPoolExecutor(min(_READERS, ahead), thread_name_prefix="holdfast-rows")
    try:
        pending: deque[Future[T]] = deque(pool.submit(call) for call in first)
        while pending:
            done = pending.popleft().result()
            while len(pending) < ahead and (call := next(drawn, None)) is not None:
                pending.append(pool.submit(call))
            yield done
    finally:
        pool.shutdown(cancel_futures=True)
