"""With the real MLflow over a SQLite tracking store, as its users run it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from holdfast.cluster.cli import main
from holdfast.config import load_settings
from holdfast.errors import Conflict, Denied, InvalidInput, NotFound, Unavailable
from holdfast.registry import ModelRegistry, open_registry
from holdfast.registry.ecosystem.artifact_tree import ArtifactTree
from holdfast.registry.ecosystem.mlflow_import import import_mlflow_model, import_mlflow_registry
from holdfast.registry.opening import open_signatures

_MISSING = [name for name in ("mlflow", "sqlalchemy", "alembic") if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(bool(_MISSING), reason=f"not installed: {', '.join(_MISSING)} (pip install mlflow)"),
    pytest.mark.filterwarnings("default"),  # MLflow's own, of which there are many
    pytest.mark.filterwarnings("ignore:.*registry stages will be removed:FutureWarning"),
    pytest.mark.timeout(300),
]

X = np.linspace(0, 1, 60).reshape(20, 3)
Y = (X[:, 0] > 0.5).astype(int)


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    """The URI of a tracking store; making its tables takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
        import mlflow

        mlflow.set_tracking_uri(uri)
        yield uri


@pytest.fixture
def experiment(tracking, request):  # noqa: ARG001 -- it is where the experiment is made
    """An experiment whose artifacts go to the test's own home."""
    import mlflow

    return mlflow.create_experiment(request.node.name, artifact_location="holdfast://our-team")


@pytest.fixture
def home(own_home):
    """The registry of the test's home."""
    store, names = open_registry(own_home)
    with closing(store), closing(names):
        yield store, names


@pytest.fixture
def models(home, own_home):
    store, names = home
    return ModelRegistry(store, names, signatures=open_signatures(load_settings(own_home), store))


def stored_at(home, uri):
    return ArtifactTree(*home).find(uri.removeprefix("holdfast://"))


def log_classifier(experiment, register_as=None, **metrics):
    import mlflow
    from sklearn.linear_model import LogisticRegression

    estimator = LogisticRegression().fit(X, Y)
    with mlflow.start_run(experiment_id=experiment):
        mlflow.log_param("C", 1.0)
        mlflow.log_metrics(metrics)
        mlflow.set_tag("team", "blue")
        return mlflow.sklearn.log_model(
            estimator,
            name="model",
            signature=mlflow.models.infer_signature(X, estimator.predict(X)),
            pip_requirements=["scikit-learn"],
            registered_model_name=register_as,
        )


def test_a_run_s_files_are_stored_by_cid_and_come_back(experiment, home, tmp_path):
    import mlflow

    folder = tmp_path / "logged"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("hello")
    (folder / "deep" / "b.txt").write_text("deep")
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_artifact(str(folder / "a.txt"))
        mlflow.log_artifacts(str(folder / "deep"), "deep")
    uri = run.info.artifact_uri
    assert uri.startswith("holdfast://")
    assert stored_at(home, uri) == home[0].add(folder)
    run_id = run.info.run_id
    listed = {(f.path, f.is_dir, f.file_size) for f in mlflow.MlflowClient().list_artifacts(run_id)}
    assert listed == {("a.txt", False, 5), ("deep", True, None)}
    assert [f.path for f in mlflow.MlflowClient().list_artifacts(run_id, "deep")] == ["deep/b.txt"]
    whole = mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path / "got"))
    assert home[0].add(whole) == home[0].add(folder)
    assert mlflow.artifacts.load_text(f"{uri}/deep/b.txt") == "deep"
    up = mlflow.artifacts.download_artifacts(
        artifact_uri=uri.removesuffix("/artifacts"), dst_path=str(tmp_path)
    )
    assert home[0].add(f"{up}/artifacts") == home[0].add(folder)


def test_what_was_never_logged_is_an_error(experiment, tmp_path):
    import mlflow

    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_text("x", "x.txt")
        with pytest.raises(NotFound, match="to log"):
            mlflow.log_artifact(str(tmp_path / "missing.txt"))
        with pytest.raises(NotFound, match="to log"):
            mlflow.log_artifacts(str(tmp_path / "missing"))
    with pytest.raises(mlflow.MlflowException, match="path is correct"):
        mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="y.txt", dst_path=str(tmp_path)
        )
    assert mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="y") == []


