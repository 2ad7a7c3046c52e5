"""A server's report on a model: the knob, the calibration's facts, and the last seconds.

`GET /v1/status` returns it, for the page and for people.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ebjr.costs import Cost
from ebjr.evaluation.plots import relative_cost
from ebjr.files import json_number
from ebjr.metric import METRICS, Metric
from ebjr.scores import score_title
from ebjr.serving.engine import stages_of
from ebjr.serving.served import Served


def describe(served: Served) -> dict[str, Any]:
    """Return the calibration's facts as JSON; they do not change until a reload.

    Facts that joint.toml lacks are left out. The curve's `quality` and `cost` are as plotted.
    """
    kept, calibration = served.calibration, dict[str, Any]()
    figures = kept.get("held_out", kept.get("chosen_on"))
    measure = None if figures is None else METRICS.get(figures["metric"])
    if measure is not None:
        calibration |= _figures(figures, measure, kept.get("curve"))
        calibration["threshold"] = kept["chosen_on"]["threshold"]
        calibration["verdict"] = kept.get("verdict")
    if served.score_quantiles:
        edges = served.score_edges()
        calibration["score_quantiles"] = list(served.score_quantiles)
        calibration["histogram"] = {
            "edges": edges,
            "shares": shares_between(served.score_quantiles, edges),
        }
    if served.calibration_id is not None:
        calibration["id"] = served.calibration_id
    return {
        "model": served.name,
        "task": served.joint.task,
        "stages": stages_of(served.joint),
        "score": score_title(str(served.joint.router.score)),
        "blend": float(served.joint.blend),
        "images": served.takes_images,
        "input": served.input().as_dict(),
        "calibration": json_number(calibration),
    }


def shares_between(quantiles: Sequence[float], edges: Sequence[float]) -> list[float]:
    """Return the share of calibration scores in each of k bins; the outer bins take the rest.

    `quantiles` (q,) are evenly spaced from 0 to 1; `edges` (k + 1,) rise.
    """
    if len(edges) < 2:
        return []
    known = np.asarray(quantiles, np.float64)
    known = np.where(np.isfinite(known), known, np.finfo(np.float32).min)
    below = np.interp(edges[1:-1], known, np.linspace(0, 1, len(known)))
    return np.diff(np.concatenate([[0.0], below, [1.0]])).tolist()


def _figures(figures: Any, measure: Metric, curve: Any) -> dict[str, Any]:
    costs = Cost(**figures["student_cost"]), Cost(**figures["teacher_cost"])
    alone, axis = relative_cost(*costs, np.array([0.0]))
    found: dict[str, Any] = {
        "examples": figures["n"],
        "quality_title": measure.title,
        "quality_axis": measure.axis,
        "percent": measure.percent,
        "cost_axis": axis,
        "student": {"quality": measure.drawn(figures["student_quality"]), "cost": float(alone[0])},
        "teacher": {"quality": measure.drawn(figures["teacher_quality"]), "cost": 100.0},
    }
    if curve is not None:
        rates = np.asarray(curve["deferral_rate"], np.float64)
        found["curve"] = {
            "threshold": list(curve["threshold"]),
            "deferral_rate": rates.tolist(),
            "quality": measure.drawn(np.asarray(curve["quality"], np.float64)).tolist(),
            "cost": relative_cost(*costs, rates)[0].tolist(),
        }
    return found
