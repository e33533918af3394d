"""Torch modules: exact weights, ties that are kept, and never a program."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as library_load
from safetensors.torch import save as library_save
from torch import nn

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry import ModelRecord, load_record, load_weights, store_weights
from holdfast.registry.models.made_again import constructor_config
from holdfast.registry.models.safetensors_files import StoredTensors
from holdfast.registry.models.torch_modules import read_tensors, store_state
from tests.registry.models.conformance import FormatConformance, assert_equal


class TestTorchModules(FormatConformance):
    framework, format, file = "pytorch", "safetensors", "model.safetensors"
    program = """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.config = {"width": width}
                self.embed = nn.Embedding(8, width)
                self.norm = nn.BatchNorm1d(width)
                self.out = nn.Linear(width, 8, bias=False)
                self.out.weight = self.embed.weight

            def forward(self, x):
                return self.out(self.norm(self.embed(x).mean(1)))

        def make():
            torch.manual_seed(0)
            return Net(4).eval()

        def outputs(model):
            with torch.no_grad():
                return [model(torch.arange(8).reshape(2, 4)).numpy()]
    """


class TestStateDicts(FormatConformance):
    framework, format, file = "pytorch", "state-dict", "model.safetensors"
    program = """
        import torch

        def make():
            return {"w": torch.arange(6.0).reshape(2, 3).bfloat16(), "b": torch.ones(3, dtype=torch.int64), "": torch.zeros(())}

        def outputs(state):
            assert state["w"].dtype == torch.bfloat16
            return [state["w"].float().numpy(), state["b"].numpy(), state[""].numpy()]
    """


class TestOnnxModels(FormatConformance):
    framework, format, file = "onnx", "onnx", "model.onnx"
    program = """
        import numpy as np
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        def make():
            weights = numpy_helper.from_array(np.arange(6, dtype="float32").reshape(3, 2), "w")
            x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
            y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
            graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weights])
            return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

        def outputs(model):
            import onnxruntime
            session = onnxruntime.InferenceSession(model.SerializeToString())
            return session.run(None, {"x": np.ones((2, 3), "float32")})
    """


class TestExportedPrograms(FormatConformance):
    framework, format, file = "pytorch", "exported-program", "model.pt2"
    trust = {"allow_pickle": True}  # noqa: RUF012 -- a ClassVar in the base
    program = """
        import torch
        from torch import nn

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.out = nn.Linear(4, 3)
                self.register_buffer("scale", torch.arange(3.0))

            def forward(self, x):
                return torch.cond(x.sum() > 0, lambda x: self.out(x) * self.scale, lambda x: self.out(-x), (x,))

        def make():
            torch.manual_seed(0)
            batch = torch.export.Dim("batch", min=1, max=64)
            return torch.export.export(Net().eval(), (torch.ones(2, 4),), dynamic_shapes=({0: batch},))

        def outputs(program):
            model = program.module()
            with torch.no_grad():
                return [model(sign * torch.arange(20.0).reshape(5, 4)).numpy() for sign in (1, -1)]
    """

    def test_it_says_what_it_takes_and_not_where_it_was_made(self, registry, store, program_file):
        program = program_file.make()
        entry = registry.register("program", program)
        record = registry.record("program")
        assert [dict(each) for each in record.inputs] == [{"name": "x", "dtype": "float32", "shape": [4]}]
        data = bytes(store.open(store.resolve(f"{record.files}/{self.file}")))
        assert b"models_of_this_test.py" not in data
        assert any(
            "models_of_this_test.py" in node.meta.get("stack_trace", "") for node in program.graph.nodes
        )
        assert registry.store_model(program) == entry.cid

    def test_a_file_of_one_is_kept_as_it_is(self, registry, signatures, program_file, tmp_path):
        program = program_file.make()
        torch.export.save(program, tmp_path / "program.pt2")
        cid = registry.store_model(tmp_path / "program.pt2")
        registry.save_files(cid, tmp_path / "out")
        assert (tmp_path / "out" / self.file).read_bytes() == (tmp_path / "program.pt2").read_bytes()
        signatures.sign(cid)
        assert_equal(
            program_file.outputs(registry.load(cid, allow_pickle=True)), program_file.outputs(program)
        )
        (tmp_path / "text.pt2").write_text("no program")
        with pytest.raises(InvalidInput, match="is no exported program"):
            registry.store_model(tmp_path / "text.pt2")

    @pytest.mark.parametrize("part", [0, 1, 2, 3])
    def test_what_a_trusted_hand_has_signed_and_is_no_program_is_corrupt(
        self, registry, store, signatures, program_file, part
    ):
        record = load_record(store, self.stored(registry, program_file), ModelRecord)
        good = bytes(store.open(store.resolve(f"{record.files}/{self.file}")))
        cid = self.with_file(store, record, good[: len(good) * part // 4])
        signatures.sign(cid)
        with pytest.raises(Corrupt, match="can't be opened"):
            registry.load(cid, allow_pickle=True)


class TestPickledModels(FormatConformance):
    framework, format, file = "pickle", "pickle", "model.pkl"
    about = {"framework": "pickle"}  # noqa: RUF012 -- a ClassVar in the base
    trust = {"allow_pickle": True}  # noqa: RUF012
    program = """
        import numpy as np

        class Doubling:
            def __init__(self, factor):
                self.factor = factor

        def make():
            return Doubling(2)

        def outputs(model):
            return [np.arange(3) * model.factor]
    """


DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.uint16,
    torch.int32,
    torch.uint32,
    torch.int64,
    torch.uint64,
    torch.bool,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
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


def file_of(store, cid):
    return bytes(store.open(cid))


def bits(tensor):
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


each_example = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@each_example
@given(values=st.lists(tensors(), min_size=1, max_size=5))
def test_the_file_is_the_one_that_the_safetensors_library_writes(store, values):
    cid = store_state(store, named(values), what="these")
    expected = {name: value.contiguous() for name, value in named(values).items()}
    assert file_of(store, cid) == library_save(expected)


@each_example
@given(values=st.lists(tensors(), min_size=1, max_size=5))
def test_no_value_shape_or_type_is_lost(store, values):
    cid = store_weights(store, Holder(named(values)))
    again = Holder(
        {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in named(values).items()}
    )
    load_weights(again, store, cid)
    for name, value in named(values).items():
        for loaded in (again.state_dict()[name], read_tensors(StoredTensors(store, cid))[name]):
            assert (loaded.dtype, loaded.shape) == (value.dtype, value.shape)
            assert torch.equal(bits(loaded), bits(value))
    assert store_weights(store, again) == cid


@each_example
@given(values=st.lists(tensors(), min_size=1, max_size=5), shuffler=st.randoms(use_true_random=False))
def test_equal_tensors_have_equal_bytes_whatever_their_order_or_layout(store, values, shuffler):
    pairs = list(named(values).items())
    shuffler.shuffle(pairs)
    other = {name: value.clone(memory_format=torch.contiguous_format) for name, value in pairs}
    assert store_state(store, named(values), what="these") == store_state(store, other, what="these")


def test_special_values_are_kept_bit_by_bit(store):
    special = torch.tensor([0, -(2**31), 0x7F800000, 0x7FC00001, 1], dtype=torch.int64).to(torch.int32)
    again = Holder({"v": torch.zeros(5)})
    load_weights(again, store, store_weights(store, Holder({"v": special.view(torch.float32)})))
    assert torch.equal(again.state_dict()["v"].view(torch.int32), special)


def test_weights_are_not_rounded_to_the_type_that_the_class_starts_with(store):
    model, again = nn.Linear(2, 2).double(), nn.Linear(2, 2)
    load_weights(again, store, store_weights(store, model))
    assert again.weight.dtype == torch.float64
    assert torch.equal(again.weight, model.weight)


def test_loaded_weights_can_be_trained_further_and_do_not_reach_into_the_store(store):
    cid = store_weights(store, nn.Linear(2, 2))
    before, model = file_of(store, cid), nn.Linear(2, 2)
    load_weights(model, store, cid)
    model(torch.ones(1, 2)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.requires_grad
            parameter.add_(torch.ones_like(parameter))
    assert file_of(store, cid) == before


def test_frozen_parameters_stay_frozen(store):
    model = nn.Linear(2, 2)
    model.weight.requires_grad = False
    load_weights(model, store, store_weights(store, nn.Linear(2, 2)))
    assert not model.weight.requires_grad


@pytest.mark.parametrize(
    "other", [nn.Linear(2, 3), nn.Linear(2, 2, bias=False), nn.Conv1d(2, 2, 1), nn.ReLU()], ids=str
)
def test_the_weights_of_another_class_are_refused_and_change_nothing(store, other):
    model = nn.Linear(2, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidInput, match="do not fit Linear"):
        load_weights(model, store, store_weights(store, other))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------ what is tied


class Tied(nn.Module):
    def __init__(self, tied=True):  # noqa: FBT002 -- a test's own
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        if tied:
            self.b.weight = self.a.weight


def test_tied_weights_are_stored_once_and_are_tied_again(store):
    model, again = Tied(), Tied()
    cid = store_weights(store, model)
    stored = StoredTensors(store, cid)
    assert list(stored) == ["a.weight"]
    assert stored.metadata == {"b.weight": "a.weight"}  # as the library's save_model writes it
    assert list(library_load(file_of(store, cid))) == ["a.weight"]
    load_weights(again, store, cid)
    assert torch.equal(again.a.weight, model.a.weight)
    assert again.b.weight is again.a.weight
    read = read_tensors(stored)
    assert read["b.weight"] is read["a.weight"]


def test_weights_that_only_the_constructor_ties_come_apart(store):
    apart, again = Tied(tied=False), Tied()
    load_weights(again, store, store_weights(store, apart))
    assert torch.equal(again.a.weight, apart.a.weight)
    assert torch.equal(again.b.weight, apart.b.weight)


def test_weights_that_only_the_file_ties_fill_both(store):
    tied, again = Tied(), Tied(tied=False)
    load_weights(again, store, store_weights(store, tied))
    assert torch.equal(again.a.weight, tied.a.weight)
    assert torch.equal(again.b.weight, tied.a.weight)


def test_views_that_overlap_are_each_kept_whole(store):
    base = torch.arange(10.0)
    state = {"head": base[:6], "tail": base[4:], "all": base, "odd": base[1::2]}
    read = read_tensors(StoredTensors(store, store_state(store, state, what="these")))
    assert all(torch.equal(read[name], value) for name, value in state.items())


class Overlapping(nn.Module):
    def __init__(self):
        super().__init__()
        whole = torch.arange(12.0)
        self.a, self.b = nn.Buffer(whole), nn.Buffer(whole[2:6])


def test_buffers_that_overlap_in_the_constructor_only_come_apart(store):
    apart, again = Overlapping(), Overlapping()
    apart.double().float()  # which takes views apart
    apart.b.zero_()
    load_weights(again, store, store_weights(store, apart))
    assert torch.equal(again.a, torch.arange(12.0))
    assert torch.equal(again.b, torch.zeros(4))


class Computed(nn.Module):
    """Its state is not its memory."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))

    def state_dict(self, *args, **kwargs):
        return {name: value * 2 for name, value in super().state_dict(*args, **kwargs).items()}

    def load_state_dict(self, state_dict, strict=True, assign=False):  # noqa: FBT002 -- torch's signature
        return super().load_state_dict(
            {k: v / 2 for k, v in state_dict.items()}, strict=strict, assign=assign
        )


