from __future__ import annotations

import re
from pathlib import Path

import pytest
from slices import write_joint

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ebjr import JointClassifier, Preprocess, Router, load_model
from ebjr.data.preprocess import prepared
from ebjr.demo import shipped
from ebjr.export import export_joint

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_runs_as_it_is_written(run, tmp_path):
    with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
        models = [prepared(load_model(path), Preprocess()) for path in (student, teacher)]
        write_joint(tmp_path, JointClassifier(*models, Router("softmax", 0.7)))
    lines = [line for block in blocks("console") for line in block.splitlines()]
    commands = [line.split()[2:] for line in lines if line.startswith("$ ebjr")]
    assert len(commands) == 2
    for words in commands:
        code, _, said = run(*words)
        assert code == 0, said
    assert (tmp_path / "models" / "joint" / "1" / "model.onnx").is_file()
    names = {}
    for block in blocks("python"):
        exec(compile(block, "docs/export.md", "exec"), names)
    assert names["deferred"].shape == (4,)
    joint = JointClassifier(*models, Router(names["logit_gap"], 1.5))
    assert export_joint(joint, tmp_path / "gap.onnx").score == "logit_gap"
