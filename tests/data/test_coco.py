from __future__ import annotations

import json

import numpy as np
import pytest

from ebjr.data.coco import read_coco

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
        (annotated(category_id=17), "annotation 1 has the category 17, which is not listed"),
        (annotated(image_id=17), "annotation 1 belongs to image 17, which is not listed"),
        ({"images": [{"id": 9}]}, "file_name is missing"),
        ({"annotations": 3}, "labels.json"),
    ],
)
def test_labels_outside_the_map_are_refused_by_name(changes, message, tmp_path):
    if "images" in changes:
        changes = changes | {"annotations": []}
    with pytest.raises(ValueError, match=message) as caught:
        read_coco(write(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_absent_or_no_json_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file of labels"):
        read_coco(tmp_path / "absent.json")
    (tmp_path / "text.json").write_text("no json")
    with pytest.raises(ValueError, match=r"text\.json"):
        read_coco(tmp_path / "text.json")
