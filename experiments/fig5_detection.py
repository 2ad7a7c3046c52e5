"""Figure 5, right: two detectors as one. `python -m experiments.fig5_detection [--quick]`.

The whole curve of the pair whose answers are shipped, DEIMv2 atto and femto on 669 labeled COCO
images: the paper's score of classes (eq. 12), the number of boxes, the library's learned gain and
adaptive feeding's linear SVM, fitted on one half and drawn on the other; means of halves. How much
cheaper four pairs are at 97 % of the teacher's mAP, eq. 14 and single detectors among them, takes
images, detectors and hours, and has a script of its own, whose result files are read
(`experiments.detection.measure`). ``--quick`` looks at one half and two scores.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ebjr import CalibrationError, Detections, Outcomes, TradeOffCurve, calibrate, oracle
from ebjr.calibration import choose_score
from ebjr.demo import shipped
from ebjr.tasks.detection.scores import detection_features
from experiments.detection import measure as study
from experiments.frame import COLORS, Run, start

STUDY = Path(study.__file__).parent
TITLES = {
    "deimv2_atto_320": "DEIMv2 atto",
    "deimv2_femto_416": "DEIMv2 femto",
    "nanodet_m_320": "NanoDet-m",
    "yolov8n_640": "YOLOv8n",
    "efficientdet_d0": "EfficientDet D0",
    "efficientdet_d4": "EfficientDet D4",
}
EFFICIENTDET = ("efficientdet_d0", "efficientdet_d4")
"""The paper's own pair, where `experiments.detection.efficientdet` has measured it."""

HALVES = 2
SHARE = 0.97
RATES = np.linspace(0, 1, 26)
IDEAL = ("oracle: gain of AP", "oracle: gain of matched boxes", "random")
SVM = "adaptive feeding (linear SVM)"


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
    "energy": partial(named, "detection_energy(part='classes')"),
    "number of boxes": partial(named, "box_count"),
    "learned gain": learned_gain,
    "adaptive feeding": adaptive_feeding,
    "random": partial(named, "random"),
}
"""From the half that choices are made on to a score."""


def shipped_answers() -> Outcomes:
    """Read the detection demo's shipped answers: boxes and scores, without bins."""
    with shipped("outcomes.npz", "detection") as path:
        return Outcomes.load(path)


def on_half(calibration: Outcomes, held_out: Outcomes, fit: Any) -> dict[str, Any]:
    """A router's curve on one half, and where the other half's threshold for 97 % lies on it."""
    score = fit(calibration)
    curve = TradeOffCurve.of(held_out, score)
    tolerance = (1 - SHARE) * calibration.quality("teacher")
    try:
        chosen = calibrate(calibration, tolerance=tolerance, score=score, blend=0.0, margin=0.0)
        here = curve.at(threshold=chosen.threshold)
        point = [here.deferral_rate, here.quality / here.teacher_quality]
    except CalibrationError:
        point = [1.0, 1.0]
    return {"curve": np.interp(RATES, curve.deferral_rate, 100 * curve.quality), "point": point}


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
        runs.setdefault("oracle", []).append({"curve": curve, "point": [np.nan, np.nan]})
    student, teacher = outcomes.student_cost.flops or 0.0, outcomes.teacher_cost.flops or 1.0
    return {
        "cost_percent": (100 * (student / teacher + RATES)).round(2),
        "mAP": {
            name: np.mean([each["curve"] for each in of], axis=0).round(3)
            for name, of in runs.items()
        },
        "chosen_for_97_percent": {
            name: dict(
                zip(
                    ("deferral_rate", "share_of_teachers_mAP"),
                    np.mean([each["point"] for each in of], axis=0).round(4),
                    strict=True,
                )
            )
            for name, of in runs.items()
            if name != "oracle"
        },
    }


def result_of(student: str, teacher: str) -> Path:
    """The result file of a pair."""
    return STUDY / f"results_{student}_{teacher}.json"


def studied() -> dict[str, Any]:
    """By pair: what `experiments.detection.measure` found at 97 % of the teacher's mAP."""
    found = {}
    own = [pair for pair in (EFFICIENTDET,) if result_of(*pair).exists()]
    for student, teacher in (*study.PAIRS, *own):
        kept = json.loads(result_of(student, teacher).read_text())
        pair = kept["pairs"][f"{student}:{teacher}"]
        saved = {
            name: row["speed_up_at_share_of_the_teachers_AP"][str(SHARE)]
            for name, row in pair["scores"].items()
        }
        found[f"{TITLES[student]} -> {TITLES[teacher]}"] = {
            "saved": saved,
            "best": max((name for name in saved if name not in IDEAL), key=saved.__getitem__),
            "mAP": {role: pair[role]["all"]["AP"] for role in ("student", "teacher")},
            "flops": {role: pair[role]["flops"] for role in ("student", "teacher")},
        }
    return found


