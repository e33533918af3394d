"""Kubo's content-defined chunker, ``ipfs add --chunker=buzhash``: the same cuts, and so the same CIDs.

A piece ends behind the first 32 bytes, at least 128 KiB from its beginning, whose hash has 17 zero bits at its end; at
512 KiB at the latest. The hash is the exclusive or of a number for each byte, rotated by how far back the byte is.
"""

from __future__ import annotations

import base64
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from holdfast.storage.formats.chunkers import cut_in_windows

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BuzhashChunker"]

MIN_BYTES = 128 << 10
MAX_BYTES = 512 << 10
MASK = (1 << 17) - 1
HASHED_BYTES = 32
_STEP_BYTES = 32 << 10  # hashed at once: small enough for the processor's cache

# The number of each byte, 32 bits each, little-endian. It is random numbers of Go's math/rand with seed 0, shuffled so
# that each bit is set in half of them; every program that is to cut where Kubo cuts has to have these.
_NUMBERS = base64.b64decode(
    "1ec2YgubJxCCgYFyFGVS3D0e1C/I+H53hVLugzc2jywanAQvkZffVx8VB5IYSFSbWPbudGDKKCAa2XECfliuJ1/6+ezNcW4jLoo6"
    "9IAzsQsskVee22yiiXE9z5/xpm2odvNJnMfsajTuqZTwy+mZ6sYTF7D7z4oI+6BgKWxiSjRGKvJ/pRp6bRZJcWrKVNRBMLglg2P1"
    "ZQvK7H9EXurQ+dTT2cF0xV7LAumqVefA7YYznjoN4cEN5zn2xeMKFEObxQpJxvswQF7VbZeO6mh0qG/vMPil1R7MeE4fYQUZ0d0E"
    "OWHyuWdsVsxcWpCkszd7iolTS53Sj2t1FdiqFOQbUefB+jx5oSmA2v4O1AIOOAf975vcgpAELTF4vJmoAlD/RnbOIZsEzQFPmUMP"
    "pcXGw1Bf2rvHXsEOthnbmrmAHgxoKbW5GSQWrgW0QiWdLqSRaPbga7mm1260dye8Vs5i4dWqZkIEt/1gpTL4Zsr2lZXtPOj+mY0i"
    "VSgOvxJZZIlm2q+JB6i6ggJDo2cjsJEUWbGk8S+2OQdBoFVwmymyDi5Sgvwk39MnM2kmeLBp4GIcATFQf66TBfVdJ+vZeLYO4N7M"
    "F1kKZrmXLSAG3SKeIu2/Ncep5m8x1kwux2+i3wYCWlyx1kl72GlFd8kJYV1EE6p1qTW5qZqFEwA4ZZFj+9H9VZLCkTtKeCZM57lA"
    "Tc5jnr58wJ5S5OYvY7MPydk4lKiUL2gRRv347cF+JdbjXEexLe5gArD6KnhIniveQLOGyv2CFL+zQf6wEqTUjLmd4FNdr8Ff4lV+"
    "OGs0070sobe6J2ic7ov3cVIPOoywkQQVEult8k46PiO66wnT/+CpoCFZK8o8ibnuiJ6CMyrMcJjQucQjoy6j6yJNrL1MxMg7lwON"
    "HjV3MvmfADt4Qje4DnHcISYDfQHtoQp2XEuBaVp/BOOW3pw8qfWGXGGlKjK0TVMlQuMtLg1LzPzMVyqsCwRtoPA313i8ZvfR8jyV"
    "p/WF2t+81bcTUiij6LwYX4/TREIJ21MSV/7up38xQ08yStk5/D+O+rNRn+5LeoLGu3hQA1yfbCj+Aoa2WiTX92vtipjECvoQ4D9p"
    "41/Gy0lXpDflhCtj85/emg9UIDSbjKqzdsRb10tXHa0AkZJN3iFHBRvfJ0aFsVhkZ+e3WE6Q36FXr5czxE29/W0lpvOYOfYzWODx"
    "Js8K4tbZf/VNCzCQkELfibwc0GjjPonPRqBCzBsYjnd2XCZnxKSB6aEdmYKUco9wYq7i5nAYRPy2sOGVJfhFBH+0k1q+9Jxe53Ha"
    "hLCClZ3vNfib4mEfWYVZMkMu4y1dD7+PjTgPs5VuW60H306TTg6Z1DxZ4lOQfYVBXA=="
)


@functools.cache
def _numbers() -> NDArray[np.uint32]:
    import numpy as np

    return np.frombuffer(_NUMBERS, "<u4").astype(np.uint32)


@dataclass(frozen=True, slots=True)
class BuzhashChunker:
    """Kubo's buzhash, which has no parameters."""

    @property
    def name(self) -> str:
        """Least and most bytes, and the bits that decide."""
        return "buzhash-128KiB-512KiB-17"

    @property
    def max_chunk_bytes(self) -> int:
        """512 KiB."""
        return MAX_BYTES

    def chunks(self, stream: BinaryIO) -> Iterator[bytes]:
        """Yield the pieces; see :class:`~holdfast.storage.formats.chunkers.Chunker`."""
        piece = b""
        for piece in cut_in_windows(stream, MAX_BYTES, _length_of_first):
            yield piece
        if len(piece) >= MIN_BYTES:
            yield b""  # Kubo notices the end only when it looks for one more piece, and stores that too


def _length_of_first(window: memoryview) -> int:
    import numpy as np

    if window.nbytes < MIN_BYTES:
        return window.nbytes
    data = np.frombuffer(window, np.uint8)
    # An end at byte i is decided by the 32 bytes before it.
    for first in range(MIN_BYTES, window.nbytes + 1, _STEP_BYTES):
        last = min(first + _STEP_BYTES - 1, window.nbytes)
        found = np.flatnonzero(_hashes(data[first - HASHED_BYTES : last]) & MASK == 0)
        if found.size:
            return first + int(found[0])
    return window.nbytes


def _hashes(data: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The hash of each 32 neighbouring bytes; of twice as many in each round."""
    import numpy as np

    hashes = _numbers()[data]
    width = 1
    while width < HASHED_BYTES:
        older, newer = hashes[:-width], hashes[width:]
        hashes = (older << np.uint32(width) | older >> np.uint32(32 - width)) ^ newer
        width *= 2
    return hashes
