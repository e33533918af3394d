"""Records: what they are hashed as never changes by accident, and what breaks the format is refused."""

from __future__ import annotations

import base64
import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from holdfast.errors import Corrupt, InvalidInput, Unsupported
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
from holdfast.storage.formats import dag_cbor

FIXTURES = Path(__file__).parent / "fixtures"
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
        outputs={"files": D},
    ),
    "model": ModelRecord(
        framework="pytorch",
        format="safetensors",
        code=A,
        config={"width": 16},
        files=B,
        run=C,
        parent=D,
        data=(A, D),
        inputs=({"name": "image", "dtype": "float32", "shape": [1, 8, 8]},),
        outputs=({"name": "logits", "dtype": "float32", "shape": [10]},),
        metrics={"loss": 0.25},
        metadata={"note": "é"},
        model_type="digits",
        licence="Apache-2.0",
        card=C,
    ),
    "model_bare": ModelRecord(framework="onnx", format="onnx", files=B),
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
    "code": "bafyreid7ueidtmd3tpjz3xa2hrmg5bsuxxmhfe4muuemogmhvuu7snghky",
    "environment": "bafyreiebel477my3vnqz6vongqlaxjs3niztp4mbebbfiutlpewh6cj6bq",
    "run": "bafyreib73vd6jtv6y5zxajaplpfv7lez4hl5pd4votdwiscpxcktie3pla",
    "model": "bafyreidicjikexdnrjm5iwmcjmo3dyswkgfn7cq5blp3mo6actgmzmc6j4",
    "model_bare": "bafyreifp4ffi4u2m4mzok64tkhdopotkykdw4zehnhgqmtingrfrkomhny",
    "conversion": "bafyreiabswxjneg2nr2zdthll27lu3oyum3hnqn2ymv3l7s25ylytsym6i",
    "index": "bafyreibxpzn2u2uaxzrz36ata4yvpyixbfpo7qu62lgtqv2dbgkcela67a",
    "attestation": "bafyreic6csqyak5j6boh3pfwijeu6fyh2rvcnrunskn3ufzbnqjy5ivny4",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_record_has_the_cid_that_it_always_had(store, name):
    """Another CID here means that every registry out there would see other records: a decision, never an accident."""
    assert str(GOLDEN[name].store(store)) == CIDS[name]


@pytest.mark.parametrize("file", sorted(FIXTURES.glob("records_schema_*.json")), ids=lambda file: file.stem)
def test_what_an_earlier_release_wrote_is_read_forever(store, file):
    """A file for each version of the formats; it is never written again."""
    for name, data in json.loads(file.read_text()).items():
        value = dag_cbor.decode(base64.b64decode(data))
        cid = store.put_record(value)
        record = load_record(store, cid, RECORDS[value["kind"]])
        for key in value.keys() - {"kind", "schema"}:
            given = value[key]
            assert getattr(record, key) == (tuple(given) if isinstance(given, list) else given), name


@pytest.mark.parametrize("schema", [0, -1, True, "1", None])
def test_a_record_that_does_not_say_its_version_is_corrupt(store, schema):
    body = GOLDEN["code"].to_record() | {"schema": schema}
    with pytest.raises(Corrupt, match="version of its format"):
        load_record(store, store.put_record(body), CodeRecord)


def test_a_record_of_a_later_release_says_so(store):
    cid = store.put_record(GOLDEN["code"].to_record() | {"schema": 2, "new": "field"})
    with pytest.raises(Unsupported, match=f"{cid} is of version 2 .* install a newer one"):
        load_record(store, cid, CodeRecord)


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
    required = [f.name for f in fields(record) if f.default is MISSING and f.default_factory is MISSING]
    for key in required:
        cid = store.put_record({k: v for k, v in body.items() if k != key})
        with pytest.raises(Corrupt, match=key):
            load_record(store, cid, type(record))


@pytest.mark.parametrize("record", GOLDEN.values(), ids=GOLDEN)
@pytest.mark.parametrize("wrong", [True, b"bytes", 1.5])
def test_a_field_of_another_type_is_corrupt(store, record, wrong):
    body = record.to_record()
    for key in body.keys() - {"kind", "schema"}:
        cid = store.put_record(body | {key: wrong})
        with pytest.raises(Corrupt, match=f"'{key}' of the {record.kind} record"):
            load_record(store, cid, type(record))


def test_a_record_of_another_kind_is_not_taken_for_this_one(store):
    code = GOLDEN["code"].store(store)
    with pytest.raises(InvalidInput, match=f"{code} is no model: its kind is 'code'"):
        load_record(store, code, ModelRecord)
    for other in ([1, 2], "text", 5, None, {}, {"kind": None}):
        with pytest.raises(InvalidInput, match="is no model: it is another record"):
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
            ModelRecord(framework="onnx", format="onnx", files=B, metrics=metrics).store(store)
