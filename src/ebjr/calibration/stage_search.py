"""The search of `calibrate_stages`: fit every chain of models, and compare them on unseen rows.

A row's answer depends on the models it has met, not on the thresholds. So each answer, its scores
and its quality are computed once, and thresholds are compared on vectors.
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
"""The seed of the folds."""

FOLDS = 3
"""Chains are fitted on all but one of this many parts of the examples, and compared on it."""

LEAST_EXAMPLES = 10
"""The fewest examples on which a chain is fitted."""

RATES = (0.02, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0)
"""The shares of rows that an inner router may pass on to its model."""

SKIPS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
"""The shares of rows that it may skip, leaving them to the last model."""


@dataclass(frozen=True)
class Stage:
    """A model of a chain, and the router in front of it.

    `role` is one of `Outcomes.roles`. `score` reads the answer so far. Rows under the `threshold`,
    but not under `skip`, go to this model, whose answer is mixed with the one before by `blend`.
    The first stage has no router.
    """

    role: str
    score: str | None = None
    threshold: float = math.inf
    blend: float | Blend = 0.0
    skip: float | None = None

    @property
    def router(self) -> Router:
        """The router in front of this model."""
        assert self.score is not None
        return Router(self.score, self.threshold, self.skip)

    @property
    def where(self) -> str:
        """The rows that the model is asked about, in words."""
        if self.score is None:
            return "every row"
        least = "" if self.skip is None else f"{self.skip:.4g} <= "
        return f"{least}{as_score(self.score).title} < {self.threshold:.4g}"

    def as_dict(self) -> dict[str, Any]:
        """Return the stage for JSON and TOML."""
        routed = {} if self.score is None else router_table(self.router, self.blend)
        return {"role": self.role, **routed}


@dataclass(frozen=True)
class Candidate:
    """A chain, or a single model, measured on examples that did not choose its thresholds.

    `cost` is per example, in the unit of the search. `behind` is how much less it is worth than the
    best chain, in that unit, or in quality if the goal is a budget; `behind_error` is its standard
    error.
    """

    roles: tuple[str, ...]
    quality: float
    cost: float
    behind: float
    behind_error: float

    @property
    def level(self) -> bool:
        """Whether it is a chain that only noise puts behind the best."""
        return len(self.roles) > 1 and self.behind <= NOISE * self.behind_error


Path = tuple[tuple[int, float | Blend], ...]
"""The models that have answered a row, by place, each with the blend that mixed it in."""

Places = tuple[int, ...]
"""The places of a chain's models among the recorded models."""

Where = list[tuple[Path, np.ndarray]]
"""Paths, each with its rows, (n,) bool."""

Cut = Callable[[int, np.ndarray], tuple[float, float | None]]
"""Returns an inner router's threshold and skip from its number and the scores it meets."""


class _Answers:
    """Each row's answer on every path, its scores and its quality, each computed once."""

    def __init__(self, outcomes: Outcomes) -> None:
        self.outcomes = replace(outcomes, between=(), between_costs=())
        self.said = [outcomes.said_by(role) for role in outcomes.roles]
        self._once = self.outcomes._once
        self._latest: tuple[Path, Batch] = (), None  # only the latest, because outputs may be large

    def output(self, path: Path) -> Batch:
        """Return the joint answer of a path to every row."""
        *before, (place, blend) = path
        if not before:
            return self.said[place]
        if self._latest[0] != path:
            said = self.outcomes.kind.mix(self.output((*before,)), self.said[place], blend)
            self._latest = path, said
        return self._latest[1]

    def quality(self, path: Path) -> np.ndarray:
        """Return each row's quality, (n,), on a path."""
        return self._once(("quality", path), lambda: self.pair(path, path).student_quality)

    def score(self, name: str, path: Path) -> np.ndarray:
        """Return the score, (n,), of a path's answers."""
        return self._once(
            (name, path), lambda: np.asarray(as_score(name)(self.output(path)), np.float64)
        )

    def pair(self, path: Path, other: Path) -> Outcomes:
        """Return the answers on two paths as outcomes."""
        return replace(self.outcomes, student=self.output(path), teacher=self.output(other))


@dataclass(frozen=True)
class _Plan:
    """A chain's choices before its thresholds: each router's score and blend."""

    places: Places
    scores: tuple[str, ...] = ()
    blends: tuple[float | Blend, ...] = ()

    def after(self, path: Path, number: int) -> Path:
        """Return the path that extends another by the model behind router `number`."""
        step = self.places[number + 1], self.blends[number]
        return (step,) if step[1] == 0 else (*path, step)


