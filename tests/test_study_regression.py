"""A study of regressors: tables, report and command line, in the metric's own words."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from tiny import write_images

from ebjr import (
    Cost,
    JointConfig,
    JointRegressor,
    Outcomes,
    Router,
    TradeOffCurve,
    cli,
    load_joint,
    load_model,
    run_study,
    save_joint,
)
from ebjr.evaluation import joint_prediction
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.evaluation.ranking import reliability
from ebjr.evaluation.tests import loss_difference
from ebjr.files import json_number
from ebjr.study import study_point
from ebjr.tables import print_study, study_figures

CLASS_WORDS = re.compile(r"accuracy|McNemar|AUROC|AURC|odds|right on|\bclass|label|crossing", re.I)


def pair(n=3000, seed=0, **about):
    rng = np.random.default_rng(seed)
    targets, deviation = rng.normal(5, 3, n), rng.gamma(2, 0.4, n)
    student = np.column_stack([targets + deviation * rng.normal(0, 1, n), deviation])
    return Outcomes(student, targets + rng.normal(0, 0.3, n), targets, task="regression",
                    student_cost=Cost(flops=1e6, seconds=1e-4),
                    teacher_cost=Cost(flops=1e7, seconds=1e-3), **about)  # fmt: skip


@pytest.fixture(scope="module")
def study():
    return run_study(pair(), tolerance=0.05)


def test_the_joint_model_is_compared_with_both_by_their_losses(study):
    teacher, student = study.comparisons
    assert student.better == "the joint model"
    assert student.difference.estimate < 0
    assert teacher.difference.low < teacher.difference.estimate < teacher.difference.high
    assert "RMSE than the teacher" in teacher.verdict
    rmse = np.sqrt(np.mean((joint_prediction(study.held_out, study.point)
                            - study.held_out.targets) ** 2))  # fmt: skip
    assert rmse == pytest.approx(-study.result.quality)
    assert study.crossings == {}


@pytest.mark.parametrize("metric", ["rmse", "mae", "r2"])
def test_the_estimates_are_the_points_own_figures(metric):
    outcomes = pair(800, metric=metric)
    point = TradeOffCurve.of(outcomes, "predicted_std").at(deferral_rate=0.3)
    found = bootstrap(outcomes, point, n_resamples=300)
    sign = 1 if metric == "r2" else -1
    assert found[metric].estimate == pytest.approx(sign * point.quality)
    assert found["gain_over_teacher"].estimate == pytest.approx(
        point.quality - point.teacher_quality
    )
    assert found["deferral_rate"].estimate == point.deferral_rate
    assert found["saving"].estimate == pytest.approx(point.saving)
    assert all(each.low <= each.estimate <= each.high for each in found.values())


def test_95_percent_intervals_cover_the_truth_in_95_of_100_samples():
    population = pair(100_000, seed=4)
    point = TradeOffCurve.of(population, "predicted_std").at(deferral_rate=0.3)
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        drawn = population.take(rng.integers(0, len(population), 400))
        interval = bootstrap(drawn, point, n_resamples=200)["rmse"]
        covered += interval.low <= -point.quality <= interval.high
    assert covered >= 88


def test_many_examples_are_resampled_as_few_are():
    outcomes = pair(20_000)
    twice = outcomes.take(np.tile(np.arange(20_000), 2))
    point = TradeOffCurve.of(outcomes, "predicted_std").at(deferral_rate=0.3)
    few, many = (bootstrap(table, point, n_resamples=500)["rmse"] for table in (outcomes, twice))
    assert few.estimate == pytest.approx(many.estimate)
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(np.sqrt(2), rel=0.15)


def test_equally_good_models_differ_significantly_in_at_most_about_5_of_100_samples():
    rng = np.random.default_rng(0)
    differ = sum(
        loss_difference(*-(rng.normal(0, 1, (2, 200)) ** 2), "rmse", n_resamples=400).better
        is not None
        for _ in range(200)
    )
    assert differ <= 20


def test_models_that_never_differ_are_not_told_apart():
    same = loss_difference(-np.ones(9), -np.ones(9), "mae")
    assert same.better is None
    assert "chance alone may explain this" in same.verdict


def test_bins_along_the_score_hold_the_metric_of_both_models():
    outcomes = pair(2000)
    point = TradeOffCurve.of(outcomes, "predicted_std").at(deferral_rate=0.3)
    order = np.argsort(-outcomes.student[:, 1], kind="stable")
    lowest = reliability(outcomes, point)[0]
    off = (outcomes.student[:, 0] - outcomes.targets)[order[:200]]
    assert lowest.student.estimate == pytest.approx(np.sqrt(np.mean(off**2)))
    assert lowest.student.low < lowest.student.estimate < lowest.student.high
    assert lowest.teacher.estimate < lowest.student.estimate


def test_the_screen_has_no_word_of_classes(study, capsys):
    print_study(Console(width=200), study)
    text = capsys.readouterr().out
    assert not CLASS_WORDS.search(text.replace("0.5", ""))
    assert f"{-study.result.quality:.4g}" in text
    assert "RMSE" in text
    assert "for the best RMSE" in text


def test_the_figures_for_a_machine_are_json(study):
    figures = json.loads(
        json.dumps(json_number(study_figures(study)), allow_nan=False, default=str)
    )
    assert figures["held_out"]["metric"] == "rmse"
    assert figures["best_rmse"]["quality"] <= 0
    assert "auroc" not in figures["ranking"][0]
    assert figures["comparisons"][0]["difference"]["estimate"] is not None


@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_the_report_draws_residuals_and_has_no_word_of_classes(metric, tmp_path):
    study = run_study(pair(metric=metric), tolerance=0.05)
    path = tmp_path / "report.html"
    study.write_report(path, title="Regression")
    page = path.read_text()
    page = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    words = re.sub(r"<script.*?</script>|<[^>]*>", " ", body, flags=re.DOTALL)
    assert not CLASS_WORDS.search(words)
    title = study.outcomes.measure.title
    assert f"{title} against cost" in words
    assert data["metric"] == {
        "title": title,
        "percent": False,
        "sign": -1 if metric == "rmse" else 1,
    }
    series = data["series"][data["chosen"]]
    score = study.point.score_function(study.held_out.student)
    for dots in series["histogram"]["data"]:
        said = getattr(study.held_out, dots["name"])[:, 0]
        assert len(dots["x"]) == min(len(score), 2000)
        assert sorted(dots["y"]) == pytest.approx(sorted(study.held_out.targets - said), rel=1e-4)
    assert [dots["name"] for dots in series["histogram"]["data"]] == ["student", "teacher"]
    assert data["curve"]["layout"]["yaxis"]["title"]["text"].startswith(title)
    drawn = data["curve"]["data"][-1]["y"][0]
    assert drawn == pytest.approx(study.outcomes.measure.figure(study.result.quality))


# joint.toml and the command line


def write_regressor(path, slope, noise):
    """An ONNX regressor of (n, 2) inputs: slope times the first, and noise times the second."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = np.array([[slope, 0.0], [noise, 1.0]], np.float32)
    helper, tensor = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        path.stem,
        [helper.make_tensor_value_info("x", tensor, ["batch", 2])],
        [helper.make_tensor_value_info("y", tensor, ["batch", 2])],
        [onnx.numpy_helper.from_array(weight, "weight")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), str(path))
    return path


