from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import write_coco, write_detectors

from ebjr import Outcomes, load_model
from ebjr.cli import main
from ebjr.demo import shipped
from ebjr.scores import SCORES

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the shipped pair in it."""
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            shutil.copy(path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_code_runs(folder, capsys):
    inputs = np.random.default_rng(0).random((1500, 3, 32, 32), dtype=np.float32)
    names = {"inputs": inputs, "targets": load_model("teacher.onnx")(inputs).argmax(axis=1)}

    try:
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        SCORES.pop("logit_gap", None)
    assert (folder / "joint.toml").exists()
    assert capsys.readouterr().out


def test_the_commands_run(folder, monkeypatch):
    from PIL import Image

    rng = np.random.default_rng(0)
    for number in range(40):
        place = folder / "images" / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    commands = [line[2:] for block in blocks("console") for line in block.splitlines()]
    ours = [line for line in commands if line.startswith("ebjr ")]
    assert len(ours) == 4
    for line in ours:
        monkeypatch.setattr("sys.argv", line.split())
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, line
    assert (folder / "answers.jsonl").read_text().count("\n") == 40
    assert (folder / "report.html").exists()


def test_the_commands_of_detection_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, name in zip(write_detectors(tmp_path), ("small", "large"), strict=True):
        path.rename(tmp_path / f"{name}.onnx")
    write_coco(tmp_path)
    (block,) = (found for found in blocks("bash") if "--task detection" in found)
    for line in block.splitlines():
        monkeypatch.setattr("sys.argv", line.split())
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, line
    assert (tmp_path / "boxes.jsonl").read_text().count("\n") == 80
    assert "<figure>" in (tmp_path / "report.html").read_text()


def test_the_guarantee_is_given(folder, monkeypatch, capsys):
    with shipped("outcomes.npz") as path:
        table = Outcomes.load(path)
    models = {role: {"path": f"{role}.onnx", "sha256": "0"} for role in ("student", "teacher")}
    replace(table, models=models).save("outcomes.npz")
    (line,) = (line for block in blocks("sh") for line in block.splitlines())
    monkeypatch.setattr("sys.argv", line.split())
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "Promise: With probability at least 0.9" in capsys.readouterr().out
