from __future__ import annotations

import csv
import io
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebjr import RecordingNote
from ebjr.data.examples import Data, Examples, decode_image
from ebjr.data.open import open_data

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def pixels(seed: int, height: int = 6, width: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(image: np.ndarray | Image.Image, form: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(file, form, **options)
    return file.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def read(data: Data, batch_size: int = 4) -> Examples:
    """All batches as one."""
    batches = list(data.batches(batch_size))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    inputs = [image for batch in batches for image in batch.inputs]
    names = [name for batch in batches for name in batch.names]
    targets = None
    if data.has_targets:
        targets = np.concatenate([batch.targets for batch in batches])
        assert targets.dtype == np.int64
    else:
        assert all(batch.targets is None for batch in batches)
    return Examples(inputs, targets, names)


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    put(root / "dog" / "b.png", encoded(pixels(0)))
    put(root / "dog" / "a.PNG", encoded(pixels(1, 9, 4)))
    put(root / "dog" / "more" / "c.bmp", encoded(pixels(2), "BMP"))
    put(root / "cat" / "z.webp", encoded(pixels(3), "WEBP", lossless=True))
    put(root / "cat" / ".hidden.png", b"")
    put(root / "cat" / "notes.txt", b"not an image")
    put(root / ".cache" / "x.png", encoded(pixels(4)))
    return root


def test_a_folder_of_class_folders_gives_labels_by_sorted_name(folder) -> None:
    data = open_data(folder)
    got = read(data, batch_size=3)
    assert data.classes == ("cat", "dog")
    assert len(data) == 4
    assert got.names == ["cat/z.webp", "dog/a.PNG", "dog/b.png", "dog/more/c.bmp"]
    assert got.targets.tolist() == [0, 1, 1, 1]
    for image, seed, size in zip(
        got.inputs, (3, 1, 0, 2), ((6, 5), (9, 4), (6, 5), (6, 5)), strict=True
    ):
        np.testing.assert_array_equal(image, pixels(seed, *size))
        assert image.flags.writeable


def test_given_classes_set_the_labels_of_class_folders(folder) -> None:
    data = open_data(folder, classes=["dog", "emu", "cat"])
    assert read(data).targets.tolist() == [2, 0, 0, 0]
    assert data.classes == ("dog", "emu", "cat")
    with pytest.raises(ValueError, match=r"the folder dog .* is not one of the 2 given classes"):
        open_data(folder, classes=["cat", "emu"])
    with pytest.raises(ValueError, match="one name occurs twice: 'cat'"):
        open_data(folder, classes=["cat", "cat", "dog"])
    with pytest.raises(TypeError, match="a sequence of names"):
        open_data(folder, classes="cat,dog")


def test_a_flat_folder_and_a_single_image_have_no_labels(tmp_path) -> None:
    put(tmp_path / "2.png", encoded(pixels(2)))
    put(tmp_path / "1.jpg", encoded(pixels(1), "JPEG"))
    data = open_data(tmp_path)
    assert not data.has_targets
    assert data.classes is None
    assert read(data).names == ["1.jpg", "2.png"]
    one = open_data(tmp_path / "2.png")
    assert len(one) == 1
    assert read(one).names == ["2.png"]


def test_images_that_cannot_be_read_are_named_and_the_run_goes_on(folder) -> None:
    whole = encoded(pixels(5, 60, 60), "JPEG")
    put(folder / "cat" / "cut.jpg", whole[: len(whole) // 2])
    put(folder / "cat" / "empty.png", b"")
    put(folder / "dog" / "page.png", b"<html>not found</html>")
    data = open_data(folder)
    for _ in range(2):  # a second pass starts a new list
        assert len(read(data, batch_size=2).names) == 4
        assert [name for name, _ in data.unreadable] == [
            "cat/cut.jpg",
            "cat/empty.png",
            "dog/page.png",
        ]
    reasons = [reason for _, reason in data.unreadable]
    assert "truncated" in reasons[0]
    assert reasons[1:] == ["it is empty", "it is not an image of a known format"]
    assert len(data) == 7


def test_an_unreadable_image_is_an_error_when_asked(folder) -> None:
    put(folder / "cat" / "empty.png", b"")
    data = open_data(folder, on_unreadable="error")
    with pytest.raises(ValueError, match=r"cat/empty.png in .* cannot be read: it is empty"):
        read(data)


def test_data_without_one_readable_image_is_an_error(tmp_path) -> None:
    put(tmp_path / "a.png", b"")
    with pytest.raises(ValueError, match=r"no image in .* the first is a.png: it is empty"):
        read(open_data(tmp_path))


def test_a_decompression_bomb_is_unreadable(tmp_path, monkeypatch) -> None:
    put(tmp_path / "bomb.png", encoded(pixels(0, 40, 40)))
    put(tmp_path / "large.png", encoded(pixels(0, 30, 30)))
    put(tmp_path / "small.png", encoded(pixels(0)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    data = open_data(tmp_path)
    assert read(data).names == ["small.png"]
    assert [name for name, _ in data.unreadable] == ["bomb.png", "large.png"]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_pixel_limit_holds_where_pillow_would_only_warn(monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(ValueError, match="900 pixels; the limit is 700"):
        decode_image(encoded(pixels(0, 30, 30)))


def test_many_images_keep_their_order_and_leave_no_thread(tmp_path) -> None:
    for number in range(150):
        image = np.full((3 + number % 40, 4, 3), number, np.uint8)
        put(tmp_path / f"{number:03}.png", encoded(image))
    data = open_data(tmp_path)
    got = read(data, batch_size=16)
    assert [int(image[0, 0, 0]) for image in got.inputs] == list(range(150))
    reading = data.batches(16)
    next(reading)
    reading.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("ebjr-decode")]


def test_loose_images_beside_class_folders_are_not_dropped_silently(folder) -> None:
    put(folder / "loose.png", encoded(pixels(0)))
    with pytest.raises(
        ValueError, match=r"1 images beside its class folders \(the first is loose.png\)"
    ):
        open_data(folder)


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        *(("jfif", "JPEG"), ("jpe", "JPEG"), ("tif", "TIFF"), ("TIFF", "TIFF"), ("ppm", "PPM")),
        *(("pgm", "PPM"), ("jp2", "JPEG2000"), ("gif", "GIF"), ("dib", "DIB"), ("tga", "TGA")),
    ],
)
def test_every_suffix_that_the_decoder_reads_is_an_image(suffix, form, tmp_path) -> None:
    put(tmp_path / "a" / f"x.{suffix}", encoded(pixels(0), form))
    put(tmp_path / "b" / "y.png", encoded(pixels(0)))
    data = open_data(tmp_path)
    assert read(data).names == [f"a/x.{suffix}", "b/y.png"]
    assert len(open_data(tmp_path / "a" / f"x.{suffix}")) == 1
    assert data.left_out == {}


@pytest.mark.parametrize("suffix", ["eps", "pdf", "wmf", "mpg", "h5", "grib", "fits"])
def test_what_is_no_picture_is_left_out_and_counted(suffix, tmp_path) -> None:
    put(tmp_path / "a" / f"x.{suffix}", b"")
    put(tmp_path / "a" / "y.png", encoded(pixels(0)))
    assert open_data(tmp_path).left_out == {f".{suffix} files": 1}


def test_a_page_that_would_start_another_program_is_no_image() -> None:
    with pytest.raises(Image.UnidentifiedImageError):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


def test_what_makes_no_example_is_counted(folder) -> None:
    put(folder / "cat" / "a.HEIC", b"")
    put(folder / "dog" / "more" / "b.heic", b"")
    put(folder / "dog" / "LICENSE", b"")
    for quiet in (".DS_Store", "Thumbs.db", "desktop.ini", ".gitkeep"):
        put(folder / "dog" / quiet, b"")
    (folder / "emu" / "young").mkdir(parents=True)
    data = open_data(folder)
    assert data.classes == ("cat", "dog", "emu")
    assert data.left_out == {
        "hidden or system folders": 1,
        "hidden image files": 1,
        ".txt files": 1,
        ".heic files": 2,
        "files without a suffix": 1,
        "class folders without an image, emu": 1,
    }


def test_folders_of_systems_are_no_classes_and_are_not_entered(folder) -> None:
    names = ("__MACOSX", "$RECYCLE.BIN", "lost+found", "@eaDir", ".git", "__pycache__")
    for name in names:
        put(folder / name / "x.png", encoded(pixels(0)))
        put(folder / "dog" / name / "x.png", encoded(pixels(0)))
    data = open_data(folder)
    assert data.classes == ("cat", "dog")
    assert len(data) == 4
    assert data.left_out["hidden or system folders"] == 2 * len(names) + 1


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "TEST"), ("valid",)])
@pytest.mark.parametrize("classes", [None, ["cat", "dog"]])
def test_splits_are_no_classes(names, classes, tmp_path) -> None:
    for name in names:
        for label in ("cat", "dog"):
            put(tmp_path / name / label / "x.png", encoded(pixels(0)))
    chosen = tmp_path / ("val" if "val" in names else names[-1])
    with pytest.raises(ValueError, match=r"are one level down, in .*--data ") as caught:
        open_data(tmp_path, classes=classes)
    assert f"like --data {chosen}, or if" in str(caught.value)
    assert open_data(chosen, classes=classes).classes == ("cat", "dog")


def test_splits_beside_something_else_are_no_classes(tmp_path) -> None:
    for name in ("train", "test", "unlabeled"):
        put(tmp_path / name / "cat" / "x.png", encoded(pixels(0)))
    with pytest.raises(ValueError, match="in test, train"):
        open_data(tmp_path)


def test_one_folder_around_the_class_folders_is_no_class(tmp_path) -> None:
    for label in ("cat", "dog"):
        put(tmp_path / "pets" / label / "x.png", encoded(pixels(0)))
    with pytest.raises(ValueError, match=r"one level down, in pets: .* --data .*pets,"):
        open_data(tmp_path)


def test_a_class_may_be_called_train(tmp_path) -> None:
    for label in ("car", "train"):
        put(tmp_path / label / "x.png", encoded(pixels(0)))
    assert open_data(tmp_path).classes == ("car", "train")
    put(tmp_path / "ships" / "train" / "old" / "x.png", encoded(pixels(0)))
    assert open_data(tmp_path / "ships", classes=["train", "car"]).classes == ("train", "car")


@pytest.mark.parametrize(
    ("names", "inner"),
    [
        (("training_set", "test_set"), ("cat", "dog")),
        (("fold1", "fold2", "fold3"), ("a", "b", "c")),
        (("2023", "2024", "train"), ("cat", "dog")),
    ],
)
def test_splits_by_any_name_are_no_classes(names, inner, tmp_path) -> None:
    for name in names:
        for label in inner:
            put(tmp_path / name / label / "deep" / "x.png", encoded(pixels(0)))
    with pytest.raises(ValueError, match=r"are one level down, in .*--data .*--classes") as caught:
        open_data(tmp_path)
    chosen = next(
        name for name in sorted(names) if f"--data {tmp_path / name}" in str(caught.value)
    )
    assert not chosen.startswith("train")
    assert open_data(tmp_path / chosen).classes == inner
    with pytest.raises(ValueError, match="are one level down"):
        open_data(tmp_path, classes=inner)
    assert open_data(tmp_path, classes=names).classes == names


@pytest.mark.parametrize(
    "files",
    [
        ("cat/day/x", "dog/day/x"),  # one folder alike: where a class keeps its images
        ("cat/day/x", "cat/night/x", "dog/day/x"),
        ("cat/day/x", "cat/night/x", "dog/day/x", "dog/night/x", "emu/x"),
    ],
)
def test_classes_may_have_folders_of_their_own(files, tmp_path) -> None:
    for file in files:
        put(tmp_path / f"{file}.png", encoded(pixels(0)))
    assert open_data(tmp_path).classes[:2] == ("cat", "dog")


def test_a_link_that_leads_back_ends(folder) -> None:
    (folder / "cat" / "again").symlink_to(folder / "cat")
    (folder / "cat" / "up").symlink_to(folder)
    (folder / "dog" / "far").symlink_to(folder.parent.parent)
    (folder / "dog" / "twice").symlink_to(folder / "dog" / "more")
    data = open_data(folder)
    assert len(data) == 4
    assert data.left_out["folders met again through links"] == 4


def test_a_folder_of_two_classes_is_refused(folder) -> None:
    (folder / "ant").symlink_to(folder / "dog")
    with pytest.raises(ValueError, match=r"the class folders ant and dog in .* both hold"):
        open_data(folder)
    (folder / "ant").unlink()
    (folder / "cat" / "guest").symlink_to(folder / "dog" / "more")
    with pytest.raises(ValueError, match=r"the class folders cat and dog in .* both hold .*more"):
        open_data(folder)


def test_a_folder_elsewhere_may_be_linked_once(folder, tmp_path) -> None:
    put(tmp_path / "elsewhere" / "e.png", encoded(pixels(8)))
    (folder / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    assert "cat/linked/e.png" in read(open_data(folder)).names


@pytest.mark.parametrize("place", ["dog", "dog/more"])
def test_an_image_counts_once_by_whatever_names(place, folder) -> None:
    (folder / place / "zz.png").symlink_to(folder / "dog" / "b.png")
    (folder / place / "zzz.png").hardlink_to(folder / "dog" / "b.png")
    data = open_data(folder)
    assert read(data).names == ["cat/z.webp", "dog/a.PNG", "dog/b.png", "dog/more/c.bmp"]
    assert data.left_out["image files met again through links"] == 2


def test_an_image_of_a_flat_folder_counts_once(folder) -> None:
    (folder / "dog" / "zz.png").symlink_to("b.png")
    data = open_data(folder / "dog" / "more")
    assert len(data) == 1
    (folder / "dog" / "more" / "d.bmp").hardlink_to(folder / "dog" / "more" / "c.bmp")
    data = open_data(folder / "dog" / "more")
    assert (len(data), data.left_out) == (1, {"image files met again through links": 1})


@pytest.mark.parametrize("way", ["symlink_to", "hardlink_to"])
def test_an_image_of_two_classes_is_refused(way, folder) -> None:
    getattr(folder / "dog" / "stolen.webp", way)(folder / "cat" / "z.webp")
    with pytest.raises(
        ValueError, match=r"cat and dog in .* both hold .*stolen\.webp: an image has"
    ):
        open_data(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_is_no_image_and_never_opened(folder, tmp_path) -> None:
    os.mkfifo(folder / "cat" / "pipe.png")
    os.mkfifo(tmp_path / "only.png")
    (folder / "dog" / "zero.png").symlink_to("/dev/zero")
    data = open_data(folder)
    assert len(read(data).names) == 4
    assert data.left_out["pipes, sockets and devices"] == 2
    with pytest.raises(
        ValueError, match=r"only\.png is a pipe, a socket or a device; give a folder"
    ):
        open_data(tmp_path / "only.png")
    (tmp_path / "flat").mkdir()
    os.mkfifo(tmp_path / "flat" / "x.png")
    with pytest.raises(ValueError, match=r"has no images.*, only pipes, sockets and devices"):
        open_data(tmp_path / "flat")
    table = pa.table({"path": [str(folder / "cat" / "pipe.png"), str(folder / "dog" / "b.png")]})
    named = open_data(write_table(tmp_path / "t.parquet", table))
    assert len(read(named).names) == 1
    assert [reason for _, reason in named.unreadable] == ["it is a pipe, a socket or a device"]


def test_a_link_that_leads_nowhere_is_named(folder) -> None:
    (folder / "cat" / "lost.png").symlink_to("nowhere.png")
    data = open_data(folder)
    assert len(read(data).names) == 4
    assert [name for name, _ in data.unreadable] == ["cat/lost.png"]


def test_who_names_the_labels_is_said(folder) -> None:
    assert open_data(folder).named_by == "folders"
    assert open_data(folder, classes=["dog", "cat"]).named_by == "given"
    assert open_data(folder / "cat").named_by is None
    assert open_data(folder / "cat", classes=["x"]).named_by == "given"


# Which data


def test_another_file_in_a_folder_is_another_fingerprint(folder) -> None:
    before = open_data(folder).fingerprint()
    assert open_data(folder).fingerprint() == before
    (folder / "dog" / "b.png").unlink()
    put(folder / "dog" / "bb.png", encoded(pixels(0)))  # as many, and the same bytes
    assert len(open_data(folder)) == 4
    swapped = open_data(folder).fingerprint()
    assert swapped != before
    put(folder / "dog" / "bb.png", encoded(pixels(7, 20, 20)))
    assert open_data(folder).fingerprint() != swapped


def test_other_rows_are_another_fingerprint_wherever_they_lie(tmp_path) -> None:
    found = set()
    for place, seed in (("a", 0), ("a", 1), ("b", 1)):
        put(tmp_path / place / "x.png", encoded(pixels(seed)))
        np.savez(tmp_path / place / "d.npz", inputs=np.full((3, 2), seed))
        table = pa.table({"image": [encoded(pixels(seed))]})
        write_table(tmp_path / place / "t.parquet", table)
        names = ("d.npz", "t.parquet", "x.png")
        found |= {open_data(tmp_path / place / name).fingerprint() for name in names}
    assert len(found) == 6


def test_images_of_a_json_count_in_its_fingerprint(tmp_path) -> None:
    labels = {"images": [{"id": 1, "file_name": "a.png", "width": 5, "height": 6}]}
    labels |= {"annotations": [], "categories": []}
    (tmp_path / "l.json").write_text(json.dumps(labels))
    put(tmp_path / "a.png", encoded(pixels(0)))
    before = open_data(tmp_path / "l.json").fingerprint()
    assert open_data(tmp_path / "l.json").fingerprint() == before
    put(tmp_path / "a.png", encoded(pixels(0, 30, 30)))
    assert open_data(tmp_path / "l.json").fingerprint() != before


# Decoding


def test_every_mode_becomes_rgb() -> None:
    gray = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    rgb = np.repeat(gray[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(gray))), rgb)
    palette = Image.fromarray(rgb).quantize(256)
    np.testing.assert_array_equal(
        decode_image(encoded(palette)), np.asarray(palette.convert("RGB"))
    )
    deep = Image.fromarray(gray.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_image(encoded(deep)), rgb)
    ink = Image.fromarray(rgb).convert("CMYK")
    assert decode_image(encoded(ink, "JPEG")).shape == (4, 6, 3)
    bits = Image.fromarray(gray > 100)
    np.testing.assert_array_equal(decode_image(encoded(bits))[..., 0], (gray > 100) * 255)


def test_what_is_transparent_is_white() -> None:
    image = np.zeros((2, 2, 4), np.uint8)
    image[0] = (10, 20, 30, 255)
    decoded = decode_image(encoded(Image.fromarray(image)))
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert decoded[1, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    decoded = decode_image(encoded(palette, transparency=bytes([0, 255])))
    assert decoded[0].tolist() == [[255, 255, 255], [1, 2, 3]]


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data)[0, 0].tolist() == [255, 0, 0]


def test_the_exif_orientation_is_applied() -> None:
    picture = Image.new("RGB", (8, 4))
    exif = picture.getexif()
    exif[0x0112] = 6
    assert decode_image(encoded(picture, "JPEG", exif=exif)).shape == (8, 4, 3)


# Arrays


def test_arrays_come_in_batches_of_arrays(tmp_path) -> None:
    inputs = np.random.default_rng(0).normal(size=(7, 2, 3)).astype(np.float32)
    np.savez(tmp_path / "d.npz", inputs=inputs, targets=np.arange(7, dtype=np.uint8))
    data = open_data(tmp_path / "d.npz", classes=list("abcdefg"))
    batches = list(data.batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert all(isinstance(batch.inputs, np.ndarray) for batch in batches)
    got = read(data, 3)
    np.testing.assert_array_equal(np.stack(got.inputs), inputs)
    assert got.targets.tolist() == list(range(7))
    assert got.names[-1] == "d.npz:6"
    assert data.classes == tuple("abcdefg")
    assert len(data) == 7
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        data.batches(0)


def test_arrays_without_targets_have_none(tmp_path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.zeros((3, 2)))
    assert read(open_data(tmp_path / "d.npz")).targets is None


@pytest.mark.parametrize("kind", [str, bytes])
def test_names_of_arrays_stay_names_until_classes_are_given(kind, tmp_path) -> None:
    names = np.array(["ox", "ant", "ox"], kind)
    np.savez(tmp_path / "d.npz", inputs=np.zeros((3, 2)), targets=names)
    (batch,) = open_data(tmp_path / "d.npz").batches(4)
    assert batch.targets.tolist() == ["ox", "ant", "ox"]
    assert batch.targets.dtype.kind == "U"
    given = open_data(tmp_path / "d.npz", classes=["emu", "ant", "ox"])
    assert given.named_by == "given"
    assert read(given).targets.tolist() == [2, 1, 2]
    with pytest.raises(ValueError, match="'ant' is not one of the 1 given classes"):
        open_data(tmp_path / "d.npz", classes=["ox"])
    with pytest.raises(ValueError, match="must be whole numbers"):
        open_data(tmp_path / "d.npz", targets_are="numbers")


@pytest.mark.parametrize(
    ("labels", "classes", "places"),
    [
        ([3, 1], ["1", "2", "3"], [2, 0]),
        ([3, 1], ["03", "02", "01"], [0, 2]),
        ([1, 0], ["cat", "1"], [1, 0]),
        ([True, False], ["TRUE", "maybe", "FALSE"], [0, 2]),
        ([True, False], ["cat", "dog"], [1, 0]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_numbers_and_bools_are_names_where_classes_are_called_so(
    labels, classes, places, suffix, tmp_path
) -> None:
    path = tmp_path / f"d.{suffix}"
    if suffix == "npz":
        np.savez(path, inputs=np.zeros((2, 1)), targets=np.array(labels))
    elif suffix == "csv":
        path.write_text("x,label\n" + "".join(f"0.5,{one}\n" for one in labels))
    else:
        write_table(path, pa.table({"x": [0.5, 0.5], "label": labels}))
    how = {} if suffix == "npz" else {"input_columns": "x"}
    assert read(open_data(path, classes=classes, **how)).targets.tolist() == places
    if "1" in classes and len(classes) > 2:
        with pytest.raises(ValueError, match="'3' is not one of the 3 given classes"):
            open_data(path, classes=["1", "2", "4"], **how)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros(3)}, "it needs an array named inputs, but has x"),
        ({"inputs": np.zeros((0, 2))}, "inputs must have rows"),
        ({"inputs": np.float64(3)}, "inputs must have rows"),
        ({"inputs": np.zeros((3, 2)), "targets": np.zeros(2, int)}, "each of the 3 inputs"),
        ({"inputs": np.zeros((3, 2)), "targets": np.zeros((3, 1), int)}, "each of the 3 inputs"),
        ({"inputs": np.zeros((3, 2)), "targets": np.zeros(3)}, "must be whole numbers"),
        ({"inputs": np.array([{}, {}])}, "cannot be read as .npz data"),
    ],
)
def test_bad_arrays_are_one_sentence(arrays, sentence, tmp_path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        open_data(tmp_path / "d.npz")


@pytest.mark.parametrize("keep", [0, 40, 0.5])
def test_a_truncated_npz_is_one_sentence(keep, tmp_path) -> None:
    np.savez(tmp_path / "d.npz", inputs=np.zeros((30, 20)))
    whole = (tmp_path / "d.npz").read_bytes()
    (tmp_path / "d.npz").write_bytes(whole[: int(keep * len(whole) if keep < 1 else keep)])
    with pytest.raises(ValueError, match=r"cannot be read as \.npz data"):
        open_data(tmp_path / "d.npz")


# Tables


def hub_table(count: int = 300) -> pa.Table:
    """As the hub's data sets are: a struct of bytes and path, class names in the schema."""
    images = [{"bytes": encoded(pixels(i)), "path": None} for i in range(count)]
    table = pa.table({"img": images, "label": [i % 2 for i in range(count)], "note": ["x"] * count})
    names = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(names)})


def write_table(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=100)
        return path
    new = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=200)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow", "file.arrow", "file.feather"])
