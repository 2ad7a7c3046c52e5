"""Each score's gain over random routing: `python -m experiments.detection.measure`.

Confidence maps, the threshold of every score's boxes and the learned gain are chosen on one half
of the images; every figure is measured on the other, and is the mean over splits, each half taking
part. Writes `results_*.json`, a file for each pair. The curves with their intervals are those of
one half, with everything chosen on the other: the first split's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.evaluation.bootstrap import interval_of, resampled_wholes
from ebjr.tasks.detection.boxes import Detections, GroundTruth
from ebjr.tasks.detection.fusion import fuse_detections
from ebjr.tasks.detection.gain import fit_gain
from ebjr.tasks.detection.precision import (
    JointPrecision,
    Matches,
    average_precision,
    match_detections,
    matched_gains,
)
from ebjr.tasks.detection.scale import fit_confidence_map
from ebjr.tasks.detection.scores import (
    box_count,
    detection_energy,
    detection_features,
    expected_errors,
    max_confidence,
    mean_confidence,
)
from experiments.detection.chance import RandomRouting, exact_gains
from experiments.detection.pairs import PAIRS, SOURCES, detections, labels
from runs import about, save

SPLITS = 2
REPEATS = 99
LIMITS = (0.1, 0.2, 0.3, 0.4)
RATES = np.linspace(0, 1, 51)
CURVE_RATES = np.linspace(0, 1, 11)
RESAMPLES = 100
SHARES = (0.9, 0.97, 1.0)
WEIGHTS = (0.0, 0.1, 0.25, 0.5)
Rank = Callable[[list[Detections]], np.ndarray]


def total_energy(found: list[Detections], above: float, part: str = "both") -> np.ndarray:
    """Minus the sum of the boxes' energies: with positive energies, many boxes are hard."""
    values = detection_energy(found, part, above, reduce="sum")
    return np.where(np.isfinite(values), -values, values)


SCORES: dict[str, Callable[..., np.ndarray]] = {
    "energy of classes (eq. 12)": partial(detection_energy, part="classes"),
    "energy of boxes (eq. 13)": partial(detection_energy, part="boxes"),
    "energy (eq. 14)": partial(detection_energy, part="both"),
    "sum of energies": total_energy,
    "sum of class energies": partial(total_energy, part="classes"),
    "mean confidence": mean_confidence,
    "max confidence": max_confidence,
    "number of boxes": box_count,
    "number of boxes, none is 0": partial(box_count, empty=0.0),
    "expected errors": expected_errors,
    "expected errors, none is 0": partial(expected_errors, empty=0.0),
}
"""The paper's scores and their rivals, each of the student's detections and a limit `above`."""


class Half:
    """One half of the images, with both detectors' matches."""

    def __init__(
        self, rows: np.ndarray, found: list[Detections], student: Matches, teacher: Matches
    ) -> None:
        self.found = [found[row] for row in rows]
        self.student, self.teacher = student.take(rows), teacher.take(rows)

    def joint(self, maps: Any = None) -> JointPrecision:
        """Its joint precision, with the scores on one scale if there are maps."""
        both = (self.student, self.teacher)
        if maps is not None:
            both = tuple(one.rescored(own) for one, own in zip(both, maps, strict=True))
        return JointPrecision(*both)


def ranks(values: np.ndarray, seed: int) -> np.ndarray:
    """Places in the order of a score, where equal scores are drawn by lot."""
    order = np.lexsort((np.random.default_rng(seed).random(len(values)), values))
    place = np.empty(len(values), int)
    place[order] = np.arange(len(values))
    return place


def best_limit(score: Callable[..., np.ndarray], half: Half, joint: JointPrecision) -> float:
    """The limit `above` whose curve is highest on the calibration half."""
    rates = np.linspace(0, 1, 21)
    areas = [
        joint.curve(ranks(score(half.found, above=limit), 0), rates).mean() for limit in LIMITS
    ]
    return LIMITS[int(np.argmax(areas))]


