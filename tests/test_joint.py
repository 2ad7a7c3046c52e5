from __future__ import annotations

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import cuts

from ebjr import (
    Detections,
    JointClassifier,
    JointDetector,
    JointModel,
    ModelError,
    OutputWarning,
    Router,
    TeacherUnavailable,
)
from ebjr.arrays import to_numpy
from ebjr.model import Answer, ModelFacts, TeacherFailed

CLASSES = 3
KEEP = Router("max_logit", -1e9)
DEFER = Router("max_logit", np.inf)


def first_column(output):
    return output[:, 0]


def batch_of(keep, library="numpy"):
    """Inputs that carry what is to become of them (1 keep, 0 defer) and who they are."""
    rows = np.stack([np.asarray(keep, float), np.arange(len(keep))], axis=1)
    if library == "torch":
        return pytest.importorskip("torch").as_tensor(rows)
    return list(rows) if library == "list" else rows


def stack(batch):
    return np.stack(batch) if isinstance(batch, list) else batch


def mark(batch, sign):
    """Logits that carry the row's fate, its identity, and who answered."""
    rows = stack(batch)
    output = rows[:, [0, 1, 1]] * 1.0
    output[:, 2] = sign
    return output


def student(batch):
    return mark(batch, 1)


def teacher(batch):
    return mark(batch, -1)


class Spy:
    """A model that remembers its batches."""

    def __init__(self, model):
        self.model, self.batches = model, []

    def __call__(self, batch):
        self.batches.append(batch)
        return self.model(batch)


def joint_of(student=student, teacher=teacher, threshold=0.5, **options):
    return JointClassifier(student, teacher, Router(first_column, threshold), **options)


def unreachable(batch):
    raise TeacherUnavailable("the link is down")


MASKS = st.lists(st.booleans(), min_size=1, max_size=30)
LIBRARIES = st.sampled_from(["numpy", "torch", "list"])


@given(keep=MASKS, library=LIBRARIES)
@settings(max_examples=100, deadline=None)
def test_every_answer_goes_back_to_its_own_row(keep, library):
    spy = Spy(teacher)
    answer = joint_of(teacher=spy)(batch_of(keep, library))
    keep = np.array(keep)
    output = to_numpy(answer.output)
    np.testing.assert_array_equal(output[:, 1], np.arange(len(keep)))
    np.testing.assert_array_equal(output[:, 2], np.where(keep, 1, -1))
    np.testing.assert_array_equal(to_numpy(answer.deferred), ~keep)
    np.testing.assert_array_equal(to_numpy(answer.score), keep)
    np.testing.assert_array_equal(to_numpy(answer.prediction), output.argmax(axis=1))
    assert not to_numpy(answer.degraded).any()
    asked = [np.asarray(stack(batch))[:, 1] for batch in spy.batches]
    if keep.all():
        assert asked == []
    else:  # one dense batch, only deferred rows, in order
        assert len(asked) == 1
        np.testing.assert_array_equal(asked[0], np.flatnonzero(~keep))


@given(keep=MASKS, library=LIBRARIES, data=st.data(), blend=st.sampled_from([0.0, 0.5]))
@settings(max_examples=80, deadline=None)
def test_any_split_into_batches_gives_the_same_answers(keep, library, data, blend):
    joint, batch = joint_of(blend=blend), batch_of(keep, library)
    whole = joint(batch)
    parts = [joint(batch[part]) for part in data.draw(cuts(len(keep)))]
    for name in ("prediction", "score", "deferred", "degraded"):
        joined = np.concatenate([to_numpy(getattr(part, name)) for part in parts])
        np.testing.assert_array_equal(joined, to_numpy(getattr(whole, name)))
    outputs = np.concatenate([to_numpy(part.output) for part in parts])
    np.testing.assert_allclose(outputs, to_numpy(whole.output), rtol=1e-12, atol=1e-12)


def test_an_all_kept_batch_never_calls_the_teacher(asarray):
    spy = Spy(teacher)
    answer = joint_of(teacher=spy)(asarray(batch_of([1, 1, 1])))
    assert spy.batches == []
    assert not to_numpy(answer.deferred).any()


