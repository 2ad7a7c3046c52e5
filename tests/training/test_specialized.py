"""A specialized student learns the popular classes, and where its knowledge ends."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from ebjr import ModelError, relabel  # noqa: E402
from ebjr.tasks.specialized.known_classes import to_student  # noqa: E402
from ebjr.training.specialized import small_head, train_specialized  # noqa: E402

KNOWN, CLASSES = (4, 1), 6
QUICK = {"epochs": 8, "learning_rate": 3e-2, "batch_size": 128}


@pytest.fixture(scope="module")
def data():
    """Six kinds of points around the corners of a simplex."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 1500)
    inputs = (2 * np.eye(CLASSES)[labels] + rng.normal(0, 0.6, (1500, CLASSES))).astype(np.float32)
    return inputs, labels


def answers(student, inputs):
    with torch.no_grad():
        return student(torch.as_tensor(inputs)).numpy()


def accuracy(student, inputs, labels):
    return (answers(student, inputs).argmax(axis=1) == relabel(labels, KNOWN)).mean()


def test_it_tells_the_known_classes_and_the_others_apart(data):
    told = []
    student = train_specialized(
        small_head(CLASSES, 2), *data, KNOWN, **QUICK,
        progress=lambda epoch, loss: told.append((epoch, loss)),
    )  # fmt: skip
    assert accuracy(student, *data) > 0.9
    assert not student.training
    assert [epoch for epoch, _ in told] == list(range(8))
    assert told[-1][1] < told[0][1]


def test_a_head_is_trained_on_a_backbone_that_stays_as_it_is(data):
    inputs, labels = data
    backbone = torch.nn.Sequential(torch.nn.Linear(CLASSES, 16), torch.nn.BatchNorm1d(16))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    student = train_specialized(
        small_head(16, 2, hidden=8), inputs, labels, KNOWN, backbone=backbone, **QUICK
    )
    for name, value in backbone.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert accuracy(student, inputs, labels) > 0.85
    assert answers(student, inputs[:3]).shape == (3, 3)


def test_without_labels_it_learns_from_the_teacher_alone(data):
    inputs, labels = data
    teacher = 3 * inputs
    student = train_specialized(
        small_head(CLASSES, 2), inputs, None, KNOWN, teacher=teacher, **QUICK
    )
    assert accuracy(student, inputs, labels) > 0.85


def test_distillation_alone_ends_at_the_teachers_distribution(data):
    """The labels here are wrong on purpose: with a weight of 1 nothing reads them."""
    inputs, labels = data
    teacher = (2 * inputs).astype(np.float32)
    student = train_specialized(
        small_head(CLASSES, 2, hidden=16), inputs, (labels + 1) % CLASSES, KNOWN,
        teacher=teacher, distillation=1.0, temperature=1.0, epochs=40, learning_rate=1e-2,
    )  # fmt: skip
    own = torch.softmax(torch.as_tensor(answers(student, inputs)), 1).numpy()
    theirs = torch.softmax(torch.as_tensor(to_student(teacher, KNOWN)), 1).numpy()
    assert np.abs(own - theirs).mean() < 0.05


def test_a_larger_popular_share_says_other_less_often(data):
    inputs, labels = data
    noisy = inputs + np.random.default_rng(1).normal(0, 1.5, inputs.shape).astype(np.float32)
    said = []
    for popular in (0.1, 0.9):
        student = train_specialized(
            small_head(CLASSES, 2), noisy, labels, KNOWN, popular=popular, **QUICK
        )
        said.append((answers(student, noisy).argmax(axis=1) == 2).mean())
    assert said[0] > said[1] + 0.2


def test_the_same_seed_gives_the_same_student(data):
    inputs, labels = data
    first, second, other = (
        answers(
            train_specialized(small_head(CLASSES, 2, seed=seed), inputs, labels, KNOWN, epochs=1),
            inputs[:9],
        )
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 0.01


def test_augmentation_sees_every_batch(data):
    seen = []

    def augment(batch, generator):
        seen.append(len(batch))
        return batch + 0.01 * torch.randn(batch.shape, generator=generator)

    train_specialized(
        small_head(CLASSES, 2), *data, KNOWN, augment=augment, epochs=2, batch_size=400
    )
    assert sum(seen) == 2 * len(data[0])


INPUTS = np.random.default_rng(0).normal(0, 1, (40, CLASSES)).astype(np.float32)
LABELS = np.arange(40) % CLASSES


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "give labels=, or teacher= with logits"),
        ({"labels": LABELS[:39]}, "must have the same length, not 39, 40"),
        ({"teacher": np.zeros((40, 5))}, "labels must lie in 0..4, the teacher's, but one is 5"),
        ({"teacher": np.full((40, 6), np.nan)}, "must be .n, classes. and finite"),
        ({"known_classes": [4, 9]}, "known class 9 has no example among the 40"),
        ({"labels": np.full(40, 4)}, "labels must include other classes"),
        ({"known_classes": [4, 4]}, "label 4 is there twice"),
        ({"popular": 1.0}, "popular must lie between 0 and 1, both excluded, not 1.0"),
        ({"distillation": 1.5}, "distillation must lie between 0 and 1, not 1.5"),
        ({"temperature": 0.0}, "temperature must be a positive number, not 0.0"),
    ],
)
def test_bad_arguments_are_one_sentence(changed, message):
    given = {"inputs": INPUTS, "labels": LABELS, "known_classes": KNOWN, **changed}
    with pytest.raises(ValueError, match=message):
        train_specialized(small_head(CLASSES, 2), **given)


def test_a_network_of_other_classes_is_named_with_its_shape():
    with pytest.raises(ModelError, match=r"must return \(n, 3\) .* not \(40, 4\)"):
        train_specialized(small_head(CLASSES, 3), INPUTS, LABELS, KNOWN)


def test_a_loss_that_is_no_number_stops_the_training():
    broken = INPUTS.copy()
    broken[3, 0] = np.nan
    with pytest.raises(ModelError, match="the loss is not finite after epoch 0"):
        train_specialized(small_head(CLASSES, 2), broken, LABELS, KNOWN)


@pytest.mark.parametrize("sizes", [(0, 2), (3, 0), (3, 2, -1)])
def test_a_head_needs_features_and_classes(sizes):
    with pytest.raises(ValueError, match="a head needs at least 1 feature, 1 known class"):
        small_head(*sizes)