def test_a_state_that_is_computed_is_loaded_by_its_module(store):
    model, again = Computed(), Computed()
    with torch.no_grad():
        model.w.copy_(torch.tensor([1.0, 2.0, 3.0]))
    load_weights(again, store, store_weights(store, model))
    assert torch.equal(again.w, model.w)


class Extra(nn.Module):
    def get_extra_state(self):
        return {"anything": object()}

    def set_extra_state(self, state):
        del state


@pytest.mark.parametrize(
    "model",
    [Extra(), Holder({"s": torch.eye(3).to_sparse()}), nn.LazyLinear(3), nn.Linear(2, 2, device="meta")],
    ids=lambda m: type(m).__name__,
)
def test_a_state_that_can_not_be_kept_exactly_is_refused(store, model):
    with pytest.raises(InvalidInput, match=f"the state of {type(model).__name__} can't be stored"):
        store_weights(store, model)


def test_texts_of_other_programs_in_the_header_tie_nothing(store):
    data = library_save({"pt": torch.ones(2)}, metadata={"format": "pt"})
    assert list(read_tensors(StoredTensors(store, store.add_bytes(data)))) == ["pt"]


# --------------------------------------------------------------------------------------------- what is no file


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[0,99999999999999999999],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}',
        '{"a":{"dtype":"U8","shape":[1.9],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":["1"],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":"1","data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[true],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[false,true]}}',
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
    ],
)
def test_a_header_that_could_be_read_in_two_ways_or_not_at_all_is_corrupt(store, header):
    data = len(header).to_bytes(8, "little") + header.encode() + b"\1" * ("[0,0]" not in header)
    with pytest.raises(Corrupt, match="is not a safetensors file"):
        StoredTensors(store, store.add_bytes(data))


