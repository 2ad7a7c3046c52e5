"""Figure 5, right: two detectors as one. `python -m experiments.fig5_detection [--quick]`.

The paper's score (eq. 14), its halves, the number of boxes, the library's learned gain and adaptive
feeding's linear SVM, on pairs of published detectors and 669 labeled COCO images, beside the single
detectors. Score, confidences' scale and threshold are chosen on one half for 97 % of the teacher's
mAP and judged on the other; means of halves. "read off" is chosen where it is judged, as the
paper's curves are. Needs the answers that `experiments.detection.record` leaves; ``--quick`` takes
the shipped ones of one pair.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ebjr import CalibrationError, Cost, Detections, Outcomes, TradeOffCurve, calibrate, oracle
from ebjr.calibration import choose_score
from ebjr.demo import shipped
from ebjr.detection_scores import detection_features
from ebjr.precision import average_precision, match_detections
from experiments.detection import pairs as detectors
from experiments.frame import COLORS, Run, start

PAIRS = (
    ("deimv2_atto_320", "deimv2_femto_416"),
    ("nanodet_m_320", "yolov8n_640"),
    ("deimv2_femto_416", "yolov8n_640"),
)
TITLES = {
    "deimv2_atto_320": "DEIMv2 atto",
    "deimv2_femto_416": "DEIMv2 femto",
    "nanodet_m_320": "NanoDet-m",
    "nanodet_m_416": "NanoDet-m at 416",
    "yolov8n_640": "YOLOv8n",
}
HALVES = 4
SHARE = 0.97
RATES = np.linspace(0, 1, 26)


def adaptive_feeding(calibration: Outcomes) -> Any:
    """Zhou et al., ICCV 2017: a linear SVM of whether the teacher gains on an image."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    gains = calibration.teacher_quality > calibration.student_quality
    model = make_pipeline(StandardScaler(), LinearSVC(C=0.01))
    model.fit(detection_features(calibration.student), gains)

    def score(found: list[Detections]) -> np.ndarray:
        return -model.decision_function(detection_features(found))

    return score


def named(name: str, calibration: Outcomes) -> str:
    """A score that there is nothing to fit in."""
    return name


def learned_gain(calibration: Outcomes) -> Any:
    """The library's learned score of detections."""
    return choose_score(calibration, ["learned_gain"])


ROUTERS = {
    "energy (eq. 14)": partial(named, "detection_energy(part='both')"),
    "number of boxes": partial(named, "box_count"),
    "learned gain": learned_gain,
    "adaptive feeding": adaptive_feeding,
    "random": partial(named, "random"),
}
"""From the half that choices are made on to a score."""


def recorded(student: str, teacher: str) -> Outcomes:
    """A pair's answers on all images."""
    costs = {
        f"{role}_cost": Cost(flops=detectors.SOURCES[name].flops())
        for role, name in (("student", student), ("teacher", teacher))
    }
    truth = list(detectors.labels().truth)
    both = detectors.detections(student), detectors.detections(teacher)
    return Outcomes(*both, truth, task="detection", **costs)


def shipped_answers() -> Outcomes:
    """What the demo of detection ships: boxes and scores, without bins."""
    with shipped("outcomes.npz", "detection") as path:
        return Outcomes.load(path)


def saving(outcomes: Outcomes, rate: float) -> float:
    """How many times fewer FLOPs than the teacher, at a deferral rate."""
    student, teacher = outcomes.student_cost.flops or 0.0, outcomes.teacher_cost.flops or 1.0
    return teacher / (student + rate * teacher)


def least_rate(curve: TradeOffCurve) -> float:
    """The least deferral rate at which a curve is at 97 % of the teacher's mAP."""
    reached = curve.quality >= SHARE * curve.outcomes.quality("teacher") - 1e-12
    return float(curve.deferral_rate[int(np.argmax(reached))])


def on_half(calibration: Outcomes, held_out: Outcomes, fit: Any) -> dict[str, Any]:
    """A router on one half: read off, and with the threshold of the other half."""
    score = fit(calibration)
    curve = TradeOffCurve.of(held_out, score)
    tolerance = (1 - SHARE) * calibration.quality("teacher")
    try:
        chosen = calibrate(calibration, tolerance=tolerance, score=score, blend=0.0)
        here = curve.at(threshold=chosen.threshold)
        calibrated = [here.deferral_rate, here.quality / here.teacher_quality]
    except CalibrationError:
        calibrated = [1.0, 1.0]
    return {
        "read_off": least_rate(curve),
        "calibrated": calibrated,
        "curve": np.interp(RATES, curve.deferral_rate, 100 * curve.quality),
    }


