"""Where the blocks of a shard end."""

import io
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.shards.shard_format import FORMATS, new_encoder, shard_profile

TINY_BYTES = 16 << 10
MAX_BLOCK_BYTES = {"parquet-v2": 1 << 20, "arrow-v2": (1 << 20) + (64 << 10)}


def encoded(stored, groups):
    encoder = new_encoder(stored, groups[0].schema)
    for group in groups:
        encoder.write(group)
    stream, size, places = encoder.finish()
    return stream.read(), size, places


def group_of(rows, widths, seed):
    random = np.random.default_rng(seed)
    return pa.record_batch(
        [
            pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(width), rows, [None, pa.py_buffer(random.bytes(rows * width))]
            )
            for width in widths
        ],
        [f"c{at}" for at in range(len(widths))],
    )


@pytest.mark.parametrize("stored", FORMATS.values())
@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.integers(1, 3000), min_size=1, max_size=4),
    widths=st.lists(st.sampled_from([1, 8, 100, 500, 2000]), min_size=1, max_size=6),
)
def test_blocks_are_the_shard_and_no_two_row_groups_share_one(stored, rows, widths):
    data, size, places = encoded(stored, [group_of(count, widths, seed) for seed, count in enumerate(rows)])
    pieces = list(shard_profile(stored).chunker.chunks(io.BytesIO(data)))
    assert b"".join(pieces) == data
    assert len(data) == size
    assert max(map(len, pieces)) <= MAX_BLOCK_BYTES[stored]
    ends = set(accumulate(map(len, pieces)))
    for place, after in zip(places, [*places[1:], None], strict=True):
        if stored == "parquet-v2" or place.size_bytes >= TINY_BYTES <= (after or place).size_bytes:
            assert place.offset + place.size_bytes in ends


def test_narrow_columns_share_blocks_and_a_wide_one_has_its_own():
    data, _, (place,) = encoded("parquet-v2", [group_of(1000, [8, 8, 100, 2000, 8], 0)])
    pieces = list(shard_profile("parquet-v2").chunker.chunks(io.BytesIO(data)))
    ends = list(accumulate(map(len, pieces)))
    assert 116_000 < ends[0] < 118_000  # the first three
    assert ends[-2] == place.offset + place.size_bytes
    assert 8_000 < len(pieces[-2]) < 9_000  # the last one
    assert all(256 << 10 <= len(piece) <= 1 << 20 for piece in pieces[1:-3])


@pytest.mark.parametrize("stored", FORMATS.values())
@pytest.mark.parametrize("data", [b"", b"no shard", b"PAR1" + bytes(100) + b"PAR1"])
def test_what_is_no_shard_is_refused(stored, data):
    with pytest.raises(InvalidInput):
        list(shard_profile(stored).chunker.chunks(io.BytesIO(data)))
