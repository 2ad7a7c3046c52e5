"""One batch: rows are drawn and asked about, a threshold is found, and all are answered."""

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
"""Without a budget a promise that takes a larger share of the rows is refused: it saves little."""


class PromisedBatch:
    """One batch: what the student says of it, and what the teacher has said so far."""

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
        self.before = 0  # rows that were paid for before

    def _stream(self) -> np.random.Generator:
        """Another one than ``default_rng(seed)``, by which the rows may have been shuffled."""
        return np.random.default_rng([self.run.seed, 0xB0D6E7, self.paid.attempt, self.start])

    def take_up(self, keep: Journal) -> None:
        """Go on from what a journal holds: it is known, or of this very draw."""
        run, before = self.run, self.run.paid
        if before and before.keep is keep and before.rows.inputs is self.paid.rows.inputs:
            self.paid = before.of(self.paid)  # a window before has read the journal
        else:
            own = {"score": str(run.joint.router.score), "seed": run.seed, "window": run.window}
            self.paid.take_up(keep, {**run.wanted.as_dict(), **own}, run.about)
            paid = run.paid = self.paid
            if paid.spent + (run.wanted.delta or 0.0) >= 1:
                raise CalibrationError(
                    f"{paid.attempt} other promises were tried on these rows, and their deltas add "
                    f"up to {paid.spent:g}: with that of this one (--delta) no probability is left "
                    "to promise anything with"
                )
        self.known |= np.isin(self.numbers, self.paid.earlier)
        self.before = int(self.known.sum())
        self.rng = self._stream()

    def ask(self, rows: np.ndarray) -> None:
        """Ask the teacher about rows by their places here, which are known from then on."""
        self.paid.ask(self.numbers[rows])
        self.known[rows] = True

    def taught(self, rows: np.ndarray) -> list[Any]:
        """What the teacher says of known rows."""
        return [self.paid.said[row] for row in self.numbers[rows].tolist()]

    def answers(self, certificates: tuple[BatchCertificate, ...]) -> PromisedAnswers:
        """What is answered: known rows as the teacher answers them, the others by the student."""
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
        """Ask the teacher what one promise takes, and say what is promised."""
        question = Question(self, name)
        left, calls = len(question.open()), question.calls
        if not left:  # as of the precision of a class that the student never answers
            return self._certificate(question, at_least or 1.0, 0, 1.0)
        if name == "precision" and question.turns and at_least and calls and calls < left:
            return self._precise(question, at_least, calls)
        if name == "accuracy":
            drawn = question.labeled()
        elif at_least is None:
            size = self._lowest(question)
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
        if name == "accuracy":  # what is kept is answered as it was judged
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
        """Precision within a budget: some calls choose the threshold, and the others are its test.

        What is left below it is turned: other rows than the positive ones are then answered so.
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
        """Turn what is left of rows once the budget is spent on those next to the threshold."""
        if len(rows):
            self.ask(np.sort(question.nearest(rows)[: question.calls]))
            self.turned[rows[~self.known[rows]]] = True

    def _draw(self, question: Question, size: int, at_least: float) -> np.ndarray:
        """Rows in random order: `size` of them, or of recall as many as it takes, up to 4 times."""
        if question.name != "recall" or question.boxes is not None:
            return self.rng.choice(question.open(), size, replace=False)
        enough = question.plan().likely_counted(size).max()
        most = min(4 * size, question.most)
        order, done = self.rng.permutation(question.open())[:most], 0
        while done < most:
            done = min(done + max(size // 8, 1), most)
            self.paid.ask(self.numbers[np.sort(order[:done])])
            if self.run.is_positive(self.taught(order[:done])).sum() >= enough:
                break
        return order[:done]

    def _lowest(self, question: Question) -> int:
        """Defer the lowest scores that the budget is for; how many rows are left to sample."""
        calls = self.run.wanted.teacher_calls
        assert calls is not None
        rows = np.flatnonzero(question.deferrable & ~self.known)
        rows = rows[np.argsort(question.key[rows], kind="stable")]
        never = int((question.key[rows] == -math.inf).sum())  # kept at no threshold
        first = max(never, question.plan().split(calls))
        if first >= calls:
            raise CalibrationError(
                f"teacher_calls is {calls} (--teacher-calls), and {never} rows have no score, so "
                "that the teacher must answer them: give more"
            )
        self.ask(np.sort(rows[:first]))
        return min(calls - first, len(question.open()))

    def _size(self, question: Question, at_least: float) -> int:
        """How many rows to sample for a promise; CalibrationError: no number will do."""
        plan, most = question.plan(), question.most
        size = plan.sample_size(at_least, question.calls)
        if size is None and plan.deferrable < most:
            return 1  # no sample is evidence, and all that may be deferred are asked about
        if size is None or size > most:
            raise CalibrationError(question.too_few(at_least, most))
        return size

    def _defer(
        self, question: Question, sample: Sample, rows: np.ndarray, kept: int, at_least: float
    ) -> None:
        """Have the teacher answer what is below the threshold, if it may be asked so much."""
        more = question.below(rows, kept)
        if question.turns and question.name == "recall" and kept >= 0:
            self._turn(question, more)
            return
        if len(more) > question.most:
            raise CalibrationError(question.refusal(sample, rows, at_least, len(more)))
        self.ask(more)


class Question:
    """One promise about one batch: which rows are drawn, which are deferred, and which are bad."""

    def __init__(self, batch: PromisedBatch, name: str) -> None:
        self.batch, self.name, self.boxes = batch, name, None
        self.delta = batch.run.wanted.share_of_delta
        self.pool = self.deferrable = np.ones(batch.n, bool)
        self.counted = 1.0
        if batch.kind.targets_are == "boxes":
            shown = batch.kind.count_boxes(batch.said, batch.said, batch.run.positive)[0]
            self.boxes = max(float(shown.max()), 1.0)
            self.counted = max(float(shown.mean()) / self.boxes / 4, 0.02)  # bets take more
        elif name in LABELS:
            positive = batch.run.is_positive(batch.said)
            if name == "precision":
                self.pool = self.deferrable = positive
            else:
                self.deferrable, self.counted = ~positive, max(positive.mean(), 1 / batch.n)
        self.key = np.where(self.deferrable, deferral_key(batch.score), math.inf)

    @property
    def calls(self) -> int | None:
        """How many rows more the teacher may be asked about."""
        calls = self.batch.run.wanted.teacher_calls
        return None if calls is None else calls - int(self.batch.known.sum()) + self.batch.before

    @property
    def most(self) -> int:
        """The same; without a budget what `MOST_UNASKED` leaves."""
        if self.calls is not None:
            return self.calls
        return int(MOST_UNASKED * self.batch.n) - int(self.batch.known.sum())

    @property
    def turns(self) -> bool:
        """Whether answers may be turned."""
        return self.batch.run.wanted.turns and self.boxes is None

    def open(self) -> np.ndarray:
        """The rows that may be drawn, or might have been: labels are of known rows as well."""
        known = self.batch.known & (self.name != "accuracy")
        return np.flatnonzero(self.pool & ~known)

    def plan(self) -> Plan:
        """What the size of a sample is chosen by."""
        deferrable = int((self.deferrable & ~self.batch.known).sum())
        belief = self.batch.run.beliefs.get(self.name, usual_pairs())
        promise, population = self.name if self.boxes is None else "boxes", len(self.open())
        known, share = self.known(), self.counted
        return Plan(promise, self.delta, population, deferrable, share, known, belief)

    def known(self) -> int:
        """How many counted rows are right whatever the threshold: the teacher answers them."""
        if self.boxes is not None or self.name == "accuracy":
            return 0
        rows = np.flatnonzero(self.batch.known)
        if self.name not in LABELS:
            return len(rows)
        return int(self.batch.run.is_positive(self.batch.taught(rows)).sum())

    def labeled(self) -> np.ndarray:
        """The rows that have labels; `right` are these labels."""
        batch, targets = self.batch, self.batch.run.targets or {}
        keys: Sequence[Any] = batch.numbers.tolist()
        keys = batch.names if any(isinstance(key, str) for key in targets) else keys
        rows = [row for row, key in enumerate(keys) if key in targets]
        if len(rows) < len(targets) or not rows:
            strange = next((key for key in targets if key not in {*keys}), "none")
            raise ValueError(
                f"targets are labels of some of the {batch.n} rows, each by its number or its name "
                f"(--labels), but {strange} is none of these"
            )
        self.right = {row: targets[keys[row]] for row in rows}
        classes = range(batch.paid.form.shape[1])
        for row, label in self.right.items():
            if label not in classes:
                raise ValueError(
                    f"targets must be labels from 0 to {classes[-1]} (--labels), not {label!r}, as "
                    f"of row {keys[row]}"
                )
        return np.array(rows)

    def ask(self, drawn: np.ndarray) -> tuple[Sample, np.ndarray]:
        """The sample that rows make, in the order in which they were drawn; and they, by score."""
        known, population = self.known(), len(self.open())
        by_score = np.argsort(-self.key[drawn], kind="stable")
        rows = drawn[by_score]
        self.batch.ask(np.sort(drawn))
        self.batch.sampled[drawn] = True
        how: dict[str, Any] = {"population": population, "known": known, **self._judged(rows)}
        return Sample(self.name, **how, order=np.argsort(by_score)), rows

    def _judged(self, rows: np.ndarray) -> dict[str, Any]:
        """Which rows are bad if the student answers, and which count."""
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
        """The highest key that is deferred where so many of the sampled rows are kept."""
        if kept < 0:
            return math.inf
        return -math.inf if kept == len(rows) else float(self.key[rows[kept]])

    def below(self, rows: np.ndarray, kept: int) -> np.ndarray:
        """The rows that are deferred there and that the teacher has not answered yet."""
        deferred = self.key <= self.cut(rows, kept)
        return np.flatnonzero(self.deferrable & ~self.batch.known & deferred)

    def pilot(self, at_least: float, calls: int) -> int:
        """How many of `calls` are to choose the threshold of a precision, the rest being its test.

        CalibrationError: they are no evidence.
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
        """The rows that may be asked about beyond a threshold, the nearest to it first.

        Those are `more`, and rows that the student answers the other way.
        """
        batch = self.batch
        rows = np.append(more, np.flatnonzero(~self.deferrable & ~batch.known))
        surely = np.where(self.deferrable, batch.score, -batch.score)[rows]
        return rows[np.argsort(-surely, kind="stable")]

    def learn(self, sample: Sample, rows: np.ndarray) -> None:
        """Keep what the sample tells of the next batch."""
        if self.name in ("agreement", "precision") and self.boxes is None:
            rank = np.empty(self.batch.n)
            rank[np.argsort(self.key, kind="stable")] = np.arange(self.batch.n)
            place = rank[rows] / max(int(self.deferrable.sum()), 1)
            self.batch.run.beliefs[self.name] = usual_pairs().seen(place, sample.bad.astype(bool))

    def too_few(self, at_least: float, most: int) -> str:
        """Why no sample of that size is evidence: what it would take, and what can be had."""
        plan, calls = self.plan(), self.calls
        least = plan.least_sample(at_least)
        needs = f"a sample of about {least}" if least and least > most else "nearly all"
        left = "" if calls is None else f", and {calls:,} teacher calls are left"
        return (
            f"{self.asked_for(at_least)} takes {needs} of {self.batch.n:,} rows{left}: give more "
            f"(--teacher-calls), or promise less; on {most:,} calls the most that can be promised "
            f"is about {plan.most(most):.3g}"
        )

    def not_shown(self, at_least: float, **found: int) -> str:
        """Why a precision is not shown above the threshold that was chosen for it."""
        low = bisect(lambda one: shows_precision(1 - one, self.delta, **found), 0.0, 1.0, 1e-3)
        return (
            f"{self.asked_for(at_least)} is not shown: {found['bad']} of {found['drawn']:,} rows "
            f"drawn above the threshold are bad, which would do for about {1 - low:.3g}; give more "
            "(--teacher-calls), or promise less"
        )

    def teacher_short(self, sample: Sample, at_least: float) -> str:
        """Why an accuracy is not shown even of the teacher alone."""
        assert sample.deferred_bad is not None
        best = bisect(lambda one: bool(sample.passed(1 - one, self.delta)[0]), 0.0, 1.0, 1e-3)
        return (
            f"{self.asked_for(at_least)} is not shown even where the teacher answers all rows: it "
            f"is wrong in {int(sample.deferred_bad.sum())} of {len(sample.bad)} labeled rows, "
            f"which would do for about {1 - best:.3g}; promise less, or label more rows"
        )

    def nothing(self, sample: Sample) -> str:
        """Why a sample certifies nothing at all."""
        if not sample.counted.any():
            return self._absent(sample)
        return (
            f"{len(sample.bad)} sampled rows, {int(sample.bad.sum())} of them bad, certify no "
            f"{self.name} at delta {self.delta:g}: give more teacher_calls (--teacher-calls)"
        )

    def _absent(self, sample: Sample) -> str:
        return (
            f"the sample of {len(sample.bad)} rows holds none of class {self.batch.run.title}, so "
            f"that its {self.name} cannot be judged: give more teacher_calls (--teacher-calls)"
        )

    def asked_for(self, at_least: float) -> str:
        """The promise in words."""
        return f"{self.name} of at least {at_least:g} at delta {self.delta:g}"

    def refusal(self, sample: Sample, rows: np.ndarray, at_least: float, more: int) -> str:
        """Why a promise is not kept: what it would take, and what can be had."""
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
            f"{self.asked_for(at_least)} takes {spent + more:,} teacher calls for "
            f"{self.batch.n:,} rows{given}: give more (--teacher-calls), or promise less; on this "
            f"sample {spent + allowed:,} calls would do for about {max(1 - best, 0):.3g}"
        )