def test_an_all_deferred_batch_is_handed_to_the_teacher_as_it_is(asarray):
    spy = Spy(teacher)
    for batch in (asarray(batch_of([0, 0])), batch_of([0, 0], "list")):
        answer = joint_of(teacher=spy)(batch)
        assert spy.batches.pop() is batch
        assert to_numpy(answer.deferred).all()


def test_an_empty_batch_calls_no_teacher(asarray):
    answer = joint_of(teacher=unreachable)(asarray(np.zeros((0, 2))))
    assert tuple(answer.output.shape) == (0, CLASSES)
    for name in ("prediction", "score", "deferred", "degraded"):
        assert tuple(getattr(answer, name).shape) == (0,)


def test_the_teachers_batch_is_dense(asarray):
    spy = Spy(teacher)
    joint_of(teacher=spy)(asarray(batch_of([1, 0, 1, 0, 0])))
    dense = spy.batches[0]
    assert type(dense) is type(asarray(np.zeros(1)))
    assert np.asarray(dense).flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(to_numpy(dense)[:, 1], [1, 3, 4])


def test_answers_stay_in_the_students_library(asarray):
    batch = asarray(batch_of([1, 0, 1]))
    answer = joint_of()(batch)
    for name in ("prediction", "output", "score", "deferred", "degraded"):
        assert type(getattr(answer, name)) is type(batch)
    assert to_numpy(answer.deferred).dtype == to_numpy(answer.degraded).dtype == bool


