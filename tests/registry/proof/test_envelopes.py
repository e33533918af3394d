"""Envelopes: nothing that is signed can be changed unseen, and other programs read them as we do."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry.proof import Envelope, Signature, SigningKey, pae
from holdfast.storage.formats import dag_cbor

KEY = SigningKey("one", Ed25519PrivateKey.from_private_bytes(bytes(32)))
OTHER = SigningKey("two", Ed25519PrivateKey.from_private_bytes(b"2" * 32))
TYPE = "application/vnd.in-toto+json"


def test_the_encoding_is_the_one_of_the_specification():
    # https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@given(st.tuples(st.text(), st.binary()), st.tuples(st.text(), st.binary()))
def test_no_two_things_are_signed_by_the_same_bytes(first, second):
    assert (pae(*first) == pae(*second)) == (first == second)


@given(
    st.text(max_size=50),
    st.binary(max_size=300),
    st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=70)), max_size=5),
)
def test_an_envelope_comes_back_from_json_and_from_a_record(kind, payload, signatures):
    envelope = Envelope(
        payload_type=kind, payload=payload, signatures=tuple(Signature(*one) for one in signatures)
    )
    assert Envelope.from_json(envelope.to_json()) == envelope
    assert Envelope.from_plain(dag_cbor.decode(dag_cbor.encode(envelope.to_plain()))) == envelope


@given(st.binary(max_size=200), st.data())
def test_one_flipped_bit_in_payload_or_signature_is_noticed(payload, data):
    envelope = Envelope.signed(TYPE, payload, [KEY])
    assert [one.problem for one in envelope.check()] == [None]
    sig = bytearray(envelope.signatures[0].sig)
    bit = data.draw(st.integers(0, len(sig) * 8 - 1))
    sig[bit // 8] ^= 1 << bit % 8
    changed = Envelope(
        payload_type=TYPE, payload=payload, signatures=(Signature(str(KEY.public), bytes(sig)),)
    )
    assert [one.problem for one in changed.check()] == ["the signature is wrong"]
    if payload:
        other = bytearray(payload)
        bit = data.draw(st.integers(0, len(other) * 8 - 1))
        other[bit // 8] ^= 1 << bit % 8
        changed = Envelope(payload_type=TYPE, payload=bytes(other), signatures=envelope.signatures)
        assert [one.problem for one in changed.check()] == ["the signature is wrong"]
    changed = Envelope(payload_type=TYPE + "2", payload=payload, signatures=envelope.signatures)
    assert [one.problem for one in changed.check()] == ["the signature is wrong"]


def test_a_signature_counts_for_nobody_but_its_maker():
    envelope = Envelope.signed(TYPE, b"x", [KEY])
    stolen = Signature(str(OTHER.public), envelope.signatures[0].sig)
    claimed = Envelope(payload_type=TYPE, payload=b"x", signatures=(stolen,))
    (checked,) = claimed.check([KEY.public, OTHER.public])
    assert (checked.key, checked.problem) == (OTHER.public, "the signature is wrong")


def test_one_key_counts_once_however_often_it_signs():
    twice = Envelope.signed(TYPE, b"x", [KEY, OTHER, KEY])
    assert [one.key for one in twice.check()] == [KEY.public, OTHER.public]
    right, wrong = twice.signatures[0], Signature(str(KEY.public), bytes(64))
    mixed = Envelope(payload_type=TYPE, payload=b"x", signatures=(wrong, right, right))
    assert [one.problem for one in mixed.check()] == ["the signature is wrong", None]


def test_a_key_id_of_another_form_is_tried_with_the_keys_that_are_known():
    signature = Envelope.signed(TYPE, b"x", [KEY]).signatures[0].sig
    for keyid in ("", "alice@example.com", "SHA256:abc"):
        envelope = Envelope(payload_type=TYPE, payload=b"x", signatures=(Signature(keyid, signature),))
        assert envelope.check()[0].key is None
        assert "not known here" in str(envelope.check()[0].problem)
        assert envelope.check([OTHER.public, KEY.public])[0].key == KEY.public
    broken = Envelope(payload_type=TYPE, payload=b"x", signatures=(Signature("z6Mkbroken", signature),))
    assert broken.check([KEY.public])[0].key is None, "who writes a key must write a whole one"


def test_another_program_checks_an_exported_envelope():
    """By nothing of ours: JSON, base64, the specification's bytes, and the raw Ed25519 check."""
    body = json.loads(Envelope.signed(TYPE, b'{"_type": "x"}', [KEY]).to_json())
    payload, sig = (base64.b64decode(text) for text in (body["payload"], body["signatures"][0]["sig"]))
    kind = body["payloadType"]
    data = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    Ed25519PublicKey.from_public_bytes(KEY.public.raw).verify(sig, data)


