"""Models from MLflow: a logged or registered model, or a whole model registry, as models of holdfast.

The files are stored as they are, so the same model has the same CID wherever it is imported. What MLflow knows about a model (its
run, parameters, tags, flavours) becomes part of the manifest, under ``metadata["mlflow"]``; its metrics become the model's.
"""

from __future__ import annotations

import math
import re
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import Conflict, InvalidInput, NotFound, Unavailable, require
from holdfast.registry.models.mlflow_models import MLMODEL, read_mlmodel
from holdfast.registry.names.references import checked_name, checked_version, checked_word

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from holdfast.registry.models.model_registry import ModelRegistry
    from holdfast.registry.names import NameEntry
    from holdfast.storage.cid import Cid

__all__ = ["ImportedModel", "import_mlflow_model", "import_mlflow_registry"]

_WHY = "importing from MLflow"
_OWN_TAGS = "mlflow."
"""MLflow's own tags hold paths and users of the machine that a run was on; two of them are worth keeping."""
_KEPT_TAGS = {"mlflow.runName": "run_name", "mlflow.source.git.commit": "git_commit"}
_PROMPT = "mlflow.prompt.is_prompt"
_VERSION_URI = re.compile(r"models:/([^/@]+)/([0-9]+)")
_STAGE_URI = re.compile(r"models:/([^/@]+)/([^/@]+)")
_ALIAS_URI = re.compile(r"models:/([^/@]+)@([^/@]+)")
_LOGGED_URI = re.compile(r"models:/(m-[^/@]+)")
_RUN_URI = re.compile(r"runs:/([^/]+)/(.+)")
_NEWEST = "latest"
_STAGES = {"Staging": "staging", "Production": "production"}
"""Stages are how MLflow said what it says with aliases now."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_STEPS = 8
"""From a version to where its files are; MLflow needs two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedModel:
    """What one of MLflow's models is now."""

    uri: str
    """Where it came from."""
    cid: Cid
    """Its manifest."""
    entry: NameEntry | None = None
    """Its name and version; None if it was given none."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        entry = None if self.entry is None else self.entry.to_json()
        return {"uri": self.uri, "cid": str(self.cid), "entry": entry}


@dataclass(slots=True)
class _Found:
    """Where the files of a model are, and what is known about it."""

    location: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def import_mlflow_model(
    registry: ModelRegistry,
    uri: str,
    *,
    name: str | None = None,
    version: str | None = None,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
) -> ImportedModel:
    """One of MLflow's models as a model of holdfast; importing it again gives the same CID.

    Args:
        registry: Where to.
        uri: ``models:/name/3``, ``models:/name/latest``, ``models:/name/Production`` (or another stage: the newest version in it),
            ``models:/name@alias``, ``models:/m-...``, ``runs:/run/path``, or the location of a model's folder.
        name: Register it under this name; default: only store it.
        version: With ``name``; default: version 3 of MLflow is 3.0.0, and what has none takes the next minor version.
        tracking_uri: MLflow's; default: the one that MLflow has set.
        registry_uri: MLflow's; default: the same.

    Raises:
        Conflict: The version names another model already.
        InvalidInput: ``uri`` is none of these, or there is no model.
        NotFound: MLflow knows no such model, version, stage, alias or run.
        Unavailable: MLflow's server or database does not answer.
        Unsupported: MLflow is not installed.
    """
    if name is not None:
        checked_name("model", name)
        if version is not None:
            checked_version(version)
    client = _client(tracking_uri, registry_uri)
    with _errors(uri):
        found = _look_up(client, uri)
        cid = _stored(registry, found, tracking_uri)
    if name is None:
        return ImportedModel(uri=uri, cid=cid)
    number = found.facts.get("version")
    entry = _named(registry, name, version or (f"{number}.0.0" if number else None), cid)
    return ImportedModel(uri=uri, cid=entry.cid, entry=entry)


def import_mlflow_registry(
    registry: ModelRegistry,
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    names: Mapping[str, str] | None = None,
) -> list[ImportedModel]:
    """All registered models of MLflow with their versions and aliases; version 3 becomes 3.0.0.

    The newest version in the stage Staging or Production gets the alias ``staging`` or ``production``, unless MLflow has such an
    alias. A version that was imported before stays as it is, and its aliases follow MLflow's. Versions that MLflow calls pending
    or failed are left out, and so are prompts. What was imported before an error stays; the next import goes on behind it.

    Args:
        registry: Where to.
        tracking_uri: MLflow's; default: the one that MLflow has set.
        registry_uri: MLflow's; default: the same.
        names: Other names for some of the models; needed for those whose own are no names here, and for no others.

    Raises:
        Conflict: A version names another model already.
        InvalidInput: A name or alias can't be one here, or two models would have the same; nothing was imported.
        Unavailable: MLflow's server or database does not answer.
        Unsupported: MLflow is not installed.
    """
    client = _client(tracking_uri, registry_uri)
    with _errors("the model registry"):
        models = [
            model for model in _pages(client.search_registered_models) if _PROMPT not in (model.tags or {})
        ]
    chosen = _chosen_names([model.name for model in models], names or {})
    for model in models:
        for alias in model.aliases:
            _alias_checked(chosen[model.name], alias)
    imported: list[ImportedModel] = []
    for model in models:
        with _errors(f"models:/{model.name}"):
            versions = _versions(client, model.name)
        about = {"name": chosen[model.name], "tracking_uri": tracking_uri, "registry_uri": registry_uri}
        found = {
            f"{each.version}.0.0": import_mlflow_model(
                registry, f"models:/{model.name}/{each.version}", **about
            )
            for each in versions
        }
        staged = {_STAGES[_stage(each)]: each.version for each in versions if _stage(each) in _STAGES}
        for alias, number in sorted({**staged, **model.aliases}.items()):
            if f"{number}.0.0" in found:
                registry.set_alias(chosen[model.name], alias, f"{number}.0.0")
        entries = {each.version: each for each in registry.search(chosen[model.name], limit=None)}
        imported += [replace(each, entry=entries.get(version, each.entry)) for version, each in found.items()]
    return imported


# -------------------------------------------------------------------------------------------- looking up


def _client(tracking_uri: str | None, registry_uri: str | None) -> Any:
    tracking = require("mlflow.tracking", extra="mlflow", why=_WHY)
    with _errors(str(tracking_uri or "MLflow")):
        return tracking.MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)


def _pages(search: Any, filter_string: str | None = None) -> list[Any]:
    found: list[Any] = []
    token = None
    while True:
        page = search(filter_string=filter_string, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _versions(client: Any, name: str) -> list[Any]:
    """Those of a registered model that are ready, the newest last."""
    quoted = name.replace("'", "\\'")
    found = _pages(client.search_model_versions, f"name='{quoted}'")
    return sorted((each for each in found if each.status == "READY"), key=lambda each: int(each.version))


def _stage(version: Any) -> str:
    """``None``, as MLflow has it, where stages are no more."""
    return getattr(version, "current_stage", None) or "None"


def _newest_version(client: Any, name: str, stage: str) -> str:
    """The number of the newest version in a stage, or of all."""
    versions = _versions(client, name)
    if not versions:
        raise NotFound(f"MLflow has no version of a model {name!r}")
    if stage.lower() == _NEWEST:
        return str(versions[-1].version)
    inside = [each for each in versions if _stage(each).lower() == stage.lower()]
    if not inside:
        known = ", ".join(sorted({_stage(each) for each in versions} - {"None"})) or "no stage"
        raise NotFound(
            f"MLflow has no version of {name!r} in the stage {stage!r}; its versions are in {known}"
        )
    return str(inside[-1].version)


def _look_up(client: Any, uri: str) -> _Found:
    """Follow a URI to where the files are; MLflow's own way would go by its process-wide settings."""
    found, location = _Found(), uri.rstrip("/")
    for _ in range(_MAX_STEPS):
        if match := _ALIAS_URI.fullmatch(location):
            version = client.get_model_version_by_alias(*match.groups()).version
            location = f"models:/{match[1]}/{version}"
        elif match := _VERSION_URI.fullmatch(location):
            location = _note_version(client, found, match[1], match[2])
        elif match := _STAGE_URI.fullmatch(location):
            location = f"models:/{match[1]}/{_newest_version(client, *match.groups())}"
        elif match := _LOGGED_URI.fullmatch(location):
            location = _note_logged(client, found, client.get_logged_model(match[1]))
        elif match := _RUN_URI.fullmatch(location):
            location = _in_run(client, found, match[1], match[2])
        elif location.startswith(("models:", "runs:")):
            raise InvalidInput(
                f"{location!r} is no model: give models:/name/3, models:/name/latest, models:/name@alias, models:/m-..., runs:/run/path, or a folder"
            )
        else:
            found.location = location
            break
    else:
        raise InvalidInput(f"{uri!r} leads from one place to the next in MLflow, and to no files")
    if run_id := found.facts.get("run_id"):
        _note_run(client, found, run_id)
    return found