def test_a_name_that_utf_8_does_not_have_is_refused(store):
    with pytest.raises(InvalidInput, match="UTF-8"):
        store_state(store, {"\ud800": torch.ones(1)}, what="these")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_random_bytes_never_get_past_the_two_errors(store, data):
    with pytest.raises((Corrupt, InvalidInput)):
        load_weights(nn.Linear(2, 2), store, store.add_bytes(data, pin=False))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 150), flip=st.integers(1, 255))
def test_a_wrong_byte_in_the_header_never_crashes(store, at, flip):
    data = bytearray(file_of(store, store_weights(store, nn.Linear(2, 2))))
    data[at] ^= flip
    try:
        load_weights(nn.Linear(2, 2), store, store.add_bytes(bytes(data), pin=False))
    except (Corrupt, InvalidInput):
        return
    assert at >= 8, "the header's length was wrong, and nobody noticed"


# ---------------------------------------------------------------------------------------------- being made again


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


# ---------------------------------------------------------------------------- being the same when it is made again


CLASSES = """
    import functools
    import random

    import numpy as np
    import torch
    from torch import nn
    from holdfast.inference import TorchModelWrapper

    class Act(nn.Module):
        def __init__(self, width=4, kind="relu"):
            super().__init__()
            self.line = nn.Linear(width, width)
            self.act = kind

    class Partly(Act):
        def __init__(self, width=4, kind="relu"):
            super().__init__(width, kind)
            self.config = {"width": width}

    class Anything(nn.Module):
        def __init__(self, **settings):
            super().__init__()
            self.settings = settings

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 2)
            self.register_buffer("scale", torch.ones(1), persistent=False)
            self.register_buffer("shift", None)
            self.calls = 0

    class Hiding(nn.Module):
        def __init__(self):
            super().__init__()
            self.lines = [nn.Linear(2, 2)]

    class Rich(nn.Module):
        def __init__(self, width=4, act=torch.nn.functional.gelu):
            super().__init__()
            self.rnn = nn.LSTM(width, width, 2)
            self.layer = nn.TransformerEncoderLayer(width, 2, 8, activation=act)
            self.both = [self.rnn, self.layer]
            self.double = lambda x: x * width
            self.bound, self.part = self.helper, functools.partial(max, width)
            self.mask = torch.triu(torch.ones(3, 3))
            self.about = {"nan": float("nan"), "table": np.eye(2), "device": torch.device("cpu")}

        def helper(self):
            pass

    class Measuring(nn.Module):
        def __init__(self, width=3):
            super().__init__()
            self.line = nn.Linear(int(torch.ones(width).sum().item()), 1)
            self.noise = torch.nn.Parameter(torch.from_numpy(np.random.rand(2)) + random.random())

    class Encoder(TorchModelWrapper):
        def __init__(self, scale=2.0):
            super().__init__()
            self.scale = scale
            self.model = nn.Linear(1, 1)

        def encode(self, value):
            return self.scale * self.model(value)

    class Listing(Encoder):
        def __init__(self):
            self.models = {"one": [nn.Linear(1, 1)]}

    class Halves(Encoder):
        def __init__(self):
            super().__init__()
            self.more = {"two": nn.Linear(1, 1)}
"""