@pytest.fixture
def models(tmp_path):
    """Two regressors: the student is off by the second input, which is its deviation too."""
    return (write_regressor(tmp_path / "student.onnx", 2.0, 1.0),
            write_regressor(tmp_path / "teacher.onnx", 2.0, 0.01))  # fmt: skip


def test_a_joint_regressor_comes_back_from_joint_toml(models, tmp_path):
    student, teacher = (load_model(path) for path in models)
    joint = JointRegressor(student, teacher, Router("predicted_std(of='std')", -1.5), blend=0.25)
    save_joint(tmp_path / "joint.toml", joint)
    again = load_joint(tmp_path / "joint.toml")
    assert isinstance(again, JointRegressor)
    x = np.abs(np.random.default_rng(0).normal(1, 1, (9, 2))).astype(np.float32)
    one, other = joint(x), again(x)
    assert 0 < one.deferred.sum() < 9
    np.testing.assert_array_equal(one.prediction, other.prediction)
    np.testing.assert_array_equal(one.deferred, other.deferred)


def test_a_task_that_is_none_is_refused_with_the_file(models, tmp_path):
    student, teacher = (load_model(path) for path in models)
    joint = JointRegressor(student, teacher, Router("predicted_std", -1.5))
    save_joint(tmp_path / "joint.toml", joint)
    text = (tmp_path / "joint.toml").read_text().replace('"regression"', '"juggling"')
    (tmp_path / "joint.toml").write_text(text)
    with pytest.raises(ValueError, match="task must be one of classification, detection"):
        JointConfig.read(tmp_path / "joint.toml")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(words, *more, code=0):
        monkeypatch.setattr(sys, "argv", ["ebjr", *words.split(), *more])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        assert (caught.value.code or 0) == code, printed.err
        return printed.out if code == 0 else printed.err

    return call


