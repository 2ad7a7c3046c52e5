"""The search of `calibrate_stages`: every chain of some models, fitted, and compared unseen.

A row's answer depends on the models that it has met, and not on the thresholds. So every answer,
its scores and its quality are found once, and thresholds are compared on vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np

from ebjr.arrays import Batch
from ebjr.blend import Blend
from ebjr.calibration.choice import NOISE, choose_blend, choose_score
from ebjr.calibration.goal import Goal
from ebjr.costs import MOST_DEARER, UNITS, Cost, is_comparable
from ebjr.curve import TradeOffCurve
from ebjr.errors import CalibrationError, check_choice
from ebjr.joint import router_table
from ebjr.outcomes import Outcomes
from ebjr.router import Router, deferral_key, is_deferred
from ebjr.scores import as_score, is_fitted

SEED = 1
"""Of the folds."""

FOLDS = 3
"""Chains are fitted on all but one of so many parts of the examples, and compared on that one."""

LEAST_EXAMPLES = 10
"""On fewer no chain is fitted."""

RATES = (0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
"""The shares of rows that an inner router may pass on."""

SKIPS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
"""The shares of rows that it may leave to the last model, as hopeless."""


@dataclass(frozen=True)
class Stage:
    """One model of a chain, and the router in front of it.

    `role` is one of `Outcomes.roles`. `score` is read off what was said before; rows under the
    `threshold`, but not under `skip`, go to this model, whose answer is mixed with the former by
    `blend`. The first stage has no router.
    """

    role: str
    score: str | None = None
    threshold: float = math.inf
    blend: float | Blend = 0.0
    skip: float | None = None

    @property
    def router(self) -> Router:
        """The router in front of it."""
        assert self.score is not None
        return Router(self.score, self.threshold, self.skip)

    @property
    def where(self) -> str:
        """Which rows it is asked about, in words."""
        if self.score is None:
            return "every row"
        least = "" if self.skip is None else f"{self.skip:.4g} <= "
        return f"{least}{as_score(self.score).title} < {self.threshold:.4g}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON and TOML."""
        routed = {} if self.score is None else router_table(self.router, self.blend)
        return {"role": self.role, **routed}


@dataclass(frozen=True)
class Candidate:
    """A chain, or a model alone, on examples that its thresholds were not chosen on.

    `cost` is per example, in the unit of the search. `behind` is by how much it is worth less than
    the best chain, in that unit, or in quality where the goal is a budget; `behind_error` is its
    standard error.
    """

    roles: tuple[str, ...]
    quality: float
    cost: float
    behind: float
    behind_error: float

    @property
    def level(self) -> bool:
        """Whether it is a chain that is behind the best by no more than noise."""
        return len(self.roles) > 1 and self.behind <= NOISE * self.behind_error


Path = tuple[tuple[int, float | Blend], ...]
"""Which models have answered a row, by their places, each with the blend that mixed it in."""

Places = tuple[int, ...]
"""The places of a chain's models among those recorded."""

Where = list[tuple[Path, np.ndarray]]
"""Paths, and which rows (n,) bool are on each."""

Cut = Callable[[int, np.ndarray], tuple[float, float | None]]
"""What gives an inner router's threshold and skip, of its number and the scores that it meets."""


class _Answers:
    """What is said of each row on every path, its scores, and its quality: each found once."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = replace(outcomes, between=(), between_costs=())
        self.said = [outcomes.said_by(role) for role in outcomes.roles]
        self._once = self.outcomes._once
        self._latest: tuple[Path, Batch] = (), None  # one alone, as they may be large

    def output(self, path: Path) -> Batch:
        """The joint answer of a path to every row."""
        *before, (place, blend) = path
        if not before:
            return self.said[place]
        if self._latest[0] != path:
            said = self.outcomes.kind.mix(self.output((*before,)), self.said[place], blend)
            self._latest = path, said
        return self._latest[1]

    def quality(self, path: Path) -> np.ndarray:
        """(n,): each row's quality on a path."""
        return self._once(("quality", path), lambda: self.pair(path, path).student_quality)

    def score(self, name: str, path: Path) -> np.ndarray:
        """(n,): the score of a path's answer."""
        score = as_score(name)
        return self._once((name, path), lambda: np.asarray(score(self.output(path)), np.float64))

    def pair(self, path: Path, other: Path) -> Outcomes:
        """What is said on two paths, as outcomes."""
        return replace(self.outcomes, student=self.output(path), teacher=self.output(other))


