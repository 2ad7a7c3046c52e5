"""A second look is a model: the same weights, which see the image otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ebjr
from ebjr import FarTeacher, Preprocess, Preprocessed, look, mirrored
from ebjr.data.looks import Look
from ebjr.data.preprocess import moved
from ebjr.model import facts

RNG = np.random.default_rng(2)
IMAGES = RNG.integers(0, 256, (4, 6, 8, 3), np.uint8)
WEIGHTS = RNG.normal(size=(3, 6, 8))
shifts = st.tuples(st.integers(-9, 9), st.integers(-9, 9))


def weigh(batch):
    """A model of arrays (n, 3, 6, 8) that every pixel of every place counts for."""
    planes = np.stack(batch) if isinstance(batch, list) else batch
    return np.einsum("nchw,chw->nc", planes.astype(float), WEIGHTS)


@given(st.booleans(), shifts, st.booleans())
def test_every_pixel_comes_from_where_the_look_says(mirror, shift, as_text):
    way = Preprocess(size=(6, 8), dtype="uint8", layout="nhwc", mirror=mirror, shift=shift)
    way = Preprocess.parse(way.as_text()) if as_text else way
    seen = way(IMAGES)
    for row in range(6):
        for column in range(8):
            x, y = np.clip(column - shift[0], 0, 7), np.clip(row - shift[1], 0, 5)
            x = 7 - x if mirror else x
            np.testing.assert_array_equal(seen[:, row, column], IMAGES[:, y, x])


@pytest.mark.parametrize("how", [{"mirror": True}, {"shift": (2, -1)}])
def test_a_look_answers_what_the_model_says_of_the_changed_image(how):
    changed = moved(IMAGES, how.get("mirror", False), how.get("shift", (0, 0)), -3)
    model = Preprocessed(weigh, Preprocess(size=(6, 8)))
    np.testing.assert_allclose(look(model, **how)(IMAGES), model(np.ascontiguousarray(changed)))
    planes, theirs = (images.transpose(0, 3, 1, 2) for images in (IMAGES, changed))
    np.testing.assert_allclose(look(weigh, **how)(planes), weigh(theirs))
    np.testing.assert_allclose(look(weigh, **how)(list(planes)), weigh(theirs))


def test_a_look_of_torch_arrays_is_the_same():
    torch = pytest.importorskip("torch")
    planes = IMAGES.transpose(0, 3, 1, 2).astype(np.float32)
    model = look(lambda batch: batch, mirror=True, shift=(1, 2))
    np.testing.assert_array_equal(model(torch.as_tensor(planes)).numpy(), model(planes))
    assert model(planes).flags.c_contiguous


def test_mirrored_twice_is_the_original():
    assert mirrored(mirrored(weigh)) is weigh
    model = Preprocessed(weigh, Preprocess(size=(6, 8)))
    twice = mirrored(mirrored(model))
    assert twice.model is model.model
    assert twice.preprocess == model.preprocess


def test_a_look_of_a_look_is_both():
    both = look(mirrored(weigh), shift=(1, 0))
    assert both.model is weigh
    assert both.change == Preprocess(mirror=True, shift=(1, 0))
    assert facts(both).name == "weigh (mirror=true,shift=1/0)"


def test_a_look_keeps_the_rest_of_the_preprocessing_and_is_the_same_model():
    model = Preprocessed(weigh, Preprocess(size=(6, 8), range=(-1, 1), color="bgr"))
    seen = look(model, mirror=True, size=(12, 16))
    assert seen.model is weigh
    assert facts(seen).preprocess == {
        **{"size": [12, 16], "range": [-1.0, 1.0]},
        **{"color": "bgr", "mirror": True},
    }


def test_a_box_that_a_look_finds_is_where_it_is_in_the_image():
    image = np.zeros((16, 24, 3), np.uint8)
    image[4:10, 2:6] = 255
    way = Preprocess(size=(32, 48), mirror=True, shift=(3, -2), interpolation="bilinear")
    seen = way([image])[0, 0] > 0.5
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    found = np.array([[columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]], np.float32)
    np.testing.assert_array_equal(
        way.boxes_to_image(found, (32, 48), (16, 24)), [[2.0, 4.0, 6.0, 10.0]]
    )


class Features:
    """A model of eight features, as it says."""

    input_shape = (None, 8)

    def __call__(self, batch):
        return batch


class Fixed(Features):
    input_shape = (None, 3, 6, 8)


class Far(Features):
    url, input_shape = "http://far", None


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: mirrored(Features()), r"a look needs images, .* but Features takes \('n', 8\)"),
        (lambda: look(Fixed(), size=12), "Fixed takes only images of 6 x 8 pixels: a look at ano"),
        (
            lambda: look(Preprocessed(Fixed(), Preprocess(size=(6, 8))), size=12),
            "Fixed takes only images of 6 x 8 pixels",
        ),
        (lambda: mirrored(Far()), "Far is at an address: a look needs a local model"),
        (lambda: mirrored(FarTeacher(Far())), "is at an address"),
        (lambda: look(weigh, shift=(0.5, 0)), "shift must be .right, down. in whole pixels"),
        (lambda: look(weigh, mirror=1), "mirror must be true or false, not 1"),
        (lambda: mirrored(weigh)(np.ones((4, 8))), r"mirror=true\) takes \(4, 8\): leave the look"),
        (lambda: mirrored(weigh)(["one", "two"]), "a look needs images"),
        (lambda: mirrored(weigh)(np.ones((4, 5, 6, 7))), "a look needs images"),
        (lambda: look(weigh, size=9)(IMAGES), "takes arrays, which keep their size"),
    ],
)
def test_a_look_that_the_input_cannot_take_is_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_look_of_a_file_is_named_with_its_preprocessing_and_one_of_arrays_is_not(tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from tiny import write_pair

    from ebjr.backends.entry import entry_of

    model = ebjr.load_model(write_pair(tmp_path)[0])
    entry = entry_of(mirrored(Preprocessed(model, Preprocess(size=8))))
    assert entry.as_table(tmp_path)["preprocess"] == {"size": 8, "mirror": True}
    assert entry.load().preprocess.mirror
    assert isinstance(mirrored(model), Look)
    with pytest.raises(TypeError, match=r"define it in a file, like models\.py"):
        entry_of(mirrored(model))
    (tmp_path / "models.py").write_text(
        f"import ebjr\nsecond = ebjr.mirrored(ebjr.load_model({str(tmp_path / 'student.onnx')!r}))"
    )
    images = RNG.random((5, 3, 8, 8), np.float32)
    with pytest.warns(ebjr.RecordingNote, match="no weights were found in .*models.py:second"):
        again = entry_of(ebjr.load_model(f"{tmp_path}/models.py:second"))
    np.testing.assert_array_equal(again.load(trust=True)(images), mirrored(model)(images))
