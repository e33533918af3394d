from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.schema import (
    MEDIA_KEY,
    logical_batch,
    logical_schema,
    media_of,
    schema_from_plain,
    schema_to_plain,
    type_text,
)
from holdfast.storage.formats import dag_cbor
from tests.storage.datasets.example_columns import COLUMNS

LEAVES = st.sampled_from([array.type for array in COLUMNS.values()])
TYPES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(pa.list_),
        st.tuples(inner, st.integers(1, 5)).map(lambda pair: pa.list_(*pair)),
        st.tuples(st.sampled_from([pa.string(), pa.int64()]), inner).map(lambda pair: pa.map_(*pair)),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda kinds: pa.struct([(f"f{number}", kind) for number, kind in enumerate(kinds)])
        ),
    ),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.lists(TYPES, min_size=1, max_size=4), st.sampled_from([None, "image", "audio"]))
def test_a_schema_is_not_lost_on_the_way_through_a_manifest(kinds, media):
    metadata = None if media is None else {MEDIA_KEY: media.encode()}
    fields = [pa.field(f"c {number} ä", kind, metadata=metadata) for number, kind in enumerate(kinds)]
    schema = logical_schema(pa.schema(fields))
    plain = dag_cbor.decode(dag_cbor.encode(schema_to_plain(schema)))
    assert schema_from_plain(plain).equals(schema, check_metadata=True)
    assert [media_of(field) for field in schema] == [media] * len(kinds)


@settings(deadline=None)
@given(TYPES)
def test_a_logical_schema_does_not_change_when_it_is_made_logical_again(kind):
    schema = logical_schema(pa.schema([("c", kind)]))
    assert logical_schema(schema).equals(schema, check_metadata=True)


SAME = {
    "large_string": (pa.large_string(), pa.string()),
    "string_view": (pa.string_view(), pa.string()),
    "large_binary": (pa.large_binary(), pa.binary()),
    "binary_view": (pa.binary_view(), pa.binary()),
    "dictionary": (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
    "run ends": (pa.run_end_encoded(pa.int32(), pa.int64()), pa.int64()),
    "large_list": (pa.large_list(pa.large_string()), pa.list_(pa.string())),
    "list_view": (pa.list_view(pa.int8()), pa.list_(pa.int8())),
    "item names": (pa.list_(pa.field("element", pa.int8(), nullable=False)), pa.list_(pa.int8())),
    "decimal32": (pa.decimal32(5, 2), pa.decimal128(5, 2)),
    "extension": (pa.json_(), pa.string()),
    "names of axes": (
        pa.fixed_shape_tensor(pa.int8(), [2, 3], dim_names=["a", "b"]),
        pa.fixed_shape_tensor(pa.int8(), [2, 3]),
    ),
    "turned tensor": (
        pa.fixed_shape_tensor(pa.int8(), [2, 3], permutation=[1, 0]),
        pa.fixed_shape_tensor(pa.int8(), [3, 2]),
    ),
    "nested": (
        pa.struct([pa.field("a", pa.dictionary(pa.int8(), pa.string()), nullable=False)]),
        pa.struct([("a", pa.string())]),
    ),
}


@pytest.mark.parametrize(("kind", "wanted"), SAME.values(), ids=SAME)
def test_what_means_the_same_does_not_become_two_types(kind, wanted):
    field = pa.field("c", kind, nullable=False, metadata={"PARQUET:field_id": "7"})
    schema = logical_schema(pa.schema([field], metadata={"pandas": "{}"}))
    assert schema.equals(pa.schema([("c", wanted)]), check_metadata=True)


def test_values_are_not_lost_when_types_are_made_the_same():
    text = ["a", None, "b", "a"]
    words = pa.array(text).dictionary_encode()
    nested = pa.StructArray.from_arrays([words, pa.array(text, pa.large_string())], names=["w", "l"])
    listed = pa.LargeListArray.from_arrays(pa.array([0, 1, 1, 4], pa.int64()), words)
    turned = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.int8(), [2, 3], permutation=[1, 0]),
        pa.array([[0, 1, 2, 3, 4, 5]] * 3, pa.list_(pa.int8(), 6)),
    )
    table = pa.table({"nested": nested[1:], "listed": listed, "turned": turned})
    schema = logical_schema(table.schema)
    (batch,) = logical_batch(table, schema)
    batch.validate(full=True)
    assert batch.schema.equals(schema)
    assert batch.column("nested").to_pylist() == nested[1:].to_pylist()
    assert batch.column("listed").to_pylist() == [["a"], [], [None, "b", "a"]]
    assert batch.column("turned").to_numpy_ndarray().tolist() == [[[0, 3], [1, 4], [2, 5]]] * 3