@dataclass(frozen=True)
class _Plan:
    """What is chosen of a chain before its thresholds: of each router a score and a blend."""

    places: Places
    scores: tuple[str, ...] = ()
    blends: tuple[float | Blend, ...] = ()

    def after(self, path: Path, number: int) -> Path:
        """The path that goes on from another to the model behind router `number`."""
        step = self.places[number + 1], self.blends[number]
        return (step,) if step[1] == 0 else (*path, step)


@dataclass(frozen=True)
class _Fit:
    """The thresholds of a chain."""

    cuts: tuple[tuple[float, float | None], ...]  # of each inner router with its skip
    threshold: float
    rank: tuple[float, ...]  # smaller for a better fit
    price: float  # what the chain pays for a unit of quality


class _Vectors:
    """Vectors in place of outcomes, as a curve and a goal read them."""

    largest_output = 0.0  # there is no raw output, whose rounding would count

    def __init__(self, like: Outcomes, kept: Any, deferred: Any, teacher: Any, costs: Any) -> None:
        self.student = self.student_quality = kept
        self._deferred, self.teacher_quality = deferred, teacher
        self.measure, self.kind = like.measure, like.kind
        self.student_cost, self.teacher_cost = costs

    def __len__(self) -> int:
        return len(self.student)

    def deferred_quality(self, blend: Any = 0.0) -> np.ndarray:
        """(n,): the quality of deferred rows; the blend is in it."""
        return self._deferred

    def whole(self, blend: Any = 0.0) -> None:
        """Qualities are means of rows."""

    def quality(self, role: str) -> float:
        """That of ``"student"`` or ``"teacher"`` alone."""
        return float(self.measure.quality(getattr(self, f"{role}_quality").mean()))


