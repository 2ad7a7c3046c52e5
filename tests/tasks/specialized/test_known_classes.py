"""Known classes, and specialized students through outcomes, curve, calibration and joint loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts

from ebjr import (
    Blend,
    CalibrationError,
    JointClassifier,
    ModelError,
    Outcomes,
    OutputWarning,
    Router,
    SpecializedJointClassifier,
    TeacherUnavailable,
    TradeOffCurve,
    as_score,
    calibrate,
    evaluate,
    oracle,
    record,
    relabel,
    run_study,
    top_classes,
)
from ebjr.arrays import to_numpy
from ebjr.calibration import rank_scores
from ebjr.tasks.specialized.known_classes import (
    Traffic,
    check_known_classes,
    other_class,
    refine,
    to_student,
    to_teacher,
)

SEEDS, ROWS, CLASSES = st.integers(0, 2**32 - 1), st.integers(2, 14), st.integers(2, 8)


@st.composite
def known(draw, classes=CLASSES):
    """Known classes in any order, and how many there are: at least one more."""
    total = draw(classes)
    return tuple(draw(st.permutations(range(total)))[: draw(st.integers(1, total - 1))]), total


@st.composite
def specialized(draw, rows=ROWS, **about):
    """Outcomes of a specialized student: small whole logits, so that scores and answers tie."""
    labels, total = draw(known())
    n, rng = draw(rows), np.random.default_rng(draw(SEEDS))
    return Outcomes(
        rng.integers(-2, 3, (n, len(labels) + 1)).astype(float),
        rng.normal(0, 2, (n, total)),
        rng.integers(0, total, n),
        "specialized",
        known_classes=labels,
        **about,
    )


def pair(n=2000, seed=0, popular=0.75, noise=(1.5, 0.7), known_classes=(4, 1), classes=6):
    """Outcomes of a real kind: mostly popular classes, a student that knows those two."""
    rng = np.random.default_rng(seed)
    others = np.setdiff1d(np.arange(classes), known_classes)
    is_popular = rng.random(n) < popular
    targets = np.where(is_popular, rng.choice(known_classes, n), rng.choice(others, n))
    student = 4 * np.eye(len(known_classes) + 1)[relabel(targets, known_classes)]
    teacher = 4 * np.eye(classes)[targets]
    return Outcomes(
        student + rng.normal(0, noise[0], student.shape),
        teacher + rng.normal(0, noise[1], teacher.shape),
        targets,
        "specialized",
        known_classes=known_classes,
    )


# labels


def test_the_most_frequent_classes_come_first_and_ties_by_label():
    labels = np.array([3, 3, 3, 9, 9, 1, 1, 5])
    assert top_classes(labels, 3) == (3, 1, 9)
    assert top_classes(labels, share=3 / 8) == (3,)
    assert top_classes(labels, share=0.4) == (3, 1)
    assert top_classes(labels, share=1.0) == (3, 1, 9, 5)


@given(labels=st.lists(st.integers(0, 9), min_size=1, max_size=60), share=st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_a_share_takes_the_fewest_classes_that_hold_it(labels, share):
    found = top_classes(labels, share=share)
    assert np.isin(labels, found).mean() >= share - 1e-9
    assert np.isin(labels, found[:-1]).mean() < share
    assert found == top_classes(labels, len(found))


@pytest.mark.parametrize(
    ("labels", "how", "message"),
    [
        ([0, 1, 1], {"count": 3}, "from 1 to 2, the classes among the labels, not 3"),
        ([0, 1, 1], {"count": 0}, "count must be an integer from 1"),
        ([0, 1, 1], {"count": 0.5}, "not 0.5; for a share of the labels use share="),
        ([0, 1, 1], {"count": 1.5}, "count must be an integer .* not 1.5"),
        ([0, 1, 1], {}, "give either count, or share"),
        ([0, 1, 1], {"count": 1, "share": 0.5}, "give either count, or share"),
        ([0, 1, 1], {"share": 0.0}, "share must be above 0 and at most 1, not 0.0"),
        ([0, 1, 1], {"share": 1.5}, "share must be above 0 and at most 1, not 1.5"),
        ([], {"count": 1}, r"labels must be \(n,\) integers"),
        ([0, -1], {"count": 1}, "at least 0, not -1"),
        ([0.5, 1.0], {"count": 1}, "integers of at least 0, not float64"),
        ([[0, 1]], {"count": 1}, r"shape \(1, 2\)"),
    ],
)
def test_classes_that_cannot_be_counted_are_refused_in_one_sentence(labels, how, message):
    with pytest.raises(ValueError, match=message):
        top_classes(labels, **how)


@given(chosen=known(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_relabeling_is_undone_by_the_known_classes(chosen, seed):
    labels, total = chosen
    targets = np.random.default_rng(seed).integers(0, total, 40)
    own = relabel(targets, labels, total)
    knows = np.isin(targets, labels)
    assert (own[~knows] == other_class(labels)).all()
    np.testing.assert_array_equal(np.array(labels)[own[knows]], targets[knows])


@pytest.mark.parametrize(
    ("known_classes", "classes", "message"),
    [
        ([], 5, "must be a list of the teacher's labels"),
        ([1.0], 5, "integers in the student's order, not"),
        ([[1]], 5, "must be a list of the teacher's labels"),
        (["dog"], 5, "must be a list of the teacher's labels"),
        ([1, 2, 1], 5, "label 1 is there twice"),
        ([1, 5], 5, "must lie in 0..4, the teacher's labels, not 5"),
        ([-1], None, "must be at least 0, the teacher's labels, not -1"),
        ([0, 1, 2], 3, "3 known classes leave none of the teacher's 3 for 'other'"),
    ],
)
def test_known_classes_that_are_none_are_refused_in_one_sentence(known_classes, classes, message):
    with pytest.raises(ValueError, match=message):
        check_known_classes(known_classes, classes)


def test_a_label_beyond_the_teachers_is_no_other():
    assert relabel([9], [1]).tolist() == [1]
    with pytest.raises(ValueError, match=r"labels must lie in 0..4, the teacher's, but one is 9"):
        relabel([9], [1], classes=5)


# traffic


@given(
    targets=st.lists(st.integers(0, 5), min_size=8, max_size=200),
    share=st.sampled_from([0.0, 0.25, 0.75, 1.0]),
    seed=SEEDS,
)
@settings(max_examples=80, deadline=None)
def test_a_draw_has_the_mix_and_repeats_nothing(targets, share, seed):
    targets = np.array([0, 5, *targets])
    traffic = Traffic(share, (0, 1))
    rows = traffic.draw(targets, seed)
    popular = np.isin(targets, (0, 1))
    assert len(set(rows.tolist())) == len(rows)
    assert abs(popular[rows].sum() - share * len(rows)) <= 1
    # one of the two parts is there as a whole: no more can be drawn
    whole = [popular[rows].sum() == popular.sum(), (~popular[rows]).sum() == (~popular).sum()]
    assert any(whole)
    np.testing.assert_array_equal(rows, traffic.draw(targets, seed))


def test_every_example_of_a_part_is_as_likely_to_be_drawn():
    targets, traffic = np.repeat([0, 1, 2], [10, 20, 10]), Traffic(0.5, (0,))
    count = np.zeros(40)
    for seed in range(400):
        count[traffic.draw(targets, seed)] += 1
    assert (count[:10] == 400).all()
    assert np.abs(count[10:] / 400 - 1 / 3).max() < 0.12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Traffic.parse("popular", [0]), "must be written like 'popular=0.75'"),
        (lambda: Traffic.parse("rare=0.5", [0]), "must be written like 'popular=0.75'"),
        (lambda: Traffic.parse("popular=much", [0]), "not 'popular=much'"),
        (lambda: Traffic(-0.1, (0,)), "popular share must lie between 0 and 1, not -0.1"),
        (lambda: Traffic(0.5, ()), "known_classes must be a list"),
        (lambda: Traffic(0.5, (7,)).draw([0, 1]), "50% of the traffic is of popular classes"),
        (lambda: Traffic(0.9, (0, 1)).draw([0, 1]), "10% of the traffic is of other classes"),
    ],
)
def test_traffic_that_cannot_be_drawn_is_refused_in_one_sentence(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# the student in the teacher's terms


@given(chosen=known(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_translated_distribution_keeps_every_probability(chosen, seed):
    labels, total = chosen
    logits = np.random.default_rng(seed).normal(0, 3, (5, len(labels) + 1))
    before = scipy.special.softmax(logits, axis=1)
    after = scipy.special.softmax(to_teacher(logits, labels, total), axis=1)
    unknown = np.setdiff1d(np.arange(total), labels)
    np.testing.assert_allclose(after[:, labels], before[:, :-1])
    np.testing.assert_allclose(after[:, unknown].sum(axis=1), before[:, -1])
    np.testing.assert_allclose(np.ptp(after[:, unknown], axis=1), 0, atol=1e-12)


@given(chosen=known(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_translation_to_the_teacher_and_back_changes_nothing(chosen, seed):
    labels, total = chosen
    logits = np.random.default_rng(seed).normal(0, 3, (5, len(labels) + 1))
    np.testing.assert_allclose(to_student(to_teacher(logits, labels, total), labels), logits)


@given(chosen=known(), seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_the_refined_distribution_splits_other_as_the_teacher_does(chosen, seed):
    labels, total = chosen
    rng = np.random.default_rng(seed)
    logits, teacher = rng.normal(0, 3, (5, len(labels) + 1)), rng.normal(0, 3, (5, total))
    own, taught = scipy.special.softmax(logits, axis=1), scipy.special.softmax(teacher, axis=1)
    unknown = np.setdiff1d(np.arange(total), labels)
    expected = np.zeros((5, total))
    expected[:, labels] = own[:, :-1]
    share = taught[:, unknown] / taught[:, unknown].sum(axis=1, keepdims=True)
    expected[:, unknown] = own[:, -1:] * share
    refined = refine(to_teacher(logits, labels, total), teacher, labels)
    np.testing.assert_allclose(scipy.special.softmax(refined, axis=1), expected, atol=1e-12)


def test_translation_keeps_library_and_precision(asarray):
    logits = asarray(np.array([[2.0, 1.0, 0.0]], np.float32))
    found = to_teacher(logits, (3, 1), 5)
    assert (type(found), found.dtype) == (type(logits), logits.dtype)
    mixed = refine(found, asarray(np.zeros((1, 5), np.float32)), (3, 1))
    assert (type(mixed), mixed.dtype) == (type(logits), logits.dtype)


# outcomes


GOOD = {
    "student": 9 * np.eye(3),
    "teacher": np.eye(5)[:3],
    "targets": [0, 4, 1],
    "known_classes": [4, 0],
}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"known_classes": None}, "task 'specialized' needs known_classes"),
        ({"known_classes": [4, 5]}, "known_classes must lie in 0..4, the teacher's labels, not 5"),
        ({"known_classes": [4]}, r"1 known classes must return \(n, 2\) .* not \(3, 3\)"),
        ({"targets": [0, 5, 1]}, "targets must lie in 0..4, but 1 of 3"),
        ({"teacher": np.eye(3)[:, :2]}, "known_classes must lie in 0..1"),
        ({"student": np.eye(3)[:, :2]}, r"must return \(n, 3\) with 'other' in the last column"),
        ({"labels": ("a", "b", "c")}, "labels must name 5 classes, not 3"),
        ({"metric": "rmse"}, "metric of specialized must be one of accuracy, not 'rmse'"),
    ],
)
def test_a_table_that_does_not_fit_together_is_refused_in_one_sentence(changed, message):
    with pytest.raises(ValueError, match=message) as caught:
        Outcomes(**{**GOOD, **changed}, task="specialized")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_known_classes_belong_to_specialized_students_alone(task):
    with pytest.raises(ValueError, match=f"known_classes go with task 'specialized', not .*{task}"):
        Outcomes(np.eye(2), np.eye(2), [0, 1], task, known_classes=[0])


def test_the_student_is_right_in_the_teachers_labels():
    outcomes = Outcomes(**GOOD, task="specialized")
    assert outcomes.predictions("student").tolist() == [4, 0, 1]  # "other": the first unknown
    assert outcomes.student_quality.tolist() == [0, 0, 1]
    assert outcomes.teacher_quality.tolist() == [1, 0, 0]
    assert outcomes.known_classes == (4, 0)


def test_a_student_that_leaves_out_one_class_knows_it_after_all():
    outcomes = Outcomes(np.eye(3), np.eye(3), [2, 1, 0], "specialized", known_classes=[2, 1])
    assert outcomes.student_quality.tolist() == [1, 1, 1]


@given(outcomes=specialized())
@settings(max_examples=20, deadline=None)
def test_saving_and_loading_changes_nothing(outcomes, tmp_path_factory):
    path = tmp_path_factory.mktemp("o") / "outcomes.npz"
    outcomes.save(path)
    loaded = Outcomes.load(path)
    assert loaded.known_classes == outcomes.known_classes
    assert loaded.fingerprint == outcomes.fingerprint
    np.testing.assert_array_equal(loaded.student_quality, outcomes.student_quality)


def test_other_known_classes_are_other_outcomes():
    outcomes = Outcomes(**GOOD, task="specialized")
    assert replace(outcomes, known_classes=(0, 4)).fingerprint != outcomes.fingerprint


def test_a_split_keeps_the_known_classes():
    for part in pair(50).split(0.5, seed=3):
        assert (part.task, part.known_classes, part.classes) == ("specialized", (4, 1), 6)


def test_recording_unlabeled_traffic_takes_the_teachers_answers_for_right():
    x = np.random.default_rng(0).normal(0, 3, (40, 5))
    teacher, classes = (lambda b: b), top_classes(x.argmax(axis=1), 2)
    student = lambda b: np.column_stack([b[:, list(classes)], 0 * b[:, 0]])  # noqa: E731
    outcomes = record(student, teacher, x, task="specialized", known_classes=classes, batch_size=7)
    assert not outcomes.labeled
    assert outcomes.quality("teacher") == 1
    assert outcomes.known_classes == classes


def test_recording_refuses_a_student_of_other_classes_at_the_first_batch():
    with pytest.raises(ValueError, match=r"2 known classes must return \(n, 3\)"):
        record(lambda b: b, lambda b: b, np.eye(4), task="specialized", known_classes=[0, 1])


# curve


@given(
    outcomes=specialized(),
    score=st.sampled_from(["known_softmax", "specialized_energy", "softmax"]),
    blend=st.sampled_from([0.0, 0.5, Blend(0.5, 2.0, 0.5)]),
)
@settings(max_examples=80, deadline=None)
def test_every_row_of_a_curve_is_what_the_joint_model_does(outcomes, score, blend):
    curve = TradeOffCurve.of(outcomes, score, blend)
    rows = np.arange(len(outcomes))
    joint = SpecializedJointClassifier(
        lambda b: outcomes.student[b],
        lambda b: outcomes.teacher[b],
        Router(score, 0.0),
        known_classes=outcomes.known_classes,
        classes=outcomes.classes,
        blend=blend,
    )
    for k, threshold in enumerate(curve.threshold):
        joint.router.threshold = threshold
        answer = joint(rows)
        assert answer.deferred.mean() == curve.deferral_rate[k]
        quality = (answer.prediction == outcomes.targets).mean()
        assert quality == pytest.approx(curve.quality[k])
        assert answer.output.shape == outcomes.teacher.shape


@given(outcomes=specialized())
@settings(max_examples=40, deadline=None)
def test_no_threshold_keeps_a_row_where_other_wins(outcomes):
    """So the curve of the paper's score begins at the share of them (eq. 16)."""
    other_wins = outcomes.student[:, -1] > outcomes.student[:, :-1].max(axis=1)
    curve = TradeOffCurve.of(outcomes, "specialized_energy")
    assert curve.deferral_rate[0] == other_wins.mean()


