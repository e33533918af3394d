"""Queries against pyarrow's own filter on the whole table, and what they read to answer."""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import InvalidInput, NotFound
from holdfast.storage.content import ContentStore
from holdfast.storage.datasets.queries import preview, query, statistics
from holdfast.storage.local.local_store import LocalStore
from tests.storage.datasets.stored import FORMATS, SCHEMA, TABLE, comparable, fetched, span, stored

ATOMS = st.one_of(
    st.tuples(st.just("i"), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.integers(-4, 4)),
    st.tuples(
        st.just("i"), st.sampled_from(["in", "not in"]), st.lists(st.integers(-4, 4), min_size=1, max_size=3)
    ),
    st.tuples(
        st.just("f"),
        st.sampled_from(["==", "!=", "<", "<=", ">", ">="]),
        st.sampled_from([-2.0, 0.0, 1.5, 9.0]),
    ),
    st.tuples(st.just("s"), st.sampled_from(["==", "!=", "<", ">="]), st.sampled_from(["", "a", "b", "zz"])),
    st.tuples(st.just("b"), st.just("=="), st.booleans()),
    st.tuples(
        st.just("t"),
        st.sampled_from(["<", ">=", "=="]),
        st.sampled_from([dt.datetime(2026, 1, 2), dt.datetime(2026, 1, 9)]),  # noqa: DTZ001
    ),
    st.tuples(st.just("u"), st.sampled_from(["<", ">", "=="]), st.sampled_from([1, 2**63 - 1])),
)
EXPRESSIONS = st.recursive(
    st.one_of(
        ATOMS.map(lambda atom: pc_of([[atom]])),
        st.sampled_from(SCHEMA.names).map(lambda name: pc.field(name).is_null()),
        st.just(pc.field("f").is_nan()),
        st.just(pc.field("f").isin([float("nan"), 9.0])),
        st.just(pc.field("f").is_null(nan_is_null=True)),
        st.just((pc.field("f") > 1.0) == pc.scalar(False)),
        st.just(pc.field("f") + 1.0 > 2.0),
    ),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: pair[0] & pair[1]),
        st.tuples(inner, inner).map(lambda pair: pair[0] | pair[1]),
        inner.map(lambda one: ~one),
    ),
    max_leaves=4,
)


def pc_of(tuples):
    """Pyarrow's own meaning of tuples; it takes 1 for a signed number, which not every unsigned one can be compared with."""
    return pq.filters_to_expression(
        [
            [(name, op, pa.scalar(value, pa.uint64()) if name == "u" else value) for name, op, value in group]
            for group in tuples
        ]
    )


@pytest.fixture
def numbers(store):
    """Rows 0 to 1999 in order, in many groups of several shards."""
    data = pa.table(
        {
            "n": np.arange(2000),
            "text": [f"row {n}" if n % 10 else None for n in range(2000)],
            "wide": pa.FixedShapeTensorArray.from_numpy_ndarray(
                np.arange(16000, dtype=np.float32).reshape(-1, 4, 2)
            ),
        }
    )
    return lambda **options: (stored(store, data, chunk_size=1024, **options), data)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    table=TABLE,
    where=EXPRESSIONS | st.lists(st.lists(ATOMS, min_size=1, max_size=3), min_size=1, max_size=3),
    columns=st.none() | st.lists(st.sampled_from(SCHEMA.names), min_size=1, unique=True),
    limit=st.none() | st.integers(0, 10),
    form=st.sampled_from(FORMATS),
)
def test_a_query_never_gives_other_rows_than_the_condition_says(  # noqa: PLR0917
    store, table, where, columns, limit, form
):
    dataset = stored(store, table, format=form)
    expression = where if isinstance(where, pc.Expression) else pc_of(where)
    wanted = table.filter(expression).select(columns or SCHEMA.names).slice(0, limit)
    found = query(dataset, columns=columns, where=where, limit=limit)
    assert comparable(found.to_arrow().to_pylist()) == comparable(wanted.to_pylist())
    assert found.to_arrow().schema.equals(wanted.schema)
    assert found.counts.rows_given == wanted.num_rows


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_come_out_of_a_query_as_tensors(numbers, format):  # noqa: A002
    dataset, data = numbers(format=format)
    found = query(dataset, columns=["wide", "n"], where="n >= 7 and n < 1500 and text is not None").to_arrow()
    wanted = data.filter((pc.field("n") >= 7) & (pc.field("n") < 1500) & ~pc.field("text").is_null())
    assert found["n"].equals(wanted["n"])
    got, expected = (t["wide"].combine_chunks() for t in (found, wanted))
    assert got.type == data.schema.field("wide").type
    assert np.array_equal(
        got.to_numpy_ndarray(), expected.take(pa.array(range(len(expected)))).to_numpy_ndarray()
    )


