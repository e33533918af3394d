"""transformers: folders in and out byte by byte, models in their own types, and no code of a folder that runs."""

from __future__ import annotations

import json

import pytest

from holdfast.errors import Corrupt, Denied, InvalidInput, Unsupported
from holdfast.registry import ModelRecord, load_record
from tests.registry.models.conformance import FormatConformance


class TestTransformersModels(FormatConformance):
    framework, format, file = "transformers", "folder", "model.safetensors"
    packages, extra = ("transformers",), "hf"
    program = """
        import torch

        def make():
            from transformers import BertConfig, BertForSequenceClassification
            torch.manual_seed(0)
            sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
            return BertForSequenceClassification(BertConfig(vocab_size=40, **sizes)).to(torch.bfloat16).eval()

        def outputs(model):
            assert model.dtype == torch.bfloat16
            with torch.no_grad():
                return [model(torch.tensor([[2, 5, 6, 3]])).logits.float().numpy()]
    """


@pytest.fixture
def folder(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    made = tmp_path / "bert"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(vocab_size=40, **sizes)).save_pretrained(made)
    (made / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld")
    transformers.BertTokenizerFast.from_pretrained(made).save_pretrained(made)
    (made / "notes").mkdir()
    (made / "notes" / "README.md").write_text("kept")
    return made


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_out_as_it_went_in_with_its_tokenizer(registry, folder, tmp_path):
    from transformers import AutoTokenizer, BertModel

    cid = registry.store_model(folder)
    registry.save_files(cid, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(folder)
    again = AutoTokenizer.from_pretrained(tmp_path / "out")("hello world")["input_ids"]
    assert again == AutoTokenizer.from_pretrained(folder)("hello world")["input_ids"]
    assert type(registry.load(cid)) is BertModel


def test_a_folder_of_links_as_the_hub_keeps_them_is_stored_whole(registry, folder, tmp_path):
    linked = tmp_path / "snapshot"
    for name, data in files_of(folder).items():
        blob = tmp_path / "blobs" / name.replace("/", "_")
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(data)
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(blob)
    one, other = (
        load_record(registry._store, registry.store_model(each), ModelRecord) for each in (folder, linked)
    )
    assert one.files == other.files


def test_folders_that_are_links_are_stored_and_links_to_nothing_are_told(registry, folder, tmp_path):
    (folder / "notes").rename(tmp_path / "elsewhere")
    (folder / "notes").symlink_to(tmp_path / "elsewhere")
    registry.save_files(registry.store_model(folder), tmp_path / "out")
    assert (tmp_path / "out" / "notes" / "README.md").read_text() == "kept"
    (folder / "notes" / "around").symlink_to(folder)
    with pytest.raises(InvalidInput, match="around is a link to a folder around it"):
        registry.store_model(folder)
    (folder / "notes" / "around").unlink()
    (folder / "gone.txt").symlink_to(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match=r"gone\.txt is a link that leads to no file"):
        registry.store_model(folder)


@pytest.mark.parametrize("said", ["float32", "bfloat16"])
def test_each_weight_has_the_type_that_it_was_stored_in(registry, folder, said):
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder)
    model.encoder.to(torch.bfloat16)
    model.embeddings.word_embeddings.weight.data += 2**-20  # bfloat16 has no such value
    model.save_pretrained(folder)
    again = registry.load(changed(registry, folder, dtype=said, torch_dtype=said))
    assert {name: (value.dtype, value.tolist()) for name, value in again.state_dict().items()} == {
        name: (value.dtype, value.tolist()) for name, value in model.state_dict().items()
    }


def test_a_class_that_transformers_does_not_have_is_refused(registry, folder):
    from transformers import BertModel

    class Mine(BertModel):
        pass

    with pytest.raises(InvalidInput, match="Mine is no class of transformers"):
        registry.store_model(Mine.from_pretrained(folder))


def test_a_package_that_the_config_asks_for_is_named(registry, folder):
    cid = changed(
        registry, folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )
    with pytest.raises(Unsupported, match="bitsandbytes"):
        registry.load(cid)


def changed(registry, folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    return registry.store_model(folder)


def test_code_in_a_folder_or_on_the_hub_does_not_run(registry, folder, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'touched')!r}, 'w')")
    for values in ({"auto_map": {"AutoModel": "evil.Net"}}, {"_attn_implementation": "somebody/kernel"}):
        with pytest.raises(Denied, match="trust_code=True"):
            registry.load(changed(registry, folder, **values))
    assert not (tmp_path / "touched").exists()


def test_a_class_that_is_no_model_is_not_called(registry, folder):
    for name in ("pipeline", "AutoTokenizer", "Trainer", "os", 5):
        with pytest.raises(InvalidInput, match="does not have"):
            registry.load(changed(registry, folder, architectures=[name]))


def test_weights_that_are_missing_are_not_made_up(registry, folder):
    cid = changed(registry, folder, num_hidden_layers=2)
    with pytest.raises(Corrupt, match="they lack"):
        registry.load(cid)


def test_pickled_weights_are_not_opened(registry, folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidInput, match="no weights"):
        registry.load(registry.store_model(folder))
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(Denied, match="pickled"):
        registry.load(registry.store_model(folder))
