"""``train``, ``convert``, ``serve``, ``index``, ``search``, ``alias``."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import open_client, show, table
from holdfast.cluster.processes import wait_for_signal
from holdfast.config import load_settings, token_for
from holdfast.errors import InvalidInput

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands", "progress_line"]

_REF = "a CID, name, name:1.0.0 or name@alias"


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    train = commands.add_parser(
        "train", parents=[connected], help="train a model; prints the run's and the model's CID"
    )
    train.add_argument("function", help="package.module:function")
    train.add_argument("--data", required=True, metavar="REF", help=f"the dataset: {_REF}")
    train.add_argument(
        "--config", default="{}", metavar="JSON", help="settings for the function, as a JSON object"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=1)
    train.add_argument("--name", help="register the model under this name")
    train.add_argument("--version", help="with --name: the version (default: the next minor one)")
    train.add_argument("--alias", action="append", default=[], help="with --name: point this alias at it")
    train.set_defaults(run=_train)

    convert = commands.add_parser(
        "convert", parents=[connected], help="the model's ONNX form, compared with the original"
    )
    convert.add_argument("model", help=_REF)
    convert.add_argument(
        "--trust-code", action="store_true", help="run the model's code where it is not installed here"
    )
    convert.set_defaults(run=_convert)

    serve = commands.add_parser("serve", parents=[connected], help="serve a model over HTTP, until Ctrl-C")
    serve.add_argument("model", help=_REF)
    serve.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, help="0 takes a free one (default: 8080)")
    serve.add_argument("--no-token", action="store_true", help="answer everybody who reaches the port")
    serve.add_argument(
        "--require-signed-by",
        action="append",
        metavar="SIGNER",
        help="a name or a key: one of those given must have signed the model (besides registry.require_signed_by)",
    )
    serve.set_defaults(run=_serve)

    index = commands.add_parser(
        "index", parents=[connected], help="embed a dataset with a model, and index the vectors"
    )
    index.add_argument("name", help="of the index")
    index.add_argument("--data", required=True, metavar="REF", help=f"the dataset: {_REF}")
    index.add_argument("--model", required=True, metavar="REF", help=f"the model: {_REF}")
    index.add_argument(
        "--factory", default="Flat", help="FAISS' description of the index (default: Flat, which is exact)"
    )
    index.set_defaults(run=_index)

    search = commands.add_parser(
        "search", parents=[connected], help="the rows of an index that are like one of its dataset"
    )
    search.add_argument("index", help=_REF)
    search.add_argument(
        "--like", required=True, metavar="SPLIT:ROW", help="the row to look for, such as test:0"
    )
    search.add_argument("-k", type=int, default=5, help="how many (default: 5)")
    search.set_defaults(run=_search)

    alias = commands.add_parser(
        "alias",
        parents=[connected],
        help="point an alias of a model at a version",
        epilog="example: holdfast alias digits champion 2.0.0 --expected 1.0.0",
    )
    alias.add_argument("name")
    alias.add_argument("alias")
    where = alias.add_mutually_exclusive_group(required=True)
    where.add_argument("version", nargs="?")
    where.add_argument("--delete", action="store_true", help="remove the alias")
    alias.add_argument(
        "--expected", metavar="VERSION", help="fail unless it points here now ('none': to nothing)"
    )
    alias.set_defaults(run=_alias)


def progress_line(event: dict[str, Any]) -> str | None:
    """One event of a run as a line, or None where it is of no interest to people."""
    if event["type"] == "report":
        return "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in event["metrics"].items()
        )
    if event["type"] == "worker_done":
        moved = event["fetched"]
        return (
            f"worker {event['rank']} pulled {moved['blocks']} blocks, {moved['bytes']:,} bytes, each verified"
        )
    return None


def _imported(text: str) -> Any:
    module, _, name = text.partition(":")
    if not name:
        raise InvalidInput(f"{text!r} is not package.module:function")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{text!r} can't be imported: {error}") from error


def _train(arguments: argparse.Namespace) -> None:
    function = _imported(arguments.function)
    try:
        config = json.loads(arguments.config)
    except ValueError as error:
        raise InvalidInput(f"--config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput("--config must be a JSON object")

    def tell(event: dict[str, Any]) -> None:
        if (line := progress_line(event)) is not None:
            print(line, file=sys.stderr, flush=True)

    with open_client(arguments) as client:
        run = client.train(
            function,
            arguments.data,
            config=config,
            seed=arguments.seed,
            workers=arguments.workers,
            on_event=tell,
        )
        value = {
            "run": str(run.cid),
            "model": str(run.model),
            "metrics": dict(run.metrics),
            "seconds": run.seconds,
        }
        text = f"run    {run.cid}\nmodel  {run.model}"
        if arguments.name:
            entry = client.models.register(
                arguments.name, run.model, arguments.version, aliases=arguments.alias
            )
            value |= {"name": entry.name, "version": entry.version}
            text += f"\nname   {entry.name}:{entry.version}"
    show(arguments, value, text)


def _convert(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        cid, record = client.convert(arguments.model, trust_code=arguments.trust_code)
    value = {"conversion": str(cid), "onnx": str(record.onnx), "comparison": dict(record.comparison)}
    text = (
        f"conversion  {cid}\nonnx        {record.onnx}\n"
        f"difference  at most {record.comparison['max_difference']:.3g} on {record.comparison['samples']} rows"
    )
    show(arguments, value, text)


def _serve(arguments: argparse.Namespace) -> None:
    settings = load_settings(arguments.home, serve__host=arguments.host, serve__port=arguments.port)
    with open_client(arguments) as client:
        token = None if arguments.no_token else token_for(client.home)
        with client.serve(
            arguments.model,
            host=settings.serve.host,
            port=settings.serve.port,
            token=token,
            threads=settings.serve.threads,
            require_signed_by=arguments.require_signed_by,
        ) as server:
            facts = {"url": server.url, "model": server.name, "infer_url": server.infer_url}
            show(arguments, facts, f"serving {server.name} at {server.infer_url}\nCtrl-C stops it.")
            sys.stdout.flush()
            wait_for_signal()


def _index(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        index = client.build_index(
            arguments.name, corpus=arguments.data, model=arguments.model, factory=arguments.factory
        )
        value = {"index": str(index.cid), "rows": len(index), "dim": index.record.dim}
    show(arguments, value, f"index  {value['index']}\n       {value['rows']} vectors of {value['dim']}")


def _search(arguments: argparse.Namespace) -> None:
    from holdfast.inference.conversion import input_of
    from holdfast.registry.records import ModelRecord, load_record
    from holdfast.storage.loaders.collation import table_to_numpy

    split, _, row = arguments.like.rpartition(":")
    if not split or not row.isdigit():
        raise InvalidInput(f"--like {arguments.like!r} is not SPLIT:ROW, such as test:0")
    with open_client(arguments) as client:
        index = client.open_index(arguments.index)
        column = input_of(index.record.model, load_record(client.store, index.record.model, ModelRecord)).name
        if int(row) >= index.dataset.rows_in(split):
            raise InvalidInput(
                f"split {split!r} has {index.dataset.rows_in(split)} rows, counted from 0; there is no row {row}"
            )
        sample = table_to_numpy(index.dataset.to_arrow(split, [column]).slice(int(row), 1))[column]
        found = index.search(sample, arguments.k)[0]
    plain = [
        {"split": n.split, "row": n.row, "score": n.score}
        | {k: v.item() for k, v in n.values.items() if getattr(v, "ndim", 1) == 0}
        for n in found
    ]
    header = [name.upper() for name in plain[0]]
    rows = [[f"{v:.4f}" if isinstance(v, float) else v for v in row.values()] for row in plain]
    show(arguments, plain, table(header, rows))


def _alias(arguments: argparse.Namespace) -> None:
    expected = (
        {}
        if arguments.expected is None
        else {"expected": None if arguments.expected == "none" else arguments.expected}
    )
    name, alias = arguments.name, arguments.alias
    with open_client(arguments) as client:
        if arguments.delete:
            entry = client.backend.names.delete_alias("model", name, alias, **expected)
            text = f"{name}@{alias} is gone; it was {entry.version}  {entry.cid}"
        else:
            entry = client.models.set_alias(name, alias, arguments.version, **expected)
            text = f"{name}@{alias} is {entry.version}  {entry.cid}"
    show(arguments, entry.to_json(), text)