@given(outcomes=specialized())
@settings(max_examples=40, deadline=None)
def test_no_score_beats_the_oracle(outcomes):
    best = TradeOffCurve.of(outcomes, oracle(outcomes))
    curve = TradeOffCurve.of(outcomes, "known_softmax")
    at = np.searchsorted(best.deferral_rate, curve.deferral_rate - 1e-12)
    assert (best.quality[at] >= curve.quality - 1e-12).all()


# calibration


def test_auto_tries_every_score_that_makes_sense_and_beats_random():
    outcomes = pair()
    names = outcomes.kind.scores(outcomes.student)
    assert {"known_softmax", "specialized_energy", "softmax", "energy"} <= set(names)
    calibration, held_out = outcomes.split(0.5, seed=0)
    point = calibrate(calibration, blend=0.0)
    chance = calibrate(calibration, score="random", blend=0.0)
    assert point.deferral_rate < chance.deferral_rate - 0.2
    assert evaluate(held_out, point).quality > outcomes.quality("student")


def test_deferring_many_rows_always_is_no_merit_of_a_score():
    """A score of -inf alone is random routing: its curve has one point, and gains nothing."""
    outcomes = pair(500)
    never = as_score(lambda output: np.full(len(output), -np.inf))
    half = as_score(lambda output: np.where(np.arange(len(output)) % 2, 0.0, -np.inf))
    for entry in rank_scores(outcomes, [never, half], blend=0.5):
        assert abs(entry.gain) < 3 * entry.gain_error + 1e-12
    best = rank_scores(outcomes, ["specialized_energy", "known_softmax", never])
    assert best[-1].score is never


