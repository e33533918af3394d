"""Text becomes what the caller's tokeniser says, one entry a row, or an error that says what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.storage.loaders.text import TextTokenizer
from holdfast.storage.loaders.torch_dataset import TorchDataset


class Words:
    """Gives what Hugging Face tokenisers give when they are called with a list."""

    pad_token_id = 9
    pad_token_type_id = 3

    def __init__(self, padding_side: str = "right") -> None:
        self.padding_side = padding_side

    def __call__(self, texts: list[str]) -> dict[str, list[list[int]]]:
        assert isinstance(texts, list)
        ids = [[len(word) for word in text.split()] for text in texts]
        return {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "token_type_ids": [[0] * len(row) for row in ids],
            "labels": ids,
        }


def test_rows_are_padded_to_the_longest_of_their_batch():
    batch = TextTokenizer({"text": Words()})({"text": ["a bb ccc", "dddd"], "y": np.array([1, 2])})
    assert list(batch) == ["y", "input_ids", "attention_mask", "token_type_ids", "labels"]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [4, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0], [0, 3, 3]]
    assert batch["labels"].tolist() == [[1, 2, 3], [4, -100, -100]]


def test_padding_goes_where_the_tokeniser_wants_it():
    batch = TextTokenizer({"text": Words("left")})({"text": ["a bb ccc", "dddd"]})
    assert batch["input_ids"].tolist() == [[1, 2, 3], [9, 9, 4]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]


@given(st.lists(st.text("ab ", max_size=12), min_size=1, max_size=8), st.sampled_from(["left", "right"]))
def test_what_is_not_padding_is_what_the_tokeniser_gave(texts, side):
    batch = TextTokenizer({"text": Words(side)})({"text": texts})
    given_ids = Words()(texts)["input_ids"]
    rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
    assert [ids[mask.astype(bool)].tolist() for ids, mask in rows] == given_ids


def test_the_text_is_kept_when_asked():
    batch = TextTokenizer({"text": Words()}, keep_text=True)({"text": ["a", "b c"]})
    assert batch["text"] == ["a", "b c"]


def test_arrays_and_tensors_are_taken_as_they_are():
    def tokenize(texts: list[str]) -> dict[str, Any]:
        return {
            "a": np.zeros((len(texts), 4), np.int32),
            "b": torch.ones(len(texts), 2),
            "n": [1] * len(texts),
        }

    batch = TextTokenizer({"text": tokenize})({"text": np.array(["x", "y"], object)})
    assert batch["a"].dtype == np.int32
    assert (batch["b"].shape, batch["n"].tolist()) == ((2, 2), [1, 1])


def test_tokens_reach_training_as_tensors(store):
    dataset = store_dataset(store, pa.table({"text": ["a bb", "ccc", "d e f"], "y": [1, 2, 3]}))
    first, second = TorchDataset(dataset, batch_size=2, tokenize={"text": Words()})
    assert first["input_ids"].tolist() == [[1, 2], [3, 9]]
    assert first["input_ids"].dtype == torch.int64
    assert second["input_ids"].tolist() == [[1, 1, 1]]
    assert "text" not in first
    rows = list(TorchDataset(dataset, batch_size=None, tokenize={"text": Words()}))
    assert rows[1]["input_ids"].tolist() == [3]


@pytest.mark.parametrize(
    ("tokenize", "message"),
    [
        (lambda _: [1], "mapping"),
        (lambda _: {"ids": [[1]]}, "1 entries of 'ids' for 2 texts"),
        (lambda texts: {"y": [[1]] * len(texts)}, "'y'"),
        (lambda texts: {"ids": [["a"]] * len(texts)}, "no numbers"),
        (lambda _: {"ids": [[[1]], [[1, 2]]]}, "different shapes"),
    ],
)
def test_a_tokeniser_that_gives_something_else_is_told_so(tokenize, message):
    with pytest.raises(InvalidInput, match=message):
        TextTokenizer({"text": tokenize})({"text": ["a", "b"], "y": np.array([1, 2])})


@pytest.mark.parametrize("texts", [["a", None], np.array([1, 2]), [b"a"]])
def test_what_is_not_text_is_refused(texts):
    with pytest.raises(InvalidInput, match="column 'text'"):
        TextTokenizer({"text": Words()})({"text": texts})


def test_two_columns_must_not_give_the_same_name():
    with pytest.raises(InvalidInput, match="wrap it"):
        TextTokenizer({"a": Words(), "b": Words()})({"a": ["x"], "b": ["y"]})


def test_a_real_hugging_face_tokeniser_is_one(store):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra 'hf' is not installed")
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    model = tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3}, unk_token="[UNK]")
    raw = tokenizers.Tokenizer(model)
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    real = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    dataset = store_dataset(store, pa.table({"text": ["a b c", "b"]}))
    (batch,) = TorchDataset(dataset, tokenize={"text": real})
    assert batch["input_ids"].tolist() == [[2, 3, 1], [3, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