def test_what_statistics_rule_out_is_counted_and_not_read(numbers):
    dataset, _ = numbers()
    shards = dataset.shards("train")
    groups = sum(len(shard.groups) for shard in shards)
    assert len(shards) > 3
    found = query(dataset, columns=["n"], where="n == 1234")
    assert found.to_arrow()["n"].to_pylist() == [1234]
    counts = found.counts
    assert (counts.shards_read, counts.shards_skipped) == (1, len(shards) - 1)
    assert (counts.groups_read, counts.groups_skipped) == (1, groups - 1)
    assert 0 < counts.bytes_read < counts.bytes_skipped
    assert query(dataset, where="n > 5000").to_arrow().num_rows == 0


def test_a_query_fetches_only_what_it_needs_from_a_peer(tmp_path, blocks, start_node):
    data = pa.table({"n": np.arange(60_000), "x": np.zeros(60_000), "s": [f"{n:040}" for n in range(60_000)]})
    with fetched(tmp_path, blocks, start_node, lambda there: stored(there, data, chunk_size=200_000)) as (
        here,
        asked,
    ):
        shards = here.shards("train")
        found = query(here, columns=["n"], where="n >= 30000 and n < 30010")
        assert found.to_arrow()["n"].to_pylist() == list(range(30_000, 30_010))
        others = {
            str(shard.cid) for shard in shards if span(shard, "n")[0] > 30_009 or span(shard, "n")[1] < 30_000
        }
        assert others
        assert not others & set(asked)
        few = len(asked)
        assert here.to_arrow().num_rows == 60_000
        assert few < len(set(asked)) / 4


@pytest.mark.parametrize("format", FORMATS)
def test_rows_can_be_counted_without_their_columns(numbers, format):  # noqa: A002
    dataset, _ = numbers(format=format)
    assert query(dataset, columns=[]).to_arrow().num_rows == 2000
    counted = query(dataset, columns=[], where="n > 3 and n < 1900")
    assert counted.to_arrow().num_rows == 1896
    assert counted.counts.rows_given == 1896
    assert query(dataset, columns=[], where="n > 3", limit=7).to_arrow().num_rows == 7
    assert query(dataset, columns=[], where="n < 0").to_arrow().num_rows == 0


def test_nan_is_not_lost_to_statistics_that_leave_it_out(store):
    values = [float("nan"), 1.0, 2.0, 3.0] * 40
    dataset = stored(store, pa.table({"x": values, "n": list(range(160))}))
    for where, wanted in (
        (pc.field("x").is_nan(), 40),
        (pc.field("x").isin([float("nan"), 9.0]), 40),
        (pc.field("x").is_null(nan_is_null=True), 40),
        ([("x", "in", [float("nan")])], 40),
        ("not (x <= 3)", 40),
        ("x != 1", 120),
        ("x > 5", 0),
        ((pc.field("x") > 5) == pc.scalar(False), 160),
        ((pc.field("x") > 5).isin([False]), 160),
        (((pc.field("x") > 5) & (pc.field("n") > -1)).isin([False, None]), 160),
        (
            pc.field("x").isin([*range(20), float("nan"), *range(20, 40)]),
            160,
        ),  # Arrow shows the first and the last ones
    ):
        assert query(dataset, where=where).to_arrow().num_rows == wanted, where


def test_nan_as_a_literal_rules_out_no_row(store):
    table, nan = pa.table({"x": pa.array([*range(100), *[None] * 20])}), pc.scalar(float("nan"))
    dataset = stored(store, table, chunk_size=64)
    for where in (
        ~(pc.field("x") < nan),
        pc.field("x") != nan,
        pc.field("x") < nan,
    ):
        assert query(dataset, where=where).to_arrow().num_rows == table.filter(where).num_rows, where


