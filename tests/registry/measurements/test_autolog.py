"""Training that nobody wrote a line of measuring into is measured, and the libraries are as before afterwards."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import sklearn
import torch
from sklearn.base import BaseEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset

from holdfast.errors import InvalidInput
from holdfast.registry import AIMLMetricsCollector
from holdfast.registry.measurements import Kind
from holdfast.registry.measurements.autolog import autolog

X = np.random.default_rng(0).normal(size=(90, 3))
Y = (X[:, 0] > 0).astype(int)
ROWS = TensorDataset(torch.tensor(X, dtype=torch.float32), torch.tensor(Y))


@pytest.fixture
def metrics() -> AIMLMetricsCollector:
    return AIMLMetricsCollector()


def epochs(metrics: AIMLMetricsCollector) -> list[tuple[str, int | None]]:
    return [(m.subject, m.step) for m in metrics.measurements(Kind.EPOCH)]


def train(loader, *, epochs: int = 1, stop_after: int | None = None) -> list[float]:
    """A plain loop; gives the mean loss of each epoch."""
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.25)
    means = []
    for _ in range(epochs):
        losses = []
        for step, (x, y) in enumerate(loader):
            loss = torch.nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step + 1 == stop_after:
                break
        means.append(sum(losses) / len(losses))
    return means


def patched() -> list[object]:
    """What autolog replaces."""
    return [
        LogisticRegression.__dict__["fit"],
        SGDClassifier.__mro__[1].__dict__["partial_fit"],
        torch.Tensor.__dict__["backward"],
        DataLoader.__dict__["__iter__"],
        torch.amp.GradScaler.__dict__["scale"],
        BaseEstimator.__dict__.get("__init_subclass__"),
    ]


# ------------------------------------------------------------------------------------------------- scikit-learn


def test_a_fit_is_recorded_with_parameters_score_and_size(metrics):
    with autolog(metrics, frameworks="sklearn"):
        model = LogisticRegression(C=0.5).fit(X, Y)
    fit = metrics.measurements(Kind.EPOCH)[0]
    assert (fit.subject, fit.step, fit.values["num_samples"]) == ("LogisticRegression", 0, 90)
    assert (fit.about["C"], fit.about["class"]) == (0.5, "LogisticRegression")
    told = metrics.get_summary()["training"]["LogisticRegression"]["by_epoch"]["0"]
    assert told["train_score"] == model.score(X, Y)


def test_of_fits_inside_of_fits_only_the_outermost_counts(metrics):
    with autolog(metrics, frameworks="sklearn"):
        make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
        GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(X, Y)
    assert epochs(metrics) == [("Pipeline", 0), ("GridSearchCV", 0)]


def test_repeated_and_partial_fits_are_epochs_that_go_on_in_the_next_block(metrics):
    with autolog(metrics, model="net", frameworks="sklearn"):
        model = SGDClassifier(random_state=0)
        for _ in range(3):
            model.partial_fit(X, Y, classes=[0, 1])
    with autolog(metrics, model="net", frameworks="sklearn"):
        model.fit(X, Y)
    assert epochs(metrics) == [("net", 0), ("net", 1), ("net", 2), ("net", 3)]


def test_a_method_that_only_some_estimators_have_is_watched_too(metrics):
    from sklearn.neural_network import MLPClassifier

    given = MLPClassifier.__dict__["partial_fit"]
    with autolog(metrics):
        model = MLPClassifier(hidden_layer_sizes=(3,))
        for _ in range(3):
            model.partial_fit(X, Y, classes=[0, 1])
        assert not hasattr(MLPClassifier(solver="lbfgs"), "partial_fit")
    assert [(m.subject, m.step) for m in metrics.measurements(Kind.EPOCH)] == [
        ("MLPClassifier", number) for number in range(3)
    ]
    assert MLPClassifier.__dict__["partial_fit"] is given


def test_a_fit_that_fails_is_recorded_as_failed_and_raises(metrics):
    with autolog(metrics, frameworks="sklearn"), pytest.raises(ValueError, match=r"[Ii]nconsistent"):
        LinearRegression().fit(X, Y[:5])
    assert metrics.measurements(Kind.EPOCH)[0].error.startswith("ValueError")


def test_an_estimator_without_a_score_is_recorded_without_one(metrics):
    with autolog(metrics, frameworks="sklearn"):
        StandardScaler().fit(X)
    assert [m.kind for m in metrics.measurements()] == [Kind.EPOCH]


def test_classes_made_while_watching_are_watched_and_set_free(metrics):
    with autolog(metrics, frameworks="sklearn"):

        class Mine(BaseEstimator):  # type: ignore[misc]
            def fit(self, X, y=None):  # noqa: ARG002, N803 -- scikit-learn's signature
                return self

        own = Mine.__dict__["fit"]
        Mine().fit(X)
    assert epochs(metrics) == [("Mine", 0)]
    assert Mine.__dict__["fit"] is own.__wrapped__


def test_predictions_are_the_same_with_and_without_watching(metrics):
    plain = LogisticRegression().fit(X, Y).predict_proba(X)
    with autolog(metrics, frameworks="sklearn"):
        watched = LogisticRegression().fit(X, Y)
    assert np.array_equal(watched.predict_proba(X), plain)
    assert sklearn.clone(watched).get_params() == LogisticRegression().get_params()


# ------------------------------------------------------------------------------------------------------- PyTorch


def test_each_pass_over_a_loader_that_trains_is_an_epoch_with_the_mean_loss(metrics):
    loader = DataLoader(ROWS, batch_size=30)
    plain = train(loader, epochs=3)
    with autolog(metrics, model="net", frameworks=["torch"]):
        watched = train(loader, epochs=3)
        for x, _ in DataLoader(ROWS, batch_size=45):  # validation trains nothing
            assert len(x) == 45
    assert watched == plain
    by_epoch = metrics.get_summary()["training"]["net"]["by_epoch"]
    assert [by_epoch[str(e)]["train_loss"] for e in range(3)] == pytest.approx(plain)
    assert len(by_epoch) == 3
    for told in by_epoch.values():
        assert (told["steps"], told["num_samples"], told["learning_rate"]) == (3, 90, 0.25)
        assert 0 < told["data_loading_s"] < told["duration_s"]


def test_an_epoch_that_breaks_off_counts_what_it_did(metrics):
    with autolog(metrics, frameworks=["torch"]):
        means = train(DataLoader(ROWS, batch_size=30), epochs=2, stop_after=2)
    by_epoch = metrics.get_summary()["training"]["model"]["by_epoch"]
    assert [by_epoch[e]["train_loss"] for e in "01"] == pytest.approx(means)
    assert [by_epoch[e]["num_samples"] for e in "01"] == [60, 60]


def test_a_tracked_epoch_gets_the_losses_inside_it(metrics):
    with (
        autolog(metrics, frameworks=["torch"]),
        metrics.track_training_epoch("mine", epoch=7, num_samples=90),
    ):
        means = train(DataLoader(ROWS, batch_size=30))
    assert epochs(metrics) == [("mine", 7)]
    told = metrics.get_summary()["training"]["mine"]["by_epoch"]["7"]
    assert told["train_loss"] == pytest.approx(means[0])
    assert told["steps"] == 3
    assert told["data_loading_s"] > 0


def test_a_loop_without_a_loader_is_one_epoch(metrics):
    batches = [(torch.ones(4, 3), torch.zeros(4, dtype=torch.long))] * 5
    with autolog(metrics, frameworks=["torch"]):
        means = train(batches)
    assert epochs(metrics) == [("model", 0)]
    told = metrics.get_summary()["training"]["model"]["by_epoch"]["0"]
    assert told["train_loss"] == pytest.approx(means[0])
    assert told["steps"] == 5


def test_mixed_precision_records_the_loss_and_not_its_multiple(metrics):
    net = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with autolog(metrics, frameworks=["torch"]):
        loss = (net(torch.ones(2, 3)) ** 2).mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
    assert metrics.get_summary()["training"]["model"]["by_epoch"]["0"]["train_loss"] == pytest.approx(
        loss.item()
    )


def test_loops_of_two_threads_are_not_mixed_up(metrics):
    means: dict[int, list[float]] = {}

    def work(batch_size: int) -> None:
        means[batch_size] = train(DataLoader(ROWS, batch_size=batch_size), epochs=2)

    with autolog(metrics, frameworks=["torch"]):
        threads = [threading.Thread(target=work, args=(size,)) for size in (10, 45)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    told = metrics.get_summary()["training"]["model"]["by_epoch"].values()
    assert sorted(epoch["steps"] for epoch in told) == [2, 2, 9, 9]
    assert sorted(epoch["num_samples"] for epoch in told) == [90] * 4


# ------------------------------------------------------------------------------------------------------ both


@pytest.mark.parametrize("error", [None, ValueError("stop")])
def test_everything_is_as_before_afterwards(metrics, error):
    before = patched()
    try:
        with autolog(metrics) as watching:
            assert all(now is not then for now, then in zip(patched(), before, strict=True))
            if error:
                raise error
    except ValueError:
        pass
    watching.stop()
    assert all(now is then for now, then in zip(patched(), before, strict=True))
    LogisticRegression().fit(X, Y)
    train(DataLoader(ROWS, batch_size=30))
    assert metrics.measurements() == ()


def test_what_somebody_else_wrapped_meanwhile_stays_wrapped_and_works(metrics):
    own = torch.Tensor.__dict__["backward"]
    try:
        with autolog(metrics, frameworks=["torch"]):
            inner = torch.Tensor.backward

            def theirs(*args, **options):
                return inner(*args, **options)

            setattr(torch.Tensor, "backward", theirs)  # noqa: B010 -- mypy knows it as a method
        assert torch.Tensor.__dict__["backward"] is theirs
        train(DataLoader(ROWS, batch_size=30))
        assert metrics.measurements() == ()
    finally:
        setattr(torch.Tensor, "backward", own)  # noqa: B010


def test_an_unknown_framework_is_refused(metrics):
    with pytest.raises(InvalidInput, match="not 'jax'"):
        autolog(metrics, frameworks=["jax"])