def draw_curves(axis: Any, found: dict[str, Any]) -> None:
    """The shipped pair's curves, and both detectors alone."""
    for name, values in found["mAP"].items():
        style = {"oracle": ":", "random": "--"}.get(name, "-")
        label = "energy (eq. 12)" if name == "energy" else name
        axis.plot(found["cost_percent"], values, style, color=COLORS[name], lw=1.6, label=label)
    ends = found["mAP"]["oracle"]
    places = [found["cost_percent"][0], 100], [ends[0], ends[-1]]
    axis.plot(*places, "D", color=COLORS["single"], markersize=5, label="single detectors")
    axis.axvline(100, color=COLORS["paper"], linewidth=0.8)
    axis.set_title("DEIMv2 atto -> DEIMv2 femto", fontsize=10)
    axis.set_xlabel("FLOPs, % of the teacher's")
    axis.set_ylabel("mAP, %")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def draw_bars(axis: Any, pairs: dict[str, Any]) -> None:
    """Times fewer FLOPs at 97 % of the teacher's mAP, of every pair."""
    places = np.arange(len(pairs))
    shown = {
        "energy (eq. 14)": ("energy (eq. 14)", "energy (eq. 14)"),
        SVM: ("adaptive feeding", "adaptive feeding"),
        "best": ("best score", "chosen"),
        "oracle: gain of AP": ("oracle", "oracle"),
    }
    for offset, (key, (label, color)) in enumerate(shown.items()):
        heights = [row["saved"][row["best"] if key == "best" else key] for row in pairs.values()]
        place = places + 0.2 * (offset - 1.5)
        axis.bar(place, heights, 0.18, color=COLORS[color], label=label)
    for factor, style, label in ((1.8, "--", "the paper, 1.8"), (1.3, ":", "its rival, 1.3")):
        axis.axhline(factor, color=COLORS["paper"], linestyle=style, linewidth=1.2, label=label)
    axis.set_xticks(places, [name.replace(" -> ", "\n-> ") for name in pairs], fontsize=8)
    axis.set_ylabel("times fewer FLOPs")
    axis.set_title("at 97 % of the teacher's mAP", fontsize=10)
    axis.legend(frameon=False, fontsize=8)


def main(run: Run) -> dict[str, Any]:
    """Measure the shipped pair, read the others, compare."""
    few = {name: ROUTERS[name] for name in ("number of boxes", "random")}
    curves = run.step(
        "shipped",
        lambda: measure(shipped_answers(), *((1, few) if run.quick else (HALVES, ROUTERS))),
    )
    pairs = studied()
    for title, row in pairs.items():
        limit = row["saved"]["oracle: gain of AP"]
        share = row["flops"]["student"] / row["flops"]["teacher"]
        for name, paper in ((row["best"], 1.8), ("energy (eq. 14)", 1.8), (SVM, 1.3)):
            reached = row["saved"][name]
            run.compare(
                f"{title}: times fewer FLOPs at 97 % of the teacher's mAP, {name}",
                paper=paper,
                ours=reached,
                unit="x",
                step="",
                why=f"no interval: read off the judged half; {100 * reached / limit:.0f} % of the "
                f"oracle's {limit:.3g}x; the student costs {100 * share:.0f} % of its teacher; the "
                "paper's pair, EfficientDet D0 and D4, is not at hand",
            )
    with run.picture(2, 1, figsize=(11, 4.4)) as axes:
        draw_curves(axes[0, 0], curves)
        draw_bars(axes[0, 1], pairs)
    run.caption = (
        "Left: the shipped answers, means of held-out halves. Right: read off the judged half, as "
        "the paper does. EfficientDet D0 and D4 are not at hand. The student is paid on every "
        "image: where it costs half of its teacher, as on the first pair, not even the oracle "
        "reaches the paper's factor."
    )
    return {"shipped": curves, "pairs": pairs}


if __name__ == "__main__":
    start(main, "Figure 5, right: detection")