@pytest.fixture
def data(models, tmp_path):
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(0, 2, 400), rng.gamma(1, 1, 400)]).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=x, targets=2 * x[:, 0] + rng.normal(0, 0.05, 400))


RECORD = "record --student student.onnx --teacher teacher.onnx --data data.npz -o o.npz"


def test_the_commands_make_two_regressors_one(run, data, tmp_path):
    said = run(f"{RECORD} --task regression")
    assert "RMSE" in said
    assert not CLASS_WORDS.search(said)
    said = run("calibrate o.npz --tolerance 0.05 -o joint.toml")
    assert not CLASS_WORDS.search(said)
    figures = json.loads(run("evaluate o.npz --joint joint.toml --json"))
    assert figures["held_out"]["metric"] == "rmse"
    run("predict joint.toml --data data.npz -o answers.jsonl")
    with np.load(tmp_path / "data.npz") as arrays:
        targets = arrays["targets"]
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    rmse = np.sqrt(np.mean((np.array([a["prediction"] for a in answers]) - targets) ** 2))
    assert rmse < 0.2
    assert 0 < np.mean([answer["deferred"] for answer in answers]) < 1


def test_the_metric_and_a_guarantee_are_flags(run, data):
    run(f"{RECORD} --task regression")
    words = "calibrate o.npz --metric mae --tolerance 0.3 --delta 0.1 --loss-bound 2"
    figures = json.loads(run(f"{words} -o joint.toml --json"))
    assert figures["held_out"]["metric"] == "mae"
    assert figures["promise"]["test"] == "betting"
    assert figures["promise"]["loss_bound"] == 2
    assert "each loss counting for at most 2" in run(words)
    again = json.loads(run("evaluate o.npz --joint joint.toml --json"))
    assert again["held_out"]["metric"] == "mae"
    assert again["promise"] == figures["promise"]


