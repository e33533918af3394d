import array
import json
import math
import struct

import dag_cbor as oracle
import multiformats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import Cid
from holdfast.storage.formats.dag_cbor import MAX_DEPTH, decode, encode
from tests.storage.formats.records import same

LINK = Cid.of(b"linked")
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**64), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=30),
    st.binary(max_size=40),
    st.builds(Cid.of, st.binary(max_size=5)),
    st.builds(lambda data: Cid.of(data, version=0), st.binary(max_size=5)),
    st.builds(lambda data: Cid.of(data).raw, st.binary(max_size=5)),  # bytes that look like a link
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=30), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_a_record_is_not_changed_by_being_stored(value):
    assert same(decode(encode(value)), value)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=8).filter(
        lambda d: all(abs(v) < 2**63 for v in d.values())
    ),
    st.randoms(),
)
def test_equal_records_do_not_get_two_cids(value, random):
    keys = list(value)
    random.shuffle(keys)
    assert encode({key: value[key] for key in keys}) == encode(value)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_one_record_has_one_encoding(data):
    """Whatever is read is written again as the same bytes; all else is refused with our own error."""
    try:
        value = decode(data)
    except Corrupt:
        return
    assert encode(value) == data


@settings(max_examples=200, deadline=None)
@given(values, st.data())
def test_a_changed_byte_is_never_read_as_another_spelling(value, data):
    encoded = bytearray(encode(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] = data.draw(st.integers(0, 255))
    try:
        changed = decode(encoded)
    except Corrupt:
        return
    assert encode(changed) == encoded


@settings(max_examples=150, deadline=None)
@given(values, st.data())
def test_a_record_that_was_cut_off_is_not_read(value, data):
    encoded = encode(value)
    with pytest.raises(Corrupt):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(Corrupt, match="follow"):
        decode(encoded + b"\x00")


def foreign(value):
    """The value with the oracle's links instead of ours."""
    if isinstance(value, Cid):
        return multiformats.CID.decode(value.raw)
    if isinstance(value, dict):
        return {key: foreign(item) for key, item in value.items()}
    return [foreign(item) for item in value] if isinstance(value, list) else value


@settings(max_examples=100, deadline=None)
@given(values)
def test_an_independent_codec_does_not_disagree(value):
    theirs = oracle.encode(foreign(value))
    assert encode(value) == theirs
    assert same(decode(theirs), value)
    assert oracle.decode(encode(value)) == foreign(value)


def test_public_fixtures_are_not_read_differently(public_fixtures):
    files = sorted((public_fixtures / "codec").glob("*/*.dag-cbor"))
    assert len(files) > 100
    for path in files:
        data = path.read_bytes()
        Cid.parse(path.stem).check(data, source=str(path))
        assert encode(decode(data)) == data, path
        beside = next(path.parent.glob("*.dag-json"))
        assert same_as_json(decode(data), json.loads(beside.read_bytes())), path


def same_as_json(value, other):
    """Whether a value is what its DAG-JSON says."""
    if isinstance(value, Cid):
        return list(other) == ["/"] and Cid.parse(other["/"]) == value
    if isinstance(value, bytes):
        import base64

        text = other["/"]["bytes"]
        return base64.b64decode(text + "=" * (-len(text) % 4)) == value
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same_as_json(value[key], other[key]) for key in value)
    if isinstance(value, list):
        return len(value) == len(other) and all(map(same_as_json, value, other))
    return bool(value == other)


def test_public_negative_fixtures_are_not_accepted(public_fixtures):
    cases = [
        case
        for path in sorted((public_fixtures / "codec-negative/dag-cbor/decode").glob("*.json"))
        for case in json.loads(path.read_bytes())
    ]
    assert cases
    for case in cases:
        with pytest.raises(Corrupt):
            decode(bytes.fromhex(case["hex"]))


