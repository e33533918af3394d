from __future__ import annotations

import mmap
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from holdfast.errors import Corrupt, InvalidInput
from holdfast.inference import VectorIndex

N, D = 1000, 16


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).normal(size=(20, D)).astype(np.float32)


def expected(vectors, queries, metric):
    if metric == "l2":
        return ((queries[:, None] - vectors[None]) ** 2).sum(2)
    if metric == "cosine":
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    return queries @ vectors.T


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_the_exact_index_finds_what_brute_force_finds(vectors, queries, metric):
    found = VectorIndex.build(vectors, metric=metric).search(queries, k=7)
    scores = expected(vectors, queries, metric)
    order = np.argsort(scores if metric == "l2" else -scores, axis=1)[:, :7]
    assert np.array_equal(found.ids, order)
    np.testing.assert_allclose(found.scores, np.take_along_axis(scores, order, 1), rtol=1e-4)
    assert (found.ids.dtype.name, found.scores.dtype.name) == ("int64", "float32")


def test_building_and_searching_leave_the_callers_vectors_alone(vectors, queries):
    before, asked = vectors.copy(), queries.copy()
    VectorIndex.build(vectors).search(queries)
    assert np.array_equal(vectors, before)
    assert np.array_equal(queries, asked)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat", "IVF8,SQ8", "SQ8", "PCA8,Flat"])
def test_the_bytes_are_repeatable_and_bring_back_the_same_index(vectors, queries, factory):
    index = VectorIndex.build(vectors, factory=factory, metric="cosine")
    data = index.to_bytes()
    assert VectorIndex.build(vectors, factory=factory, metric="cosine").to_bytes() == data
    again = VectorIndex.from_bytes(data)
    assert (len(again), again.dim, again.metric, again.factory) == (N, D, "cosine", factory)
    assert again.to_bytes() == data
    one, two = index.search(queries), again.search(queries)
    assert np.array_equal(one.ids, two.ids)
    assert np.array_equal(one.scores, two.scores)


def test_another_process_builds_the_same_bytes(vectors, tmp_path):
    np.save(tmp_path / "v.npy", vectors)
    code = (
        "import numpy, sys; from holdfast.inference import VectorIndex; sys.stdout.buffer.write("
        "VectorIndex.build(numpy.load('v.npy'), factory='HNSW16').to_bytes())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert run.stdout == VectorIndex.build(vectors, factory="HNSW16").to_bytes()


def test_stored_parameters_change_the_search_and_survive(vectors, queries):
    narrow = VectorIndex.build(vectors, factory="IVF8,Flat", parameters="nprobe=1")
    wide = VectorIndex.from_bytes(
        VectorIndex.build(vectors, factory="IVF8,Flat", parameters="nprobe=8").to_bytes()
    )
    exact = VectorIndex.build(vectors).search(queries)
    assert wide.parameters == "nprobe=8"
    assert np.array_equal(wide.search(queries).ids, exact.ids)
    assert not np.array_equal(narrow.search(queries).ids, exact.ids)


def test_the_buffer_outlives_the_callers_names(vectors, queries, tmp_path):
    path = tmp_path / "index"
    path.write_bytes(VectorIndex.build(vectors).to_bytes())
    with path.open("rb") as file:
        index = VectorIndex.from_bytes(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    expect = VectorIndex.build(vectors).search(queries)
    filler = [bytearray(100_000) for _ in range(50)]  # would reuse freed memory
    assert np.array_equal(index.search(queries).ids, expect.ids)
    del filler


def test_faiss_itself_can_read_the_bytes(vectors, tmp_path):
    import faiss

    path = tmp_path / "index.faiss"
    path.write_bytes(VectorIndex.build(vectors, metric="l2").to_bytes())
    assert faiss.read_index(str(path)).ntotal == N


def test_fewer_vectors_than_k_give_all_of_them(queries):
    index = VectorIndex.build(np.eye(3, D), metric="ip")
    found = index.search(queries[0], k=10)
    assert found.ids.shape == found.scores.shape == (1, 3)
    assert sorted(found.ids[0]) == [0, 1, 2]
    assert index.search(np.empty((0, D)), k=2).ids.shape == (0, 2)


def test_places_without_a_neighbour_are_marked(vectors):
    index = VectorIndex.build(vectors, factory="IVF100,Flat", metric="cosine")
    found = index.search(vectors[:5], k=N)
    assert (found.ids == -1).any()
    assert np.isneginf(found.scores[found.ids == -1]).all()
    assert np.isfinite(found.scores[found.ids >= 0]).all()


def test_a_vector_of_zeros_has_similarity_zero_and_no_nan():
    found = VectorIndex.build(np.array([[0, 0], [3, 4]])).search([[0, 0], [6, 8]], k=2)
    assert found.scores[0].tolist() == [0, 0]
    assert found.ids[1].tolist() == [1, 0]
    np.testing.assert_allclose(found.scores[1], [1, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"vectors": np.empty((0, 4))}, "shape"),
        ({"vectors": np.ones(4)}, "shape"),
        ({"vectors": [[1.0, np.nan]]}, "finite"),
        ({"vectors": [[1.0, 1e300]]}, "finite"),
        ({"vectors": [["a"]]}, "numbers"),
        ({"vectors": [[1.0], [1.0, 2.0]]}, "numbers"),
        ({"vectors": np.eye(4), "metric": "hamming"}, "metric must be one of cosine, l2, ip"),
        ({"vectors": np.eye(4), "factory": "Nonsense9"}, "Nonsense9"),
        ({"vectors": np.eye(4), "factory": "IDMap,Flat"}, "row numbers"),
        ({"vectors": np.eye(4), "factory": "IVF64,Flat"}, "can't build"),
        ({"vectors": np.eye(4), "parameters": "nprobe=3"}, "can't build"),
    ],
)
def test_vectors_and_settings_that_cannot_work_are_refused(arguments, words):
    with pytest.raises(InvalidInput, match=words):
        VectorIndex.build(arguments.pop("vectors"), **arguments)


@pytest.mark.parametrize(
    "query", [np.ones(3), np.ones((1, 5)), np.ones((1, 1, 4)), np.full(4, np.inf), ["a"]]
)
def test_queries_that_do_not_fit_are_refused(query):
    index = VectorIndex.build(np.eye(4))
    with pytest.raises(InvalidInput):
        index.search(query)


def test_k_below_one_is_refused():
    with pytest.raises(InvalidInput, match="k must be"):
        VectorIndex.build(np.eye(4)).search(np.ones(4), k=0)


def test_cut_and_foreign_bytes_are_recognised(vectors):
    data = VectorIndex.build(vectors[:50]).to_bytes()
    for end in range(0, len(data), 37):
        with pytest.raises(Corrupt):
            VectorIndex.from_bytes(data[:end])
    for wrong in (
        data[1:],
        data[:100] + data[104:],
        data + b"x",
        b"\0" * len(data),
        b"{}" + data[-12:],
        b"xxxx" + data[4:],
        data.replace(b'"count":50', b'"count":51'),
        data.replace(b'"cosine"', b'"cosmic"'),
        data.replace(b'"metric"', b'"metrix"'),
    ):
        with pytest.raises(Corrupt):
            VectorIndex.from_bytes(wrong)


def test_threads_may_search_at_once(vectors, queries):
    index = VectorIndex.from_bytes(VectorIndex.build(vectors, factory="HNSW16").to_bytes())
    expect = index.search(queries, k=5).ids
    with ThreadPoolExecutor(4) as pool:
        for ids in pool.map(lambda _: index.search(queries, k=5).ids, range(40)):
            assert np.array_equal(ids, expect)
