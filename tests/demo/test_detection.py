"""The demo of detection: from shipped numbers, and with the real detectors if they are at hand."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ebjr import JointDetector, Outcomes, calibrate, load_joint
from ebjr.demo import DEMOS, detection, shipped
from ebjr.demo.fetch import DataUnavailable
from ebjr.evaluation.bootstrap import bootstrap

pytest.importorskip("sklearn", reason="scikit-learn is not installed")


def test_what_is_shipped_is_numbers_and_little():
    with shipped("outcomes.npz", "detection") as path:
        assert path.stat().st_size < 1.5 * 2**20
        outcomes = Outcomes.load(path)
    assert len(outcomes) == 669
    assert outcomes.labels[0] == "person"
    assert outcomes.quality("teacher") > outcomes.quality("student") > 0.2
    assert outcomes.models == {}


def test_without_images_the_shipped_answers_are_used_and_said_to_be(run, monkeypatch, tmp_path):
    monkeypatch.setenv("EBJR_DATA", str(tmp_path / "nowhere"))
    code, printed, error = run("demo", "--task", "detection", "--json")
    assert code == 0, error
    assert "NOTE: using the recorded answers in the package: " in error
    assert "images and detectors may not be redistributed" in error
    figures = json.loads(printed)
    assert figures["recorded"]
    assert sorted(figures["files"]) == ["outcomes.npz", "report.html"]
    assert figures["held_out"]["metric"] == "ap"
    teacher = figures["held_out"]["teacher_quality"]
    assert 0.2 < figures["held_out"]["student_quality"] < teacher
    page = (tmp_path / "ebjr-demo" / "report.html").read_text()
    assert "AP against cost" in page
    assert "images and detectors may not be redistributed" in page
    assert "<figure>" not in page


def test_an_interval_on_few_images_is_of_the_precision_on_many():
    with shipped("outcomes.npz", "detection") as path:
        outcomes = Outcomes.load(path)
    few = outcomes.take(np.arange(100))
    point = calibrate(few, "budget", deferral_rate=1.0, score="box_count", blend=0.0)
    interval = bootstrap(few, point, n_resamples=100)["ap"]
    assert interval.estimate > outcomes.quality("teacher") + 0.04  # few images flatter
    assert interval.low < outcomes.quality("teacher") < interval.high


def test_a_folder_without_the_images_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("EBJR_DATA", str(tmp_path))
    with pytest.raises(DataUnavailable, match="set EBJR_DATA") as caught:
        detection.load(lambda done, total, what: None)
    assert "coco669_boxes.json" in str(caught.value)


def test_with_images_both_detectors_run_and_the_report_shows_some(
    shared_data, monkeypatch, tmp_path
):
    monkeypatch.setenv("EBJR_DATA", str(shared_data))

    def some(progress):
        images, truth = detection.load(progress)
        return images[:12], truth[:12]

    result = replace(DEMOS["detection"], load=some).run(tmp_path, threads=1)
    assert not result.recorded
    assert result.joint_seconds > 0
    joint = load_joint(result.files["joint.toml"])
    assert isinstance(joint, JointDetector)
    images, _ = some(None)
    answer = joint(images[:4])
    expected = result.study.outcomes.student[0].above(0.3)
    if not answer.deferred[0]:
        np.testing.assert_allclose(answer.prediction[0].boxes[: len(expected)], expected.boxes)
    assert result.files["report.html"].read_text().count("data:image/jpeg;base64,") >= 4