@pytest.mark.parametrize(
    "uri", ["holdfast:team", "holdfast://", "holdfast://team?a=1", "holdfast://te am/../x"]
)
@pytest.mark.usefixtures("tracking")
def test_a_location_that_means_something_else_is_refused(uri):
    from holdfast.registry.ecosystem.mlflow_artifacts import HoldfastArtifactRepository

    with pytest.raises(InvalidInput):
        HoldfastArtifactRepository(uri)


def test_deleted_artifacts_are_gone(experiment, home):
    import mlflow
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_text("x", "x.txt")
        mlflow.log_text("y", "folder/y.txt")
    repository = get_artifact_repository(run.info.artifact_uri)
    repository.delete_artifacts("folder/y.txt")
    assert [f.path for f in repository.list_artifacts("folder")] == []
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/x.txt") == "x"
    repository.delete_artifacts()
    assert repository.list_artifacts() == []
    assert len(home[1].entries("artifacts")) == 1


def test_a_torch_model_is_logged_and_loaded_with_equal_outputs(experiment, home):
    torch = pytest.importorskip("torch")
    import mlflow

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    with mlflow.start_run(experiment_id=experiment):
        info = mlflow.pytorch.log_model(
            model, name="model", input_example=X[:2].astype("float32"), pip_requirements=["torch"]
        )
    loaded = mlflow.pytorch.load_model(info.model_uri)
    sample = torch.from_numpy(X.astype("float32"))
    assert torch.equal(loaded(sample), model(sample))
    assert stored_at(home, info.artifact_path) is not None


