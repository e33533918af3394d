"""Runs in their table: no run ends twice, is lost, or carries what can't be recorded."""

from __future__ import annotations

import json
import threading

import pytest

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.registry import RunSpec, RunState, RunStatus, RunTable
from holdfast.storage.cid import Cid
from holdfast.storage.local.collector import Collector
from holdfast.storage.local.pins import Pins

SPEC = RunSpec(
    code=Cid.of(b"code"), data=Cid.of(b"data"), config={"lr": 0.1, "layers": [1, 2], "deep": {"a": None}}
)


@pytest.fixture
def runs(database, store):
    return RunTable(database, store)


def test_a_run_goes_from_queued_to_done_with_its_result(runs):
    run = runs.create(SPEC)
    assert (run.state, run.started, run.finished, run.error, run.result) == (
        RunState.QUEUED,
        None,
        None,
        None,
        {},
    )
    running = runs.start(run.id)
    assert running.state is RunState.RUNNING
    assert running.started is not None
    done = runs.finish(run.id, RunState.DONE, result={"run": str(SPEC.code)})
    assert (done.state, done.result, done.error, done.started) == (
        RunState.DONE,
        {"run": str(SPEC.code)},
        None,
        running.started,
    )
    assert runs.get(run.id) == done


@pytest.mark.parametrize("end", [RunState.DONE, RunState.FAILED, RunState.CANCELLED])
def test_a_run_that_ended_can_not_be_revived_or_end_again(runs, end):
    run = runs.create(SPEC).id
    runs.finish(run, end, error="why")
    for state in (RunState.DONE, RunState.FAILED, RunState.CANCELLED):
        with pytest.raises(Conflict, match=f"is {end}"):
            runs.finish(run, state)
    with pytest.raises(Conflict):
        runs.start(run)
    assert runs.get(run).error == "why"


def test_a_run_is_not_started_twice(runs):
    run = runs.create(SPEC).id
    started = runs.start(run).started
    with pytest.raises(Conflict, match="is running and can't become running"):
        runs.start(run)
    assert runs.get(run).started == started


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.RUNNING])
def test_a_run_does_not_end_in_a_state_that_is_no_end(runs, state):
    run = runs.create(SPEC).id
    with pytest.raises(InvalidInput):
        runs.finish(run, state)
    assert runs.get(run).finished is None


def test_of_several_threads_exactly_one_ends_a_run(runs):
    run = runs.create(SPEC).id
    ended = []

    def end(number: int) -> None:
        try:
            runs.finish(run, RunState.FAILED, error=str(number))
            ended.append(str(number))
        except Conflict:
            pass

    threads = [threading.Thread(target=end, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert ended == [runs.get(run).error]


def test_events_are_numbered_without_a_gap_however_many_write(runs):
    run = runs.create(SPEC).id
    threads = [
        threading.Thread(target=lambda: [runs.add_event(run, {"type": "report"}) for _ in range(5)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    events = runs.events(run)
    assert [event["seq"] for event in events] == list(range(1, 21))
    assert [event["seq"] for event in runs.events(run, after=17)] == [18, 19, 20]
    assert all(event["type"] == "report" and event["time"] > 0 for event in events)


def test_events_of_one_run_do_not_show_in_another(runs):
    first, second = runs.create(SPEC).id, runs.create(SPEC).id
    runs.add_event(first, {"type": "report", "metrics": {"loss": 1.5}})
    assert runs.events(second) == []
    assert runs.events(first)[0]["metrics"] == {"loss": 1.5}


def test_a_run_that_is_not_there_is_named(runs):
    for call in (
        lambda: runs.get("run-0"),
        lambda: runs.start("run-0"),
        lambda: runs.finish("run-0", RunState.DONE),
        lambda: runs.add_event("run-0", {}),
        lambda: runs.events("run-0"),
    ):
        with pytest.raises(NotFound, match="run-0"):
            call()


def test_the_newest_run_comes_first(runs):
    made = [runs.create(SPEC).id for _ in range(5)]
    assert [status.id for status in runs.all()] == made[::-1]


def test_a_run_is_the_same_behind_a_server(runs):
    status = runs.create(SPEC)
    assert RunStatus.from_json(json.loads(json.dumps(status.to_json()))) == status
    assert status.spec == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 1 << 63},
        {"seed": 1.0},
        {"seed": True},
        {"seed": "0"},
        {"workers": 0},
        {"workers": "2"},
        {"threads_per_worker": 0},
        {"config": {"lr": float("nan")}},
        {"config": {"lr": float("inf")}},
        {"config": {"big": 1 << 64}},
        {"config": {1: 2}},
        {"config": {"key": {2: 3}}},
        {"config": {"bytes": b"x"}},
        {"config": {"cid": Cid.of(b"x")}},
        {"config": {"set": {1}}},
        {"config": {"f": print}},
        {"config": 5},
    ],
)
def test_what_could_not_be_recorded_is_refused_before_the_training_and_not_after(change):
    with pytest.raises(InvalidInput):
        RunSpec(**{"code": SPEC.code, "data": SPEC.data, "config": {}, **change})


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": "x"},
        {"code": str(SPEC.code), "data": str(SPEC.data)},
        {"code": 5, "data": str(SPEC.data), "config": {}},
        SPEC.to_json() | {"extra": 1},
        SPEC.to_json() | {"workers": None},
        SPEC.to_json() | {"config": [1]},
    ],
)
def test_a_request_that_is_no_run_is_an_error_of_the_caller(body):
    with pytest.raises(InvalidInput):
        RunSpec.from_json(body)


def test_what_a_run_was_made_from_and_what_it_made_survive_a_collection(runs, store):
    code, data, result = (store.add_bytes(part, pin=False) for part in (b"code", b"data", b"result"))
    store.add_bytes(b"nobody's", pin=False)
    run = runs.create(RunSpec(code=code, data=data, config={}))
    runs.start(run.id)
    runs.finish(run.id, RunState.DONE, result={"model": str(result)})
    local = store.blocks.inner
    assert Collector(local, Pins(local), grace_s=0.0).collect().blocks == 1
    assert all(local.has(cid) for cid in (code, data, result))