def test_every_kind_of_table_is_streamed(name, tmp_path) -> None:
    data = open_data(write_table(tmp_path / name, hub_table()))
    got = read(data, batch_size=64)
    assert len(data) == 300
    assert data.classes == ("cat", "dog")
    assert got.targets.tolist() == [i % 2 for i in range(300)]
    assert got.names[299] == f"{name}:299"
    for place in (0, 127, 128, 299):
        np.testing.assert_array_equal(got.inputs[place], pixels(place))


def test_columns_are_told_by_name_and_type_or_asked_for(tmp_path) -> None:
    images = [encoded(pixels(0)), encoded(pixels(1))]
    path = tmp_path / "t.parquet"
    write_table(path, pa.table({"blob": images, "fine_label": [7, 9], "coarse": [1, 2]}))
    assert read(open_data(path)).targets.tolist() == [7, 9]
    assert read(open_data(path, label_column="coarse")).targets.tolist() == [1, 2]
    assert read(open_data(path, input_columns="blob")).targets.tolist() == [7, 9]
    with pytest.raises(ValueError, match="one column named 'x', but has none among blob"):
        open_data(path, label_column="x")
    with pytest.raises(ValueError, match=r"but are blob \(images\), coarse \(numbers\): name them"):
        open_data(path, input_columns="blob,coarse")
    write_table(path, pa.table({"one": images, "two": images}))
    with pytest.raises(
        ValueError, match=r"one column of texts or images, but are one \(images\), two"
    ):
        open_data(path)
    write_table(path, pa.table({"image": images}))
    assert not open_data(path).has_targets


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), "dictionary"])
def test_labels_that_are_text_stay_text_until_classes_are_given(kind, tmp_path) -> None:
    images = [encoded(pixels(0)), encoded(pixels(1))]
    path = tmp_path / "t.parquet"
    words = pa.array(["zebra", "cat"])
    labels = words.dictionary_encode() if kind == "dictionary" else words.cast(kind)
    write_table(path, pa.table({"image": images, "label": labels}))
    data = open_data(path)
    (batch,) = data.batches(4)
    assert batch.targets.tolist() == ["zebra", "cat"]
    assert (batch.targets.dtype.kind, batch.targets.shape) == ("U", (2,))
    assert (data.has_targets, data.classes, data.named_by) == (True, None, None)
    assert read(open_data(path, classes=["cat", "zebra"])).targets.tolist() == [1, 0]
    with pytest.raises(ValueError, match="'zebra' is not one of the 1 given classes"):
        read(open_data(path, classes=["cat"]))
    write_table(path, pa.table({"image": images, "label": [0.5, 1.5]}))
    with pytest.raises(ValueError, match="must hold whole numbers or names, but holds double"):
        open_data(path)


