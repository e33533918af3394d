"""``pin``, ``gc``, ``fsck``, ``export``, ``import``, ``peers``, ``gateway``: the store of one home."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import Progress, show, table
from holdfast.config import load_settings, token_for
from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from holdfast.config import Settings
    from holdfast.storage.cid import Buffer, Cid
    from holdfast.storage.content import ContentStore

__all__ = ["add_commands"]

_GC_HELP = """\
Shows what would go; with --yes it goes, and its bytes go back to the file system. Kept is what is pinned (what you add
is), what a name of the registry, a run or a change of a name leads to, and what was written within the grace period. Reading and adding go on
meanwhile.

examples:
  holdfast gc                 what would go
  holdfast gc --yes           let it go
  holdfast gc --why CID       what keeps one block, and the way to it
"""
_PIN_HELP = """\
examples:
  holdfast pin add CID --name dataset-of-may     fetch it if need be, and keep it
  holdfast pin ls
  holdfast pin rm CID                            the next 'holdfast gc --yes' may remove it
"""
_PIN_ADD_HELP = """\
examples:
  holdfast pin add bafybei... --name dataset-of-may
  holdfast pin add bafybei.../2026/cat.jpg
"""
_PIN_RM_HELP = """\
The next 'holdfast gc --yes' may remove what nothing else keeps.

examples:
  holdfast pin rm bafybei...
"""
_PIN_LS_HELP = """\
examples:
  holdfast pin ls
  holdfast pin ls --json
"""
_FSCK_HELP = """\
examples:
  holdfast fsck                 names every block that is bad or missing; exit status 5 where there is one
  holdfast fsck --repair        and gets them from peers
"""
_EXPORT_HELP = """\
examples:
  holdfast export bafybei... -o photos.car
  holdfast export bafyrei... > model.car
"""
_IMPORT_HELP = """\
Every block is hashed. Names come with 'holdfast registry import'.

examples:
  holdfast import photos.car
  holdfast import - --no-pin < model.car
"""
_PEERS_HELP = """\
examples:
  holdfast peers                where each is known from, and which of them answer
  holdfast peers --json
"""
_GATEWAY_HELP = """\
examples:
  holdfast gateway                              to this machine, at http://127.0.0.1:8080/ipfs/CID
  holdfast gateway --host 0.0.0.0 --token       to all that reach it and know the token
"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    pin = commands.add_parser("pin", help="keep content, or no longer", epilog=_PIN_HELP)
    verbs = pin.add_subparsers(title="verbs", metavar="VERB", required=True)
    pin_add = verbs.add_parser(
        "add", parents=[common], help="fetch a CID if need be, and keep it", epilog=_PIN_ADD_HELP
    )
    pin_add.add_argument("cid", help="a CID, or <cid>/path/in/it")
    pin_add.add_argument("--name", default="", help="what it is, for you to remember")
    pin_add.add_argument(
        "--direct", action="store_true", help="keep the one block only, not what it links to"
    )
    pin_add.set_defaults(run=_pin_add)
    pin_rm = verbs.add_parser("rm", parents=[common], help="keep a CID no longer", epilog=_PIN_RM_HELP)
    pin_rm.add_argument("cid")
    pin_rm.set_defaults(run=_pin_rm)
    pin_ls = verbs.add_parser(
        "ls", aliases=["list"], parents=[common], help="what is pinned", epilog=_PIN_LS_HELP
    )
    pin_ls.set_defaults(run=_pin_ls)

    gc = commands.add_parser("gc", parents=[common], help="remove what nothing keeps", epilog=_GC_HELP)
    what = gc.add_mutually_exclusive_group()
    what.add_argument("--yes", action="store_true", help="remove it")
    what.add_argument("--dry-run", action="store_true", help="only show what would go (the default)")
    what.add_argument("--why", metavar="CID", help="show what keeps this block")
    gc.add_argument(
        "--grace", type=float, metavar="S", help="leave alone what is younger (default: storage.grace_s)"
    )
    gc.set_defaults(run=_gc)

    fsck = commands.add_parser(
        "fsck", parents=[common], help="hash every block of the store again", epilog=_FSCK_HELP
    )
    fsck.add_argument("--repair", action="store_true", help="get right bytes for bad blocks from peers")
    fsck.set_defaults(run=_fsck)

    export = commands.add_parser(
        "export", parents=[common], help="write a DAG as a CAR file", epilog=_EXPORT_HELP
    )
    export.add_argument("cid", help="a CID, or <cid>/path/in/it")
    export.add_argument("-o", "--output", metavar="PATH", help="where to (default: standard output)")
    export.set_defaults(run=_export)

    imports = commands.add_parser(
        "import", parents=[common], help="store and pin what a CAR file holds", epilog=_IMPORT_HELP
    )
    imports.add_argument("car", help="a CAR of version 1 or 2; - is standard input")
    imports.add_argument("--no-pin", action="store_true", help="do not pin its roots")
    imports.set_defaults(run=_import)

    peers = commands.add_parser(
        "peers", parents=[common], help="whom this home asks for blocks", epilog=_PEERS_HELP
    )
    peers.set_defaults(run=_peers)

    gateway = commands.add_parser(
        "gateway",
        parents=[common],
        help="serve this home's store over HTTP: to browsers and to IPFS clients, until Ctrl-C",
        epilog=_GATEWAY_HELP,
    )
    gateway.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    gateway.add_argument("--port", type=int, default=8080, help="0 takes a free one (default: 8080)")
    gateway.add_argument("--token", action="store_true", help="ask for the token of this home")
    gateway.add_argument(
        "--offline", action="store_true", help="serve what is here, fetch nothing from peers"
    )
    gateway.set_defaults(run=_gateway)