def test_securesystemslib_checks_an_exported_envelope_and_we_check_its():
    from securesystemslib.dsse import Envelope as TheirEnvelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer._crypto_signer import CryptoSigner
    from securesystemslib.signer._key import SSlibKey

    keyid = str(KEY.public)
    their_key = SSlibKey(keyid, "ed25519", "ed25519", {"public": KEY.public.raw.hex()})
    ours = Envelope.signed(TYPE, b'{"a": 1}', [KEY])
    theirs = TheirEnvelope.from_dict(json.loads(ours.to_json()))
    assert list(theirs.verify([their_key], 1)) == [keyid]
    forged = TheirEnvelope.from_dict(
        json.loads(Envelope(payload_type=TYPE, payload=b"{}", signatures=ours.signatures).to_json())
    )
    with pytest.raises(VerificationError):
        forged.verify([their_key], 1)

    signer = CryptoSigner(Ed25519PrivateKey.from_private_bytes(bytes(32)), their_key)
    made = TheirEnvelope(payload=b'{"b": 2}', payload_type=TYPE, signatures={})
    made.sign(signer)
    read = Envelope.from_json(json.dumps(made.to_dict()))
    assert read.payload == b'{"b": 2}'
    assert [(one.key, one.problem) for one in read.check()] == [(KEY.public, None)]


def test_url_safe_base64_is_read_as_the_specification_allows():
    envelope = Envelope.signed(TYPE, b"\xfb\xff\xfe>>???", [KEY])
    body = json.loads(envelope.to_json())
    body["payload"] = base64.urlsafe_b64encode(envelope.payload).decode().rstrip("=")
    assert Envelope.from_json(json.dumps(body)) == envelope


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "5",
        "{}",
        "nonsense",
        '{"payloadType": "x", "payload": "AA==", "signatures": {}}',
        '{"payloadType": "x", "payload": "AA==", "signatures": [5]}',
        '{"payloadType": "x", "payload": "AA==", "signatures": [{"keyid": "k"}]}',
        '{"payloadType": "x", "payload": "AA==", "signatures": [{"keyid": 5, "sig": "AA=="}]}',
        '{"payloadType": 1, "payload": "AA==", "signatures": []}',
        '{"payloadType": "x", "payload": "A", "signatures": []}',
        '{"payloadType": "x", "payload": "A A=", "signatures": []}',
        '{"payloadType": "x", "payload": "é", "signatures": []}',
        '{"payloadType": "x", "payloadType": "y", "payload": "AA==", "signatures": []}',
        "[" * 100_000,
    ],
)
def test_what_is_no_envelope_is_refused(text):
    with pytest.raises(InvalidInput, match="not a DSSE envelope"):
        Envelope.from_json(text)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"payloadType": "x", "payload": b"", "signatures": [], "more": 1},
        {"payloadType": "x", "payload": "text", "signatures": []},
        {"payloadType": "x", "payload": b"", "signatures": {}},
        {"payloadType": "x", "payload": b"", "signatures": [{"keyid": "k", "sig": "text"}]},
        {"payloadType": "x", "payload": b"", "signatures": [b"sig"]},
        {"payloadType": "x", "payload": bytes((1 << 20) + 1), "signatures": []},
        {"payloadType": "x", "payload": b"", "signatures": [{"keyid": "k", "sig": b""}] * 65},
    ],
)
def test_a_broken_envelope_in_a_record_is_corrupt(value):
    with pytest.raises(Corrupt, match="envelope"):
        Envelope.from_plain(value)