def test_one_known_class_is_enough_to_calibrate():
    outcomes = pair(known_classes=(3,), noise=(2.0, 0.7))
    assert set(outcomes.kind.scores(outcomes.student)) >= {"known_softmax", "specialized_energy"}
    assert calibrate(outcomes, tolerance=0.01).deferral_rate < 1


@pytest.mark.parametrize(
    "goal",
    [
        {"goal": "match-teacher", "tolerance": 0.01},
        {"goal": "accuracy", "target": 0.85},
        {"goal": "budget", "deferral_rate": 0.4},
        {"goal": "crossing"},
        {"goal": "match-teacher", "tolerance": 0.05, "delta": 0.1},
        {"goal": "match-teacher", "tolerance": 0.05, "delta": 0.1, "promise": "harm"},
        {"goal": "accuracy", "target": 0.8, "delta": 0.1},
        {"goal": "budget", "deferral_rate": 0.5, "delta": 0.1},
    ],
)
def test_every_goal_and_promise_works(goal):
    outcomes = pair(4000)
    calibration, held_out = outcomes.split(0.5, seed=1)
    point = calibrate(calibration, **goal)
    here = evaluate(held_out, point)
    if goal["goal"] == "match-teacher":
        assert here.quality > here.teacher_quality - goal["tolerance"] - 0.02
    if "target" in goal:
        assert here.quality > goal["target"] - 0.02
    if "deferral_rate" in goal:
        assert here.deferral_rate < goal["deferral_rate"] + 0.03
    assert (point.certified is not None) == ("delta" in goal)


