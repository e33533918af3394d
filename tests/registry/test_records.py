"""Records: what they are hashed as never changes by accident, and what breaks the format is refused."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry import (
    AttestationRecord,
    CodeRecord,
    ConversionRecord,
    EnvironmentRecord,
    IndexRecord,
    ModelRecord,
    RunRecord,
    load_record,
)
from holdfast.registry.records import RECORDS, Record
from holdfast.storage.cid import Cid

A, B, C, D = (Cid.of(text) for text in (b"a", b"b", b"c", b"d"))

GOLDEN: dict[str, Record] = {
    "code": CodeRecord(files=A, entry="package.module:train"),
    "environment": EnvironmentRecord(
        python="3.11.7", system="Linux", machine="x86_64", packages={"torch": "2.6.0", "numpy": "2.1.0"}
    ),
    "run": RunRecord(
        code=A,
        data=B,
        environment=C,
        config={"lr": 0.001, "epochs": 2, "layers": [16, 32], "deep": {"on": True, "off": None}},
        seed=7,
        workers=2,
        threads_per_worker=1,
        metrics={"loss": 0.25, "epoch": 1},
        history=({"loss": 0.5, "epoch": 0}, {"loss": 0.25, "epoch": 1}),
        outputs={"weights": D},
    ),
    "model": ModelRecord(
        framework="pytorch",
        code=A,
        config={"width": 16},
        weights=B,
        run=C,
        input_shape=(1, 8, 8),
        input_column="image",
        metrics={"loss": 0.25},
        metadata={"note": "é"},
    ),
    "model_bare": ModelRecord(framework="pytorch", code=A, config={}, weights=B),
    "conversion": ConversionRecord(
        model=A, onnx=B, opset=18, data=C, split="test", comparison={"max_difference": 1e-6, "samples": 360}
    ),
    "index": IndexRecord(
        corpus=A,
        splits=("train", "test"),
        model=B,
        conversion=C,
        output="embedding",
        metric="cosine",
        factory="Flat",
        dim=64,
        rows=1797,
        index=D,
    ),
    "attestation": AttestationRecord(
        subjects=(A, B),
        envelope={
            "payloadType": "application/vnd.in-toto+json",
            "payload": b"{}",
            "signatures": [{"keyid": "z6Mk", "sig": bytes(64)}],
        },
    ),
}

CIDS = {
    "code": "bafyreicqahpcbsd7km7stv2cmz2spjszx7wmm6m3qrtcmf4gttxl6s27ya",
    "environment": "bafyreibpdpcd32k4nposjhoezfwpkeooox6l5yf7nfg3n42wwdhi6s4hye",
    "run": "bafyreiey7plr2bqygvbtdizt7rrrynlpthe7mhl2rwr3bzzvfwm2c7kcde",
    "model": "bafyreihdz6tiznhutw74r7rgwpcilzojfstcbnay2gblfru3ajouydn7lu",
    "model_bare": "bafyreiazpsusobhztdbfnuccqtur3mnu5cokltpzyjrq2rzb4jouiquj3q",
    "conversion": "bafyreigfkeuzsvwxpcl5d465ctlkb7wguxctbhspviwbkzmnesaraiib3i",
    "attestation": "bafyreiai5ewteipojj6j6xjpim6da5zuy2gu22so64nl2flq3cxahvh224",
    "index": "bafyreic6apx5gyfqvba3lohwhfhavsotlw5ypvsi2m5abgt742no4nnoay",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_record_has_the_cid_that_it_always_had(store, name):
    """Another CID here means that every registry out there would see other records: a decision, never an accident."""
    assert str(GOLDEN[name].store(store)) == CIDS[name]


def test_every_kind_has_an_example_here():
    assert {type(record) for record in GOLDEN.values()} == set(RECORDS.values())
    assert {cls.kind for cls in Record.__subclasses__()} == set(RECORDS)


@pytest.mark.parametrize("record", GOLDEN.values(), ids=GOLDEN)
def test_a_record_comes_back_as_it_was(store, record):
    cid = record.store(store)
    again = load_record(store, cid, type(record))
    assert again == record
    assert again.store(store) == cid


@pytest.mark.parametrize("record", GOLDEN.values(), ids=GOLDEN)
def test_a_record_with_a_field_too_much_or_too_few_is_corrupt(store, record):
    body = record.to_record()
    cid = store.put_record(body | {"surprise": 1})
    with pytest.raises(Corrupt, match=f"{record.kind} record {cid}.*surprise"):
        load_record(store, cid, type(record))
    required = [
        key
        for key in body
        if key not in ("kind", "run", "parent", "input_shape", "input_column", "metrics", "metadata")
    ]
    for key in required:
        cid = store.put_record({k: v for k, v in body.items() if k != key})
        with pytest.raises(Corrupt, match=key):
            load_record(store, cid, type(record))


@pytest.mark.parametrize("record", GOLDEN.values(), ids=GOLDEN)
@pytest.mark.parametrize("wrong", [True, b"bytes", 1.5])
def test_a_field_of_another_type_is_corrupt(store, record, wrong):
    body = record.to_record()
    for key in body.keys() - {"kind"}:
        cid = store.put_record(body | {key: wrong})
        with pytest.raises(Corrupt, match=f"'{key}' of the {record.kind} record"):
            load_record(store, cid, type(record))


def test_a_record_of_another_kind_is_not_taken_for_this_one(store):
    code = GOLDEN["code"].store(store)
    with pytest.raises(InvalidInput, match=f"{code} is not a model but a code"):
        load_record(store, code, ModelRecord)
    for other in ([1, 2], "text", 5, None, {}, {"kind": None}):
        with pytest.raises(InvalidInput, match="is not a model but another record"):
            load_record(store, store.put_record(other), ModelRecord)
    with pytest.raises(InvalidInput, match="not a record"):
        load_record(store, store.add_bytes(b"a file"), ModelRecord)


def test_a_record_says_nothing_about_when_or_where_it_was_made(store):
    first = EnvironmentRecord.of_this_process()
    assert first.store(store) == EnvironmentRecord.of_this_process().store(store)
    assert set(first.packages) == {"holdfast", "numpy", "pyarrow", "torch"}


def test_a_record_that_can_not_be_kept_exactly_is_refused(store):
    unfit: list[dict[Any, Any]] = [{"loss": float("nan")}, {1: 2}, {"f": print}]
    for metrics in unfit:
        with pytest.raises(InvalidInput):
            ModelRecord(framework="pytorch", code=A, config={}, weights=B, metrics=metrics).store(store)
