from __future__ import annotations

import re
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.registry import DatasetManager, ModelRecord, RunRecord
from holdfast.registry.models.model_card import card_of, export_folder, read_card
from holdfast.registry.records import EnvironmentRecord

NASTY = 'a "quoted": name - with | pipes, `ticks`, <b>tags</b>, ünïcödé 🎈\n---\n# and lines'
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.fixture
def data(store, names):
    manager = DatasetManager(store, names)
    return manager.store_dataset({"train": pa.table({"x": [1.0, 2.0, 3.0]})}, name="digits, small").cid


@pytest.fixture
def model(store, data):
    files = store.add_files({"model.bin": b"weights", "config/a.json": b"{}"})
    code = store.add_files({"m.py": b"pass"})
    run = RunRecord(
        code=code,
        data=data,
        environment=EnvironmentRecord.of_this_process().store(store),
        config={"lr": 0.1, "note": NASTY},
        seed=7,
        workers=2,
        threads_per_worker=1,
        metrics={"accuracy": 0.5},
        history=(),
        outputs={"files": files},
    ).store(store)
    return ModelRecord(
        framework="pytorch",
        format="safetensors",
        files=files,
        run=run,
        data=(data,),
        inputs=({"name": "x", "dtype": "float32", "shape": [1, 8, 8]},),
        metrics={"accuracy": 0.5, "label": "good"},
        metadata={"pipeline_tag": "image-classification", "tags": ["digits"]},
        model_type="small cnn",
        licence="Apache-2.0",
    )


def card(store, names, record):
    return card_of(store, names, record.store(store))


def test_a_card_says_what_the_records_say_and_by_which_cids(store, names, registry, model, data):
    cid = model.store(store)
    registry.register("digits", cid, "1.2.0")
    text = card_of(store, names, cid)
    front = read_card(text)
    assert front == {
        "license": "apache-2.0",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["holdfast", "safetensors", "small cnn", "digits"],
        "datasets": [str(data)],
        "metrics": ["accuracy"],
        "model-index": [
            {
                "name": "digits:1.2.0",
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": "digits, small:1.0.0", "type": str(data), "revision": str(data)},
                        "metrics": [{"type": "accuracy", "name": "accuracy", "value": 0.5}],
                    }
                ],
            }
        ],
        "holdfast": {
            "model": str(cid),
            "files": str(model.files),
            "run": str(model.run),
            "data": [str(data)],
        },
    }
    for fact in (
        f"`{cid}`",
        f"`{model.files}`",
        f"`{model.run}`",
        f"`{data}`",
        "| Seed | 7 |",
        "| Workers | 2, with 1 thread each |",
        "train 3",
        "model.bin",
    ):
        assert fact in text
    assert f"holdfast verify {cid}\n" in text


def test_a_card_says_the_name_that_was_asked_for_and_of_a_cid_the_oldest(store, names, registry, model):
    cid = model.store(store)
    for name in ("m-first", "a-earlier-letter", "digits", "z-later-letter"):
        registry.register(name, cid)
    registry.set_alias("digits", "champion", "1.0.0")
    for ref, name in (("digits@champion", "digits"), ("z-later-letter", "z-later-letter"), (cid, "m-first")):
        text = card_of(store, names, ref)
        assert f"# {name}:1.0.0\n" in text
        assert read_card(text)["model-index"][0]["name"] == f"{name}:1.0.0"


def test_the_number_of_the_last_epoch_is_no_result(store, names, model):
    front = read_card(card(store, names, replace(model, metrics={"accuracy": 0.5, "epoch": 4, "step": 90})))
    assert front["metrics"] == ["accuracy"]
    assert [each["name"] for each in front["model-index"][0]["results"][0]["metrics"]] == ["accuracy"]


def test_what_nobody_recorded_is_not_in_the_card(store, names):
    bare = ModelRecord(framework="onnx", format="onnx", files=store.add_files({"model.onnx": b"x"}))
    text = card(store, names, bare)
    assert read_card(text).keys() == {"library_name", "tags", "holdfast"}
    for section in ("Metrics", "Data", "Run", "Inputs", "Metadata", "Licence"):
        assert section not in text


def test_no_result_is_claimed_on_a_dataset_that_is_not_known_to_be_the_measured_one(
    store, names, model, data
):
    other = DatasetManager(store, names).store_dataset(pa.table({"x": [4.0]}), name="other").cid
    assert "model-index" not in read_card(card(store, names, replace(model, run=None, data=(data, other))))
    assert "model-index" not in read_card(card(store, names, replace(model, run=None, data=())))
    assert "model-index" not in read_card(
        card(store, names, replace(model, metrics={"note": "fine", "ok": True}))
    )


def test_a_card_is_made_where_the_run_and_the_data_are_elsewhere(store, names, model):
    from holdfast.storage.cid import Cid

    far = [Cid.of(text, 0x71) for text in (b"run", b"data")]
    front = read_card(card(store, names, replace(model, run=far[0], data=(far[1],))))
    assert front["holdfast"]["run"] == str(far[0])
    assert front["datasets"] == [str(far[1])]