def support_vectors(half: Half, gains: np.ndarray) -> Rank:
    """Adaptive feeding (Zhou et al., ICCV 2017): a linear SVM of "does the teacher gain here?"."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    model = make_pipeline(StandardScaler(), LinearSVC(C=0.01))
    model.fit(detection_features(half.found), gains > 0)
    return lambda found: -model.decision_function(detection_features(found))


def trees(half: Half, gains: np.ndarray) -> Rank:
    """The learned gain by a forest instead of a line."""
    from sklearn.ensemble import ExtraTreesRegressor

    model = ExtraTreesRegressor(200, min_samples_leaf=10, random_state=0)
    model.fit(detection_features(half.found), gains)
    return lambda found: -model.predict(detection_features(found))


def chosen_scores(half: Half, maps: Any) -> dict[str, tuple[Any, Rank]]:
    """Every score, with what was chosen for it on the calibration half."""
    ready: dict[str, tuple[Any, Rank]] = {}
    joint = half.joint(maps)
    for name, score in SCORES.items():
        limit = best_limit(score, half, joint)
        ready[name] = limit, partial(score, above=limit)
    gains = matched_gains(half.student, half.teacher)
    rescaled = [
        one.rescored(own) for one, own in zip((half.student, half.teacher), maps, strict=True)
    ]
    weighted = matched_gains(*rescaled, weighted=True)
    ready["learned gain"] = None, fit_gain(half.found, weighted)
    ready["learned gain, of boxes alike"] = None, fit_gain(half.found, gains)
    ready["learned gain, extra trees"] = None, trees(half, weighted)
    ready["adaptive feeding (linear SVM)"] = None, support_vectors(half, gains)
    return ready


def measure_split(calibration: Half, held_out: Half, seed: int) -> dict[str, Any]:
    """Every figure of one split."""
    maps = [fit_confidence_map(one) for one in (calibration.student, calibration.teacher)]
    raw, joint = held_out.joint(), held_out.joint(maps)
    chance = RandomRouting.of(joint, REPEATS, RATES, seed)
    mean = chance.curves.mean(axis=0)
    line = mean[0] + (mean[-1] - mean[0]) * chance.rates
    shouting = RandomRouting.of(raw, 10, RATES, seed).curves.mean(axis=0)
    figures: dict[str, Any] = {
        "below_line": {"raw": 100 * (line - shouting).max(), "mapped": 100 * (line - mean).max()},
        "noise": 100 * chance.curves.mean(axis=1).std(),
        "scores": {},
    }
    scored: dict[str, tuple[Any, np.ndarray]] = {
        name: (limit, score(held_out.found))
        for name, (limit, score) in chosen_scores(calibration, maps).items()
    }
    scored["oracle: gain of AP"] = None, -exact_gains(joint)
    scored["oracle: gain of matched boxes"] = (
        None,
        -matched_gains(held_out.student, held_out.teacher),
    )
    for name, (limit, values) in scored.items():
        curve = joint.curve(ranks(values, seed), RATES)
        gain, p = chance.gain(curve)
        figures["scores"][name] = {
            "gain": 100 * gain,
            "p": p,
            "above": limit,
            "rates": {share: _reached(curve, share * curve[-1]) for share in SHARES},
        }
    figures["scores"]["random"] = {
        "gain": 0.0,
        "p": 0.5,
        "above": None,
        "rates": {share: _reached(mean, share * curve[-1]) for share in SHARES},
    }
    return figures


def curves(calibration: Half, held_out: Half, seed: int) -> dict[str, Any]:
    """Every score's whole curve on the held-out half, with 95 % intervals over images.

    The images are resampled; what was chosen on the calibration half stays. AP is too high on few
    images, so that its intervals are the basic bootstrap's, as those of `ebjr evaluate`.
    `gain` is the mean height over the straight line between both detectors, which the mean of
    random orders comes close to.
    """
    maps = [fit_confidence_map(one) for one in (calibration.student, calibration.teacher)]
    joint = held_out.joint(maps)
    scored = {
        name: score(held_out.found) for name, (_, score) in chosen_scores(calibration, maps).items()
    }
    scored["random"] = np.random.default_rng(seed).random(joint.images)
    scored["oracle: gain of AP"] = -exact_gains(joint)
    counts = np.rint(CURVE_RATES * joint.images)
    masks = {name: ranks(values, seed)[None] < counts[:, None] for name, values in scored.items()}
    whole = [(joint, mask) for rows in masks.values() for mask in rows]
    here = np.array([joint(mask) for _, mask in whole])
    _, drawn = resampled_wholes(whole, RESAMPLES, np.random.default_rng(seed))
    shape = (-1, len(masks), len(CURVE_RATES))
    heights = 100 * np.concatenate([here[None], drawn]).reshape(shape)
    report = {}
    for name, curve in zip(masks, heights.swapaxes(0, 1), strict=True):
        gain = np.trapezoid(curve, CURVE_RATES) - curve[:, [0, -1]].mean(axis=1)
        of_gain = interval_of(gain[0], gain[1:])
        of_height = [interval_of(own[0], own[1:], basic=True) for own in curve.T]
        report[name] = {
            "AP": [round(each.estimate, 2) for each in of_height],
            "low": [round(each.low, 2) for each in of_height],
            "high": [round(each.high, 2) for each in of_height],
            "gain": round(of_gain.estimate, 3),
            "gain_interval": [round(of_gain.low, 3), round(of_gain.high, 3)],
        }
    return {"rates": CURVE_RATES.round(2).tolist(), "resamples": RESAMPLES, "scores": report}


def blend_gain(
    both: Sequence[list[Detections]],
    truth: Sequence[GroundTruth],
    matches: Sequence[Matches],
    calibration: np.ndarray,
    held_out: np.ndarray,
) -> dict[str, float]:
    """The weight whose AP is best on one half, and what it adds to the teacher's on the other."""
    maps = [fit_confidence_map(one.take(calibration)) for one in matches]
    student, teacher = (
        [one.with_scores(change(one.scores)) for one in found]
        for found, change in zip(both, maps, strict=True)
    )

    def fused(weight: float, rows: np.ndarray) -> float:
        answers = [fuse_detections(student[row], teacher[row], weight) for row in rows]
        return average_precision(match_detections(answers, [truth[row] for row in rows]))

    reached = {weight: fused(weight, calibration) for weight in WEIGHTS}
    weight = max(reached, key=lambda one: (reached[one], -one))
    over = fused(weight, held_out) - fused(0.0, held_out)
    return {"weight": weight, "over_teacher": 100 * over}


