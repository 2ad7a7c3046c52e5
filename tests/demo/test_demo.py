from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ebjr import JointConfig, Outcomes, TradeOffCurve, load_joint
from ebjr import demo as package
from ebjr.demo import DEMOS, run_demo, shipped
from ebjr.demo.fetch import DataUnavailable
from ebjr.evaluation.flops import count_flops
from ebjr.joint_file import ModelEntry
from ebjr.sweep import run_sweep
from ebjr.tasks.specialized.known_classes import Traffic

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

SHIPPED = Path(package.__file__).parent / "shipped"


def no_data(progress):
    raise DataUnavailable("the data are on the moon")


def without_data(task, tmp_path_factory):
    return replace(DEMOS[task], load=no_data).run(tmp_path_factory.mktemp(task))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return without_data("classification", tmp_path_factory)


def test_the_recorded_demo_needs_no_images_and_measures_no_time(recorded):
    assert recorded.joint_seconds is None
    assert len(recorded.study.outcomes) == 10_000
    assert all(path.exists() for path in recorded.files.values())


def test_the_joint_model_reaches_the_teacher_for_four_times_fewer_flops(recorded):
    result = recorded.study.result
    assert result.quality >= result.teacher_quality - 0.003
    assert result.saving >= 4


def test_the_student_costs_an_eighth_of_the_teacher_and_knows_nine_in_ten():
    with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
        assert count_flops(student).flops <= count_flops(teacher).flops / 8
    with shipped("outcomes.npz") as path:
        assert Outcomes.load(path).student_quality.mean() >= 0.90


def test_the_curve_ends_at_both_models(recorded):
    held_out = recorded.study.held_out
    curve = TradeOffCurve.of(held_out, "energy")
    assert curve.quality[0] == held_out.student_quality.mean()
    assert curve.quality[-1] == held_out.teacher_quality.mean()


def test_the_file_it_leaves_is_a_working_joint_model(recorded):
    config = JointConfig.read(recorded.files["joint.toml"])
    assert config.labels is not None
    assert "match-teacher" in config.operating_points
    joint = load_joint(recorded.files["joint.toml"])
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    assert joint(images).prediction.shape == (5,)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    return without_data("regression", tmp_path_factory)


def test_the_network_stands_in_for_the_trees_at_half_their_time(regression):
    result = regression.study.result
    assert result.unit == "seconds"
    assert result.quality >= 1.03 * result.teacher_quality
    assert result.saving >= 2
    assert regression.study.outcomes.quality("student") < result.teacher_quality


def test_the_joint_regressor_it_leaves_prices_diamonds(regression):
    joint = load_joint(regression.files["joint.toml"])
    carat = np.array([0.3, 1.0, 2.0], np.float32)
    size = 6.4 * carat ** (1 / 3)
    same = np.ones(3, np.float32)
    grades = [2 * same, 3 * same, 3 * same]
    rows = np.column_stack([carat, 62 * same, 57 * same, size, size, 0.62 * size, *grades])
    price = np.exp(joint(rows.astype(np.float32)).prediction)
    assert (np.diff(price) > 0).all()
    assert 300 < price[0] < 2000 < price[1] < 9000 < price[2] < 25_000


@pytest.fixture(scope="module")
def specialized(tmp_path_factory):
    return without_data("specialized", tmp_path_factory)


def test_the_best_student_for_the_traffic_is_a_specialized_one(specialized):
    sweep = specialized.sweep
    savings = {name: study.result.saving for name, study in sweep.studies.items()}
    assert set(savings) == {"knows-3", "knows-5", "knows-all"}
    assert sweep.best == "knows-3"
    assert savings["knows-3"] > 1.3 * savings["knows-all"] > 2.5
    result = specialized.study.result
    assert result.quality >= result.teacher_quality - 0.005
    at_a_quarter = {name: row[0.25].saving for name, row in sweep.by_share.items()}
    assert max(at_a_quarter, key=at_a_quarter.get) == "knows-all"
    page = specialized.files["report.html"].read_text()
    assert "Which student" in page
    assert "The traffic decides" in page


def test_every_candidates_outcomes_can_be_calibrated_for_other_traffic(specialized):
    files = [specialized.files[f"knows-{known}.npz"] for known in (3, 5, "all")]
    sweep = run_sweep(
        {file.stem: Outcomes.load(file) for file in files},
        traffic=Traffic(1.0, specialized.sweep.traffic.popular_classes),
        score="softmax",
        blend=0.0,
    )
    assert set(sweep.studies) == {"knows-3", "knows-5", "knows-all"}
    assert sweep.traffic.popular == 1.0


def test_the_specialized_joint_model_it_leaves_answers_in_the_teachers_labels(specialized):
    config = JointConfig.read(specialized.files["joint.toml"])
    known = specialized.study.outcomes.known_classes
    assert (config.task, config.known_classes, config.classes) == ("specialized", known, 10)
    joint = config.load()
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    answer = joint(images)
    assert set(answer.prediction[~answer.deferred].tolist()) <= set(known)


@pytest.mark.parametrize("task", ["classification", "specialized", "regression"])
def test_the_shipped_answers_are_what_the_shipped_models_say(task):  # detectors are not shipped
    demo = DEMOS[task]
    try:
        inputs, targets = demo.load(lambda done, total, what: None)
    except DataUnavailable as error:
        pytest.skip(str(error))

    def answers(name, task):
        with shipped(f"{name}.onnx", task) as path:
            return ModelEntry.of_file(path, preprocess=demo.preprocess).load()(inputs[:200])

    teacher = answers("teacher", demo.teacher_of or task)
    for name in demo.students:
        file = "outcomes.npz" if len(demo.students) == 1 else f"{name}.npz"
        with shipped(file, task) as path:
            said = Outcomes.load(path)
        np.testing.assert_allclose(said.targets, targets)
        assert np.abs(answers(name, task) - said.student[:200]).max() < 0.02
        assert np.abs(teacher - said.teacher[:200]).max() < 0.02


def test_what_is_shipped_stays_small():
    graphs = list(SHIPPED.rglob("*.onnx"))
    assert sum(file.stat().st_size for file in graphs) < 10 * 2**20
    assert sum(file.stat().st_size for file in graphs if file.parent.name == "specialized") < 1e6


def test_each_task_has_a_demo_of_its_own_name():
    assert all(demo.task == task for task, demo in DEMOS.items())
    with pytest.raises(ValueError, match=r"task must be one of classification.*, not 'poetry'"):
        run_demo(task="poetry")


@pytest.mark.parametrize("fixture", ["recorded", "regression", "specialized"])
def test_a_demo_without_its_data_says_why_and_shows_recorded_answers(fixture, request):
    result = request.getfixturevalue(fixture)
    assert result.recorded
    assert result.reason == "the data are on the moon"
    page = result.files["report.html"].read_text()
    assert "the data are on the moon" in page
    timed = result.study.outcomes.student_cost.seconds is not None
    assert ("measured when the answers were recorded" in page) == timed


def test_the_command_line_says_loudly_that_answers_are_recorded(tmp_path, monkeypatch, capsys):
    from ebjr.cli import main

    monkeypatch.setattr("sys.argv", ["ebjr", "demo", "--recorded", "--json", "-o", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    printed = capsys.readouterr()
    assert "using the recorded answers in the package" in " ".join(printed.err.split())
    assert json.loads(printed.out)["recorded"] is True