def test_columns_in_another_order_are_put_in_order():
    schema = logical_schema(pa.schema([("a", pa.int8()), ("b", pa.string())]))
    (batch,) = logical_batch(pa.table({"b": ["x"], "a": pa.array([1], pa.int8())}), schema)
    assert batch.to_pylist() == [{"a": 1, "b": "x"}]
    (batch,) = logical_batch(pa.table({"b": ["x"], "a": pa.nulls(1)}), schema)
    assert batch.to_pylist() == [{"a": None, "b": "x"}]


REFUSED = {
    "no column": (pa.schema([]), "without columns"),
    "two of a name": (pa.schema([("a", pa.int8()), ("b", pa.int8()), ("a", pa.int8())]), "same name: 'a'"),
    "two fields of a name": (pa.schema([("s", pa.struct([("x", pa.int8())] * 2))]), "struct 's'.*'x'"),
    "a union": (pa.schema([("u", pa.dense_union([pa.field("a", pa.int8())]))]), "column 'u' has the type"),
    "an empty struct": (pa.schema([("s", pa.struct([]))]), "column 's'"),
    "no bytes": (pa.schema([("b", pa.binary(0))]), "column 'b'"),
    "a tensor of nothing": (pa.schema([("t", pa.fixed_shape_tensor(pa.int8(), [0, 2]))]), "hold nothing"),
    "an interval": (pa.schema([("i", pa.list_(pa.month_day_nano_interval()))]), r"'i\[\]'"),
}


@pytest.mark.parametrize(("schema", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_stored_is_refused_by_name(schema, reason):
    with pytest.raises(InvalidInput, match=reason):
        logical_schema(schema)


def test_rows_of_another_schema_are_refused_by_name():
    schema = logical_schema(pa.schema([("a", pa.int8()), ("b", pa.string())]))
    with pytest.raises(InvalidInput, match=r"\['b'\] are missing, \['c'\] are too many"):
        logical_batch(pa.table({"a": pa.array([1], pa.int8()), "c": [1]}), schema)
    with pytest.raises(InvalidInput, match="column 'a' has the type int64 where the dataset has int8"):
        logical_batch(pa.table({"a": [1], "b": ["x"]}), schema)
    tensor = pa.fixed_shape_tensor(pa.int8(), [2])
    holes = pa.ExtensionArray.from_storage(tensor, pa.array([[1, None]], tensor.storage_type))
    with pytest.raises(InvalidInput, match=r"column 't'.*missing values"):
        logical_batch(pa.table({"t": holes}), logical_schema(pa.schema([("t", tensor)])))


BROKEN: list[Any] = [
    None,
    [],
    [{}],
    [{"name": "a"}],
    [{"name": "a", "type": "int65"}],
    [{"name": 1, "type": "int64"}],
    [{"name": "a", "type": "int64", "media": 7}],
    [{"name": "a", "type": {"kind": "list"}}],
    [{"name": "a", "type": {"kind": "timestamp", "unit": "h", "zone": None}}],
    [{"name": "a", "type": {"kind": "decimal128", "precision": 99, "scale": 0}}],
    [{"name": "a", "type": {"kind": "decimal128", "precision": True, "scale": 0}}],
    [{"name": "a", "type": {"kind": "tensor", "value": "string", "shape": [2]}}],
    [{"name": "a", "type": {"kind": "tensor", "value": "int8", "shape": [-1]}}],
    [{"name": "a", "type": {"kind": "fixed_size_binary", "bytes": 1 << 40}}],
    [{"name": "a", "type": "int64"}, {"name": "a", "type": "int64"}],
]


@pytest.mark.parametrize("plain", BROKEN)
def test_a_broken_schema_is_no_schema(plain):
    with pytest.raises(ValueError, match=r".+"):
        schema_from_plain(plain)


def test_a_schema_nested_without_end_is_refused():
    kind: object = "int8"
    for _ in range(60):
        kind = {"kind": "list", "item": kind}
    with pytest.raises(ValueError, match="nested deeper"):
        schema_from_plain([{"name": "a", "type": kind}])


def test_people_can_read_types():
    assert type_text(pa.fixed_shape_tensor(pa.uint8(), [2, 3])) == "tensor<uint8>[2, 3]"
    assert type_text(pa.int64()) == "int64"