LINK_BODY = b"\x58\x25\x00" + LINK.raw
HOSTILE = {
    "no bytes": b"",
    "a list of 2^64-1": b"\x9b" + b"\xff" * 8,
    "a map of 2^64-1": b"\xbb" + b"\xff" * 8,
    "a list of a billion": b"\x9a\x3b\x9a\xca\x00" + b"\x00" * 100,
    "bytes of 2^63": b"\x5b\x80" + b"\x00" * 7,
    "text of 2^63": b"\x7b\x80" + b"\x00" * 7,
    "nested lists": b"\x81" * 100_000 + b"\x00",
    "nested maps": b"\xa1\x60" * 100_000 + b"\x00",
    "nested tags": b"\xd8\x2a" * 100_000,
    "one level too deep": b"\x81" * (MAX_DEPTH + 1) + b"\x00",
    "indefinite bytes": b"\x5f\x41\x00\xff",
    "indefinite text": b"\x7f\x61a\xff",
    "indefinite list": b"\x9f\x00\xff",
    "indefinite map": b"\xbf\x61a\x00\xff",
    "a break": b"\xff",
    "reserved 28": b"\x1c",
    "NaN": b"\xfb\x7f\xf8" + b"\x00" * 6,
    "infinity": b"\xfb\x7f\xf0" + b"\x00" * 6,
    "minus infinity": b"\xfb\xff\xf0" + b"\x00" * 6,
    "a half float": b"\xf9\x3c\x00",
    "a single float": b"\xfa\x3f\x80\x00\x00",
    "undefined": b"\xf7",
    "simple 0": b"\xe0",
    "simple 255": b"\xf8\xff",
    "false in two bytes": b"\xf8\x14",
    "23 in two bytes": b"\x18\x17",
    "255 in three bytes": b"\x19\x00\xff",
    "65535 in five bytes": b"\x1a\x00\x00\xff\xff",
    "2^32-1 in nine bytes": b"\x1b\x00\x00\x00\x00\xff\xff\xff\xff",
    "-1 in two bytes": b"\x38\x00",
    "a length in two bytes": b"\x58\x01a",
    "a key length in two bytes": b"\xa1\x78\x01a\x00",
    "a tag in three bytes": b"\xd9\x00\x2a" + LINK_BODY,
    "a key twice": b"\xa2\x61a\x00\x61a\x00",
    "keys out of order": b"\xa2\x61b\x00\x61a\x00",
    "a long key before a short one": b"\xa2\x62aa\x00\x61b\x00",
    "a number as a key": b"\xa1\x01\x02",
    "bytes as a key": b"\xa1\x41a\x02",
    "a key without a value": b"\xa1\x61a",
    "text that is not UTF-8": b"\x61\xff",
    "a surrogate": b"\x63\xed\xa0\x80",
    "tag 0": b"\xc0\x61a",
    "tag 2, a large number": b"\xc2\x41\x01",
    "tag 43": b"\xd8\x2b" + LINK_BODY,
    "a link that is text": b"\xd8\x2a\x61a",
    "a link that is a list of bytes": b"\xd8\x2a\x80",
    "a link without its zero byte": b"\xd8\x2a\x58\x24" + LINK.raw,
    "a link with a multibase letter": b"\xd8\x2a\x58\x25b" + LINK.raw,
    "an empty link": b"\xd8\x2a\x40",
    "a link to nothing": b"\xd8\x2a\x41\x00",
    "a link that is cut": b"\xd8\x2a\x58\x24\x00" + LINK.raw[:-1],
    "a link and a byte more": b"\xd8\x2a\x58\x26\x00" + LINK.raw + b"\x00",
    "two values": b"\x00\x00",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused_at_once(data):
    with pytest.raises(Corrupt):
        decode(data)


def test_the_deepest_record_that_can_be_written_can_be_read():
    value: object = 0
    for _ in range(MAX_DEPTH):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(InvalidInput, match="nested deeper"):
        encode([value])


LOOP: list[object] = []
LOOP.append(LOOP)
UNSTORABLE = {
    "NaN": math.nan,
    "infinity": math.inf,
    "2^64": 2**64,
    "-2^64-1": -(2**64) - 1,
    "a lone surrogate": "\ud800",
    "a lone surrogate as a key": {"\ud800": 1},
    "a key that is a number": {1: 2},
    "a key that is bytes": {b"a": 2},
    "a key that is nothing": {None: 2},
    "a set": {"a": {1}},
    "an object": object(),
    "a complex number": 1j,
    "a list in itself": LOOP,
}


@pytest.mark.parametrize("value", UNSTORABLE.values(), ids=UNSTORABLE)
def test_what_can_not_be_stored_is_not_stored_as_something_else(value):
    with pytest.raises(InvalidInput):
        encode(value)


def test_the_error_says_where_the_bad_value_is():
    with pytest.raises(InvalidInput, match="/runs/1/loss"):
        encode({"runs": [{}, {"loss": math.nan}]})


def test_a_buffer_of_numbers_is_not_stored_with_a_wrong_length():
    numbers = array.array("d", [1.0, 2.0])
    data = struct.pack("2d", 1.0, 2.0)
    assert decode(encode(memoryview(numbers))) == data
    assert decode(encode(memoryview(data)[::2])) == data[::2]
    assert encode(bytearray(b"ab")) == encode(b"ab") == encode(memoryview(b"ab"))


def test_bytes_that_look_like_a_link_do_not_become_one():
    assert decode(encode([LINK.raw, b"\x00" + LINK.raw, LINK])) == [LINK.raw, b"\x00" + LINK.raw, LINK]