NAMED_COLORS = {"info": {"features": {"label": {"names": ["red", "green", "blue"]}}}}
"""Of labels 0, 1, 2, as a table's schema names them."""


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow"])
def test_numbers_that_a_table_names_go_through_their_names(name, tmp_path) -> None:
    images = [encoded(pixels(n)) for n in range(3)]
    table = pa.table({"image": images, "label": [0, 1, 2]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(NAMED_COLORS)})
    path = write_table(tmp_path / name, table)
    own = open_data(path)
    assert (own.classes, own.named_by) == (("red", "green", "blue"), "table")
    assert read(own).targets.tolist() == [0, 1, 2]
    given = open_data(path, classes=["blue", "gray", "green", "red"])
    assert (given.classes[1], given.named_by) == ("gray", "given")
    assert read(given).targets.tolist() == [3, 2, 0]
    with pytest.raises(ValueError, match="the label 'green' is not one of the 3 given classes"):
        open_data(path, classes=["blue", "red", "Green"])


def test_numbers_that_a_table_does_not_name_are_refused(tmp_path) -> None:
    images = [encoded(pixels(n)) for n in range(2)]
    table = pa.table({"image": images, "label": [1, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(NAMED_COLORS)})
    path = write_table(tmp_path / "t.parquet", table)
    with pytest.raises(ValueError, match="the label -1 is not one of the 3 that the table names"):
        read(open_data(path, classes=["blue", "green", "red"]))


def test_lists_of_named_numbers_go_through_their_names(tmp_path) -> None:
    images = [encoded(pixels(n)) for n in range(2)]
    names = {"info": {"features": {"labels": {"feature": {"names": ["red", "green", "blue"]}}}}}
    table = pa.table({"image": images, "labels": [[0, 1], [2]]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    path = write_table(tmp_path / "t.parquet", table)
    data = open_data(path, targets_are="label sets", classes=["blue", "green", "red"])
    assert read(data).targets.tolist() == [[0, 1, 1], [1, 0, 0]]
    with pytest.raises(ValueError, match="the label 'red' is not one of the 3 given classes"):
        open_data(path, targets_are="label sets", classes=["blue", "green", "rouge"])


@pytest.mark.parametrize("column", ["image", "file_name", "path"])
def test_a_table_of_paths_is_read_from_its_own_folder(column, tmp_path) -> None:
    put(tmp_path / "photos" / "a.png", encoded(pixels(5)))
    rows = ["photos/a.png", "photos/gone.png", None]
    path = write_table(tmp_path / "t.parquet", pa.table({column: rows, "label": [1, 0, 1]}))
    data = open_data(path)
    got = read(data)
    np.testing.assert_array_equal(got.inputs[0], pixels(5))
    assert (got.names, got.targets.tolist()) == (["t.parquet:0"], [1])
    assert [name for name, _ in data.unreadable] == ["t.parquet:1", "t.parquet:2"]
    assert data.unreadable[0][1].endswith("gone.png does not exist")
    assert data.unreadable[1][1] == "it is empty"
    before = open_data(path).fingerprint()
    put(tmp_path / "photos" / "a.png", encoded(pixels(6, 20, 20)))
    assert open_data(path).fingerprint() != before


@pytest.mark.parametrize("name", ["t.parquet", "file.arrow"])
def test_a_struct_without_bytes_is_read_from_its_path(name, tmp_path) -> None:
    put(tmp_path / "a.png", encoded(pixels(5)))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": None, "path": "a.png"},
        {"bytes": encoded(pixels(6)), "path": "a.png"},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ]
    data = open_data(write_table(tmp_path / name, pa.table({"img": pa.array(rows, kind)})))
    for image, seed in zip(read(data).inputs, (5, 6, 5), strict=True):
        np.testing.assert_array_equal(image, pixels(seed))
    assert [str(file) for _, file in data.files()] == [str(tmp_path / "a.png")] * 2


SETS = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
LISTED = [[2, 0], [], [1]]
NAMED = [["fox", "cat"], [], ["dog"]]
ANIMALS = ["cat", "dog", "fox"]


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize(
    ("lists", "kind", "classes"),
    [
        (SETS, pa.list_(pa.int64()), None),
        ([list(map(bool, row)) for row in SETS], pa.list_(pa.bool_(), 3), None),
        (SETS, pa.large_list(pa.float32()), ANIMALS),
        (LISTED, pa.list_(pa.int8()), ANIMALS),
        (NAMED, pa.list_(pa.string()), ANIMALS),
    ],
)
def test_lists_are_label_sets(name, lists, kind, classes, tmp_path) -> None:
    images = [encoded(pixels(i)) for i in range(3)]
    table = pa.table({"image": images, "labels": pa.array(lists, kind)})
    path = write_table(tmp_path / name, table)
    data = open_data(path, targets_are="label sets", classes=classes)
    assert read(data).targets.tolist() == SETS
    with pytest.raises(ValueError, match="lists of labels are for --task multilabel"):
        open_data(path)


def test_the_hubs_lists_of_numbered_labels_are_label_sets(tmp_path) -> None:
    images = [encoded(pixels(i)) for i in range(3)]
    numbers = pa.array([[1, 0], [0, 1], None], pa.list_(pa.int64()))
    names = {"info": {"features": {"labels": {"feature": {"names": ["cat", "dog"]}}}}}
    table = pa.table({"image": images, "labels": numbers})
    table = table.replace_schema_metadata({"huggingface": json.dumps(names)})
    data = open_data(write_table(tmp_path / "t.parquet", table), targets_are="label sets")
    assert data.classes == ("cat", "dog")
    assert read(data).targets.tolist() == [[1, 1], [1, 1]]
    assert data.unreadable == [("t.parquet:2", "it has no label")]


@pytest.mark.parametrize(
    ("lists", "classes", "message"),
    [
        (LISTED, None, "or the right labels' names or numbers with classes="),
        (NAMED, None, "it has other lists for unknown classes"),
        (SETS, ["cat", "dog"], "it has lists of 3 for 2 classes"),
        ([[0.5], [1.0], [0.0]], ANIMALS, "must hold 0 or 1 for each label"),
        ([0, 1, 2], ANIMALS, "must hold lists of 0 and 1, or of labels, not int64"),
        ([[0, 3], [1], []], ANIMALS, r"distinct ones of the 3 classes, but one is \[0, 3\]"),
        ([[1, 2, 1], [1], []], ANIMALS, r"distinct ones of the 3 classes, but one is \[1, 2, 1"),
        ([[1, 2, None], [1], []], ANIMALS, r"distinct ones of .* \[1, 2, None"),
        ([["cow"], [], []], ANIMALS, "'cow' is not one of the 3 given classes"),
    ],
)
def test_lists_that_are_no_label_sets_are_one_sentence(lists, classes, message, tmp_path) -> None:
    images = [encoded(pixels(i)) for i in range(3)]
    path = write_table(tmp_path / "t.parquet", pa.table({"image": images, "labels": lists}))
    with pytest.raises(ValueError, match=message) as caught:
        read(open_data(path, targets_are="label sets", classes=classes))
    assert "\n" not in str(caught.value)


def test_rows_without_an_image_or_a_label_are_named(tmp_path) -> None:
    rows = [encoded(pixels(0)), None, encoded(pixels(2)), b"junk"]
    table = pa.table({"image": pa.array(rows, pa.binary()), "label": [0, 1, None, 1]})
    data = open_data(write_table(tmp_path / "t.parquet", table))
    assert read(data).names == ["t.parquet:0"]
    assert data.unreadable == [
        ("t.parquet:1", "it is empty"),
        ("t.parquet:2", "it has no label"),
        ("t.parquet:3", "it is not an image of a known format"),
    ]


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow", "file.arrow"])
def test_a_damaged_or_empty_table_is_one_sentence(name, tmp_path) -> None:
    path = write_table(tmp_path / name, hub_table())
    for damaged in (path.read_bytes()[:5000], b"", b"hello, this is text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} cannot be read as a table") as caught:
            read(open_data(path))
        assert "\n" not in str(caught.value)
    write_table(path, hub_table().slice(0, 0))
    with pytest.raises(ValueError, match="has no rows"):
        open_data(path)


# Tables of numbers and of texts


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


NUMBERS = "id,b,a,label\n7,1,0.5,1\n8,2,1.5,0\n9,3,-2,1\n"


def arrays(data: Data) -> tuple[object, object]:
    (batch,) = data.batches(100)
    inputs = batch.inputs if isinstance(batch.inputs, list) else batch.inputs.tolist()
    return inputs, None if batch.targets is None else batch.targets.tolist()


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("t.csv", NUMBERS, "utf-8"),
        ("t.csv", NUMBERS, "utf-8-sig"),
        ("t.CSV", NUMBERS.replace(",", ";"), "utf-8-sig"),
        ("t.tsv", NUMBERS.replace(",", "\t"), "utf-8"),
        ("t.csv", NUMBERS.replace("id", ""), "utf-8"),
        ("t.csv", NUMBERS.replace("id", "Unnamed: 0").replace("label", "Target "), "utf-8"),
        ("t.csv", NUMBERS.replace("\n", "\r\n"), "utf-8"),
        (
            "t.jsonl",
            '{"b": 1, "a": 0.5, "label": 1}\n\n{"b": 2, "a": 1.5, "label": 0}\n'
            '{"label": 1, "a": -2, "b": 3}',
            "utf-8",
        ),
    ],
)
def test_columns_of_numbers_are_rows_of_floats_and_which_they_are_is_said(
    name, text, encoding, tmp_path
) -> None:
    path = write(tmp_path / name, text, encoding)
    with pytest.warns(RecordingNote) as noted:
        data = open_data(path)
    assert arrays(data) == ([[1, 0.5], [2, 1.5], [3, -2]], [1, 0, 1])
    assert next(data.batches(2)).inputs.dtype == np.float64
    assert next(data.batches(2)).names == [f"{name}:0", f"{name}:1"]
    said = [str(each.message) for each in noted]
    assert any("inputs are the numbers in b, a (2 columns), the label is" in each for each in said)
    assert any("left out is nothing" in each for each in said) == (name == "t.jsonl")
    assert any("read with ; as the separator" in each for each in said) == (";" in text)


