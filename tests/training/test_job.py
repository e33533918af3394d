"""One run in this process: repeatable, recorded, and without a trace in the caller's own state."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from holdfast.errors import InvalidInput, Unavailable
from holdfast.registry import (
    ModelRecord,
    ModelRegistry,
    RunRecord,
    RunSpec,
    bundle_code,
    load_code,
    load_record,
    load_weights,
    verify,
)
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import store_dataset
from holdfast.training.examples import digits
from holdfast.training.job import Outcome, run_embedded
from holdfast.training.ray_job import RayJob, answer_of

FIT = """
def train(context):
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=context.config.get("lr", 0.1))
    for epoch in range(2):
        for batch in context.batches("train", batch_size=8, epoch=epoch):
            loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        context.report(model=model, loss=loss.item(), epoch=epoch)
    return model
"""


@pytest.fixture(scope="module")
def digits_runs(tmp_path_factory):
    """The example, trained twice, each in a store of its own."""
    from contextlib import closing

    from holdfast.storage.content import ContentStore
    from holdfast.storage.local.local_store import LocalStore

    found = []
    for number in range(2):
        with closing(LocalStore(tmp_path_factory.mktemp("digits") / "blocks")) as blocks:
            store = ContentStore(blocks)
            data = store_dataset(store, digits.load_digits()).cid
            events: list[dict[str, object]] = []
            random.seed(number)
            torch.manual_seed(number)
            spec = RunSpec(code=bundle_code(store, digits.train), data=data, config={"epochs": 4}, seed=1)
            run, model = run_embedded(spec, store, events.append)
            found.append((run, model, load_record(store, run, RunRecord), events, verify(store, model)))
    return found


def test_the_same_training_has_the_same_cids(digits_runs):
    (run, model, *_), (run_again, model_again, *_) = digits_runs
    assert run == run_again
    assert model == model_again


def test_the_example_learns_its_task(digits_runs):
    _, _, record, _, _ = digits_runs[0]
    assert record.metrics["test_accuracy"] >= 0.95
    losses = [report["loss"] for report in record.history]
    assert losses == sorted(losses, reverse=True)


def test_the_record_of_a_run_is_whole(digits_runs):
    run, model, record, events, tree = digits_runs[0]
    assert tree.ok, tree.render()
    assert {run, model, record.code, record.data} <= {node.cid for node in tree.flat()}
    assert [event["metrics"] for event in events] == list(record.history)
    assert record.metrics == record.history[-1]
    assert (record.seed, record.workers, record.threads_per_worker, record.config) == (1, 1, 1, {"epochs": 4})


def weights_of(store, model):
    return store.resolve(f"{load_record(store, model, ModelRecord).files}/model.safetensors")


def test_every_checkpoint_is_there_and_the_last_one_is_the_model(store, spec_of):
    events: list[dict[str, object]] = []
    _, model = run_embedded(spec_of(FIT), store, events.append)
    checkpoints = [Cid.parse(str(event["checkpoint"])) for event in events]
    assert len(set(checkpoints)) == 2
    code = load_record(store, model, ModelRecord).code
    assert code is not None
    model_class = load_code(store, code, trust=True)
    for cid in checkpoints:
        load_weights(model_class(), store, cid)
    assert checkpoints[-1] == weights_of(store, model)


def test_another_seed_or_config_is_another_run(store, spec_of):
    spec = spec_of(FIT)
    first = run_embedded(spec, store, lambda _: None)
    assert run_embedded(spec, store, lambda _: None) == first
    for changed in ({"seed": 9}, {"config": {"lr": 0.2}}):
        other = run_embedded(
            RunSpec(**{"code": spec.code, "data": spec.data, "config": {}, **changed}), store, lambda _: None
        )
        assert set(other).isdisjoint(first)


def test_the_trained_model_can_be_got(store, spec_of, tmp_path):
    from contextlib import closing

    from holdfast.registry import Database, SqliteNames

    _, cid = run_embedded(spec_of(FIT), store, lambda _: None)
    with closing(Database(tmp_path / "registry.db")) as database:
        registry = ModelRegistry(store, SqliteNames(database, store))
        model = registry.load(cid)
        record = registry.record(str(cid))
    assert record.inputs == ({"name": "x", "dtype": "float32", "shape": [3]},)
    assert record.data == (spec_of(FIT).data,)
    with torch.no_grad():
        assert model(torch.zeros(1, 3)).shape == (1, 1)


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        ("None", "NoneType"),
        ("{'weights': 1}", "dict"),
        ("Net", "type"),
        ("Net().state_dict()", "OrderedDict"),
    ],
)
def test_a_function_that_returns_no_model_is_told_so(store, spec_of, returned, shown):
    spec = spec_of(f"def train(context):\n    return {returned}\n")
    with pytest.raises(InvalidInput, match=f"train must return the trained torch module, not {shown}"):
        run_embedded(spec, store, lambda _: None)


def test_a_diverged_run_is_not_recorded(store, spec_of):
    spec = spec_of("def train(context):\n    context.report(loss=float('nan'))\n    return Net()\n")
    with pytest.raises(InvalidInput, match="metric 'loss' must be a finite number, not nan"):
        run_embedded(spec, store, lambda _: None)


def test_several_workers_without_a_cluster_are_refused_with_the_way_out(store, spec_of):
    with pytest.raises(InvalidInput, match="'holdfast up'"):
        run_embedded(spec_of(FIT, workers=2), store, lambda _: None)


def test_what_is_no_dataset_or_no_code_is_refused(store, spec_of):
    spec = spec_of(FIT)
    for wrong in (
        RunSpec(code=spec.data, data=spec.data, config={}),
        RunSpec(code=spec.code, data=spec.code, config={}),
        RunSpec(code=spec.code, data=store.add_bytes(b"x"), config={}),
    ):
        with pytest.raises(InvalidInput):
            run_embedded(wrong, store, lambda _: None)


def test_a_failing_function_fails_with_its_own_error(store, spec_of):
    spec = spec_of("def train(context):\n    return [][context.seed]\n")
    with pytest.raises(IndexError):
        run_embedded(spec, store, lambda _: None)


def test_a_model_that_prepare_wrapped_is_stored_as_itself(store, spec_of):
    spec = spec_of("def train(context):\n    return context.prepare(Net())\n")
    _, model = run_embedded(spec, store, lambda _: None)
    assert b"line.weight" in bytes(store.open(weights_of(store, model)))


# ------------------------------------------------------------------------------------------- the caller's state

DISTURB = """
def train(context):
    random.random(), np.random.rand(), torch.rand(1)
    torch.set_num_threads(1)
    context.report(
        threads=torch.get_num_threads(), deterministic=int(torch.are_deterministic_algorithms_enabled()),
        python=random.random(), numpy=float(np.random.rand()), torch=torch.rand(1).item(),
    )
    {end}