def _reached(curve: np.ndarray, target: float) -> float:
    """The least deferral rate at which a curve is this high, read off the held-out curve."""
    return float(np.flatnonzero(curve >= target - 1e-12)[0]) / (len(curve) - 1)


def precisions(matches: Matches, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """AP and AP50 on parts of the images, in percent."""
    found = {name: average_precision(matches.take(part), True) for name, part in rows.items()}
    return {
        name: {"AP": round(100 * float(value.mean()), 2), "AP50": round(100 * float(value[0]), 2)}
        for name, value in found.items()
    }


def measure_pair(student: str, teacher: str, splits: int = SPLITS) -> dict[str, Any]:
    """Everything about one pair."""
    known = labels()
    found = detections(student)
    both = (found, detections(teacher))
    matches = [match_detections(one, known.truth) for one in both]
    source = np.array([image["split"] for image in known.images])
    parts = {name: np.flatnonzero(source == name) for name in ("val2017", "train2017")}
    parts["all"] = np.arange(len(known))
    runs, blends, drawn = [], [], {}
    for seed in range(splits):
        rows = np.random.default_rng(seed).permutation(len(known))
        parted = [np.sort(part) for part in np.array_split(rows, 2)]
        halves = [Half(part, found, *matches) for part in parted]
        drawn = drawn or curves(halves[0], halves[1], seed)
        for first in (0, 1):
            runs.append(measure_split(halves[first], halves[1 - first], seed))
            blends.append(blend_gain(both, known.truth, matches, parted[first], parted[1 - first]))
            shown = {name: round(one["gain"], 2) for name, one in runs[-1]["scores"].items()}
            print(student, seed, shown, blends[-1], flush=True)
    empty = np.array([not len(one.above(0.3)) for one in found])
    gains = matched_gains(*matches)
    flops = [SOURCES[name].flops() for name in (student, teacher)]
    return {
        "student": {"name": student, "flops": flops[0], **precisions(matches[0], parts)},
        "teacher": {"name": teacher, "flops": flops[1], **precisions(matches[1], parts)},
        "images": len(known),
        "no_boxes": {
            "share_of_images": round(float(empty.mean()), 4),
            "teacher_finds_more_boxes": round(float(gains[empty].mean()), 3),
            "elsewhere": round(float(gains[~empty].mean()), 3),
        },
        "blend": {
            "weights": [one["weight"] for one in blends],
            "over_teacher_points": round(
                float(np.mean([one["over_teacher"] for one in blends])), 3
            ),
        },
        **summary(runs, *flops),
        "curves": drawn,
    }


def summary(runs: list[dict[str, Any]], student: float, teacher: float) -> dict[str, Any]:
    """The mean over all splits and both halves; gains in points of AP."""
    report: dict[str, Any] = {
        "random_below_the_straight_line": {
            kind: round(float(np.mean([run["below_line"][kind] for run in runs])), 3)
            for kind in ("raw", "mapped")
        },
        "deviation_of_a_random_order": round(float(np.mean([run["noise"] for run in runs])), 3),
        "scores": {},
    }
    for name in runs[0]["scores"]:
        of = [run["scores"][name] for run in runs]
        gains = [one["gain"] for one in of]
        rates = {share: float(np.mean([one["rates"][share] for one in of])) for share in SHARES}
        report["scores"][name] = {
            "gain": round(float(np.mean(gains)), 3),
            "deviation_between_halves": round(float(np.std(gains, ddof=1)), 3),
            "p_median": round(float(np.median([one["p"] for one in of])), 4),
            "p_under_0.05": sum(one["p"] < 0.05 for one in of),
            "above": sorted({one["above"] for one in of if one["above"] is not None}),
            "speed_up_at_share_of_the_teachers_AP": {
                str(share): round(teacher / (student + rate * teacher), 3)
                for share, rate in rates.items()
            },
        }
    return report


def main() -> None:
    """Measure a pair, or every one, and write a result file for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", help="student:teacher; by default all")
    parser.add_argument("--splits", type=int, default=SPLITS, help="how many, each in two halves")
    asked = parser.parse_args()
    for student, teacher in PAIRS:
        if not asked.pairs or f"{student}:{teacher}" in asked.pairs:
            write(student, teacher, asked.splits)


def write(student: str, teacher: str, splits: int) -> None:
    """Measure a pair and write its result file."""
    report = {
        **about(seed=0),
        "splits": splits,
        "halves": 2 * splits,
        "random_orders": REPEATS,
        "pairs": {f"{student}:{teacher}": measure_pair(student, teacher, splits)},
    }
    save(f"results_{student}_{teacher}", report, Path(__file__).parent)


if __name__ == "__main__":
    main()
