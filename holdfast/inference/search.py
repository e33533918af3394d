"""Search by example: a corpus embedded by one model, indexed with FAISS, and never asked by another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from holdfast.errors import Corrupt, InvalidInput
from holdfast.inference.conversion import input_of, model_input, open_engine
from holdfast.inference.vector_index import SearchResult, VectorIndex
from holdfast.registry.compute.computation import Computation
from holdfast.registry.compute.environment import numeric_environment
from holdfast.registry.records import ConversionRecord, IndexRecord, ModelRecord, load_record
from holdfast.storage.datasets.dataset import open_dataset
from holdfast.storage.loaders.collation import table_to_numpy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from holdfast.inference.onnx_engine import ONNXInferenceEngine
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore
    from holdfast.storage.datasets.dataset import Dataset

__all__ = ["CorpusIndex", "Neighbour", "build_index", "embed", "index_computation"]

_BATCH = 256
_PACKAGES = ("faiss-cpu", "numpy", "onnxruntime", "pyarrow")
"""What decides the numbers of an index."""


def embed(engine: ONNXInferenceEngine, samples: NDArray[Any], output: str) -> NDArray[np.float32]:
    """One vector a sample, shape (n, d): the output ``output`` of a converted model."""
    known = [info.name for info in engine.outputs]
    if output not in known:
        raise InvalidInput(f"the model has no output {output!r}; it has {', '.join(known)}")
    pieces = [
        engine.predict(samples[at : at + _BATCH], outputs=[output]).outputs[output]
        for at in range(0, len(samples), _BATCH)
    ]
    vectors: NDArray[np.float32] = np.concatenate(pieces).astype(np.float32, copy=False)
    return vectors.reshape(len(vectors), -1)


def index_computation(
    *,
    corpus: Cid,
    model: Cid,
    conversion: Cid,
    splits: tuple[str, ...] | None = None,
    output: str = "embedding",
    metric: str = "cosine",
    factory: str = "Flat",
) -> Computation:
    """The computation that building an index is, in this process: the key under which it is remembered.

    Args:
        corpus: As of :func:`build_index`; so are the others.
        model: The model's manifest.
        conversion: Its ONNX form.
        splits: Which parts.
        output: The output of the model that is the vector.
        metric: ``cosine``, ``ip`` or ``l2``.
        factory: FAISS' description of the index.
    """
    return Computation(
        function="index",
        inputs={"corpus": corpus, "model": model, "conversion": conversion},
        config={
            "splits": list(splits) if splits is not None else None,
            "output": output,
            "metric": metric,
            "factory": factory,
        },
        environment=numeric_environment(_PACKAGES),
    )


def build_index(
    store: ContentStore,
    *,
    corpus: Cid,
    model: Cid,
    conversion: Cid,
    splits: tuple[str, ...] | None = None,
    output: str = "embedding",
    metric: str = "cosine",
    factory: str = "Flat",
) -> Cid:
    """The CID of an index over the rows of a dataset, as one model sees them.

    Args:
        store: Where everything is.
        corpus: The dataset.
        model: The model's manifest.
        conversion: Its ONNX form.
        splits: Which parts, in which order; default all. A row's id is its position in them.
        output: The output of the model that is the vector.
        metric: ``cosine``, ``ip`` or ``l2``.
        factory: FAISS' description of the index; ``Flat`` is exact.
    """
    taken = input_of(model, load_record(store, model, ModelRecord))
    converted = load_record(store, conversion, ConversionRecord)
    if converted.model != model:
        raise InvalidInput(f"{conversion} is the ONNX form of {converted.model}, not of {model}")
    dataset = open_dataset(store, corpus)
    chosen = splits or tuple(dataset.splits)
    engine = open_engine(store, converted)
    vectors = np.concatenate(
        [embed(engine, model_input(dataset, split, taken.name), output) for split in chosen]
    )
    index = VectorIndex.build(vectors, metric=metric, factory=factory)  # type: ignore[arg-type]  # checked there
    return IndexRecord(
        corpus=corpus,
        splits=chosen,
        model=model,
        conversion=conversion,
        output=output,
        metric=metric,
        factory=factory,
        dim=index.dim,
        rows=len(index),
        index=store.add_bytes(index.to_bytes(), pin=False),
    ).store(store)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """One row of the corpus: its place, how near it is, and its values."""

    id: int
    split: str
    row: int
    score: float
    values: dict[str, Any]
    """By column: plain Python values, and arrays for tensors."""


class CorpusIndex:
    """A stored index, opened: finds rows of its corpus that are like a sample.

    Args:
        store: Where it is.
        cid: The index record.

    Raises:
        InvalidInput: ``cid`` is no index.
        Corrupt: The index does not hold what its record says.
    """

    def __init__(self, store: ContentStore, cid: Cid) -> None:
        self.cid = cid
        self.record = load_record(store, cid, IndexRecord)
        self.dataset: Dataset = open_dataset(store, self.record.corpus)
        self._index = VectorIndex.from_bytes(store.open(self.record.index))
        if (len(self._index), self._index.dim) != (self.record.rows, self.record.dim):
            raise Corrupt(
                f"index {cid} holds {len(self._index)} vectors of {self._index.dim}, its record says otherwise"
            )
        self._engine = open_engine(store, load_record(store, self.record.conversion, ConversionRecord))

    def __len__(self) -> int:
        return len(self._index)

    def search(self, samples: NDArray[Any], k: int = 10) -> list[list[Neighbour]]:
        """The rows nearest to each sample, best first, embedded by the index's own model.

        Args:
            samples: What the model takes, rows first; one sample may come without the first dimension.
            k: How many for each.
        """
        batch = np.asarray(samples, dtype=np.float32)
        expected = self._engine.inputs[0].shape
        if batch.ndim == len(expected) - 1:
            batch = batch[None]
        found = self._index.search(embed(self._engine, batch, self.record.output), k)
        return [
            [self._neighbour(int(i), float(s)) for i, s in zip(ids, scores, strict=True) if i >= 0]
            for ids, scores in zip(found.ids, found.scores, strict=True)
        ]

    def search_vectors(self, vectors: NDArray[Any], k: int = 10, *, model: Cid) -> SearchResult:
        """Ids and scores for vectors that the caller made with ``model``.

        Raises:
            InvalidInput: They were made by another model: its numbers mean nothing here.
        """
        if model != self.record.model:
            raise InvalidInput(
                f"index {self.cid} was made with model {self.record.model}; vectors of {model} can't be compared with it"
            )
        return self._index.search(vectors, k)

    def _neighbour(self, place: int, score: float) -> Neighbour:
        row = place
        for split in self.record.splits:
            for shard in self.dataset.shards(split):
                for index, group in enumerate(shard.groups):
                    if row < group.rows:
                        found = self.dataset.open_shard(shard).read_group(index).slice(row, 1)
                        values = {name: _plain(column[0]) for name, column in table_to_numpy(found).items()}
                        at = place - self._start_of(split)
                        return Neighbour(id=place, split=split, row=at, score=score, values=values)
                    row -= group.rows
        raise Corrupt(f"index {self.cid} has the id {place}, which its corpus does not")

    def _start_of(self, split: str) -> int:
        before = self.record.splits[: self.record.splits.index(split)]
        return sum(self.dataset.rows_in(name) for name in before)


def _plain(value: Any) -> Any:
    """A number or a text as Python's own; an array stays one."""
    return value.item() if isinstance(value, np.generic) else value
