"""What the index stores, in bytes: places, entries, and what entries add up to."""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass

__all__ = [
    "COMPACTIONS",
    "EMPTY_PLACE",
    "ENTRY",
    "EPOCH",
    "NUMBER",
    "PLACE",
    "REFERENCE",
    "TIME",
    "TOTALS_KEY",
    "SegmentUse",
    "Totals",
]

REFERENCE = 1 << 31
"""Set in the segment number of a block that lies in a file of the user's."""

PLACE = struct.Struct("<IQI")  # segment, offset, length
EMPTY_PLACE = PLACE.pack(0, 0, 0)  # of the block without bytes, which lies in no segment
ENTRY = struct.Struct("<IQII")  # the same, and the time in seconds
TIME = struct.Struct("<I")
NUMBER = struct.Struct(">I")  # big-endian: LMDB then lists them in order
TOTALS_KEY = b"totals"
"""Where the table ``meta`` holds them."""


@dataclass(slots=True)
class Totals:
    """What all entries add up to, and the store's counters."""

    blocks: int = 0
    own_bytes: int = 0
    """Payload of blocks that lie in segments."""
    staged_bytes: int = 0
    segment_bytes: int = 0
    """Of all segment files: in use, staged, and garbage."""
    segments: int = 0
    referenced_blocks: int = 0
    referenced_bytes: int = 0
    compactions: int = 0
    """Rises with every removed segment: who holds maps then looks which are still needed."""
    next_segment: int = 1
    """Numbers below it were used; none is used twice."""
    next_file: int = 0
    epoch: int = 0
    cutoff_s: int = 0
    """While a collector is at work: older entries may go at any moment. Otherwise 0."""

    _FORM = struct.Struct("<12Q")

    @classmethod
    def unpack(cls, raw: bytes) -> Totals:
        """The totals as they are stored."""
        return cls(*cls._FORM.unpack(raw))

    def pack(self) -> bytes:
        """The inverse of :meth:`unpack`."""
        return self._FORM.pack(*astuple(self))


COMPACTIONS = slice(56, 64)  # where packed totals hold them: reading one number should not cost twelve
EPOCH = slice(80, 96)


@dataclass(slots=True)
class SegmentUse:
    """What of a segment file is in use."""

    end: int = 0
    """The committed end: bytes behind it are a writer's, dead or alive."""
    live_bytes: int = 0
    staged_bytes: int = 0
    blocks: int = 0

    _FORM = struct.Struct("<QQQQ")

    @classmethod
    def unpack(cls, raw: bytes) -> SegmentUse:
        """The row as it is stored."""
        return cls(*cls._FORM.unpack(raw))

    def pack(self) -> bytes:
        """The inverse of :meth:`unpack`."""
        return self._FORM.pack(self.end, self.live_bytes, self.staged_bytes, self.blocks)

    @property
    def garbage_bytes(self) -> int:
        """Bytes that no entry leads to."""
        return self.end - self.live_bytes - self.staged_bytes
