"""The measurements of a run are those that it reported, at the times at which it did."""

from __future__ import annotations

from holdfast.registry.measurements import Kind
from holdfast.registry.measurements.run_measurements import measured_run


def report(time, **metrics):
    return {"type": "report", "metrics": metrics, "time": time, "seq": 1}


def test_each_report_is_there_with_its_epoch_and_how_long_it_took():
    events = [
        {"type": "worker_start", "time": 1.0},
        report(10.0, epoch=0, loss=2.0, accuracy=0.5),
        report(13.5, epoch=1, loss=1.0),
        report(20.0, epoch=5, loss=0.5),  # of an epoch that does not follow: how long it took is not known
        {"type": "worker_done", "time": 21.0},
    ]
    metrics = measured_run(events, run="run-1")
    assert [(m.step, dict(m.values), m.time_s) for m in metrics.measurements(Kind.METRIC)] == [
        (0, {"loss": 2.0, "accuracy": 0.5}, 10.0),
        (1, {"loss": 1.0}, 13.5),
        (5, {"loss": 0.5}, 20.0),
    ]
    assert [(m.step, m.values["duration_s"]) for m in metrics.measurements(Kind.EPOCH)] == [(1, 3.5)]
    assert {m.subject for m in metrics.measurements()} == {"run-1"}


def test_reports_that_name_no_epoch_are_counted():
    metrics = measured_run([report(1.0, loss=2.0), report(2.0, loss=1.0)], run="r")
    assert [m.step for m in metrics.measurements(Kind.METRIC)] == [0, 1]


def test_a_clock_that_was_set_back_gives_no_negative_duration():
    metrics = measured_run([report(9.0, epoch=0), report(2.0, epoch=1)], run="r")
    assert [m.values["duration_s"] for m in metrics.measurements(Kind.EPOCH)] == [0.0]
    assert not metrics.measurements(Kind.METRIC)
