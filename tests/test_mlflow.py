"""A joint model in MLflow answers as it does here, with a signature, and without a pickle."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import write_coco, write_detectors, write_joint

import ebjr

for name in ("onnxruntime", "pandas", "mlflow"):
    pytest.importorskip(name, reason=f"{name} is not installed")

COLORS = np.random.default_rng(0).integers(0, 200, (40, 1, 1, 3))
IMAGES = np.broadcast_to(COLORS, (40, 8, 8, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_joint(tmp_path_factory.mktemp("made"))


@pytest.fixture
def flavor(tmp_path, monkeypatch):
    """`ebjr.mlflow` with a local store of MLflow's own."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)
    import mlflow

    import ebjr.mlflow

    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield ebjr.mlflow
    while mlflow.active_run():
        mlflow.end_run()


def test_a_logged_model_answers_as_the_joint_model_does(made, flavor):
    import mlflow

    with mlflow.start_run() as run:
        logged = flavor.log_model(made)
    model = mlflow.pyfunc.load_model(logged.model_uri)
    told = model.predict(IMAGES)
    expected = ebjr.load_joint(made)(IMAGES)
    assert told.columns.tolist() == ["prediction", "label", "score", "deferred", "degraded"]
    assert np.array_equal(told["prediction"], expected.prediction)
    assert np.array_equal(told["score"], expected.score)
    assert np.array_equal(told["deferred"], expected.deferred)
    assert 0 < told["deferred"].sum() < 40
    names = ("blue", "green", "red")
    assert told["label"].tolist() == [names[label] for label in told["prediction"]]
    kept = mlflow.get_run(run.info.run_id).data.metrics
    held_out = ebjr.JointConfig.read(made).calibration["held_out"]
    assert {name: held_out[name] for name in kept} == kept
    assert "deferral_rate" in kept


def test_the_signature_says_what_goes_in_and_what_comes_out(made, flavor):
    flavor.save_model(made, "saved")
    from mlflow.models import Model

    found = Model.load("saved")
    assert [each.type.name for each in found.signature.outputs][:1] == ["long"]
    assert found.signature.inputs.to_dict()[0]["tensor-spec"] == {
        "dtype": "uint8",
        "shape": (-1, -1, -1, 3),
    }
    params = [param.name for param in found.signature.params]
    assert params == ["threshold", "deferral_rate", "operating_point"]
    assert found.flavors["ebjr"]["joint"] == "data/joint/joint.toml"
    assert not [each for each in Path("saved").rglob("*") if each.suffix in (".pkl", ".pickle")]
    wanted = Path("saved/requirements.txt").read_text().split()
    assert wanted[1:] == [f"ebjr[onnx]=={ebjr.__version__}"]
    assert wanted[0].startswith("mlflow==")


