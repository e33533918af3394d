"""Memory that is used again, because the first use of a page costs many times what filling it does."""

from __future__ import annotations

import math
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Buffers"]

_ALIGNMENT = 64
_PAGE = 4096
_SMALL_BYTES = 256 << 10
"""Less than this, the allocator uses again by itself."""
_PROBE = [(np.empty(0), 0)]
_UNUSED = sys.getrefcount(_PROBE[0][0])
"""References to what is in such a list and nowhere else, as this interpreter counts them."""


class Buffers:
    """Gives out arrays that lie one behind the other in a buffer, and uses the buffer again when nobody has any of them.

    Nobody returns anything: every array, tensor or view of a buffer holds a reference to it, so one that only this
    object refers to is free.

    Args:
        spare_bytes: How much may be kept beyond what is asked for.
    """

    def __init__(self, spare_bytes: int) -> None:
        self._spare_bytes = spare_bytes
        self._lock = threading.Lock()
        self._kept: list[tuple[np.ndarray[Any, Any], int]] = []
        """With how much of each was asked for."""

    def arrays(self, wanted: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> list[np.ndarray[Any, Any]]:
        """Uninitialised arrays of these shapes and types."""
        starts = []
        size = 0
        for shape, dtype in wanted:
            starts.append(size)
            size += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        buffer = self._buffer(size)
        return [
            np.ndarray(shape, dtype, buffer, start)
            for (shape, dtype), start in zip(wanted, starts, strict=True)
        ]

    def _buffer(self, size: int) -> np.ndarray[Any, Any]:
        if size < _SMALL_BYTES:
            return np.empty(size, np.uint8)
        with self._lock:
            kept = self._kept
            free = [at for at in range(len(kept)) if sys.getrefcount(kept[at][0]) == _UNUSED]
            used = set(range(len(kept))).difference(free)
            spare = self._spare_bytes - sum(kept[at][0].nbytes - kept[at][1] for at in used)
            fitting = [at for at in free if size <= kept[at][0].nbytes <= size + spare]
            best = min(fitting, key=lambda at: kept[at][0].nbytes, default=None)
            buffer = np.empty(-(-size // _PAGE) * _PAGE, np.uint8) if best is None else kept[best][0]
            spare -= buffer.nbytes - size
            for at in reversed(free):  # rather the ones that were used last
                if at != best and kept[at][0].nbytes <= spare:
                    spare -= kept[at][0].nbytes
                    used.add(at)
            self._kept = [*(kept[at] for at in sorted(used)), (buffer, size)]
            return buffer
