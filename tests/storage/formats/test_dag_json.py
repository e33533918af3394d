import json
import math

import multiformats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import DAG_CBOR, DAG_JSON, Cid
from holdfast.storage.formats import dag_cbor
from holdfast.storage.formats.dag_json import MAX_DEPTH, decode, encode
from tests.storage.formats.records import same

LINK = Cid.of(b"linked")
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.binary(max_size=40),
    st.builds(Cid.of, st.binary(max_size=5)),
    st.builds(lambda data: Cid.of(data, hash="blake3"), st.binary(max_size=5)),
    st.builds(lambda data: Cid.of(data, version=0), st.binary(max_size=5)),
)
keys = st.one_of(texts, st.sampled_from(["/", "bytes", "", "-", "0", "é", "\U00010000", "\uffff"]))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=300, deadline=None)
@given(values)
def test_a_record_is_not_changed_by_being_stored(value):
    try:
        data = encode(value)
    except InvalidInput as error:
        assert "would be read as a link or as bytes" in str(error)  # noqa: PT017
        return
    assert same(decode(data, canonical=True), value)
    assert same(decode(json.dumps(json.loads(data), indent=1).encode()), value)
    assert same(dag_cbor.decode(dag_cbor.encode(value)), value)


@settings(max_examples=300, deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_neither_rounded_nor_made_an_integer(number):
    text = encode(number).decode()
    assert float(text) == number
    assert same(decode(text.encode(), canonical=True), number)
    assert "." in text or "e" in text
    assert len(text) <= len(repr(number)) + 6


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (100.0, "100.0"),
        (0.000001, "0.000001"),
        (1e-7, "1e-7"),
        (1.25e-9, "1.25e-9"),
        (123456789012345680000.0, "123456789012345680000.0"),
        (1e20, "100000000000000000000.0"),
        (1e21, "1e+21"),
        (1.5e300, "1.5e+300"),
        (5e-324, "5e-324"),
        (-82497.63712086187, "-82497.63712086187"),
    ],
)
def test_a_float_is_spelled_as_other_implementations_do(number, text):
    assert encode(number).decode() == text


def test_public_fixtures_are_not_read_or_written_differently(public_fixtures):
    folders = [folder for folder in sorted((public_fixtures / "codec").iterdir()) if folder.is_dir()]
    assert len(folders) > 100
    for folder in folders:
        (path,) = folder.glob("*.dag-json")
        data = path.read_bytes()
        value = decode(data, canonical=True)
        assert encode(value) == data, folder
        assert str(Cid.of(data, DAG_JSON)) == path.stem
        (other,) = folder.glob("*.dag-cbor")
        assert same(dag_cbor.decode(other.read_bytes()), value), folder
        assert str(Cid.of(dag_cbor.encode(value), DAG_CBOR)) == other.stem, folder


