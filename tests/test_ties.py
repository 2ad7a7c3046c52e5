"""Rows whose scores are equal but for rounding stay together, in any batch and in the file."""

from __future__ import annotations

import numpy as np
import pytest
from slices import write_slice

from ebjr import JointConfig, calibrate, load_joint, record
from ebjr.backends import load_model
from ebjr.joint_file import ModelEntry

CLASSES = 10
ROWS = 2000


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two models that pass on logits on a coarse grid, and rows of them."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(0)
    rows = (0.7 * rng.integers(-2, 3, (ROWS, 2 * CLASSES))).astype(np.float32)
    rows[:, CLASSES:] += rows[:, :CLASSES]
    write_slice(folder / "student.onnx", range(CLASSES), 2 * CLASSES)
    write_slice(folder / "teacher.onnx", range(CLASSES, 2 * CLASSES), 2 * CLASSES)
    return folder, rows, rows[:, CLASSES:].argmax(axis=1)


@pytest.mark.parametrize("score", ["energy", "softmax", "entropy", "margin", "normalized_logit"])
def test_every_way_keeps_the_same_rows(pair, score):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from ebjr.export import export_joint

    folder, rows, targets = pair
    files = [folder / f"{role}.onnx" for role in ("student", "teacher")]
    outcomes = record(*map(load_model, files), rows, targets)
    point = calibrate(outcomes, goal="budget", deferral_rate=0.4, score=score, blend=0.0)
    entries = map(ModelEntry.of_file, files)
    JointConfig(*entries, score=score, threshold=point.threshold).save(folder / "joint.toml")
    export_joint(folder / "joint.toml", folder / "joint.onnx")
    wanted = point.curve(outcomes)
    kept = np.asarray(point.router(outcomes.student)[1])
    assert kept.mean() == point.deferral_rate == wanted.at(threshold=point.threshold).deferral_rate
    for batch in (1, 7, 64):
        for name in ("joint.toml", "joint.onnx"):
            joint = load_joint(folder / name)
            parts = [joint(rows[k : k + batch]).deferred for k in range(0, 512, batch)]
            assert (np.concatenate(parts)[:512] == kept[:512]).all(), (name, batch)
