"""The law of the order: the same rows in the same places, whoever shares them."""

from math import gcd

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.loaders.pipeline.order import LANES, EpochOrder

layouts = st.lists(
    st.lists(st.one_of(st.integers(0, 3), st.integers(0, 60)), max_size=12), min_size=0, max_size=8
)
orders = st.builds(
    lambda shards, seed, epoch, shuffle: EpochOrder(shards, seed=seed, epoch=epoch, shuffle=shuffle),
    layouts,
    st.integers(0, 2**64 - 1),
    st.integers(0, 3),
    st.booleans(),
)
worlds = st.integers(1, 12)

GOLDEN_0_0 = [
    *(23, 9, 15, 6, 28, 8, 20, 1, 24, 11, 16, 7, 27, 13, 18, 2),
    *(26, 10, 14, 5, 30, 12, 19, 0, 25, 22, 17, 4, 29, 3, 21),
]
GOLDEN_7_2 = [
    *(11, 19, 27, 2, 25, 21, 24, 5, 9, 17, 30, 1, 26, 22, 23, 7),
    *(10, 16, 29, 0, 13, 20, 15, 6, 8, 18, 28, 4, 12, 3, 14),
]
GOLDEN_LARGE = 150573438594


def whole(order):
    return order.rows_at(np.arange(order.rows))


def rows_of(order, shares):
    """What a worker reads by its shares, and nothing but them: the row in the split of each of its rows."""
    starts = order._group_starts
    rows = np.full(shares.rows, -1, np.int64)
    for piece, first, count, offset in zip(
        shares.piece, shares.first, shares.count, shares.offset, strict=True
    ):
        permutation = order.permutation(int(piece))
        if permutation is None:
            permutation = order.piece_row[piece] + np.arange(order.piece_rows[piece])
        mine = permutation[offset : offset + (count - 1) * shares.step + 1 : shares.step]
        places = first + np.arange(count) * shares.stride
        assert (rows[places] == -1).all()
        rows[places] = starts[order.piece_group[piece]] + mine
    assert (rows >= 0).all()
    return rows


@settings(max_examples=200, deadline=None)
@given(orders)
def test_every_row_stands_at_exactly_one_position(order):
    np.testing.assert_array_equal(np.sort(whole(order)), np.arange(order.rows))


@settings(max_examples=200, deadline=None)
@given(layouts, st.integers(0, 3))
def test_rows_that_are_not_shuffled_keep_their_order(shards, epoch):
    order = EpochOrder(shards, seed=5, epoch=epoch, shuffle=False)
    np.testing.assert_array_equal(whole(order), np.arange(sum(map(sum, shards))))


@settings(max_examples=300, deadline=None)
@given(orders, worlds, st.data())
def test_workers_together_read_the_order_that_one_reads(order, world, data):
    start = data.draw(st.integers(0, order.rows))
    stop = data.draw(st.integers(start, order.rows))
    expected = whole(order)
    for rank in range(world):
        shares = order.shares(rank, world, start, stop)
        mine = np.arange(start + (rank - start) % world, stop, world)
        np.testing.assert_array_equal(rows_of(order, shares), expected[mine])
        assert (np.diff(shares.first) >= 0).all()
        assert shares.rows == len(mine)


@settings(max_examples=100, deadline=None)
@given(orders.filter(lambda order: order.rows > 0), worlds, st.integers(0, 200))
def test_what_is_padded_are_the_first_rows_again(order, world, more):
    expected = whole(order)[np.arange(order.rows + more) % order.rows]
    for rank in range(world):
        shares = order.shares(rank, world, 0, order.rows + more)
        np.testing.assert_array_equal(rows_of(order, shares), expected[rank::world])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=8), st.data())
def test_workers_that_divide_the_lanes_share_no_piece_and_few_row_groups_are_cut(shards, data):
    order = EpochOrder(shards, seed=data.draw(st.integers(0, 9)), epoch=0, shuffle=True)
    world = data.draw(st.sampled_from([n for n in range(1, 13) if order.lanes % n == 0]))
    readers = [set(order.shares(rank, world).piece.tolist()) for rank in range(world)]
    assert sum(map(len, readers)) == len(set().union(*readers)) == len(order.piece_group)
    cut = len(order.piece_group) - len(set(order.piece_group.tolist()))
    # Of three lanes: two cuts in the row group that they begin in, and two between them.
    in_strands = 0 if order.lanes == order.strands else 4 * order.strands
    assert cut <= order.strands - 1 + in_strands


@pytest.mark.parametrize("world", [2, 4, 8])
def test_two_workers_meet_in_one_row_group(world):
    order = EpochOrder([[7] * 10] * 20, seed=3, epoch=0, shuffle=True)
    groups = [set(order.piece_group[order.shares(rank, world).piece].tolist()) for rank in range(world)]
    assert sum(map(len, groups)) <= 200 + world - 1


