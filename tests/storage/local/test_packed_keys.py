"""Multihashes packed one behind the other."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast.storage.local.packed_keys import PackedKeys


@given(st.lists(st.lists(st.binary(max_size=255))))
def test_what_went_in_comes_out_in_order(several):
    keys = PackedKeys(several[0] if several else ())
    for more in several[1:]:
        keys.extend(more)
    everything = [key for each in several for key in each]
    assert list(keys) == everything
    assert list(keys) == everything  # and again
    assert len(keys) == len(everything)
    assert bool(keys) == bool(everything)
