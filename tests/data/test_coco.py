from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from ebjr.data.coco import read_coco
from ebjr.data.examples import decode_image
from ebjr.data.open import open_data

CONTENT = {
    "images": [
        {"id": 9, "file_name": "b.jpg", "width": 64, "height": 48},
        {"id": 4, "file_name": "a.jpg", "width": 32, "height": 24},
    ],
    "annotations": [
        {"id": 1, "image_id": 9, "category_id": 90, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}],
}


def write(folder, **changes):
    path = folder / "labels.json"
    path.write_text(json.dumps(CONTENT | changes))
    return path


def test_images_and_classes_come_in_the_order_of_their_ids(tmp_path):
    labels = read_coco(write(tmp_path))
    assert labels.files == ("a.jpg", "b.jpg")
    assert labels.sizes == ((24, 32), (48, 64))
    assert labels.classes == ("person", "toothbrush")
    assert labels.class_ids == (1, 90)
    empty, full = labels.truth
    assert (len(labels), len(empty)) == (2, 0)
    np.testing.assert_array_equal(full.boxes, [[1, 2, 4, 6], [0, 0, 9, 9]])
    np.testing.assert_array_equal(full.labels, [1, 0])
    np.testing.assert_array_equal(full.crowd, [False, True])


def annotated(**changes):
    return {"annotations": [CONTENT["annotations"][0] | changes]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (annotated(bbox=[1, 2, -3, 4]), "annotation 1 must have a box .* has"),
        (annotated(bbox=[1, 2, float("nan"), 4]), "annotation 1 must have a box"),
        (annotated(bbox=[1, 2, 3]), "annotation 1 must have a box"),
        (annotated(category_id=17), "annotation 1 has the category 17, which is not among"),
        (annotated(image_id=17), "annotation 1 belongs to image 17, which images does not list"),
        ({"images": [{"id": 9}]}, "file_name is missing"),
        ({"annotations": 3}, "labels.json"),
        ({"images": None}, "but images is missing"),
        ({"categories": None}, "annotation 1 has the category 90, which is not among"),
        (annotated(iscrowd="maybe"), "annotation 1 must have an iscrowd of 0 or 1, .* 'maybe'"),
        (annotated(iscrowd=2), "annotation 1 must have an iscrowd of 0 or 1, but has 2"),
        (annotated(iscrowd=None), "annotation 1 must have an iscrowd of 0 or 1, but has None"),
        (annotated(image_id=None), "the image_id of annotation 1 must be a whole number or a word"),
    ],
)
def test_labels_outside_the_map_are_refused_by_name(changes, message, tmp_path):
    if "images" in changes:
        changes = changes | {"annotations": []}
    with pytest.raises(ValueError, match=message) as caught:
        read_coco(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_before_the_labels_is_no_part_of_them(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert read_coco(path).files == ("a.jpg", "b.jpg")


def test_a_file_that_is_absent_or_no_json_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"label file .* does not exist"):
        read_coco(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(ValueError, match=r"text\.json"):
        read_coco(tmp_path / "text.json")
    (tmp_path / "wide.json").write_text("{}", encoding="utf-16")
    with pytest.raises(ValueError, match=r"wide\.json is not UTF-8 text"):
        read_coco(tmp_path / "wide.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json: .* is an object with images"):
        read_coco(tmp_path / "list.json")


def test_a_key_that_an_object_has_twice_is_refused(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text().replace('"iscrowd": 1', '"iscrowd": 1, "iscrowd": 0'))
    with pytest.raises(
        ValueError, match=r"labels\.json: in an object, the key 'iscrowd' must occur"
    ):
        read_coco(path)


IMAGE, SECOND = CONTENT["images"]
TOOTHBRUSH, PERSON = CONTENT["categories"]
BOX, CROWD = CONTENT["annotations"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": [IMAGE, SECOND | {"id": "9"}]},
            "of images, the id 9 must occur once, but occurs 2 times",
        ),
        (
            {"images": [IMAGE, SECOND | {"id": 9.0}]},
            "of images, the id 9 must occur once, but occurs 2 times",
        ),
        ({"images": [IMAGE, IMAGE | {"id": 1}]}, "the image file 'b.jpg' must occur once"),
        (
            {"images": [IMAGE, IMAGE | {"id": 1, "file_name": "./b.jpg"}]},
            "the image file 'b.jpg' must occur once",
        ),
        (
            {"images": [IMAGE | {"file_name": "a/0.png"}, SECOND | {"file_name": "a//./0.png"}]},
            "the image file 'a/0.png' must occur once",
        ),
        ({"categories": [PERSON, TOOTHBRUSH, PERSON]}, "of categories, the id 1 must occur once"),
        ({"categories": [PERSON, PERSON | {"id": 90}]}, "the category 'person' must occur once"),
        ({"annotations": [BOX, CROWD, CROWD]}, "of annotations, the id 2 must occur once"),
        (
            {"images": [IMAGE | {"id": True}]},
            "each id of images must be a whole number or a word, not True",
        ),
        ({"images": [IMAGE | {"id": 1.5}]}, "each id of images must be .*, not 1.5"),
    ],
)
def test_what_must_be_there_once_is_refused_where_it_is_twice(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        read_coco(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_an_id_is_the_same_as_a_number_and_as_text(tmp_path):
    plain = read_coco(write(tmp_path))
    mixed = read_coco(
        write(
            tmp_path,
            images=[IMAGE, SECOND | {"id": "4"}],
            annotations=[BOX | {"image_id": "9", "category_id": "90"}, CROWD | {"id": "2"}],
            categories=[TOOTHBRUSH | {"id": "90"}, PERSON],
        )
    )
    assert (mixed.files, mixed.classes, mixed.class_ids) == (
        plain.files,
        plain.classes,
        plain.class_ids,
    )
    for one, other in zip(mixed.truth, plain.truth, strict=True):
        np.testing.assert_array_equal(one.labels, other.labels)


def test_ids_that_are_words_come_after_numbers(tmp_path):
    images = [IMAGE | {"id": "z"}, SECOND | {"id": 10}, SECOND | {"id": "9", "file_name": "c.jpg"}]
    labels = read_coco(write(tmp_path, images=images, annotations=[BOX | {"image_id": "z"}]))
    assert labels.files == ("c.jpg", "a.jpg", "b.jpg")
    assert list(map(len, labels.truth)) == [0, 0, 1]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        *(("0", False), (False, False), ("false", False), (0.0, False)),
        *(("1", True), (True, True), ("True", True), (1, True)),
    ],
)
def test_a_crowd_is_read_for_what_its_file_means(said, meant, tmp_path):
    labels = read_coco(write(tmp_path, annotations=[BOX | {"iscrowd": said}]))
    assert labels.truth[1].crowd.tolist() == [meant]


