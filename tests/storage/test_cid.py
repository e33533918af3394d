import csv
import hashlib
import pickle
from pathlib import Path

import multiformats
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, Unsupported
from holdfast.storage.cid import (
    DAG_CBOR,
    DAG_JSON,
    DAG_PB,
    HASHES,
    MAX_TEXT_CHARS,
    RAW,
    Cid,
    read_varint,
    write_varint,
)

EMPTY = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
V0 = "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
BASES = [
    "base2",
    "base16",
    "base16upper",
    "base32",
    "base32upper",
    "base36",
    "base58btc",
    "base64",
    "base64url",
]


def varint(number: int) -> bytes:
    return multiformats.varint.encode(number)


cids = st.one_of(
    st.builds(Cid.of, st.binary(max_size=40), st.sampled_from([RAW, DAG_PB, DAG_CBOR, 0x0129])),
    st.builds(lambda data: Cid.of(data, version=0), st.binary(max_size=40)),
    st.builds(
        lambda data, codec: Cid.of(data, codec, hash="blake3"),
        st.binary(max_size=40),
        st.sampled_from([RAW, DAG_PB, DAG_CBOR, DAG_JSON]),
    ),
    st.builds(
        lambda codec, function, digest: Cid(
            b"\x01" + varint(codec) + varint(function) + varint(len(digest)) + digest
        ),
        st.integers(0, 2**40),
        st.integers(0x1F, 2**20),
        st.binary(max_size=70),
    ),
    st.builds(lambda digest: Cid(b"\x01\x55\x00" + varint(len(digest)) + digest), st.binary(max_size=128)),
)


@settings(max_examples=200, deadline=None)
@given(cids)
def test_a_cid_is_not_changed_by_being_written_down(cid):
    assert Cid.parse(str(cid)) == cid
    assert Cid.parse(cid.raw) == cid
    assert Cid.parse(bytearray(cid.raw)) == cid
    assert Cid.parse(memoryview(cid.raw)) == cid
    assert Cid.parse(f"ipfs://{cid}") == Cid.parse(f"/ipfs/{cid}/") == Cid.parse(f" {cid}\n") == cid
    assert pickle.loads(pickle.dumps(cid)) == cid
    assert eval(repr(cid), {"Cid": Cid.parse}) == cid


def known(cid: Cid) -> bool:
    """Whether the multicodec table of the oracle has the codec and the hash."""
    try:
        multiformats.CID.decode(cid.raw)
    except (KeyError, ValueError):
        return False
    return True


@settings(max_examples=40, deadline=None)
@given(cids.filter(known), st.sampled_from(BASES))
def test_an_independent_implementation_does_not_read_another_cid(cid, base):
    oracle = multiformats.CID.decode(cid.raw)
    assert oracle.version == cid.version
    assert oracle.codec.code == cid.codec
    assert bytes(oracle.digest) == cid.multihash
    assert str(cid) == (oracle.encode("base32") if cid.version else str(oracle))
    if cid.version == 1:
        assert Cid.parse(oracle.encode(base)) == cid


@settings(max_examples=100, deadline=None)
@given(st.lists(cids, max_size=20))
def test_equal_cids_do_not_count_twice_and_order_is_that_of_the_bytes(many):
    copies = [Cid(cid.raw) for cid in many]
    assert set(many) == set(copies)
    assert len(set(many)) == len({cid.raw for cid in many})
    assert [cid.raw for cid in sorted(many)] == sorted(cid.raw for cid in many)


def test_a_cid_does_not_compare_with_text():
    assert Cid.parse(EMPTY) != EMPTY
    with pytest.raises(TypeError):
        assert Cid.parse(EMPTY) < EMPTY  # type: ignore[operator]


def test_a_cid_in_a_set_can_not_be_changed():
    cid = Cid.parse(EMPTY)
    with pytest.raises(AttributeError):
        cid.raw = b""
    with pytest.raises(AttributeError):
        del cid.raw


def test_versions_do_not_get_mixed_up():
    v1, v0 = Cid.parse(EMPTY), Cid.parse(V0)
    assert (v1.version, v1.codec, str(v1)) == (1, RAW, EMPTY)
    assert (v0.version, v0.codec, str(v0)) == (0, DAG_PB, V0)
    assert v0.multihash == v0.raw
    as_v1 = Cid(b"\x01\x70" + v0.raw)
    assert as_v1 != v0
    assert as_v1.multihash == v0.multihash
    assert Cid.of(b"", DAG_PB, version=0).version == 0