@pytest.mark.parametrize("keep", [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
@pytest.mark.parametrize("blend", [0.0, 1.0])
def test_neither_models_output_is_ever_written_into(keep, blend, asarray):
    batch = asarray(batch_of(keep))
    outputs = {}

    def keeping(role, model):
        def call(rows):
            outputs[role] = model(rows)
            outputs[role, "before"] = to_numpy(outputs[role]).copy()
            return outputs[role]

        return call

    joint_of(keeping("student", student), keeping("teacher", teacher), blend=blend)(batch)
    for role in ("student", "teacher"):
        if role in outputs:
            np.testing.assert_array_equal(to_numpy(outputs[role]), outputs[role, "before"])
    np.testing.assert_array_equal(to_numpy(batch), batch_of(keep))


def test_a_student_whose_output_is_read_only_is_no_obstacle():
    frozen = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (4, 3))
    answer = joint_of(student=lambda batch: frozen)(batch_of([0, 0, 0, 0]))
    np.testing.assert_array_equal(answer.output[:, 2], -1)


def test_inputs_of_different_sizes_come_as_a_list():
    images = [np.full((side, side), float(side)) for side in (2, 7, 3, 9)]
    spy = Spy(lambda batch: np.array([[0.0, image.size] for image in batch]))
    joint = JointClassifier(
        lambda batch: np.array([[image.mean(), 0.0] for image in batch]),
        spy,
        Router("max_logit", 5),
    )
    answer = joint(images)
    assert answer.deferred.tolist() == [True, False, True, False]
    assert answer.output.tolist() == [[0, 4], [7, 0], [0, 9], [9, 0]]
    assert spy.batches[0][0] is images[0]
    assert spy.batches[0][1] is images[2]


def test_student_and_teacher_may_look_at_two_resolutions(asarray):
    """Each prepares the same inputs for itself; the router does not mind."""
    images = np.random.default_rng(0).normal(size=(10, 8, 8))

    def look(step):
        def model(batch):
            pixels = to_numpy(batch)[:, ::step, ::step]
            return asarray(np.stack([pixels.mean(axis=(1, 2)), pixels.std(axis=(1, 2))], axis=1))

        return model

    coarse, fine = (to_numpy(look(step)(images)) for step in (4, 1))
    joint = JointClassifier(look(4), look(1), Router("max_logit", float(np.median(coarse.max(1)))))
    answer = joint(asarray(images))
    deferred = to_numpy(answer.deferred)
    assert 0 < deferred.sum() < 10
    np.testing.assert_allclose(
        to_numpy(answer.output), np.where(deferred[:, None], fine, coarse), rtol=1e-12
    )


@pytest.mark.parametrize("keep", [[1, 0, 0, 1], [0, 0, 0, 0]])
def test_a_blend_mixes_the_students_probabilities_into_deferred_rows_alone(keep, asarray):
    batch = asarray(batch_of(keep))
    answer = joint_of(blend=0.5)(batch)
    kept = np.array(keep, bool)
    output = to_numpy(answer.output)
    ours, theirs = (to_numpy(model(batch)) for model in (student, teacher))
    softmax = [scipy.special.softmax(z, axis=1) for z in (ours, theirs)]
    mixed = (softmax[1] + 0.5 * softmax[0]) / 1.5
    np.testing.assert_array_equal(output[kept], ours[kept])
    np.testing.assert_allclose(np.exp(output[~kept]), mixed[~kept])


def test_a_blend_can_overrule_the_teacher(asarray):
    sure, unsure = asarray(np.array([[5.0, 0.0]])), asarray(np.array([[0.0, 0.1]]))
    for blend, prediction in ((0.0, 1), (1.0, 0)):
        joint = JointClassifier(lambda x: sure, lambda x: unsure, DEFER, blend=blend)
        assert to_numpy(joint(sure).prediction) == [prediction]


@given(fates=st.lists(st.sampled_from([0, 1, 2]), min_size=1, max_size=20), library=LIBRARIES)
@settings(max_examples=60, deadline=None)
def test_a_joint_model_is_a_teacher_and_three_stages_are_two_joints(fates, library):
    last = Spy(lambda batch: mark(batch, -2))
    inner = joint_of(student=lambda batch: mark(batch, -1), teacher=last, threshold=1)
    answer = joint_of(teacher=inner, threshold=2)(batch_of(fates, library))
    output = to_numpy(answer.output)
    np.testing.assert_array_equal(output[:, 1], np.arange(len(fates)))
    np.testing.assert_array_equal(output[:, 2], [{2: 1, 1: -1, 0: -2}[fate] for fate in fates])
    np.testing.assert_array_equal(to_numpy(answer.deferred), np.array(fates) < 2)
    assert len(last.batches) == (0 in fates)


# the teacher cannot be reached


@given(keep=MASKS, library=LIBRARIES)
@settings(max_examples=50, deadline=None)
def test_when_the_teacher_is_out_of_reach_the_student_answers_and_says_so(keep, library):
    answer = joint_of(teacher=unreachable)(batch_of(keep, library))
    np.testing.assert_array_equal(to_numpy(answer.output)[:, 2], 1)
    np.testing.assert_array_equal(to_numpy(answer.degraded), ~np.array(keep))
    assert not to_numpy(answer.deferred).any()


def test_when_told_so_an_unreachable_teacher_is_an_error():
    joint = joint_of(teacher=unreachable, when_unavailable="error")
    assert joint(batch_of([1, 1])).output.shape == (2, CLASSES)
    with pytest.raises(TeacherUnavailable, match="the link is down"):
        joint(batch_of([1, 0]))


@pytest.mark.parametrize("error", [RuntimeError, OSError, ZeroDivisionError, MemoryError, KeyError])
def test_a_teacher_that_raises_anything_is_away_and_warned_of_once(error):
    def broken(batch):
        raise error("out of memory")

    joint = joint_of(teacher=broken)
    said = f"the student answers instead: broken failed with {error.__name__}: .?out of memory"
    with pytest.warns(OutputWarning, match=said) as warned:
        answer = joint(batch_of([0, 1]))
    assert warned[0].filename == __file__
    assert (answer.deferred.tolist(), answer.degraded.tolist()) == ([False] * 2, [True, False])
    np.testing.assert_array_equal(answer.output[:, 2], 1)
    assert joint(batch_of([0])).degraded.tolist() == [True]  # and says no more
    strict = joint_of(teacher=broken, when_unavailable="error")
    with pytest.raises(TeacherFailed, match="broken failed with") as caught:
        strict(batch_of([0]))
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_ends_the_program_is_no_failure_of_the_teacher(end):
    def ended(batch):
        raise end

    with pytest.raises(end):
        joint_of(teacher=ended)(batch_of([0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_rows_that_are_not_finite_are_not_answered_and_the_others_are(bad, blend, asarray):
    def spoiled(batch):
        output = teacher(batch)
        output[to_numpy(batch)[:, 1] == 3, 1] = bad
        return output

    batch = asarray(batch_of([0, 1, 0, 0]))
    joint = joint_of(teacher=spoiled, blend=blend)
    said = r"instead: spoiled returned NaN or infinity in 1 of 3 rows"
    with pytest.warns(OutputWarning, match=said):
        answer = joint(batch)
    assert to_numpy(answer.deferred).tolist() == [True, False, True, False]
    assert to_numpy(answer.degraded).tolist() == [False, False, False, True]
    right = to_numpy(joint_of(blend=blend)(batch).output)
    np.testing.assert_array_equal(to_numpy(answer.output)[:3], right[:3])
    np.testing.assert_array_equal(to_numpy(answer.output)[3], to_numpy(student(batch))[3])
    assert to_numpy(joint(batch).degraded).tolist() == [False, False, False, True]
    strict = joint_of(teacher=spoiled, when_unavailable="error")
    with pytest.raises(TeacherUnavailable, match="answered 2 of 3 inputs: spoiled returned NaN"):
        strict(batch)
    with pytest.raises(TeacherFailed, match="NaN or infinity in 1 of 1 rows"):
        strict(batch[3:])


def test_rows_left_by_a_limit_and_rows_of_nonsense_are_told_apart():
    def limited(batch):
        output, answered = teacher(batch[[0, 2, 3]]), np.array([True, False, True, True])
        output[1] = np.nan
        return Answer(output, np.array([False, False, True]), answered)

    joint = joint_of(teacher=limited)
    batch = batch_of([0, 0, 0, 0])
    found = joint.ask_teacher(batch, student(batch))
    assert found.answered.tolist() == [True, False, False, True]
    assert found.degraded.tolist() == [False, True]
    np.testing.assert_array_equal(found.output, teacher(batch)[[0, 3]])
    assert found.why == "limited returned NaN or infinity in 1 of 3 rows"


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (lambda b: mark(b, 1) > 0, "returned bool instead of numbers"),
        (lambda b: mark(b, 1).astype(str), "returned <U.* instead of numbers"),
        (lambda b: mark(b, 1).astype(object), "returned object instead of numbers"),
        (lambda b: mark(b, 1) + 0j, "returned complex128 instead of"),
        (lambda b: Answer(mark(b, 1), degraded=np.zeros(7, bool)), "must mark 2 rows as true or"),
        (lambda b: Answer(mark(b, 1), degraded=np.zeros(2)), "must mark 2 rows as true or"),
        (lambda b: Answer(mark(b, 1), None, np.ones(3, bool)), "must mark 2 rows as true or"),
        (lambda b: Answer(mark(b, 1), spent=np.ones((1, 3))), "spent on each of 2 inputs, .2, 3."),
    ],
)
def test_what_is_no_number_is_no_answer(output, says):
    joint = joint_of(teacher=output, when_unavailable="error")
    with pytest.raises(TeacherFailed, match=says):
        joint(batch_of([0, 1, 0]))


def test_whole_numbers_of_a_local_teacher_are_an_answer(asarray):
    joint = joint_of(teacher=lambda b: asarray(to_numpy(teacher(b)).astype(np.int64)))
    assert to_numpy(joint(asarray(batch_of([0, 1]))).output)[:, 2].tolist() == [-1, 1]


def test_a_class_that_a_detector_rules_out_is_no_infinity():
    def detector(scores):
        kinds = {"labels": [0], "classes": 2}
        return lambda images: [
            Detections.of_scores([[0, 0, 4, 4]], [scores], (8, 8), **kinds) for _ in images
        ]

    joint = JointDetector(detector(0.4), detector(0.9), Router("max_confidence", 0.5))
    answer = joint([np.zeros((8, 8, 3), np.uint8)])
    assert np.isneginf(answer.output[0].logits).any()
    assert (answer.deferred.tolist(), answer.degraded.tolist()) == ([True], [False])


def test_a_teacher_that_comes_back_is_asked_again():
    calls = []

    def flaky(batch):
        calls.append(len(batch))
        return unreachable(batch) if len(calls) == 1 else teacher(batch)

    joint = joint_of(teacher=flaky)
    assert joint(batch_of([0, 1])).degraded.tolist() == [True, False]
    again = joint(batch_of([0, 1]))
    assert again.degraded.tolist() == [False, False]
    assert again.deferred.tolist() == [True, False]


def test_what_an_unreachable_last_stage_degrades_is_marked_to_the_top():
    inner = joint_of(student=lambda batch: mark(batch, -1), teacher=unreachable, threshold=1)
    answer = joint_of(teacher=inner, threshold=2)(batch_of([2, 1, 0]))
    assert answer.output[:, 2].tolist() == [1, -1, -1]
    assert answer.deferred.tolist() == [False, True, True]
    assert answer.degraded.tolist() == [False, False, True]


def test_a_degraded_answer_of_the_first_stage_is_marked_unless_it_is_deferred():
    inner = joint_of(teacher=unreachable, threshold=2)
    answer = joint_of(student=inner, threshold=1)(batch_of([2, 1, 0]))
    assert answer.deferred.tolist() == [False, False, True]
    assert answer.degraded.tolist() == [False, True, False]


# two libraries, two dtypes


@pytest.mark.parametrize("blend", [0.0, 0.5])
@pytest.mark.parametrize("keep", [[1, 0, 1, 0, 0], [0, 0]])
@pytest.mark.parametrize("torch_role", ["student", "teacher"])
def test_one_model_may_be_torch_and_the_other_numpy(torch_role, keep, blend):
    torch = pytest.importorskip("torch")

    def as_torch(model):
        return lambda batch: torch.as_tensor(model(np.asarray(batch)))

    models = {"student": student, "teacher": teacher}
    plain = joint_of(**models, blend=blend)(batch_of(keep))
    models[torch_role] = as_torch(models[torch_role])
    for library in ("numpy", "torch"):
        batch = batch_of(keep, library)
        answer = joint_of(
            lambda rows: models["student"](np.asarray(rows)),
            lambda rows: models["teacher"](np.asarray(rows)),
            blend=blend,
        )(batch)
        assert isinstance(answer.output, torch.Tensor) == (torch_role == "student")
        np.testing.assert_allclose(to_numpy(answer.output), plain.output)
        np.testing.assert_array_equal(to_numpy(answer.deferred), plain.deferred)
        np.testing.assert_array_equal(to_numpy(answer.prediction), plain.prediction)


@pytest.mark.parametrize("keep", [[1, 0], [0, 0]])
def test_a_torch_student_takes_a_read_only_answer_of_a_numpy_teacher(keep):
    torch = pytest.importorskip("torch")
    frozen = np.broadcast_to(np.array([0.0, 1.0, 2.0]), (2, 3))
    answer = joint_of(teacher=lambda batch: frozen[: len(batch)])(torch.as_tensor(batch_of(keep)))
    np.testing.assert_array_equal(to_numpy(answer.output)[1], [0, 1, 2])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("float16", "float32"),
        ("float32", "float16"),
        ("float32", "float64"),
        ("float64", "float32"),
    ],
)
@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_models_of_two_dtypes_answer_in_the_wider_one(ours, theirs, blend, asarray):
    odd = np.array([0.1, 1 / 3, 0.7])
    joint = joint_of(
        lambda batch: asarray((to_numpy(batch)[:, :1] + odd).astype(ours)),
        lambda batch: asarray(np.tile(odd, (len(batch), 1)).astype(theirs)),
        threshold=0.9,
        blend=blend,
    )
    output = to_numpy(joint(asarray(batch_of([1, 0, 1]))).output)
    assert output.dtype == np.result_type(ours, theirs)
    np.testing.assert_array_equal(output[0], (1 + odd).astype(ours))
    if not blend:
        np.testing.assert_array_equal(output[1], odd.astype(theirs))


