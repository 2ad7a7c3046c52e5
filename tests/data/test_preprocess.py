from __future__ import annotations

import re
import resource
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ebjr.data.preprocess import ImageFile, Preprocess, Preprocessed, infer_preprocess
from ebjr.model import Model


def photos(*sizes: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


sides = st.integers(1, 24)
finite = st.floats(-300, 300, allow_nan=False, width=32)
positive = st.floats(0.125, 300, width=32)


@st.composite
def preprocesses(draw: st.DrawFn) -> Preprocess:
    dtype = draw(st.sampled_from(["float32", "float16", "uint8"]))
    color = draw(st.sampled_from(["rgb", "bgr", "gray"]))
    channels = 1 if color == "gray" else 3
    scaled = {}
    if dtype != "uint8":
        scaled = {
            "range": draw(
                st.tuples(finite, finite).filter(lambda ends: ends[0] != ends[1]).map(sorted)
            ),
            "mean": draw(st.none() | st.tuples(*[finite] * channels)),
            "std": draw(st.none() | st.tuples(*[positive] * channels)),
        }
    return Preprocess(
        size=draw(st.none() | sides | st.tuples(sides, sides)),
        resize=draw(st.sampled_from(["squash", "crop", "letterbox"])),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        color=color,
        layout=draw(st.sampled_from(["nchw", "nhwc"])),
        dtype=dtype,
        mirror=draw(st.booleans()),
        shift=draw(st.tuples(st.integers(-9, 9), st.integers(-9, 9))),
        **scaled,
    )


@given(preprocesses())
def test_a_preprocess_survives_its_dictionary_and_its_text(preprocess) -> None:
    assert Preprocess.from_dict(preprocess.as_dict()) == preprocess
    assert Preprocess.parse(preprocess.as_text()) == preprocess


def test_defaults_are_left_out() -> None:
    assert Preprocess().as_dict() == {}
    assert Preprocess.parse("") == Preprocess()
    assert Preprocess(size=(8, 8)) == Preprocess(size=8)


def test_a_toml_file_is_read(tmp_path) -> None:
    file = tmp_path / "teacher.toml"
    file.write_text('size = [96, 128]\nresize = "letterbox"\nstd = [1, 2, 3]\n')
    assert Preprocess.from_file(file) == Preprocess(
        size=(96, 128), resize="letterbox", std=(1.0, 2.0, 3.0)
    )
    file.write_text("\ufeffsize = 8\r\n", encoding="utf-8")
    assert Preprocess.from_file(file) == Preprocess(size=8)
    file.write_text("size = 8", encoding="utf-16")
    with pytest.raises(ValueError, match=r"teacher\.toml is not UTF-8 text"):
        Preprocess.from_file(file)
    file.write_text("size = ")
    with pytest.raises(ValueError, match=r"teacher\.toml"):
        Preprocess.from_file(file)
    with pytest.raises(FileNotFoundError, match=r"preprocess file .* does not exist"):
        Preprocess.from_file(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sise": 3}, "no key 'sise'; it has size, resize"),
        ({"size": 0}, "size must be a positive whole number"),
        ({"size": True}, "size must be a positive whole number"),
        ({"size": [1, 2, 3]}, "size must be a positive whole number"),
        ({"size": 2.5}, "size must be a positive whole number"),
        ({"resize": "stretch"}, "resize must be one of squash, crop, letterbox, not 'stretch'"),
        ({"layout": ["nchw"]}, "layout must be one of"),
        ({"range": [1, 0]}, "range must be"),
        ({"range": [0, float("inf")]}, "range must be 2 finite numbers"),
        ({"mean": [0.5]}, "mean must be 3 finite numbers"),
        ({"std": [1, 0, 1]}, "std must be positive"),
        ({"std": "imagenet"}, "std must be 3 finite numbers"),
        ({"color": "grey"}, "color must be one of rgb, bgr, gray, not 'grey'"),
        ({"color": "gray", "mean": [0.4, 0.5, 0.4]}, "mean must be one finite number for a gray"),
        ({"mean": 0.5}, "mean must be 3 finite numbers"),
        ({"mirror": "yes"}, "mirror must be true or false, not 'yes'"),
        ({"mirror": 1}, "mirror must be true or false"),
        ({"shift": 2}, "shift must be (right, down) in whole pixels, not 2"),
        ({"shift": [1.5, 0]}, "shift must be (right, down) in whole pixels"),
        ({"shift": [True, 0]}, "shift must be (right, down) in whole pixels"),
        ({"dtype": "float16", "std": [1, 1, 1e-6]}, "overflow float16"),
        ({"dtype": "uint8", "mean": [1, 1, 1]}, "dtype uint8 keeps the pixels"),
    ],
)
def test_a_bad_key_or_value_is_named(values, sentence) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Preprocess.from_dict(values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("size", "must be key=value"),
        ("size=8,size=9", "'size' twice"),
        ("size=big", "size must be a positive whole number .* not 'big'"),
        ("mean=0.5/x/0.5", "mean must be 3 finite numbers"),
        ("mean=nan/0/0", "mean must be 3 finite numbers"),
        ("width=3", "no key 'width'"),
        ("mirror=left", "mirror must be true or false, not 'left'"),
        ("shift=2/x", "shift must be .* not '2/x'"),
    ],
)
def test_a_bad_flag_is_one_sentence(text, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        Preprocess.parse(text)


@given(
    st.tuples(sides, sides),
    st.sampled_from(["squash", "crop", "letterbox"]),
    st.sampled_from(["bilinear", "bicubic"]),
)
def test_an_image_of_the_right_size_keeps_every_bit(size, resize, interpolation) -> None:
    images = photos(size, size)
    keep = Preprocess(size, resize, interpolation, layout="nhwc", dtype="uint8")
    np.testing.assert_array_equal(keep(images), np.stack(images))


@given(preprocesses(), st.integers(1, 3), st.integers(0, 9))
def test_layouts_are_transposes_and_lists_are_arrays(preprocess, count, seed) -> None:
    images = photos(*[(7, 11)] * count, seed=seed)
    values = preprocess.as_dict()
    first = Preprocess.from_dict(values | {"layout": "nchw"})(images)
    last = Preprocess.from_dict(values | {"layout": "nhwc"})(np.stack(images))
    height, width = preprocess.height_width or (7, 11)
    assert first.shape == (count, preprocess.channels, height, width)
    assert first.dtype == preprocess.dtype
    np.testing.assert_array_equal(first.transpose(0, 2, 3, 1), last)
    assert first.flags.c_contiguous
    assert last.flags.c_contiguous


@given(preprocesses())
def test_each_image_is_preprocessed_alone(preprocess) -> None:
    preprocess = Preprocess.from_dict({"size": 5} | preprocess.as_dict())
    images = photos((5, 9), (12, 4), (5, 5))
    together = preprocess(images)
    for row, image in zip(together, images, strict=True):
        np.testing.assert_array_equal(row, preprocess([image])[0])


def test_pixels_follow_the_formula() -> None:
    images = np.stack(photos((6, 5), (6, 5)))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    tensor = Preprocess(mean=mean, std=std, layout="nhwc")(images)
    np.testing.assert_allclose(tensor, (images / 255 - mean) / std, rtol=1e-6, atol=1e-7)
    wide = Preprocess(range=(-1, 1), layout="nhwc")(images)
    np.testing.assert_allclose(wide, images / 127.5 - 1, atol=1e-6)
    plain = Preprocess(layout="nhwc")(images)
    np.testing.assert_array_equal(plain, images.astype(np.float32) / np.float32(255))
    raw = Preprocess(range=(0, 255), layout="nhwc")(images)
    np.testing.assert_array_equal(raw, images.astype(np.float32))


def test_bgr_reverses_the_channels_before_the_mean() -> None:
    images = photos((3, 3))
    mean = (103.9, 116.8, 123.7)
    tensor = Preprocess(range=(0, 255), mean=mean, color="bgr", layout="nhwc")(images)
    np.testing.assert_allclose(tensor[0], images[0][..., ::-1] - np.array(mean), atol=1e-4)


def test_crop_keeps_the_center_and_letterbox_keeps_everything() -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200
    crop = Preprocess(size=8, resize="crop", layout="nhwc", dtype="uint8")([wide])
    np.testing.assert_array_equal(crop, np.full((1, 8, 8, 3), 200))
    boxed = Preprocess(size=16, resize="letterbox", layout="nhwc", dtype="uint8")([wide])[0]
    np.testing.assert_array_equal(boxed[4:12], wide)
    assert (np.delete(boxed, slice(4, 12), axis=0) == 114).all()


@given(st.tuples(sides, sides), st.tuples(sides, sides))
def test_every_way_of_resizing_gives_the_size_and_keeps_a_flat_color(given_size, size) -> None:
    flat = np.full((*given_size, 3), 114, np.uint8)
    for resize in ("squash", "crop", "letterbox"):
        sized = Preprocess(size, resize, layout="nhwc", dtype="uint8")([flat])
        np.testing.assert_array_equal(sized, np.full((1, *size, 3), 114))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(1, 90), (90, 1), (3, 200), (200, 3), (7, 331), (40, 1999)])
