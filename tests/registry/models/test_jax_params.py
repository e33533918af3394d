"""Parameters of JAX: every array in its own type, the tree in its own form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from tests.registry.models.conformance import FormatConformance

jax = pytest.importorskip("jax")
jnp = jax.numpy


class TestJaxParams(FormatConformance):
    framework, format, file = "jax", "safetensors", "params.safetensors"
    packages, extra = ("jax",), "jax"
    program = """
        import jax, jax.numpy as jnp, numpy as np

        def make():
            keys = jax.random.split(jax.random.key(0), 3)
            return {
                "layers": [
                    {"kernel": jax.random.normal(keys[0], (4, 3)), "bias": jnp.zeros(3)},
                    {"kernel": jax.random.normal(keys[1], (3, 2)).astype("bfloat16"), "bias": jnp.ones(2, "bfloat16")},
                ],
                "scale": (jnp.float32(2), 1, None),
            }

        def outputs(params):
            x = jnp.arange(8.0).reshape(2, 4)
            for layer in params["layers"]:
                x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
            return [np.asarray(x * params["scale"][0], "float32")]
    """


TYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "float16",
    "bfloat16",
    "float32",
    "complex64",
]
TYPES += ["float8_e5m2", "float8_e4m3fn"]


@st.composite
def leaves(draw):
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    values = np.random.RandomState(draw(st.integers(0, 999))).randint(0, 2, shape)
    return jnp.asarray(values, draw(st.sampled_from(TYPES)))


plain = (
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
trees = st.recursive(
    leaves() | plain,
    lambda part: (
        st.lists(part, max_size=3)
        | st.lists(part, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), part, max_size=3)
        | st.dictionaries(st.integers(0, 5), part, max_size=3)
    ),
    max_leaves=8,
)


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        assert all(same(one[key], other[key]) for key in one)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        assert all(same(a, b) for a, b in zip(one, other, strict=True))
    elif hasattr(one, "dtype"):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    else:
        assert one == other
    return True


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=trees, array=leaves())
def test_no_form_type_or_value_of_a_tree_is_lost(registry, tree, array):
    model = {"tree": tree, "array": array}
    assert same(registry.load(registry.store_model(model)), model)


def test_keys_with_slashes_do_not_run_into_each_other(registry):
    model = {"a": {"b": jnp.ones(1)}, "a/b": jnp.zeros(1), "a~1b": jnp.full(1, 2.0)}
    assert same(registry.load(registry.store_model(model)), model)


class Named(tuple[int, ...]):
    __slots__ = ()


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (jax.random.key(0), "key_data"),
        (object(), "is object"),
        (Named((1,)), "is Named"),
        (float("nan"), "is float"),
        (np.array(["text"]), "is of the type"),
        ({("a",): 1}, "keys are texts"),
        ({1: jnp.ones(1), "1": jnp.ones(1)}, "two keys"),
    ],
)
def test_what_would_not_come_back_equal_is_refused(registry, leaf, message):
    with pytest.raises(InvalidInput, match=message):
        registry.store_model({"w": jnp.ones(2), "odd": leaf})


def test_a_wide_array_is_not_narrowed_unsaid(registry):
    with jax.enable_x64(True):
        cid = registry.store_model({"w": jnp.ones(2, "float64")})
        assert registry.load(cid)["w"].dtype == "float64"
    with pytest.raises(InvalidInput, match="jax_enable_x64"):
        registry.load(cid)


def test_flax_s_trees_are_taken(registry):
    pytest.importorskip("flax", reason="the package flax is not installed")
    from flax import nnx
    from flax.core import FrozenDict

    frozen: FrozenDict[str, Any] = FrozenDict({"params": {"w": jnp.arange(3.0)}})
    got = registry.load(registry.store_model(frozen))
    assert type(got) is FrozenDict
    assert same(dict(got["params"]), dict(frozen["params"]))

    def net(seed):
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(
            nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)
        )

    first, second = net(0), net(1)
    x = jnp.ones((4, 2))
    first(x)  # moves the averages
    state = nnx.state(second)
    nnx.replace_by_pure_dict(state, registry.load(registry.store_model(nnx.state(first))))
    nnx.update(second, state)
    first.eval()
    second.eval()
    np.testing.assert_array_equal(first(x), second(x))
