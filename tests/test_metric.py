"""Metrics: rows, means of rows, and the figures that people read; scikit-learn is the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import METRICS, Outcomes, TradeOffCurve, register_metric
from ebjr.tasks import as_task

RNG = np.random.default_rng(2)
TARGETS = RNG.normal(3, 2, 60)
STUDENT = np.column_stack([TARGETS + RNG.normal(0, 1, 60), RNG.uniform(0.1, 2, 60)])
TEACHER = TARGETS + RNG.normal(0, 0.3, 60)


def table(metric=None):
    return Outcomes(STUDENT, TEACHER, TARGETS, task="regression", metric=metric)


@pytest.fixture
def registry():
    before = dict(METRICS)
    yield METRICS
    METRICS.clear()
    METRICS.update(before)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("rmse", "root_mean_squared_error"),
        ("mse", "mean_squared_error"),
        ("mae", "mean_absolute_error"),
        ("r2", "r2_score"),
    ],
)
def test_a_figure_is_what_scikit_learn_says(name, oracle):
    metrics = pytest.importorskip("sklearn.metrics")
    outcomes = table(name)
    expected = getattr(metrics, oracle)(TARGETS, STUDENT[:, 0])
    assert outcomes.measure.figure(outcomes.quality("student")) == pytest.approx(expected)


def test_rmse_is_the_default_and_comes_first():
    assert table().metric == "rmse"
    assert replace(table(), metric="mae").quality("teacher") == -np.abs(TEACHER - TARGETS).mean()


@pytest.mark.parametrize("name", ["rmse", "mse", "mae", "r2"])
def test_a_better_model_has_the_higher_quality(name):
    assert table(name).quality("teacher") > table(name).quality("student")


@given(mean=st.floats(-1e6, 0))
@settings(deadline=None)
def test_a_quality_and_a_mean_of_rows_say_the_same(mean):
    for metric in METRICS.values():
        assert metric.mean(metric.quality(mean)) == pytest.approx(mean)
        quality = metric.quality(mean)
        assert metric.figure(metric.figure(quality)) == quality


def test_r2_of_equal_targets_is_refused():
    with pytest.raises(ValueError, match="all targets are equal"):
        Outcomes([1.0, 2.0], [1.0, 2.0], [3.0, 3.0], task="regression", metric="r2").quality(
            "student"
        )


def test_a_loss_of_the_user_judges_outcomes_by_its_name(registry, tmp_path):
    @register_metric
    def overcharged(predictions, targets):
        return np.maximum(predictions - targets, 0)

    outcomes = table("overcharged")
    expected = np.maximum(STUDENT[:, 0] - TARGETS, 0).mean()
    assert outcomes.quality("student") == -expected
    outcomes.save(tmp_path / "o.npz")
    assert Outcomes.load(tmp_path / "o.npz").quality("student") == -expected
    assert TradeOffCurve.of(outcomes, "predicted_std").quality[0] == pytest.approx(-expected)


def test_a_name_is_given_once(registry):
    def rmse(predictions, targets):
        return 0

    with pytest.raises(ValueError, match="a metric named rmse exists already"):
        register_metric(rmse)


def test_a_loss_that_is_none_is_refused(registry):
    @register_metric
    def signed(predictions, targets):
        return predictions - targets

    with pytest.raises(ValueError, match="metric signed must return one loss of at least 0"):
        table("signed").quality("student")


@pytest.mark.parametrize(
    ("name", "task", "message"),
    [
        ("accuracy", "regression", "one of rmse, mse, mae, r2, not 'accuracy'"),
        ("rmse", "classification", "one of accuracy, not 'rmse'"),
        ("sharpe", "regression", "not 'sharpe'"),
    ],
)
def test_a_metric_of_another_task_is_refused(name, task, message):
    with pytest.raises(ValueError, match=message):
        as_task(task).metric(name)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [("rmse", -1, "at least 0"), ("accuracy", 1.1, "between 0 and 1"), ("r2", 1.5, "at most 1"),
     ("mae", np.nan, "finite")],
)  # fmt: skip
def test_a_target_out_of_range_is_refused(name, target, message):
    with pytest.raises(ValueError, match=message):
        METRICS[name].check_target(target)
    assert METRICS["r2"].check_target(-3.0) == -3.0