def test_bfloat16_and_numpy_go_together():
    torch = pytest.importorskip("torch")
    joint = joint_of(student=lambda batch: torch.as_tensor(student(batch)).bfloat16())
    output = to_numpy(joint(batch_of([1, 0, 1])).output)
    np.testing.assert_array_equal(output[:, 2], [1, -1, 1])


def test_a_network_that_keeps_gradients_can_be_either_model():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(2, 3).double(), torch.nn.Linear(2, 3).double()
    batch = batch_of([1, 0, 1, 0], "torch")
    joint = JointClassifier(
        ours, theirs, Router("max_logit", float(ours(batch)[:2].amax(1).mean().detach()))
    )
    answer = joint(batch)
    deferred = to_numpy(answer.deferred)
    assert 0 < deferred.sum() < 4
    expected = np.where(deferred[:, None], to_numpy(theirs(batch)), to_numpy(ours(batch)))
    np.testing.assert_allclose(to_numpy(answer.output), expected)


# models that answer nonsense


@pytest.mark.parametrize(
    ("role", "model", "message"),
    [
        ("student", lambda b: mark(b, 1)[1:], r"given 3 inputs and must return 3 rows .*\(2, 3\)"),
        ("student", lambda b: 0.5, "given 3 inputs and must return 3 rows .* returned float"),
        ("student", lambda b: [[1.0, 2.0]] * len(b), "must return 3 rows .* returned list"),
        ("teacher", lambda b: mark(b, 1)[:1], r"given 2 inputs and must return 2 rows .*\(1, 3\)"),
        ("teacher", lambda b: np.ones((3, 3)), r"must return 2 rows .*\(3, 3\)"),
        ("teacher", lambda b: None, "must return 2 rows .* returned NoneType"),
        ("teacher", lambda b: mark(b, 1)[:, :2], r"must answer alike.*\(3,\).*\(2,\)"),
        ("teacher", lambda b: mark(b, 1)[:, 0], r"must answer alike.*\(3,\).*\(\)"),
        ("teacher", lambda b: mark(b, 1)[..., None], r"must answer alike.*\(3,\).*\(3, 1\)"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_a_model_error_in_one_sentence(role, model, message):
    with pytest.raises(ModelError, match=message) as caught:
        joint_of(**{role: model}, when_unavailable="error")(batch_of([0, 1, 0]))
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, TeacherFailed) == (role == "teacher")


@pytest.mark.parametrize("keep", [[0, 1], [0, 0]])
def test_a_teacher_of_other_classes_is_found_out_at_any_deferral(keep):
    with pytest.warns(OutputWarning, match="must answer alike"):
        answer = joint_of(teacher=lambda batch: np.ones((len(batch), 7)))(batch_of(keep))
    np.testing.assert_array_equal(answer.degraded, np.array(keep) == 0)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 3, 4)])
