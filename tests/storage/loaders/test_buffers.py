"""Memory is used again when nobody has it any more, and never before."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.storage.loaders.pipeline.buffers import Buffers

LARGE = [((1 << 20,), np.dtype(np.uint8))]


def address(array):
    return array.__array_interface__["data"][0]


def test_a_buffer_is_used_again_when_its_arrays_are_gone():
    buffers = Buffers(8 << 20)
    (first,) = buffers.arrays(LARGE)
    before = address(first)
    del first
    (second,) = buffers.arrays(LARGE)
    assert address(second) == before


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[5:7],
        lambda array: array.reshape(2, -1).T,
        lambda array: torch.from_numpy(array[:3]),
        memoryview,
        np.from_dlpack,
        lambda array: {"batch": [array[1:]]},
    ],
    ids=["slice", "transposed", "tensor", "memoryview", "dlpack", "nested"],
)
def test_memory_that_somebody_sees_is_not_written_to(hold):
    buffers = Buffers(64 << 20)
    (array,) = buffers.arrays(LARGE)
    array[:] = 7
    held = hold(array)
    seen = address(array)
    del array
    others = [buffers.arrays(LARGE)[0] for _ in range(3)]
    assert seen not in {address(other) for other in others}
    for other in others:
        other[:] = 0
    del held, other, others
    addresses = set()
    kept = []
    for _ in range(6):
        kept.append(buffers.arrays(LARGE)[0])
        addresses.add(address(kept[-1]))
    assert seen in addresses


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 40), min_size=1, max_size=3),
            st.sampled_from(["u1", "f2", "f4", "i8", "?", "M8[us]"]),
        ),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([0, 1 << 20]),
)
def test_arrays_of_a_buffer_do_not_overlap(wanted, spare):
    buffers = Buffers(spare)
    arrays = buffers.arrays([(tuple(shape), np.dtype(kind)) for shape, kind in wanted])
    for number, (array, (shape, kind)) in enumerate(zip(arrays, wanted, strict=True)):
        assert array.shape == tuple(shape)
        assert array.dtype == np.dtype(kind)
        assert address(array) % array.itemsize == 0
        array.view("u1")[...] = number
    for number, array in enumerate(arrays):
        assert (array.view("u1") == number).all()


def test_what_is_kept_stays_within_its_bound():
    spare = 6 << 20
    buffers = Buffers(spare)
    random = np.random.default_rng(1)
    held: list[np.ndarray] = []
    for _ in range(200):
        size = int(random.integers(1 << 18, 3 << 20))
        held += buffers.arrays([((size,), np.dtype(np.uint8))])
        asked = sum(array.nbytes for array in held)
        assert sum(buffer.nbytes for buffer, _ in buffers._kept) <= asked + spare + 6 * 4096
        if len(held) > 5:
            del held[int(random.integers(len(held)))]


def test_threads_get_different_memory():
    buffers = Buffers(32 << 20)
    wrong: list[int] = []

    def work(number):
        for _ in range(200):
            (array,) = buffers.arrays(LARGE)
            array[::4096] = number
            wrong.extend(array[::4096][array[::4096] != number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