def _note_version(client: Any, found: _Found, name: str, number: str) -> str:
    version = client.get_model_version(name, number)
    found.facts |= {"name": name, "version": str(version.version), "description": version.description or ""}
    found.facts["run_id"] = version.run_id or None
    found.tags |= version.tags
    return str(version.source)


def _note_logged(client: Any, found: _Found, model: Any) -> str:
    del client
    found.facts |= {"model_id": model.model_id, "model_name": model.name}
    found.facts["run_id"] = found.facts.get("run_id") or model.source_run_id or None
    found.params |= model.params
    found.tags = model.tags | found.tags
    found.metrics |= {metric.key: metric.value for metric in model.metrics or []}
    return str(model.artifact_location)


def _in_run(client: Any, found: _Found, run_id: str, path: str) -> str:
    """A model in a run's own files, or one that the run logged beside them under this name."""
    found.facts["run_id"] = run_id
    run = client.get_run(run_id)
    own = f"{run.info.artifact_uri}/{path}"
    repositories = require("mlflow.store.artifact.artifact_repository_registry", extra="mlflow", why=_WHY)
    files = repositories.get_artifact_repository(own, tracking_uri=client.tracking_uri).list_artifacts()
    if any(file.path == MLMODEL for file in files):
        return own
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    logged = [client.get_logged_model(output.model_id) for output in outputs]
    named = [model for model in logged if model.name == path]
    if not named:
        known = ", ".join(sorted({model.name for model in logged})) or "none at all"
        raise NotFound(f"the run {run_id} has no model {path!r}; there is {known}")
    newest = max(named, key=lambda model: (model.creation_timestamp, model.model_id))
    return f"models:/{newest.model_id}"


