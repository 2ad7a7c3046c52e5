"""Outputs: no command writes over a file that it reads, by whatever name, before any work."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import write_coco, write_images, write_linear

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

RECORD = "record --student student.onnx --teacher teacher.onnx --data images -o"
CALIBRATE = "calibrate outcomes.npz --goal budget --deferral-rate 0.3 -o"
PREDICT = "predict joint.toml --data images -o"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a pair, whose student keeps its weights apart, and with labeled images."""
    import onnx

    folder = tmp_path_factory.mktemp("made")
    weight = np.random.default_rng(0).normal(size=(3, 3))
    whole = onnx.load(write_linear(folder / "student.onnx", weight))
    apart = {"save_as_external_data": True, "size_threshold": 0, "location": "student.data"}
    onnx.save(whole, folder / "student.onnx", **apart)
    write_linear(folder / "teacher.onnx", 20 * np.eye(3)[::-1])
    write_images(folder / "images", 60)
    write_coco(folder / "coco", 5)
    (folder / "names.txt").write_text("blue\ngreen\nred\n")
    return folder


@pytest.fixture
def here(run, made, tmp_path):
    """Run the command line in a copy of that folder, where outcomes and a joint.toml are."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for words in (f"{RECORD} outcomes.npz", f"{CALIBRATE} joint.toml"):
        if not (made / words.split()[-1]).exists():
            code, _, error = run(*words.split())
            assert code == 0, error
            for file in (tmp_path / words.split()[-1], *tmp_path.glob("joint.lists-*")):
                shutil.copy(file, made)
    return run


def marks():
    """What every file here holds."""
    return {
        file: hashlib.sha256(file.read_bytes()).digest()
        for file in Path().rglob("*.*")
        if file.is_file()
    }


def refused(run, words):
    before = marks()
    code, _, error = run(*words.split())
    assert code == 2, error
    assert marks() == before
    (said,) = [line for line in error.splitlines() if line.startswith("ebjr: ")]
    return said


@pytest.mark.parametrize(
    ("words", "flag", "lost"),
    [
        (f"{CALIBRATE} outcomes.npz", "--output", "outcomes.npz"),
        (f"{CALIBRATE} ./images/../outcomes.npz", "--output", "outcomes.npz"),
        (f"{CALIBRATE} teacher.onnx", "--output", "teacher.onnx"),
        (f"{CALIBRATE} new.toml --report student.onnx", "--report", "student.onnx"),
        (f"{CALIBRATE} new.toml --report student.data", "--report", "student.data"),
        (f"{RECORD} teacher.onnx", "--output", "teacher.onnx"),
        (f"{RECORD} student.data", "--output", "student.data"),
        (f"{RECORD} new.npz --classes new.npz.part", "--output", "new.npz.part"),
        (f"{RECORD} images/red/0002.png", "--output", "images/red/0002.png"),
        (f"{PREDICT} joint.toml", "--output", "joint.toml"),
        (f"{PREDICT} student.onnx", "--output", "student.onnx"),
        (f"{PREDICT} images/red/0002.png", "--output", "images/red/0002.png"),
        (f"{PREDICT} new.jsonl --import new.jsonl", "--output", "new.jsonl"),
        ("evaluate outcomes.npz --joint joint.toml --report joint.toml", "--report", "joint.toml"),
        ("evaluate outcomes.npz --report outcomes.npz", "--report", "outcomes.npz"),
        ("evaluate outcomes.npz --compare x.npz --report x.npz", "--report", "x.npz"),
        ("export joint.toml -o teacher.onnx", "--output", "teacher.onnx"),
        ("export joint.toml -o student --external-data", "--output", "student.data"),
        ("quantize teacher.onnx --data images -o teacher.onnx", "--output", "teacher.onnx"),
        ("quantize student.onnx --data images -o student.data", "--output", "student.data"),
        ("quantize teacher.onnx --data images -o images/red/0002.png", "--output", "0002.png"),
        ("serve joint.toml --audit-log student.onnx", "--audit-log", "student.onnx"),
        ("serve teacher.onnx --audit-log teacher.onnx", "--audit-log", "teacher.onnx"),
    ],
)
def test_what_is_read_is_never_written(here, words, flag, lost):
    for name in ("new.npz.part", "new.jsonl", "x.npz"):
        shutil.copy("names.txt", name)
    said = refused(here, words)
    assert said.startswith(f"ebjr: {flag} ")
    assert f"{lost}, which is read; give another file" in said


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("lost", ["outcomes.npz", "teacher.onnx", "student.data"])
def test_a_link_to_what_is_read_is_never_written(here, link, lost):
    link(Path(lost).resolve(), "other.name")
    said = refused(here, f"{CALIBRATE} other.name")
    assert f"--output other.name would overwrite {Path().resolve()}" in said or lost in said
    assert f"{lost}, which is read" in said


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_to_an_image_is_never_written(here, link):
    link(Path("images/blue/0000.png").resolve(), "answers.jsonl")
    assert "images/blue/0000.png, which is read" in refused(here, f"{PREDICT} answers.jsonl")


def test_the_images_that_a_json_names_are_never_written(here):
    words = "record --task detection --student student.onnx --teacher teacher.onnx --data"
    for lost in ("coco/images/0003.png", "coco/labels.json"):
        said = refused(here, f"{words} coco/labels.json -o {lost}")
        assert f"{lost}, which is read" in said


def test_two_outputs_are_two_files(here):
    said = refused(here, f"{CALIBRATE} new.toml --report ./new.toml")
    assert said == "ebjr: --output and --report are both new.toml; give two files"


def test_a_joint_model_of_joint_models_names_all_its_files(here):
    """What a file names may name further files."""
    outer = Path("joint.toml").read_text().replace("teacher.onnx", "joint.toml")
    Path("outer.toml").write_text(outer)
    assert "teacher.onnx, which is read" in refused(
        here, "predict outer.toml --data images -o teacher.onnx"
    )


def test_the_models_of_all_stages_are_never_written(here):
    shutil.copy("teacher.onnx", "middle.onnx")
    Path("staged.toml").write_text('[student.teacher]\npath = "middle.onnx"\n')
    np.savez("staged.npz", about=json.dumps({"models": {"model-2": {"path": "middle.onnx"}}}))
    for words in ("predict staged.toml --data images", "calibrate staged.npz"):
        assert "middle.onnx, which is read" in refused(here, f"{words} -o middle.onnx")


def test_what_a_command_wrote_before_is_written_again(here):
    """An output that is there, also in a folder that is read, is no input for that."""
    for words in (
        f"{RECORD} outcomes.npz",
        f"{CALIBRATE} joint.toml --report report.html",
        "evaluate outcomes.npz --joint joint.toml --report report.html",
        f"{PREDICT} images/answers.jsonl",
        "export joint.toml -o joint.onnx --external-data",
    ):
        for _ in range(2):
            code, _, error = here(*words.split())
            assert code == 0, error


def test_a_damaged_input_is_named_by_what_reads_it(here):
    for name in ("torn.npz", "torn.toml", "new.toml"):
        Path(name).write_bytes(b"PK\x03\x04 torn [")
    assert "torn.npz" in refused(here, "calibrate torn.npz -o new.toml")
    assert "torn.toml" in refused(here, "predict torn.toml --data images -o new.toml")
