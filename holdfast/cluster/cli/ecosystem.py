"""``model-card``, ``import-mlflow``: models for other tools, and from them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import open_client, show, table
from holdfast.errors import InvalidInput
from holdfast.sizes import human_size

if TYPE_CHECKING:
    import argparse

__all__ = ["add_commands"]

_CARD_HELP = """\
examples:
  holdfast model-card digits@champion                    print it
  holdfast model-card digits@champion -o digits-folder   write the model's files, and the card as README.md
"""
_IMPORT_HELP = """\
examples:
  holdfast import-mlflow models:/digits/3 --name digits --tracking-uri sqlite:///mlflow.db
  holdfast import-mlflow --all --tracking-uri http://127.0.0.1:5000
"""


def add_commands(commands: Any, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    card = commands.add_parser(
        "model-card",
        parents=[connected],
        help="a model's card in Hugging Face's format, with the CIDs of what it says",
        epilog=_CARD_HELP,
    )
    card.add_argument("model", help="a CID, name, name:1.0.0 or name@alias")
    card.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="write the model's files and its card to a new folder instead",
    )
    card.set_defaults(run=_card)

    mlflow = commands.add_parser(
        "import-mlflow",
        parents=[connected],
        help="models of MLflow, or its whole model registry, as models here",
        epilog=_IMPORT_HELP,
    )
    mlflow.add_argument(
        "uri",
        nargs="?",
        help="models:/name/3 (or /latest, /Production), models:/name@alias, models:/m-..., runs:/run/path, or the place of a model's folder",
    )
    mlflow.add_argument("--all", action="store_true", help="all registered models with versions and aliases")
    mlflow.add_argument("--name", help="with a URI: register the model under this name")
    mlflow.add_argument("--version", help="with --name: the version (default: version 3 of MLflow is 3.0.0)")
    mlflow.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="with --all: another name for one of the models; may be given again",
    )
    mlflow.add_argument("--tracking-uri", help="MLflow's server or database (default: $MLFLOW_TRACKING_URI)")
    mlflow.add_argument("--registry-uri", help="of MLflow's model registry (default: the same)")
    mlflow.set_defaults(run=_import_mlflow)


def _card(arguments: argparse.Namespace) -> None:
    from holdfast.registry.models.model_card import card_of, export_folder, read_card

    with open_client(arguments) as client:
        store, names = client.store, client.names
        cid = client.models.resolve(arguments.model)
        if arguments.output is None:
            text = card_of(store, names, arguments.model)
            fields = read_card(text) if arguments.json else {}
            show(arguments, {"model": str(cid), "card": text, "fields": _plain(fields)}, text.rstrip("\n"))
            return
        written = export_folder(store, names, arguments.model, arguments.output)
    value = {"model": str(cid), "folder": arguments.output, "bytes": written}
    show(arguments, value, f"{arguments.output}  {human_size(written)}")


def _plain(value: Any) -> Any:
    """A card that somebody wrote may have dates in its fields, and JSON has none."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _import_mlflow(arguments: argparse.Namespace) -> None:
    from holdfast.registry.ecosystem.mlflow_import import import_mlflow_model, import_mlflow_registry

    if arguments.all == (arguments.uri is not None):
        raise InvalidInput("say which model of MLflow, such as models:/digits/3, or --all")
    if arguments.all and (arguments.name or arguments.version):
        raise InvalidInput("--name and --version are for one model; with --all, say --rename OLD=NEW")
    if arguments.rename and not arguments.all:
        raise InvalidInput("--rename is for --all; one model is named with --name")
    if arguments.version and not arguments.name:
        raise InvalidInput("--version is of a name: say --name, too")
    renamed = dict(each.rpartition("=")[::2] for each in arguments.rename)
    if "" in renamed:
        raise InvalidInput("--rename is OLD=NEW, such as --rename 'my model=my-model'")
    # MLflow draws its bars into log files, too, unless this says no
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()).lower())
    where = {"tracking_uri": arguments.tracking_uri, "registry_uri": arguments.registry_uri}
    with open_client(arguments) as client:
        if arguments.all:
            imported = import_mlflow_registry(client.models, names=renamed, **where)
        else:
            one = import_mlflow_model(
                client.models, arguments.uri, name=arguments.name, version=arguments.version, **where
            )
            imported = [one]
    rows = [
        (
            model.uri,
            f"{model.entry.name}:{model.entry.version}" if model.entry else "",
            ", ".join(model.entry.aliases) if model.entry else "",
            model.cid,
        )
        for model in imported
    ]
    show(
        arguments, [model.to_json() for model in imported], table(("MLFLOW", "NAME", "ALIASES", "CID"), rows)
    )