def test_a_student_whose_answer_is_no_logits_is_refused(shape):
    joint = JointClassifier(lambda batch: np.ones(shape), teacher, KEEP)
    with pytest.raises((ModelError, ValueError), match=r"\(n, classes\)"):
        joint(batch_of([1, 1]))


@pytest.mark.parametrize("thing", ["text", 3, None, np.array(1.0)])
def test_what_is_no_batch_is_refused_before_any_model_runs(thing):
    spy = Spy(student)
    with pytest.raises(TypeError, match="inputs must be an array with a batch dimension or a list"):
        joint_of(student=spy)(thing)
    assert spy.batches == []


# making one


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"router": 0.5}, TypeError, "router must be an ebjr.Router, not float"),
        (
            {"student": "s.onnx"},
            TypeError,
            "the student must be a callable.*not str: load a file with ebjr.load_model",
        ),
        ({"teacher": None}, TypeError, "the teacher must be a callable.*not NoneType"),
        ({"when_unavailable": "panic"}, ValueError, "one of student, error, queue, not 'panic'"),
        ({"blend": -1.0}, ValueError, "blend must be a finite weight"),
        ({"blend": np.nan}, ValueError, "blend must be a finite weight"),
    ],
)
def test_a_joint_model_is_checked_when_it_is_made(arguments, error, message):
    good = {"student": student, "teacher": teacher, "router": KEEP}
    with pytest.raises(error, match=message):
        JointClassifier(**{**good, **arguments})


