"""Models of Python: named by an import path, or saved as an estimator, through every command."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from starlette.testclient import TestClient
from test_cli import refused
from tiny import write_images

import ebjr
from ebjr import JointConfig, ModelError, Outcomes, Router
from ebjr.backends.entry import ModelEntry, entry_of
from ebjr.backends.weights import weights_of
from ebjr.data.preprocess import Preprocess
from ebjr.serving.app import build_app
from ebjr.serving.served import Served, served_of

skops = pytest.importorskip("skops.io", reason="skops is not installed")

FUNCTIONS = """
import numpy as np

open("ran", "a").close()
TABLE = np.load("table.npy")


def student(batch):
    return 3 * np.tanh(batch @ TABLE) + np.sin(40 * batch[:, :3])


def teacher(batch):
    return 9 * (batch @ TABLE)


def unseen(batch):
    return batch[:, :3] + 1.0


def broken(batch):
    return batch[["no"]]
"""
NETS = """
from pathlib import Path

import torch

WEIGHT = torch.from_numpy(__import__("numpy").load(Path(__file__).parents[1] / "table.npy")).float()


class Student(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        with torch.no_grad():
            self.weight.copy_(2 * WEIGHT.T + 0.3)
            self.bias.zero_()


class Drawn(torch.nn.Linear):
    def __init__(self):
        super().__init__(4, 3)


class Wide(torch.nn.Linear):
    pass


def teacher():
    net = Student()
    with torch.no_grad():
        net.weight.copy_(9 * WEIGHT.T)
    return net


instance = teacher()
"""
PAIRS = {
    "functions": ("mine_models.py:student", "mine_models.py:teacher"),
    "modules": ("own_package.nets:Student", "own_package.nets:teacher"),
    "instances": ("own_package/nets.py:Student", "own_package/nets.py:instance"),
}


@pytest.fixture
def folder(run, tmp_path):
    """A folder with models of Python and data; what was imported is forgotten at the end."""
    before, paths = set(sys.modules), list(sys.path)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 3))
    np.save("table.npy", table)
    inputs = rng.normal(size=(240, 4)).astype(np.float32)
    np.savez("data.npz", inputs=inputs, targets=(inputs @ table).argmax(1))
    Path("mine_models.py").write_text(FUNCTIONS)
    Path("own_package").mkdir()
    Path("own_package/__init__.py").touch()
    Path("own_package/nets.py").write_text(NETS)
    yield tmp_path
    forget(before)
    sys.path[:] = paths


def forget(before=frozenset()):
    """As in a new process."""
    for name in set(sys.modules) - set(before):
        if name.startswith(("ebjr_import_", "mine", "own_package")):
            del sys.modules[name]


def recorded(run, student, teacher, *more, data="data.npz"):
    """Record and calibrate a pair: joint.toml."""
    words = ("--student", student, "--teacher", teacher, "--data", data, "-o", "outcomes.npz")
    code, _, error = run("record", *words, *more)
    assert code == 0, error
    code, _, said = run("calibrate", "outcomes.npz", "--tolerance", 0.05, "-o", "joint.toml")
    assert code == 0, said
    forget()
    return error


def predicted(run, *more, data="data.npz"):
    """The answers of joint.toml."""
    words = ("predict", "joint.toml", "--data", data, "-o", "answers.jsonl", "--restart")
    code, _, error = run(*words, *more)
    assert code == 0, error
    return [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("pair", PAIRS)
def test_two_by_import_path_go_through_every_command(run, folder, pair):
    recorded(run, *PAIRS[pair])
    rows = predicted(run, "--trust")
    outcomes, config = Outcomes.load("outcomes.npz"), JointConfig.read("joint.toml")
    for row, name in enumerate(("student", "teacher")):
        assert getattr(config, name).path.endswith(PAIRS[pair][row])
        assert len(getattr(config, name).weights_sha256) == 64
    own = {False: outcomes.student, True: outcomes.teacher}
    best = [own[row["deferred"]][number].argmax() for number, row in enumerate(rows)]
    assert 0 < sum(row["deferred"] for row in rows) < len(rows)
    if config.blend == 0.0:
        assert [row["prediction"] for row in rows] == best
    code, _, error = run("evaluate", "outcomes.npz", "--joint", "joint.toml")
    assert code == 0
    assert "are checked only when it is loaded" in error
    assert "is not an ONNX graph" in refused(run("export", "joint.toml", "-o", "joint.onnx"))
    served = served_of(config, trust=True)
    with TestClient(build_app(served)) as client:
        body = {"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [0.1, 0.2, 0.3, 0.4]}
        found = client.post("/v2/models/joint/infer", json={"inputs": [body]})
    assert found.status_code == 200, found.text


def test_a_file_runs_no_code_that_nobody_trusts(run, folder):
    recorded(run, *PAIRS["functions"])
    Path("ran").unlink()
    said = "joint.toml names Python code, .*student: if you trust it"
    with pytest.raises(ModelError, match=said):
        ebjr.load_joint("joint.toml")
    for words in (
        ("predict", "joint.toml", "--data", "data.npz", "-o", "answers.jsonl"),
        ("serve", "joint.toml", "--port", 0),
    ):
        assert "give --trust (trust=True)" in refused(run(*words))
    assert run("evaluate", "outcomes.npz", "--joint", "joint.toml")[0] == 0
    assert not Path("ran").exists()
    ebjr.load_joint("joint.toml", trust=True)
    assert Path("ran").exists()


def test_the_module_of_a_package_is_found_without_running_it(run, folder):
    Path("own_package/__init__.py").write_text("open('ran', 'w').close()")
    recorded(run, *PAIRS["modules"])
    Path("ran").unlink()
    JointConfig.read("joint.toml").student.check()
    assert not Path("ran").exists()
    Path("own_package/nets.py").write_text(f"{NETS}\n")
    with pytest.raises(ModelError, match="has changed since the threshold was calibrated"):
        JointConfig.read("joint.toml").student.check()


@pytest.mark.parametrize("pair", PAIRS)
def test_other_weights_in_the_same_source_are_refused(run, folder, pair):
    recorded(run, *PAIRS[pair])
    np.save("table.npy", 2 * np.load("table.npy"))
    words = ("predict", "joint.toml", "--data", "data.npz", "-o", "answers.jsonl", "--trust")
    assert "have changed since the threshold was calibrated" in refused(run(*words))
    assert not Path("answers.jsonl").exists()


def test_two_names_of_one_file_are_not_the_same_model(run, folder):
    recorded(run, *PAIRS["functions"])
    words = ("calibrate", "outcomes.npz", "-o", "again.toml", "--student")
    assert run(*words, "mine_models.py:student")[0] == 0
    assert "is not the student whose answers" in refused(run(*words, "mine_models.py:teacher"))
    text = Path("joint.toml").read_text()
    Path("joint.toml").write_text(text.replace("models.py:student", "models.py:teacher"))
    with pytest.raises(ModelError, match="has changed since"):
        ebjr.load_joint("joint.toml", trust=True)


def test_weights_that_are_drawn_anew_are_refused_before_the_work(run, folder):
    words = ("--student", "own_package.nets:Drawn", "--teacher", "mine_models.py:teacher")
    said = refused(run("record", *words, "--data", "data.npz", "-o", "outcomes.npz"))
    assert "makes other weights at each call" in said


def test_a_model_that_was_given_other_weights_is_not_written(folder):
    student = ebjr.load_model("own_package.nets:Student")
    joint = ebjr.JointClassifier(student, student, Router("margin", 0.5))
    ebjr.save_joint("joint.toml", joint)
    with torch.no_grad():
        student.module.weight.zero_()
    with pytest.raises(ModelError, match="they changed after it was loaded"):
        ebjr.save_joint("joint.toml", joint)


def test_what_cannot_be_known_is_said(run, folder):
    said = recorded(run, "mine_models.py:unseen", "mine_models.py:teacher")
    assert "no weights were found in" in said
    assert said.count("no weights were found") == 1


def test_options_and_preprocessing_go_with_an_import_path(run, folder):
    student = ebjr.load_model("own_package.nets:Student", dtype="float64", batch_size=7)
    joint = ebjr.JointClassifier(student, student, Router("margin", 0.5))
    ebjr.save_joint("joint.toml", joint)
    entry = JointConfig.read("joint.toml").student
    assert entry.options == {"dtype": "float64", "batch_size": 7}
    assert entry.load(trust=True)(np.eye(4)).dtype == np.float64
    of_images = ebjr.Preprocessed(ebjr.load_model("mine_models.py:unseen"), Preprocess(size=8))
    with pytest.warns(ebjr.RecordingNote, match="no weights were found"):
        assert entry_of(of_images).path.endswith("mine_models.py:unseen")


def test_a_model_that_python_only_loads_keeps_its_own_file(folder):
    torch.export.save(
        torch.export.export(torch.nn.Linear(4, 3), (torch.zeros(2, 4),)), "linear.pt2"
    )
    Path("mine_loads.py").write_text("import ebjr\nnet = ebjr.load_model('linear.pt2')")
    assert ebjr.model.facts(ebjr.load_model("mine_loads.py:net")).path == Path("linear.pt2")


def test_a_function_of_decoded_images_gets_them_as_they_are(run, folder):
    write_images(folder / "images", n=60)
    Path("mine_images.py").write_text(
        "import numpy as np\n\nFACTOR = np.array([3.0])\n\n\n"
        "def student(images):\n"
        "    return FACTOR * np.stack([each.mean((0, 1))[::-1] / 50 for each in images])\n"
    )
    pair = ("mine_images.py:student",) * 2
    words = ("--student", pair[0], "--teacher", pair[1], "--data", "images", "-o", "outcomes.npz")
    assert "set its input_dtype = numpy.uint8" in refused(run("record", *words))
    with Path("mine_images.py").open("a") as file:
        file.write("\n\nstudent.input_dtype = np.uint8\n")
    forget()
    recorded(run, *pair, data="images")
    assert len(predicted(run, "--trust", data="images")) == 60


MISTAKES = {
    "mine_models.py:absent": "has no attribute 'absent'; name a model, or a class or function",
    "mine_models.py": "name the model in it: mine_models.py:NAME",
    "mine_models.py:TABLE": "not a ndarray",
    "mine_models.py:broken": "mine_models.py, line 21: IndexError",
    "absent.py:name": "the file does not exist",
    "own_nothing.at_all:name": "run in the folder that holds it, or install it",
    "own_package.nets:Wide": "missing 2 required positional arguments",
    "mine_failing.py:name": "mine_failing.py, line 2: KeyError: 'gone'",
}


@pytest.mark.parametrize("path", MISTAKES)
def test_an_import_path_that_fails_is_one_sentence(run, folder, path):
    Path("mine_failing.py").write_text("\nraise KeyError('gone')")
    words = ("--student", path, "--teacher", "mine_models.py:teacher", "--data", "data.npz")
    assert MISTAKES[path] in refused(run("record", *words, "-o", "outcomes.npz"))


def test_a_module_is_not_written_over(run, folder):
    pair = ("--student", "mine_models.py:student", "--teacher", "mine_models.py:teacher")
    said = refused(run("record", *pair, "--data", "data.npz", "-o", "mine_models.py"))
    assert "would overwrite" in said


# Saved estimators


@pytest.fixture
def texts(folder):
    """Two pipelines of texts, saved in each form, and what they are asked."""
    rng = np.random.default_rng(0)
    words = np.array(
        ["ball", "goal", "team", "bread", "soup", "pan", "court", "judge", "claim"]
    ).reshape(3, 3)
    labels = np.arange(300) % 3
    rows = [" ".join(rng.choice(np.r_[words[k], words.ravel()], 4)) for k in labels]
    names = np.array(["sport", "food", "law"])[labels]
    for name, strength in (("student", 0.01), ("teacher", 10.0)):
        fitted = make_pipeline(TfidfVectorizer(), LogisticRegression(C=strength))
        fitted.fit(rows[:100], names[:100])
        joblib.dump(fitted, f"{name}.joblib")
        skops.dump(fitted, f"{name}.skops")
        Path(f"{name}.pkl").write_bytes(pickle.dumps(fitted))
    np.savez("texts.npz", inputs=np.array(rows[100:]), targets=names[100:])
    return folder


@pytest.mark.parametrize("suffix", ["joblib", "pkl", "skops"])
def test_saved_pipelines_of_texts_go_through_every_command(run, texts, suffix):
    trust = () if suffix == "skops" else ("--trust",)
    recorded(run, f"student.{suffix}", f"teacher.{suffix}", *trust, data="texts.npz")
    rows = predicted(run, *trust, data="texts.npz")
    assert {row["label"] for row in rows} == {"sport", "food", "law"}
    served = served_of(JointConfig.read("joint.toml"), trust=bool(trust))
    with TestClient(build_app(served)) as client:
        [known] = client.get("/v2/models/joint").json()["inputs"]
        assert known["datatype"] == "BYTES"
        body = {**known, "shape": [2], "data": ["ball goal team", "court judge"]}
        found = client.post("/v2/models/joint/infer", json={"inputs": [body]}).json()
        answers = {each["name"]: each["data"] for each in found["outputs"]}
        assert answers["prediction"] == [2, 1]
    Path(f"student.{suffix}").write_bytes(Path(f"teacher.{suffix}").read_bytes())
    with pytest.raises(ModelError, match="has changed since"):
        ebjr.load_joint("joint.toml", trust=True)


class Trap:
    """What a pickle can do."""

    def __reduce__(self):
        return eval, ("open('ran', 'w').close()",)


@pytest.mark.parametrize("suffix", ["joblib", "pkl", "pickle"])
def test_nothing_is_unpickled_that_nobody_trusts(run, folder, suffix):
    path = Path(f"trap.{suffix}")
    path.write_bytes(pickle.dumps(Trap()))
    words = ("--student", path, "--teacher", "mine_models.py:teacher", "--data", "data.npz")
    said = refused(run("record", *words, "-o", "outcomes.npz"))
    assert "is a pickle, which can run any code when it is read: give --trust" in said
    assert not Path("ran").exists()
    assert "give --trust" in refused(run("profile", path))
    assert "give --trust" in refused(run("serve", path))
    entry = ModelEntry.of_file(path)
    with pytest.raises(ModelError, match="is a pickle"):
        entry.load()
    assert not Path("ran").exists()


def test_skops_names_the_types_that_it_does_not_know(folder):
    steps = (FunctionTransformer(refused), LogisticRegression())
    fitted = make_pipeline(FunctionTransformer(), steps[1]).fit(np.eye(4), [0, 1, 0, 1])
    fitted.steps[0][1].func = refused
    skops.dump(fitted, "own.skops")
    with pytest.raises(ModelError, match=r"does not know to be safe, .*refused: give --trust"):
        ebjr.load_model("own.skops")


@pytest.mark.parametrize("name", ["bad.pkl", "bad.skops"])
def test_a_damaged_file_is_one_sentence(run, folder, name):
    Path(name).write_text("garbage")
    words = ("--student", name, "--teacher", "mine_models.py:teacher", "--data", "data.npz")
    assert "cannot be read" in refused(run("record", *words, "-o", "outcomes.npz", "--trust"))


def test_numbers_are_no_texts_at_the_server(texts):
    model = ebjr.load_model("teacher.skops")
    joint = ebjr.JointClassifier(model, model, Router("margin", 0.1))
    with TestClient(build_app(Served(joint))) as client:
        body = {"name": "input", "datatype": "FP32", "shape": [1], "data": [1.0]}
        found = client.post("/v2/models/joint/infer", json={"inputs": [body]})
    assert found.status_code == 400
    assert found.json() == {"error": "the input 'input' must be BYTES, not float32"}


# What was learned


def test_weights_are_the_same_in_another_copy_and_differ_with_any_number():
    fitted = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["a b", "b cc"], [0, 1])
    copy = pickle.loads(pickle.dumps(fitted))
    first = weights_of(fitted)
    copy.predict(["a cc"])  # which leaves a number of this process in the vectorizer
    assert weights_of(copy) == first
    copy[-1].coef_[0, 0] += 1e-9
    assert weights_of(copy) != first


def test_weights_of_a_module_are_those_of_its_program_and_mode():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    first = weights_of(net)
    assert weights_of(net.eval()) == first
    net[1].running_mean += 1
    assert weights_of(net) != first
    program = torch.export.export(net, (torch.zeros(2, 2),)).module()
    assert weights_of(program) is not None


def test_weights_are_followed_into_closures_methods_and_decorators():
    from functools import cache, partial

    table = np.arange(4.0)

    @cache
    def inner(batch):
        return batch @ table

    class Holder:
        weight = 0

        def __call__(self, batch):
            return batch @ self.mine

    holder = Holder()
    holder.mine = table
    found = [weights_of(each) for each in (inner, holder, holder.__call__, partial(max, table))]
    assert None not in found
    table += 1
    again = [weights_of(each) for each in (inner, holder, holder.__call__, partial(max, table))]
    assert not set(found) & set(again)


def test_what_cannot_be_pickled_is_passed_over():
    import threading

    lock, table = threading.Lock(), np.eye(2)
    assert weights_of(lambda batch: (lock, batch @ table)) is not None