def text_of(raw: bytes, base: str = "base32") -> str:
    return multiformats.multibase.encode(raw, base)


HASH = hashlib.sha256(b"x").digest()
REJECTED = {
    "empty": ("", "empty"),
    "only a scheme": ("ipfs://", "empty"),
    "blank": ("  \n", "empty"),
    "only a multibase prefix": ("b", "cut off"),
    "a word": ("latest", "is not a CID"),
    "wrong multibase": ("!" + EMPTY[1:], "Unknown base"),
    "a letter outside the alphabet": (EMPTY[:-1] + "0", "decode multibase"),
    "non-zero padding bits": (EMPTY[:-1] + "v", "decode multibase"),
    "padding": (EMPTY + "=", "decode multibase"),
    "two CIDs": (EMPTY + EMPTY, "is not a CID"),
    "a path": (EMPTY + "/a", "is not a CID"),
    "truncated text": (EMPTY[:-8], "31 bytes|27 bytes|is not a CID"),
    "truncated version 0": (V0[:-1], "is not a CID"),
    "version 0 in base58 with its prefix": ("z" + V0, "version 0"),
    "version 0 in base32": (text_of(b"\x12\x20" + HASH), "version 0"),
    "version 0 in hexadecimal": ("f1220" + HASH.hex(), "version 0"),
    "truncated digest": (b"\x01\x55\x12\x20" + HASH[:-1], "31 bytes, not 32"),
    "trailing byte": (b"\x01\x55\x12\x20" + HASH + b"\0", "33 bytes, not 32"),
    "trailing byte of version 0": (b"\x12\x20" + HASH + b"\0", "34 bytes, not 35"),
    "sha2-256 of 20 bytes": (b"\x01\x55\x12\x14" + HASH[:20], "32 bytes, not 20"),
    "blake3 of 16 bytes": (b"\x01\x55\x1e\x10" + HASH[:16], "blake3 digest has 32 bytes, not 16"),
    "blake3 of 64 bytes": (b"\x01\x55\x1e\x40" + HASH + HASH, "blake3 digest has 32 bytes, not 64"),
    "a truncated blake3 digest": (b"\x01\x55\x1e\x20" + HASH[:-1], "31 bytes, not 32"),
    "identity over 128 bytes": (b"\x01\x55\x00\x81\x01" + bytes(129), "at most 128"),
    "version 2": (b"\x02\x55\x12\x20" + HASH, "version 2 does not exist"),
    "version 0 as a number": (b"\x00\x55\x12\x20" + HASH, "version 0 does not exist"),
    "no bytes": (b"", "cut off"),
    "only a version": (b"\x01", "cut off"),
    "a codec that never ends": (b"\x01" + b"\xff" * 20, "cut off or too long"),
    "a codec that is not minimal": (b"\x01\xd5\x00\x12\x20" + HASH, "not minimal"),
    "a huge digest length": (b"\x01\x55\x13" + b"\xff" * 8 + b"\x7f" + HASH, "not 9223372036854775807"),
    "a number": (7, "not int"),
    "nothing": (None, "not NoneType"),
    "a list": ([EMPTY], "not list"),
}


@pytest.mark.parametrize(("value", "reason"), REJECTED.values(), ids=REJECTED)
def test_what_is_no_cid_is_refused_with_the_reason(value, reason):
    with pytest.raises(InvalidInput, match=reason) as caught:
        Cid.parse(value)
    assert "CID" in str(caught.value)
    assert len(str(caught.value)) < 400


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(st.text(max_size=80), st.binary(max_size=80), st.text("bzfm0123456789abcdefQm", max_size=80))
)
def test_junk_never_gives_another_error(value):
    try:
        cid = Cid.parse(value)
    except InvalidInput:
        return
    assert Cid.parse(str(cid)) == cid


@settings(max_examples=200, deadline=None)
@given(cids, st.data())
def test_a_cut_cid_is_never_a_cid(cid, data):
    cut = data.draw(st.integers(0, len(cid.raw) - 1))
    with pytest.raises(InvalidInput):
        Cid.parse(cid.raw[:cut])


