"""Findings say what the data says, with its numbers, and nothing where it does not."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest

from holdfast.registry import AIMLMetricsCollector
from holdfast.registry.measurements import Kind

if TYPE_CHECKING:
    from holdfast.registry.measurements.finding import Finding


@pytest.fixture
def metrics() -> AIMLMetricsCollector:
    return AIMLMetricsCollector()


def rules(metrics: AIMLMetricsCollector) -> dict[str, Finding]:
    return {finding.rule: finding for finding in metrics.get_comprehensive_report().findings}


def epochs(metrics: AIMLMetricsCollector, count: int, *, duration_s=10.0, waited_s=1.0, **series) -> None:
    for epoch in range(count):
        values = {name: at(epoch) for name, at in series.items() if name != "memory_bytes"}
        if values:
            metrics.add(Kind.METRIC, "net", values, step=epoch)
        measured = {"duration_s": duration_s, "data_loading_s": waited_s}
        if "memory_bytes" in series:
            measured["memory_bytes"] = series["memory_bytes"](epoch)
        metrics.add(Kind.EPOCH, "net", measured, step=epoch)


def falling(epoch: int) -> float:
    return 2 * 0.8**epoch


def test_a_healthy_run_has_no_findings(metrics):
    epochs(
        metrics,
        20,
        train_loss=falling,
        val_loss=lambda e: falling(e) + 0.1,
        val_accuracy=lambda e: 1 - falling(e) / 3,
        memory_bytes=lambda _: 5e8,
    )
    for request in range(200):
        metrics.add(Kind.INFERENCE, "net", {"duration_s": 0.01 + 0.001 * (request % 7), "batch_size": 1})
    for worker in ("a", "b"):
        for _ in range(5):
            metrics.record_worker_utilization(worker, 0.8)
    assert rules(metrics) == {}
    assert metrics.get_comprehensive_report().render().startswith("No bottleneck")


def test_nothing_measured_gives_no_findings(metrics):
    report = metrics.get_comprehensive_report()
    assert report.findings == ()
    assert report.render() == "There is nothing to conclude from."


@pytest.mark.parametrize(("waited_s", "found"), [(2.9, False), (3.0, True), (9.0, True)])
def test_waiting_for_data_is_a_bottleneck_from_three_tenths_of_the_time_on(metrics, waited_s, found):
    epochs(metrics, 4, waited_s=waited_s)
    finding = rules(metrics).get("data-loading")
    assert (finding is not None) == found
    if finding is not None:
        assert finding.numbers == {
            "data_loading_s": pytest.approx(4 * waited_s),
            "duration_s": 40,
            "share": pytest.approx(waited_s / 10),
            "epochs": 4,
        }


def test_validation_that_turns_while_training_falls_is_overfitting(metrics):
    epochs(metrics, 12, train_loss=falling, val_loss=lambda e: 1 + 0.02 * (e - 5) ** 2)
    finding = rules(metrics)["overfitting"]
    assert finding.numbers["best_epoch"] == 5
    assert finding.numbers["best_val_loss"] == 1
    assert finding.numbers["last_val_loss"] == pytest.approx(1.72)


def test_accuracy_overfits_downwards(metrics):
    epochs(
        metrics,
        12,
        train_accuracy=lambda e: 1 - falling(e) / 3,
        val_accuracy=lambda e: 0.8 - 0.01 * abs(e - 5),
    )
    assert rules(metrics)["overfitting"].numbers["best_val_accuracy"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    "series",
    [
        {"train_loss": falling, "val_loss": lambda e: 1 + 0.001 * (e % 3)},  # noise
        {"train_loss": lambda e: 1 + 0.1 * e, "val_loss": lambda e: 1 + 0.1 * e},  # both become worse
        {"val_loss": lambda e: 1 + 0.1 * e},  # nothing to compare with
        {"train_colour": falling, "val_colour": lambda e: 1 + 0.1 * e},  # nobody knows what is better
    ],
    ids=["noise", "both-worse", "no-training", "unknown-direction"],
)
def test_what_is_not_overfitting_is_not_called_so(metrics, series):
    epochs(metrics, 8, **series)
    assert "overfitting" not in rules(metrics)


def test_a_loss_that_is_no_number_any_more_is_a_fault_and_comes_first(metrics):
    epochs(metrics, 10, waited_s=9, train_loss=lambda e: math.nan if e >= 7 else falling(e))
    report = metrics.get_comprehensive_report()
    assert report.findings[0].rule == "not-finite"
    assert report.findings[0].numbers == {"epochs": 3, "first_epoch": 7}
    json.dumps(report.to_json(), allow_nan=False)
    assert "NaN or infinite in 3 epochs, first in epoch 7" in report.render()


def test_a_loss_that_stands_still_is_told(metrics):
    epochs(metrics, 20, train_loss=lambda e: max(0.5, falling(e)))
    assert rules(metrics)["standing-still"].numbers["best_train_loss_since"] == 0.5


@pytest.mark.parametrize(("growth", "found"), [(0.0, False), (0.01, False), (0.1, True)])
def test_only_memory_that_grows_much_is_a_leak(metrics, growth, found):
    epochs(metrics, 8, memory_bytes=lambda e: 5e8 * (1 + growth * e))
    assert ("growing-memory" in rules(metrics)) == found


def test_memory_that_sinks_once_is_no_leak(metrics):
    epochs(metrics, 8, memory_bytes=lambda e: 5e8 * (1 + 0.2 * e) if e != 6 else 5e8)
    assert "growing-memory" not in rules(metrics)


def test_a_slow_epoch_is_named(metrics):
    epochs(metrics, 6)
    metrics.add(Kind.EPOCH, "net", {"duration_s": 31.0}, step=6)
    assert rules(metrics)["slow-epochs"].numbers == {"slowest_epoch": 6, "slowest_s": 31.0, "median_s": 10.0}


def test_failures_are_counted_by_what_failed(metrics):
    metrics.add(Kind.EPOCH, "net", {"duration_s": 1.0}, step=4, error="ValueError: no more data")
    metrics.add(Kind.DATASET_LOAD, "digits", {"duration_s": 1.0}, error="NotFound: gone")
    metrics.add(Kind.INFERENCE, "net", {"duration_s": 1.0}, error="TimeoutError: ")
    metrics.add(Kind.INFERENCE, "net", {"duration_s": 1.0})
    found = rules(metrics)
    assert "epoch 4, with ValueError: no more data" in found["failed-epochs"].text
    assert found["failed-inference"].numbers == {"failed": 1, "count": 2, "share": 0.5}
    assert found["failed-dataset-load"].subject == "digits"


@pytest.mark.parametrize(
    ("requests", "slow_s", "found"), [(100, 0.5, True), (99, 0.5, False), (100, 0.04, False)]
)
def test_a_tail_needs_enough_requests_and_a_large_factor(metrics, requests, slow_s, found):
    for request in range(requests):
        metrics.add(Kind.INFERENCE, "net", {"duration_s": slow_s if request % 50 == 49 else 0.01})
    assert ("latency-tail" in rules(metrics)) == found


def test_a_slow_first_request_is_a_cold_start(metrics):
    for request in range(20):
        metrics.add(Kind.INFERENCE, "net", {"duration_s": 1.0 if request == 0 else 0.01})
    assert rules(metrics)["cold-start"].numbers["first_s"] == 1.0


def test_uneven_and_idle_workers_are_told_apart(metrics):
    for worker, share in (("busy", 0.9), ("idle", 0.2)):
        for _ in range(3):
            metrics.record_worker_utilization(worker, share)
    assert rules(metrics)["uneven-workers"].subject == "idle"
    assert "idle-workers" not in rules(metrics)
    alone = AIMLMetricsCollector()
    for _ in range(3):
        alone.record_worker_utilization("one", 0.1)
    assert set(rules(alone)) == {"idle-workers"}