def test_public_negative_fixtures_are_refused(public_fixtures):
    seen = 0
    for path in sorted((public_fixtures / "codec-negative/dag-json/decode").glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            with pytest.raises(Corrupt):
                decode(bytes.fromhex(case["hex"]))
            seen += 1
    assert seen


CID = str(LINK)
BASE58 = multiformats.multibase.encode(LINK.raw, "base58btc")
NOT_DAG_JSON = {
    "nothing": "",
    "two values": "1 2",
    "a comma too many": "[1,]",
    "a key twice": '{"a":1,"b":2,"a":1}',
    "a key twice, spelled differently": '{"a":1,"\\u0061":1}',
    "a link to nowhere": '{"/":"foo"}',
    "a link in base58": '{"/":"' + BASE58 + '"}',
    "a link with capitals": '{"/":"' + CID.upper() + '"}',
    "a link with a scheme": '{"/":"ipfs://' + CID + '"}',
    "a link and more": '{"/":"' + CID + '","a":1}',
    "a text at the reserved key and more": '{"/":"foo","bar":"baz"}',
    "bytes and more inside": '{"/":{"bytes":"oQ","more":1}}',
    "bytes and more outside": '{"/":{"bytes":"oQ"},"more":1}',
    "bytes with padding": '{"/":{"bytes":"oQ=="}}',
    "bytes with bits too many": '{"/":{"bytes":"oR"}}',
    "bytes with a letter too many": '{"/":{"bytes":"oQaaa"}}',
    "bytes in the alphabet for URLs": '{"/":{"bytes":"_-8"}}',
    "bytes with a blank": '{"/":{"bytes":"o Q"}}',
    "bytes that are not ASCII": '{"/":{"bytes":"oé"}}',
    "NaN": "NaN",
    "Infinity": "[-Infinity]",
    "a float out of range": "1e999",
    "2^64": "18446744073709551616",
    "-2^64-1": "-18446744073709551617",
    "an endless integer": "9" * 10_000,
    "half a character": '"\\ud800"',
    "half a character in a key": '{"\\udc00":1}',
    "a mark before the text": "\ufeff1",
    "a text that does not end": '"a',
    "a raw line break": '"a\nb"',
    "too deep": "[" * 200 + "]" * 200,
    "far too deep": "[" * 200_000,
    "far too deep maps": '{"a":' * 100_000,
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("text", NOT_DAG_JSON.values(), ids=NOT_DAG_JSON)
def test_what_is_no_dag_json_is_refused(text):
    with pytest.raises(Corrupt) as caught:
        decode(text.encode())
    assert len(str(caught.value)) < 500


def test_bytes_that_are_not_utf8_are_refused():
    for data in (b'"\xff"', '"é"'.encode("latin-1"), '"x"'.encode("utf-16"), b'"\xed\xa0\x80"'):
        with pytest.raises(Corrupt):
            decode(data)


LENIENT = {
    "whitespace": ' { "a" : 1 }\n',
    "keys out of order": '{"b":1,"a":2}',
    "another spelling of a letter": '"\\u0061"',
    "another spelling of a float": "1.50",
    "a float with an exponent": "1E2",
    "a slash with a backslash": '"\\/"',
}


@pytest.mark.parametrize("text", LENIENT.values(), ids=LENIENT)
def test_old_spellings_are_read_but_not_where_they_would_give_a_record_two_cids(text):
    assert encode(decode(text.encode())) != text.encode()
    with pytest.raises(Corrupt, match="not canonical"):
        decode(text.encode(), canonical=True)


ALLOWED = [
    {"/": True},
    {"/": 1, "bar": "baz"},
    {"/": {"bytes": True}, "bar": "baz"},
    {"/": {"abar": "baz", "bytes": "foo"}},
    {"-": "sorts before the slash", "/": "foo"},
    {"-": 1, "/": {"bytes": "foo"}},
    {"/": {"/": {"/": LINK}}},
    {"/": [b"\xff"]},
    {"/": LINK},
    {"bytes": "oQ"},
]


@pytest.mark.parametrize("value", ALLOWED, ids=repr)
def test_a_map_with_a_slash_that_means_nothing_else_is_kept(value):
    assert same(decode(encode(value), canonical=True), value)


RESERVED = [
    {"/": "foo"},
    {"/": CID},
    {"/": {"bytes": "oQ"}},
    {"/": "foo", "bar": 1},
    {"/": {"bytes": "foo", "more": 1}},
    {"/": {"bytes": "foo"}, "more": 1},
    [{"a": {"/": ""}}],
]


@pytest.mark.parametrize("value", RESERVED, ids=repr)
def test_a_map_is_not_turned_into_a_link_or_bytes(value):
    with pytest.raises(InvalidInput, match="would be read as"):
        encode(value)


def test_keys_are_sorted_by_their_bytes():
    assert encode({"b": 1, "a": 2, "": 3, "aa": 4, "\U00010000": 5, "\uffff": 6}).decode() == (
        '{"":3,"a":2,"aa":4,"b":1,"\uffff":6,"\U00010000":5}'
    )


UNWRITABLE = {
    "NaN": math.nan,
    "infinity": [math.inf],
    "a number as key": {1: 2},
    "a set": {1},
    "2^64": 1 << 64,
    "below -2^64": -(1 << 64) - 1,
    "half a character": "\ud800",
    "half a character in a key": {"\ud800": 1},
}


@pytest.mark.parametrize("value", UNWRITABLE.values(), ids=UNWRITABLE)
def test_what_dag_json_can_not_hold_is_not_written(value):
    with pytest.raises(InvalidInput):
        encode(value)


def test_depth_is_bounded_where_dag_cbor_bounds_it():
    value: object = None
    for _ in range(MAX_DEPTH):
        value = [value]
    assert same(decode(encode(value)), value)
    assert dag_cbor.decode(dag_cbor.encode(value)) == value
    with pytest.raises(InvalidInput, match="nested deeper"):
        encode([value])
    with pytest.raises(Corrupt, match="nested deeper"):
        decode(b"[" + encode(value) + b"]")


@settings(max_examples=300, deadline=None)
@given(st.text('{}[]",:/\\bytesu0123.e-+ nultrfa', max_size=60) | st.binary(max_size=40))
def test_junk_never_gives_another_error(data):
    raw = data if isinstance(data, bytes) else data.encode()
    try:
        value = decode(raw)
    except Corrupt:
        return
    assert same(decode(encode(value), canonical=True), value)


def test_a_shared_list_is_not_taken_for_endless():
    shared = [1]
    assert encode([shared, shared, ()]) == b"[[1],[1],[]]"
    assert (
        encode({"a": memoryview(b"\xa1"), "b": bytearray()})
        == b'{"a":{"/":{"bytes":"oQ"}},"b":{"/":{"bytes":""}}}'
    )
