"""Multilabel from the command line to the server and the exported file: nothing knows its name."""

from __future__ import annotations

import json

import numpy as np
import pytest
from slices import write_slice

import ebjr

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

LABELS = ("cat", "dog", "fox", "owl")


@pytest.fixture
def folder(tmp_path):
    """Two models that say a part of their input, data with sets of labels, and their names."""
    rng = np.random.default_rng(0)
    targets = (rng.random((600, 4)) < 0.3).astype(np.int64)
    clear = np.where(targets, 3.0, -3.0)
    said = [clear + rng.normal(0, spread, clear.shape) for spread in (2.2, 1.0)]
    inputs = np.concatenate(said, axis=1).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=targets)
    write_slice(tmp_path / "student.onnx", range(4), 8)
    write_slice(tmp_path / "teacher.onnx", range(4, 8), 8)
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    return tmp_path


RECORD = (
    *("record", "--student", "student.onnx", "--teacher", "teacher.onnx", "--data", "data.npz"),
    *("--task", "multilabel", "--classes", "labels.txt", "-o", "o.npz"),
    *("--student-flops", "1e6", "--teacher-flops", "9e6"),
)
CALIBRATE = ("calibrate", "o.npz", "--tolerance", "0.02", "-o", "joint.toml")


def test_the_commands_follow_one_another(folder, run):
    assert run(*RECORD)[0] == 0
    code, out, _ = run(*CALIBRATE, "--report", "report.html", "--json")
    found = json.loads(out)
    assert (code, found["chosen_on"]["metric"]) == (0, "subset_accuracy")
    assert (
        found["chosen_on"]["score"].partition("(")[0] in ebjr.tasks.as_task("multilabel").raw.scores
    )
    code, out, _ = run("evaluate", "o.npz", "--joint", "joint.toml", "--metric", "micro_f1")
    assert code == 0
    assert "micro F1" in out
    assert run("predict", "joint.toml", "--data", "data.npz", "-o", "answers.jsonl")[0] == 0
    answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    data = np.load(folder / "data.npz")
    joint = ebjr.load_joint(folder / "joint.toml")
    answer = joint(data["inputs"])
    assert [row["prediction"] for row in answers] == [
        np.flatnonzero(row).tolist() for row in answer.prediction
    ]
    assert answers[0]["label"] == [LABELS[k] for k in answers[0]["prediction"]]
    assert run("export", "joint.toml", "-o", "joint.onnx")[0] == 0
    exported = ebjr.load_joint(folder / "joint.onnx")(data["inputs"])
    np.testing.assert_array_equal(exported.prediction, answer.prediction)
    np.testing.assert_array_equal(exported.deferred, answer.deferred)
    assert run("calibrate", "o.npz", "--tolerance", "0.05", "--delta", "0.1")[0] == 0


def test_a_server_answers_label_sets(folder, run):
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    from starlette.testclient import TestClient

    from ebjr.serving.app import build_app
    from ebjr.serving.served import served_of

    assert run(*RECORD)[0] == run(*CALIBRATE)[0] == 0
    data = np.load(folder / "data.npz")["inputs"][:5]
    expected = ebjr.load_joint(folder / "joint.toml")(data)
    tensor = {"name": "x", "shape": [5, 8], "datatype": "FP32", "data": data.ravel().tolist()}
    with TestClient(build_app(served_of(ebjr.JointConfig.read(folder / "joint.toml")))) as client:
        found = client.post("/v2/models/joint/infer", json={"inputs": [tensor]})
        assert found.status_code == 200, found.text
        outputs = {each["name"]: each for each in found.json()["outputs"]}
        assert (outputs["prediction"]["datatype"], outputs["prediction"]["shape"]) == (
            "BOOL",
            [5, 4],
        )
        assert outputs["prediction"]["data"] == expected.prediction.ravel().tolist()
        one = {"inputs": [{**tensor, "shape": [1, 8], "data": data[0].tolist()}]}
        both = client.post("/v1/both", json=one)
        assert both.status_code == 200, both.text
        assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.zeros(600, int), "a row of 0 and 1 for each of the 600 inputs"),
        (np.full((600, 4), 3), "targets must be 0 or 1 per label, but one is 3"),
        (np.zeros((600, 3), int), "must have 4 columns"),
    ],
)
def test_targets_that_are_no_sets_of_labels_are_refused(folder, run, targets, message):
    np.savez(folder / "data.npz", inputs=np.load(folder / "data.npz")["inputs"], targets=targets)
    code, _, err = run(*RECORD)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (folder / "o.npz").exists()
