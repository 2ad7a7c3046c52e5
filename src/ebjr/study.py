"""Study: calibrate on one half of the outcomes, report on the other."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from ebjr.arrays import Array, take_rows
from ebjr.blend import Blend
from ebjr.calibration import Goal, calibrate, crossing, rank_scores
from ebjr.calibration.stages import MOST_STAGES, StagedPoint, calibrate_stages, reduced
from ebjr.costs import Cost
from ebjr.curve import OperatingPoint, score_values
from ebjr.data.examples import Data
from ebjr.errors import CalibrationError, OutputWarning
from ebjr.evaluation import evaluate, joint_prediction
from ebjr.evaluation.attainable import Headroom, headroom
from ebjr.evaluation.bootstrap import bootstrap
from ebjr.evaluation.plots import rounded, stages_figure, thin_rows
from ebjr.evaluation.predictions import read_predictions
from ebjr.evaluation.ranking import Standing, score_table
from ebjr.evaluation.report import Extra, write_report
from ebjr.evaluation.samples import as_picture, make_samples, same_labels, sample_rows
from ebjr.evaluation.tests import Comparison, compare_answers
from ebjr.monitor import DriftMonitor
from ebjr.outcomes import Outcomes
from ebjr.router import deferral_key, is_deferred
from ebjr.scores import Score, as_score, is_fitted
from ebjr.stats import Interval
from ebjr.tasks.specialized.known_classes import Traffic
from ebjr.verdict import Verdict

T = TypeVar("T")

_CURVE_ROWS = 51


@dataclass(frozen=True, eq=False)
class Study:
    """A calibration and its figures on the held-out examples.

    Attributes
    ----------
    outcomes, calibration, held_out
        The whole table and its two parts.
    split
        The fraction and the seed of the split.
    goal
        What the threshold is chosen for.
    point, result
        The operating point chosen on `calibration`, and its figures on `held_out`.
    others, other_results
        By score, without blend: points for the same goal with every score that can reach it.
    traffic
        The traffic to which both parts were resampled; None to keep them as recorded.
    staged
        The chosen chain, whose last router is that of `point`; None for a pair.
    judged
        The same study in the goal's own metric, if this one shows its figures in another.
    """

    outcomes: Outcomes
    calibration: Outcomes
    held_out: Outcomes
    split: tuple[float, int]
    goal: Goal
    point: OperatingPoint
    result: OperatingPoint
    others: Mapping[str, OperatingPoint]
    other_results: Mapping[str, OperatingPoint]
    traffic: Traffic | None = None
    staged: StagedPoint | None = None
    judged: Study | None = None

    @property
    def held_out_rows(self) -> np.ndarray:
        """The rows of `held_out` in `outcomes`."""
        return _rows(self.outcomes, *self.split, self.traffic)[1]

    @cached_property
    def crossings(self) -> dict[str, float]:
        """By score: where right and wrong cross on `calibration` (figure 4); {} for regression."""
        if not self.outcomes.measure.binary:
            return {}
        table, points = self.calibration, {**self.others, self.point.score: self.point}

        def cross(name: str) -> float:
            values = score_values(points[name].router.score, table)
            return crossing(values, table.student_quality)

        return _possible(cross, points)

    @cached_property
    def named_points(self) -> dict[str, OperatingPoint]:
        """By name: more operating points of the chosen score and blend, on `calibration`."""
        table = self.calibration
        goals = table.kind.named_goals(table.measure, table.quality("teacher"))

        def find(name: str) -> OperatingPoint:
            goal = Goal.of(**goals[name])
            if goal.limits_quality:
                goal = replace(goal, margin=self.goal.margin)
            return self._chosen_for(goal)

        return _possible(find, goals)

    def _chosen_for(self, goal: Goal) -> OperatingPoint:
        """Choose a threshold for another goal on `calibration`, with the same score and blend."""
        score, blend = self.point.router.score, self.point.blend
        return calibrate(self.calibration, goal, score=score, blend=blend)

    @cached_property
    def named_results(self) -> dict[str, OperatingPoint]:
        """`named_points`, measured on `held_out`."""
        return {name: evaluate(self.held_out, point) for name, point in self.named_points.items()}

    @property
    def best_accuracy(self) -> OperatingPoint:
        """The best threshold on `calibration`, which may beat the teacher, judged on `held_out`."""
        return self.named_results[f"best-{self.outcomes.metric}"]

    @cached_property
    def verdict(self) -> Verdict:
        """Whether `held_out` meets the goal, in the goal's own metric, and at what price."""
        if self.judged is not None:
            return self.judged.verdict
        result = replace(self.result, certified=self.point.certified)
        return Verdict.of(self.goal, result, self.intervals, self._pays_within)

    @property
    def goal_metric(self) -> str:
        """The metric in which the goal is set and judged."""
        return (self.judged or self).outcomes.metric

    def shown_in(self, metric: str) -> Study:
        """Return the study with its figures in another metric, and the same verdict."""
        outcomes, calibration, held_out = (
            replace(table, metric=metric)
            for table in (self.outcomes, self.calibration, self.held_out)
        )
        point, others = self.point, self.others
        own = {"certified": point.certified, "margin": point.margin}
        return replace(
            self,
            outcomes=outcomes,
            calibration=calibration,
            held_out=held_out,
            point=replace(evaluate(calibration, point), **own),
            result=evaluate(held_out, point),
            others={name: evaluate(calibration, other) for name, other in others.items()},
            other_results={name: evaluate(held_out, other) for name, other in others.items()},
            judged=self,
        )

    @property
    def plain_point(self) -> OperatingPoint | None:
        """The goal's pick without a margin, on `calibration`; None if the point has no margin."""
        study = self.judged or self
        if study.point.margin is None:
            return None
        return study._chosen_for(replace(study.goal, margin=0.0))

    @property
    def _pays_within(self) -> OperatingPoint | None:
        """The smallest larger tolerance that pays, if matching the teacher does not pay.

        None for a threshold that the goal did not choose, like one that was edited.
        """
        chosen = self.point.margin is not None or self.point.certified is not None
        if self.goal.kind != "match-teacher" or self.result.pays is not False or not chosen:
            return None
        table, least = self.calibration, self.goal.limit or 0.0
        whole = 1.0 if table.measure.percent else abs(table.quality("teacher"))
        larger = (share * whole for share in (0.005, 0.01, 0.02) if share * whole > least)
        points = (self._chosen_for(replace(self.goal.plain, limit=one)) for one in larger)
        return next((point for point in points if point.pays), None)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """By figure: the joint model on `held_out` with 95 % intervals, from `bootstrap`."""
        return bootstrap(self.held_out, self.point)

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Tests of the joint model against the teacher and the student on `held_out`."""
        return [
            self.compare(self.held_out.predictions(role), f"the {role}")
            for role in ("teacher", "student")
        ]

    def compare(self, prediction: Any, name: str = "the other model") -> Comparison:
        """Test the joint model against another model's predictions, (len(held_out),).

        McNemar's test; for regression a paired bootstrap of the difference in loss. `name` is the
        other model's.

        Raises
        ------
        ValueError
            `prediction` has another shape than `held_out`.
        """
        names = ("the joint model", name)
        return compare_answers(self.held_out, self._joint_prediction, prediction, names)

    def compare_files(self, paths: Iterable[str | os.PathLike[str]]) -> list[Comparison]:
        """Test the joint model against every prediction in some files, see `read_predictions`."""
        read = (read_predictions(path, self.outcomes, self.held_out_rows) for path in paths)
        return [self.compare(said, name) for each in read for name, said in each.items()]

    @cached_property
    def _joint_prediction(self) -> Any:
        return joint_prediction(self.held_out, self.point)

    @cached_property
    def ranking(self) -> list[Standing]:
        """The scores, without blend, by gain on `calibration`; other figures on `held_out`."""
        chosen = self.point.router.score
        names = self.calibration.kind.compared(self.calibration.student)
        shown = {name: as_score(name) for name in names}
        shown |= {chosen.title: chosen}
        table = score_table(self.held_out, list(shown.values()))
        rows = {name: replace(row, score=name) for name, row in zip(shown, table, strict=True)}
        # a fitted score is too good on its own examples; given by name, it is cross-fitted
        candidates = [score.name if is_fitted(score.name) else score for score in shown.values()]
        return [
            Standing(Interval(entry.gain, *entry.interval), rows[entry.score.title])
            for entry in rank_scores(self.calibration, candidates)
        ]

    @cached_property
    def headroom(self) -> Headroom | None:
        """The chosen score's share of the oracle's gain on `held_out`, and how to get the rest."""
        return headroom(self.calibration, self.held_out, self.point.router.score)

    @cached_property
    def sample_rows(self) -> np.ndarray:
        """The rows of `outcomes`, all held out, whose images a report shows."""
        return self.held_out_rows[sample_rows(self.held_out, self.point)]

    def find_images(self, data: Data, where: object = "the data") -> list[Any]:
        """Return the images of `sample_rows` from the recorded data; `where` names these data.

        Raises
        ------
        ValueError
            `data` has another number of images, other labels, or no images.
        """
        wanted, row = set(self.sample_rows.tolist()), 0
        found, there = dict[int, Any](), list[Any]()
        for batch in data.batches(64):
            for image in batch.inputs:
                if row in wanted:
                    found[row] = as_picture(image)
                row += 1
            there += [] if batch.targets is None else [*batch.targets]
        if row != len(self.outcomes):
            raise ValueError(
                f"{where} has {row} images and the outcomes have {len(self.outcomes)}: "
                "give the data that were recorded"
            )
        if there and self.outcomes.labeled and not same_labels(there, self.outcomes.targets):
            raise ValueError(
                f"the labels in {where} differ from the outcomes' labels: give the data that were "
                "recorded"
            )
        return [found[row] for row in self.sample_rows.tolist()]

    def write_report(
        self,
        path: str | os.PathLike[str],
        *,
        title: str,
        notes: Mapping[str, str] | None = None,
        compared: Sequence[Comparison] = (),
        images: Sequence[Any] = (),
        extras: Sequence[Extra] = (),
    ) -> None:
        """Write the HTML report of the held-out half.

        Parameters
        ----------
        notes
            More facts on how the report was made.
        compared
            Tests against other models, shown beside those against student and teacher.
        images
            The images of `sample_rows`, to show what deferral wins and loses.
        extras
            More sections.

        Raises
        ------
        OSError
            The file at `path` cannot be written.
        """
        fraction, seed = self.split
        goal = ", ".join(f"{key} = {value}" for key, value in self.goal.as_dict().items())
        goal += "" if self.judged is None else f", in {self.judged.outcomes.measure.title}"
        made = {
            "Calibrated on": f"{len(self.calibration):,} examples, for {goal}",
            "Reported on": f"{len(self.held_out):,} others (split {fraction:g}, seed {seed})",
            "Outcomes": self.outcomes.fingerprint,
        }
        if self.stages:
            roles = ", ".join(role for role, *_ in self.stages)
            made["Stages"] = f"{roles}; in this report the student is all of them but the last"
        if self.traffic is not None:
            made["Traffic"] = f"both halves resampled to {self.traffic}"
        write_report(
            path,
            self.held_out,
            self.point,
            others=list(self.others.values()),
            crossings=self.crossings,
            best=self.best_accuracy,
            intervals=self.intervals,
            comparisons=[*self.comparisons, *compared],
            ranking=self.ranking,
            found=self.headroom,
            samples=make_samples(self.held_out, self.point, images, self.held_out_rows),
            verdict=self.verdict.text,
            title=title,
            notes={**made, **(notes or {})},
            extras=[*self._stages, *extras],
        )

    def kept_figures(self) -> dict[str, Any]:
        """Return figures of both halves for `JointConfig.calibration`."""
        return {
            "verdict": self.verdict.text,
            "held_out": self.result.as_dict(),
            "score_quantiles": self._score_quantiles(),
            "curve": self._curve(),
            **self._watched(),
        }

    def _score_quantiles(self) -> list[float]:
        """Return the scores of `calibration` at 0, 1, ..., 100 %; scores that defer are -inf."""
        scores = np.asarray(self.point.router.score(self.calibration.student), np.float64)
        known = np.sort(deferral_key(scores))
        at = np.linspace(0, len(known) - 1, 101).round().astype(int)
        return [float(score) for score in known[at]]  # all digits: softmax scores crowd under 1

    def _curve(self) -> dict[str, list[float]]:
        """Return rows of the curve of `held_out`, evenly spaced in deferral rate."""
        curve = self.point.curve(self.held_out)
        rows = thin_rows(curve, most=_CURVE_ROWS)
        columns = ("deferral_rate", "quality")
        figures = {name: rounded(getattr(curve, name)[rows], digits=6) for name in columns}
        return {"threshold": curve.threshold[rows].tolist(), **figures}

    def _watched(self) -> dict[str, Any]:
        """Return the reference of the live monitors from `held_out`; {} for under 20 rows."""
        router, rows = self.point.router, self.held_out
        scores = np.asarray(router.score(rows.student), np.float64)
        if len(scores) < 20:
            return {}
        drift = DriftMonitor(scores, threshold=router.threshold).reference
        if not rows.kind.has_labels:
            return {"drift": drift}
        differs = rows.predictions("student") != rows.predictions("teacher")
        kept = ~is_deferred(scores, router.threshold)
        disagreement = {
            "threshold": router.threshold,
            "rows": len(scores),
            "kept_and_contradicted": int((kept & differs).sum()),
        }
        return {"drift": drift, "disagreement": disagreement}

    @property
    def stages(self) -> list[tuple[str, float, Cost, str]]:
        """Each stage's role, share of `held_out` asked, cost, and position; [] for a pair."""
        if self.staged is None:
            return []
        table, point = self.held_out, self.result
        asked = [1.0] if table.asked is None else table.asked.mean(axis=0).tolist()
        shares = [*asked, point.deferral_rate]
        costs = *(table.asked_costs or (point.student_cost,)), point.teacher_cost
        return [
            (stage.role, share, cost, stage.where)
            for stage, share, cost in zip(self.staged.stages, shares, costs, strict=True)
        ]

    @property
    def _stages(self) -> list[Extra]:
        """The report's section on every chain that competed, and each model alone."""
        found = self.staged
        if found is None or found.compared_in is None:
            return []
        measure, taken = self.outcomes.measure, tuple(stage.role for stage in found.stages)
        places = {
            one.roles: (found.percent(one), measure.drawn(one.quality)) for one in found.candidates
        }
        rows = {
            ", ".join(one.roles): [
                measure.words(one.quality),
                f"{found.percent(one):.1f} %",
                "yes" if one.level else "",
            ]
            for one in found.candidates
        }
        return [
            Extra(
                "stages",
                "Which models, in which order",
                stages_figure(places, taken, found.compared_in, measure),
                ("stages", measure.title, f"{found.compared_in}, of the teacher's", "level"),
                rows,
                ", ".join(taken),
                "Each chain has thresholds fitted on other calibration examples; each model alone "
                "is shown too. A chain that misses quality is charged what the best chain pays for "
                "that much quality. Chains that noise alone puts behind the best are level with "
                "it, and the shortest level chain is chosen.",
            )
        ]