@settings(max_examples=100, deadline=None)
@given(layouts, st.integers(0, 9), st.integers(0, 9))
def test_a_worker_has_the_same_rows_in_every_epoch(shards, seed, epoch):
    first, later = (EpochOrder(shards, seed=seed, epoch=each, shuffle=True) for each in (0, epoch))
    for world in (n for n in range(1, 9) if first.strands % n == 0):
        for rank in range(world):
            mine = np.arange(rank, first.rows, world)
            np.testing.assert_array_equal(np.sort(first.rows_at(mine)), np.sort(later.rows_at(mine)))


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_an_epoch_begins_in_few_row_groups(world):
    order = EpochOrder([[90] * 10] * 20, seed=3, epoch=1, shuffle=True)
    begin = np.arange(0, 24 * 30, world)  # a third of a row group for each lane
    assert len(set(order.piece_group[order.lookup(begin)[0]].tolist())) == 8 // world
    assert len(set(order.piece_group[order.lookup(np.arange(0, 24 * 60, world))[0]].tolist())) > 24 // world


@pytest.mark.parametrize(("groups", "lanes"), [(1, 1), (2, 2), (5, 4), (7, 6), (11, 8), (23, 12), (400, 24)])
def test_no_lane_is_without_a_row_group(groups, lanes):
    order = EpochOrder([[5]] * groups, seed=0, epoch=0, shuffle=True)
    assert order.lanes == lanes
    assert all(gcd(a, 24) == a or 24 % a == 0 for a in LANES)


def test_the_order_does_not_change_between_releases():
    shards = [[3, 1, 4], [1, 5], [9, 2, 6]]

    def golden(seed, epoch):
        return whole(EpochOrder(shards, seed=seed, epoch=epoch, shuffle=True)).tolist()

    assert golden(0, 0) == GOLDEN_0_0
    assert golden(7, 2) == GOLDEN_7_2
    large = EpochOrder([[70_000, 30_000]] * 3, seed=2**64 - 1, epoch=1, shuffle=True)
    weights = np.arange(1, large.rows + 1)
    assert int((whole(large) * weights % 1_000_003).sum()) == GOLDEN_LARGE


def test_epochs_and_seeds_have_orders_of_their_own():
    shards = [[50] * 5] * 4
    seen = [
        whole(EpochOrder(shards, seed=seed, epoch=epoch, shuffle=True)).tolist()
        for seed in range(4)
        for epoch in range(4)
    ]
    assert len({tuple(order) for order in seen}) == 16


@pytest.mark.parametrize("numbers", [{"seed": -1}, {"epoch": -1}, {"seed": 2**64}])
def test_impossible_seeds_are_refused(numbers):
    with pytest.raises(InvalidInput, match="2\\*\\*64"):
        EpochOrder([[1]], **{"seed": 0, "epoch": 0, "shuffle": True, **numbers})


def test_positions_that_are_not_there_are_refused():
    with pytest.raises(InvalidInput, match="3 rows"):
        EpochOrder([[3]], seed=0, epoch=0, shuffle=True).lookup(np.array([3]))


# ------------------------------------------------------------------------------------------------ quality


@pytest.fixture(scope="module")
def large_order():
    return EpochOrder([[500] * 8] * 25, seed=1, epoch=0, shuffle=True)


def test_shuffled_rows_follow_neither_their_stored_order_nor_each_other():
    orders = [whole(EpochOrder([[50] * 8] * 25, seed=seed, epoch=0, shuffle=True)) for seed in range(32)]
    drifts = [np.corrcoef(order, np.arange(len(order)))[0, 1] for order in orders]
    # 200 row groups in any sequence have a standard deviation of 1 / sqrt(200).
    assert max(np.abs(drifts)) < 4 / 200**0.5
    assert abs(np.mean(drifts)) < 0.05
    followed = [np.corrcoef(order[1:], order[:-1])[0, 1] for order in orders]
    assert abs(np.mean(followed)) < 0.1


def test_neighbours_come_from_different_row_groups(large_order):
    groups = whole(large_order) // 500
    assert np.mean(groups[1:] == groups[:-1]) < 0.02
    assert np.mean([len(set(groups[at : at + 24])) for at in range(0, len(groups) - 24, 24)]) > 20


def test_a_dataset_that_is_sorted_by_class_gives_mixed_batches(large_order):
    classes = whole(large_order) // (large_order.rows // 10)
    batches = classes[: len(classes) // 256 * 256].reshape(-1, 256)
    distinct = [len(set(batch.tolist())) for batch in batches]
    assert np.mean(distinct) > 8
    assert min(distinct) >= 5


def test_a_permutation_has_no_favourite_places():
    size, draws = 16, 4000
    counts = np.zeros((size, size))
    for seed in range(draws):
        counts[np.arange(size), whole(EpochOrder([[size]], seed=seed, epoch=0, shuffle=True))] += 1
    chi_squared = ((counts - draws / size) ** 2 / (draws / size)).sum()
    assert 140 < chi_squared < 320  # 225 degrees of freedom: 225 +- 4.5 standard deviations