@dataclass(frozen=True)
class _Fit:
    """The thresholds of a chain."""

    cuts: tuple[tuple[float, float | None], ...]  # each inner router's threshold and skip
    threshold: float
    rank: tuple[float, ...]  # smaller for a better fit
    price: float  # what the chain pays for a unit of quality


class _Vectors:
    """Vectors that a curve and a goal can read instead of outcomes."""

    largest_output = 0.0  # no raw output, so no rounding of it

    def __init__(self, like: Outcomes, kept: Any, deferred: Any, teacher: Any, costs: Any) -> None:
        self.student = self.student_quality = kept
        self._deferred, self.teacher_quality = deferred, teacher
        self.measure, self.kind = like.measure, like.kind
        self.student_cost, self.teacher_cost = costs

    def __len__(self) -> int:
        return len(self.student)

    def deferred_quality(self, blend: Any = 0.0) -> np.ndarray:
        """Return the quality, (n,), of deferred rows, which has the blend in it."""
        return self._deferred

    def whole(self, blend: Any = 0.0) -> None:
        """Return None: qualities are means of rows."""

    def quality(self, role: str) -> float:
        """Return the quality of ``"student"`` or ``"teacher"`` alone."""
        return float(self.measure.quality(getattr(self, f"{role}_quality").mean()))


