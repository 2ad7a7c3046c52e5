"""Detection on the command line: record, calibrate, evaluate, predict, and back from joint.toml."""

from __future__ import annotations

import json
import tomllib
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from tiny import CLASSES, write_coco, write_detectors, write_images, write_linear

import ebjr
from ebjr import JointDetector, Outcomes
from ebjr.backends.detectors import OnnxDetector
from ebjr.data.open import open_data
from ebjr.tasks.detection.scale import CommonScale

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("sklearn", reason="scikit-learn is not installed")

RECORD = (
    "record --task detection --student student.onnx --teacher teacher.onnx --data labels.json "
    "--student-flops 100 --teacher-flops 1000 -o outcomes.npz"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the tiny detectors, labeled images and what was said of them."""
    place = tmp_path_factory.mktemp("detection")
    write_detectors(place)
    write_coco(place)
    return place


@pytest.fixture
def here(run, folder, monkeypatch):
    """Run the command line in that folder."""
    monkeypatch.chdir(folder)
    if not (folder / "outcomes.npz").exists():
        code, _, error = run(*RECORD.split())
        assert code == 0, error
    return run


def refused(result):
    code, _, error = result
    assert code == 2, error
    lines = [line for line in error.splitlines() if line.startswith("ebjr: ")]
    assert len(lines) == 1, error
    return lines[0]


def test_record_keeps_what_both_detectors_said_and_how_to_load_them(here, folder):
    outcomes = Outcomes.load("outcomes.npz")
    assert (outcomes.task, outcomes.metric, outcomes.labels) == ("detection", "ap", CLASSES)
    assert len(outcomes) == 80
    assert outcomes.models["teacher"]["layout"] == "detr"
    assert outcomes.models["teacher"]["classes"] == 3
    assert outcomes.quality("teacher") > outcomes.quality("student") > 0
    assert outcomes.teacher_cost.flops == 1000


def test_empty_images_are_said_to_be_empty(here):
    code, _, error = here(*RECORD.replace("outcomes.npz", "again.npz").split())
    assert code == 0
    empty = sum(len(real) == 0 for real in Outcomes.load("again.npz").targets)
    assert empty > 0
    assert f"{empty} of 80 images have no labeled box and count as empty" in error


@pytest.mark.parametrize("change", [{"annotations": []}, {"annotations": None, "categories": None}])
def test_images_listed_without_annotations_are_recorded_and_answered(here, folder, change):
    content = json.loads((folder / "labels.json").read_text()) | change
    (folder / "test.json").write_text(json.dumps(content))
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    words = RECORD.replace("labels.json", "test.json").replace("outcomes.npz", "test.npz")
    code, _, error = here(*words.split(), "--classes", "classes.txt")
    assert code == 0, error
    assert "test.json has no labels: the teacher's own answers are taken for right" in error
    assert not Outcomes.load("test.npz").labeled
    assert here("calibrate", "test.npz", "-o", "test.toml")[0] == 0
    code, _, error = here("predict", "test.toml", "--data", "test.json", "-o", "test.jsonl")
    assert code == 0, error
    assert len((folder / "test.jsonl").read_text().splitlines()) == 80


def test_calibrate_evaluate_and_predict_follow_one_another(here, folder):
    code, printed, error = here(
        *["calibrate", "outcomes.npz", "--tolerance", "0.02", "-o", "joint.toml", "--json"]
    )
    assert code == 0, error
    figures = json.loads(printed)
    assert figures["chosen_on"]["metric"] == "ap"
    table = tomllib.loads((folder / "joint.toml").read_text())
    assert table["task"] == "detection"
    assert sorted(table["router"]["rescale"]) == ["student", "teacher"]
    joint = ebjr.load_joint("joint.toml")
    assert isinstance(joint, JointDetector)
    assert joint.rescale == CommonScale.from_dict(table["router"]["rescale"])
    assert isinstance(joint.student, OnnxDetector)

    code, printed, error = here(
        *["evaluate", "outcomes.npz", "--joint", "joint.toml", "--report", "report.html", "--json"],
        *["--data", "labels.json"],
    )
    assert code == 0, error
    again = json.loads(printed)
    for name in ("quality", "deferral_rate", "threshold"):
        assert again["held_out"][name] == pytest.approx(figures["held_out"][name])
    page = (folder / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 4
    assert '"who":"teacher"' in page
    assert "teacher adds nothing" in page

    code, printed, error = here(
        *["predict", "joint.toml", "--data", "labels.json", "-o", "answers.jsonl", "--json"]
    )
    assert code == 0, error
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 80
    assert json.loads(printed)["deferred"] == sum(row["deferred"] for row in rows)
    found = [box for row in rows for box in row["prediction"]]
    assert {box["label"] for box in found} == set(CLASSES)
    assert all(len(box["box"]) == 4 and 0 <= box["score"] <= 1 for box in found)
    images = next(open_data("labels.json").batches(80)).inputs
    answer = joint(images)
    assert [len(one) for one in answer.prediction] == [len(row["prediction"]) for row in rows]


def test_a_guarantee_is_asked_for_by_image(here):
    words = "calibrate outcomes.npz --metric f1 --goal accuracy --target 0.3 --delta 0.1 --json"
    code, printed, error = here(*words.split(), "--score", "box_count", "--blend", "0")
    assert code == 0, error
    assert json.loads(printed)["promise"]["test"] == "betting"
    sentence = refused(here(*["calibrate", "outcomes.npz", "--tolerance", "0.1", "--delta", "0.1"]))
    assert "use the metric f1" in sentence


def test_a_scale_that_was_changed_by_hand_voids_the_figures(here, folder):
    assert here(*["calibrate", "outcomes.npz", "--score", "box_count", "-o", "hand.toml"])[0] == 0
    config = ebjr.JointConfig.read("hand.toml")
    assert config.changes == []
    changed = (folder / "hand.toml").read_text().split("[router.rescale]")
    assert len(changed) == 2
    table = tomllib.loads((folder / "hand.toml").read_text())
    table["router"]["rescale"]["student"][0] *= 2
    scale = CommonScale.from_dict(table["router"]["rescale"])
    assert "rescale is" in replace(config, rescale=scale).changes[0]


def test_save_joint_names_the_layout(here, folder):
    student, teacher = (
        ebjr.load_model(f"{role}.onnx", layout="auto", classes=3, threads=1)
        for role in ("student", "teacher")
    )
    joint = JointDetector(student, teacher, ebjr.Router("box_count", -1.5), blend=0.25)
    ebjr.save_joint("saved.toml", joint, labels=CLASSES)
    loaded = ebjr.load_joint("saved.toml")
    images = next(open_data("labels.json").batches(9)).inputs
    for one, other in zip(joint(images).prediction, loaded(images).prediction, strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--task classification", "labels.json has labeled boxes: give --task detection"),
        ("--task detection --data colors", "reads labeled boxes from COCO's .json, not from"),
        ("--task detection --student linear.onnx", "no layout fits the outputs of linear for 3"),
        ("--task detection --student-layout yolo", "layout must be one of auto, nanodet"),
        ("--task detection --student-layout yolov5", "the model must have the output"),
        ("--task detection --images nowhere", "none of the 80 images that labels.json names is in"),
    ],
)
def test_what_cannot_be_recorded_is_refused_in_one_sentence(here, folder, words, message):
    write_images(folder / "colors", 6)
    write_linear(folder / "linear.onnx", np.eye(3))
    given = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
    base = RECORD.split()[1:]
    base = dict(zip(base[::2], base[1::2], strict=True))
    flat = [word for pair in {**base, **given, "-o": "no.npz"}.items() for word in pair]
    assert message in refused(here("record", *flat))
    assert not (folder / "no.npz").exists()


# data


def test_boxes_come_with_their_images_from_a_folder_or_a_zip(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for file in sorted((folder / "images").iterdir()):
            archive.write(file, f"inside/{file.name}")
    plain = next(open_data(folder / "labels.json").batches(80))
    zipped = open_data(folder / "labels.json", images=tmp_path / "images.zip")
    assert zipped.classes == CLASSES
    batch = next(zipped.batches(80))
    assert batch.names == plain.names
    for one, other in zip(batch.inputs, plain.inputs, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [len(real) for real in batch.targets] == [len(real) for real in plain.targets]


def test_cocos_own_folders_are_found(folder, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2017").symlink_to(folder / "images")
    labels = tmp_path / "annotations" / "instances_val2017.json"
    labels.write_text((folder / "labels.json").read_text())
    assert len(open_data(tmp_path)) == 80
    labels.with_name("instances_more.json").write_text("{}")
    with pytest.raises(ValueError, match="labels for 2 sets of images: give one of them"):
        open_data(tmp_path)


def test_categories_are_mapped_to_the_models_classes_by_name(folder):
    data = open_data(folder / "labels.json", classes=("cat", *CLASSES[::-1]))
    plain = next(open_data(folder / "labels.json").batches(80)).targets
    mapped = next(data.batches(80)).targets
    for one, other in zip(plain, mapped, strict=True):
        np.testing.assert_array_equal(3 - one.labels, other.labels)
    with pytest.raises(
        ValueError, match="has boxes of red, which is not one of the 2 given classes"
    ):
        open_data(folder / "labels.json", classes=CLASSES[:2])


def test_a_missing_image_is_named_and_left_out(folder, tmp_path):
    (tmp_path / "images").mkdir()
    for file in sorted((folder / "images").iterdir())[1:]:
        (tmp_path / "images" / file.name).symlink_to(file)
    (tmp_path / "labels.json").write_text((folder / "labels.json").read_text())
    data = open_data(tmp_path / "labels.json")
    assert sum(len(batch) for batch in data.batches(16)) == 79
    missing = tmp_path / "images" / "0000.png"
    assert data.unreadable == [("0000.png", f"{missing} does not exist")]
