"""What the collector records, from many threads, while things fail, and for longer than it can keep."""

from __future__ import annotations

import json
import logging
import math
import threading

import numpy as np
import pytest
import torch

from holdfast.errors import InvalidInput
from holdfast.registry import AIMLMetricsCollector
from holdfast.registry.measurements import Kind, Measurement


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> AIMLMetricsCollector:
    return AIMLMetricsCollector(clock=clock)


def last(metrics: AIMLMetricsCollector) -> Measurement:
    return metrics.measurements()[-1]


def test_an_epoch_records_its_duration_and_its_rate(metrics, clock):
    with metrics.track_training_epoch("net", epoch=3, num_samples=1000) as epoch:
        clock.now += 2.0
        epoch.record(train_loss=1.5)
    summary = metrics.get_summary()["training"]["net"]
    told = summary["by_epoch"]["3"]
    assert told["duration_s"] == 2.0
    assert told["samples_per_s"] == 500.0
    assert told["train_loss"] == 1.5
    assert told["memory_bytes"] > 1 << 20
    assert summary["total_num_samples"] == 1000


def test_a_metric_can_be_read_before_its_epoch_ends(metrics):
    with metrics.track_training_epoch("net", epoch=0):
        metrics.record_metric("net/epoch/0/train_loss", 0.5)
        assert metrics.get_summary()["training"]["net"]["by_epoch"]["0"] == {"train_loss": 0.5}


@pytest.mark.parametrize("error", [ValueError("out of data"), KeyboardInterrupt()])
def test_a_failure_passes_through_and_is_counted(metrics, error):
    for tracking in (
        metrics.track_training_epoch("net", epoch=0, num_samples=10),
        metrics.track_inference("net"),
    ):
        with pytest.raises(type(error)), tracking:
            fail(error)
    summary = metrics.get_summary()
    assert summary["failures"] == 2
    assert summary["training"]["net"]["failures"] == 1
    assert summary["inference"]["net"] == {"count": 1, "failures": 1}  # no latency: it gave no answer
    assert summary["training"]["net"]["by_epoch"]["0"]["error"].startswith(type(error).__name__)
    assert "samples_per_s" not in summary["training"]["net"]["by_epoch"]["0"]
    assert metrics.current_epoch() is None


def fail(error: BaseException) -> None:
    raise error


def test_waiting_for_data_is_told_from_working_on_it(metrics, clock):
    def loader():
        for batch in range(3):
            clock.now += 2
            yield batch

    with metrics.track_training_epoch("net", epoch=0) as epoch:
        assert [batch for batch in epoch.batches(loader()) if advance(clock, 1)] == [0, 1, 2]
        with metrics.track_dataset_load("digits"):
            clock.now += 4
    assert last(metrics).values["data_loading_s"] == 10
    assert last(metrics).values["duration_s"] == 13


def advance(clock: Clock, seconds: float) -> bool:
    clock.now += seconds
    return True


def test_a_dataset_that_another_thread_loads_does_not_hold_up_the_epoch(metrics, clock):
    def load() -> None:
        with metrics.track_dataset_load("digits"):
            clock.now += 5

    with metrics.track_training_epoch("net", epoch=0):
        thread = threading.Thread(target=load)
        thread.start()
        thread.join()
    assert "data_loading_s" not in last(metrics).values
    assert metrics.get_summary()["dataset_loads"]["digits"]["duration_s"]["max"] == 5


def test_latencies_have_percentiles(metrics, clock):
    for milliseconds in range(1, 101):
        with metrics.track_inference("net", batch_size=4):
            clock.now += milliseconds / 1000
    told = metrics.get_summary()["inference"]["net"]
    assert told["latency_s"]["p50"] == pytest.approx(0.050)
    assert told["latency_s"]["p95"] == pytest.approx(0.095)
    assert told["latency_s"]["p99"] == pytest.approx(0.099)
    assert told["num_samples"] == 400
    assert told["samples_per_busy_s"] == pytest.approx(400 / 5.05)


def test_eight_threads_lose_no_measurement_and_mix_up_none(metrics):
    def work(worker: int) -> None:
        for step in range(200):
            with metrics.track_training_epoch(f"net-{worker}", epoch=step) as epoch:
                epoch.record(loss=worker * 1000 + step)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        metrics.get_summary()  # reading while they write
    for thread in threads:
        thread.join()
    measured = metrics.measurements()
    assert [m.number for m in measured] == list(range(1, 3201))
    for worker in range(8):
        by_epoch = metrics.get_summary()["training"][f"net-{worker}"]["by_epoch"]
        assert [by_epoch[str(step)]["loss"] for step in range(200)] == [worker * 1000 + s for s in range(200)]


def test_memory_is_bounded_and_what_is_lost_is_told():
    metrics = AIMLMetricsCollector(keep=100)
    for step in range(250):
        metrics.record_metric(f"net/epoch/{step}/loss", step)
    with metrics.track_inference("net"):
        pass
    assert len(metrics.measurements(Kind.METRIC)) == 100
    assert metrics.dropped == {"metric": 150}
    assert metrics.get_summary()["dropped"] == {"metric": 150}
    assert len(metrics.measurements(Kind.INFERENCE)) == 1