@pytest.mark.timeout(10)
def test_a_long_text_can_not_keep_the_parser_busy():
    for text in ("z" + "2" * 5_000_000, "b" * (MAX_TEXT_CHARS + 1), "/ipfs/" + "a" * 10_000_000):
        with pytest.raises(InvalidInput, match="characters long") as caught:
            Cid.parse(text)
        assert len(str(caught.value)) < 400


def test_the_wrong_constructor_names_the_right_one():
    for wrong in (EMPTY, None, bytearray(36), memoryview(Cid.parse(EMPTY).raw)):
        with pytest.raises(InvalidInput, match=r"Cid\.parse"):
            Cid(wrong)  # type: ignore[arg-type]


def test_a_hash_that_we_can_not_check_is_never_taken_for_checked():
    sha512 = Cid(b"\x01\x55\x13\x40" + hashlib.sha512(b"x").digest())
    with pytest.raises(Unsupported, match="0x13"):
        sha512.matches(b"x")
    identity = Cid(b"\x01\x55\x00\x01x")
    assert identity.matches(b"x")
    assert not identity.matches(b"y")
    with pytest.raises(Corrupt, match="the test gave 1 bytes"):
        Cid.parse(EMPTY).check(b"y", source="the test")


@pytest.mark.parametrize("name", HASHES)
@settings(max_examples=40, deadline=None)
@given(data=st.binary(max_size=200), codec=st.sampled_from([RAW, DAG_PB, DAG_CBOR, DAG_JSON]))
def test_another_hash_is_neither_mistaken_for_the_usual_one_nor_left_unchecked(name, data, codec):
    cid = Cid.of(data, codec, hash=name)
    assert (cid.version, cid.codec, cid.hash_name) == (1, codec, name)
    assert cid.multihash == multiformats.multihash.digest(data, name, size=32)
    assert cid.matches(data)
    assert cid.matches(memoryview(data))
    assert not cid.matches(data + b"x")
    with pytest.raises(Corrupt, match=str(cid)):
        cid.check(data + b"x", source="the test")


def test_a_hash_that_is_not_there_is_not_replaced_by_another():
    with pytest.raises(InvalidInput, match="unknown hash 'md5'; known: sha2-256, blake3"):
        Cid.of(b"x", hash="md5")
    with pytest.raises(InvalidInput, match="version 0 with blake3"):
        Cid.of(b"x", version=0, hash="blake3")
    with pytest.raises(InvalidInput, match="version 2"):
        Cid.of(b"x", version=2)
    assert Cid(b"\x01\x55\x13\x40" + hashlib.sha512(b"x").digest()).hash_name == "0x13"
    assert Cid(b"\x01\x55\x00\x01x").hash_name == "identity"


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file, skipinitialspace=True))


def test_the_public_multibase_vectors_agree_on_every_base(public_fixtures):
    """The vectors are words, not CIDs, so each base must get as far as "this is no CID", or not be a base that we read."""
    tried = 0
    for path in sorted((public_fixtures / "multibase").glob("*.csv")):
        (_, word), *vectors = rows(path)
        plain = word.encode().decode("unicode_escape").encode()
        for base, text in vectors:
            with pytest.raises(InvalidInput):
                Cid.parse(text)
            if base not in ("identity", "proquint", "base256emoji"):
                assert multiformats.multibase.decode(text) == plain
                tried += 1
    assert tried > 60


def test_a_cid_of_the_codec_fixtures_is_read_as_its_writer_meant_it(public_fixtures):
    names = [
        path.name.removeprefix("cid-") for path in sorted((public_fixtures / "codec").glob("cid-[Qbz]*"))
    ]
    assert len(names) > 10
    for name in names:
        cid = Cid.parse(name)
        oracle = multiformats.CID.decode(name)
        assert cid.raw == bytes(oracle)


def test_public_multihash_vectors_of_sha256_are_ours(public_fixtures):
    seen = 0
    for algorithm, bits, given_, wanted in rows(public_fixtures / "multihash_test_cases.csv")[1:]:
        if algorithm == "sha2-256" and bits == "256":
            assert Cid.of(given_.encode()).multihash.hex() == wanted
            seen += 1
    assert seen


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63 - 1))
def test_varints_are_read_back(number):
    data = write_varint(number)
    assert data == varint(number)
    assert read_varint(b"xy" + data + b"z", 2) == (number, 2 + len(data))
    with pytest.raises(Corrupt):
        read_varint(data[:-1], 0)
