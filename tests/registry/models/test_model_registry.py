"""Models by name: what you get is what was registered, or an error that says why not."""

from __future__ import annotations

import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound, Unsupported
from holdfast.registry import CodeRecord, ModelRecord, ModelRegistry, load_record, store_weights
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.training.examples.digits import DigitsCNN


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DigitsCNN(width=2, embedding_dim=3)


IMAGE = torch.arange(64.0).reshape(1, 1, 8, 8)


def same(first, second):
    with torch.no_grad():
        return torch.equal(first.eval()(IMAGE)[0], second.eval()(IMAGE)[0])


def test_a_registered_model_gives_the_same_answers_when_it_is_got(registry, model):
    entry = registry.register("digits", model, "1.0.0", aliases=["champion", "best"], metadata={"by": "me"})
    assert entry.aliases == ("best", "champion")
    for ref in ("digits", "digits:1.0.0", "digits@champion", str(entry.cid)):
        got = registry.get(ref)
        assert same(got, model)
        assert not got.training
        assert got.config == {"width": 2, "embedding_dim": 3}
    assert same(registry.get("digits", "1.0.0"), model)
    assert registry.record("digits@best").metadata == {"by": "me"}
    assert registry.resolve("digits") == entry.cid


def test_the_newest_version_and_the_alias_are_not_confused(registry, model):
    other = DigitsCNN(width=2, embedding_dim=3)
    first = registry.register("digits", model, aliases=["champion"])
    second = registry.register("digits", other)
    assert (first.version, second.version) == ("1.0.0", "1.1.0")
    assert registry.resolve("digits") == second.cid
    assert registry.resolve("digits@champion") == first.cid
    with pytest.raises(Conflict):
        registry.set_alias("digits", "champion", "1.1.0", expected="1.1.0")
    registry.set_alias("digits", "champion", "1.1.0", expected="1.0.0")
    assert registry.resolve("digits@champion") == second.cid
    assert [entry.version for entry in registry.entries()] == ["1.0.0", "1.1.0"]


def test_the_same_model_is_stored_once_and_named_once(registry, model):
    first = registry.register("digits", model)
    assert registry.register("digits", model) == first
    assert registry.register("digits", first.cid) == first
    assert registry.register("digits", str(first.cid)) == first
    with pytest.raises(Conflict):
        registry.register("digits", DigitsCNN(width=3), "1.0.0")


def test_registering_does_not_change_the_model(registry, model):
    model.train()
    registry.register("digits", model)
    assert model.training


def test_a_model_got_elsewhere_is_the_same(tmp_path, registry, model):
    cid = registry.register("digits", model).cid
    program = (
        "import sys, torch\n"
        "from holdfast.registry import ModelRegistry, open_registry\n"
        "store, names = open_registry(sys.argv[1])\n"
        "model = ModelRegistry(store, names).get('digits')\n"
        "print(model(torch.arange(64.0).reshape(1, 1, 8, 8))[0].sum().item())\n"
        "store.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "home")], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == float(registry.load(cid)(IMAGE)[0].sum().item())


def test_a_model_is_brought_to_where_the_names_are_before_it_is_named(store, names, model):
    published: list[Cid] = []

    def publish(cid: Cid) -> None:
        assert names.entries() == []
        published.append(cid)

    entry = ModelRegistry(store, names, publish=publish).register("digits", model)
    assert published == [entry.cid]


def test_a_model_that_could_not_be_published_is_not_named(store, names, model):
    def publish(_: Cid) -> None:
        raise NotFound("the master is gone")

    with pytest.raises(NotFound, match="the master is gone"):
        ModelRegistry(store, names, publish=publish).register("digits", model)
    assert names.entries() == []


# --------------------------------------------------------------------------------------------- what is no model


def test_what_is_no_model_gets_no_model_s_name(registry, store, names):
    data, record = store.add_bytes(b"x"), store.put_record({"kind": "dataset"})
    for cid in (data, record, str(record)):
        with pytest.raises(InvalidInput):
            registry.register("digits", cid)
    with pytest.raises(NotFound):
        registry.register("digits", Cid.of(b"nobody has it", 0x71))
    for value in (5, None, object(), {"a": 1}, DigitsCNN):
        with pytest.raises(Unsupported, match="is no model that can be stored"):
            registry.register("digits", value)
    with pytest.raises(InvalidInput):
        registry.register("digits", "no-cid")
    assert names.entries() == []


def test_a_bad_name_or_alias_is_refused_before_anything_is_done(registry, names, model):
    for arguments in ({"aliases": ["good", "not good"]}, {"aliases": "champion"}, {"aliases": [""]}):
        with pytest.raises(InvalidInput):
            registry.register("digits", model, **arguments)
    with pytest.raises(InvalidInput):
        registry.register("dig its", model)
    assert names.entries() == []


def test_metadata_can_not_be_slipped_into_a_stored_manifest(registry, model):
    cid = registry.register("digits", model).cid
    with pytest.raises(InvalidInput, match="metadata"):
        registry.register("other", cid, metadata={"a": 1})


def test_a_model_that_could_not_be_loaded_again_is_not_stored(registry, names):
    for model in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))):
        with pytest.raises(InvalidInput, match="config"):
            registry.register("net", model)
    assert names.entries() == []


