"""``up``, ``worker``, ``down``, ``status``, ``config``, ``quickstart``."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import open_client, show, table
from holdfast.config import load_settings, note_ipfs, read_token, token_for
from holdfast.errors import InvalidInput
from holdfast.sizes import human_size
from holdfast.telemetry import log_to_stderr

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

__all__ = ["add_commands"]

_IPFS = (
    "keep the blocks in this IPFS daemon, such as http://127.0.0.1:5001, from now on; '' keeps them in the home again "
    "(default: as before, at first in the home)"
)
_UP_HELP = """\
examples:
  holdfast up                                       a cluster on this machine, reached from this machine only
  holdfast up --host 10.0.0.5                       one that workers on other machines can join
  holdfast up --port 0 --home /data/holdfast        on a free port, with its store elsewhere
"""
_WORKER_HELP = """\
examples:
  holdfast worker --join http://10.0.0.5:7400 --token-file token --host 10.0.0.6
  holdfast worker --join http://127.0.0.1:7400 --home ~/.holdfast-2 --token-file ~/.holdfast/token --cpus 1
"""
_DOWN_HELP = """\
examples:
  holdfast down                                     the daemon of ~/.holdfast
  holdfast down ~/clusters                          all daemons of the homes in a folder
"""
_STATUS_HELP = """\
examples:
  holdfast status
  holdfast status --address http://10.0.0.5:7400 --token-file token --json
"""
_CONFIG_HELP = """\
A setting is an argument, or else $HOLDFAST_SECTION__NAME, or else in <home>/config.toml, or else the default.

examples:
  holdfast config
  holdfast config --home /data/holdfast --json
"""
_QUICKSTART_HELP = """\
Starts a master and two workers on this machine, trains on handwritten digits, serves, searches and verifies the model, and stops
everything again.

examples:
  holdfast quickstart
  holdfast quickstart --keep      and leaves the cluster running, with its dashboard