class Search:
    """The chains of some models, fitted and compared on the same examples."""

    def __init__(self, outcomes: Outcomes, aim: Goal, unit: str | None) -> None:
        self.outcomes, self.aim, self.measure = outcomes, aim, outcomes.measure
        kind = outcomes.kind
        if kind.known_classes is not None or kind.scale is not None or self.measure.rows is None:
            raise ValueError(
                "stages are for classification, multilabel and regression, judged by means over "
                f"rows, not for {self.measure.name} of {kind.name}: calibrate a pair"
            )
        if aim.kind == "crossing":
            raise ValueError("goal 'crossing' is of one router: give stages another")
        if aim.unit in UNITS and unit not in (None, aim.unit):
            raise ValueError(
                f"a budget in {aim.unit} compares chains in it, not in {unit}: leave unit out"
            )
        if len(outcomes) < LEAST_EXAMPLES:
            raise CalibrationError(
                f"{len(outcomes)} examples are too few to choose stages on: give at least "
                f"{LEAST_EXAMPLES}, or a pair"
            )
        self.unit, self.costs = _costs(outcomes, unit or (aim.unit if aim.unit in UNITS else None))
        self.answers = _Answers(outcomes)
        self.plans: dict[Places, _Plan] = {}
        self.fits: dict[Places, _Fit] = {}  # on all examples

    def chains(self, stages: str | Sequence[str], most: int) -> list[Places]:
        """The chains to compare, cheaper models first; the teacher is the last of all."""
        roles = self.outcomes.roles
        last = len(roles) - 1
        if stages == "auto":
            order = sorted(range(last), key=lambda place: self.costs[place])
            cheaper = [place for place in order if self.costs[place] <= self.costs[last]]
            sizes = range(1, most)
            return [(*one, last) for size in sizes for one in combinations(cheaper, size)]
        named = stages.split(",") if isinstance(stages, str) else stages
        names = [name.strip() for name in named]
        places = tuple(roles.index(role) if role in roles else -1 for role in names)
        if len(set(places)) < max(2, len(places)) or -1 in places or places[-1] != last:
            raise ValueError(
                f"stages must be auto, or two or more of {', '.join(roles)}, the teacher last, not "
                f"{', '.join(names)}"
            )
        for place, after in pairwise(places):
            if self.costs[place] > MOST_DEARER * self.costs[after]:
                raise ValueError(
                    f"the cheaper model comes first, but {roles[place]} costs "
                    f"{self.costs[place]:.4g} {self.unit} and {roles[after]}, after it, "
                    f"{self.costs[after]:.4g}: give stages in the order of their costs"
                )
        return [places]

    def best(self, chains: Sequence[Places]) -> tuple[Places, tuple[Candidate, ...]]:
        """The shortest chain that is level with the best, and all of them, the best first.

        For a budget the best is the most accurate. Else it is the cheapest, and quality counts in
        units of cost, at the price that the cheapest fit pays for it: so chains can be compared
        that land a little over or under the goal.
        """
        fits, why = self.fits, ""
        for chain in chains:
            try:
                fits[chain] = self._fit(chain)
            except CalibrationError as error:
                names = ", ".join(self.outcomes.roles[place] for place in chain)
                why = why or f"no chain reaches the goal; {names}: {error}"
        if not fits:
            words = f"the teacher is the cheapest model in {self.unit}: nothing can be saved"
            raise CalibrationError(why or words)
        price = min(fits.values(), key=lambda fit: fit.rank).price
        alone = [(place,) for place in range(len(self.outcomes.roles))]
        unseen = {chain: self._unseen(chain) for chain in (*alone, *fits)}
        limited = self.aim.limits_quality
        loss = {
            chain: cost - price * quality if limited else -quality
            for chain, (quality, cost) in unseen.items()
        }
        least = min((loss[chain] for chain in fits), key=np.mean)
        found = {
            chain: self._candidate(chain, *unseen[chain], loss[chain] - least) for chain in loss
        }
        level = [chain for chain in fits if found[chain].level] or [*fits]
        shortest = [chain for chain in level if len(chain) == min(map(len, level))]
        taken = min(shortest, key=lambda chain: found[chain].behind)
        return taken, tuple(sorted(found.values(), key=lambda one: one.behind))

    def _candidate(
        self, chain: Places, quality: np.ndarray, cost: np.ndarray, behind: np.ndarray
    ) -> Candidate:
        return Candidate(
            tuple(self.outcomes.roles[place] for place in chain),
            quality=float(self.measure.quality(quality.mean())),
            cost=float(cost.mean()),
            behind=float(behind.mean()),
            behind_error=float(behind.std() / math.sqrt(len(behind))),
        )

    def stages(self, chain: Places) -> list[Stage]:
        """The stages of a chain that `best` has fitted, the last one without its router."""
        roles = [self.outcomes.roles[place] for place in chain]
        plan, cuts = self._plan(chain), self.fits[chain].cuts
        inner = [
            Stage(role, score, threshold, blend, skip)
            for role, score, (threshold, skip), blend in zip(
                roles[1:-1], plan.scores[:-1], cuts, plan.blends[:-1], strict=True
            )
        ]
        return [Stage(roles[0]), *inner, Stage(roles[-1])]

    def _fit(self, chain: Places, rows: Any = slice(None)) -> _Fit:
        """The thresholds that reach the goal best on some rows: those of inner routers in turn.

        CalibrationError: none reaches it.
        """
        plan, inner = self._plan(chain), range(len(chain) - 2)
        shares = [(0.2, 0.0) for _ in inner]
        best, why = self._tried(plan, rows, shares)
        for number in [*inner] * min(2, len(inner)):
            for share in product(RATES, SKIPS):
                tried = [*shares[:number], share, *shares[number + 1 :]]
                found, _ = self._tried(plan, rows, tried) if sum(share) <= 1 else (None, None)
                if found is not None and (best is None or found.rank < best.rank):
                    best, shares = found, tried
        if best is None:
            assert why is not None
            raise why
        return best

    def _tried(
        self, plan: _Plan, rows: Any, shares: Sequence[tuple[float, float]]
    ) -> tuple[_Fit | None, CalibrationError | None]:
        """The fit of inner routers that pass on and skip such shares; or why there is none."""
        cuts: list[tuple[float, float | None]] = []

        def cut(number: int, score: np.ndarray) -> tuple[float, float | None]:
            cuts.append(_cut(score, *shares[number]))
            return cuts[-1]

        score, kept, deferred, cost = self._walk(plan, rows, cut)
        means = float(cost.mean()), self.costs[plan.places[-1]]
        costs = [Cost().filled(**{self.unit: each}) for each in means]
        teacher = self.answers.quality(((len(self.outcomes.roles) - 1, 0.0),))[rows]
        table: Any = _Vectors(self.outcomes, kept, deferred, teacher, costs)
        curve = TradeOffCurve.of(table, score)
        try:
            row = self.aim.row(curve)
        except CalibrationError as error:
            return None, error
        paid, quality = curve.cost_in(self.unit), np.asarray(self.measure.mean(curve.quality))
        rank = (paid[row],) if self.aim.limits_quality else (-quality[row], paid[row])
        return _Fit((*cuts,), curve.threshold_of(row), rank, _price(paid, quality, row)), None

    def _unseen(self, chain: Places) -> tuple[np.ndarray, np.ndarray]:
        """(n,) each: quality and cost of rows, by thresholds that were fitted without them."""
        n = len(self.outcomes)
        if len(chain) == 1:
            return self.answers.quality(((chain[0], 0.0),)), np.full(n, self.costs[chain[0]])
        part = np.random.default_rng(SEED).permutation(n) % FOLDS
        quality, cost, plan = np.empty(n), np.empty(n), self._plan(chain)
        for fold in range(FOLDS):
            own = np.flatnonzero(part == fold)
            try:
                fit = self._fit(chain, np.flatnonzero(part != fold))
            except CalibrationError:  # it just reaches the goal, with all examples
                fit = self.fits[chain]
            score, kept, deferred, paid = self._walk(plan, own, partial(_kept_cut, fit))
            on = is_deferred(score, fit.threshold)
            quality[own] = np.where(on, deferred, kept)
            cost[own] = paid + on * self.costs[chain[-1]]
        return quality, cost

    def _walk(
        self, plan: _Plan, rows: Any, cut: Cut
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(n,) each, where the last router meets some rows: its score, their quality, and cost.

        The quality is that of rows which it keeps, and that of rows which it defers.
        """
        score = self.answers.score
        first: Path = ((plan.places[0], 0.0),)
        cost = np.full(len(self.outcomes), self.costs[plan.places[0]])[rows]
        where: Where = [(first, np.ones(len(cost), bool))]
        for number, place in enumerate(plan.places[1:-1]):
            met = _along(where, rows, partial(score, plan.scores[number]))
            on = is_deferred(met, *cut(number, met))
            cost += on * self.costs[place]
            passed = [(plan.after(path, number), own & on) for path, own in where]
            stayed = [(path, own & ~on) for path, own in where]
            where = [(path, own) for path, own in stayed + passed if own.any()]
        last, quality = len(plan.scores) - 1, self.answers.quality
        return (
            _along(where, rows, partial(score, plan.scores[last])),
            _along(where, rows, quality),
            _along(where, rows, lambda path: quality(plan.after(path, last))),
            cost,
        )

    def _plan(self, places: Places) -> _Plan:
        """Scores and blends, each router's chosen for rows that have met all models before it."""
        if places not in self.plans:
            self.plans[places] = self._planned(places) if len(places) > 1 else _Plan(places)
        return self.plans[places]

    def _planned(self, places: Places) -> _Plan:
        before = self._plan(places[:-1])
        path: Path = ((places[0], 0.0),)
        for number in range(len(before.scores)):
            path = before.after(path, number)
        pair = self.answers.pair(path, ((places[-1], 0.0),))
        named = [name for name in pair.kind.candidates(pair.student) if not is_fitted(name)]
        score = choose_score(pair, named)
        blend = choose_blend(pair, score)
        return _Plan(places, (*before.scores, str(score)), (*before.blends, blend))


def _kept_cut(fit: _Fit, number: int, score: np.ndarray) -> tuple[float, float | None]:
    return fit.cuts[number]


def _along(where: Where, rows: Any, of: Callable[[Path], np.ndarray]) -> np.ndarray:
    """(n,): of each row what is known along its own path."""
    found = of(where[0][0])[rows].astype(np.float64)
    for path, own in where[1:]:
        found[own] = of(path)[rows][own]
    return found


def _costs(outcomes: Outcomes, unit: str | None) -> tuple[str, list[float]]:
    """The unit that chains are compared in, and what each model costs in it."""
    costs = [outcomes.cost_of(role) for role in outcomes.roles]
    if any(cost.rest for cost in costs):
        raise ValueError(
            "a teacher that continues from features cannot be a stage: calibrate without --stages"
        )
    known = [one for one in UNITS if all(is_comparable(costs[0], cost, one) for cost in costs)]
    if not known:
        raise ValueError(
            f"stages are compared by what they cost, and none of {', '.join(UNITS)} is known of "
            "every model: record them with costs"
        )
    unit = known[0] if unit is None else unit
    check_choice("unit", unit, known)
    if not any(getattr(cost, unit) for cost in costs):
        raise ValueError(f"every model costs 0 {unit}: record what they cost, to compare chains")
    return unit, [float(getattr(cost, unit)) for cost in costs]


def _cut(score: np.ndarray, rate: float, skip: float) -> tuple[float, float | None]:
    """The threshold and the skip of a router that passes on and skips such shares of some rows."""
    ranked = np.sort(deferral_key(score))
    n, least = len(ranked), float(np.finfo(np.float32).min)
    first, end = min(round(skip * n), n - 1), round((skip + rate) * n)
    threshold = math.inf if end >= n else max(float(ranked[end]), least)
    return threshold, max(float(ranked[first]), least) if first else None


def _price(paid: np.ndarray, quality: np.ndarray, row: int) -> float:
    """What a unit of quality costs along a curve before a row: from where half of the gain is."""
    half = int(np.argmax(quality >= (quality[0] + quality[row]) / 2))
    for start, end in ((half, row), (0, row), (0, len(paid) - 1)):
        if quality[end] > quality[start] and end > start:
            return float((paid[end] - paid[start]) / (quality[end] - quality[start]))
    return 0.0