def check_classes(outcomes: Outcomes) -> None:
    """Raise ValueError if all labels are of one class."""
    if outcomes.measure.binary and len(np.unique(outcomes.targets)) < 2:
        raise ValueError(
            f"all {len(outcomes)} targets are of class {outcomes.targets[0]}: calibrating needs "
            "examples of at least two classes"
        )


def run_study(
    outcomes: Outcomes,
    goal: str | Goal = "match-teacher",
    *,
    score: str | Callable[..., Array] | Score = "auto",
    blend: float | Blend | str = "auto",
    fraction: float = 0.5,
    seed: int = 0,
    traffic: Traffic | None = None,
    stages: str | Sequence[str] | None = None,
    most_stages: int | None = None,
    unit: str | None = None,
    **target: Any,
) -> Study:
    """Split the outcomes, calibrate on the first part, and evaluate on the second.

    Parameters
    ----------
    outcomes
        Every model's answers on labeled examples.
    goal, score, blend, **target
        As in `calibrate`. A guarantee holds for the chosen point alone, not for the other scores'.
    fraction, seed
        As in `Outcomes.split`.
    traffic
        The expected traffic, to which both parts are resampled.
    stages, most_stages, unit
        `stages`, `most` and `unit` of `calibrate_stages`, which chooses a chain if more than two
        models were recorded or `stages` is given; the others are refused without a chain.

    Raises
    ------
    ValueError
        An argument is wrong, or there are too few examples to split.
    CalibrationError
        No threshold reaches the goal on the calibration half.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> targets = rng.integers(0, 2, 100)
    >>> clear = 4 * np.eye(2)[targets]
    >>> study = run_study(Outcomes(clear + rng.normal(0, 3, (100, 2)), clear, targets))
    >>> len(study.held_out), study.result.quality >= study.result.student_quality
    (50, True)
    """
    of_pair = stages is None and len(outcomes.roles) == 2
    for name, value in (("most-stages", most_stages), ("unit", unit)):
        if of_pair and value is not None:
            raise ValueError(
                f"--{name} ({name.replace('-', '_')}=) is for chains of more than two models, but "
                "the outcomes have two: remove it"
            )
    rows, aim = _rows(outcomes, fraction, seed, traffic)[0], Goal.of(goal, **target)
    calibration, how = outcomes.take(rows), dict[str, Any](score=score, blend=blend)
    point: OperatingPoint
    if of_pair:
        point = calibrate(calibration, aim, **how)
    else:
        chosen: dict[str, Any] = {
            "stages": "auto" if stages is None else stages,
            "most": MOST_STAGES if most_stages is None else most_stages,
            "unit": unit,
        }
        point = calibrate_stages(calibration, aim, **chosen, **how)
        outcomes = reduced(outcomes, point.stages)
        calibration = outcomes.take(rows)
    if point.curve(calibration).noise:
        words = f"score {point.score} is the same for all examples, up to rounding"
        warnings.warn(words, OutputWarning, stacklevel=2)
    return study_point(outcomes, point, aim, fraction=fraction, seed=seed, traffic=traffic)


