"""One batch: draw rows, ask the teacher about them, find a threshold, and answer all rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ebjr.arrays import Batch, to_numpy
from ebjr.calibration.budget import (
    Plan,
    Sample,
    promising_cut,
    shows_precision,
    usual_pairs,
)
from ebjr.calibration.guarantee import bisect
from ebjr.errors import CalibrationError
from ebjr.joint import models_of, with_spent
from ebjr.journal import Journal
from ebjr.router import deferral_key
from ebjr.within.certificate import LABELS, BatchCertificate, PromisedAnswers
from ebjr.within.rows import Paid, Rows, Told

if TYPE_CHECKING:
    from ebjr.within import PromisedRun


MOST_UNASKED = 0.9
"""Without a budget, a promise that needs a larger share of the rows is refused: it saves little."""


class PromisedBatch:
    """One batch: the student's answers, and the teacher's so far."""

    def __init__(self, run: PromisedRun, rows: Rows, tell: Told) -> None:
        self.run, self.kind = run, run.joint.kind
        columns: list[tuple[np.ndarray, ...]] = []
        said: list[Any] = []
        others: list[Any] = []
        names: list[str] = []
        spent: list[Any] = []
        form: Batch = None
        for where, inputs, called in rows.batches(run.batch_size):
            found = run.joint.ask_student(inputs)
            score, form = run.read(found.output)
            said += list(run.joint.predict(form))
            marks = np.zeros(len(where), bool) if found.degraded is None else found.degraded
            columns.append((where, score, to_numpy(marks), found.stages(len(where))))
            names += called
            spent.append(found.spent)
            if run.wanted.turns and self.kind.targets_are != "boxes":
                others += list(run.turned(form))
            tell("asking the student", len(said), len(rows.rows))
        if not said:
            raise ValueError("there are no rows to answer")
        self.said, self.others, self.names, self.n = said, others, names, len(said)
        self.spent = None if any(one is None for one in spent) else np.concatenate(spent)
        self.turned = np.zeros(self.n, bool)
        self.numbers, self.score, self.degraded, self.stage = map(
            np.concatenate, zip(*columns, strict=True)
        )
        self.known, self.sampled = np.zeros(self.n, bool), np.zeros(self.n, bool)
        self.paid = Paid(run.joint, rows, form, run.batch_size, tell)
        self.start = rows.rows.start
        self.rng = self._stream()
        self.before = 0  # rows that an earlier promise paid for

    def _stream(self) -> np.random.Generator:
        """Return a generator unlike ``default_rng(seed)``, which may have shuffled the rows."""
        return np.random.default_rng([self.run.seed, 0xB0D6E7, self.paid.attempt, self.start])

    def take_up(self, keep: Journal) -> None:
        """Resume from a journal: its rows are known, or belong to this draw."""
        run, before = self.run, self.run.paid
        if before and before.keep is keep and before.rows.inputs is self.paid.rows.inputs:
            self.paid = before.of(self.paid)  # an earlier window has read the journal
        else:
            own = {"score": str(run.joint.router.score), "seed": run.seed, "window": run.window}
            self.paid.take_up(keep, {**run.wanted.as_dict(), **own}, run.about)
            paid = run.paid = self.paid
            if paid.spent + (run.wanted.delta or 0.0) >= 1:
                raise CalibrationError(
                    f"{paid.attempt} other promises were tried on these rows, and their deltas sum "
                    f"to {paid.spent:g}: with this one's (--delta) no probability is left, so use "
                    "smaller deltas or other rows"
                )
        self.known |= np.isin(self.numbers, self.paid.earlier)
        self.before = int(self.known.sum())
        self.rng = self._stream()

    def ask(self, rows: np.ndarray) -> None:
        """Ask the teacher about rows, by their places here; they are known from then on."""
        self.paid.ask(self.numbers[rows])
        self.known[rows] = True

    def taught(self, rows: np.ndarray) -> list[Any]:
        """Return the teacher's answers to known rows."""
        return [self.paid.said[row] for row in self.numbers[rows].tolist()]

    def answers(self, certificates: tuple[BatchCertificate, ...]) -> PromisedAnswers:
        """Return all answers: the teacher's for known rows, the student's for the others."""
        said, known = list(self.said), self.known
        rows = np.flatnonzero(known)
        for row, answer in zip(rows.tolist(), self.taught(rows), strict=True):
            said[row] = answer
        for row in np.flatnonzero(self.turned).tolist():
            said[row] = self.others[row]
        spent = with_spent(self.spent, rows, self.paid.spent_on(self.numbers[rows]), self.n)
        stage = np.where(known, len(models_of(self.run.joint.student)), self.stage)
        return PromisedAnswers(
            said if self.kind.targets_are == "boxes" else np.stack(said),
            self.score,
            known,
            self.degraded & ~known,
            stage,
            self.sampled,
            self.turned,
            certificates,
            self.names,
            spent,
        )

    def promise(self, name: str, at_least: float | None) -> BatchCertificate:
        """Ask the teacher about the rows that one promise needs, and return the certificate."""
        question = Question(self, name)
        left, calls = len(question.open()), question.calls
        if not left:  # like the precision of a class that the student never answers
            return self._certificate(question, at_least or 1.0, 0, 1.0)
        if name == "precision" and question.turns and at_least and calls and calls < left:
            return self._precise(question, at_least, calls)
        if name == "accuracy":
            drawn = question.labeled()
        elif at_least is None:
            size = self._lowest(question)
            # the number of rows does not depend on the answers, as the proof requires
            drawn = self.rng.choice(question.open(), size, replace=False)
        else:
            drawn = self._draw(question, self._size(question, at_least), at_least)
        sample, rows = question.ask(drawn)
        if at_least is None:
            at_least, kept = sample.best(question.delta), len(rows)
            if not at_least:
                raise CalibrationError(question.nothing(sample))
        else:
            kept = sample.kept(at_least, question.delta)
            if name == "accuracy" and kept < 0:
                raise CalibrationError(question.teacher_short(sample, at_least))
            self._defer(question, sample, rows, kept, at_least)
        question.learn(sample, rows)
        if name == "accuracy":  # the student answers the kept rows, as they were judged
            self.known &= question.key <= question.cut(rows, kept)
        return self._certificate(question, at_least, len(rows), sample.observed(kept))

    def _certificate(
        self, question: Question, at_least: float, sampled: int, observed: float
    ) -> BatchCertificate:
        left = question.key[question.deferrable & ~self.known & ~self.turned]
        return BatchCertificate(
            question.name,
            at_least,
            question.delta,
            self.n,
            sampled,
            float(left.min()) if len(left) else math.inf,
            observed,
            self.run.title if question.name in LABELS else None,
            None if question.boxes is None else int(question.boxes),
            self.paid.attempt,
            self.paid.spent,
        )

    def _precise(self, question: Question, at_least: float, calls: int) -> BatchCertificate:
        """Promise a precision within a budget: a pilot chooses the threshold, the rest test it.

        The rest of the rows below the threshold are turned: answered other than positive.
        """
        pilot = question.pilot(at_least, calls)
        tried, rows = question.ask(self.rng.choice(question.open(), pilot, replace=False))
        how = at_least, question.delta
        cut = promising_cut(
            question.key[question.open()], question.key[rows], tried.bad, *how, calls - pilot
        )
        above = np.flatnonzero(question.pool & ~self.known & (question.key > cut))
        drawn = self.rng.choice(above, min(calls - pilot, len(above)), replace=False)
        right = question.known()
        sample, _ = question.ask(drawn)
        bad = int(sample.bad.sum())
        found = {"bad": bad, "drawn": len(drawn), "population": len(above), "known": right}
        if not shows_precision(*how, **found):
            raise CalibrationError(question.not_shown(at_least, **found))
        more = np.flatnonzero(question.pool & ~self.known & (question.key <= cut))
        self._turn(question, more)
        observed = 1 - bad / max(len(drawn), 1)
        return self._certificate(question, at_least, pilot + len(drawn), observed)

    def _turn(self, question: Question, rows: np.ndarray) -> None:
        """Spend the budget on the rows next to the threshold, and turn the rest of `rows`."""
        if len(rows):
            self.ask(np.sort(question.nearest(rows)[: question.calls]))
            self.turned[rows[~self.known[rows]]] = True

    def _draw(self, question: Question, size: int, at_least: float) -> np.ndarray:
        """Draw `size` rows in random order; for recall as many as needed, up to 4 times that."""
        if question.name != "recall" or question.boxes is not None:
            return self.rng.choice(question.open(), size, replace=False)
        enough = question.plan().likely_counted(size).max()
        most = min(4 * size, question.most)
        order, done = self.rng.permutation(question.open())[:most], 0
        while done < most:
            done = min(done + max(size // 8, 1), most)
            # sorted: data are read forward, and which rows are asked does not change
            self.paid.ask(self.numbers[np.sort(order[:done])])
            if self.run.is_positive(self.taught(order[:done])).sum() >= enough:
                break
        return order[:done]

    def _lowest(self, question: Question) -> int:
        """Defer the lowest scores that the budget allows; return how many rows to sample."""
        calls = self.run.wanted.teacher_calls
        assert calls is not None
        rows = np.flatnonzero(question.deferrable & ~self.known)
        rows = rows[np.argsort(question.key[rows], kind="stable")]
        never = int((question.key[rows] == -math.inf).sum())  # deferred at every threshold
        first = max(never, question.plan().split(calls))
        if first >= calls:
            raise CalibrationError(
                f"teacher_calls is {calls} (--teacher-calls), but the teacher must answer {never} "
                "rows that have no score: give more calls"
            )
        self.ask(np.sort(rows[:first]))
        return min(calls - first, len(question.open()))

    def _size(self, question: Question, at_least: float) -> int:
        """Return how many rows to sample for a promise; CalibrationError if no number works."""
        plan, most = question.plan(), question.most
        size = plan.sample_size(at_least, question.calls)
        if size is None and plan.deferrable < most:
            return 1  # no sample is evidence, so every deferrable row is asked about
        if size is None or size > most:
            raise CalibrationError(question.too_few(at_least, most))
        return size

    def _defer(
        self, question: Question, sample: Sample, rows: np.ndarray, kept: int, at_least: float
    ) -> None:
        """Ask the teacher about the rows below the threshold, if the budget allows it."""
        more = question.below(rows, kept)
        if question.turns and question.name == "recall" and kept >= 0:
            self._turn(question, more)
            return
        if len(more) > question.most:
            raise CalibrationError(question.refusal(sample, rows, at_least, len(more)))
        self.ask(more)


class Question:
    """One promise about one batch: which rows are drawn, deferred, and bad."""

    def __init__(self, batch: PromisedBatch, name: str) -> None:
        self.batch, self.name, self.boxes = batch, name, None
        self.delta = batch.run.wanted.share_of_delta
        self.pool = self.deferrable = np.ones(batch.n, bool)
        self.counted = 1.0
        if batch.kind.targets_are == "boxes":
            shown = batch.kind.count_boxes(batch.said, batch.said, batch.run.positive)[0]
            self.boxes = max(float(shown.max()), 1.0)
            # a quarter, because bets need larger samples
            self.counted = max(float(shown.mean()) / self.boxes / 4, 0.02)
        elif name in LABELS:
            positive = batch.run.is_positive(batch.said)
            if name == "precision":
                self.pool = self.deferrable = positive
            else:
                self.deferrable, self.counted = ~positive, max(positive.mean(), 1 / batch.n)
        self.key = np.where(self.deferrable, deferral_key(batch.score), math.inf)

    @property
    def calls(self) -> int | None:
        """How many more rows the teacher may be asked about; None without a budget."""
        calls = self.batch.run.wanted.teacher_calls
        return None if calls is None else calls - int(self.batch.known.sum()) + self.batch.before

    @property
    def most(self) -> int:
        """The same; without a budget, what `MOST_UNASKED` leaves."""
        if self.calls is not None:
            return self.calls
        return int(MOST_UNASKED * self.batch.n) - int(self.batch.known.sum())

    @property
    def turns(self) -> bool:
        """Whether answers may be turned."""
        return self.batch.run.wanted.turns and self.boxes is None

    def open(self) -> np.ndarray:
        """Return the rows that may be drawn; for accuracy, labels cover known rows as well."""
        known = self.batch.known & (self.name != "accuracy")
        return np.flatnonzero(self.pool & ~known)

    def plan(self) -> Plan:
        """Return what the size of the sample depends on."""
        deferrable = int((self.deferrable & ~self.batch.known).sum())
        belief = self.batch.run.beliefs.get(self.name, usual_pairs())
        promise, population = self.name if self.boxes is None else "boxes", len(self.open())
        known, share = self.known(), self.counted
        return Plan(promise, self.delta, population, deferrable, share, known, belief)

    def known(self) -> int:
        """Return how many counted rows the teacher has answered, which are right in any case."""
        if self.boxes is not None or self.name == "accuracy":
            return 0
        rows = np.flatnonzero(self.batch.known)
        if self.name not in LABELS:
            return len(rows)
        return int(self.batch.run.is_positive(self.batch.taught(rows)).sum())

    def labeled(self) -> np.ndarray:
        """Return the rows that have labels, and keep these labels in `right`."""
        batch, targets = self.batch, self.batch.run.targets or {}
        keys: Sequence[Any] = batch.numbers.tolist()
        keys = batch.names if any(isinstance(key, str) for key in targets) else keys
        rows = [row for row, key in enumerate(keys) if key in targets]
        if len(rows) < len(targets) or not rows:
            strange = next((key for key in targets if key not in {*keys}), "none")
            raise ValueError(
                f"targets must be labels of some of the {batch.n} rows, by number or name "
                f"(--labels), but {strange} is not one of them"
            )
        self.right = {row: targets[keys[row]] for row in rows}
        classes = range(batch.paid.form.shape[1])
        for row, label in self.right.items():
            if label not in classes:
                raise ValueError(
                    f"targets must be labels from 0 to {classes[-1]} (--labels), not {label!r} for "
                    f"row {keys[row]}"
                )
        return np.array(rows)

    def ask(self, drawn: np.ndarray) -> tuple[Sample, np.ndarray]:
        """Ask about drawn rows; return the sample they make, and these rows by score."""
        known, population = self.known(), len(self.open())
        by_score = np.argsort(-self.key[drawn], kind="stable")
        rows = drawn[by_score]
        self.batch.ask(np.sort(drawn))
        self.batch.sampled[drawn] = True
        how: dict[str, Any] = {"population": population, "known": known, **self._judged(rows)}
        return Sample(self.name, **how, order=np.argsort(by_score)), rows

    def _judged(self, rows: np.ndarray) -> dict[str, Any]:
        """Return which rows are bad if the student answers, and which count."""
        batch, run = self.batch, self.batch.run
        said, taught = [batch.said[row] for row in rows], batch.taught(rows)
        if self.boxes is not None:
            found, real, hits = batch.kind.count_boxes(said, taught, run.positive)
            about = found if self.name == "precision" else real
            how = {"deferred_counted": real, "boxes": self.boxes}
            return {"bad": about - hits, "counted": about, **how}
        if self.name in LABELS:
            one, other = run.is_positive(said), run.is_positive(taught)
            if self.name == "precision":
                return {"bad": one & ~other, "counted": one & other}
            return {"bad": ~one & other, "counted": other}
        one, other = np.stack(said), np.stack(taught)
        if self.name == "accuracy":
            right = np.array([self.right[row] for row in rows.tolist()])
            wrong = {"bad": one != right, "deferred_bad": other != right}
            return {**wrong, "counted": np.ones(len(rows), bool)}
        same = (one == other).reshape(len(rows), -1).all(axis=1)
        return {"bad": ~same, "counted": np.ones(len(rows), bool)}

    def cut(self, rows: np.ndarray, kept: int) -> float:
        """Return the highest key that is deferred if this many sampled rows are kept."""
        if kept < 0:
            return math.inf
        return -math.inf if kept == len(rows) else float(self.key[rows[kept]])

    def below(self, rows: np.ndarray, kept: int) -> np.ndarray:
        """Return the rows deferred at that cut that the teacher has not answered yet."""
        deferred = self.key <= self.cut(rows, kept)
        return np.flatnonzero(self.deferrable & ~self.batch.known & deferred)

    def pilot(self, at_least: float, calls: int) -> int:
        """Return how many of `calls` choose the threshold of a precision; the rest test it.

        Raises CalibrationError if all of them together are not enough evidence.
        """
        how = {"bad": 0, "population": len(self.open()), "known": 0}
        spare = [
            calls - n
            for n in range(calls // 2, calls + 1)
            if shows_precision(at_least, self.delta, drawn=n, **how)
        ]
        if not spare:
            raise CalibrationError(self.too_few(at_least, calls))
        return min(calls // 4, spare[0])

    def nearest(self, more: np.ndarray) -> np.ndarray:
        """Return the rows that may be asked about beyond a threshold, the nearest first.

        These are `more`, and rows that the student answers the other way.
        """
        batch = self.batch
        rows = np.append(more, np.flatnonzero(~self.deferrable & ~batch.known))
        surely = np.where(self.deferrable, batch.score, -batch.score)[rows]
        return rows[np.argsort(-surely, kind="stable")]

    def learn(self, sample: Sample, rows: np.ndarray) -> None:
        """Keep what the sample shows for the next batch."""
        if self.name in ("agreement", "precision") and self.boxes is None:
            rank = np.empty(self.batch.n)
            rank[np.argsort(self.key, kind="stable")] = np.arange(self.batch.n)
            place = rank[rows] / max(int(self.deferrable.sum()), 1)
            self.batch.run.beliefs[self.name] = usual_pairs().seen(place, sample.bad.astype(bool))

    def too_few(self, at_least: float, most: int) -> str:
        """Explain that no sample of this size is enough, what would be, and what is possible."""
        plan, calls = self.plan(), self.calls
        least = plan.least_sample(at_least)
        needs = f"a sample of about {least}" if least and least > most else "nearly all"
        left = "" if calls is None else f", and {calls:,} teacher calls are left"
        return (
            f"{self.asked_for(at_least)} needs {needs} of {self.batch.n:,} rows{left}: give more "
            f"(--teacher-calls), or promise less; {most:,} calls can promise about "
            f"{plan.most(most):.3g} at most"
        )

    def not_shown(self, at_least: float, **found: int) -> str:
        """Explain why a precision is not shown above its threshold, and what would be."""
        low = bisect(lambda one: shows_precision(1 - one, self.delta, **found), 0.0, 1.0, 1e-3)
        return (
            f"{self.asked_for(at_least)} is not shown: {found['bad']} of {found['drawn']:,} rows "
            f"drawn above the threshold are bad, enough for about {1 - low:.3g}; give more "
            "(--teacher-calls), or promise less"
        )

    def teacher_short(self, sample: Sample, at_least: float) -> str:
        """Explain that not even the teacher alone shows an accuracy."""
        assert sample.deferred_bad is not None
        best = bisect(lambda one: bool(sample.passed(1 - one, self.delta)[0]), 0.0, 1.0, 1e-3)
        return (
            f"{self.asked_for(at_least)} is not shown even if the teacher answers all rows: it is "
            f"wrong in {int(sample.deferred_bad.sum())} of {len(sample.bad)} labeled rows, enough "
            f"for about {1 - best:.3g}; promise less, or label more rows"
        )

    def nothing(self, sample: Sample) -> str:
        """Explain why a sample certifies nothing."""
        if not sample.counted.any():
            return self._absent(sample)
        return (
            f"{len(sample.bad)} sampled rows, {int(sample.bad.sum())} of them bad, certify no "
            f"{self.name} at delta {self.delta:g}: give more teacher_calls (--teacher-calls)"
        )

    def _absent(self, sample: Sample) -> str:
        return (
            f"the sample of {len(sample.bad)} rows has none of class {self.batch.run.title}, so "
            f"its {self.name} cannot be judged: give more teacher_calls (--teacher-calls)"
        )

    def asked_for(self, at_least: float) -> str:
        """Return the promise in words."""
        return f"{self.name} of at least {at_least:g} at delta {self.delta:g}"

    def refusal(self, sample: Sample, rows: np.ndarray, at_least: float, more: int) -> str:
        """Explain why a promise cannot be kept, what it needs, and what is possible."""
        if self.name in LABELS and not sample.counted.any():
            return self._absent(sample)
        calls = self.calls
        allowed = more - 1 if calls is None else calls

        def fits(missing: float) -> bool:
            return len(self.below(rows, sample.kept(1 - missing, self.delta))) <= allowed

        best = bisect(fits, 0.0, 1.0, 1e-3)
        spent = int(self.batch.known.sum()) - self.batch.before
        given = "" if calls is None else f", and teacher_calls is {spent + calls:,}"
        return (
            f"{self.asked_for(at_least)} needs {spent + more:,} teacher calls for "
            f"{self.batch.n:,} rows{given}: give more (--teacher-calls), or promise less; with "
            f"this sample {spent + allowed:,} calls are enough for about {max(1 - best, 0):.3g}"
        )
