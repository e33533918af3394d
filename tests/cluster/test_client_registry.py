"""Through the client: work that was done is not done again and says so, lineage is drawn, and names travel."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import holdfast
from holdfast.errors import Conflict, Corrupt, InvalidInput, NotFound
from holdfast.http_client import HttpClient
from holdfast.registry import RunState
from holdfast.registry.code import bundle_code
from holdfast.registry.compute.training import training_computation
from holdfast.registry.measurements import Kind
from holdfast.registry.run_table import RunSpec

from .conftest import cli_json, listening_master, run_cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = {
    "train": {"x": np.arange(30, dtype=np.float32).reshape(10, 3), "id": np.arange(10)},
    "test": {"x": np.ones((4, 3), np.float32), "id": np.arange(10, 14)},
}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[holdfast.Client]:
    with holdfast.connect(home=tmp_path / "home") as opened:
        opened.datasets.store_dataset(ROWS, name="numbers")
        yield opened


def events_of(client: holdfast.Client, user_code: Any, **options: Any) -> tuple[Any, list[str]]:
    events: list[str] = []
    run = client.train(user_code.train, "numbers", on_event=lambda e: events.append(e["type"]), **options)
    return run, events


# --------------------------------------------------------------------------------------------------- cache


def test_the_same_training_is_answered_at_once_and_says_by_which_run(client, user_code):
    first, events = events_of(client, user_code)
    assert "report" in events
    again, events = events_of(client, user_code)
    assert events == ["cached"]
    assert (again.cid, again.model, again.record) == (first.cid, first.model, first.record)
    assert (first.cached_from, again.cached_from) == (None, first.id)
    newest = client.runs()[0]
    assert (newest.id, newest.state, newest.result["cached_from"]) == (again.id, RunState.DONE, first.id)
    assert client.models.get(str(again.model)) is not None


def test_what_a_run_reported_is_kept_beside_its_record_and_measured_live(client, user_code):
    live: list[int] = []

    def look(_: dict[str, Any]) -> None:
        running = client.runs()[0]
        live.append(len(client.measurements(running.id).measurements()))

    run = client.train(user_code.train, "numbers", on_event=look)
    metrics = client.measurements(run)
    assert [dict(m.values) for m in metrics.measurements(Kind.METRIC)] == [
        {name: value for name, value in report.items() if name != "epoch"} for report in run.record.history
    ]
    assert live
    assert live == sorted(live)
    assert live[0] > 0
    stored = client.runs()[0].result["measurements"]
    assert stored not in str(client.store.get_record(run.cid)), "a record holds no times"
    again = client.train(user_code.train, "numbers")
    assert again.cached_from == run.id
    assert client.measurements(again).measurements() == metrics.measurements()
    with pytest.raises(NotFound):
        client.measurements("run-nobody")


def test_no_cache_really_trains_and_another_config_or_seed_is_another_training(client, user_code):
    first, _ = events_of(client, user_code)
    for options in ({"use_cache": False}, {"config": {"batch_size": 2}}, {"seed": 7}):
        run, events = events_of(client, user_code, **options)
        assert "report" in events
        assert run.cached_from is None
    assert events_of(client, user_code)[0].cached_from != first.id, "the newest run that did it answers"


def test_code_that_changed_is_trained_again_though_its_name_did_not(client, user_code):
    from pathlib import Path

    events_of(client, user_code)
    file = Path(user_code.__file__)
    file.write_text(file.read_text() + "\n# changed\n")
    run, events = events_of(client, user_code)
    assert "report" in events
    assert run.cached_from is None


def test_a_training_that_failed_is_tried_again(client, user_code):
    for _ in range(2):
        with pytest.raises(ValueError, match="out of data"):
            client.train(user_code.train, "numbers", config={"fail": 0})
    assert client.cache.entries() == []
    assert [run.state for run in client.runs()] == [RunState.FAILED] * 2


def test_what_would_differ_is_told_before_a_training_and_after_it(client, user_code):
    assert client.explain_training(user_code.train, "numbers").verdict == "empty"
    first, _ = events_of(client, user_code, config={"batch_size": 2})
    assert client.explain_training(user_code.train, "numbers", config={"batch_size": 2}).verdict == "hit"
    told = client.explain_training(user_code.train, "numbers", config={"batch_size": 3}, seed=1)
    assert [(d.field, d.stored, d.asked) for d in told.differences] == [
        ("config.config.batch_size", "2", "3"),
        ("config.seed", "0", "1"),
    ]
    second, _ = events_of(client, user_code, config={"batch_size": 3})
    told = client.cache.explain_entry(second.id)
    assert told.entry is not None
    assert told.entry.made_by == first.id
    assert [d.field for d in told.differences] == ["config.config.batch_size"]


def test_a_model_is_called_as_it_was_asked_for_whatever_else_it_is_called(client, user_code):
    run = client.train(user_code.train, "numbers")
    client.models.register("scale", run.model, "1.2.0", aliases=["champion"])
    for other in ("aaa", "zzz"):
        client.models.register(other, run.model, "7.0.0", aliases=["champion"])
    for ref, name, version in (
        ("scale@champion", "scale", "1.2.0"),
        ("zzz", "zzz", "7.0.0"),
        (run.model, "scale", "1.2.0"),  # its first name
    ):
        with client.serve(ref) as server:
            assert server.infer_url.endswith(f"/v2/models/{name}/infer")
        graph = client.lineage(ref)
        assert graph.nodes[graph.root].names[0] == f"{name}:{version}"
        assert f"{name}:{version}" in graph.to_svg()
    assert ">@champion aaa@" in client.lineage("zzz").to_svg(), "whose alias each is can be seen"


def test_a_conversion_and_an_index_are_made_once_and_again_only_when_asked(client, user_code, monkeypatch):
    model = client.train(user_code.train, "numbers").model
    client.models.register("scale", model)
    conversion, record = client.convert("scale")
    assert client.store.pins.pins() == [], "a conversion is kept by its name, and not for ever"
    index = client.build_index("near", corpus="numbers", model="scale", output=_output_of(client, record))
    assert sorted(entry.function for entry in client.cache.entries()) == ["convert", "index", "train"]

    from holdfast.inference import conversion as converting
    from holdfast.inference import search

    worked = []
    for module, name in ((converting, "convert_model"), (search, "build_index")):
        real = getattr(module, name)

        def counted(*args, real=real, name=name, **options):
            worked.append(name)
            return real(*args, **options)

        monkeypatch.setattr(module, name, counted)
    assert client.convert("scale")[0] == conversion
    again = client.build_index("near", corpus="numbers", model="scale", output=_output_of(client, record))
    assert again.cid == index.cid
    assert worked == []
    assert client.convert("scale", use_cache=False)[1].model == model
    assert worked == ["convert_model"]
    client.convert("scale", split="train")
    assert worked == ["convert_model", "convert_model"]
    (nearest,) = index.search(np.ones(3, np.float32), k=1)[0]
    assert {name: type(value) for name, value in nearest.values.items()} == {"x": np.ndarray, "id": int}


def _output_of(client, record):
    from holdfast.inference.conversion import open_engine

    return open_engine(client.store, record).outputs[0].name


# ------------------------------------------------------------------------------------------------- lineage


def test_a_dataset_tells_what_became_of_it_and_a_model_what_it_is_made_of(client, user_code):
    run = client.train(user_code.train, "numbers")
    client.models.register("scale", run.model, aliases=["champion"])
    down = client.lineage("numbers", upstream=False)
    assert {run.cid, run.model} <= set(down.nodes)
    up = client.lineage("scale@champion", downstream=False)
    assert client.datasets.resolve("numbers") in up.nodes
    assert up.nodes[run.model].names == ("scale:1.0.0", "scale@champion")
    assert [one.model for one in client.models_with_row({"id": 3})] == [run.model]
    assert client.models_with_row({"id": 12}, split="train") == []


def test_what_has_two_names_is_drawn_under_the_one_that_was_asked_for(client):
    from holdfast.registry.graph.picture.titles import title_of

    cid = client.store.put_record({"kind": "model", "example": 1})
    for name in ("first", "wine"):
        client.names.register("model", name, None, cid)
    client.names.set_alias("model", "wine", "champion", "1.0.0")
    for ref, name in (("wine@champion", "wine"), ("wine", "wine"), ("first", "first"), (str(cid), "first")):
        graph = client.lineage(ref)
        assert title_of(graph) == f"Lineage of model {name}:1.0.0"
        assert graph.render().startswith(f"model {name}:1.0.0, ")


def test_commands_print_draw_and_find(client, user_code, tmp_path: Path):
    run = client.train(user_code.train, "numbers")
    client.models.register("scale", run.model)
    client.close()
    home = ("--home", str(tmp_path / "home"))
    text = run_cli("lineage", "scale", *home).stdout
    assert text.startswith(f"model scale:1.0.0  {run.model}")
    assert "made of" in text
    body = cli_json("lineage", "numbers", "--downstream", *home)
    assert str(run.model) in {node["cid"] for node in body["nodes"]}
    svg, png = tmp_path / "a.svg", tmp_path / "a.png"
    assert run_cli("lineage", "scale", "--svg", str(svg), "--png", str(png), *home).returncode == 0
    assert ET.fromstring(svg.read_text()).tag.endswith("svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert run_cli("lineage", "scale", "--svg", str(svg), *home).returncode == 4
    assert run_cli("lineage", "scale", "--svg", str(tmp_path / "no" / "a.svg"), *home).returncode == 2
    assert run_cli("lineage", "nobody", *home).returncode == 3
    dark = run_cli("lineage", "scale", "--dark", "--svg", str(tmp_path / "dark.svg"), *home)
    assert dark.returncode == 2
    assert "--dark is for --png" in dark.stderr
    assert not (tmp_path / "dark.svg").exists()
    assert cli_json("lineage", "dataset/numbers", *home)["root"] == body["root"]
    assert run_cli("lineage", "dataset/scale", *home).returncode == 3
    assert run_cli("lineage", "scale", "--depth", "0", *home).returncode == 2
    found = cli_json("seen", '{"id": 3}', *home)
    assert [one["name"] for one in found["models"]] == ["scale:1.0.0"]
    assert run_cli("seen", "[3]", *home).returncode == 2
    assert "no model" in run_cli("seen", '{"id": 999}', *home).stdout

    listed = cli_json("cache", "list", *home)
    assert [(one["function"], one["made_by"]) for one in listed] == [("train", run.id)]
    assert "nothing of the kind" in run_cli("cache", "explain", run.id, *home).stdout
    assert run_cli("cache", "explain", "run-none", *home).returncode == 3
    path = {"PYTHONPATH": f"{tmp_path / 'user'}:{__import__('os').environ.get('PYTHONPATH', '')}"}
    asked = ("cache", "explain", "user_training:train", "--data", "numbers", *home)
    assert cli_json(*asked, **path)["verdict"] == "hit"
    assert [d["field"] for d in cli_json(*asked, "--seed", "4", **path)["differences"]] == ["config.seed"]
    trained = cli_json("train", "user_training:train", "--data", "numbers", *home, **path)
    assert trained["cached_from"] == run.id
    assert cli_json("cache", "clear", "--function", "index", *home) == {"forgotten": 0}
    assert cli_json("cache", "clear", *home) == {"forgotten": 1}


def test_an_archive_goes_by_command_from_home_to_home(client, user_code, tmp_path: Path):
    run = client.train(user_code.train, "numbers")
    client.models.register("scale", run.model, aliases=["champion"])
    client.close()
    home, other, third = (("--home", str(tmp_path / name)) for name in ("home", "other", "third"))
    car = str(tmp_path / "scale.car")
    assert cli_json("registry", "export", "scale@champion", "-o", car, *home)["names"] == [
        "model scale:1.0.0"
    ]
    assert cli_json("registry", "import", car, "--rename", "scale=theirs", *other)["new"] == 1
    assert cli_json("verify", "theirs@champion", *other)["ok"]
    assert cli_json("lineage", "theirs", *other)["root"] == str(run.model)
    to = ("--to-home", str(tmp_path / "third"))
    assert (
        cli_json("registry", "copy", "scale", *to, "--prefix", "a-", *home)["names"][0]["name"] == "a-scale"
    )
    assert cli_json("verify", "a-scale", *third)["ok"]
    assert run_cli("registry", "export", "-o", car, *home).returncode == 4
    assert run_cli("registry", "import", car, "--rename", "x", *other).returncode == 2
    damaged = tmp_path / "damaged.car"
    damaged.write_bytes((tmp_path / "scale.car").read_bytes()[:-100])
    refused = run_cli("registry", "import", str(damaged), "--home", str(tmp_path / "fourth"))
    assert (refused.returncode, str(damaged) in refused.stderr) == (5, True)
    told = run_cli("registry", "import", car, "--rename", "scale=theirs", *other).stdout
    assert "the version is known, " in told


# ------------------------------------------------------------------------------------------- with a master


def test_a_master_answers_for_lineage_cache_and_rows_as_a_home_of_its_own_does(client, user_code, tmp_path):
    run = client.train(user_code.train, "numbers")
    client.models.register("scale", run.model, aliases=["champion"])
    client.convert("scale")
    code = bundle_code(client.store, user_code.train)
    spec = RunSpec(code=code, data=client.datasets.resolve("numbers"), config={})
    with listening_master(tmp_path / "master") as (master, _):
        with holdfast.connect(master.url, home=tmp_path / "remote", token=master.token) as remote:
            attestation = client.sign("scale", claims={"reviewed": True})
            done = client.registry.copy_to(remote.registry, refs=["scale", "numbers"])
            assert (done.new, done.attestations) == (3, 1)
            (signed,) = remote.signatures.of([run.model])[run.model]
            assert (signed.attestation, signed.vouches, signed.name) == (attestation, True, None)
            assert client.registry.copy_to(remote.registry, refs=["scale"]).new == 0
            assert {e.name for e in remote.models.entries()} == {"scale"}
            assert remote.verify("scale@champion").ok
            assert remote.lineage("numbers").to_json() == client.lineage("numbers").to_json()
            assert set(remote.lineage("scale", downstream=False, max_nodes=3).nodes) == set(
                client.lineage("scale", downstream=False, max_nodes=3).nodes
            )
            assert remote.models_with_row({"id": 3}) == client.models_with_row({"id": 3})

            computation = training_computation(client.store, spec)
            assert remote.cache.find(computation) is None
            assert remote.cache.explain(computation).verdict == "empty"
            assert remote.cache.remember(computation, run.model, made_by="run-elsewhere").result == run.model
            assert remote.cache.explain(computation).verdict == "hit"
            assert [entry.made_by for entry in remote.cache.entries(function="train")] == ["run-elsewhere"]
            assert remote.cache.explain_entry("run-elsewhere").verdict == "empty"
            # There is no Ray on this master: only what is known already can be answered.
            events: list[dict[str, Any]] = []
            cached = remote.train(user_code.train, "numbers", on_event=events.append)
            assert (cached.model, cached.cached_from) == (run.model, "run-elsewhere")
            assert [event["type"] for event in events] == ["cached"]
            assert remote.convert("scale")[1].model == run.model
            assert remote.cache.clear(key=computation.key) == 1
            assert remote.cache.find(computation) is None
            with pytest.raises(NotFound):
                remote.cache.explain_entry("run-elsewhere")
        http = HttpClient(master.url, master.token)
        for body in ({"fields": "%%%"}, {"fields": "AAAA"}, {}, {"fields": 5}):
            with pytest.raises((InvalidInput, Corrupt)):
                http.post("/api/v0/computed/find", body)
        with pytest.raises(InvalidInput):
            http.get("/api/v0/lineage", cid="x")
        with pytest.raises(InvalidInput, match="whole numbers"):
            http.get("/api/v0/lineage", cid=str(run.model), max_nodes="many")


def test_a_result_is_sent_to_the_master_before_it_is_remembered_there(tmp_path, client, user_code):
    run = client.train(user_code.train, "numbers")
    with (
        listening_master(tmp_path / "master") as (master, _),
        holdfast.connect(master.url, home=tmp_path / "home2", token=master.token) as remote,
    ):
        computation = training_computation(
            client.store,
            RunSpec(
                code=bundle_code(client.store, user_code.train),
                data=client.datasets.resolve("numbers"),
                config={},
            ),
        )
        with pytest.raises(NotFound):
            remote.cache.remember(
                computation, run.model
            )  # this client does not have it, and so it can't send it
        assert remote.cache.entries() == []


def test_an_archive_that_does_not_fit_changes_nothing_on_a_master(client, user_code, tmp_path):
    run = client.train(user_code.train, "numbers")
    client.models.register("scale", run.model)
    client.registry.export_to(tmp_path / "a.car")
    other = client.train(user_code.train, "numbers", seed=5)
    with (
        listening_master(tmp_path / "master") as (master, _),
        holdfast.connect(master.url, home=tmp_path / "remote", token=master.token) as remote,
    ):
        client.registry.copy_to(remote.registry, refs=["numbers"])
        with holdfast.connect(home=tmp_path / "another") as another:
            client.models.register("other", other.model, "1.0.0")
            client.registry.copy_to(another.registry, refs=["other"], rename={"other": "scale"})
            another.registry.copy_to(remote.registry, refs=["scale"])
        before = [entry.to_json() for entry in remote.names.entries()]
        with pytest.raises(Conflict, match="scale"):
            remote.registry.import_from(tmp_path / "a.car")
        assert [entry.to_json() for entry in remote.names.entries()] == before
        assert json.dumps(before)
