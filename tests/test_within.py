"""A promise about this very data: kept, cheap, and never paid for twice."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from tiny import SIZE, write_images, write_pair

import ebjr
from ebjr import (
    CalibrationError,
    Detections,
    JointClassifier,
    RecordingNote,
    Router,
    TeacherUnavailable,
)
from ebjr.data.open import open_data
from ebjr.journal import Journal
from ebjr.model import Answer
from ebjr.predict import predict_within
from ebjr.stats import clopper_pearson
from ebjr.within import PromisedRun, Wanted, answer_within


class Pair:
    """A student that is less often wrong as its score rises, and a teacher, both of row numbers."""

    def __init__(self, n=2000, rate=0.12, steep=4.0, positive=0.4, classes=2, seed=0):
        rng = np.random.default_rng(seed)
        self.n, self.asked = n, []
        share = np.full(classes, (1 - positive) / (classes - 1))
        share[1] = positive
        self.truth = rng.choice(classes, n, p=share)
        place = rng.random(n)
        wrong = rng.random(n) < rate * steep * np.exp(-steep * place)
        said = np.where(wrong, (self.truth + rng.integers(1, classes, n)) % classes, self.truth)
        self.logits = 0.5 + 8 * place[:, None] * np.eye(classes)[said]

    def student(self, rows):
        return self.logits[rows]

    def teacher(self, rows):
        self.asked += list(rows)
        return 10.0 * np.eye(self.logits.shape[1])[self.truth[rows]]

    def answer(self, **how):
        how = {"delta": 0.1, "batch_size": self.n, **how}
        return answer_within(self.student, self.teacher, np.arange(self.n), **how)

    def share(self, answers, promise, positive=1):
        right, said = answers.prediction == self.truth, answers.prediction == positive
        if promise == "agreement":
            return right.mean()
        of = said if promise == "precision" else self.truth == positive
        return (said & (self.truth == positive)).sum() / max(of.sum(), 1)


@pytest.mark.parametrize(
    ("promise", "at_least", "calls", "rate"),
    [
        ("agreement", 0.95, None, 0.12),
        ("agreement", None, 400, 0.12),
        ("precision", 0.9, None, 0.12),
        ("precision", 0.9, 150, 0.2),
        ("precision", None, 200, 0.12),
        ("recall", 0.9, None, 0.2),
        ("recall", 0.9, 300, 0.2),
        ("recall", None, 300, 0.2),
    ],
)
def test_a_promise_is_broken_in_at_most_delta_of_many_draws(promise, at_least, calls, rate):
    pair, runs = Pair(rate=rate), 250
    about = {} if promise == "agreement" else {"positive": 1}
    broken = refused = 0
    for seed in range(runs):
        how = {"promise": promise, "at_least": at_least, "teacher_calls": calls, "seed": seed}
        try:
            answers = pair.answer(**how, **about)
        except CalibrationError:
            refused += 1
            continue
        (certificate,) = answers.certificates
        broken += pair.share(answers, promise) < certificate.at_least - 1e-9
        assert calls is None or answers.teacher_calls <= calls
    assert clopper_pearson(broken, runs, 0.002)[0] <= 0.1
    assert refused < 0.1 * runs


def test_both_promises_share_delta_and_both_are_kept():
    pair = Pair(n=4000)
    found = pair.answer(promise={"precision": 0.9, "recall": 0.9}, positive=np.int64(1))
    assert [each.delta for each in found.certificates] == [0.05, 0.05]
    assert pair.share(found, "precision") >= 0.9
    assert pair.share(found, "recall") >= 0.9
    assert found.teacher_calls < 0.7 * pair.n


def test_the_teacher_is_asked_about_each_row_once_and_about_few():
    pair = Pair(n=5000, rate=0.05, steep=6)
    found = pair.answer(at_least=0.97)
    assert sorted(pair.asked) == np.flatnonzero(found.deferred).tolist()
    others = [
        Pair(n=5000, rate=0.05, steep=6).answer(at_least=0.97, seed=seed) for seed in range(9)
    ]
    assert np.median([other.teacher_calls for other in others]) < 0.4 * pair.n
    assert (found.prediction[found.deferred] == pair.truth[found.deferred]).all()
    assert found.sampled.sum() == found.certificates[0].sampled
    assert not (found.sampled & ~found.deferred).any()
    kept = found.score[~found.deferred]
    assert kept.min() == found.certificates[0].threshold
    assert found.stage.tolist() == found.deferred.astype(int).tolist()


def test_a_seed_draws_the_same_sample_again():
    one, other = (Pair().answer(at_least=0.95, seed=4) for _ in range(2))
    assert (one.deferred == other.deferred).all()


def test_a_budget_alone_says_what_it_can_promise():
    small, large = (
        Pair().answer(teacher_calls=calls).certificates[0].at_least for calls in (100, 800)
    )
    assert 0.7 < small < large < 1


def test_a_budget_that_is_too_small_is_refused_before_anything_is_paid_for():
    pair = Pair()
    with pytest.raises(
        CalibrationError, match=r"needs a sample of about \d+ of 2,000 rows, and 20"
    ):
        pair.answer(at_least=0.97, teacher_calls=20)
    assert not pair.asked


def test_a_budget_that_turns_out_too_small_says_what_it_takes():
    pair = Pair(rate=0.3, steep=1.5)
    words = r"needs [\d,]+ teacher calls for 2,000 rows, and teacher_calls is 150.*are enough for"
    with pytest.raises(CalibrationError, match=words):
        pair.answer(at_least=0.9, teacher_calls=150)
    assert len(pair.asked) <= 150


def test_a_promise_that_only_the_teacher_alone_keeps_is_no_surprise_on_the_bill():
    pair = Pair(n=300, rate=1.0, steep=1.0)
    with pytest.raises(CalibrationError, match=r"needs \d+ teacher calls for 300 rows: give more"):
        pair.answer(at_least=0.98)
    assert len(pair.asked) < 200
    assert pair.answer(at_least=0.98, teacher_calls=300).teacher_calls > 270


def test_a_class_that_the_sample_does_not_hold_is_named():
    pair = Pair(positive=0.0, rate=0.0)
    with pytest.raises(CalibrationError, match="has none of class 1"):
        pair.answer(promise="recall", positive=1, teacher_calls=100)


def test_where_no_sample_is_evidence_all_that_could_be_wrong_is_asked():
    pair = Pair(n=1000, positive=0.005, rate=0.01)
    said = int((pair.logits.argmax(axis=1) == 1).sum())
    assert said < 25
    found = pair.answer(promise="precision", at_least=0.9, positive=1)
    assert found.teacher_calls == said
    assert pair.share(found, "precision") == 1
    none = Pair(n=1000, positive=0.0, rate=0.0)
    assert none.answer(promise="precision", at_least=0.9, positive=1).teacher_calls == 0


def test_answers_are_turned_only_where_a_budget_does_not_reach():
    pair = Pair(n=4000, rate=0.2, classes=4, positive=0.25)
    found = pair.answer(promise="precision", at_least=0.9, positive=1, teacher_calls=200)
    assert found.turned.any()
    assert not (found.turned & found.deferred).any()
    assert (found.prediction[found.turned] != 1).all()
    assert pair.share(found, "precision") >= 0.9
    free = pair.answer(promise="precision", at_least=0.9, positive=1)
    assert not free.turned.any()


def test_errors_of_the_highest_scores_break_no_precision_where_answers_are_turned():
    pair = Pair(n=3000)
    called = np.arange(3000) < 1200  # what the student calls positive, the highest score first
    pair.truth = called.astype(int)
    pair.truth[:200:2] = pair.truth[1000:1200] = 0
    place = np.linspace(1, 0, 3000)
    pair.logits = (1 + 5 * place)[:, None] * np.eye(2)[called.astype(int)]
    broken = kept = 0
    for seed in range(60):
        how = {"promise": "precision", "at_least": 0.9, "positive": 1, "teacher_calls": 200}
        try:
            found = pair.answer(**how, seed=seed)
        except CalibrationError as error:
            assert "rows drawn above the threshold are bad" in str(error)  # noqa: PT017
            continue
        broken += pair.share(found, "precision") < 0.9
        kept += 1
        assert found.teacher_calls <= 200
        alone = ~found.deferred & ~found.turned & called
        assert min(found.score[alone], default=np.inf) == found.certificates[0].threshold
    assert kept > 30
    assert clopper_pearson(broken, 60, 0.002)[0] <= 0.1


def test_an_accuracy_that_the_teacher_alone_is_not_shown_to_have_is_refused():
    pair = Pair(n=1000)
    wrong = np.random.default_rng(3).random(1000) < 0.2
    targets = {row: int(pair.truth[row] ^ wrong[row]) for row in range(0, 1000, 4)}
    words = r"not shown even if the teacher answers all rows: it is wrong in \d+ of 250 labeled"
    with pytest.raises(CalibrationError, match=words):
        pair.answer(promise="accuracy", at_least=0.95, targets=targets, teacher_calls=1000)
    assert len(pair.asked) == 250


def test_labeled_rows_that_are_kept_are_answered_as_they_were_judged(tmp_path):
    pair = Pair(n=1500)
    fine = pair.logits.max(axis=1) > 4  # here the student is right, and the teacher at times not
    pair.logits[fine] = (
        5.0 * np.eye(2)[1 - pair.truth[fine]] + 0.01 * np.arange(fine.sum())[:, None]
    )
    truth = np.where(fine, pair.logits.argmax(axis=1), pair.truth)
    rare = fine & (np.arange(1500) % 8 > 0)
    pair.truth[rare] = truth[rare]
    targets = {row: int(truth[row]) for row in range(0, 1500, 3)}
    how = {"promise": "accuracy", "at_least": 0.9, "targets": targets}
    with pytest.raises(CalibrationError), Journal(tmp_path / "answers") as keep:
        pair.answer(**{**how, "at_least": 0.999}, keep=keep)
    with Journal(tmp_path / "answers") as keep:
        found = pair.answer(**how, keep=keep)
    assert len(pair.asked) == len(set(pair.asked)) == found.teacher_calls
    kept = found.sampled & ~found.deferred
    assert kept.sum() > 50
    assert (found.prediction[kept] == pair.logits.argmax(axis=1)[kept]).all()
    alone = pair.answer(**how)
    assert (alone.deferred == found.deferred).all()  # an earlier try adds no evidence
    assert found.certificates[0].tried == 1


def test_accuracy_is_promised_on_a_labeled_sample():
    pair, runs, broken = Pair(n=1500), 120, 0
    for seed in range(runs):
        rows = np.random.default_rng(seed).choice(pair.n, 300, replace=False)
        targets = {int(row): int(pair.truth[row]) for row in rows}
        found = pair.answer(promise="accuracy", at_least=0.93, targets=targets)
        broken += (found.prediction == pair.truth).mean() < 0.93
    assert clopper_pearson(broken, runs, 0.002)[0] <= 0.1
    assert "labeled rows, if these are a uniform sample" in found.certificates[0].statement


def test_rows_without_a_score_are_always_deferred():
    pair = Pair()

    def score(output):
        top = output.max(axis=1)
        return np.where(top < 1, np.nan, top)

    for how in ({"at_least": 0.95}, {"teacher_calls": 700}):
        found = pair.answer(score=score, **how)
        assert found.deferred[np.isnan(found.score)].all()
    with pytest.raises(CalibrationError, match="rows that have no score"):
        pair.answer(score=lambda output: np.full(len(output), np.nan), teacher_calls=50)


def test_ties_are_deferred_together():
    pair = Pair()
    found = pair.answer(score=lambda output: np.round(output.max(axis=1)), at_least=0.95)
    kept = found.score[~found.deferred].min()
    others = found.deferred & ~found.sampled
    assert found.score[others].max() < kept


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"delta": None, "at_least": 0.9}, r"needs delta.*--delta 0.1"),
        ({"delta": 1.0, "at_least": 0.9}, "needs delta"),
        ({"promise": "f1", "at_least": 0.9}, "promise must be one of agreement"),
        ({"at_least": 1.5}, "above 0 and up to 1, not 1.5"),
        ({}, "say how much agreement to promise"),
        ({"promise": "recall", "at_least": 0.9}, "recall needs a class: give positive="),
        ({"promise": "recall", "at_least": 0.9, "positive": 7}, r"positive must lie in 0..1"),
        ({"promise": "recall", "at_least": 0.9, "positive": "cat"}, "no class has a name"),
        ({"at_least": 0.9, "positive": 1}, "positive is for precision and recall"),
        ({"promise": "accuracy", "at_least": 0.9}, "go together"),
        ({"promise": "accuracy", "targets": {1: 1}}, "say how much accuracy to promise"),
        ({"promise": "accuracy", "at_least": 0.9, "targets": {9999: 1}}, "9999 is not one of them"),
        (
            {"promise": "accuracy", "at_least": 0.9, "targets": {7: 2}},
            r"from 0 to 1.*not 2 for row 7",
        ),
        ({"promise": {"recall": 0.9, "agreement": 0.9}}, "every other promise alone"),
        (
            {"promise": {"recall": 0.9}, "at_least": 0.8, "positive": 1},
            "at_least goes with one promise",
        ),
        ({"at_least": 0.9, "batch_size": 0}, "batch_size must be at least 1"),
        ({"at_least": 0.9, "teacher_calls": 0}, "teacher_calls must be at least 1"),
        ({"at_least": 0.9, "task": "regression"}, "regression can promise nothing"),
        ({"at_least": 0.9, "task": "detection"}, "can promise only precision and recall of boxes"),
    ],
)
def test_what_cannot_be_promised_is_one_sentence(how, words):
    pair = Pair(n=200)
    with pytest.raises(ValueError, match=words):
        pair.answer(**how)
    assert not pair.asked


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        Pair(n=200).answer(at_least=0.9) and answer_within(
            lambda x: x, lambda x: x, np.zeros((0, 2)), at_least=0.9, delta=0.1
        )


class Failing:
    """A teacher that fails from the k-th row on, until it is mended."""

    def __init__(self, pair, rows):
        self.pair, self.left, self.__name__ = pair, rows, "failing"

    def __call__(self, rows):
        self.left -= len(rows)
        if self.left < 0:
            raise ConnectionError("out of order")
        return self.pair.teacher(rows)


def test_what_a_failing_teacher_said_is_kept_and_not_asked_again(tmp_path):
    pair = Pair()
    how = {"at_least": 0.95, "delta": 0.1, "batch_size": 16}
    teacher, path = Failing(pair, 100), tmp_path / "answers"
    with pytest.raises(TeacherUnavailable, match="out of order"), Journal(path) as keep:
        answer_within(pair.student, teacher, np.arange(pair.n), **how, keep=keep)
    paid = len(pair.asked)
    assert 0 < paid <= 100
    teacher.left = 10**6
    with Journal(path) as keep:
        found = answer_within(pair.student, teacher, np.arange(pair.n), **how, keep=keep)
        keep.remove()
    assert len(pair.asked) == len(set(pair.asked)) == found.teacher_calls
    alone = Pair().answer(**how)
    assert (alone.deferred == found.deferred).all()


def test_what_answers_cost_is_told_of_each_row_after_an_error_too(tmp_path):
    pair = Pair()
    failing, path = Failing(pair, 100), tmp_path / "answers"

    def student(rows):
        return Answer(pair.student(rows), spent=np.tile([3.0, 1.0, 0.5], (len(rows), 1)))

    def teacher(rows):
        return Answer(failing(rows), spent=np.tile([40.0, 1.0, 2.0], (len(rows), 1)))

    how = {"at_least": 0.95, "delta": 0.1, "batch_size": 16}
    with pytest.raises(TeacherUnavailable), Journal(path) as keep:
        answer_within(student, teacher, np.arange(pair.n), **how, keep=keep)
    failing.left = 10**6
    with Journal(path) as keep:
        found = answer_within(student, teacher, np.arange(pair.n), **how, keep=keep)
    wanted = np.where(found.deferred[:, None], [43.0, 2.0, 2.5], [3.0, 1.0, 0.5])
    np.testing.assert_array_equal(found.spent, wanted)
    assert pair.answer(**how).spent is None


def test_a_teacher_without_an_answer_to_one_row_is_no_agreement():
    pair = Pair()

    def teacher(rows):
        output = pair.teacher(rows)
        output[rows == min(rows)] = np.nan
        return output

    with pytest.raises(TeacherUnavailable, match=r"the teacher answered \d+ of \d+ rows, not row"):
        answer_within(pair.student, teacher, np.arange(pair.n), at_least=0.95, delta=0.1)


def test_another_promise_asks_about_nothing_twice_and_draws_anew(tmp_path):
    pair, runs, broken = Pair(n=1000, rate=0.2, steep=2), 100, 0
    for seed in range(runs):
        path = tmp_path / f"answers{seed}"
        pair.asked = []
        with pytest.raises(CalibrationError), Journal(path) as keep:
            pair.answer(at_least=0.97, teacher_calls=120, keep=keep, seed=seed)
        first = set(pair.asked)
        with Journal(path) as keep:
            found = pair.answer(teacher_calls=150, keep=keep, seed=seed)
            keep.remove()
        assert len(pair.asked) == len(set(pair.asked))
        assert found.deferred[sorted(first)].all()
        assert not found.sampled[sorted(first)].any()
        assert len(pair.asked) - len(first) <= 150
        broken += pair.share(found, "agreement") < found.certificates[0].at_least - 1e-9
    assert clopper_pearson(broken, runs, 0.002)[0] <= 0.1


def test_the_deltas_of_promises_that_were_tried_add_up(tmp_path):
    pair = Pair(n=1000, rate=0.2, steep=2)

    def answer(share, **more):
        with Journal(tmp_path / "answers") as keep:
            return pair.answer(at_least=share, keep=keep, **{"teacher_calls": 150, **more})

    for share in (0.97, 0.96, 0.96, 0.95):  # the same again is no other promise
        with pytest.raises(CalibrationError):
            answer(share)
    about = answer(0.8, teacher_calls=900, delta=0.2).certificates[0]
    assert (about.tried, about.delta) == (3, 0.2)
    assert about.statement.startswith("With probability at least 0.5 over the draw of ")
    assert "rows and of those of 3 promises tried before, at least 80 % of" in about.statement
    with pytest.raises(CalibrationError, match=r"4 other promises were tried.*sum to 0.5"):
        answer(0.7, delta=0.6)


def test_a_journal_of_other_rows_is_refused(tmp_path):
    pair = Pair()
    with pytest.raises(CalibrationError), Journal(tmp_path / "answers") as keep:
        pair.answer(at_least=0.97, teacher_calls=120, keep=keep)
    with pytest.raises(ValueError, match="changed since"), Journal(tmp_path / "answers") as keep:
        answer_within(pair.student, pair.teacher, np.arange(50), at_least=0.9, delta=0.1, keep=keep)


def test_a_joint_model_is_a_student_too():
    pair = Pair(n=3000, classes=3, positive=0.3)
    inner = JointClassifier(pair.student, pair.student, Router("max_logit", 6.0))
    found = answer_within(inner, pair.teacher, np.arange(3000), at_least=0.95, delta=0.1)
    assert set(found.stage.tolist()) == {0, 1, 2}
    assert (found.stage[found.deferred] == 2).all()


def test_each_window_has_a_promise_of_its_own():
    pair = Pair(n=2500, rate=0.05, steep=8)
    joint = JointClassifier(pair.student, pair.teacher, Router("max_logit", np.inf))
    run = PromisedRun(joint, Wanted("agreement", 0.95, 0.1), batch_size=300)
    found = list(run.windows(np.arange(2500), 1000))
    assert [len(each.prediction) for each in found] == [1000, 1000, 500]
    sizes = [each.certificates[0].rows for each in found]
    assert sizes == [1000, 1000, 500]
    asked = np.concatenate([each.deferred for each in found])
    assert sorted(pair.asked) == np.flatnonzero(asked).tolist()


def test_a_journal_is_read_once_for_all_windows_and_gone_on_with(tmp_path, monkeypatch):
    pair = Pair(n=4000, rate=0.05, steep=8)
    joint = JointClassifier(pair.student, pair.teacher, Router("max_logit", np.inf))
    inputs, wanted = np.arange(4000), Wanted("agreement", 0.9, 0.2)
    reads, read = [], Journal.records
    monkeypatch.setattr(Journal, "records", lambda self: reads.append(1) or read(self))
    with Journal(tmp_path / "answers") as keep:
        for number, one in enumerate(PromisedRun(joint, wanted).windows(inputs, 200, keep=keep)):
            assert not one.sampled.all()
            if number == 9:
                break
    halfway = len(pair.asked)
    with Journal(tmp_path / "answers") as keep:
        found = list(PromisedRun(joint, wanted).windows(inputs, 200, keep=keep))
    assert len(reads) == 2
    assert 0 < halfway < len(pair.asked) == len(set(pair.asked))
    alone = list(PromisedRun(joint, wanted).windows(inputs, 200))
    for one, other in zip(found, alone, strict=True):
        assert (one.deferred == other.deferred).all()
    with Journal(tmp_path / "answers") as keep:
        other = next(PromisedRun(joint, wanted).windows(inputs, 400, keep=keep))
    assert other.certificates[0].tried == 1  # with other windows it is another promise


def test_a_window_without_the_class_keeps_its_precision_and_one_that_cannot_is_named():
    pair = Pair(n=900, rate=0.05, steep=6)
    pair.truth[300:600] = pair.logits[300:600, 1] = 0
    joint = JointClassifier(pair.student, pair.teacher, Router("max_logit", np.inf))
    found = PromisedRun(joint, Wanted("precision", 0.8, 0.2, positive=1)).windows(
        np.arange(900), 300
    )
    about = [each.certificates[0] for each in found]
    assert about[1].sampled == 0 < min(about[0].sampled, about[2].sampled)
    assert about[1].statement.startswith("Because the student alone gives none of these answers,")
    with pytest.raises(
        CalibrationError, match=r"^rows 300 to 599: recall .* needs nearly all of 300"
    ):
        list(
            PromisedRun(joint, Wanted("recall", 0.5, 0.4, positive=1)).windows(np.arange(900), 300)
        )
    labeled = PromisedRun(joint, Wanted("accuracy", 0.8, 0.2), targets={1: 1})
    with pytest.raises(ValueError, match=r"remove window \(--window\)"):
        list(labeled.windows(np.arange(900), 300))


@pytest.mark.parametrize("promise", ["agreement", "precision", "recall"])
def test_a_budget_for_all_rows_keeps_every_promise(promise):
    pair = Pair(n=30, rate=0.5, steep=1)
    about = {} if promise == "agreement" else {"positive": 1}
    found = pair.answer(promise=promise, at_least=1.0, teacher_calls=30, **about)
    assert pair.share(found, promise) == 1.0


def test_a_promise_that_takes_nearly_all_rows_is_refused_before_they_are_paid_for():
    pair = Pair(n=500)
    with pytest.raises(
        CalibrationError, match=r"needs a sample of about 500 of 500 rows.*; 450 calls"
    ):
        pair.answer(at_least=1.0)
    assert not pair.asked


def test_a_statement_says_no_more_than_is_promised():
    words = ebjr.BatchCertificate("agreement", 0.94999999, 1e-9, 900, 90, 0.5, 0.98).statement
    assert "With probability at least 0.999999999 over" in words
    assert "at least 94.9999 % of" in words


def test_label_sets_agree_where_all_labels_do():
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(2000, 3)) * 6
    student = teacher + rng.normal(size=teacher.shape)
    how = {"task": "multilabel", "delta": 0.1, "batch_size": 500}
    rows = np.arange(2000)
    broken = 0
    for seed in range(40):
        found = answer_within(
            lambda x: student[x], lambda x: teacher[x], rows, at_least=0.9, seed=seed, **how
        )
        broken += (found.prediction == (teacher > 0)).all(axis=1).mean() < 0.9
    assert broken <= 10
    found = answer_within(
        lambda x: student[x], lambda x: teacher[x], rows, promise={"recall": 0.9}, positive=2, **how
    )
    assert found.prediction[:, 2][teacher[:, 2] > 0].mean() >= 0.9


def detections(rng, n):
    """A teacher's boxes, and a student's, which lacks some and makes some up."""
    teacher, student = [], []
    for _ in range(n):
        count = rng.integers(1, 4)
        corner = rng.uniform(0, 50, (count, 2))
        boxes = np.hstack([corner, corner + 20])
        labels, sure = rng.integers(0, 2, count), rng.uniform(0.35, 1, count)
        of = {"size": (100, 100), "classes": 2}
        teacher.append(Detections.of_scores(boxes, sure, labels=labels, **of))
        seen = rng.random(count) < 0.4 + 0.6 * sure
        made_up = np.array([[60.0, 60, 90, 90]])[: rng.random() < 0.1]
        student.append(
            Detections.of_scores(
                np.vstack([boxes[seen], made_up]),
                np.append(sure[seen], np.full(len(made_up), 0.4)),
                labels=np.append(labels[seen], np.zeros(len(made_up), int)),
                **of,
            )
        )
    return student, teacher


@pytest.mark.parametrize(
    ("promise", "at_least", "positive"), [("recall", 0.65, None), ("precision", 0.85, 0)]
)
def test_boxes_of_a_detector_are_promised(promise, at_least, positive):
    student, teacher = detections(np.random.default_rng(0), 800)
    rows = list(range(800))
    found = answer_within(
        lambda x: [student[row] for row in x],
        lambda x: [teacher[row] for row in x],
        rows,
        promise=promise,
        at_least=at_least,
        delta=0.1,
        positive=positive,
        task="detection",
    )
    from ebjr.tasks.detection.precision import count_boxes

    shown, real, hits = (each.sum() for each in count_boxes(found.prediction, teacher, positive))
    assert hits / (shown if promise == "precision" else real) >= at_least
    assert 0 < found.teacher_calls < 800
    assert "images" in found.certificates[0].statement
    assert "an image counting for at most" in found.certificates[0].statement


# --- on the command line


def calls(folder, *arguments, ok=True):
    command = [sys.executable, "-m", "ebjr", "predict", "joint.toml", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("promised")
    student, teacher = write_pair(folder)
    images = write_images(folder / "images", 240)
    data = open_data(images)
    models = map(ebjr.load_model, (student, teacher))
    with pytest.warns(RecordingNote):
        outcomes = ebjr.record(*models, data, preprocess=ebjr.Preprocess(size=SIZE))
    outcomes.save(folder / "outcomes.npz")
    command = [sys.executable, "-m", "ebjr", "calibrate", "outcomes.npz", "-o", "joint.toml"]
    more = ["--student", str(student), "--teacher", str(teacher)]
    subprocess.run([*command, *more], cwd=folder, check=True, capture_output=True, timeout=120)
    return folder


def test_predict_keeps_a_promise_without_labels(joint):
    done = calls(
        joint,
        *("--data", "images", "--promise", "agreement=0.6", "--delta", "0.1"),
        *("-o", "answers.jsonl", "--json"),
    )
    told = json.loads(done.stdout)
    rows = [json.loads(line) for line in (joint / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == told["examples"] == 240
    assert sum(row["deferred"] for row in rows) == told["deferred"] < 240
    assert told["promised"][0]["at_least"] == 0.6
    assert "of these 240" in told["promised"][0]["statement"] or "these 240" in done.stdout
    assert {"sampled", "label", "score"} <= rows[0].keys()
    assert not list(joint.glob("*.part"))


def test_predict_within_goes_on_with_what_was_paid_for(joint):
    base = ("--data", "images", "--delta", "0.1", "-o", "kept.jsonl")
    done = calls(joint, *base, "--promise", "agreement=0.97", "--teacher-calls", "130", ok=False)
    assert "teacher" in done.stderr
    if (joint / "kept.jsonl.teacher.part").exists():
        calls(joint, *base, "--promise", "agreement", "--teacher-calls", "60")
        assert not list(joint.glob("*.part"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--promise", "agreement=0.9"], "needs delta"),
        (["--promise", "recall=0.9", "--promise", "recall=0.8"], "recall is given twice"),
        (["--delta", "0.1"], "--delta goes with --promise"),
        (["--promise", "recall=0.9", "--delta", "0.1"], "--positive"),
        (["--promise", "agreement=0.9", "--delta", "0.1", "--threshold", "1"], "its own thres"),
        (["--promise", "recall=0.9", "--delta", "0.1", "--positive", "pink"], "blue, green, red"),
        (["--promise", "accuracy=0.9", "--delta", "0.1"], "--labels"),
    ],
)
def test_bad_promises_are_one_sentence_on_the_command_line(joint, arguments, words):
    done = calls(joint, "--data", "images", "-o", "bad.jsonl", *arguments, ok=False)
    assert words in done.stderr
    assert not (joint / "bad.jsonl").exists()


def test_data_are_hashed_once(tmp_path, monkeypatch):
    np.save(tmp_path / "d.npy", np.random.default_rng(0).normal(size=400))
    data, hashed = open_data(tmp_path / "d.npy"), []
    whole = type(data).fingerprint
    monkeypatch.setattr(type(data), "fingerprint", lambda own: hashed.append(own) or whole(own))
    said = lambda x: np.stack([x, -x], axis=1)  # noqa: E731
    joint = JointClassifier(said, said, Router("margin", 0.1))
    run = PromisedRun(joint, Wanted("agreement", 0.5, 0.2))
    done, _ = predict_within(run, data, tmp_path / "a.jsonl", window=200)
    assert (done.examples, len(hashed)) == (400, 1)


def test_labels_come_by_name(joint):
    names = [row["name"] for row in map(json.loads, _answered(joint))]
    chosen = np.random.default_rng(0).choice(names, 120, replace=False)
    lines = [f"{name},{name.split('/')[0]}" for name in chosen]
    (joint / "labels.csv").write_text("\n".join(["name,label", *lines]) + "\n")
    done = calls(
        joint,
        *("--data", "images", "--promise", "accuracy=0.5", "--delta", "0.1"),
        *("--labels", "labels.csv", "-o", "accurate.jsonl"),
    )
    assert "120 labeled rows" in done.stdout


def test_labels_that_are_numbers_are_said_and_never_mixed_with_names(joint):
    rows = list(map(json.loads, _answered(joint)))[::2]
    places = {"blue": 0, "green": 1, "red": 2}
    lines = [f"{row['name']},{places[row['name'].split('/')[0]]}" for row in rows]
    labels, asked = joint / "numbers.csv", ("--promise", "accuracy=0.5", "--delta", "0.1")
    words = ("--data", "images", *asked, "--labels", "numbers.csv", "-o", "numbered.jsonl")
    labels.write_text("\n".join(["name,label", *lines]) + "\n")
    said = "NOTE: the labels in numbers.csv are numbers, not names: 0 is blue, 1 is green, 2 is red"
    assert said in calls(joint, *words).stderr
    labels.write_text(f"name,label\n{lines[0]}\n{rows[1]['name']},red\n")
    assert (
        "' is not a class name; known are blue, green, red" in calls(joint, *words, ok=False).stderr
    )
    labels.write_text(f"name,label,label\n{lines[0]},1\n")
    assert "the columns name and label, each once" in calls(joint, *words, ok=False).stderr


@pytest.mark.parametrize("line", ["red/1.png,red, or so", "red/1.png"])
def test_rows_of_labels_with_too_many_or_few_cells_are_refused(joint, line):
    (joint / "odd.csv").write_text(f"name,label\n{line}\n")
    asked = ("--promise", "accuracy=0.9", "--delta", "0.1", "--labels", "odd.csv")
    done = calls(joint, "--data", "images", "-o", "odd.jsonl", *asked, ok=False)
    assert "the row of 'red/1.png': quote a label that has a comma" in done.stderr


def test_images_that_cannot_be_read_are_left_out_of_every_window(joint):
    shutil.copytree(joint / "images", joint / "damaged")
    files = sorted((joint / "damaged").rglob("*.png"))
    for file in files[5:200:13]:
        file.write_bytes(b"broken")
    asked = ("--promise", "agreement=0.5", "--delta", "0.2", "--data", "damaged")
    for number, more in enumerate(((), ("--window", "120", "--batch-size", "32"))):
        done = calls(joint, *asked, *more, "-o", f"rest{number}.jsonl", "--json")
        assert json.loads(done.stdout)["unreadable"] == 15
        rows = map(json.loads, (joint / f"rest{number}.jsonl").read_text().splitlines())
        whole = [str(file.relative_to(joint / "damaged")) for file in files]
        broken = set(whole[5:200:13])
        assert [row["name"] for row in rows] == [name for name in whole if name not in broken]


def _answered(joint):
    if not (joint / "answers.jsonl").exists():
        test_predict_keeps_a_promise_without_labels(joint)
    return (joint / "answers.jsonl").read_text().splitlines()