# The images that go with the labels


def described(folder, images, **more):
    """Labels of some images, each (width, height) by its file."""
    listed = [
        {"id": id, "file_name": name, "width": width, "height": height}
        for id, (name, (width, height)) in enumerate(images.items())
    ]
    content = {"images": listed, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (folder / "l.json").write_text(json.dumps(content | more))
    return folder / "l.json"


def photo(path, width, height, turn=None, color="black"):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    Image.new("RGB", (width, height), color).save(path, exif=exif)


@pytest.mark.parametrize("turn", [5, 6, 7, 8])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_photo_is_turned_as_its_boxes_are(turn, suffix, tmp_path):
    picture = Image.new("RGB", (40, 24))
    picture.paste("red", (24, 0, 40, 8))
    exif = Image.Exif()
    exif[0x0112] = turn
    for name in ("stored", "upright"):
        picture.save(tmp_path / f"{name}.{suffix}", exif=exif)
    sizes = {f"stored.{suffix}": (40, 24), f"upright.{suffix}": (24, 40)}
    data = open_data(described(tmp_path, sizes))
    (batch,) = data.batches(2)
    stored, upright = batch.inputs
    with Image.open(tmp_path / f"stored.{suffix}") as image:
        np.testing.assert_array_equal(stored, np.asarray(image))
    np.testing.assert_array_equal(
        upright, decode_image((tmp_path / f"upright.{suffix}").read_bytes())
    )
    assert (stored.shape, upright.shape) == ((24, 40, 3), (40, 24, 3))
    assert data.unreadable == []


def test_an_image_of_another_size_than_its_labels_is_named(tmp_path):
    photo(tmp_path / "right.png", 40, 20)
    photo(tmp_path / "half.png", 20, 10)
    photo(tmp_path / "turned.png", 20, 40)
    labels = described(tmp_path, dict.fromkeys(("right.png", "half.png", "turned.png"), (40, 20)))
    data = open_data(labels)
    assert [batch.names for batch in data.batches(9)] == [["right.png"]]
    assert data.unreadable == [
        ("half.png", "it has 20 x 10 pixels, but the labels say 40 x 20"),
        ("turned.png", "it has 20 x 40 pixels, but the labels say 40 x 20"),
    ]
    with pytest.raises(ValueError, match=r"half.png .* but the labels say 40 x 20"):
        list(open_data(labels, on_unreadable="error").batches(9))
    found, rows = open_data(labels).take([0, 1])
    assert (found.names, rows.tolist()) == (["right.png"], [0])


@pytest.mark.parametrize(
    "change",
    [
        {"width": None},
        {"height": None, "width": None},
        {"height": 0, "width": 0},
        {"drop": "width"},
    ],
)
def test_a_size_that_the_labels_do_not_say_is_not_compared(change, tmp_path):
    photo(tmp_path / "a.png", 20, 10)
    path = described(tmp_path, {"a.png": (40, 20)})
    content = json.loads(path.read_text())
    content["images"][0] |= change
    content["images"][0].pop(change.get("drop"), None)
    path.write_text(json.dumps(content))
    assert read_coco(path).sizes == (None,)
    data = open_data(path)
    assert [batch.names for batch in data.batches(9)] == [["a.png"]]
    assert data.unreadable == []


@pytest.mark.parametrize("change", [{}, {"annotations": None}, {"drop": "annotations"}])
@pytest.mark.parametrize("classes", [None, ["y", "x"]])
def test_images_without_any_annotation_have_no_labels(change, classes, tmp_path):
    """As COCO lists its test set."""
    photo(tmp_path / "a.png", 4, 4)
    path = described(tmp_path, {"a.png": (4, 4)}, **change)
    content = json.loads(path.read_text())
    content.pop(change.get("drop"), None)
    path.write_text(json.dumps(content))
    data = open_data(path, classes=classes)
    (batch,) = data.batches(2)
    assert (data.has_targets, batch.targets) == (False, None)
    assert data.classes == tuple(classes or "x")  # which tell how many a detector's outputs are


def test_images_listed_without_categories_have_no_classes(tmp_path):
    photo(tmp_path / "a.png", 4, 4)
    data = open_data(described(tmp_path, {"a.png": (4, 4)}, categories=None))
    assert (data.has_targets, data.classes, data.named_by) == (False, None, None)


def zipped(folder, names):
    """A .zip of images of one gray each: the place of its name."""
    with zipfile.ZipFile(folder / "i.zip", "w") as archive:
        archive.writestr("folder/", b"")
        for gray, name in enumerate(names):
            path = folder / f"{gray}.png"
            photo(path, 4, 4, color=(gray, gray, gray))
            archive.write(path, name)
    return folder / "i.zip"


@pytest.mark.parametrize(
    ("inside", "named", "found"),
    [
        (["a/1.png", "b/1.png"], ["b/1.png", "a/1.png"], [1, 0]),
        (["top/a/1.png", "top/b/1.png"], ["b/1.png", "a/1.png"], [1, 0]),
        (["top/in/a/1.png", "top/in/b/1.png"], ["b/1.png", "in/a/1.png"], [1, 0]),
        (["a/a/1.png", "a/1.png"], ["a/1.png"], [1]),
        (["x/1.png", "y/2.png"], ["2.png", "1.png"], [1, 0]),
        (["2.png", "1.png"], ["train/1.png", "train/2.png"], [1, 0]),
        (["__MACOSX/1.png", "a/._1.png", "a/1.png"], ["1.png"], [2]),
        (["b/1.png"], ["a/1.png", "b/1.png"], [None, 0]),
    ],
)
def test_an_image_in_a_zip_is_found_by_its_whole_path(inside, named, found, tmp_path):
    images = zipped(tmp_path, inside)
    data = open_data(described(tmp_path, dict.fromkeys(named, (4, 4))), images=images)
    (batch,) = data.batches(9)
    there = [place for place in found if place is not None]
    assert [int(image[0, 0, 0]) for image in batch.inputs] == there
    assert [name for name, _ in data.unreadable] == named[: len(found) - len(there)]


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        (["a/1.png", "b/1.png"], "1.png"),
        (["a/1.png", "b/1.png"], "c/1.png"),
        (["x/a/1.png", "y/a/1.png"], "a/1.png"),
    ],
)
def test_a_bare_name_that_two_images_have_is_refused(inside, named, tmp_path):
    images = zipped(tmp_path, inside)
    with pytest.raises(ValueError, match=f"may be {inside[0]} or {inside[1]} in"):
        open_data(described(tmp_path, {named: (4, 4)}), images=images)


