"""Small models with everything that they are made of, for tests that follow their lineage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from holdfast.registry import (
    CodeRecord,
    ConversionRecord,
    EnvironmentRecord,
    IndexRecord,
    ModelRecord,
    RunRecord,
)

if TYPE_CHECKING:
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore


def stored_code(store: ContentStore, name: str) -> Cid:
    files = store.add_files({f"{name}.py": f"def {name}(): ...".encode()}, pin=False)
    return CodeRecord(files=files, entry=f"{name}:{name}").store(store)


def stored_run(store: ContentStore, data: Cid, *, seed: int = 0, weights: bytes | None = None) -> Cid:
    environment = EnvironmentRecord(
        python="3.11", system="Linux", machine="x", packages={"torch": "2.6"}
    ).store(store)
    made = weights or f"{seed} {data}".encode() * 400
    return RunRecord(
        code=stored_code(store, "train"),
        data=data,
        environment=environment,
        config={"lr": 0.1},
        seed=seed,
        workers=1,
        threads_per_worker=1,
        metrics={"test_accuracy": 0.9},
        history=(),
        outputs={"files": store.add_files({"model.safetensors": made}, pin=False)},
    ).store(store)


def stored_model(
    store: ContentStore, data: Cid, *, seed: int = 0, parent: Cid | None = None, weights: bytes | None = None
) -> Cid:
    run = stored_run(store, data, seed=seed, weights=weights)
    body: dict[str, Any] = store.get_record(run)
    return ModelRecord(
        framework="pytorch",
        format="safetensors",
        code=stored_code(store, "net"),
        config={},
        files=body["outputs"]["files"],
        run=run,
        data=(data,),
        parent=parent,
        metrics={"test_accuracy": 0.9},
    ).store(store)


def stored_conversion(store: ContentStore, model: Cid, data: Cid) -> Cid:
    return ConversionRecord(
        model=model,
        onnx=store.add_bytes(f"onnx of {model}".encode(), pin=False),
        opset=20,
        data=data,
        split="test",
        comparison={"max_difference": 1e-6},
    ).store(store)


def stored_index(store: ContentStore, model: Cid, conversion: Cid, corpus: Cid) -> Cid:
    return IndexRecord(
        corpus=corpus,
        splits=("train",),
        model=model,
        conversion=conversion,
        output="embedding",
        metric="cosine",
        factory="Flat",
        dim=4,
        rows=40,
        index=store.add_bytes(f"index of {corpus}".encode(), pin=False),
    ).store(store)