class Search:
    """Fits and compares the chains of some models on the same examples."""

    def __init__(self, outcomes: Outcomes, aim: Goal, unit: str | None) -> None:
        self.outcomes, self.aim, self.measure = outcomes, aim, outcomes.measure
        kind = outcomes.kind
        if kind.known_classes is not None or kind.scale is not None or self.measure.rows is None:
            raise ValueError(
                "stages are for classification, multilabel and regression with means over rows, "
                f"not for {self.measure.name} of {kind.name}: calibrate a pair"
            )
        if aim.kind == "crossing":
            raise ValueError("goal 'crossing' is for one router: use another goal for stages")
        if aim.unit in UNITS and unit not in (None, aim.unit):
            raise ValueError(
                f"a budget in {aim.unit} compares chains in {aim.unit}, not in {unit}: remove unit"
            )
        if len(outcomes) < LEAST_EXAMPLES:
            raise CalibrationError(
                f"{len(outcomes)} examples are too few to choose stages: give at least "
                f"{LEAST_EXAMPLES}, or a pair"
            )
        self.unit, self.costs = _costs(outcomes, unit or (aim.unit if aim.unit in UNITS else None))
        self.answers = _Answers(outcomes)
        self.plans: dict[Places, _Plan] = {}
        self.fits: dict[Places, _Fit] = {}  # on all examples

    def chains(self, stages: str | Sequence[str], most: int) -> list[Places]:
        """Return the chains to compare, cheaper models first and the teacher last."""
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
                f"stages must be auto, or two or more of {', '.join(roles)} with the teacher last, "
                f"not {', '.join(names)}"
            )
        for place, after in pairwise(places):
            if self.costs[place] > MOST_DEARER * self.costs[after]:
                raise ValueError(
                    f"stages must be in the order of their costs, but {roles[place]} costs "
                    f"{self.costs[place]:.4g} {self.unit} and {roles[after]}, after it, "
                    f"{self.costs[after]:.4g}"
                )
        return [places]

    def best(self, chains: Sequence[Places]) -> tuple[Places, tuple[Candidate, ...]]:
        """Return the shortest chain that is level with the best, and all chains, best first.

        For a budget the best is the most accurate. Otherwise it is the cheapest, with quality
        counted in units of cost, at the price that the cheapest fit pays for it: this compares
        chains that land a little over or under the goal.
        """
        fits, why = self.fits, ""
        for chain in chains:
            try:
                fits[chain] = self._fit(chain)
            except CalibrationError as error:
                names = ", ".join(self.outcomes.roles[place] for place in chain)
                why = why or f"no chain reaches the goal; {names}: {error}"
        if not fits:
            words = f"the teacher is the cheapest model in {self.unit}, so nothing can be saved"
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
        """Return the stages of a chain that `best` has fitted; the last has no router yet."""
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
        """Fit thresholds that reach the goal on some rows, one inner router after the other.

        Raises CalibrationError if none reaches it.
        """
        plan, inner = self._plan(chain), range(len(chain) - 2)
        shares = [(0.2, 0.0) for _ in inner]
        best, why = self._tried(plan, rows, shares)
        # twice, because the best thresholds of one router depend on the others'
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
        """Fit the last threshold for inner routers that pass on and skip these shares of rows."""
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
        """Return rows' quality and cost, (n,) each, by thresholds fitted without these rows."""
        n = len(self.outcomes)
        if len(chain) == 1:
            return self.answers.quality(((chain[0], 0.0),)), np.full(n, self.costs[chain[0]])
        part = np.random.default_rng(SEED).permutation(n) % FOLDS
        quality, cost, plan = np.empty(n), np.empty(n), self._plan(chain)
        for fold in range(FOLDS):
            own = np.flatnonzero(part == fold)
            try:
                fit = self._fit(chain, np.flatnonzero(part != fold))
            except CalibrationError:  # only all examples together reach the goal
                fit = self.fits[chain]
            score, kept, deferred, paid = self._walk(plan, own, partial(_kept_cut, fit))
            on = is_deferred(score, fit.threshold)
            quality[own] = np.where(on, deferred, kept)
            cost[own] = paid + on * self.costs[chain[-1]]
        return quality, cost

    def _walk(
        self, plan: _Plan, rows: Any, cut: Cut
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return what the last router meets: its score, quality if kept, if deferred, and cost.

        All are (n,), one entry per row of `rows`.
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
        """Choose scores and blends, each router's for rows that have met all models before it."""
        if places not in self.plans:
            self.plans[places] = self._planned(places) if len(places) > 1 else _Plan(places)
        return self.plans[places]

    def _planned(self, places: Places) -> _Plan:
        before = self._plan(places[:-1])
        path: Path = ((places[0], 0.0),)
        for number in range(len(before.scores)):
            path = before.after(path, number)
        pair = self.answers.pair(path, ((places[-1], 0.0),))
        # fitted scores are excluded: their weights would need a fit per chain and fold
        named = [name for name in pair.kind.candidates(pair.student) if not is_fitted(name)]
        score = choose_score(pair, named)
        blend = choose_blend(pair, score)
        return _Plan(places, (*before.scores, str(score)), (*before.blends, blend))


def _kept_cut(fit: _Fit, number: int, score: np.ndarray) -> tuple[float, float | None]:
    return fit.cuts[number]


def _along(where: Where, rows: Any, of: Callable[[Path], np.ndarray]) -> np.ndarray:
    """Return, for each row, (n,), the value of `of` on the row's own path."""
    found = of(where[0][0])[rows].astype(np.float64)
    for path, own in where[1:]:
        found[own] = of(path)[rows][own]
    return found


def _costs(outcomes: Outcomes, unit: str | None) -> tuple[str, list[float]]:
    """Return the unit in which chains are compared, and each model's cost in it."""
    costs = [outcomes.cost_of(role) for role in outcomes.roles]
    if any(cost.rest for cost in costs):
        raise ValueError(
            "a teacher that continues from features cannot be a stage: calibrate without --stages"
        )
    known = [one for one in UNITS if all(is_comparable(costs[0], cost, one) for cost in costs)]
    if not known:
        raise ValueError(
            f"stages are compared by cost, but none of {', '.join(UNITS)} is known for every "
            "model: record them with costs"
        )
    unit = known[0] if unit is None else unit
    check_choice("unit", unit, known)
    if not any(getattr(cost, unit) for cost in costs):
        raise ValueError(f"every model costs 0 {unit}: record their costs, to compare chains")
    return unit, [float(getattr(cost, unit)) for cost in costs]


def _cut(score: np.ndarray, rate: float, skip: float) -> tuple[float, float | None]:
    """Return the threshold and skip of a router that passes on and skips these shares of rows."""
    ranked = np.sort(deferral_key(score))
    # finite bounds: a router takes no threshold of -inf
    n, least = len(ranked), float(np.finfo(np.float32).min)
    first, end = min(round(skip * n), n - 1), round((skip + rate) * n)
    threshold = math.inf if end >= n else max(float(ranked[end]), least)
    return threshold, max(float(ranked[first]), least) if first else None


def _price(paid: np.ndarray, quality: np.ndarray, row: int) -> float:
    """Return the cost of a unit of quality along a curve, from half of the gain up to a row."""
    half = int(np.argmax(quality >= (quality[0] + quality[row]) / 2))
    for start, end in ((half, row), (0, row), (0, len(paid) - 1)):
        if quality[end] > quality[start] and end > start:
            return float((paid[end] - paid[start]) / (quality[end] - quality[start]))
    return 0.0