"""


def add_commands(commands: Any, common: argparse.ArgumentParser, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    up = commands.add_parser(
        "up", parents=[common], help="start a cluster: be its master, until Ctrl-C", epilog=_UP_HELP
    )
    up.add_argument("--host", help="address that the other machines reach this one at (default: 127.0.0.1)")
    up.add_argument(
        "--port", type=int, help="port of API, dashboard and blocks; 0 takes a free one (default: 7400)"
    )
    up.add_argument("--cpus", type=int, help="CPUs of this machine that jobs may use (default: 0)")
    up.add_argument("--ipfs", metavar="URL", help=_IPFS)
    up.set_defaults(run=_up)

    worker = commands.add_parser(
        "worker", parents=[common], help="join a cluster: be a worker, until Ctrl-C", epilog=_WORKER_HELP
    )
    worker.add_argument(
        "--join", required=True, metavar="URL", help="the master's URL, as 'holdfast up' prints it"
    )
    worker.add_argument("--token-file", help="file with the cluster's token (default: <home>/token)")
    worker.add_argument(
        "--host", help="address that the other machines reach this one at (default: 127.0.0.1)"
    )
    worker.add_argument("--port", type=int, help="port of the block server (default: a free one)")
    worker.add_argument("--cpus", type=int, help="CPUs that jobs may use (default: all)")
    worker.add_argument("--ipfs", metavar="URL", help=_IPFS)
    worker.add_argument(
        "--wait", type=float, default=10.0, metavar="S", help="seconds to wait for the master (default: 10)"
    )
    worker.set_defaults(run=_worker)

    down = commands.add_parser("down", parents=[common], help="stop the daemons of homes", epilog=_DOWN_HELP)
    down.add_argument("homes", nargs="*", help="homes, or folders of homes (default: --home)")
    down.set_defaults(run=_down)

    status = commands.add_parser(
        "status", parents=[connected], help="nodes, names and runs", epilog=_STATUS_HELP
    )
    status.set_defaults(run=_status)

    config = commands.add_parser(
        "config", parents=[common], help="every setting, and where its value comes from", epilog=_CONFIG_HELP
    )
    config.set_defaults(run=_config)

    quickstart = commands.add_parser(
        "quickstart",
        parents=[common],
        help="see everything work: a cluster, real data, training, serving, search, verification",
        epilog=_QUICKSTART_HELP,
    )
    quickstart.add_argument(
        "--keep", action="store_true", help="leave the cluster running, and print how to stop it"
    )
    quickstart.add_argument(
        "--port", type=int, default=0, help="port of API and dashboard (default: a free one)"
    )
    quickstart.set_defaults(run=_quickstart)


def _up(arguments: argparse.Namespace) -> None:
    from holdfast.cluster.daemon import run_daemon
    from holdfast.cluster.master import Master
    from holdfast.cluster.membership import join_commands

    log_to_stderr("DEBUG" if arguments.debug else "INFO")
    settings = load_settings(
        arguments.home,
        master__host=arguments.host,
        master__port=arguments.port,
        master__num_cpus=arguments.cpus,
        storage__ipfs=arguments.ipfs,
    )
    token = token_for(settings.home)

    def ready(facts: dict[str, Any]) -> None:
        _remember_ipfs(settings.home, arguments.ipfs)
        url = facts["url"]
        join = join_commands(url, settings.home)
        lines = [
            f"holdfast master at {url}",
            f"  dashboard   {url}/?token={token}",
            f"  join        {join['here']}",
        ]
        if "elsewhere" in join:
            lines += [
                f"              {join['elsewhere']}",
                f"              on other machines, with a copy of {settings.home / 'token'}",
            ]
        lines += [f"  connect     holdfast.connect({url!r}, token=...)", "Ctrl-C stops it."]
        show(arguments, facts, "\n".join(lines))

    asyncio.run(run_daemon(settings.home, lambda: Master(settings), ready))


def _worker(arguments: argparse.Namespace) -> None:
    from holdfast.cluster.daemon import run_daemon
    from holdfast.cluster.worker import Worker

    log_to_stderr("DEBUG" if arguments.debug else "INFO")
    settings = load_settings(
        arguments.home,
        worker__host=arguments.host,
        worker__port=arguments.port,
        worker__num_cpus=arguments.cpus,
        storage__ipfs=arguments.ipfs,
    )
    given = read_token(Path(arguments.token_file)) if arguments.token_file else None
    token = read_token(settings.home / "token") if given is None else token_for(settings.home, given)

    def ready(facts: dict[str, Any]) -> None:
        _remember_ipfs(settings.home, arguments.ipfs)
        text = f"holdfast worker {facts['id']} joined {facts['master_url']}\n  blocks      {facts['url']}\nCtrl-C stops it."
        show(arguments, facts, text)

    def make() -> Worker:
        return Worker(settings, master_url=arguments.join, token=token, wait_s=arguments.wait)

    asyncio.run(run_daemon(settings.home, make, ready))


def _remember_ipfs(home: Path, given: str | None) -> None:
    """Jobs and commands that open the home must look for its blocks where its daemon does."""
    if given is not None:
        note_ipfs(home, given)


def _down(arguments: argparse.Namespace) -> None:
    from holdfast.cluster.daemon import end_daemon

    given = [Path(home).expanduser() for home in arguments.homes] or [load_settings(arguments.home).home]
    homes = [
        home
        for folder in given
        for home in ([folder] if (folder / "daemon.lock").exists() else folder.glob("*/"))
    ]
    running = [home for home in homes if (home / "daemon.json").exists()]
    if not running:
        raise InvalidInput(f"no holdfast daemon runs on {', '.join(map(str, given))}")
    # Workers first: they take their leave from the master.
    order = sorted(running, key=lambda home: '"master"' in (home / "daemon.json").read_text())
    stopped = {str(home): end_daemon(home) for home in order}
    show(arguments, stopped, "\n".join(f"stopped {pid} on {home}" for home, pid in stopped.items()))


def _status(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        status = client.status()
    parts = [f"holdfast {status['version']} at {status['url'] or f'{client.home} (embedded)'}"]
    parts.append(
        table(
            ("NODE", "ROLE", "STATE", "CPUS", "BLOCKS", "BYTES", "URL"),
            [
                (
                    node["id"],
                    node["role"],
                    "alive" if node["alive"] else f"gone for {node['seen_s_ago']:.0f} s",
                    node.get("num_cpus", os.cpu_count()),
                    node["blocks"],
                    human_size(node["bytes"]),
                    node["url"],
                )
                for node in status["nodes"]
            ],
        )
    )
    if status["names"]:
        parts.append(
            table(
                ("NAME", "KIND", "VERSION", "ALIASES", "CID"),
                [
                    (n["name"], n["kind"], n["version"], ", ".join(n["aliases"]), n["cid"])
                    for n in status["names"]
                ],
            )
        )
    if status["runs"]:
        parts.append(
            table(
                ("RUN", "STATE", "WORKERS", "SECONDS", "MODEL"),
                [
                    (
                        run["id"],
                        run["state"],
                        run["spec"]["workers"],
                        _lasted(run),
                        run["result"].get("model", "-"),
                    )
                    for run in status["runs"]
                ],
            )
        )
    errors = [(run["id"], run["error"].splitlines()[0]) for run in status["runs"] if run["error"]]
    if errors:
        parts.append(table(("RUN", "ERROR"), errors))
    show(arguments, status, "\n\n".join(parts))


def _lasted(run: Mapping[str, Any]) -> str:
    """How many seconds a run has taken, or which one spared them."""
    from holdfast.registry.run_table import CACHED_FROM

    if CACHED_FROM in run["result"]:
        return f"cached from {run['result'][CACHED_FROM]}"
    return f"{(run['finished'] or time.time()) - run['started']:.1f}" if run["started"] else "-"


def _config(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.home)
    rows = []
    for key, origin in sorted(settings.origins.items()):
        section, _, name = key.partition(".")
        rows.append((key, getattr(getattr(settings, section), name), origin))
    value = {key: {"value": value, "origin": origin} for key, value, origin in rows}
    told = [(key, _setting(key, value), origin) for key, value, origin in rows]
    text = f"home = {settings.home}\n\n" + table(("SETTING", "VALUE", "FROM"), told)
    show(arguments, {"home": str(settings.home), "settings": value}, text)


def _setting(key: str, value: Any) -> str:
    """A setting's value as text: lists with commas, and sizes beside their number of bytes."""
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "-"
    if key.endswith("_bytes") and value:
        return f"{value} ({human_size(value)})"
    return "-" if value is None or value == "" else str(value)


def _quickstart(arguments: argparse.Namespace) -> int:
    from holdfast.cluster.cli.quickstart import run_quickstart

    return run_quickstart(
        home=arguments.home, keep=arguments.keep, port=arguments.port, as_json=arguments.json
    )