def test_a_promise_that_nothing_can_keep_is_refused():
    with pytest.raises(CalibrationError, match="smallest tolerance"):
        calibrate(pair(60), tolerance=0.001, delta=0.05, score="specialized_energy", blend=0.0)


def test_a_blend_helps_where_the_student_knows_the_popular_classes_better():
    outcomes = pair(6000, noise=(1.5, 2.0))
    assert outcomes.deferred_quality(1.0).mean() > outcomes.quality("teacher") + 0.02
    assert float(calibrate(outcomes, score="known_softmax").blend) > 0


def test_a_study_compares_specialized_and_plain_scores():
    study = run_study(pair(), tolerance=0.01)
    assert {"specialized_energy", "known_softmax", "softmax", "energy"} <= set(study.others)
    assert study.comparisons[0].names == ("the joint model", "the teacher")
    assert study.named_points["crossing"].deferral_rate > 0


# joint loop


def student(batch):
    """Class 2, class 0, or other."""
    return batch[:, [2, 0, 1]]


def teacher(batch):
    return -batch


def joint(asarray=np.asarray, threshold=1.0, **about):
    return SpecializedJointClassifier(
        lambda b: asarray(student(to_numpy(b))),
        lambda b: asarray(teacher(to_numpy(b))),
        Router("specialized_energy", threshold),
        **{"known_classes": [2, 0], "classes": 3, **about},
    )


