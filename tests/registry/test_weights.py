"""Weights: exact, repeatable, and never a program."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry import load_weights, weights_to_bytes
from holdfast.registry.weights import constructor_config

DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
]


class Holder(nn.Module):
    """A module whose state is the given tensors."""

    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


@st.composite
def tensors(draw):
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensor = torch.randint(0, 2 if dtype is torch.bool else 100, shape, generator=generator).to(dtype)
    if draw(st.booleans()):
        tensor = tensor.transpose(0, -1) if tensor.ndim > 1 else tensor[::2] if tensor.ndim else tensor
    return tensor


def named(values):
    return {f"t{index}": value for index, value in enumerate(values)}


@settings(max_examples=60, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=5))
def test_no_value_shape_or_type_is_lost(values):
    data = weights_to_bytes(Holder(named(values)))
    again = Holder(
        {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in named(values).items()}
    )
    load_weights(again, data)
    for name, value in named(values).items():
        loaded = again.state_dict()[name]
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value)
    assert weights_to_bytes(again) == data


@settings(max_examples=30, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_equal_tensors_have_equal_bytes_whatever_their_order_or_layout(values, shuffler):
    pairs = list(named(values).items())
    shuffler.shuffle(pairs)
    other = Holder(
        OrderedDict((name, value.clone(memory_format=torch.contiguous_format)) for name, value in pairs)
    )
    assert weights_to_bytes(Holder(named(values))) == weights_to_bytes(other)


def test_special_values_are_kept_bit_by_bit():
    bits = torch.tensor([0, -(2**31), 0x7F800000, 0x7FC00001, 1], dtype=torch.int64).to(torch.int32)
    values = bits.view(torch.float32)
    again = Holder({"v": torch.zeros(5)})
    load_weights(again, weights_to_bytes(Holder({"v": values})))
    assert torch.equal(again.state_dict()["v"].view(torch.int32), bits)


def test_weights_are_not_rounded_to_the_type_that_the_class_starts_with():
    model = nn.Linear(2, 2).double()
    again = nn.Linear(2, 2)
    load_weights(again, weights_to_bytes(model))
    assert again.weight.dtype == torch.float64
    assert torch.equal(again.weight, model.weight)


def test_loaded_weights_can_be_trained_further_and_do_not_reach_into_the_bytes():
    data = weights_to_bytes(nn.Linear(2, 2))
    model = nn.Linear(2, 2)
    load_weights(model, memoryview(data).toreadonly())
    before = bytes(data)
    model(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.add_(torch.ones_like(parameter))
    assert data == before


def test_frozen_parameters_stay_frozen():
    model = nn.Linear(2, 2)
    model.weight.requires_grad = False
    load_weights(model, weights_to_bytes(nn.Linear(2, 2)))
    assert not model.weight.requires_grad


@pytest.mark.parametrize(
    "other", [nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Conv1d(2, 2, 1), nn.ReLU()]
)
def test_the_weights_of_another_class_are_refused(other):
    with pytest.raises(InvalidInput, match="do not fit Linear"):
        load_weights(nn.Linear(2, 2), weights_to_bytes(other))


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save(nn.Linear(2, 2).state_dict(), file)
    return file.getvalue()


GOOD = weights_to_bytes(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\x80\x04.",
        pickle.dumps({"weight": 1}),
        torch_file(),
        GOOD[:-1],
        GOOD[:20],
        GOOD + b"x",
        GOOD.replace(b"F32", b"F99"),
        GOOD.replace(b"weight", b"bias\xff\xff"),
        b"\xff" * 8 + GOOD[8:],
    ],
)
def test_anything_but_safetensors_is_corrupt(data):
    with pytest.raises(Corrupt, match="not a safetensors file"):
        load_weights(nn.Linear(2, 2), data)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_get_past_the_two_errors(data):
    with pytest.raises((Corrupt, InvalidInput)):
        load_weights(nn.Linear(2, 2), data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_wrong_byte_in_the_header_never_crashes(at, flip):
    data = bytearray(GOOD)
    data[at] ^= flip
    try:
        load_weights(nn.Linear(2, 2), bytes(data))
    except (Corrupt, InvalidInput):
        return
    assert at >= 8, "the header's length was wrong, and nobody noticed"


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.b.weight = self.a.weight


class Extra(nn.Module):
    def get_extra_state(self):
        return {"anything": object()}

    def set_extra_state(self, state):
        del state


@pytest.mark.parametrize(
    "model",
    [Tied(), Extra(), Holder({"s": torch.eye(3).to_sparse()}), nn.LazyLinear(3)],
    ids=lambda m: type(m).__name__,
)
def test_a_state_that_can_not_be_kept_exactly_is_refused(model):
    with pytest.raises(InvalidInput, match=f"weights of {type(model).__name__} can't be stored"):
        weights_to_bytes(model)


class Configured(nn.Module):
    def __init__(self, *, width, depth=1):
        super().__init__()
        self.config = {"width": width, "depth": depth}


class Forgetful(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.width = width


def test_a_model_that_could_never_be_made_again_is_refused():
    assert constructor_config(Configured(width=3)) == {"width": 3, "depth": 1}
    assert constructor_config(nn.ReLU()) == {}
    for model in (Forgetful(3), nn.Linear(2, 2)):
        with pytest.raises(InvalidInput, match="'config'"):
            constructor_config(model)
    wrong = Configured(width=3)
    wrong.config = ["width"]  # type: ignore[assignment]
    with pytest.raises(InvalidInput, match="'config'"):
        constructor_config(wrong)
