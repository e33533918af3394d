"""Many multihashes in little room."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["PackedKeys"]


class PackedKeys:
    """Multihashes, one behind the other, in the order they came in.

    A file of a terabyte has a million of them: here that is 35 MB, and in a set four times as much.

    Args:
        keys: The first ones; none has more than 255 bytes.
    """

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        self._packed = bytearray()
        self._count = 0
        self.extend(keys)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        while at < len(self._packed):
            behind = at + 1 + self._packed[at]
            yield bytes(self._packed[at + 1 : behind])
            at = behind

    def extend(self, keys: Iterable[bytes]) -> None:
        """Add some behind the others."""
        for key in keys:
            self._packed.append(len(key))
            self._packed += key
            self._count += 1