def test_kept_rows_are_the_students_in_the_teachers_labels(asarray):
    x = asarray(np.array([[0.0, 1.0, 9.0], [9.0, 1.0, 0.0], [0.0, 9.0, 1.0], [0.1, 0.0, 0.2]]))
    answer = joint(asarray)(x)
    assert to_numpy(answer.deferred).tolist() == [False, False, True, True]
    assert to_numpy(answer.prediction).tolist() == [2, 0, 0, 1]
    assert tuple(answer.output.shape) == (4, 3)
    assert type(answer.prediction) is type(x)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_any_split_into_batches_gives_the_same_answers(data):
    x = np.random.default_rng(0).normal(0, 2, (20, 3))
    model = joint(blend=0.3)
    whole = model(x)
    parts = [model(x[part]) for part in data.draw(cuts(20))]
    np.testing.assert_array_equal(np.concatenate([p.prediction for p in parts]), whole.prediction)
    np.testing.assert_allclose(np.concatenate([p.output for p in parts]), whole.output)


def test_a_teacher_out_of_reach_leaves_the_students_best_guess():
    def gone(batch):
        raise TeacherUnavailable("no link")

    model = joint()
    model.teacher = gone
    answer = model(np.array([[0.0, 0.0, 5.0], [0.0, 9.0, 1.0]]))
    assert answer.degraded.tolist() == [False, True]
    assert answer.prediction.tolist() == [2, 1]  # "other" is the one class left