def study_point(
    outcomes: Outcomes,
    point: OperatingPoint,
    goal: Goal | None = None,
    *,
    fraction: float = 0.5,
    seed: int = 0,
    traffic: Traffic | None = None,
) -> Study:
    """Study an operating point that is already chosen, such as that of a ``joint.toml``.

    The point is measured again on the first part, where other scores get the same goal. The goal is
    judged in the point's metric; the figures are in that of `outcomes`.
    """
    if point.metric != outcomes.metric:
        own = replace(outcomes, metric=point.metric)
        study = study_point(own, point, goal, fraction=fraction, seed=seed, traffic=traffic)
        return study.shown_in(outcomes.metric)
    calibration, held_out = (
        outcomes.take(rows).with_scale(point.rescale)
        for rows in _rows(outcomes, fraction, seed, traffic)
    )
    aim = goal or Goal()
    others = _possible(
        lambda name: calibrate(calibration, aim.plain, score=name, blend=0.0),
        calibration.kind.compared(calibration.student),
    )
    return Study(
        outcomes=outcomes,
        calibration=calibration,
        held_out=held_out,
        split=(fraction, seed),
        goal=aim,
        point=replace(evaluate(calibration, point), certified=point.certified, margin=point.margin),
        result=evaluate(held_out, point),
        others=others,
        other_results={name: evaluate(held_out, other) for name, other in others.items()},
        traffic=traffic,
        staged=point if isinstance(point, StagedPoint) else None,
    )


def _possible(find: Callable[[str], T], names: Iterable[str]) -> dict[str, T]:
    """Return what `find` returns by name, without the names that raise CalibrationError."""
    found = {}
    for name in names:
        with suppress(CalibrationError):
            found[name] = find(name)
    return found


def _rows(
    outcomes: Outcomes, fraction: float, seed: int, traffic: Traffic | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of both parts: split before resampling, so that no row is in both."""
    first, second = outcomes.split_rows(fraction, seed)
    if traffic is not None:
        first, second = (
            rows[traffic.draw(take_rows(outcomes.targets, rows), seed)] for rows in (first, second)
        )
    return first, second