def test_what_is_cut_before_it_is_scaled_is_what_pillow_scales_and_then_cuts(
    size, interpolation
) -> None:
    (image,) = photos(size)
    height, width = 64, 48
    tall, wide = (
        (height, size[1] * height // size[0])
        if height * size[1] >= width * size[0]
        else (size[0] * width // size[1], width)
    )
    method = Image.Resampling[interpolation.upper()]
    whole = Image.fromarray(image).resize((wide, size[0]), method).resize((wide, tall), method)
    top, left = round((tall - height) / 2), round((wide - width) / 2)
    crop = Preprocess((height, width), "crop", interpolation, layout="nhwc", dtype="uint8")
    expected = np.asarray(whole)[top : top + height, left : left + width]
    np.testing.assert_array_equal(crop([image])[0], expected)


@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
@pytest.mark.parametrize("size", [(1, 2**21), (2**21, 1), (2, 200_000), (200_000, 2)])
def test_a_thin_image_takes_little_memory(size, resize) -> None:
    image = np.full((*size, 3), 200, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for interpolation in ("bilinear", "bicubic"):
        found = Preprocess(64, resize, interpolation, dtype="uint8")([image])
        assert found.shape == (1, 3, 64, 64)
        assert (found[..., 31, 31] == 200).all()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 2**10  # in KiB


def test_inputs_that_are_no_decoded_images_are_refused() -> None:
    preprocess = Preprocess(size=4)
    with pytest.raises(TypeError, match="uint8 arrays, not float32"):
        preprocess(np.zeros((2, 4, 4, 3), np.float32))
    with pytest.raises(TypeError, match="not float64"):
        preprocess([np.zeros((4, 4, 3))])
    with pytest.raises(TypeError, match="a list or an array"):
        preprocess("photo.jpg")
    with pytest.raises(ValueError, match=r"\(n, height, width, 3\), but one is \(2, 3, 4, 4\)"):
        preprocess(np.zeros((2, 3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"\(height, width, 3\), but one is \(4, 4\)"):
        preprocess([np.zeros((4, 4), np.uint8)])
    with pytest.raises(ValueError, match="at least one image"):
        preprocess([])
    with pytest.raises(ValueError, match="give preprocess a size"):
        Preprocess()(photos((4, 4), (5, 4)))
    assert preprocess(np.zeros((0, 9, 9, 3), np.uint8)).shape == (0, 3, 4, 4)


def test_two_models_take_the_same_images_at_two_resolutions() -> None:
    def student(batch: np.ndarray) -> np.ndarray:
        return np.full((len(batch), 2), batch.shape[2])

    images = photos((20, 30), (9, 9))
    small = Preprocessed(student, Preprocess(size=8))
    large = Preprocessed(student, Preprocess(size=16))
    assert small(images).tolist() == [[8, 8], [8, 8]]
    assert large(images).tolist() == [[16, 16], [16, 16]]
    assert small.name == "student"
    assert isinstance(small, Model)
    assert repr(small) == "Preprocessed(student, size=8)"


def test_size_and_layout_are_read_off_an_input_shape() -> None:
    assert infer_preprocess([None, 3, "h", "w"]) == Preprocess()
    assert infer_preprocess((1, 64, 32, 3)) == Preprocess(size=(64, 32), layout="nhwc")


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ([1, 3, 3, 3], "fits both"),
        ([1, 1, 28, 3], "fits both"),
        ([1, 2, 28, 28], "is neither"),
        (["n", 10], "is neither"),
        ([1, 3, 224, None], "one fixed and one dynamic"),
    ],
)
def test_a_shape_that_does_not_tell_is_said_to(shape, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        infer_preprocess(shape)


def test_gray_is_pillows_luminance_to_the_last_bit() -> None:
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3)
    gray = Preprocess(color="gray", dtype="uint8")([image])
    assert gray.shape == (1, 1, *image.shape[:2])
    np.testing.assert_array_equal(gray[0, 0], np.asarray(Image.fromarray(image).convert("L")))
    (sized,) = Preprocess(size=12, color="gray", dtype="uint8", layout="nhwc")([image])
    (colored,) = Preprocess(size=12, dtype="uint8", layout="nhwc")([image])
    np.testing.assert_array_equal(sized[..., 0], np.asarray(Image.fromarray(colored).convert("L")))


def test_the_mean_of_a_gray_image_is_one_number() -> None:
    way = Preprocess.parse("color=gray,mean=0.1307,std=0.3081,layout=nhwc")
    assert way == Preprocess(color="gray", mean=0.1307, std=(0.3081,), layout="nhwc")
    assert Preprocess.from_dict(way.as_dict()) == way
    page = np.full((1, 4, 4, 3), 51, np.uint8)
    np.testing.assert_allclose(way(page), np.full((1, 4, 4, 1), (0.2 - 0.1307) / 0.3081), rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["n", 1, 28, 28], Preprocess(size=28, color="gray")),
        ([1, 28, 32, 1], Preprocess(size=(28, 32), color="gray", layout="nhwc")),
        ([None, 1, None, None], Preprocess(color="gray")),
    ],
)
def test_a_model_of_one_channel_is_given_gray_images(shape, expected) -> None:
    assert infer_preprocess(shape) == expected


@pytest.mark.parametrize("size", [None, (6, 8), (3, 4)])
@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_an_image_that_was_resized_ahead_is_freed_when_it_is_answered(size, resize) -> None:
    chosen = Preprocess(size=size, resize=resize)
    (pixels,) = photos((6, 8))
    image = ImageFile.of(pixels).with_sizes([chosen])
    assert np.array_equal(chosen([image]), chosen([pixels]))
    freed = weakref.ref(image)
    del image
    assert freed() is None
