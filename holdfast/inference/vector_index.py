"""Nearest vectors of a corpus, in an index that is plain bytes.

Example::

    index = VectorIndex.build(vectors)  # cosine similarity, exact
    found = index.search(query, k=5)
    data = index.to_bytes()  # store it by CID; FAISS itself can read it, too
    VectorIndex.from_bytes(data).search(query, k=5)

The bytes are a FAISS index followed by a small JSON record (metric, factory, parameters, size), that record's
length and a magic number. FAISS stops reading at its own end, so ``faiss.read_index`` opens the file as it is.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from holdfast.errors import Corrupt, InvalidInput
from holdfast.inference import _faiss_io

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

__all__ = ["Metric", "SearchResult", "VectorIndex"]

Metric = Literal["cosine", "l2", "ip"]

_MAGIC = b"HFVECIX1"
_TAIL = struct.Struct("<I8s")
"""Length of the JSON record, then the magic number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The best vectors for each query, best first."""

    ids: NDArray[np.int64]
    """Row numbers in the corpus, shape (queries, k). -1: an approximate index found no more."""
    scores: NDArray[np.float32]
    """Cosine similarity or inner product (larger is better), or squared distance (smaller is better)."""


class VectorIndex:
    """An immutable index over ``n`` vectors whose ids are their row numbers; threads may search it at once.

    Make one with :meth:`build` or :meth:`from_bytes`.
    """

    def __init__(
        self, index: Any, *, metric: Metric, factory: str, parameters: str, buffer: Any = None
    ) -> None:
        self._index = index
        self._metric = metric
        self._factory = factory
        self._parameters = parameters
        self._count = int(index.ntotal)
        self._dim = int(index.d)
        self._buffer = buffer  # the index points into it

    @classmethod
    def build(
        cls, vectors: Any, *, metric: Metric = "cosine", factory: str = "Flat", parameters: str = ""
    ) -> VectorIndex:
        """An index over the rows of ``vectors``.

        The same vectors give the same bytes: building runs on one thread.

        Args:
            vectors: Array of shape (n, d); converted to float32.
            metric: ``"cosine"`` (the rows are normalised in a copy), ``"ip"`` (inner product) or ``"l2"``.
            factory: FAISS' description: ``"Flat"`` is exact, ``"HNSW32"`` or ``"IVF1024,SQ8"`` are faster.
            parameters: FAISS' search parameters that are stored with the index, such as ``"nprobe=8"`` or
                ``"efSearch=64"``.

        Raises:
            InvalidInput: No vectors, numbers that are not finite, an unknown metric, factory or parameter.
        """
        if metric not in get_args(Metric):
            raise InvalidInput(f"metric must be one of {', '.join(get_args(Metric))}, not {metric!r}")
        if "IDMap" in factory:
            raise InvalidInput("ids are the row numbers of the corpus: leave IDMap out of the factory")
        array = _vectors(vectors, what="vectors")
        if array.ndim != 2 or not array.size:
            raise InvalidInput(
                f"vectors must have the shape (n, d) with n and d at least 1, not {array.shape}"
            )
        if metric == "cosine":
            array = _faiss_io.normalized(array)
        index = _faiss_io.build(array, inner_product=metric != "l2", factory=factory, parameters=parameters)
        return cls(index, metric=metric, factory=factory, parameters=parameters)

    @classmethod
    def from_bytes(cls, buffer: Buffer) -> VectorIndex:
        """The index that :meth:`to_bytes` wrote.

        Flat and HNSW vectors are used where they lie, with no copy; the buffer (bytes, a memory map) is kept
        alive, and must not change.

        Only pass bytes from a verified CID: FAISS' reader was not made for hostile input. Truncated bytes are
        recognised here, but cleverly altered ones can crash the process.

        Raises:
            Corrupt: These are not, or not all, of the bytes of an index.
        """
        data = np.frombuffer(memoryview(buffer), dtype=np.uint8)
        if data.size < _TAIL.size:
            raise Corrupt(f"{data.size} bytes are too few for a vector index")
        length, magic = _TAIL.unpack(data[-_TAIL.size :].tobytes())
        end = data.size - _TAIL.size - length
        if magic != _MAGIC or end < 0:
            raise Corrupt(
                "these bytes do not end as a vector index does: they are cut off, or something else"
            )
        try:
            record = json.loads(data[end : end + length].tobytes())
            metric, factory, parameters = record["metric"], record["factory"], record["parameters"]
            count, dim, size = record["count"], record["dim"], record["faiss_bytes"]
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"the record of this vector index can't be read: {error}") from error
        if size != end or metric not in get_args(Metric):
            raise Corrupt("the record of this vector index does not fit its bytes")
        index = _faiss_io.open_index(data[:end])
        if (index.ntotal, index.d) != (count, dim):
            raise Corrupt(
                f"the index holds {index.ntotal} x {index.d} numbers, its record says {count} x {dim}"
            )
        return cls(index, metric=metric, factory=factory, parameters=parameters, buffer=data)

    def to_bytes(self) -> bytes:
        """The whole index; the same bytes for the same vectors, settings and version of FAISS."""
        body = _faiss_io.serialized(self._index)
        record = {
            "count": len(self),
            "dim": self.dim,
            "factory": self._factory,
            "faiss_bytes": body.size,
            "metric": self._metric,
            "parameters": self._parameters,
        }
        text = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        return b"".join((body.data, text, _TAIL.pack(len(text), _MAGIC)))

    def search(self, queries: Any, k: int = 10) -> SearchResult:
        """The ``k`` best vectors for each query, or all of them if there are fewer.

        Args:
            queries: Array of shape (q, d), or (d,) for one query; converted to float32.
            k: How many to find.

        Raises:
            InvalidInput: Another dimension, numbers that are not finite, or ``k`` below 1.
        """
        if k < 1:
            raise InvalidInput(f"k must be at least 1, not {k}")
        array = _vectors(queries, what="queries")
        if array.ndim == 1:
            array = array.reshape(1, -1)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise InvalidInput(f"queries must have the shape (q, {self.dim}), not {array.shape}")
        k = min(k, len(self))
        if not len(array):
            return SearchResult(ids=np.empty((0, k), np.int64), scores=np.empty((0, k), np.float32))
        if self._metric == "cosine":
            array = _faiss_io.normalized(array)
        ids, scores = _faiss_io.search(self._index, array, k)
        # Missing neighbours stand at the end, and FAISS gives them the largest finite number as their score.
        if ids[:, -1].min() < 0:
            scores[ids < 0] = np.inf if self._metric == "l2" else -np.inf
        return SearchResult(ids=ids, scores=scores)

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"VectorIndex({len(self)} x {self.dim}, metric={self._metric!r}, factory={self._factory!r})"

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self._dim

    @property
    def metric(self) -> Metric:
        """``cosine``, ``l2`` or ``ip``."""
        return self._metric

    @property
    def factory(self) -> str:
        """FAISS' description of the kind of index."""
        return self._factory

    @property
    def parameters(self) -> str:
        """FAISS' search parameters that are stored with the index."""
        return self._parameters


def _vectors(value: Any, *, what: str) -> NDArray[np.float32]:
    try:
        array = np.asarray(value)
        if array.dtype != np.float32 or not array.flags.c_contiguous:
            with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
                array = np.ascontiguousarray(array, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} must be numbers: {error}") from error
    if not np.isfinite(array).all():
        raise InvalidInput(f"{what} must be finite: there is a NaN or an infinity among them")
    return array
