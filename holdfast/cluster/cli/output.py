"""What commands print, and how."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from holdfast.config import load_settings, read_token
from holdfast.errors import NotFound
from holdfast.printable import printable
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    from holdfast.cluster.client import Client

__all__ = ["Progress", "open_client", "show", "table"]


def open_client(arguments: argparse.Namespace) -> Client:
    """The client that a command works with: of ``--address``, of the daemon on the home, or embedded."""
    from holdfast.cluster.client import connect
    from holdfast.cluster.daemon import read_announcement

    settings = load_settings(arguments.home)
    token = read_token(Path(arguments.token_file)) if arguments.token_file else None
    address = arguments.address
    if address is None:
        try:
            daemon = read_announcement(settings.home)
            address = daemon.get("master_url", daemon["url"])
        except NotFound:
            pass
    return connect(address, home=settings.home, token=token)


def show(arguments: argparse.Namespace, value: Any, text: str) -> None:
    """Print ``value`` as JSON where ``--json`` asks for it, and ``text`` otherwise."""
    print(json.dumps(value, indent=2) if arguments.json else text, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows under a header, in aligned columns: one line each, whatever is in them."""
    lines = [tuple(header), *[tuple(printable(str(cell)) for cell in row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


class Progress:
    """One line on standard error that is rewritten in place; nothing where that is no terminal.

    Args:
        label: What is going on.
        total: If known.
        unit: What is counted; bytes are shown as KiB, MiB and so on.
        quiet: Show nothing.
    """

    def __init__(
        self, label: str, total: int | None = None, *, unit: str = "bytes", quiet: bool = False
    ) -> None:
        self._label = label
        self._unit = unit
        self.total = total
        self._done = 0
        self._started = self._shown = time.monotonic()
        self._live = sys.stderr.isatty() and not quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def __call__(self, more: int) -> None:
        """Note that ``more`` are done."""
        self._done += more
        now = time.monotonic()
        if self._live and now - self._shown > 0.1:
            self._shown = now
            rate = self._done / max(now - self._started, 1e-9)
            part = f"{100 * self._done / self.total:3.0f} %  " if self.total else ""
            if self._unit == "bytes":
                text = f"{self._label}  {part}{human_size(self._done)}  {human_size(rate)}/s"
            else:
                text = f"{self._label}  {part}{self._done:,} {self._unit}  {rate:,.0f}/s"
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
