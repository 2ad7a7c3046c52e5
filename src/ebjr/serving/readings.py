"""What the metrics of a server read from its parts whenever somebody asks."""

from __future__ import annotations

from functools import partial

from ebjr.joint import JointModel
from ebjr.link.far import FarTeacher
from ebjr.serving.autopilot import Helm
from ebjr.serving.live_monitor import LiveMonitor
from ebjr.serving.metrics import Metrics
from ebjr.serving.pipeline import Pipeline

MONITORED = {
    "risk": "The average of what is promised to be small, so far.",
    "lower": "That average is at least this.",
    "upper": "That average is at most this.",
    "tolerance": "The most that it may be.",
    "rows": "Rows that a monitor has seen.",
    "alarm": "1 once a monitor's alarm has gone off.",
    "shift": "The largest shift of a share of scores since calibration.",
}
"""Figures of the monitors."""


def add_readings(metrics: Metrics, pipeline: Pipeline, helm: Helm, monitor: LiveMonitor) -> None:
    """Let the metrics show queues, the knob and its promise, a far teacher, autopilot and monitors.

    Parameters
    ----------
    metrics
        Which are to show them.
    pipeline, helm, monitor
        Which know them.
    """
    metrics.read("waiting_rows", "Rows in a queue.", pipeline.waiting, "stage")
    _add_knob(metrics, helm)
    _add_far(metrics, pipeline.joint)
    _add_monitor(metrics, monitor)


def _add_far(metrics: Metrics, joint: JointModel) -> None:
    """A teacher behind a link, and what is kept for it, where there are such."""
    late, teacher = joint.late, joint.teacher
    if late is not None:
        metrics.read("late_rows", "Rows kept for later.", lambda: {"": len(late)})
    if isinstance(teacher, FarTeacher):
        text = "1 while a far teacher is left alone, else 0."
        metrics.read("teacher_away", text, lambda: {"": float(teacher.state != "closed")})


def _add_knob(metrics: Metrics, helm: Helm) -> None:
    knob = helm.knob

    def promised() -> dict[str, float]:
        state = knob.promise(knob.threshold)
        return {} if state is None else {"": float(state == "in force")}

    def target() -> dict[str, float]:
        pilot = helm.pilot
        return {} if pilot is None else {pilot.hold.quantity: pilot.hold.target}

    def measured() -> dict[str, float]:
        pilot = helm.pilot
        found = None if pilot is None else pilot.measured
        return {} if pilot is None or found is None else {pilot.hold.quantity: found}

    moves = "Moves of the knob."
    metrics.read("threshold", "The knob.", lambda: {"": knob.threshold})
    metrics.read("knob_moves", moves, lambda: dict(knob.moves), "who", counter=True)
    metrics.read("promise_in_force", "1 while the threshold is a certified one, else 0.", promised)
    metrics.read("autopilot_target", "What is held.", target, "quantity")
    metrics.read("autopilot_measured", "What it is now.", measured, "quantity")


def _add_monitor(metrics: Metrics, monitor: LiveMonitor) -> None:
    def figure(name: str) -> dict[str, float]:
        return monitor.readings()[name]

    for name, text in MONITORED.items():
        metrics.read(f"monitor_{name}", text, partial(figure, name), "monitor")
    audits = "Rows about which the teacher was asked after the fact"
    contradicted = f"{audits}, and said something else."
    metrics.read("audited_rows", f"{audits}.", lambda: {"": monitor.audits}, counter=True)
    metrics.read(
        "contradicted_rows", contradicted, lambda: {"": monitor.contradicted}, counter=True
    )