def test_a_specialized_joint_model_is_another_ones_student_or_teacher():
    x = np.random.default_rng(1).normal(0, 2, (30, 3))
    outer = JointClassifier(joint(threshold=2.0), lambda b: 5 * b, Router("softmax", 0.6))
    assert np.isfinite(to_numpy(outer(x).output)).all()
    first = JointClassifier(lambda b: b, joint(threshold=-99.0), Router("softmax", np.inf))
    np.testing.assert_array_equal(first(x).prediction, joint(threshold=-99.0)(x).prediction)


def test_models_that_do_not_fit_the_label_map_are_named():
    x = np.ones((2, 3))
    with pytest.raises(ModelError, match=r"3 known classes must return \(n, 4\) with 'other' in"):
        joint(known_classes=[2, 0, 1], classes=4)(x)
    with pytest.warns(OutputWarning, match=r"must answer alike"):
        assert joint(classes=5, threshold=np.inf)(x).degraded.all()
    with pytest.raises(ValueError, match="the teacher's labels, not 2"):
        joint(classes=2)


def test_a_score_of_other_marks_what_the_paper_defers():
    """Eq. 16: the teacher where the energy is low or "other" wins."""
    x = np.random.default_rng(2).normal(0, 3, (200, 3))
    answer, raw = joint(threshold=1.5)(x), student(x)
    low = scipy.special.logsumexp(raw[:, :-1], axis=1) < 1.5
    np.testing.assert_array_equal(answer.deferred, low | (raw.argmax(axis=1) == 2))
    np.testing.assert_array_equal(answer.score, as_score("specialized_energy")(raw))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tied", [0.0, 3.5, -2.25, 1e4])
def test_a_known_class_that_ties_with_an_other_of_one_class_is_the_answer(asarray, dtype, tied):
    rows = np.array([[tied - 1, tied, tied], [tied, tied - 1, tied]], dtype)
    for unknown in range(3):
        known = tuple(label for label in range(3) if label != unknown)
        model = SpecializedJointClassifier(
            lambda x: x, lambda x: x[:, [0, 0, 0]], Router("specialized_energy", -1e9),
            known_classes=known, classes=3,
        )  # fmt: skip
        answer = model(asarray(rows))
        assert not to_numpy(answer.deferred).any()
        assert to_numpy(answer.prediction).tolist() == [known[1], known[0]]