def test_a_given_card_wins_byte_for_byte(store, names, model, tmp_path):
    text = "\N{ZERO WIDTH NO-BREAK SPACE}---\r\nlicense: mit\r\n---\r\n# Mine\r\n\tno line end"
    record = replace(
        model, card=store.add_bytes(text.encode()), files=store.add_files({"README.md": b"theirs", "w": b"1"})
    )
    cid = record.store(store)
    assert card_of(store, names, cid) == text
    assert read_card(text) == {"license": "mit"}
    export_folder(store, names, cid, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_bytes() == text.encode()


def test_the_readme_of_a_folder_that_came_in_goes_out_as_it_was(store, names, model, tmp_path):
    files = {"README.md": b"\xff not unicode", "model.bin": b"weights"}
    cid = replace(model, files=store.add_files(files)).store(store)
    assert export_folder(store, names, cid, tmp_path / "out") == sum(map(len, files.values()))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == files
    assert store.add(tmp_path / "out") == replace(model, files=store.add_files(files)).files


def test_an_exported_folder_is_the_files_and_the_card(store, names, registry, model, tmp_path):
    registry.register("digits", model.store(store))
    written = export_folder(store, names, "digits", tmp_path / "out")
    files = {
        str(p.relative_to(tmp_path / "out")): p.read_bytes()
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert files.pop("README.md").decode() == card_of(store, names, registry.resolve("digits"))
    assert files == {"model.bin": b"weights", "config/a.json": b"{}"}
    assert written > sum(map(len, files.values()))
    assert [p.name for p in tmp_path.iterdir() if "part" in p.name] == []


def test_an_export_never_writes_over_something_or_leaves_half_a_folder(store, names, model, tmp_path):
    from holdfast.storage.cid import RAW, Cid

    cid = model.store(store)
    (tmp_path / "out").mkdir()
    with pytest.raises(Conflict):
        export_folder(store, names, cid, tmp_path / "out")
    with pytest.raises(NotFound):
        export_folder(store, names, "nobody", tmp_path / "new")
    lost = replace(model, card=Cid.of(b"nobody has this", RAW)).store(store)
    with pytest.raises(NotFound):
        export_folder(store, names, lost, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_readme_that_is_a_link_is_not_written_through(store, names, model, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").symlink_to(victim)
    cid = replace(model, files=store.add(tmp_path / "folder")).store(store)
    export_folder(store, names, cid, tmp_path / "out")
    assert victim.read_text() == "untouched"
    assert not (tmp_path / "out" / "README.md").is_symlink()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.tuples(TEXT, TEXT, TEXT, TEXT), value=st.floats(allow_nan=False, allow_infinity=False))
@example(words=(NASTY, NASTY, NASTY, NASTY), value=1e300)
@example(words=("---", "no", "2020-01-01", "```"), value=5.0)
@example(words=("\x85\u2028", "\ufeff", "1e3", "\x00"), value=1e16)
def test_no_name_can_break_out_of_its_place(store, names, model, words, value):
    kind, tag, metric, key = words
    kind = f"k{kind}"  # without any, its row would be missing
    record = replace(model, model_type=kind, metrics={metric: value}, metadata={"tags": [tag], key: kind})
    text = card(store, names, record)
    front = read_card(text)
    assert front["metrics"] == [metric]
    assert front["model-index"][0]["results"][0]["metrics"] == [
        {"type": metric, "name": metric, "value": value}
    ]
    assert front["tags"] == list(dict.fromkeys(t for t in ("holdfast", "safetensors", kind, tag) if t))
    plain = card(
        store, names, replace(model, model_type="k", metrics={"m": 1.0}, metadata={"tags": ["t"], "k": "k"})
    )
    body, expected = (each.split("\n---\n\n# ", 1)[1].split("\n") for each in (text, plain))

    def shape(lines):
        return [line for line in lines if line.startswith(("#", "```"))]

    def cells(lines):
        return sorted(len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|"))

    assert shape(body) == shape(expected)
    assert cells(body) == cells(expected)


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("MIT", {"license": "mit"}),
        ("GPL-3.0-only", {"license": "gpl-3.0"}),
        ("LicenseRef-Our Own", {"license": "other", "license_name": "licenseref-our-own"}),
        ("許可", {"license": "other"}),
        ("", {}),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_not_called_another(store, names, model, licence, fields):
    front = read_card(card(store, names, replace(model, licence=licence)))
    assert {key: value for key, value in front.items() if key.startswith("license")} == fields


@pytest.mark.parametrize(
    "text", ["---\n- a\n- b\n---\n", "---\nplain\n---\n", "---\na: [\n---\n", "---\na: 2020-99-99\n---"]
)
def test_broken_front_matter_is_an_error_and_not_an_empty_card(text):
    with pytest.raises(InvalidInput, match="front matter"):
        read_card(text)


@pytest.mark.parametrize("text", ["", "# Title\n---\na: 1\n---\n", "---\na: 1\n", "--- a: 1 ---\n"])
def test_a_card_without_front_matter_has_no_fields(text):
    assert read_card(text) == {}


def test_the_hub_s_own_library_reads_the_same_facts(store, names, model, data, tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="the extra hf is not installed")
    cid = replace(model, metadata={"tags": [NASTY]}, model_type=NASTY).store(store)
    export_folder(store, names, cid, tmp_path / "out")
    read = hub.ModelCard.load(tmp_path / "out" / "README.md")
    assert read.data.license == "apache-2.0"
    assert NASTY in read.data.tags
    assert read.data.datasets == [str(data)]
    (result,) = read.data.eval_results
    assert (result.metric_type, result.metric_value, result.dataset_revision) == ("accuracy", 0.5, str(data))
    assert read.data.to_dict() == read_card(read.content)