def measure(outcomes: Outcomes, halves: int, routers: dict[str, Any]) -> dict[str, Any]:
    """Every router on every half, and the oracle."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for half in range(halves):
        parts = outcomes.split(0.5, half // 2)
        calibration, held_out = parts if half % 2 == 0 else parts[::-1]
        scale = calibration.fit_scale()
        calibration, held_out = calibration.with_scale(scale), held_out.with_scale(scale)
        for name, fit in routers.items():
            runs.setdefault(name, []).append(on_half(calibration, held_out, fit))
        best = TradeOffCurve.of(held_out, oracle(held_out))
        curve = np.interp(RATES, best.deferral_rate, 100 * best.quality)
        runs.setdefault("oracle", []).append({"read_off": least_rate(best), "curve": curve})
    return {
        "flops": {"student": outcomes.student_cost.flops, "teacher": outcomes.teacher_cost.flops},
        "scores": {name: summary(outcomes, each) for name, each in runs.items()},
    }


def summary(outcomes: Outcomes, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over halves."""
    found: dict[str, Any] = {
        "times_fewer_flops_read_off": round(
            saving(outcomes, float(np.mean([run["read_off"] for run in runs]))), 3
        ),
        "mAP": np.mean([run["curve"] for run in runs], axis=0).round(3),
    }
    if "calibrated" in runs[0]:
        rate, share = np.mean([run["calibrated"] for run in runs], axis=0)
        found["times_fewer_flops"] = round(saving(outcomes, float(rate)), 3)
        found["share_of_teachers_mAP"] = round(float(share), 4)
    return found


def singles() -> dict[str, dict[str, float]]:
    """Every detector alone, on all images."""
    truth = list(detectors.labels().truth)
    found = {}
    for name, source in detectors.SOURCES.items():
        matches = match_detections(detectors.detections(name), truth)
        ap = 100 * float(average_precision(matches))
        found[name] = {"flops": source.flops(), "mAP": round(ap, 2)}
    return found


def draw(run: Run, found: dict[str, Any], alone: dict[str, dict[str, float]]) -> None:
    """A panel for each pair, single detectors among the curves."""
    with run.picture(len(found), 1) as axes:
        for axis, (title, figures) in zip(axes.flat, found.items(), strict=True):
            student, teacher = figures["flops"]["student"], figures["flops"]["teacher"]
            for name, row in figures["scores"].items():
                style = {"oracle": ":", "random": "--"}.get(name, "-")
                cost = 100 * (student / teacher + RATES)
                axis.plot(cost, row["mAP"], style, color=COLORS[name], linewidth=1.6, label=name)
            for place in alone.values():
                if student <= place["flops"] <= teacher:
                    at = 100 * place["flops"] / teacher
                    axis.plot(at, place["mAP"], "D", color=COLORS["single"], markersize=5)
            end = figures["scores"]["oracle"]["mAP"][-1]
            axis.axhline(SHARE * end, color=COLORS["paper"], linewidth=0.8)
            axis.axvline(100, color=COLORS["paper"], linewidth=0.8)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel("FLOPs, % of the teacher's")
        axes[0, 0].set_ylabel("mAP, %")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        place = {"loc": "outside lower center", "ncols": 2 + len(found), "frameon": False}
        axes[0, 0].figure.legend(handles, labels, fontsize=9, **place)


def compare(run: Run, title: str, scores: dict[str, Any]) -> None:
    """The lines of a pair in the table."""
    best = max(
        (name for name in scores if name not in ("oracle", "random")),
        key=lambda name: scores[name]["times_fewer_flops_read_off"],
    )
    limit = scores["oracle"]["times_fewer_flops_read_off"]
    for name, paper in ((best, 1.8), ("energy (eq. 14)", 1.8), ("adaptive feeding", 1.3)):
        row = scores.get(name)
        if row is None or (name == "energy (eq. 14)" and name == best):
            continue
        reached = row["times_fewer_flops_read_off"]
        run.compare(
            f"{title}: times fewer FLOPs at 97 % of the teacher's mAP, {name}",
            paper=paper,
            ours=reached,
            unit="x",
            why=f"{reached / limit:.0%} of the oracle's {limit:.3g}x; with the other half's "
            f"threshold {row['times_fewer_flops']:.3g}x at {row['share_of_teachers_mAP']:.1%}",
        )


def main(run: Run) -> dict[str, Any]:
    """Measure every pair at hand."""
    found, alone = {}, {}
    if run.quick:
        few = {name: ROUTERS[name] for name in ("number of boxes", "random")}
        title = "DEIMv2 atto -> DEIMv2 femto, as shipped"
        found[title] = run.step("shipped", lambda: measure(shipped_answers(), 1, few))
    else:
        alone = run.step("singles", singles)
        for student, teacher in PAIRS:
            title = f"{TITLES[student]} -> {TITLES[teacher]}"
            found[title] = run.step(
                title, lambda s=student, t=teacher: measure(recorded(s, t), HALVES, ROUTERS)
            )
    for title, figures in found.items():
        compare(run, title, figures["scores"])
    draw(run, found, alone)
    run.caption = (
        "Means over the held-out halves; diamonds are single detectors, the level line is 97 % of "
        "the teacher's mAP. The paper's EfficientDet D0 and D4 are not at hand."
    )
    return {"pairs": found, "single_detectors": alone, "rates": RATES.round(3)}


if __name__ == "__main__":
    start(main, "Figure 5, right: detection")