def test_a_model_can_not_be_made_from_what_is_no_run_model_or_dataset(registry, store, names):
    weights = {"w": torch.ones(1)}
    model, nowhere = registry.store_model(weights), Cid.of(b"nobody has it", 0x71)
    data = store_dataset(store, {"x": np.arange(3.0)}).cid
    for about in (
        {"run": model},
        {"data": [model]},
        {"data": [data, model]},
        {"metadata": {"dataset_cid": str(model)}},
        {"parent": data},
    ):
        with pytest.raises(InvalidInput):
            registry.register("net", weights, **about)
    for about in ({"run": nowhere}, {"data": [nowhere]}, {"parent": str(nowhere)}):
        with pytest.raises(NotFound):
            registry.register("net", weights, **about)
    assert names.entries() == []
    assert registry.record(str(registry.store_model(weights, data=[data], parent=model))).data == (data,)


def test_metadata_can_not_pass_for_facts(registry):
    cid = registry.store_model(
        {"w": torch.ones(1)},
        metadata={"framework": "x", "metrics": {"a": 1}, "by": "me"},
        metrics={"loss": 0.5},
    )
    _, known = registry.load_model(cid)
    assert known == {"framework": "pytorch", "model_type": "", "metrics": {"loss": 0.5}, "by": "me"}


def test_arguments_of_another_type_are_told_and_not_tripped_over(registry, names):
    weights = {"w": torch.ones(1)}
    cid = registry.register("net", weights).cid
    for call in (
        lambda: registry.register("other", weights, 1),
        lambda: registry.store_model(weights, card=b"text"),
        lambda: registry.store_model(weights, card="\ud800"),
        lambda: registry.load("text"),
        lambda: registry.load(cid, trusted_types="abc"),
        lambda: names.resolve("model", None),
        *(lambda when=when: names.at(when) for when in ("2020-01-01", None, date(2020, 1, 1), float("nan"))),
    ):
        with pytest.raises(InvalidInput):
            call()
    assert torch.equal(registry.load(str(cid))["w"], weights["w"])


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5)])
def test_a_metric_may_be_a_library_s_number(registry, value):
    cid = registry.store_model({"w": torch.ones(1)}, metrics={"accuracy": value, "rows": np.int64(3)})
    assert registry.record(str(cid)).metrics == {"accuracy": 0.5, "rows": 3}


def test_missing_names_and_blocks_are_not_found(registry, store):
    with pytest.raises(NotFound, match="no model named 'digits'"):
        registry.get("digits")
    manifest = ModelRecord(
        framework="pytorch", format="safetensors", code=Cid.of(b"?", 0x71), files=Cid.of(b"!")
    )
    with pytest.raises(NotFound):
        registry.load(manifest.store(store))


# ------------------------------------------------------------------------------------------- a stranger's model


def stranger(store, source, entry, config=None, weights=None):
    """The CID of a model that somebody else made by hand."""
    path = entry.partition(":")[0].replace(".", "/") + ".py"
    code = CodeRecord(files=store.add_files({path: source}), entry=entry).store(store)
    stored = weights if weights is not None else store_weights(store, nn.ReLU())
    files = store.add_files({"model.safetensors": stored})
    return ModelRecord(
        framework="pytorch", format="safetensors", code=code, config=config or {}, files=files
    ).store(store)


