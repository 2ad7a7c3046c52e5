"""Entries: what a joint.toml rests on is every file of its models, wherever it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import write_linear

import ebjr
from ebjr import ModelError, Outcomes, PromiseWarning
from ebjr.backends.entry import ModelEntry, RemoteEntry, files_of, parse_link
from ebjr.joint_file import JointConfig

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

CHANGED = r"student\.onnx, with its weights in student\.data, has changed since the threshold was"


def write_apart(path: Path, weight: np.ndarray) -> Path:
    """A linear model with its weights in a file beside the graph."""
    whole = onnx.load(write_linear(path, weight))
    kept = {"save_as_external_data": True, "size_threshold": 0, "location": f"{path.stem}.data"}
    onnx.save(whole, path, **kept)
    return path


def shuffle_weights(path: Path) -> None:
    """Other weights of the same size, under the same name."""
    weights = np.fromfile(path, np.float32)
    np.roll(weights, 1).tofile(path)


@pytest.fixture
def certified(run, tmp_path):
    """A folder with outcomes and a certified joint.toml, whose student keeps weights apart."""
    write_apart(tmp_path / "student.onnx", 9 * np.eye(3) + 1)
    write_linear(tmp_path / "teacher.onnx", 20 * np.eye(3))
    inputs = np.random.default_rng(0).random((600, 3, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", inputs=inputs, targets=inputs.mean((2, 3)).argmax(1))
    for words in (
        "record --student student.onnx --teacher teacher.onnx --data data.npz -o outcomes.npz",
        "calibrate outcomes.npz --tolerance 0.1 --delta 0.1 -o joint.toml",
    ):
        code, _, error = run(*words.split())
        assert code == 0, error
    return tmp_path


def test_the_hash_is_of_the_graph_and_of_the_weights_beside_it(certified):
    assert [file.name for file in files_of("student.onnx")] == ["student.onnx", "student.data"]
    entry = ModelEntry.of_file("student.onnx")
    assert JointConfig.read("joint.toml").student.sha256 == entry.sha256
    assert Outcomes.load("outcomes.npz").models["student"]["sha256"] == entry.sha256
    shuffle_weights(certified / "student.data")
    with pytest.raises(ModelError, match=f"{CHANGED} calibrated .*; record and calibrate again"):
        entry.check()


@pytest.mark.parametrize(
    "words",
    [
        "predict joint.toml --data data.npz -o answers.jsonl",
        "export joint.toml -o joint.onnx",
        "serve joint.toml --port 0",
    ],
)
def test_no_command_runs_on_changed_weights(certified, run, words):
    shuffle_weights(certified / "student.data")
    before = sorted(certified.iterdir())
    code, _, error = run(*words.split())
    assert code == 2
    assert "student.data, has changed since the threshold was calibrated" in error
    assert sorted(certified.iterdir()) == before


def test_evaluate_takes_back_the_promise_of_changed_weights(certified, run):
    words = ("evaluate", "outcomes.npz", "--joint", "joint.toml", "--json")
    code, printed, error = run(*words)
    assert code == 0
    assert "WARNING" not in error
    assert "certified" in json.loads(printed)["chosen_on"]
    shuffle_weights(certified / "student.data")
    code, printed, error = run(*words)
    assert code == 0
    assert "student.data, has changed since the threshold was calibrated" in error
    assert "certified" not in json.loads(printed)["chosen_on"]
    (certified / "student.onnx").unlink()  # outcomes are evaluated without the models, too
    assert "certified" in json.loads(run(*words)[1])["chosen_on"]


def test_a_study_in_python_warns_as_the_command_does(certified):
    shuffle_weights(certified / "student.data")
    config = JointConfig.read("joint.toml")
    with pytest.warns(PromiseWarning, match=CHANGED):
        study = config.study(Outcomes.load("outcomes.npz"))
    assert study.point.certified is None


def test_a_hash_of_the_graph_alone_says_to_record_again(certified):
    """What a joint.toml said before the weights beside a graph counted."""
    entry = ModelEntry.of_file("student.onnx")
    old = ModelEntry(entry.path, ModelEntry.of_file("teacher.onnx").sha256)
    with pytest.raises(ModelError, match=f"{CHANGED}.*record and calibrate again"):
        old.load()


def test_missing_weights_are_one_sentence_before_anything_is_recorded(certified, run):
    (certified / "student.data").unlink()
    pair = ("--student", "student.onnx", "--teacher", "teacher.onnx")
    for words in (
        ("record", *pair, "--data", "data.npz", "-o", "again.npz"),
        ("predict", "joint.toml", "--data", "data.npz", "-o", "answers.jsonl"),
    ):
        code, _, error = run(*words)
        assert code == 2
        assert (
            "needs the weights in student.data, which is not a file in its folder: put it there"
            in error
        )


def test_calibrate_takes_a_file_that_was_moved_and_no_other(certified, run):
    (certified / "moved").mkdir()
    for name in ("student.onnx", "student.data"):
        shutil.copy(name, f"moved/{name}")
    words = ("calibrate", "outcomes.npz", "--tolerance", 0.1, "-o", "moved.toml", "--student")
    assert run(*words, "moved/student.onnx")[0] == 0
    assert JointConfig.read("moved.toml").student.path.endswith("moved/student.onnx")
    shuffle_weights(certified / "moved/student.data")
    code, _, error = run(*words, "moved/student.onnx")
    assert code == 2
    assert "is not the student whose answers are in outcomes.npz (sha256" in error


def test_an_exported_file_knows_its_weights(run, tmp_path):
    weights = np.random.default_rng(0).normal(size=(2, 3, 120))
    paths = [write_linear(tmp_path / f"{k}.onnx", weight) for k, weight in enumerate(weights)]
    JointConfig(*map(ModelEntry.of_file, paths), score="margin", threshold=0.3).save("joint.toml")
    code, _, error = run("export", "joint.toml", "-o", "joint.onnx", "--external-data")
    assert code == 0, error
    ebjr.load_joint("joint.onnx")
    shuffle_weights(tmp_path / "joint.onnx.data")
    with pytest.raises(
        ModelError, match=r"joint\.onnx\.data has changed since .* was exported; export"
    ):
        ebjr.load_joint("joint.onnx")


def test_a_pickle_in_use_is_still_refused_to_whom_does_not_trust_it(tmp_path):
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    rows = np.random.default_rng(0).normal(size=(30, 4))
    joblib.dump(linear.LogisticRegression().fit(rows, np.arange(30) % 3), tmp_path / "s.joblib")
    entry = ModelEntry.of_file(tmp_path / "s.joblib")
    in_use = entry.load(trust=True)
    with pytest.raises(ModelError, match="trust"):
        entry.load()
    assert entry.load(trust=True) is in_use


def test_certificates_of_a_far_teacher_are_files_beside_joint_toml(tmp_path):
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    about = {"name": "far", "versions": [], "platform": "", "inputs": [tensor], "outputs": [tensor]}
    files = {"ca_file": "pki/ca.pem", "client_cert": "device.crt", "client_key": "../device.key"}
    table = {"url": "https://far/v2/models/far", "metadata": about, **files}
    entry = RemoteEntry.from_table(table, tmp_path, "teacher")
    assert entry.options["ca_file"] == str(tmp_path / "pki/ca.pem")
    found = {key: entry.as_table(tmp_path)[key] for key in files}
    assert found == files
    options, _ = parse_link("ca_file=pki/ca.pem,retries=1")
    assert options == {"ca_file": "pki/ca.pem"}
