from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from pages import blocks as page_blocks

from ebjr import load_model
from ebjr.demo import shipped
from ebjr.errors import RecordingNote
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
    inputs = np.random.default_rng(0).random((400, 3, 32, 32), dtype=np.float32)
    names = {"inputs": inputs, "targets": load_model("teacher.onnx")(inputs).argmax(axis=1)}

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordingNote)  # on noise the student guesses
            for block in blocks("python"):
                exec(compile(block, "README.md", "exec"), names)
    finally:
        SCORES.pop("logit_gap", None)
    assert (folder / "joint.toml").exists()
    assert capsys.readouterr().out


def test_the_commands_are_those_of_the_page_that_explains_them():
    commands = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert "\n".join(commands) + "\n" == page_blocks("two-models.md", "sh")[0]