@pytest.mark.parametrize("name", ["t.parquet", "stream.arrow"])
def test_columns_that_are_named_come_in_that_order(name, tmp_path) -> None:
    table = pa.table({"a": [1, 2], "id": [5, 6], "b": [True, False], "y": [0, 1], "c": [0.1, 0.2]})
    path = write_table(tmp_path / name, table)
    assert arrays(open_data(path, input_columns="b,id")) == ([[1, 5], [0, 6]], [0, 1])
    assert arrays(open_data(path, input_columns=["y"], label_column="a")) == ([[0], [1]], [1, 2])
    numbers = open_data(path, input_columns="a", label_column="c", targets_are="numbers")
    assert arrays(numbers) == ([[1], [2]], [0.1, 0.2])
    with pytest.raises(ValueError, match="'c' must hold whole numbers or names, but holds double"):
        open_data(path, input_columns="a", label_column="c")
    with pytest.raises(ValueError, match="one column named 'x y', but has none among a, "):
        open_data(path, input_columns="a,x y")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_one_column_of_texts_is_texts_and_labels_may_be_names(name, tmp_path) -> None:
    texts, labels = ['two\nlines, "quoted"', "null", "NA"], ["pos", "neg", "neg"]
    path = tmp_path / name
    if name == "t.csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])
    elif name == "t.jsonl":
        rows = [{"text": t, "label": one} for t, one in zip(texts, labels, strict=True)]
        write(path, "\n".join(map(json.dumps, rows)))
    else:
        write_table(path, pa.table({"text": texts, "label": labels}))
    with pytest.warns(RecordingNote, match="inputs are the texts in text"):
        assert arrays(open_data(path)) == (texts, labels)
    given = open_data(path, input_columns="text", classes=["neg", "pos"])
    assert arrays(given) == (texts, [1, 0, 0])
    assert given.take([2])[0].inputs == ["NA"]
    with pytest.raises(ValueError, match="'pos' is not one of the 1 given classes"):
        open_data(path, input_columns="text", classes=["neg"])


