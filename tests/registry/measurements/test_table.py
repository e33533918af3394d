"""Measurements as a table: what is stored by CID is read back as it was, and nothing else is read."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import Corrupt, NotFound
from holdfast.registry import AIMLMetricsCollector
from holdfast.registry.measurements import Kind
from holdfast.registry.measurements.table import from_bytes, from_table, to_bytes, to_table
from holdfast.storage.cid import Cid

ANY = Cid.parse("bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy")

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def collectors(draw) -> AIMLMetricsCollector:
    metrics = AIMLMetricsCollector(keep=draw(st.integers(1, 8)))
    for _ in range(draw(st.integers(0, 12))):
        metrics.add(
            draw(st.sampled_from(Kind)),
            draw(names),
            draw(st.dictionaries(names, st.floats(), min_size=1, max_size=3)),
            step=draw(st.none() | st.integers(0, 1 << 40)),
            error=draw(st.none() | st.text(max_size=5)),
            about=draw(st.dictionaries(names, st.none() | st.integers(0, 9) | names, max_size=2)),
            time_s=draw(st.floats(0, 2e9)),
        )
    return metrics


@settings(deadline=None)
@given(collectors())
def test_what_comes_back_is_what_was_measured_nan_and_all(metrics):
    table = metrics.to_arrow()
    data = to_bytes(table)
    measurements, dropped = from_table(from_bytes(data, ANY), ANY)
    assert dropped == metrics.dropped
    assert [repr(m) for m in measurements] == [repr(m) for m in metrics.measurements()]
    assert to_bytes(to_table(measurements, dropped=dropped)) == data


def test_a_loaded_collector_has_the_same_cid_and_goes_on(store):
    metrics = AIMLMetricsCollector(keep=3)
    for step in range(5):
        metrics.record_metric(f"net/epoch/{step}/loss", 0.1 * step)
    cid = metrics.store(store)
    loaded = AIMLMetricsCollector.load(store, cid)
    assert loaded.get_summary() == metrics.get_summary()
    assert loaded.store(store) == cid
    assert loaded.add(Kind.METRIC, "net", {"loss": 1.0}).number == 6


def test_any_arrow_program_can_read_what_is_stored(store):
    metrics = AIMLMetricsCollector()
    metrics.record_metric("net/epoch/2/loss", 0.25)
    with pa.ipc.open_file(pa.py_buffer(store.open(metrics.store(store)))) as reader:
        row = reader.read_all().to_pylist()[0]
    assert {key: row[key] for key in ("kind", "subject", "step", "name", "value")} == {
        "kind": "metric",
        "subject": "net",
        "step": 2,
        "name": "loss",
        "value": 0.25,
    }


def test_nothing_else_is_taken_for_measurements(store):
    other = store.add_bytes(to_bytes(pa.table({"x": [1]})))
    for cid, told in (
        (other, "not one of measurements"),
        (store.add_bytes(b"no table"), "not a file of measurements"),
    ):
        with pytest.raises(Corrupt, match=told) as error:
            AIMLMetricsCollector.load(store, cid)
        assert str(cid) in str(error.value)
    with pytest.raises(NotFound):
        AIMLMetricsCollector.load(store, ANY)


def test_a_table_of_a_kind_that_nobody_knows_is_an_error():
    metrics = AIMLMetricsCollector()
    metrics.record_metric("net/loss", 1.0)
    table = metrics.to_arrow()
    odd = table.set_column(2, table.schema.field("kind"), pa.array(["spell"]))
    with pytest.raises(Corrupt, match="break their own form"):
        from_table(odd, ANY)