def test_params_move_the_knob_for_one_call(made, flavor):
    import mlflow
    from mlflow.exceptions import MlflowException

    flavor.save_model(made, "saved")
    model = mlflow.pyfunc.load_model("saved")
    before = model.predict(IMAGES)
    assert model.predict(IMAGES, params={"threshold": 2.0})["deferred"].all()
    assert not model.predict(IMAGES, params={"threshold": 0.0})["deferred"].any()
    assert model.predict(IMAGES, params={"deferral_rate": 1.0})["deferred"].all()
    point = ebjr.JointConfig.read(made).operating_points["best-accuracy"]
    named = model.predict(IMAGES, params={"operating_point": "best-accuracy"})
    assert np.array_equal(named["deferred"], named["score"] < point["threshold"])
    assert model.predict(IMAGES).equals(before)
    for params, words in (
        ({"operating_point": "nightly"}, "there is no operating point 'nightly'"),
        ({"threshold": 0.5, "deferral_rate": 0.5}, "give one of threshold and deferral_rate"),
        ({"deferral_rate": 1.5}, "deferral_rate must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            model.predict(IMAGES, params=params)
    with pytest.raises(MlflowException, match="Can not safely convert"):
        model.predict(IMAGES, params={"threshold": "high"})
    with pytest.raises(MlflowException):
        model.predict(np.zeros((2, 3), np.uint8))


def test_it_loads_where_nothing_but_mlflow_and_ebjr_was_imported(made, flavor, tmp_path):
    flavor.save_model(made, "saved")
    np.save("images.npy", IMAGES)
    script = (
        "import sys, numpy as np, mlflow.pyfunc\n"
        "assert 'ebjr' not in sys.modules\n"
        "model = mlflow.pyfunc.load_model('saved')\n"
        "print(int(model.predict(np.load('images.npy'))['deferred'].sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == ebjr.load_joint(made)(IMAGES).deferred.sum()
    assert flavor.load_model("saved")(IMAGES).deferred.sum() == int(done.stdout)


def test_what_was_tampered_with_is_not_loaded(made, flavor):
    import mlflow

    flavor.save_model(made, "saved")
    files = Path("saved/data/joint")
    shutil.copy(files / "teacher/teacher.onnx", files / "student/student.onnx")
    with pytest.raises(ebjr.ModelError, match="has changed since the threshold was calibrated"):
        mlflow.pyfunc.load_model("saved")
    with pytest.raises(ebjr.ModelError, match="has changed since the threshold was calibrated"):
        flavor.save_model(files / "joint.toml", "again")
    assert not Path("again").exists()


@pytest.mark.filterwarnings("ignore:X does not have valid feature names:UserWarning")
def test_columns_of_a_frame_are_read_by_name_and_pickles_only_with_trust(flavor, tmp_path):
    joblib = pytest.importorskip("joblib")
    import mlflow
    import pandas
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    rows = pandas.DataFrame(rng.normal(size=(200, 3)), columns=["age", "income", "height"])
    labels = np.where(rows["age"] + rows["income"] > 0, "yes", "no")
    for role, power in (("student", 0.001), ("teacher", 10.0)):
        joblib.dump(LogisticRegression(C=power).fit(rows, labels), f"{role}.joblib")
    models = [ebjr.load_model(f"{role}.joblib", trust=True) for role in ("student", "teacher")]
    joint = ebjr.JointClassifier(*models, ebjr.Router("margin", 0.02))
    ebjr.save_joint("joint.toml", joint, labels=("no", "yes"))
    with pytest.raises(ebjr.ModelError, match="give --trust"):
        flavor.save_model("joint.toml", "saved")
    flavor.save_model("joint.toml", "saved", trust=True)
    with pytest.raises(ebjr.ModelError, match="give --trust"):
        mlflow.pyfunc.load_model("saved")
    model = mlflow.pyfunc.load_model("saved", model_config={"trust": True})
    told = model.predict(rows[["height", "income", "age"]])
    expected = joint(rows.to_numpy())
    assert np.array_equal(told["prediction"], expected.prediction)
    assert 0 < told["deferred"].sum() == expected.deferred.sum() < 200
    assert set(told["label"]) == {"no", "yes"}
    with pytest.raises(mlflow.exceptions.MlflowException, match="missing inputs"):
        model.predict(rows[["age"]])
    assert Path("saved/requirements.txt").read_text().split()[1].startswith("ebjr[learned]==")


def test_numbers_are_not_rounded_on_their_way(flavor):
    """A model that names no type is asked in double precision, as when it was calibrated."""
    import mlflow

    Path("mine.py").write_text(
        "import numpy as np\n"
        "def student(rows):\n    return np.stack([rows[:, 0] - 16777217, 0 * rows[:, 0]], axis=1)\n"
        "def teacher(rows):\n    return 0 * student(rows) + [0.0, 1.0]\n"
    )
    models = [ebjr.load_model(f"mine.py:{role}") for role in ("student", "teacher")]
    joint = ebjr.JointClassifier(*models, ebjr.Router("margin", 0.3))
    with pytest.warns(ebjr.RecordingNote, match="no weights were found"):
        ebjr.save_joint("joint.toml", joint)
    flavor.save_model("joint.toml", "saved", trust=True)
    model = mlflow.pyfunc.load_model("saved", model_config={"trust": True})
    rows = np.array([[16777217.0], [16777218.0], [16777216.0]])
    told = model.predict(rows)
    assert told["deferred"].tolist() == joint(rows).deferred.tolist() == [True, False, False]


def test_texts_are_a_column_of_strings(flavor):
    joblib = pytest.importorskip("joblib")
    import mlflow
    import pandas
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good day", "bad day", "good night", "bad night", "good", "bad"]
    for role, power in (("student", 0.1), ("teacher", 10.0)):
        fitted = make_pipeline(CountVectorizer(), LogisticRegression(C=power))
        joblib.dump(fitted.fit(texts, [1, 0, 1, 0, 1, 0]), f"{role}.joblib")
    models = [ebjr.load_model(f"{role}.joblib", trust=True) for role in ("student", "teacher")]
    joint = ebjr.JointClassifier(*models, ebjr.Router("margin", 0.1))
    ebjr.save_joint("joint.toml", joint)
    flavor.save_model("joint.toml", "saved", trust=True)
    model = mlflow.pyfunc.load_model("saved", model_config={"trust": True})
    told = model.predict(pandas.DataFrame({"input": texts}))
    assert told["prediction"].tolist() == joint(texts).prediction.tolist() == [1, 0, 1, 0, 1, 0]


def test_boxes_of_detectors_are_lists_in_a_column(flavor, tmp_path):
    import mlflow
    from PIL import Image

    from ebjr.backends.detectors import OnnxDetector

    write_coco(tmp_path, n=6)
    pair = [OnnxDetector(path, layout="detr", classes=3) for path in write_detectors(tmp_path)]
    joint = ebjr.JointDetector(*pair, ebjr.Router("max_confidence", 0.9))
    ebjr.save_joint("joint.toml", joint, labels=("blue", "green", "red"))
    flavor.save_model("joint.toml", "saved")
    images = np.stack([np.asarray(Image.open(f"images/{k:04d}.png")) for k in range(6)])
    told = mlflow.pyfunc.load_model("saved").predict(images)
    expected = joint(images)
    assert [len(boxes) for boxes in told["prediction"]] == [len(e) for e in expected.prediction]
    assert told["prediction"][0][0].keys() == {"box", "class", "label", "score"}


def test_a_model_that_is_none_of_ours_is_refused(flavor):
    import mlflow

    mlflow.pyfunc.save_model("other", loader_module="json", pip_requirements=[])
    with pytest.raises(ValueError, match="other is not a joint model"):
        flavor.load_model("other")
