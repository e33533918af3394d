"""``train``, ``convert``, ``serve``, ``index``, ``search``, ``alias``."""

from __future__ import annotations

import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import open_client, show, table
from holdfast.cluster.processes import wait_for_signal
from holdfast.config import load_settings, token_for
from holdfast.errors import HoldfastError, InvalidInput

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands", "imported", "progress_line"]

_REF = "a CID, name, name:1.0.0 or name@alias"
_TRAIN_HELP = """\
examples:
  holdfast train holdfast.training.examples.digits:train --data digits --name digits
  holdfast train mine:train --data wine@clean --config '{"epochs": 20}' --workers 2 --name wine --alias candidate
"""
_CONVERT_HELP = """\
Both answer the same rows, and their answers must agree, before the ONNX form counts.

examples:
  holdfast convert digits@champion
  holdfast convert bafyrei... --trust-code      of a model whose code is not installed here
"""
_SERVE_HELP = """\
The protocol is the Open Inference Protocol v2; the token is in <home>/token.

examples:
  holdfast serve digits@champion
  holdfast serve digits:1.0.0 --port 0 --require-signed-by release
"""
_INDEX_HELP = """\
examples:
  holdfast index digits --data digits --model digits@champion
  holdfast index faces --data faces --model faces --factory IVF256,Flat
"""
_SEARCH_HELP = """\
examples:
  holdfast search digits --like test:0          the 5 rows that are most like the first of the split test
  holdfast search digits:1.0.0 --like test:7 -k 20 --json
"""
_ALIAS_HELP = """\
examples:
  holdfast alias digits champion 2.0.0
  holdfast alias digits champion 2.0.0 --expected 1.0.0      fails if somebody has moved it meanwhile
  holdfast alias digits champion --delete
"""
_NO_CACHE = "do the work even if the same was done before"


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    train = commands.add_parser(
        "train",
        parents=[connected],
        help="train a model; prints the run's and the model's CID",
        epilog=_TRAIN_HELP,
    )
    train.add_argument("function", help="package.module:function")
    train.add_argument("--data", required=True, metavar="REF", help=f"the dataset: {_REF}")
    train.add_argument(
        "--config", default="{}", metavar="JSON", help="settings for the function, as a JSON object"
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=1)
    train.add_argument("--no-cache", action="store_true", help=_NO_CACHE)
    train.add_argument("--name", help="register the model under this name")
    train.add_argument("--version", help="with --name: the version (default: the next minor one)")
    train.add_argument("--alias", action="append", default=[], help="with --name: point this alias at it")
    train.set_defaults(run=_train)

    convert = commands.add_parser(
        "convert",
        parents=[connected],
        help="the model's ONNX form, compared with the original",
        epilog=_CONVERT_HELP,
    )
    convert.add_argument("model", help=_REF)
    convert.add_argument(
        "--trust-code", action="store_true", help="run the model's code where it is not installed here"
    )
    convert.add_argument("--no-cache", action="store_true", help=_NO_CACHE)
    convert.set_defaults(run=_convert)

    serve = commands.add_parser(
        "serve", parents=[connected], help="serve a model over HTTP, until Ctrl-C", epilog=_SERVE_HELP
    )
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
        "index",
        parents=[connected],
        help="embed a dataset with a model, and index the vectors",
        epilog=_INDEX_HELP,
    )
    index.add_argument("name", help="of the index")
    index.add_argument("--data", required=True, metavar="REF", help=f"the dataset: {_REF}")
    index.add_argument("--model", required=True, metavar="REF", help=f"the model: {_REF}")
    index.add_argument(
        "--factory", default="Flat", help="FAISS' description of the index (default: Flat, which is exact)"
    )
    index.add_argument("--no-cache", action="store_true", help=_NO_CACHE)
    index.set_defaults(run=_index)

    search = commands.add_parser(
        "search",
        parents=[connected],
        help="the rows of an index that are like one of its dataset",
        epilog=_SEARCH_HELP,
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
        epilog=_ALIAS_HELP,
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
    if event["type"] == "cached":
        return f"cached from {event['from']}: the same was trained before, so nothing is trained now"
    if event["type"] == "worker_done":
        moved = event["fetched"]
        return (
            f"worker {event['rank']} pulled {moved['blocks']} blocks, {moved['bytes']:,} bytes, each verified"
            if moved["blocks"]
            else f"worker {event['rank']} pulled nothing: its node had all of the data"
        )
    return None


def imported(text: str) -> Any:
    """The function that ``package.module:function`` names.

    Raises:
        InvalidInput: It names none.
    """
    module, _, name = text.partition(":")
    if not name:
        raise InvalidInput(f"{text!r} is not package.module:function")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InvalidInput(f"{text!r} can't be imported: {error}") from error


def _train(arguments: argparse.Namespace) -> None:
    config = _config(arguments.config)
    _check_naming(arguments)  # before the training, and not after it
    function = imported(arguments.function)

    def tell(event: dict[str, Any]) -> None:
        if (line := progress_line(event)) is not None:
            print(line, file=sys.stderr, flush=True)

    with open_client(arguments) as client:
        try:
            run = client.train(
                function,
                arguments.data,
                config=config,
                seed=arguments.seed,
                workers=arguments.workers,
                use_cache=not arguments.no_cache,
                on_event=tell,
            )
        except HoldfastError:
            raise
        except Exception as error:
            from holdfast.training.job import function_failure

            raise function_failure(error) from error
        value = {
            "run": str(run.cid),
            "model": str(run.model),
            "metrics": dict(run.metrics),
            "seconds": run.seconds,
            "cached_from": run.cached_from,
        }
        text = f"run    {run.cid}\nmodel  {run.model}"
        if run.cached_from is not None:
            text += f"\n       cached from {run.cached_from}"
        if arguments.name:
            try:
                entry = client.models.register(
                    arguments.name, run.model, arguments.version, aliases=arguments.alias
                )
            except HoldfastError:
                print(text, file=sys.stderr)  # it is trained, and can be named otherwise
                raise
            value |= {"name": entry.name, "version": entry.version}
            text += f"\nname   {entry.name}:{entry.version}"
    show(arguments, value, text)


def _config(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--config is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInput("--config must be a JSON object")
    return config


def _check_naming(arguments: argparse.Namespace) -> None:
    if not arguments.name:
        if arguments.version or arguments.alias:
            raise InvalidInput("--version and --alias are of a name: say --name, too")
        return
    from holdfast.registry.names.references import checked_name, checked_version, checked_word

    checked_name("model", arguments.name)
    if arguments.version:
        checked_version(arguments.version)
    for alias in arguments.alias:
        checked_word(alias, "an alias")


def _convert(arguments: argparse.Namespace) -> None:
    with open_client(arguments) as client:
        cid, record = client.convert(
            arguments.model, trust_code=arguments.trust_code, use_cache=not arguments.no_cache
        )
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
            arguments.name,
            corpus=arguments.data,
            model=arguments.model,
            factory=arguments.factory,
            use_cache=not arguments.no_cache,
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
            entry = client.names.delete_alias("model", name, alias, **expected)
            text = f"{name}@{alias} is gone; it was {entry.version}  {entry.cid}"
        else:
            entry = client.models.set_alias(name, alias, arguments.version, **expected)
            text = f"{name}@{alias} is {entry.version}  {entry.cid}"
    show(arguments, entry.to_json(), text)