def test_a_zip_that_is_none_or_empty_is_one_sentence(tmp_path):
    labels = described(tmp_path, {"a.png": (4, 4)})
    (tmp_path / "i.zip").write_bytes(b"PK, but no zip")
    with pytest.raises(ValueError, match=r"i\.zip cannot be read as a \.zip"):
        open_data(labels, images=tmp_path / "i.zip")
    with pytest.raises(ValueError, match=r"i\.zip has none of the 1 images"):
        open_data(labels, images=zipped(tmp_path, []))


def test_ids_of_categories_follow_the_classes(tmp_path):
    photo(tmp_path / "a.png", 4, 4)
    categories = [{"id": 3, "name": "cat"}, {"id": 18, "name": "dog"}]
    path = described(tmp_path, {"a.png": (4, 4)}, categories=categories)
    own = open_data(path)
    assert (own.classes, own.class_ids, own.named_by) == (("cat", "dog"), (3, 18), "categories")
    given = open_data(path, classes=["dog", "cat"])
    assert (given.class_ids, given.named_by) == ((18, 3), "given")
    assert open_data(path, classes=["dog", "cat", "emu"]).class_ids is None
    words = [{"id": "c", "name": "cat"}]
    path = described(tmp_path, {"a.png": (4, 4)}, categories=words)
    assert open_data(path).class_ids is None