@pytest.fixture
def classes(module_file):
    module_file("classes_of_this_test", CLASSES)
    import classes_of_this_test  # type: ignore[import-not-found]

    return classes_of_this_test


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda of: of.Act(kind="sin"),
            "act is 'sin', and would be 'relu' .the constructor takes width, kind",
        ),
        (lambda of: of.Act(width=8), "line.weight is of shape"),
        (
            lambda of: of.Partly(8, "sin"),
            "act is 'sin', and would be 'relu' .the constructor takes kind, too",
        ),
        (lambda of: of.Anything(kind="sin"), "settings is"),
        (lambda _: nn.LeakyReLU(0.9), "negative_slope is 0.9, and would be 0.01"),
        (lambda _: nn.Sequential(nn.Linear(2, 2)), "the new one has no 0.bias"),
        (lambda _: nn.ParameterDict({"a": torch.ones(1)}), "the new one has no a"),
        (
            lambda of: changed(of.Scaled(), lambda m: nn.utils.parametrizations.weight_norm(m.line)),
            "lack line.weight",
        ),
        (
            lambda of: changed(of.Scaled(), lambda m: m.scale.fill_(5)),
            "scale has values that are not in its state",
        ),
        (
            lambda of: changed(of.Scaled(), lambda m: setattr(m, "shift", torch.ones(2))),
            "the new one has no shift",
        ),
        (
            lambda of: changed(of.Scaled(), lambda m: setattr(m, "line", nn.Bilinear(2, 1, 2))),
            "line.weight is of shape",
        ),
        (lambda of: changed(of.Anything(), lambda m: m.add_module("extra", nn.ReLU())), "extra is torch"),
        (lambda of: of.Hiding(), "lines"),
        (lambda of: of.Encoder(3.0), "scale is 3.0, and would be 2.0"),
        (lambda of: of.Listing(), "no torch module in its attributes"),
        (lambda of: of.Halves(), "more"),
        (lambda of: of.Rich(act=torch.relu), "layer.activation"),
    ],
)
def test_what_would_be_another_when_it_is_loaded_is_refused(registry, classes, make, told):
    with pytest.raises(InvalidInput, match=told):
        registry.store_model(make(classes))


def changed(module, change):
    change(module)
    return module


def test_what_is_the_same_when_it_is_made_again_needs_no_config(registry, classes):
    for model in (classes.Act(), classes.Anything(), classes.Rich(), classes.Encoder(), classes.Measuring()):
        again = registry.load(registry.store_model(model))
        assert type(again).__name__ == type(model).__name__


def test_counters_are_no_settings_where_the_config_says_all(registry, classes):
    model = changed(classes.Scaled(), lambda m: setattr(m, "calls", 7))
    assert registry.load(registry.store_model(model)).calls == 0
    said = classes.Act(8, "sin")
    said.config = {"width": 8, "kind": "sin"}
    assert registry.load(registry.store_model(said)).act == "sin"


def test_storing_draws_nothing_that_anybody_else_would_have_drawn(registry, classes):
    model = classes.Measuring()

    def drawn():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 -- users' code draws from it

    python_state, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),  # noqa: NPY002 -- as above
        torch.get_rng_state(),
    )
    expected = drawn()
    random.setstate(python_state)
    np.random.set_state(numpy_state)  # noqa: NPY002 -- as above
    torch.set_rng_state(torch_state)
    registry.store_model(model)
    assert drawn() == expected