def test_quotes_in_a_columns_name_hide_nothing_of_a_condition(store):
    table = pa.table({'q"x': range(100), "f": [float("nan"), 1.0] * 50})
    dataset = stored(store, table, chunk_size=64)
    where = (pc.field('q"x') > 1) & ~(pc.field("f") <= 5) & (pc.field('q"x') < 90)
    assert query(dataset, where=where).to_arrow().num_rows == table.filter(where).num_rows == 44


def test_a_literal_that_arrow_can_not_use_is_an_error_where_values_are_read(store):
    dataset = stored(store, pa.table({"t": [1_700_000_001, 5]}))
    assert query(dataset, where="t > 1e9").to_arrow()["t"].to_pylist() == [1_700_000_001]
    with pytest.raises(InvalidInput, match="can't be used on the values that are there"):
        query(dataset, where=pc.field("t") > 1e9).to_arrow()


def test_rows_stream_in_order_group_by_group(numbers):
    dataset, _ = numbers()
    seen = [batch["n"].to_pylist() for batch in query(dataset, columns=["n"])]
    assert len(seen) > 20
    assert [n for batch in seen for n in batch] == list(range(2000))


def test_a_limit_ends_the_reading(numbers):
    dataset, _ = numbers()
    found = query(dataset, limit=3)
    assert found.to_arrow()["n"].to_pylist() == [0, 1, 2]
    assert found.counts.groups_read == 1
    assert query(dataset, limit=0).to_arrow().num_rows == 0
    wrong: list[Any] = [-1, 2.5, "3", True]
    for limit in wrong:
        with pytest.raises(InvalidInput, match="limit must be a whole number from 0, not"):
            query(dataset, limit=limit)
    three: Any = np.int64(3)
    assert query(dataset, limit=three).to_arrow().num_rows == 3


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        ("i > 1", [2, 3]),
        ("1 < i <= 2", [2]),
        ("not i == 2 and s in ['a', 'c']", [1, 3]),
        ("i not in (1, 2)", [3, 4]),
        ("s is None or s == 'a'", [1, 4]),
        ("s is not None", [1, 2, 3]),
        ("d >= '2026-01-02'", [2, 3]),
        ("d in ['2026-01-03']", [3]),
        ("flag", [1, 3]),
        ("i == -1 or f < -0.5", [3]),
    ],
)
def test_a_condition_in_words_means_what_it_says(store, where, wanted):
    table = pa.table(
        {
            "number": [1, 2, 3, 4],
            "i": pa.array([1, 2, 3, None], pa.int8()),
            "s": ["a", "b", "c", None],
            "d": pa.array([*(dt.date(2026, 1, day) for day in (1, 2, 3)), None]),
            "flag": [True, False, True, None],
            "f": [0.0, 0.0, -1.0, None],
        }
    )
    found = query(stored(store, table), columns=["number"], where=where)
    assert found.to_arrow()["number"].to_pylist() == wanted


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("zz > 'x'", "there is no column 'zz'; there is n, text, wide"),
        (pc.field("zz") > 1, "there is no column 'zz'; there is n, text, wide"),
        ([("zz", ">", 1)], "there is no column 'zz'; there is n, text, wide"),
        (pc.field(0) > 1, "must name its columns"),
        ("n >", "is no condition"),
        ("", "is no condition"),
        ("n + 1 > 2", "neither a column nor a value"),
        ("__import__('os').system('x')", "not a comparison"),
        ("n > print()", "neither a column nor a value"),
        ("n is 3", "only 'is None'"),
        ("n in 3", "a list of values"),
        ("text > 3", "can't be used on these columns"),
        ("n", "can't be used on these columns"),
        ("wide == 3", "can't be used on these columns"),
        ("1 == 1", "'1' is no column"),
        (pc.scalar(True), "speaks of no column"),
        ([("n", "~", 1)], "is no condition"),
        ([("n", ">")], "is no condition"),
        (7, "is no condition"),
        ("(" * 5000 + "n" + ")" * 5000, "is no condition"),
    ],
)
def test_a_condition_that_can_not_be_is_refused_in_words(numbers, where, words):
    dataset, _ = numbers()
    with pytest.raises(InvalidInput, match=words):
        query(dataset, where=where)


