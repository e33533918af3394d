import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.shards.arrays import cleared
from holdfast.storage.datasets.shards.boundaries import (
    DEFAULT_CHUNK_BYTES,
    MAX_GROUPS,
    MIN_GROUPS,
    GroupCutter,
    checked_chunk_size,
    row_keys,
    row_sizes,
)
from tests.storage.datasets.example_columns import COLUMNS, ROWS


def repeated(column, rows):
    return pa.concat_arrays([column] * (rows // ROWS + 1))[:rows]


def rows_of(rows=4000, seed=0):
    random = np.random.default_rng(seed)
    return pa.record_batch(
        {
            "id": pa.array(random.integers(0, 1 << 40, rows)),
            "text": pa.array([f"{number:x}" * (number % 5) for number in random.integers(0, 1 << 30, rows)]),
            "list": pa.array(
                [list(range(number)) for number in random.integers(0, 4, rows)], pa.list_(pa.int16())
            ),
        }
    )


def ends(batches, chunk_size):
    """The rows, counted from the first on, where groups end; and whether shards do."""
    cutter, before, found = GroupCutter(chunk_size), 0, []
    for batch in batches:
        found += [(before + cut.row, cut.ends_shard) for cut in cutter.cuts(batch)]
        before += batch.num_rows
    return found


def in_pieces(batch, cuts):
    bounds = [0, *sorted(cut % (batch.num_rows + 1) for cut in cuts), batch.num_rows]
    return [batch.slice(start, end - start) for start, end in itertools.pairwise(bounds)]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4, unique=True),
    st.integers(0, 200),
    st.lists(st.integers(0, 10_000), max_size=8),
    st.sampled_from([64, 100, 1000]),
)
def test_the_batches_in_which_rows_come_do_not_move_a_cut(names, rows, cuts, chunk_size):
    batch = pa.record_batch({name: repeated(COLUMNS[name], rows) for name in names})
    assert ends(in_pieces(batch, cuts), chunk_size) == ends([batch], chunk_size)


@pytest.mark.parametrize("name", COLUMNS)
def test_neither_offsets_nor_what_lies_under_nulls_is_part_of_a_key(name):
    column = repeated(COLUMNS[name], 40)
    whole = pa.record_batch({"c": column})
    keys, sizes = row_keys(whole), row_sizes(whole)
    for start, end in ((0, 40), (1, 40), (7, 23), (13, 13)):
        for part in (column[start:end], cleared(column[start:end])):
            batch = pa.record_batch({"c": part})
            np.testing.assert_array_equal(row_keys(batch), keys[start:end])
            np.testing.assert_array_equal(row_sizes(batch), sizes[start:end])


def test_values_under_nulls_are_not_part_of_a_key():
    hidden = pa.array([False, True, False])

    def keys_of(array):
        return row_keys(pa.record_batch({"c": array})).tolist(), row_sizes(
            pa.record_batch({"c": array})
        ).tolist()

    def with_nulls(values, kind, children=()):
        buffers = [pa.array([True, False, True]).buffers()[1], *values]
        return pa.Array.from_buffers(kind, 3, buffers, children=list(children))

    offsets = pa.py_buffer(np.array([0, 1, 3, 4], np.int32))
    assert keys_of(with_nulls([pa.py_buffer(np.array([1, 2, 3]))], pa.int64())) == keys_of(
        pa.array([1, None, 3])
    )
    assert keys_of(with_nulls([offsets, pa.py_buffer(b"abcd")], pa.string())) == keys_of(
        pa.array(["a", None, "d"])
    )
    items = pa.array([7, 8, 9, 10])
    assert keys_of(with_nulls([offsets], pa.list_(pa.int64()), [items])) == keys_of(
        pa.array([[7], None, [10]])
    )
    pairs = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4, 5, 6]), 2, mask=hidden)
    assert keys_of(pairs) == keys_of(pa.array([[1, 2], None, [5, 6]], pa.list_(pa.int64(), 2)))
    structs = pa.StructArray.from_arrays([pa.array([1, 2, 3])], names=["a"], mask=hidden)
    assert keys_of(structs) == keys_of(pa.array([{"a": 1}, None, {"a": 3}]))


@pytest.mark.parametrize("seed", range(3))
def test_groups_and_shards_do_not_grow_beyond_their_bounds(seed):
    chunk_size = 1000
    batch = rows_of(20_000, seed)
    sizes = np.cumsum(row_sizes(batch))
    largest_row = int(row_sizes(batch).max())
    cuts = ends([batch], chunk_size)
    rows = [row for row, _ in cuts]
    groups = np.diff([0, *(int(sizes[row - 1]) for row in rows)])
    assert groups.min() >= chunk_size // 2
    assert groups.max() < 2 * chunk_size + largest_row
    assert chunk_size * 0.8 < groups.mean() < chunk_size * 1.3
    shard_ends = [number for number, (_, ends_shard) in enumerate(cuts, 1) if ends_shard]
    in_shards = np.diff([0, *shard_ends])
    assert in_shards.min() >= MIN_GROUPS
    assert in_shards.max() <= MAX_GROUPS
    assert 10 < in_shards.mean() < 20


@pytest.mark.parametrize("seed", range(5))
def test_a_row_more_or_less_does_not_move_cuts_far_away(seed):
    batch = rows_of(10_000, seed)
    rest = pa.Table.from_batches([batch.slice(0, 3000), batch.slice(3001)]).combine_chunks().to_batches()
    before = [row for row, _ in ends([batch], 1000)]
    after = [row + (row > 3000) for row, _ in ends(rest, 1000)]
    moved = set(before) ^ set(after)
    assert len(before) > 100
    assert len(moved) <= 12
    assert all(2800 < row < 4500 for row in moved)


def test_rows_that_are_all_alike_do_not_make_one_endless_group():
    batch = pa.record_batch({"c": pa.array([1] * 10_000), "n": pa.nulls(10_000)})
    rows = [0, *(row for row, _ in ends([batch], 400))]
    assert set(np.diff(rows)) <= set(range(25, 101))
    nothing = pa.record_batch({"n": pa.nulls(10_000)})
    assert len(ends([nothing], 400)) >= 10


def test_a_row_larger_than_a_group_is_a_group():
    batch = pa.record_batch({"c": ["x" * 5000] * 40})
    cuts = ends([batch], 1000)
    assert [row for row, _ in cuts] == list(range(1, 41))
    assert any(ends_shard for _, ends_shard in cuts)  # of rows this large, a shard holds fewer


def test_impossible_sizes_are_refused():
    assert checked_chunk_size(None) == DEFAULT_CHUNK_BYTES
    assert checked_chunk_size(1000) == 1000
    for wrong in (0, -1, 63, 1 << 40, 1.5, True, "4MiB"):
        with pytest.raises(InvalidInput, match="chunk_size"):
            checked_chunk_size(wrong)  # type: ignore[arg-type]