def test_paths_of_images_in_a_text_are_images(tmp_path) -> None:
    put(tmp_path / "photos" / "a.png", encoded(pixels(5)))
    path = write(tmp_path / "t.jsonl", '{"photo": "photos/a.png", "label": 2}\n')
    got = read(open_data(path))
    np.testing.assert_array_equal(got.inputs[0], pixels(5))
    assert got.targets.tolist() == [2]
    path = write(tmp_path / "t.csv", "n,photo,y\n1,photos/a.png,3\n")
    assert read(open_data(path, input_columns="photo")).targets.tolist() == [3]


def test_a_type_that_shows_late_is_the_columns_type(tmp_path) -> None:
    row = f"1,{'0' * 200}2\n"  # of 17 MB, where the first part alone was looked at
    path = write(tmp_path / "t.csv", "x,y\n" + row * (17_000_000 // len(row)) + "1.5,7\n")
    with pytest.warns(RecordingNote):
        data = open_data(path)
    assert (data.inputs[-1].tolist(), data.targets[-1]) == ([1.5], 7)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.csv", "a,b,y\n1,2,0\n3,,1\n", r"row 1 \(from 0\) has no value for b: fill it in"),
        ("t.csv", "a,b,y\n1,2,0\n3,NaN,1\n", r"row 1 \(from 0\) has no value for b"),
        ("t.csv", "a,y\n1,0\n3,\n", r"row 1 \(from 0\) has no value for y"),
        ("t.jsonl", '{"a": 1, "y": 0}\n{"y": 1}\n', r"row 1 \(from 0\) has no value for a"),
        ("t.csv", "a,a,y\n1,2,0\n", "must have one column named 'a', but has 2 among"),
        ("t.csv", "a,b,y\n1,2,0\n1,2\n", "Expected 3 columns, got 2"),
        ("t.csv", "title,text,y\nx,y,0\n", r"title \(texts\), text \(texts\): name them with"),
        ("t.csv", "text,n,y\nx,4,0\n", r"text \(texts\), n \(numbers\): name them with"),
        ("t.csv", "id,y\n1,0\n", r"but are none: name them with --input-columns"),
        ("t.csv", "a,day,y\n1,2020-01-02,0\n", r"day \(date32\[day\]\): name them"),
        ("t.csv", "", "cannot be read as a table: .*mpty CSV file"),
        ("t.csv", "a,y\n", "has no rows"),
        ("t.jsonl", "", "t.jsonl cannot be read as a table|has no rows"),
        ("t.jsonl", '{"a": 1}\n{"a"\n', "cannot be read as a table: JSON parse error.* in row 1"),
        ("t.jsonl", '{"a": 1}\n{"a": "x"}\n', "changed from number to string in row 1"),
        ("t.jsonl", "[1]\n[2]\n", "cannot be read as a table: JSON parse error"),
    ],
)
@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
def test_a_table_that_cannot_be_rows_is_one_sentence(name, text, sentence, tmp_path) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        open_data(write(tmp_path / name, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_text_in_another_encoding_is_refused(encoding, tmp_path) -> None:
    path = write(tmp_path / "t.csv", "text,y\ncafé,0\n", encoding)
    with pytest.raises(ValueError, match="is not UTF-8 text: save it in that encoding"):
        open_data(path)


# Arrays in files of their own


@pytest.mark.parametrize("place", ["", "inputs.npy"])
def test_a_folder_of_two_arrays_is_mapped_and_not_read(place, tmp_path) -> None:
    inputs = np.lib.format.open_memmap(tmp_path / "inputs.npy", "w+", np.float32, (2**20, 2**14))
    inputs[[0, -1]] = [[1], [2]]  # a file of 64 GiB, with a hole in it
    inputs.flush()
    np.save(tmp_path / "targets.npy", np.arange(2**20))
    data = open_data(tmp_path / place)
    batch, _ = data.take([0, 5, 2**20 - 1])
    assert batch.inputs[:, 0].tolist() == [1, 0, 2]
    assert batch.targets.tolist() == [0, 5, 2**20 - 1]
    batch.inputs[0] = 9  # a model may write to its batch
    assert next(data.batches(1)).inputs[0, 0] == 1
    before = data.fingerprint()
    np.save(tmp_path / "targets.npy", np.zeros(2**20, int))
    assert open_data(tmp_path).fingerprint() != before


def test_an_array_alone_has_no_targets(tmp_path) -> None:
    np.save(tmp_path / "rows.npy", np.eye(3))
    data = open_data(tmp_path / "rows.npy")
    assert (arrays(data), data.has_targets) == ((np.eye(3).tolist(), None), False)
    np.save(tmp_path / "inputs.npy", np.eye(3))
    np.save(tmp_path / "targets.npy", np.arange(2))
    with pytest.raises(ValueError, match="one label for each of the 3 inputs"):
        open_data(tmp_path)
    (tmp_path / "inputs.npy").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"cannot be read as \.npy data"):
        open_data(tmp_path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_npz_is_mapped_unless_it_is_packed(order, tmp_path) -> None:
    inputs = np.asarray(np.arange(2**24, dtype=np.float32).reshape(2**20, 16), order=order)
    np.savez(tmp_path / "d.npz", targets=np.arange(2**20), inputs=inputs)
    data = open_data(tmp_path / "d.npz")
    assert isinstance(data.inputs, np.memmap)
    np.testing.assert_array_equal(data.take([0, 77])[0].inputs, inputs[[0, 77]])
    np.savez_compressed(tmp_path / "d.npz", inputs=inputs)
    packed = open_data(tmp_path / "d.npz")
    assert not isinstance(packed.inputs, np.memmap)
    np.testing.assert_array_equal(packed.inputs, inputs)


# What is none of these


def test_a_path_that_leads_nowhere_or_to_nothing_is_one_sentence(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r".* does not exist; give a folder of images"):
        open_data(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images"):
        open_data(tmp_path / "empty")
    put(tmp_path / "phone" / "a.heic", b"")
    with pytest.raises(ValueError, match=r"has no images, .* only \.heic files$"):
        open_data(tmp_path / "phone")
    put(tmp_path / "data.xlsx", b"1,2")
    with pytest.raises(ValueError, match=r"the unknown suffix '.xlsx'"):
        open_data(tmp_path / "data.xlsx")
    with pytest.raises(ValueError, match="are for tables"):
        open_data(tmp_path / "empty", input_columns="image")
    with pytest.raises(ValueError, match="must be one of skip, error, not 'ignore'"):
        open_data(tmp_path / "empty", on_unreadable="ignore")


def test_a_json_that_is_not_cocos_is_refused(tmp_path) -> None:
    put(tmp_path / "coco" / "annotations" / "instances_val.json", b"{}")
    for path in (tmp_path / "coco", tmp_path / "coco" / "annotations" / "instances_val.json"):
        with pytest.raises(ValueError, match="in COCO's instances format, but images is missing"):
            open_data(path)


def test_a_late_label_that_is_no_class_is_refused_before_an_image_is_read(tmp_path) -> None:
    table = {"image": [b"none of these is an image"] * 300, "label": ["cat"] * 295 + ["cow"] * 5}
    path = write_table(tmp_path / "t.parquet", pa.table(table))
    with pytest.raises(ValueError, match="the label 'cow' is not one of the 2 given classes"):
        open_data(path, classes=["cat", "dog"])