def test_the_knob_takes_effect_at_the_next_batch():
    joint = joint_of(threshold=-1.0)
    batch = batch_of([1, 0, 0.5])
    rates = []
    for threshold in (-1.0, 0.5, 0.6, 2.0, 0.0):
        joint.router.threshold = threshold
        rates.append(joint(batch).deferred.sum())
    assert rates == [0, 1, 2, 3, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_the_student_cannot_score_goes_to_the_teacher(bad, asarray):
    def spoiled(batch):
        output = student(batch)
        output[1, 0] = bad
        return output

    joint = JointClassifier(spoiled, teacher, Router("energy", -1e9))
    answer = joint(asarray(batch_of([1, 1, 1])))
    assert to_numpy(answer.deferred).tolist() == [False, True, False]
    np.testing.assert_array_equal(to_numpy(answer.output)[:, 2], [1, -1, 1])


def test_a_row_of_nan_is_no_answer_while_the_teacher_is_away(asarray):
    def spoiled(batch):
        output = student(batch)
        output[1:2] = np.nan
        return output

    def away(batch):
        raise TeacherUnavailable("it is away")

    joint = JointClassifier(spoiled, away, Router("energy", 1e9))
    batch = asarray(batch_of([1, 1, 1]))
    with pytest.raises(TeacherUnavailable, match="1 of 3 rows have no answer from spoiled or away"):
        joint(batch)
    assert joint.unanswered(joint.unchecked(batch)).tolist() == [False, True, False]
    assert joint(batch[:1]).degraded.tolist() == [True]


def test_the_base_class_leaves_the_answer_to_its_finals():
    with pytest.raises(NotImplementedError, match="use a task's final"):
        JointModel(student, teacher, KEEP)
    assert JointClassifier(student, teacher, KEEP).task == "classification"


class Elsewhere:
    """A student at an address, which answers some rows."""

    facts = ModelFacts("elsewhere", url="http://127.0.0.1/v1", labels=("no", "yes"))

    def __call__(self, batch):
        known = np.asarray(batch) > 0
        if not known.any():
            raise TeacherUnavailable("it is away")
        rows = np.stack([batch[known], -batch[known]], axis=1)
        return Answer(rows, answered=known, why="no logprobs", spent=np.ones((len(batch), 3)))


def _paid(batch):
    return Answer(np.stack([-batch, batch], axis=1), spent=np.full((len(batch), 3), 10.0))


@pytest.mark.parametrize("blend", [0.0, 0.5])
def test_rows_that_a_student_elsewhere_does_not_answer_are_the_teachers_alone(blend):
    joint = JointClassifier(Elsewhere(), _paid, Router("softmax", 0.9), blend=blend)
    with pytest.warns(OutputWarning, match="the teacher answers instead: no logprobs"):
        answer = joint(np.array([5.0, -1.0, 0.1]))
    assert answer.deferred.tolist() == [False, True, True]
    assert answer.prediction.tolist()[:2] == [0, 0]
    assert np.isfinite(answer.output).all()
    assert answer.spent[:, 0].tolist() == [1.0, 11.0, 11.0]


def test_minus_infinity_is_an_answer_of_a_student_elsewhere():
    def certain(batch):
        return np.tile([0.0, -np.inf], (len(batch), 1))

    certain.url = "http://127.0.0.1/v2/models/m"
    joint = JointClassifier(certain, _paid, Router("softmax", 0.9), blend=0.5)
    assert joint(np.ones(2)).prediction.tolist() == [0, 0]


def test_a_student_that_is_away_leaves_every_row_to_the_teacher():
    with pytest.warns(OutputWarning, match="it is away"):
        answer = JointClassifier(Elsewhere(), _paid, Router("random", 1e-9))(np.full(3, -2.0))
    assert answer.deferred.all()
    assert answer.prediction.tolist() == [0, 0, 0]


def test_a_row_that_nobody_answers_is_refused_and_never_guessed():
    def away(batch):
        raise TeacherUnavailable("it is away, too")

    joint = JointClassifier(Elsewhere(), away, Router("softmax", 0.9))
    with (
        pytest.warns(OutputWarning),
        pytest.raises(TeacherUnavailable, match=r"1 of 2 rows have no answer from"),
    ):
        joint(np.array([5.0, -1.0]))
    chain = JointClassifier(joint, _paid, Router("softmax", 0.9))
    assert chain(np.array([5.0, -1.0])).prediction.tolist() == [0, 0]