def test_unknown_columns_and_splits_are_answered_with_the_known_ones(numbers):
    dataset, _ = numbers()
    with pytest.raises(InvalidInput, match="no column 'm'; there is n, text, wide"):
        query(dataset, columns=["n", "m"])
    with pytest.raises(InvalidInput, match="'n' is asked for twice"):
        query(dataset, columns=["n", "n"])
    with pytest.raises(InvalidInput, match="columns is a list"):
        query(dataset, columns="n")
    with pytest.raises(NotFound, match="no split 'test'"):
        query(dataset, split="test")


def test_a_preview_reads_one_group_of_few_columns(tmp_path, blocks, start_node):
    columns = {f"c{number:03}": np.arange(4000) for number in range(40)}

    def make(there):
        return stored(there, pa.table(columns), chunk_size=100_000)

    with fetched(tmp_path, blocks, start_node, make) as (here, asked):
        shown = preview(here, rows=3)
        assert shown.column_names == [f"c{number:03}" for number in range(20)]
        assert shown["c000"].to_pylist() == [0, 1, 2]
        before = len(asked)
        assert before < 20
        assert preview(here, rows=3, columns=["c039"]).column_names == ["c039"]
        assert preview(here, rows=0).num_rows == 0


def test_statistics_come_from_the_manifest_and_no_shard_is_fetched(tmp_path, blocks, start_node):
    data = pa.table(
        {
            "n": list(range(400)),
            "x": [float("nan") if n % 2 else float(n) for n in range(400)],
            "s": [None if n < 100 else f"{n:04}" for n in range(400)],
            "day": pa.array([dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(400)]),
            "list": [[n] for n in range(400)],
            "none": pa.nulls(400, pa.int64()),
            "price": [Decimal("1.5")] * 400,
        }
    )
    both = {"train": data, "test": data.slice(0, 3)}
    with fetched(tmp_path, blocks, start_node, lambda there: stored(there, both)) as (here, asked):
        found = statistics(here)
        shards = {str(shard.cid) for split in here.splits for shard in here.shards(split)}
        assert shards
        assert not shards & set(asked)
    train = found["train"]
    assert (train["n"].rows, train["n"].nulls, train["n"].minimum, train["n"].maximum) == (400, 0, 0, 399)
    assert (train["x"].minimum, train["x"].maximum) == (0.0, 398.0)
    assert (train["s"].nulls, train["s"].minimum, train["s"].maximum) == (100, "0100", "0399")
    assert train["day"].maximum == dt.date(2027, 2, 4)
    assert train["day"].to_json()["max"] == "2027-02-04"
    assert (train["list"].nulls, train["list"].minimum) == (0, None)
    assert (train["none"].nulls, train["none"].minimum) == (400, None)
    assert found["test"]["n"].maximum == 2


def test_many_threads_may_query_one_dataset(store):
    from concurrent.futures import ThreadPoolExecutor

    dataset = stored(store, pa.table({"n": np.arange(3000)}))
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(
            lambda n: query(dataset, where=[("n", "<", n)]).to_arrow().num_rows, range(0, 3000, 150)
        )
        assert list(found) == list(range(0, 3000, 150))


def test_a_query_goes_on_after_the_rows_of_one_iteration_were_dropped(tmp_path):
    with closing(LocalStore(tmp_path / "blocks")) as blocks:
        dataset = stored(ContentStore(blocks), pa.table({"n": np.arange(3000)}))
        found = query(dataset, where="n >= 10")
        first = next(iter(found))
        assert first["n"][0].as_py() == 10
        assert found.to_arrow().num_rows == 2990


def test_a_condition_that_fails_on_some_values_is_an_error_and_not_a_few_rows(store):
    dataset = stored(store, pa.table({"i": pa.array(range(300), pa.int16())}))
    with pytest.raises(InvalidInput, match="on the values that are there: overflow"):
        query(dataset, where=pc.field("i") * pa.scalar(200, pa.int16()) > pa.scalar(5, pa.int16())).to_arrow()


def test_a_dataset_answers_by_itself(store):
    dataset = stored(store, pa.table({"n": np.arange(300)}))
    assert dataset.query(where="n > 297").to_arrow()["n"].to_pylist() == [298, 299]
    assert dataset.preview(2)["n"].to_pylist() == [0, 1]
    assert dataset.statistics()["train"]["n"].maximum == 299
    assert dataset.contains({"n": 7})
    assert [place.row for place in dataset.find({"n": 7})] == [7]
    assert dataset.diff(dataset).same
