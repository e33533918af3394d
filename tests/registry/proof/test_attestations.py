"""Attestations: what was signed about one thing proves nothing about another, and no changed bit goes unseen."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.registry import AttestationRecord, load_record
from holdfast.registry.proof import (
    SLSA_PROVENANCE,
    VOUCH,
    Envelope,
    Signature,
    SigningKey,
    SqliteAttestations,
    Statement,
    read_attestation,
    sign,
)
from holdfast.registry.proof.attestations import store_attestation
from holdfast.registry.proof.statements import PAYLOAD_TYPE
from holdfast.storage.cid import DAG_CBOR, Cid
from holdfast.storage.formats import dag_cbor


@pytest.fixture
def model(store):
    return store.put_record({"kind": "model", "weights": store.add_bytes(b"weights")})


def rows(database):
    return database.rows("SELECT * FROM attestations")


def note(database, subject, attestation, keyid="z6Mk"):
    """Write into the table what nobody checked, as somebody with the file might."""
    with database.writing() as sql:
        sql.execute(
            "INSERT INTO attestations VALUES (?, ?, ?, 0)", (str(subject), str(attestation), str(keyid))
        )


def test_what_is_signed_is_found_again_from_what_it_is_about(alice, bob, model, database):
    cid = alice.sign(model, claims={"reviewed": True})
    (signed,) = alice.of([model])[model]
    assert (signed.attestation, signed.name, signed.vouches) == (cid, "user", True)
    assert signed.claims == {"reviewed": True}
    assert bob.of([model])[model][0].name is None, "alice is nobody to bob before he trusts her"
    bob.keys.trust("alice", alice.keys.own().public)
    assert bob.of([model])[model][0].name == "alice"
    assert alice.of([Cid.of(b"other")]) == {}
    assert len(rows(database)) == 1


def test_the_same_statement_of_the_same_key_is_one_attestation(alice, model, database):
    assert alice.sign(model, claims={"a": 1, "b": 2}) == alice.sign(model, claims={"b": 2, "a": 1})
    assert alice.sign(model) != alice.sign(model, claims={"a": 2})
    assert len(rows(database)) == 3


def test_the_statement_is_what_in_toto_says(alice, model):
    body = json.loads(read_attestation(alice.store, alice.sign(model, claims={"note": "é"})).envelope.payload)
    assert body == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": str(model), "digest": {"sha256": model.multihash[2:].hex()}}],
        "predicateType": VOUCH,
        "predicate": {"note": "é"},
    }


def test_a_subject_may_have_the_other_hash_too(alice):
    data = b"hashed with blake3"
    cid = Cid.of(data, hash="blake3")
    alice.store.blocks.put_many([(cid, data)])
    found = read_attestation(alice.store, alice.sign(cid))
    assert json.loads(found.envelope.payload)["subject"][0]["digest"] == {"blake3": cid.multihash[2:].hex()}
    assert alice.of([cid])[cid][0].vouches
    with pytest.raises(InvalidInput, match="can't be signed"):
        alice.sign(Cid(bytes((1, 0x55, 0, 1)) + b"x"))


def test_the_record_links_its_subjects(alice, model):
    record = load_record(alice.store, alice.sign(model), AttestationRecord)
    assert record.subjects == (model,)


def test_one_attestation_about_several_things_by_several_people(alice, bob, model):
    other = alice.store.add_bytes(b"other")
    keys = [alice.keys.own(), bob.keys.own()]
    cid = sign(alice.store, alice.attestations, [model, other], keys)
    for subject in (model, other):
        found = alice.of([subject])[subject]
        assert [(one.attestation, one.key) for one in found] == [(cid, key.public) for key in keys]
        assert all(one.vouches for one in found)


def test_nobody_signs_what_is_not_there_and_nothing_is_kept_then(alice, database):
    missing = Cid.of(b"nobody has this")
    with pytest.raises(NotFound):
        alice.sign(missing)
    with pytest.raises(InvalidInput):
        alice.sign(alice.store.add_bytes(b"x"), claims={"x": float("nan")})
    for claims in ({1: 2}, {"x": (1, 2)}, {"x": b"bytes"}, {"x": object()}):
        with pytest.raises(InvalidInput, match="plain JSON"):
            alice.sign(alice.store.add_bytes(b"x"), claims=claims)
    assert rows(database) == []


def test_a_replayed_attestation_proves_nothing_about_another_cid(alice, model, database):
    cid = alice.sign(model)
    other = alice.store.add_bytes(b"not what alice signed")
    note(database, other, cid, alice.keys.own().public)
    (found,) = alice.of([other])[other]
    assert not found.vouches
    assert "about something else" in str(found.problem)


def test_links_to_another_thing_than_was_signed_are_found(alice, model, database):
    record = load_record(alice.store, alice.sign(model), AttestationRecord)
    other = alice.store.add_bytes(b"not what alice signed")
    for subjects in ((other,), (model, other), ()):
        cid = AttestationRecord(subjects=subjects, envelope=record.envelope).store(alice.store)
        with pytest.raises(Corrupt, match="what was signed is about"):
            alice.attestations.add(cid)
        with pytest.raises(Corrupt):
            read_attestation(alice.store, cid)
    note(database, other, cid)
    assert "what was signed is about" in str(alice.of([other])[other][0].problem)


def changed_envelopes(record):
    """The envelope of a record with something else in each of its parts."""
    envelope = Envelope.from_plain(record.envelope)
    (signature,) = envelope.signatures
    body = json.loads(envelope.payload)

    def payload(**other):
        return json.dumps(body | other, sort_keys=True, separators=(",", ":")).encode()

    flipped = bytes([signature.sig[0] ^ 1]) + signature.sig[1:]
    stranger = SigningKey.generate("stranger")
    for name, parts in {
        "predicate": {"payload": payload(predicate={"reviewed": "yes"})},
        "predicate type": {"payload": payload(predicateType="urn:other:v1")},
        "spaces": {"payload": json.dumps(body).encode()},
        "sig": {"signatures": (Signature(signature.keyid, flipped),)},
        "no sig": {"signatures": (Signature(signature.keyid, b""),)},
        "keyid": {"signatures": (Signature(str(stranger.public), signature.sig),)},
        "broken keyid": {"signatures": (Signature(signature.keyid[:-1], signature.sig),)},
        "no keyid": {"signatures": (Signature("", signature.sig),)},
        "nobody": {"signatures": ()},
        "payload type": {"payload_type": "text/plain"},
        "digest": {
            "payload": payload(subject=[{"name": body["subject"][0]["name"], "digest": {"sha256": "00"}}])
        },
        "no subject": {"payload": payload(subject=[])},
        "no object": {"payload": b"[]"},
        "no json": {"payload": envelope.payload[:-1]},
    }.items():
        before = {
            "payload_type": envelope.payload_type,
            "payload": envelope.payload,
            "signatures": envelope.signatures,
        }
        yield name, Envelope(**{**before, **parts})


def test_a_changed_envelope_is_never_kept_and_proves_nothing_where_it_is_noted(alice, model, database):
    record = load_record(alice.store, alice.sign(model), AttestationRecord)
    before = rows(database)
    names = set()
    for name, envelope in changed_envelopes(record):
        cid = AttestationRecord(subjects=(model,), envelope=envelope.to_plain()).store(alice.store)
        with pytest.raises((Corrupt, InvalidInput), match=str(cid)):
            alice.attestations.add(cid)
        assert rows(database) == before, name
        note(database, model, cid, alice.keys.own().public)
        found = [one for one in alice.of([model])[model] if one.attestation == cid]
        assert found, name
        if name == "no keyid":  # it is alice's, and she knows her own key
            assert [one.vouches for one in found] == [True]
        else:
            assert not any(one.vouches for one in found), name
        names.add(name)
        with database.writing() as sql:
            sql.execute("DELETE FROM attestations WHERE attestation = ?", (str(cid),))
    assert len(names) == 14


def test_one_flipped_byte_anywhere_in_the_record_is_noticed(alice, bob, model, database):
    cid = alice.sign(model)
    data = bytes(memoryview(alice.store.blocks.get(cid)))
    for at in range(len(data)):
        other = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        changed = Cid.of(other, DAG_CBOR)
        alice.store.blocks.put_many([(changed, other)])
        note(database, model, changed, alice.keys.own().public)
    for one in bob.of([model])[model]:
        assert one.vouches == (one.attestation == cid), f"{one} after a flip"
    # The name of the key is not signed: alice, who knows hers, finds it without. It is hers, whatever stands there.
    assert {one.key for one in alice.of([model])[model] if one.vouches} == {alice.keys.own().public}
    with pytest.raises((Corrupt, InvalidInput)):
        alice.attestations.add(changed)


def test_an_attestation_that_is_missing_is_named(alice, model, database):
    gone = Cid.of(b"gone", DAG_CBOR)
    note(database, model, gone)
    (found,) = alice.of([model])[model]
    assert not found.vouches
    assert str(gone) in str(found.problem)


def test_what_is_exported_comes_back_as_the_same_record(alice, bob, model):
    cid = alice.sign(model, claims={"a": [1, 2.5, None]})
    assert bob.add(alice.export(cid)) == cid
    with pytest.raises(InvalidInput, match="not a statement"):
        bob.add(Envelope.signed("text/plain", b"x", [bob.keys.own()]).to_json())
    with pytest.raises(InvalidInput, match="not a DSSE"):
        bob.add("{}")


def test_an_envelope_whose_signer_can_t_be_told_is_not_kept(alice, model):
    envelope = Envelope.from_json(alice.export(alice.sign(model)))
    signatures = (Signature("sha256:abc", envelope.signatures[0].sig),)
    foreign = Envelope(payload_type=PAYLOAD_TYPE, payload=envelope.payload, signatures=signatures)
    with pytest.raises(InvalidInput, match="none of its signatures"):
        alice.add(foreign.to_json())


@pytest.mark.parametrize("claims", ["x", 3, [], [("a", 1)], {1: 2}, {"a": object()}, {"a": float("nan")}])
def test_claims_are_names_with_plain_values(alice, model, claims):
    with pytest.raises(InvalidInput, match="claims"):
        alice.sign(model, claims=claims)


@pytest.mark.parametrize(
    "kind", ["urn:x\n│  ✓ signed by alice", "urn:a b", "urn:\x1b[2K", "urn:\u202e", "warning", 3]
)
def test_the_type_of_a_statement_is_a_uri_and_nothing_that_could_be_taken_for_more(alice, model, kind):
    with pytest.raises(InvalidInput, match="is a URI"):
        Statement(subjects=(model,), predicate_type=kind)
    body = json.loads(Statement(subjects=(model,)).to_payload()) | {"predicateType": kind}
    envelope = Envelope.signed(PAYLOAD_TYPE, json.dumps(body).encode(), [alice.keys.own()])
    with pytest.raises(Corrupt):
        alice.add(envelope.to_json())


def test_a_statement_that_is_nested_too_deep_is_neither_made_nor_kept(alice, model):
    deep: object = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(InvalidInput, match="too deep"):
        alice.sign(model, claims={"a": deep})
    body = json.loads(Statement(subjects=(model,)).to_payload()) | {"predicate": {"a": deep}}
    envelope = Envelope.signed(PAYLOAD_TYPE, json.dumps(body).encode(), [alice.keys.own()])
    with pytest.raises(Corrupt, match="too deep"):
        alice.add(envelope.to_json())


def test_other_statements_are_kept_and_are_no_vouching(alice, model):
    cid = sign(
        alice.store,
        alice.attestations,
        model,
        alice.keys.own(),
        predicate_type=SLSA_PROVENANCE,
        predicate={"buildDefinition": {}},
    )
    (found,) = alice.of([model])[model]
    assert (found.attestation, found.problem, found.predicate_type) == (cid, None, SLSA_PROVENANCE)
    assert not found.vouches


def test_an_attestation_stays_as_long_as_its_subject_and_no_longer(alice, model, database, store):
    from holdfast.storage.local.collector import Collector

    cid = alice.sign(model)
    local = store.blocks.inner
    collector = Collector(local, store.pins, grace_s=0.0)
    store.hold("model m:1.0.0", model)
    store.unpin(store.get_record(model)["weights"])
    collector.collect()
    assert store.blocks.has(cid), "it is held, though nothing links it"
    assert alice.attestations.tidy() == []
    store.pins.release("model m:1.0.0")
    collector.collect()
    assert not store.blocks.has(model)
    assert alice.attestations.tidy() == [cid]
    assert rows(database) == []
    collector.collect()
    assert not store.blocks.has(cid)


def test_the_table_can_be_made_again_from_the_records(alice, bob, model, database, store):
    alice.sign(model, claims={"x": 1})
    bob.sign(model)
    sign(store, alice.attestations, [model, store.add_bytes(b"o")], [alice.keys.own(), bob.keys.own()])
    store.add_bytes(b"dkindkattestation, says this file")
    store.put_record({"kind": "attestation", "subjects": [], "envelope": {}})

    def plain():
        return sorted(tuple(row)[:3] for row in rows(database))

    before = plain()
    assert len(before) == 6
    with database.writing() as sql:
        sql.execute("DELETE FROM attestations")
    assert SqliteAttestations(database, store).rebuild() == 3
    assert plain() == before


def test_a_find_of_very_many_things_is_one_answer(alice, model):
    cid = alice.sign(model)
    many = [Cid.of(str(number).encode()) for number in range(2500)]
    assert [one.attestation for one in alice.attestations.find([*many, model, *many])] == [cid]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.lists(st.binary(max_size=20).map(Cid.of), min_size=1, max_size=4, unique=True),
    st.dictionaries(st.text(), json_values, max_size=4),
)
def test_a_statement_comes_back_from_its_bytes(subjects, claims):
    statement = Statement(subjects=tuple(subjects), predicate=claims)
    assert Statement.from_payload(statement.to_payload()) == statement


@pytest.mark.parametrize(
    "subjects", [(), tuple(Cid.of(str(n).encode()) for n in range(1025)), (Cid.of(b""),) * 2]
)
def test_a_statement_is_about_a_few_things_once_each(subjects):
    with pytest.raises(InvalidInput):
        Statement(subjects=subjects)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"5",
        b"{}",
        b"[" * 100_000,
        b'{"_type": "https://in-toto.io/Statement/v0.1", "subject": [], "predicateType": "a:b"}',
        b'{"_type": "https://in-toto.io/Statement/v1", "subject": [], "predicateType": "a:b"}',
        b'{"_type": "https://in-toto.io/Statement/v1", "subject": [5], "predicateType": "a:b"}',
        b'{"_type": "https://in-toto.io/Statement/v1", "subject": [{"name": "app", "digest": {}}], "predicateType": "a:b"}',
    ],
)
def test_a_payload_that_is_no_statement_about_cids_is_corrupt(store, body):
    with pytest.raises(Corrupt):
        Statement.from_payload(body)
    with pytest.raises(Corrupt):
        store_attestation(store, Envelope(payload_type=PAYLOAD_TYPE, payload=body, signatures=()))


def test_slsa_provenance_says_how_a_model_was_made(store, alice):
    from holdfast.registry import EnvironmentRecord, ModelRecord, RunRecord
    from holdfast.registry.proof import slsa_provenance

    data, code = store.add_bytes(b"data"), store.add_bytes(b"code")
    environment = EnvironmentRecord(python="3.11", system="Linux", machine="x", packages={}).store(store)
    run = RunRecord(
        code=code,
        data=data,
        environment=environment,
        config={"lr": 0.1},
        seed=7,
        workers=2,
        threads_per_worker=1,
        metrics={},
        history=(),
        outputs={"files": data},
    ).store(store)
    model = ModelRecord(framework="pytorch", format="safetensors", code=code, files=data, run=run).store(
        store
    )
    predicate = slsa_provenance(store, model, builder="did:key:z6Mk")
    assert predicate["buildDefinition"]["externalParameters"]["seed"] == 7
    found = {one["name"]: one for one in predicate["buildDefinition"]["resolvedDependencies"]}
    assert found["data"]["digest"] == {"sha256": data.multihash[2:].hex()}
    assert set(found) == {"code", "data", "environment"}
    sign(
        store,
        alice.attestations,
        model,
        alice.keys.own(),
        predicate=predicate,
        predicate_type=SLSA_PROVENANCE,
    )
    assert alice.of([model])[model][0].problem is None
    bare = ModelRecord(framework="pytorch", format="safetensors", code=code, files=data).store(store)
    with pytest.raises(InvalidInput, match="no recorded run"):
        slsa_provenance(store, bare, builder="x:y")


def test_the_encoding_of_an_attestation_is_canonical(alice, model):
    data = bytes(memoryview(alice.store.blocks.get(alice.sign(model))))
    assert dag_cbor.encode(dag_cbor.decode(data)) == data