def test_a_registered_model_is_loaded_in_another_process(experiment, tracking):
    info = log_classifier(experiment, "in-another-process")
    code = (
        "import sys, mlflow, numpy as np; mlflow.set_tracking_uri(sys.argv[1]);"
        "print(mlflow.pyfunc.load_model('models:/in-another-process/1').predict(np.linspace(0, 1, 60).reshape(20, 3)).tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tracking], capture_output=True, text=True, timeout=200, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == Y.tolist()
    assert info.artifact_path.startswith("holdfast://")


_LOGGER = """
import sys
import mlflow
tracking, run_id, number = sys.argv[1:]
mlflow.set_tracking_uri(tracking)
client = mlflow.MlflowClient()
print("ready", flush=True)
sys.stdin.readline()
for step in range(6):
    client.log_text(run_id, f"{number} {step}", f"from-{step % 2}/{number}-{step}.txt")
"""


def test_processes_that_log_to_one_run_lose_nothing(experiment, home, tracking):
    import mlflow

    with mlflow.start_run(experiment_id=experiment) as run:
        pass
    loggers = [
        subprocess.Popen(
            [sys.executable, "-c", _LOGGER, tracking, run.info.run_id, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for logger in loggers:
        assert logger.stdout is not None
        assert logger.stdout.readline() == "ready\n"
    for logger in loggers:
        logger.communicate("go\n", timeout=200)
    assert [logger.returncode for logger in loggers] == [0, 0, 0]
    for number in range(3):
        for step in range(6):
            cid = stored_at(home, f"{run.info.artifact_uri}/from-{step % 2}/{number}-{step}.txt")
            assert bytes(home[0].open(cid)) == f"{number} {step}".encode()
    assert len(home[1].entries("artifacts")) == 18


# ------------------------------------------------------------------------------------------------- import


def test_an_imported_model_is_the_same_folder_with_what_mlflow_knows(experiment, home, models, tracking):
    info = log_classifier(experiment, "known", accuracy=0.75, broken=float("nan"))
    found = import_mlflow_model(models, "models:/known/1", name="mine", tracking_uri=tracking)
    assert found.entry is not None
    assert (found.entry.name, found.entry.version, found.entry.cid) == ("mine", "1.0.0", found.cid)
    record = models.record("mine")
    assert record.files == stored_at(home, info.artifact_path)
    assert (record.framework, record.format, record.model_type) == ("mlflow", "folder", "sklearn")
    assert record.metrics == {"accuracy": 0.75}
    assert record.inputs == ({"name": "0", "dtype": "float64", "shape": [3]},)
    assert record.outputs == ({"name": "0", "dtype": "int64", "shape": []},)
    known = record.metadata["mlflow"]
    assert known["params"] == {"C": "1.0"}
    assert known["tags"] == {"team": "blue"}
    assert known["metrics_not_finite"] == {"broken": "nan"}
    assert (known["name"], known["version"], known["run_id"]) == ("known", "1", info.run_id)
    assert known["flavors"] == ["python_function", "sklearn"]


def test_every_way_to_a_model_leads_to_the_same_files(experiment, models, tracking):
    import mlflow

    info = log_classifier(experiment, "ways")
    mlflow.MlflowClient().set_registered_model_alias("ways", "champion", "1")
    mlflow.MlflowClient().transition_model_version_stage("ways", "1", "Production")
    uris = [
        "models:/ways/1",
        "models:/ways@champion",
        "models:/ways/latest",
        "models:/ways/production",
        info.model_uri,
        f"runs:/{info.run_id}/model",
        info.artifact_path,
    ]
    mlflow.set_tracking_uri("sqlite:///nowhere.db")  # what a process has set is not asked
    try:
        cids = [import_mlflow_model(models, uri, tracking_uri=tracking).cid for uri in uris]
    finally:
        mlflow.set_tracking_uri(tracking)
    assert len({models.record(str(cid)).files for cid in cids}) == 1
    assert len(set(cids[:4])) == 1
    assert cids[4] == cids[5]


def test_importing_again_and_elsewhere_gives_the_same_cids(experiment, models, tracking, tmp_path):
    log_classifier(experiment, "twice")
    first = import_mlflow_model(models, "models:/twice/1", name="twice", tracking_uri=tracking)
    assert import_mlflow_model(models, "models:/twice/1", name="twice", tracking_uri=tracking) == first
    store, names = open_registry(tmp_path / "elsewhere")
    with closing(store), closing(names):
        other = import_mlflow_model(ModelRegistry(store, names), "models:/twice/1", tracking_uri=tracking)
    assert other.cid == first.cid
    assert len(models.entries()) == 1


def test_an_imported_model_predicts_as_before_and_only_for_who_trusts_it(experiment, models, tracking):
    log_classifier(experiment, "predicts")
    cid = import_mlflow_model(models, "models:/predicts/1", tracking_uri=tracking).cid
    with pytest.raises(Denied):
        models.load(cid, allow_pickle=True)
    models._signatures.sign(cid)
    with pytest.raises(Denied):
        models.load(cid)
    assert models.load(cid, allow_pickle=True).predict(X).tolist() == Y.tolist()


@pytest.mark.usefixtures("tracking")
def test_a_whole_registry_comes_in_with_its_numbers_and_aliases(models, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path}/own.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        own = mlflow.create_experiment("registry", artifact_location=(tmp_path / "files").as_uri())
        for name in ("first", "first", "a second"):
            log_classifier(own, name)
        client = mlflow.MlflowClient()
        client.delete_model_version("first", "1")
        log_classifier(own, "first")
        client.set_registered_model_alias("first", "champion", "2")
        with pytest.raises(InvalidInput, match="'a second'"):
            import_mlflow_registry(models, tracking_uri=uri)
        assert models.entries() == []
        with pytest.raises(InvalidInput, match="no registered model 'third'"):
            import_mlflow_registry(models, tracking_uri=uri, names={"third": "x"})
        with pytest.raises(InvalidInput, match="two of"):
            import_mlflow_registry(models, tracking_uri=uri, names={"a second": "first"})
        names = {"a second": "second"}
        imported = import_mlflow_registry(models, tracking_uri=uri, names=names)
        assert [(m.uri, m.entry.name, m.entry.version, m.entry.aliases) for m in imported if m.entry] == [
            ("models:/a second/1", "second", "1.0.0", ()),
            ("models:/first/2", "first", "2.0.0", ("champion",)),
            ("models:/first/3", "first", "3.0.0", ()),
        ]
        # What may change in MLflow changes nothing that was imported, but the aliases.
        client.set_model_version_tag("first", "2", "late", "tag")
        client.set_registered_model_alias("first", "champion", "3")
        again = import_mlflow_registry(models, tracking_uri=uri, names=names)
        assert [m.cid for m in again] == [m.cid for m in imported]
        assert models.resolve("first@champion") == again[2].cid
        models.register("first", again[0].cid, "4.0.0")
        log_classifier(own, "first")
        with pytest.raises(Conflict, match=r"first:4\.0\.0"):
            import_mlflow_registry(models, tracking_uri=uri, names=names)
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("tracking")
def test_stages_become_aliases_of_the_newest_version_in_them(models, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path}/own.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        own = mlflow.create_experiment("stages", artifact_location=(tmp_path / "files").as_uri())
        client = mlflow.MlflowClient()
        stages = {"1": "Production", "2": "Production", "3": "Staging", "4": "Archived", "5": "None"}
        for number, stage in stages.items():
            log_classifier(own, "staged")
            client.transition_model_version_stage("staged", number, stage)
        imported = import_mlflow_registry(models, tracking_uri=uri)
        assert [m.entry.aliases for m in imported if m.entry] == [(), ("production",), ("staging",), (), ()]
        client.transition_model_version_stage("staged", "3", "Production")
        client.set_registered_model_alias("staged", "staging", "4")  # says more than the stage does
        moved = import_mlflow_registry(models, tracking_uri=uri)
        assert [m.entry.aliases for m in moved if m.entry] == [(), (), ("production",), ("staging",), ()]
        newest = import_mlflow_model(models, "models:/staged/Latest", tracking_uri=uri)
        assert newest.cid == moved[4].cid
        with pytest.raises(NotFound, match="'Staging'; its versions are in Archived, Production"):
            import_mlflow_model(models, "models:/staged/Staging", tracking_uri=uri)
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    "uri",
    [
        "models:/nobody/1",
        "models:/nobody/latest",
        "models:/nobody/Production",
        "models:/nobody@champion",
        "models:/m-0123",
        "runs:/0123456789/model",
    ],
)
def test_a_model_that_mlflow_does_not_have_is_not_found(models, tracking, uri):
    with pytest.raises(NotFound, match="MLflow has no"):
        import_mlflow_model(models, uri, tracking_uri=tracking)


def test_what_is_no_model_is_not_imported(experiment, models, tracking, tmp_path):
    import mlflow

    info = log_classifier(experiment)
    with mlflow.start_run(experiment_id=experiment) as run:
        mlflow.log_text("x", "folder/x.txt")
    with pytest.raises(InvalidInput, match="no MLmodel"):
        import_mlflow_model(models, f"{run.info.artifact_uri}/folder", tracking_uri=tracking)
    with pytest.raises(NotFound, match="there is model"):
        import_mlflow_model(models, f"runs:/{info.run_id}/modell", tracking_uri=tracking)
    with pytest.raises(InvalidInput, match="is no model"):
        import_mlflow_model(models, "models:/a/b/1", tracking_uri=tracking)
    with pytest.raises((InvalidInput, NotFound, Unavailable)):
        import_mlflow_model(models, str(tmp_path / "nowhere"), tracking_uri=tracking)
    assert models.entries() == []


def test_the_command_line_imports_and_prints_a_card(experiment, models, tracking, capsys):
    import mlflow

    log_classifier(experiment, "for-the-card", accuracy=0.75)
    mlflow.MlflowClient().set_registered_model_alias("for-the-card", "champion", "1")
    capsys.readouterr()
    arguments = ["--tracking-uri", tracking, "--json"]
    assert main(["import-mlflow", "models:/for-the-card@champion", "--name", "carded", *arguments]) == 0
    (imported,) = json.loads(capsys.readouterr().out)
    assert imported["cid"] == str(models.resolve("carded:1.0.0"))
    assert main(["model-card", "carded"]) == 0
    printed = capsys.readouterr().out
    assert "library_name: mlflow" in printed
    assert imported["cid"] in printed
    assert main(["import-mlflow", "models:/nobody/1", *arguments]) == 3
    assert json.loads(capsys.readouterr().out)["code"] == "not_found"
