from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from ebjr.demo import shipped

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
    rng = np.random.default_rng(0)
    names = {
        "inputs": rng.random((64, 3, 32, 32), dtype=np.float32),
        "targets": rng.integers(0, 10, 64),
    }
    from ebjr.scores import SCORES

    try:
        for block in blocks("python"):
            exec(compile(block, "README.md", "exec"), names)
    finally:
        SCORES.pop("logit_gap", None)
    assert (folder / "joint.toml").exists()
    assert capsys.readouterr().out


def test_the_commands_run(folder, monkeypatch):
    from PIL import Image

    from ebjr.cli import main

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
