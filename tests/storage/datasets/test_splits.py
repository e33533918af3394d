"""Splits are partitions with exact proportions, and depend on the seed and the rows only."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput
from holdfast.storage.datasets.splits import train_test_split
from tests.storage.datasets.stored import FORMATS, stored

CLASSES = st.sampled_from(["red", "white", "rosé", None, ""])
RELAXED = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def numbered(rows: int) -> pa.Table:
    return pa.table({"n": np.arange(rows), "kind": ["abc"[n % 3] for n in range(rows)]})


def numbers(dataset, split):
    return dataset.to_arrow(split)["n"].to_pylist()


@RELAXED
@given(
    rows=st.integers(2, 150),
    part=st.floats(0.01, 0.99) | st.integers(1, 149),
    seed=st.integers(-5, 5),
    format=st.sampled_from(FORMATS),
)
def test_no_row_is_lost_or_in_both_parts(store, rows, part, seed, format):  # noqa: A002
    whole = stored(store, numbered(rows), format=format)
    if isinstance(part, int) and part >= rows:
        with pytest.raises(InvalidInput, match=f"{part} of {rows} rows"):
            train_test_split(whole, test_size=part, random_state=seed)
        return
    made = train_test_split(whole, test_size=part, random_state=seed)
    train, test = numbers(made, "train"), numbers(made, "test")
    assert sorted(train + test) == list(range(rows))
    assert train == sorted(train)
    assert test == sorted(test)
    if isinstance(part, int):
        assert len(test) == part
    else:
        assert (
            len(test) == max(1, min(rows - 1, math.floor(rows * part + 0.5)))
            or abs(len(test) - rows * part) <= 0.5
        )


@RELAXED
@given(kinds=st.lists(CLASSES, min_size=2, max_size=200), data=st.data(), seed=st.integers(0, 3))
def test_each_class_has_its_exact_share_by_largest_remainder(store, kinds, data, seed):
    wanted = data.draw(st.integers(1, len(kinds) - 1))
    table = pa.table({"n": np.arange(len(kinds)), "kind": pa.array(kinds, pa.string())})
    made = train_test_split(stored(store, table), test_size=wanted, stratify="kind", random_state=seed)
    test = [kinds[n] for n in numbers(made, "test")]
    sizes, shares = Counter(kinds), Counter(test)
    assert len(test) == wanted
    remainders = {}
    for kind, size in sizes.items():
        whole, rest = divmod(wanted * size, len(kinds))
        assert shares[kind] - whole in (0, 1)
        remainders[kind] = (rest, shares[kind] - whole)
    lucky = [rest for rest, more in remainders.values() if more]
    unlucky = [rest for rest, more in remainders.values() if not more]
    assert min(lucky, default=0) >= max(unlucky, default=0) or not lucky


def test_the_same_seed_gives_the_same_split_however_the_rows_are_stored(store):
    table = numbered(500)
    by_seed = {}
    for seed in (0, 1, None):
        made = {
            tuple(
                numbers(
                    train_test_split(stored(store, table, **options), random_state=seed, stratify=stratify),
                    "test",
                )
            )
            for options in ({}, {"chunk_size": 64}, {"chunk_size": 1 << 20}, {"format": "arrow"})
            for stratify in (None,)
        }
        assert len(made) == 1
        by_seed[seed] = made.pop()
    assert by_seed[0] == by_seed[None]
    assert by_seed[0] != by_seed[1]


def test_splitting_twice_gives_one_cid_and_says_what_it_was_made_of(store):
    whole = stored(store, numbered(300), metadata={"by": "me"})
    made = train_test_split(whole, random_state=7, stratify="kind")
    assert train_test_split(whole, random_state=7, stratify="kind").cid == made.cid
    assert made.provenance == {
        "operation": "train_test_split",
        "source": whole.cid,
        "split": "train",
        "test_size": 0.2,
        "random_state": 7,
        "stratify": "kind",
    }
    assert made.metadata == {"by": "me"}
    assert made.parent is None
    assert Counter(made.to_arrow("test")["kind"].to_pylist()) == {"a": 20, "b": 20, "c": 20}
    assert train_test_split(whole, format="arrow", metadata={}).format == "arrow-v2"


def test_a_seed_of_numpy_is_the_same_seed(store):
    whole = stored(store, numbered(30))
    seed: Any = np.int64(7)
    assert train_test_split(whole, random_state=seed).cid == train_test_split(whole, random_state=7).cid


def test_chance_favours_no_place(store):
    """Each row is tested about as often as any other, whatever its place and the size of its class."""
    for rows in (7, 33):
        whole = stored(store, numbered(rows))
        times = Counter(
            n
            for seed in range(400)
            for n in numbers(train_test_split(whole, test_size=3, random_state=seed), "test")
        )
        expected = 400 * 3 / rows
        worst = max(abs(times[n] - expected) for n in range(rows))
        assert worst < 5.5 * math.sqrt(expected), (rows, times)


def test_nan_is_one_class(store):
    table = pa.table({"n": np.arange(40), "x": [float("nan") if n % 2 else 1.0 for n in range(40)]})
    made = train_test_split(stored(store, table), test_size=10, stratify="x")
    assert Counter(np.isnan(made.to_arrow("test")["x"].to_numpy()).tolist()) == {True: 5, False: 5}


def test_a_column_may_say_where_each_row_goes(store):
    table = pa.table(
        {
            "n": np.arange(6),
            "fold": ["train", "test", "validation", "train", "test", "train"],
            "held_out": [False, True, False, False, True, False],
            "flag": pa.array([0, 1, 0, 0, 1, 0], pa.uint8()),
        }
    )
    whole = stored(store, table)
    by_text = train_test_split(whole, split_column="fold")
    assert {split: numbers(by_text, split) for split in by_text.splits} == {
        "train": [0, 3, 5],
        "test": [1, 4],
        "validation": [2],
    }
    assert by_text.schema.equals(whole.schema)
    assert by_text.provenance["split_column"] == "fold"
    for column in ("held_out", "flag"):
        made = train_test_split(whole, split_column=column)
        assert {split: numbers(made, split) for split in made.splits} == {
            "train": [0, 2, 3, 5],
            "test": [1, 4],
        }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"test_size": 0}, "0 of 9 rows"),
        ({"test_size": 9}, "9 of 9 rows"),
        ({"test_size": 1.0}, "between 0 and 1"),
        ({"test_size": float("nan")}, "between 0 and 1"),
        ({"test_size": -0.5}, "between 0 and 1"),
        ({"test_size": True}, "not True"),
        ({"test_size": "half"}, "not 'half'"),
        ({"stratify": "sort"}, "no column 'sort'; there is n, kind"),
        ({"stratify": "list"}, "no classes to stratify by"),
        ({"split_column": "list"}, "names no splits"),
        ({"split_column": "n"}, "2 in column 'n' names no split"),
        ({"split_column": "missing"}, "None in column 'missing' names no split"),
        ({"split_column": "kind", "stratify": "kind"}, "can't both"),
        ({"split_column": "no"}, "no column 'no'"),
        ({"split_column": "kind", "test_size": 7.5}, "test_size=7.5 is a part"),
        ({"split_column": "kind", "random_state": 0.5}, "random_state must be a whole number, not 0.5"),
        ({"random_state": "1"}, "random_state must be a whole number, not '1'"),
        ({"random_state": True}, "random_state must be a whole number, not True"),
    ],
)
def test_a_split_that_can_not_be_says_why(store, options, words):
    table = numbered(9).append_column("list", pa.array([[1]] * 9))
    table = table.append_column("missing", pa.array(["train", None] + ["test"] * 7))
    with pytest.raises(InvalidInput, match=words):
        train_test_split(stored(store, table), **options)


def test_which_of_several_splits_is_cut_must_be_said(store):
    whole = stored(store, {"train": numbered(10), "test": numbered(30)})
    with pytest.raises(InvalidInput, match="has the splits test, train: say which"):
        train_test_split(whole)
    made = train_test_split(whole, split="test", test_size=0.1)
    assert (made.rows_in("train"), made.rows_in("test")) == (27, 3)


def test_one_row_can_not_be_cut(store):
    with pytest.raises(InvalidInput, match="of 1 rows"):
        train_test_split(stored(store, numbered(1)))