def test_a_grid_that_misses_targets_is_said_on_the_command_line(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    targets, grid = rng.normal(0, 3, 200), np.linspace(-4, 4, 9)
    energies = -((grid - targets[:, None] + rng.normal(0, 1, (200, 1))) ** 2) / 2
    student = np.column_stack([targets + rng.normal(0, 1, 200), energies])
    Outcomes(student, targets, targets, "regression").save(tmp_path / "o.npz")
    words = ["calibrate", str(tmp_path / "o.npz"), "--tolerance", "1", "--json"]
    score = "regression_energy(grid=(-4.0, 4.0))"
    monkeypatch.setattr(sys, "argv", ["ebjr", *words, "--score", score])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr()
    said = " ".join(printed.err.split())
    assert "WARNING: the grid from -4 to 4 does not cover the data: " in said
    assert re.search(r"\d+ of 100 targets \(\d+\.\d %\) lie outside", said)
    assert json.loads(printed.out)["chosen_on"]["score"] == score


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (RECORD, "targets must be whole numbers"),
        (f"{RECORD} --task juggling", "task must be one of classification, detection"),
        (f"{RECORD} --task regression --metric accuracy", "metric of regression must be one of"),
        (RECORD.replace("data.npz", "images") + " --task regression", "the targets of an .npz"),
        ("calibrate own.npz --goal crossing", "right or wrong"),
        ("calibrate own.npz --metric sharpe", "one of rmse, mse, mae, r2"),
        ("calibrate own.npz --metric mae --tolerance 1 --delta 0.1", "give loss_bound"),
    ],
)
def test_bad_input_is_one_sentence(run, data, tmp_path, words, sentence):
    pair(50).save(tmp_path / "own.npz")
    write_images(tmp_path / "images", 6)
    said = run(words, code=2)
    assert sentence in said
    assert "Traceback" not in said


def test_other_predictions_are_compared_by_their_loss(run, tmp_path):
    outcomes = pair(400)
    outcomes.save(tmp_path / "own.npz")
    np.savez(tmp_path / "other.npz", predictions=outcomes.targets + 9.0)
    figures = json.loads(run("evaluate own.npz --compare other.npz --json"))
    last = figures["comparisons"][-1]
    assert last["names"] == ["the joint model", "other.npz"]
    assert last["better"] == "the joint model"


def test_a_loss_changes_with_the_metric_alone():
    outcomes = pair(100)
    assert replace(outcomes, metric="mse").quality("teacher") == pytest.approx(
        -(outcomes.quality("teacher") ** 2)
    )


def test_a_goal_is_judged_in_its_own_metric_whatever_is_shown(run, data, tmp_path):
    run(f"{RECORD} --task regression")
    run("calibrate o.npz --goal accuracy --target 0.12 -o joint.toml")  # an RMSE; the MAE is lower
    own = json.loads(run("evaluate o.npz --joint joint.toml --json"))
    other = json.loads(run("evaluate o.npz --joint joint.toml --metric mae --json"))
    assert own["held_out"]["metric"] == own["goal_metric"] == other["goal_metric"] == "rmse"
    assert other["held_out"]["metric"] == "mae"
    assert other["held_out"]["threshold"] == own["held_out"]["threshold"]
    for name in ("verdict", "standing"):
        assert other[name] == own[name]
    assert "RMSE of at most 0.12" in own["verdict"]
    said = run("evaluate o.npz --joint joint.toml --metric mae --report report.html")
    assert "RMSE of at most 0.12" in said
    assert "MAE" in said
    assert "target = 0.12, in RMSE" in (tmp_path / "report.html").read_text()
    config, outcomes = JointConfig.read("joint.toml"), Outcomes.load("o.npz")
    study = config.study(replace(outcomes, metric="r2"))
    assert study.outcomes.metric == "r2"
    assert study.verdict == config.study(outcomes).verdict
    point = config.study(outcomes).point
    again = study_point(replace(outcomes, metric="mae"), point, config.goal)
    assert again.verdict.text == own["verdict"]


def test_the_price_of_the_margin_is_that_of_the_goal_whatever_is_shown():
    study = run_study(pair(400), tolerance=0.05)
    shown = study_point(replace(study.outcomes, metric="mse"), study.point, study.goal)
    assert study.plain_point.deferral_rate < study.point.deferral_rate
    assert shown.plain_point.threshold == study.plain_point.threshold
