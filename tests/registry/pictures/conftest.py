"""Measurements of many shapes: one epoch and many, one model and more than there are colours, long names, gaps, nothing."""

from __future__ import annotations

import math

import pytest

from holdfast.registry.measurements import AIMLMetricsCollector, Kind

START_S = 1.79e9
LONG = "organisation/with a <b>very</b> long name & $x_1$/finetuned-on-customer-tickets-of-2026-11"


def train(metrics: AIMLMetricsCollector, model: str, *, epochs: int, broken: tuple[int, ...] = ()) -> None:
    for epoch in range(epochs):
        loss = 2.3 * math.exp(-4 * epoch / epochs) + 0.05 * math.sin(epoch)
        values = {
            "train_loss": math.nan if epoch in broken else loss,
            "val_loss": loss + 0.2 + 0.4 * (epoch / epochs) ** 2,
            "train_accuracy": 1 - loss / 3,
            "val_accuracy": 0.9 - loss / 3,
            "learning_rate": 0.01 * 0.9**epoch,
        }
        time_s = START_S + 10 * epoch
        metrics.add(Kind.METRIC, model, values, step=epoch, time_s=time_s)
        measured = {
            "duration_s": 9.5 + 0.2 * (epoch % 3),
            "num_samples": 60_000,
            "memory_bytes": 4e8 + 3e6 * epoch,
        }
        metrics.add(Kind.EPOCH, model, measured, step=epoch, time_s=time_s)


def serve(metrics: AIMLMetricsCollector, model: str, *, requests: int) -> None:
    for request in range(requests):
        latency_s = 0.004 * (1 + 0.3 * math.sin(request)) * (15 if request % 60 == 59 else 1)
        metrics.add(
            Kind.INFERENCE, model, {"duration_s": latency_s, "batch_size": 8}, time_s=START_S + request
        )


def work(metrics: AIMLMetricsCollector, *, workers: int, reports: int) -> None:
    for worker in range(workers):
        for report in range(reports):
            share = 0.5 + 0.4 * math.sin(worker + report / 5)
            values = {"utilization": share, "memory_bytes": 8e8 + 1e7 * worker}
            metrics.add(Kind.WORKER, f"worker-{worker:x}badcafe", values, time_s=START_S + 5 * report)


def load(metrics: AIMLMetricsCollector, *, datasets: int) -> None:
    for dataset in range(datasets):
        values = {"duration_s": 0.004 * 7**dataset, "size_bytes": 1e6}
        name = LONG if dataset == datasets - 1 else f"dataset-{dataset}"
        metrics.add(Kind.DATASET_LOAD, name, values, time_s=START_S)


def nothing() -> AIMLMetricsCollector:
    return AIMLMetricsCollector()


def one_epoch() -> AIMLMetricsCollector:
    metrics = AIMLMetricsCollector()
    train(metrics, "model_1", epochs=1)
    serve(metrics, "model_1", requests=1)
    work(metrics, workers=1, reports=1)
    load(metrics, datasets=1)
    return metrics


def a_run() -> AIMLMetricsCollector:
    metrics = AIMLMetricsCollector()
    train(metrics, "digits-cnn", epochs=20)
    serve(metrics, "digits-cnn", requests=300)
    work(metrics, workers=4, reports=30)
    load(metrics, datasets=4)
    return metrics


def long_run() -> AIMLMetricsCollector:
    metrics = AIMLMetricsCollector()
    train(metrics, "digits-cnn", epochs=500, broken=(3, *range(100, 130)))
    return metrics


def gaps_and_a_long_name() -> AIMLMetricsCollector:
    metrics = AIMLMetricsCollector()
    train(metrics, LONG, epochs=12, broken=(2, 3, 5, 11))
    serve(metrics, LONG, requests=40)
    return metrics


def many_models() -> AIMLMetricsCollector:
    metrics = AIMLMetricsCollector()
    for model in ("resnet50", "bert-base-uncased", LONG, *(f"model-{i}" for i in range(9))):
        train(metrics, model, epochs=6)
        serve(metrics, model, requests=30)
    work(metrics, workers=19, reports=10)
    load(metrics, datasets=6)
    return metrics


SHAPES = (nothing, one_epoch, a_run, long_run, gaps_and_a_long_name, many_models)


@pytest.fixture(params=SHAPES, ids=lambda make: make.__name__)
def measured(request: pytest.FixtureRequest) -> AIMLMetricsCollector:
    made: AIMLMetricsCollector = request.param()
    return made


@pytest.fixture
def run_of_20() -> AIMLMetricsCollector:
    return a_run()


@pytest.fixture
def hostile() -> AIMLMetricsCollector:
    return gaps_and_a_long_name()
