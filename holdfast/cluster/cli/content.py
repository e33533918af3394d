"""``add``, ``get``, ``cat``, ``ls``, ``stat``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import Progress, human_bytes, open_client, show, table

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands"]


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    add = commands.add_parser("add", parents=[connected], help="store a file or a folder; prints its CID")
    add.add_argument("path", help="file or folder; - is standard input")
    add.set_defaults(run=_add)

    get = commands.add_parser("get", parents=[connected], help="write a file or a folder by CID")
    get.add_argument("cid", help="a CID, or <cid>/path/in/it")
    get.add_argument("-o", "--output", metavar="PATH", help="where to (default: the last part of CID)")
    get.set_defaults(run=_get)

    cat = commands.add_parser("cat", parents=[connected], help="write a file's bytes to standard output")
    cat.add_argument("cid", help="a CID, or <cid>/path/in/it")
    cat.set_defaults(run=_cat)

    ls = commands.add_parser("ls", parents=[connected], help="the entries of a folder")
    ls.add_argument("cid", help="a CID, or <cid>/path/in/it")
    ls.set_defaults(run=_ls)

    stat = commands.add_parser("stat", parents=[connected], help="what a CID is, and how large")
    stat.add_argument("cid", help="a CID, or <cid>/path/in/it")
    stat.set_defaults(run=_stat)


def _size_below(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def _add(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        if arguments.path == "-":
            with Progress("add") as progress:
                cid = client.store.add_stream(sys.stdin.buffer, progress=progress)
        else:
            path = Path(arguments.path)
            with Progress("add", _size_below(path) if path.exists() else None) as progress:
                cid = client.store.add(path, progress=progress)
        client.backend.publish(cid)
    show(arguments, {"cid": str(cid)}, str(cid))


def _get(arguments: argparse.Namespace) -> None:
    target = Path(arguments.output or arguments.cid.rstrip("/").rpartition("/")[2])
    with open_client(arguments) as client:
        cid = client.store.resolve(arguments.cid)
        with Progress("get", client.store.stat(cid).size) as progress:
            written = client.store.get(cid, target, progress=progress)
    show(
        arguments,
        {"cid": str(cid), "path": str(target), "bytes": written},
        f"{target}  {human_bytes(written)}",
    )


def _cat(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        for piece in client.store.stream(client.store.resolve(arguments.cid)):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _ls(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        entries = client.store.ls(client.store.resolve(arguments.cid))
    value = [{"name": e.name, "cid": str(e.cid), "total_size": e.total_size} for e in entries]
    show(arguments, value, "\n".join(f"{e.cid}  {human_bytes(e.total_size):>10}  {e.name}" for e in entries))


def _stat(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        stat = client.store.stat(client.store.resolve(arguments.cid))
    value = {"cid": str(stat.cid), "kind": stat.kind, "size": stat.size}
    show(arguments, value, table(("CID", "KIND", "SIZE"), [(stat.cid, stat.kind, human_bytes(stat.size))]))
