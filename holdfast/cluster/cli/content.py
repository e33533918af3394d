"""``add``, ``get``, ``cat``, ``ls``, ``stat``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import Progress, open_client, show, table
from holdfast.config import load_settings
from holdfast.errors import InvalidInput, NotFound
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import argparse

    from holdfast.cluster.client import Client
    from holdfast.storage.cid import Cid
    from holdfast.storage.formats.unixfs import Profile

__all__ = ["add_commands"]

_ADD_HELP = """\
profiles    unixfs-v1-2025 (1 MiB chunks, CIDv1), unixfs-v0-2015 (what 'ipfs add' gives), kubo-v1-raw
chunkers    fixed-1MiB, buzhash, fastcdc, safetensors, parquet, arrow; each name may carry its sizes, as in fixed-256KiB

examples:
  holdfast add photos/                           a folder; prints its CID
  holdfast add weights.safetensors --chunker safetensors
  holdfast add big.bin --no-copy                 index it where it lies
  tar c src | holdfast add - --cid-only
  holdfast add model.onnx --profile unixfs-v0-2015 --only-hash      the CID that Kubo would give
"""
_GET_HELP = """\
Every block is verified, and what is missing here is fetched. The file appears under its name when all of it is right.

examples:
  holdfast get bafybei... -o photos
  holdfast get bafybei.../2026/cat.jpg
"""
_CAT_HELP = """\
examples:
  holdfast cat bafybei.../README.md
  holdfast cat bafybei... | tar x
"""
_LS_HELP = """\
examples:
  holdfast ls bafybei...
  holdfast ls bafybei.../2026 --json
"""
_STAT_HELP = """\
examples:
  holdfast stat bafybei...                what it is, and how large
  holdfast stat digits@champion           the record that a name stands for
  holdfast stat bafyrei... --json
"""


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    add = commands.add_parser(
        "add",
        parents=[connected],
        help="store a file or a folder; prints its CID",
        epilog=_ADD_HELP,
    )
    add.add_argument("path", help="file or folder; - is standard input")
    add.add_argument("--profile", help="layout of files and folders (default: storage.profile)")
    add.add_argument("--chunker", help="where files are cut (default: the profile's)")
    add.add_argument("--hash", help="sha2-256 or blake3 (default: storage.hash)")
    add.add_argument(
        "--no-copy", action="store_true", help="leave the bytes where they are, and note where that is"
    )
    add.add_argument("--no-pin", action="store_true", help="let garbage collection remove it")
    add.add_argument("--only-hash", action="store_true", help="print the CID and store nothing")
    add.add_argument(
        "--cid-only", action="store_true", help="print the CID and nothing else, not even progress"
    )
    add.set_defaults(run=_add)

    get = commands.add_parser(
        "get", parents=[connected], help="write a file or a folder by CID", epilog=_GET_HELP
    )
    get.add_argument("cid", help="a CID, <cid>/path/in/it, or a name")
    get.add_argument("-o", "--output", metavar="PATH", help="where to (default: the last part of CID)")
    get.set_defaults(run=_get)

    cat = commands.add_parser(
        "cat", parents=[connected], help="write a file's bytes to standard output", epilog=_CAT_HELP
    )
    cat.add_argument("cid", help="a CID, <cid>/path/in/it, or a name")
    cat.set_defaults(run=_cat)

    ls = commands.add_parser("ls", parents=[connected], help="the entries of a folder", epilog=_LS_HELP)
    ls.add_argument("cid", help="a CID, <cid>/path/in/it, or a name")
    ls.set_defaults(run=_ls)

    stat = commands.add_parser(
        "stat", parents=[connected], help="what a CID is, and how large", epilog=_STAT_HELP
    )
    stat.add_argument("cid", help="a CID, <cid>/path/in/it, or a name")
    stat.set_defaults(run=_stat)


def _size_below(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum((Path(folder) / name).lstat().st_size for folder, _, names in os.walk(path) for name in names)


def _add(arguments: argparse.Namespace) -> None:
    from holdfast.storage.formats.unixfs import profile_named

    settings = load_settings(arguments.home)
    profile = profile_named(
        arguments.profile or settings.storage.profile,
        chunker=arguments.chunker,
        hash=arguments.hash or settings.storage.hash,
    )
    path = None if arguments.path == "-" else Path(arguments.path)
    if path is None and arguments.no_copy:
        raise InvalidInput("standard input can't be added by reference: write it to a file first")
    total = None if path is None or not path.exists() or arguments.cid_only else _size_below(path)
    with Progress("add", total, quiet=arguments.cid_only) as progress:
        if arguments.only_hash:
            cid = _hashed(path, profile, progress)
        else:
            cid = _stored(arguments, path, profile, progress)
    value = {"cid": str(cid), "profile": str(profile)}
    show(arguments, value, str(cid))


def _hashed(path: Path | None, profile: Profile, progress: Progress) -> Cid:
    from holdfast.storage.adding import cid_of, root_of
    from holdfast.storage.formats.unixfs import file_blocks

    if path is None:
        return root_of(file_blocks(sys.stdin.buffer, profile, progress))
    return cid_of(path, profile, progress=progress)


def _stored(arguments: argparse.Namespace, path: Path | None, profile: Profile, progress: Progress) -> Cid:
    pin = not arguments.no_pin
    with open_client(arguments) as client:
        if path is None:
            cid = client.store.add_stream(sys.stdin.buffer, profile=profile, pin=pin, progress=progress)
        else:
            cid = client.store.add(
                path, profile=profile, by_reference=arguments.no_copy, pin=pin, progress=progress
            )
        client.backend.publish(cid, pin=pin)
    return cid


def _meant(client: Client, text: str) -> Cid:
    """The CID that ``text`` is, or ``<cid>/path/in/it`` leads to, or that a name stands for.

    Raises:
        InvalidInput: It is none of these.
    """
    try:
        return client.store.resolve(text)
    except InvalidInput as no_cid:
        try:
            return client.resolve(text)
        except (InvalidInput, NotFound) as no_name:
            if text.startswith(("baf", "Qm", "ipfs:", "/")):  # meant to be a CID
                raise no_cid from None
            raise InvalidInput(f"{text!r} is neither a CID nor a name: {no_name}") from no_name


def _get(arguments: argparse.Namespace) -> None:
    target = Path(arguments.output or arguments.cid.rstrip("/").rpartition("/")[2])
    with open_client(arguments) as client:
        cid = _meant(client, arguments.cid)
        with Progress("get", client.store.stat(cid).size) as progress:
            written = client.store.get(cid, target, progress=progress)
    show(
        arguments,
        {"cid": str(cid), "path": str(target), "bytes": written},
        f"{target}  {human_size(written)}",
    )


def _cat(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        for piece in client.store.stream(_meant(client, arguments.cid)):
            sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _ls(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        entries = client.store.ls(_meant(client, arguments.cid))
    value = [{"name": e.name, "cid": str(e.cid), "total_size": e.total_size} for e in entries]
    show(arguments, value, "\n".join(f"{e.cid}  {human_size(e.total_size):>10}  {e.name}" for e in entries))


def _stat(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        stat = client.store.stat(_meant(client, arguments.cid))
    value = {"cid": str(stat.cid), "kind": stat.kind, "size": stat.size}
    show(arguments, value, table(("CID", "KIND", "SIZE"), [(stat.cid, stat.kind, human_size(stat.size))]))