def _note_run(client: Any, found: _Found, run_id: str) -> None:
    run = client.get_run(run_id)
    # What was measured of this very model counts more than what its run says; but MLflow keeps a NaN of a model as 0.
    found.params = run.data.params | found.params
    strange = {key: value for key, value in run.data.metrics.items() if not math.isfinite(value)}
    found.metrics = run.data.metrics | found.metrics | strange
    found.tags = run.data.tags | found.tags
    found.facts |= {"experiment_id": run.info.experiment_id, "run_status": run.info.status}
    inputs = run.inputs.dataset_inputs if run.inputs is not None else []
    found.facts["datasets"] = sorted(
        ({"name": each.dataset.name, "digest": each.dataset.digest} for each in inputs),
        key=lambda each: (each["name"], each["digest"]),
    )


# --------------------------------------------------------------------------------------------- storing


def _stored(registry: ModelRegistry, found: _Found, tracking_uri: str | None) -> Cid:
    artifacts = require("mlflow.artifacts", extra="mlflow", why=_WHY)
    with tempfile.TemporaryDirectory(prefix="holdfast-mlflow-") as scratch:
        folder = Path(
            artifacts.download_artifacts(
                artifact_uri=found.location, dst_path=scratch, tracking_uri=tracking_uri
            )
        )
        if not (folder / MLMODEL).is_file():
            raise InvalidInput(f"{found.location} is no MLflow model: there is no {MLMODEL}")
        about = read_mlmodel((folder / MLMODEL).read_bytes(), where=f"{found.location}/{MLMODEL}")
        flavors = sorted(map(str, about.get("flavors") or {}))
        metadata = {
            **{key: value for key, value in found.facts.items() if value not in (None, "", [])},
            "flavors": flavors,
            "mlflow_version": str(about.get("mlflow_version", "")),
            "signature": about.get("signature") or {},
            "params": found.params,
            "tags": {key: value for key, value in found.tags.items() if not key.startswith(_OWN_TAGS)},
            **{kept: found.tags[tag] for tag, kept in _KEPT_TAGS.items() if tag in found.tags},
        }
        # Records have finite numbers only.
        strange = {key: str(value) for key, value in found.metrics.items() if not math.isfinite(value)}
        if strange:
            metadata["metrics_not_finite"] = strange
        own = [flavor for flavor in flavors if flavor != "python_function"]
        return registry.store_model(
            folder,
            model_type=own[0] if own else "",
            framework="mlflow",
            metadata={"mlflow": metadata},
            metrics={key: value for key, value in found.metrics.items() if key not in strange},
        )


def _named(registry: ModelRegistry, name: str, version: str | None, cid: Cid) -> NameEntry:
    """The version with this model; tags and metrics may have changed in MLflow since it was imported, its files may not."""
    try:
        return registry.register(name, cid, version)
    except Conflict:
        there = [entry for entry in registry.search(name, limit=None) if entry.version == version]
        if there and registry.record(str(there[0].cid)).files == registry.record(str(cid)).files:
            return there[0]
        raise


def _chosen_names(ours: list[str], names: Mapping[str, str]) -> dict[str, str]:
    if unknown := sorted(names.keys() - set(ours)):
        raise InvalidInput(
            f"MLflow has no registered model {', '.join(map(repr, unknown))}; it has {', '.join(sorted(ours))}"
        )
    chosen: dict[str, str] = {}
    for name in ours:
        wanted = names.get(name, name)
        if not _NAME.fullmatch(wanted):
            raise InvalidInput(
                f"MLflow's model {name!r} can't be named {wanted!r} here: names are letters, digits, '.', '_' and '-', starting with a "
                f"letter or digit; give another one with names={{{name!r}: ...}}"
            )
        if wanted in chosen.values():
            raise InvalidInput(
                f"two of MLflow's models would be named {wanted!r}; give one of them another name"
            )
        chosen[name] = wanted
    return chosen


def _alias_checked(name: str, alias: str) -> None:
    try:
        checked_word(alias, "an alias")
    except InvalidInput as error:
        raise InvalidInput(
            f"MLflow's alias {name}@{alias} can't be one here: {error}; nothing was imported"
        ) from error


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """MLflow's errors as ours."""
    exceptions = require("mlflow.exceptions", extra="mlflow", why=_WHY)
    try:
        yield
    except exceptions.MlflowException as error:
        code, text = error.error_code, f"{what}: {str(error).strip()[:500]}"
        if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"):
            raise NotFound(f"MLflow has no {text}") from error
        if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            raise InvalidInput(f"MLflow does not take {text}") from error
        raise Unavailable(f"MLflow can't give {text}") from error