"""


def state():
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002 -- the caller's
    )


@pytest.mark.parametrize("end", ["return Net()", "raise KeyError('stop')"])
@pytest.mark.parametrize(("mode", "warn_only"), [(False, False), (True, True), (True, False)])
def test_a_run_leaves_the_caller_s_threads_and_random_numbers_alone(store, spec_of, end, mode, warn_only):
    spec = spec_of(DISTURB.format(end=end))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(mode, warn_only=warn_only)
        before = state()
        if end.startswith("raise"):
            with pytest.raises(KeyError):
                run_embedded(spec, store, lambda _: None)
        else:
            run_embedded(spec, store, lambda _: None)
        assert state() == before
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=False)


def test_the_caller_s_random_numbers_do_not_reach_into_a_run(store, spec_of):
    spec = spec_of(DISTURB.format(end="return Net()"), threads_per_worker=1)
    seen = []
    for number in range(2):
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 -- the caller's
        torch.manual_seed(number)
        events: list[dict[str, object]] = []
        run = run_embedded(spec, store, events.append)
        seen.append((run, events))
    assert seen[0] == seen[1]
    assert seen[0][1][0]["metrics"]["deterministic"] == 1  # type: ignore[index]


# ------------------------------------------------------------------------------------------------- on the wire


def test_an_outcome_and_a_job_are_the_same_behind_a_process_border():
    import json

    a, b = Cid.of(b"a"), Cid.of(b"b")
    outcome = Outcome(model=b, environment=a, history=[{"loss": 0.5}])
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome
    spec = RunSpec(code=a, data=b, config={"lr": 0.1}, workers=3)
    job = RayJob(
        run_id="run-1",
        spec=spec,
        ray_address="127.0.0.1:1",
        node_ip="127.0.0.1",
        master_url="http://x",
        scratch="/x",
    )
    assert RayJob.from_json(json.loads(json.dumps(job.to_json()))) == job


def test_a_driver_that_says_something_else_is_no_success():
    assert answer_of('{"run": "a", "model": "b"}') == {"run": "a", "model": "b"}
    with pytest.raises(InvalidInput, match=r"^bad batch$"):
        answer_of('{"error": "bad batch", "code": "invalid_input"}')
    for line in ("", "Segmentation fault", "[]", "5", "{}"):
        with pytest.raises(Unavailable, match="the training driver"):
            answer_of(line)