def test_an_empty_collector_is_not_taken_for_no_collector():
    assert AIMLMetricsCollector()


def test_a_follower_gets_every_measurement_after_it_can_be_read(metrics):
    seen: list[int] = []

    def follow(m: Measurement) -> None:
        assert last(metrics) == m
        seen.append(m.number)

    unsubscribe = metrics.subscribe(follow)
    metrics.record_metric("net/loss", 1)
    with metrics.track_inference("net"):
        pass
    unsubscribe()
    unsubscribe()
    metrics.record_metric("net/loss", 2)
    assert seen == [1, 2]
    assert [m.number for m in metrics.measurements(after=1)] == [2, 3]


def test_a_follower_that_fails_neither_stops_the_run_nor_fails_again(metrics, caplog):
    calls = []

    def follow(m: Measurement) -> None:
        calls.append(m.number)
        raise RuntimeError("the screen is gone")

    metrics.subscribe(follow)
    with caplog.at_level(logging.ERROR, logger="holdfast"):
        metrics.record_metric("net/loss", 1)
        metrics.record_metric("net/loss", 2)
    assert calls == [1]
    assert "the screen is gone" in caplog.text


def test_events_and_summaries_are_json_and_records_even_with_nan(metrics):
    from holdfast.storage.formats import dag_cbor

    metrics.record_metric("net/epoch/0/loss", math.nan)
    metrics.record_metric("net/epoch/1/loss", math.inf)
    json.dumps([m.to_json() for m in metrics.measurements()], allow_nan=False)
    summary = metrics.get_summary()
    json.dumps(summary, allow_nan=False)
    dag_cbor.encode(summary)
    assert summary["training"]["net"]["metrics"]["loss"]["not_finite"] == 2
    assert summary["training"]["net"]["by_epoch"]["1"]["loss"] is None


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_a_scalar_of_a_library_is_a_number(metrics, value):
    metrics.record_metric("net/epoch/0/loss", value)
    assert last(metrics).values == {"loss": 0.5}


@pytest.mark.parametrize("value", ["low", None, True, [1.0], np.array([1.0, 2.0]), torch.ones(2), 1j])
def test_what_is_no_number_is_refused_and_nothing_is_recorded(metrics, value):
    with pytest.raises(InvalidInput, match="must be"):
        metrics.record_metric("net/epoch/0/loss", value)
    assert metrics.measurements() == ()


def test_a_kind_that_there_is_not_is_refused_with_those_that_there_are(metrics):
    with pytest.raises(
        InvalidInput, match="there is no kind of measurement 'nokind'; there is metric, epoch"
    ):
        metrics.add("nokind", "net", {"a": 1.0})
    metrics.add("inference", "net", {"a": 1.0})
    assert last(metrics).kind is Kind.INFERENCE


@pytest.mark.parametrize(
    "name",
    [
        "",
        "loss",
        "/loss",
        "net/",
        3,
        "net/epoch/last/loss",
        "net/epoch/-1/loss",
        "net/epoch/0",
        "net/step/0.5/loss",
    ],
)
def test_a_name_without_a_model_or_with_half_an_epoch_is_refused(metrics, name):
    with pytest.raises(InvalidInput, match="is no metric's name"):
        metrics.record_metric(name, 1.0)


@pytest.mark.parametrize(
    ("name", "subject", "step", "metric"),
    [
        ("model_1/epoch/0/train_loss", "model_1", 0, "train_loss"),
        ("org/net:v2/epoch/12/val_loss", "org/net:v2", 12, "val_loss"),
        ("net/step/7/loss", "net", 7, "loss"),
        ("net/accuracy", "net", None, "accuracy"),
        ("net/epoch", "net", None, "epoch"),
    ],
)
def test_a_name_says_model_epoch_and_metric(metrics, name, subject, step, metric):
    metrics.record_metric(name, 1.0)
    assert (last(metrics).subject, last(metrics).step, dict(last(metrics).values)) == (
        subject,
        step,
        {metric: 1.0},
    )


def test_impossible_arguments_are_refused_before_anything_runs(metrics):
    for tracking in (
        metrics.track_training_epoch("net", epoch=-1),
        metrics.track_training_epoch("net", epoch=0, num_samples=-5),
        metrics.track_training_epoch("", epoch=0),
        metrics.track_inference("net", batch_size=2.5),
    ):
        with pytest.raises(InvalidInput), tracking:
            pytest.fail("the block ran")
    with pytest.raises(InvalidInput, match="a share from 0 to 1"):
        metrics.record_worker_utilization("w", 85)
    with pytest.raises(InvalidInput, match="keep"):
        AIMLMetricsCollector(keep=0)
    with pytest.raises(InvalidInput, match="plain JSON"):
        metrics.add(Kind.CELL, "net", {"duration_s": 1}, about={"x": object()})
    assert metrics.measurements() == ()
