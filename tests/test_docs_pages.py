"""The code of the how-tos and of the pages on tasks runs as it is written."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import (
    DOCS,
    check_output,
    file_of,
    printed_by,
    run_commands,
    run_python,
    servers_of,
    shown,
)
from PIL import Image
from tiny import write_coco, write_detectors

from ebjr import JointConfig, Outcomes, run_study
from ebjr.backends.entry import ModelEntry
from ebjr.cli import main
from ebjr.demo import shipped
from ebjr.monitor import RiskMonitor
from ebjr.scores import SCORES
from ebjr.windows import STATE_FORMAT

for name in ("onnxruntime", "sklearn"):
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.fixture(scope="module")
def stock(tmp_path_factory) -> Path:
    """The shipped pair, a student of three classes, and images in ten folders."""
    folder = tmp_path_factory.mktemp("stock")
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            shutil.copy(path, folder)
    with shipped("knows-3.onnx", "specialized") as path:
        shutil.copy(path, folder)
    rng = np.random.default_rng(0)
    for number in range(40):
        place = folder / "images" / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{number}.png")
    return folder


@pytest.fixture
def folder(stock, tmp_path, monkeypatch) -> Path:
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def demo(folder, recorded_demo) -> None:
    """These files where the pages have them."""
    shutil.copytree(recorded_demo, folder / "ebjr-demo")


def run_lines(page: str, monkeypatch) -> list[str]:
    """Run every `ebjr` command of a page, but for demos and servers: these.

    Each block prints what the page shows below it.
    """
    monkeypatch.setenv("COLUMNS", "100")
    done = []
    for block, text in shown(page, "sh"):
        lines = block.replace("\\\n", " ").splitlines()
        lines = [line for line in lines if line.startswith("ebjr ") and "--recorded" not in line]
        lines = [line for line in lines if not line.startswith("ebjr serve")]
        check_output("".join(run_line(line, monkeypatch) for line in lines), text)
        done += lines
    return done


def run_line(line: str, monkeypatch) -> str:
    """Run one command: what it printed."""

    def run() -> None:
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, line

    monkeypatch.setattr("sys.argv", line.split())
    return printed_by(run)


def test_more_than_two_models_become_one(folder, demo, monkeypatch):
    shutil.copy("student.onnx", "middle.onnx")
    assert len(run_lines("stages.md", monkeypatch)) == 5
    assert len(run_python("stages.md")["point"].stages) > 1


def test_a_batch_is_answered_within_a_promise(folder, monkeypatch):
    shutil.copy("teacher.onnx", "student.onnx")  # which agree on noise, too
    for number in range(40, 400):
        shutil.copy(f"images/class{number % 10}/{number % 40}.png", f"images/class0/{number}.png")
    models = "--student student.onnx --teacher teacher.onnx"
    run_line(f"ebjr record {models} --data images -o noise.npz", monkeypatch)
    run_line("ebjr calibrate noise.npz -o joint.toml", monkeypatch)
    assert len(run_lines("promises.md", monkeypatch)) == 1
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert 0 < sum(answer["deferred"] for answer in answers) < 200
    names = run_python("promises.md")
    assert names["answers"].teacher_calls < 1200
    assert names["spent"].teacher_calls == 300


def test_two_models_become_one(folder, demo, monkeypatch):
    for name in ("cat", "dog", "ship"):
        shutil.copytree("images/class0", f"images_of_three/{name}")
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    (folder / "classes.txt").write_text(names.replace(" ", "\n"))
    (folder / "models.py").write_text(file_of("two-models.md", "models.py"))
    rows = np.random.default_rng(1).normal(size=(200, 4)).astype(np.float32)
    np.savez(folder / "rows.npz", inputs=rows)
    shutil.copy("student.onnx", "middle.onnx")
    assert len(run_lines("two-models.md", monkeypatch)) == 14
    assert Outcomes.load("zoo.npz").roles == ("student", "model-2", "model-3", "teacher")
    assert set(Outcomes.load("three.npz").targets) == {3, 5, 8}
    assert (folder / "rows.jsonl").read_text().count("\n") == 200
    assert (folder / "answers.jsonl").read_text().count("\n") == 40
    assert (folder / "report.html").exists()
    names = run_python("two-models.md")
    assert names["answer"].deferred.shape == (8,)


def test_a_score_and_a_rival_are_a_few_lines(capsys):
    try:
        names = run_python("research.md")
    finally:
        SCORES.pop("logit_gap", None)
    assert names["ours"].shape == names["rival"].shape
    printed = capsys.readouterr().out
    assert printed.count("times fewer FLOPs") == 4
    assert "the joint model" in printed


def test_the_guarantee_is_given_and_watched(folder, monkeypatch, capsys):
    with shipped("outcomes.npz") as path:
        shutil.copy(path, folder / "outcomes.npz")
    names = run_python("guarantees.md")
    printed = capsys.readouterr().out
    assert "With probability at least 0.9" in printed
    assert "can be certified" in printed
    assert names["risk"].status in ("kept", "undecided")
    assert names["drift"].status == "steady"
    table = Outcomes.load("outcomes.npz")
    models = {role: {"path": f"{role}.onnx", "sha256": "0"} for role in ("student", "teacher")}
    replace(table, models=models).save("outcomes.npz")
    assert len(run_lines("guarantees.md", monkeypatch)) == 1
    assert JointConfig.read("joint.toml").calibration["certified"]


def test_a_threshold_is_judged_again(folder, monkeypatch, capsys):
    with shipped("outcomes.npz") as path:
        table = Outcomes.load(path).pair("student", "teacher")
    models = {role: {"path": f"{role}.pt2", "sha256": "0"} for role in ("student", "teacher")}
    before, since = replace(table, models=models).split(0.5, seed=0)
    since.save("new.npz")
    study = run_study(before, tolerance=0.01, score="margin")
    entries = (ModelEntry(f"{role}.pt2", "0") for role in models)
    JointConfig.of_study(*entries, study).save("joint.toml")
    rows = [f"{'left' if k % 2 else 'right'},{k}" for k in range(len(since))]
    Path("rows.csv").write_text("\n".join(["source,taken", *rows]))
    risk = RiskMonitor(0.05)
    risk.update(np.zeros(1000))
    fingerprint = JointConfig.read("joint.toml").calibration["outcomes"]
    kept = {"format": STATE_FORMAT, "calibration": fingerprint}
    kept |= {"monitors": {"disagreement": risk.state()}}
    Path("monitor.json").write_text(json.dumps(kept))
    own = [
        (code.replace("/var/lib/ebjr", str(folder)), text)
        for code, text in shown("recalibrating.md", "sh")
    ]
    monkeypatch.setattr(sys.modules[__name__], "shown", lambda page, language: own)
    assert len(run_lines("recalibrating.md", monkeypatch)) == 4
    assert JointConfig.read("joint-new.toml").calibration["outcomes"] != fingerprint
    assert "source left" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    names = run_python("recalibrating.md")
    assert names["found"].status == "kept"
    assert names["worst"].column in ("class", "source")


def test_the_ranking_is_printed(capsys):
    names = run_python("choosing-a-score.md")
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(names["study"].ranking) > 5


def test_a_regressor_is_calibrated():
    assert run_python("regression.md")["point"].score == "predicted_std"


def test_specialized_students_are_recorded_and_compared(folder, monkeypatch):
    (folder / "ebjr-demo").mkdir()  # what the demo leaves there
    for name in ("knows-3.npz", "knows-5.npz", "knows-all.npz"):
        with shipped(name, "specialized") as path:
            shutil.copy(path, folder / "ebjr-demo")
    assert len(run_lines("specialized.md", monkeypatch)) == 2
    assert Outcomes.load(folder / "answers.npz").known_classes == (4, 6, 2)
    assert "popular share" in (folder / "sweep.html").read_text()
    assert run_python("specialized.md")["point"].score


def test_label_sets_are_joined(tmp_path, monkeypatch):
    from slices import write_slice

    monkeypatch.chdir(tmp_path)
    point = run_python("multilabel.md")["point"]
    assert point.quality >= point.teacher_quality - 0.005
    for role, columns in (("student", range(4)), ("teacher", range(4, 8))):
        write_slice(tmp_path / f"{role}.onnx", columns, 8)
    targets = np.random.default_rng(0).random((400, 4)) < 0.4
    clear = np.where(targets, 2.0, -2.0)
    noise = np.random.default_rng(1).normal(0, 1, (400, 8)) * np.repeat([2.0, 0.5], 4)
    inputs = (np.tile(clear, 2) + noise).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets.astype(int))
    assert len(run_lines("multilabel.md", monkeypatch)) == 3
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 400


def test_detectors_are_joined(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for path, name in zip(write_detectors(tmp_path), ("small", "large"), strict=True):
        path.rename(tmp_path / f"{name}.onnx")
    write_coco(tmp_path)
    assert len(run_lines("detection.md", monkeypatch)) == 4
    assert (tmp_path / "boxes.jsonl").read_text().count("\n") == 80
    assert '"samples":[{' in (tmp_path / "report.html").read_text()  # drawn by its script
    for name in ("uvicorn", "tritonclient.http"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    with servers_of("detection.md", tmp_path) as ports:
        if shutil.which("curl") is not None:
            assert '"name":"boxes"' in run_commands("detection.md", tmp_path, ports)
        capsys.readouterr()
        run_python("detection.md", ports)
    joint, *counts = capsys.readouterr().out.splitlines()
    assert joint.startswith("JointDetector")
    assert len(counts) == 8


def test_every_page_with_code_is_run():
    with_code = {path.name for path in DOCS.glob("*.md") if "```python" in path.read_text()}
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    assert all(name in tests for name in with_code)
