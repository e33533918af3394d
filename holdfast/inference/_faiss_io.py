"""FAISS as plain functions: build, write, open and ask an index, with FAISS' errors turned into holdfast's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faiss as _faiss

from holdfast.errors import Corrupt, InvalidInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["build", "normalized", "open_index", "search", "serialized"]

faiss: Any = _faiss  # its type stubs lack half of what is used here


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy whose rows have length 1; a row of zeros stays, so that its similarity to anything is 0."""
    copy = vectors.copy()
    faiss.normalize_L2(copy)
    return copy


def build(vectors: NDArray[np.float32], *, inner_product: bool, factory: str, parameters: str) -> Any:
    """A trained and filled index.

    Raises:
        InvalidInput: FAISS does not know the factory or a parameter, or has too few vectors to train on.
    """
    threads = faiss.omp_get_max_threads()
    # Several threads link an HNSW graph in the order in which they happen to run, and the bytes then differ.
    faiss.omp_set_num_threads(1)
    try:
        metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
        index = faiss.index_factory(vectors.shape[1], factory, metric)
        index.train(vectors)
        index.add(vectors)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"FAISS can't build {factory!r} with {parameters or 'no'} parameters "
            f"from {len(vectors)} vectors of {vectors.shape[1]} numbers: {_reason(error)}"
        ) from error
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def serialized(index: Any) -> NDArray[np.uint8]:
    """The index as FAISS writes it to a file."""
    data: NDArray[np.uint8] = faiss.serialize_index(index)
    return data


def open_index(data: NDArray[np.uint8]) -> Any:
    """The index in ``data``, whose arrays are used in place where FAISS can. ``data`` must outlive it.

    Raises:
        Corrupt: FAISS can't read it.
    """
    try:
        return faiss.read_index(
            faiss.ZeroCopyIOReader(faiss.swig_ptr(data), data.size), faiss.IO_FLAG_MMAP_IFC
        )
    except (RuntimeError, MemoryError) as error:
        raise Corrupt(f"FAISS can't read this index: {_reason(error)}") from error


def search(index: Any, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and scores of the ``k`` best vectors for each query."""
    scores, ids = index.search(queries, k)
    return ids, scores


def _reason(error: BaseException) -> str:
    """What FAISS said, without the C++ signature and source line before it."""
    text = str(error).strip() or type(error).__name__
    return text.rpartition(": Error: ")[2].rpartition(".cpp:")[2].lstrip("0123456789: ")
