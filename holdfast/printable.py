"""Text of strangers, fit to stand beside our own."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """``text`` as part of one line: what would end the line, or change how the rest of it reads, becomes U+FFFD.

    Such as line breaks, the commands of terminals, and letters that turn the direction of writing.
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