@contextlib.contextmanager
def _opened(arguments: argparse.Namespace) -> Iterator[ContentStore]:
    from holdfast.storage.opening import open_store

    with open_store(load_settings(arguments.home)) as store:
        yield store


@contextlib.contextmanager
def _no_name(text: str) -> Iterator[None]:
    """Tells who gives a name where a CID is wanted how to find that."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidInput(f"{error}; 'holdfast stat {text}' gives the CID of a name") from error


def _resolved(store: ContentStore, text: str) -> Cid:
    with _no_name(text):
        return store.resolve(text)


def _pin_add(arguments: argparse.Namespace) -> None:
    with _opened(arguments) as store:
        cid = _resolved(store, arguments.cid)
        with Progress("pin") as progress:
            store.pin(cid, recursive=not arguments.direct, name=arguments.name, progress=progress)
    show(arguments, {"cid": str(cid), "recursive": not arguments.direct, "name": arguments.name}, str(cid))


def _pin_rm(arguments: argparse.Namespace) -> None:
    from holdfast.storage.cid import Cid

    with _no_name(arguments.cid):
        cid = Cid.parse(arguments.cid)
    with _opened(arguments) as store:
        store.unpin(cid)
    show(arguments, {"cid": str(cid)}, str(cid))


def _pin_ls(arguments: argparse.Namespace) -> None:
    with _opened(arguments) as store:
        pins = store.pins.pins() if store.pins is not None else []
    rows = [(pin.cid, "recursive" if pin.recursive else "direct", pin.name) for pin in pins]
    value = [{"cid": str(cid), "type": how, "name": name} for cid, how, name in rows]
    show(arguments, value, table(("CID", "TYPE", "NAME"), rows) if rows else "nothing is pinned")


def _forget_attestations(settings: Settings) -> None:
    """Keep no longer what was said about things that are gone."""
    from holdfast.registry.opening import open_database
    from holdfast.registry.proof import SqliteAttestations
    from holdfast.storage.opening import open_store

    with contextlib.closing(open_database(settings)) as database, open_store(settings, offline=True) as store:
        SqliteAttestations(database, store).tidy()


def _gc(arguments: argparse.Namespace) -> None:
    from holdfast.storage.cid import Cid
    from holdfast.storage.opening import open_collector

    settings = load_settings(arguments.home, storage__grace_s=arguments.grace)
    with open_collector(settings) as collector:
        if arguments.why:
            with _no_name(arguments.why):
                cid = Cid.parse(arguments.why)
            ways = collector.why(cid)
            show(
                arguments,
                {"kept_by": ways},
                "\n".join(ways) or "nothing keeps it: garbage collection may remove it",
            )
        elif arguments.yes:
            with Progress("gc", unit="blocks") as progress:
                swept = collector.collect(progress=progress)
            _forget_attestations(settings)
            value = {"blocks": swept.blocks, "bytes": swept.bytes, "freed_bytes": swept.freed_bytes}
            text = f"removed {swept.blocks:,} blocks, {human_size(swept.bytes)}; {human_size(swept.freed_bytes)} given back"
            show(arguments, value, text)
        else:
            with Progress("gc", unit="blocks") as progress:
                plan = collector.plan(progress=progress)
            rows = [
                (
                    "kept",
                    f"{plan.kept_blocks:,}",
                    human_size(plan.kept_bytes),
                    "by pins, names, runs and history",
                ),
                (
                    "young",
                    f"{plan.young_blocks:,}",
                    human_size(plan.young_bytes),
                    f"written within {settings.storage.grace_s:.0f} s",
                ),
                (
                    "would go",
                    f"{plan.dead_blocks:,}",
                    human_size(plan.dead_bytes),
                    "with --yes" if plan.dead_blocks else "",
                ),
            ]
            value = {
                name: getattr(plan, name)
                for name in (
                    "roots",
                    "kept_blocks",
                    "kept_bytes",
                    "young_blocks",
                    "young_bytes",
                    "dead_blocks",
                    "dead_bytes",
                )
            }
            show(arguments, value, table(("", "BLOCKS", "BYTES", ""), rows))


def _fsck(arguments: argparse.Namespace) -> None:
    from holdfast.storage.opening import check_home, open_local

    settings = load_settings(arguments.home)
    with open_local(settings) as local:
        size = local.statistics()
    with Progress("fsck", size["bytes"] + size["referenced_bytes"]) as progress:
        report = check_home(settings, repair=arguments.repair, progress=progress)
    value = {
        "blocks": report.blocks,
        "bytes": report.bytes,
        "bad": report.bad,
        "findings": [
            {"cid": str(finding.cid), "problem": finding.problem, "mended": finding.mended}
            for finding in report.findings
        ],
    }
    lines = [f"{'mended' if f.mended else 'BAD'}  {f.problem}" for f in report.findings]
    verdict = f"{report.bad} BAD" if report.bad else "all as their CIDs say"
    lines.append(f"{report.blocks:,} blocks, {human_size(report.bytes)} hashed: {verdict}")
    show(arguments, value, "\n".join(lines))
    if report.bad:
        advice = (
            "no peer could mend them"
            if arguments.repair
            else "run 'holdfast fsck --repair' where peers have them"
        )
        many = "block is" if report.bad == 1 else "blocks are"
        raise Corrupt(f"{report.bad} {many} bad or missing: {advice}")


def _export(arguments: argparse.Namespace) -> None:
    from holdfast.storage.formats.car import car_frames

    with _opened(arguments) as store, contextlib.ExitStack() as stack:
        cid = _resolved(store, arguments.cid)
        target = Path(arguments.output) if arguments.output else None
        if target is not None and target.exists():
            raise Conflict(f"{target} exists: choose another name, or remove it first")
        partial = target.with_name(f".{target.name}.part") if target else None
        file = stack.enter_context(partial.open("wb")) if partial else sys.stdout.buffer
        written = 0
        try:
            with Progress("export") as progress:
                for frame in car_frames([cid], store.walk(cid)):
                    file.write(frame)
                    written += len(frame)
                    progress(len(frame))
            file.flush()
            if partial is not None and target is not None:
                partial.rename(target)
        except BaseException:
            if partial is not None:
                partial.unlink(missing_ok=True)
            raise
    if target is not None:
        show(
            arguments,
            {"cid": str(cid), "path": str(target), "bytes": written},
            f"{target}  {human_size(written)}",
        )


def _import(arguments: argparse.Namespace) -> None:
    from holdfast.storage.formats.car import car_blocks

    with _opened(arguments) as store, contextlib.ExitStack() as stack:
        if arguments.car == "-":
            stream, size, work = sys.stdin.buffer, None, os.urandom(16)
        else:
            path = Path(arguments.car)
            if not path.is_file():
                raise NotFound(f"there is no file {path}")
            work = os.fsencode(path.resolve())
            stream, size = stack.enter_context(path.open("rb")), path.stat().st_size
        blocks = 0

        def counted(progress: Progress) -> Iterator[tuple[Cid, Buffer]]:
            nonlocal blocks
            for cid, data in reader:
                blocks += 1
                progress(len(data))
                yield cid, data

        try:
            reader = car_blocks(stream)
            with Progress("import", size) as progress:
                # With a name, the work goes on where it was interrupted, and the store holds little of each block in memory.
                new = store.blocks.put_many(counted(progress), resume=b"import\0" + work)
        except Corrupt as error:
            raise Corrupt(f"{arguments.car}: {error}") from error
        if not arguments.no_pin:
            for root in reader.roots:
                store.pin(root)
    roots = [str(root) for root in reader.roots]
    show(arguments, {"roots": roots, "blocks": blocks, "new_bytes": new}, "\n".join(roots))


def _peers(arguments: argparse.Namespace) -> None:
    from holdfast.storage.opening import peers_of

    found = peers_of(load_settings(arguments.home))
    rows = [(peer.url, peer.source, "answers" if peer.answers else "does not answer") for peer in found]
    value = [{"url": peer.url, "source": peer.source, "answers": peer.answers} for peer in found]
    show(arguments, value, table(("URL", "FROM", ""), rows) if rows else "no peers: this home asks nobody")


def _gateway(arguments: argparse.Namespace) -> None:
    from holdfast.cluster.daemon import stop_signal
    from holdfast.storage.gateway.web_gateway import gateway_app
    from holdfast.storage.opening import open_store
    from holdfast.web import listen

    settings = load_settings(arguments.home)
    token = token_for(settings.home) if arguments.token else None

    async def serve() -> None:
        with open_store(settings, offline=arguments.offline) as store:
            runner, url = await listen(gateway_app(store, token=token), arguments.host, arguments.port)
            try:
                text = f"holdfast gateway of {settings.home} at {url}\n  try         {url}/ipfs/<cid>\nCtrl-C stops it."
                show(arguments, {"url": url, "home": str(settings.home)}, text)
                sys.stdout.flush()
                await stop_signal().wait()
            finally:
                await runner.cleanup()

    asyncio.run(serve())