def test_a_stranger_s_model_can_not_call_an_installed_function(registry, store, tmp_path):
    """The source is installed here, byte for byte, so it passes for known; calling it would run the arguments."""
    source = Path(subprocess.__file__).read_bytes()
    touched = tmp_path / "touched"
    for entry, config in (
        ("subprocess:Popen", {"args": ["touch", str(touched)]}),
        ("subprocess:check_output", {"args": ["touch", str(touched)]}),
        ("subprocess:os", {}),
    ):
        cid = stranger(store, source, entry, config)
        for trust in (False, True):
            with pytest.raises(InvalidInput, match="not the class of a torch module"):
                registry.load(cid, trust_code=trust)
    assert not touched.exists()


def test_a_stranger_s_code_does_not_run_unless_it_is_trusted(registry, store, tmp_path):
    ran = tmp_path / "ran"
    source = (
        f"open({str(ran)!r}, 'w').close()\nfrom torch import nn\nclass Net(nn.ReLU):\n    pass\n".encode()
    )
    cid = stranger(store, source, "unknown_net:Net")
    with pytest.raises(Denied, match="trust_code=True"):
        registry.load(cid)
    assert not ran.exists()
    assert type(registry.load(cid, trust_code=True)).__name__ == "Net"


def test_pickled_weights_are_refused_and_not_opened(registry, store, tmp_path):
    import io
    import pickle

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "opened"), "w")

    file = io.BytesIO()
    torch.save({"weight": Evil()}, file)
    source = b"from torch import nn\nclass Net(nn.ReLU):\n    pass\n"
    for data in (pickle.dumps(Evil()), file.getvalue()):
        cid = stranger(store, source, "pickled_net:Net", weights=data)
        with pytest.raises(Corrupt, match="not a safetensors file"):
            registry.load(cid, trust_code=True)
    assert not (tmp_path / "opened").exists()


def test_a_manifest_with_nonsense_in_it_is_corrupt(registry, store, model):
    body = load_record(store, registry.register("digits", model).cid, ModelRecord).to_record()
    for change in ({"files": 5}, {"config": [1]}, {"code": "text"}, {"inputs": "abc"}, {"data": ["x"]}):
        with pytest.raises(Corrupt):
            registry.load(store.put_record(body | change))


# --------------------------------------------------------------------------------------------------- looking for them


def test_models_are_found_by_what_their_manifests_say(registry, store):
    data = [store_dataset(store, {"x": np.arange(float(n))}).cid for n in (3, 4)]
    for number, accuracy in enumerate((0.5, 0.9, 0.95)):
        registry.register(
            f"net-{number}",
            {"w": torch.full((1,), float(number))},
            metrics={"accuracy": accuracy},
            metadata={"dataset_cid": str(data[number % 2])},
            licence="MIT" if number else "",
        )
    registry.set_tag("net-1", "1.0.0", "stage", "prod")

    def found(name=None, **conditions):
        return [entry.name for entry in registry.search(name, **conditions)]

    assert found(metric={"accuracy": (">", 0.8)}) == ["net-1", "net-2"]
    assert found(dataset=data[0]) == ["net-0", "net-2"]
    assert found(tag={"stage": "prod"}) == ["net-1"]
    assert found("net-[12]", fact={"licence": "MIT"}, dataset=data[1]) == ["net-1"]
    assert found(fact={"framework": "pytorch"}) == ["net-0", "net-1", "net-2"]
    assert found("digits*") == []


def test_a_model_is_renamed_and_removed_with_its_history(registry, model):
    entry = registry.register("digits", model, aliases=["champion"])
    registry.rename("digits", "numbers")
    assert registry.resolve("numbers@champion") == entry.cid
    with pytest.raises(NotFound, match="numbers"):
        registry.get("digits")
    registry.delete("numbers")
    with pytest.raises(NotFound):
        registry.get("numbers")
    assert registry.history("numbers")[0].change["op"] == "unregister"


def test_a_parent_is_given_by_name_and_a_card_is_kept(registry):
    first = registry.register("net", {"w": torch.zeros(1)}).cid
    registry.register("net", {"w": torch.ones(1)}, parent="net:1.0.0", card="# A net\n")
    assert registry.record("net").parent == first
    assert (registry.card("net"), registry.card("net:1.0.0")) == ("# A net\n", None)


def test_the_files_of_a_model_come_out_as_they_were(registry, tmp_path):
    from safetensors.torch import save_file

    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(3), "b": torch.zeros(2, 2)}, file)
    registry.register("net", file)
    assert registry.save_files("net", tmp_path / "out") == file.stat().st_size
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == file.read_bytes()
    assert torch.equal(registry.get("net")["a"], torch.arange(3))
