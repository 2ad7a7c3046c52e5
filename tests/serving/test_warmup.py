"""Models are asked before clients are, in the form of their input, and one that fails is named."""

from __future__ import annotations

import numpy as np
import pytest
from small import served, student

from ebjr import (
    FarTeacher,
    JointClassifier,
    JointDetector,
    ModelError,
    Preprocess,
    Preprocessed,
    Router,
)
from ebjr.model import ModelFacts
from ebjr.serving.served import Served
from ebjr.serving.warmup import check_labels, warm_up
from ebjr.tasks.detection.boxes import Detections


class Counting:
    """A model that remembers the batches that it was asked about."""

    def __init__(self, model=student, **about):
        self.model, self.batches = model, []
        vars(self).update(about)

    def __call__(self, batch):
        self.batches.append(np.shape(batch))
        return self.model(batch)


def about(**more):
    return {"input_shape": (None, 2), "input_name": "x", "input_dtype": np.float32, **more}


def test_both_models_answer_one_row_and_a_full_batch():
    first, last = Counting(**about()), Counting()
    warm_up(served(student=first, teacher=last), rows=8)
    assert first.batches == last.batches == [(1, 2), (1, 2), (8, 2)]


def test_a_slow_model_answers_one_row_alone(monkeypatch):
    monkeypatch.setattr("ebjr.serving.warmup.MOST_SECONDS", 0.0)
    first = Counting(**about())
    warm_up(served(student=first), rows=8)
    assert first.batches == [(1, 2), (1, 2)]


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_that_fails_is_named_in_one_sentence(role):
    def broken(x):
        raise KeyError("no such layer")

    vars(broken).update(about())
    with pytest.raises(ModelError, match=r"broken fails on its first batch: .*--no-warm-up") as why:
        warm_up(served(**{role: broken}))
    assert "\n" not in str(why.value)


def test_a_model_that_returns_other_rows_fails():
    def one(x):
        return student(x)[:1]

    with pytest.raises(ModelError, match=r"one fails on its first batch: .* 8 inputs"):
        warm_up(served(teacher=one), rows=8)


def test_a_far_teacher_is_not_asked():
    far = Counting()
    teacher = FarTeacher(far)
    warm_up(served(teacher=teacher))
    teacher.close()
    assert far.batches == []


def test_images_are_of_the_size_that_the_student_sees_and_texts_are_texts():
    def means(batch):
        return np.asarray(batch).mean(axis=(2, 3))

    pair = [Preprocessed(Counting(means), Preprocess(size=size)) for size in ((4, 6), 8)]
    warm_up(Served(JointClassifier(*pair, Router("margin", 0.5))), rows=2)
    assert pair[0].model.batches == [(1, 3, 4, 6), (1, 3, 4, 6), (2, 3, 4, 6)]
    assert pair[1].model.batches[-1] == (2, 3, 8, 8)

    def length(texts):
        return np.array([[len(text), 1.0] for text in texts])

    reader = Counting(length, input_dtype=object, input_shape=(None,))
    warm_up(served(student=reader, teacher=length), rows=3)
    assert reader.batches == [(1,), (1,), (3,)]


def test_where_the_form_is_not_known_nothing_is_asked():
    for form in ({"input_shape": (None, None)}, {"input_shape": None}):
        first = Counting(**about(**form))
        warm_up(served(student=first))
        assert first.batches == []
    rows = Counting(input_dtype=object, input_shape=(None, 2), columns=("age", "job"))
    warm_up(served(student=rows))
    assert rows.batches == []


def test_every_stage_is_asked():
    models = [Counting(**about()), Counting(), Counting()]
    first = JointClassifier(*models[:2], Router("margin", 0.5))
    warm_up(Served(JointClassifier(first, models[2], Router("entropy", 0.5))), rows=2)
    assert [model.batches for model in models] == [[(1, 2), (1, 2), (2, 2)]] * 3


@pytest.mark.parametrize(
    ("boxes", "labels", "said"),
    [
        ((3, 3), 3, None),
        ((3, 3), 2, "there are 2 labels, but detector answers 3 classes"),
        ((3, 4), 3, r"rows of \(3,\) and detector of \(4,\)"),
    ],
)
def test_detectors_of_other_classes_than_the_labels_are_refused(boxes, labels, said):
    def detector(classes):
        def found(images):
            box, logits = np.array([[0.0, 0, 2, 2]]), np.ones((1, classes))
            return [Detections(box, logits, image.shape[:2]) for image in images]

        found.facts = ModelFacts("detector", preprocess={"size": 8})
        found.name = "detector"
        return found

    pair = (detector(classes) for classes in boxes)
    joint = JointDetector(*pair, Router("max_confidence", 0.5))
    about = Served(joint, labels=("a", "b", "c")[:labels])
    if said is None:
        warm_up(about, rows=2)
    else:
        with pytest.raises(ModelError, match=said):
            warm_up(about, rows=2)


def test_labels_are_counted_where_nothing_can_be_asked():
    def named(x):
        return student(x)

    named.labels = ("a", "b", "c")
    for role in ("student", "teacher"):
        about = served(**{role: named})
        check_labels(about)
        about.labels = ("a", "b")
        with pytest.raises(ModelError, match="there are 2 labels, but named answers 3 classes"):
            check_labels(about)
