"""What ``joint.toml`` keeps of the study that chose its threshold, for servers and for readers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ebjr.evaluation.plots import rounded, thin_rows
from ebjr.monitor import DriftMonitor
from ebjr.router import deferral_key, is_deferred
from ebjr.study import Study

_CURVE_ROWS = 51


def study_figures(study: Study) -> dict[str, Any]:
    """The study's figures on both halves, as `JointConfig.calibration` holds them."""
    return {
        "verdict": study.verdict.text,
        "held_out": study.result.as_dict(),
        "score_quantiles": _score_quantiles(study),
        "curve": _curve(study),
        **_watched(study),
    }


def _score_quantiles(study: Study) -> list[float]:
    """The calibration half's scores at 0, 1, ..., 100 %; what always defers counts as -inf."""
    scores = np.asarray(study.point.router.score(study.calibration.student), np.float64)
    known = np.sort(deferral_key(scores))
    at = np.linspace(0, len(known) - 1, 101).round().astype(int)
    return rounded(known[at], digits=6)


def _curve(study: Study) -> dict[str, list[float]]:
    """Rows of the held-out half's curve, even in deferral rate, both ends among them."""
    curve = study.point.curve(study.held_out)
    rows = thin_rows(curve, most=_CURVE_ROWS)
    columns = ("threshold", "deferral_rate", "quality")
    return {name: rounded(getattr(curve, name)[rows], digits=6) for name in columns}


def _watched(study: Study) -> dict[str, Any]:
    """What live scores and answers are compared with: those of the half that nothing was fitted on.

    Nothing where it is too small to tell; no disagreement where answers are no labels.
    """
    router, rows = study.point.router, study.held_out
    scores = np.asarray(router.score(rows.student), np.float64)
    if len(scores) < 20:
        return {}
    found: dict[str, Any] = {"drift": DriftMonitor(scores, threshold=router.threshold).reference}
    if rows.kind.has_labels:
        differs = rows.predictions("student") != rows.predictions("teacher")
        kept = ~is_deferred(scores, router.threshold)
        found["disagreement"] = {
            "threshold": router.threshold,
            "rows": len(scores),
            "kept_and_contradicted": int((kept & differs).sum()),
        }
    return found
