"""Answers that are not logits yet: probabilities, and one number of a binary decision."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, logit, softmax

from ebjr import (
    JointClassifier,
    Outcomes,
    Router,
    TradeOffCurve,
    calibrate,
    load_joint,
    load_model,
    record,
    run_study,
    save_joint,
)
from ebjr.backends.output_kind import AsLogits
from ebjr.errors import ModelError, OutputWarning, RecordingNote
from ebjr.tasks import as_task

RNG = np.random.default_rng(0)
LOGITS = 4 * RNG.normal(size=(200, 5))
ROWS = np.arange(200)


def probabilities(batch):
    return softmax(LOGITS[np.asarray(batch, int)], axis=1)


def sigmoid(batch):
    return expit(LOGITS[np.asarray(batch, int), :1])


def one_logit(batch):
    return LOGITS[np.asarray(batch, int), 0]


@pytest.mark.parametrize(
    ("kind", "model", "wanted"),
    [
        ("probabilities", probabilities, softmax(LOGITS, axis=1)),
        ("probabilities", sigmoid, np.column_stack([expit(-LOGITS[:, 0]), expit(LOGITS[:, 0])])),
        ("logits", one_logit, np.column_stack([expit(-LOGITS[:, 0]), expit(LOGITS[:, 0])])),
        ("logits", lambda batch: LOGITS[batch], softmax(LOGITS, axis=1)),
    ],
)
def test_the_softmax_is_what_the_model_says(kind, model, wanted):
    made = load_model(model, output_kind=kind)
    np.testing.assert_allclose(softmax(made(ROWS), axis=1), wanted, rtol=1e-6)
    tensors = AsLogits(lambda batch: torch.as_tensor(model(batch)), kind)(ROWS)
    np.testing.assert_allclose(tensors.numpy(), made(ROWS), rtol=1e-6)


def test_probabilities_of_labels_become_their_log_odds():
    made = load_model(lambda batch: expit(LOGITS[batch]), output_kind="label_probabilities")
    np.testing.assert_allclose(made(ROWS), LOGITS, rtol=1e-6)


def test_a_probability_of_0_has_a_logarithm():
    said = load_model(lambda batch: np.eye(3)[batch], output_kind="probabilities")(np.arange(3))
    assert np.isfinite(said).all()
    assert said.argmax(axis=1).tolist() == [0, 1, 2]


def test_what_is_no_probability_is_refused_at_every_batch():
    made = load_model(lambda batch: LOGITS[batch], output_kind="probabilities")
    with pytest.raises(ModelError, match=r"must return probabilities, from 0 to 1.*but returned"):
        made(ROWS)
    with pytest.raises(ValueError, match="output_kind must be one of logits, probabilities, "):
        load_model(probabilities, output_kind="odds")


def test_what_else_is_asked_is_asked_of_the_model_inside():
    class Far:
        name, url = "far", "http://teacher"

        def __call__(self, batch):
            return probabilities(batch)

        def check(self):
            return "there"

    made = load_model(Far(), output_kind="probabilities")
    assert (made.name, made.check()) == ("far", "there")
    assert made.facts.options == {"output_kind": "probabilities"}
    with pytest.raises(AttributeError):
        made.nothing  # noqa: B018
    assert pickle.loads(pickle.dumps(AsLogits(np.asarray, "logits")))([1.0]).shape == (1, 2)


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        (softmax(LOGITS, axis=1), "probabilities"),
        (softmax(LOGITS, axis=1).astype(np.float16), "probabilities"),
        (LOGITS, None),
        (np.abs(LOGITS), None),
        (log_softmax(LOGITS, axis=1), None),
        (expit(LOGITS), None),
        (np.eye(5), "probabilities"),
        (expit(LOGITS[:, :1]), "probabilities"),
        (LOGITS[:, 0], "logits"),
        (np.zeros((0, 5)), None),
    ],
)
def test_what_raw_output_looks_like(rows, seen):
    assert as_task("classification").output_kind_of(rows) == seen


def test_labels_look_like_probabilities_where_all_lie_in_0_to_1():
    seen = as_task("multilabel").output_kind_of
    assert seen(expit(LOGITS)) == "label_probabilities"
    assert seen(LOGITS) is None
    assert seen(logit(expit(LOGITS))) is None


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (probabilities, "probabilities, which are not negative and sum to 1.*energy is 0"),
        (sigmoid, "output_kind='probabilities'"),
        (one_logit, "one column, the logit of a sigmoid"),
    ],
)
def test_in_python_what_is_no_logits_is_refused_before_the_work(model, words):
    asked = []

    def counting(batch):
        asked.append(len(batch))
        return model(batch)

    targets = LOGITS.argmax(axis=1) if model is probabilities else LOGITS[:, 0] > 0
    with pytest.raises(ValueError, match=words):
        record(counting, counting, ROWS, targets.astype(int), batch_size=20)
    assert sum(asked) == 20  # the student's answers to the first batch
    with pytest.warns(RecordingNote, match="--output-kind logits"):
        found = record(model, model, ROWS, targets.astype(int), output_kind="auto")
    assert found.student_quality.mean() == 1.0


def test_told_to_take_probabilities_as_logits_nothing_is_said():
    model = load_model(probabilities, output_kind="logits")
    found = record(model, model, ROWS, LOGITS.argmax(axis=1))
    np.testing.assert_array_equal(found.student, probabilities(ROWS))


def test_where_no_recording_has_looked_the_joint_model_and_calibrate_warn():
    joint = JointClassifier(probabilities, probabilities, Router("softmax", 0.3))
    with pytest.warns(OutputWarning, match="load it with output_kind='probabilities'"):
        joint(ROWS)
    joint(ROWS)  # once is enough
    said = probabilities(ROWS)
    outcomes = Outcomes(said, said, LOGITS.argmax(axis=1))
    with pytest.warns(OutputWarning, match=r"the (student|teacher)'s raw output is probabilities"):
        calibrate(outcomes, score="softmax", blend=0.0)


def test_a_multilabel_model_that_ends_in_sigmoids_is_seen():
    sets = (LOGITS > 0).astype(int)

    def answers(batch):
        return expit(LOGITS[np.asarray(batch, int)])

    with pytest.raises(ValueError, match="output_kind='label_probabilities'"):
        record(answers, answers, ROWS, sets, task="multilabel")
    found = record(answers, answers, ROWS, sets, task="multilabel", output_kind="probabilities")
    np.testing.assert_allclose(found.student, LOGITS, rtol=1e-6)
    assert found.student_quality.mean() == 1.0


WEIGHTS = RNG.normal(size=(4, 3)).astype(np.float32)


def write(path, end, columns=3):
    """A linear classifier whose graph ends in an activation."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["z"]), helper.make_node(end, ["z"], ["y"])],
        path.stem,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
        [numpy_helper.from_array(WEIGHTS[:, :columns].copy(), "W")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("end", "columns", "kind"),
    [("Softmax", 3, "probabilities"), ("Sigmoid", 1, "probabilities"), ("Identity", 1, "logits")],
)
def test_joint_toml_and_the_exported_file_answer_as_the_models_did(tmp_path, end, columns, kind):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from ebjr.export import export_joint

    path = write(tmp_path / "m.onnx", end, columns)
    rows = RNG.normal(size=(64, 4)).astype(np.float32)
    model = load_model(path, output_kind=kind)
    joint = JointClassifier(model, model, Router("softmax", 0.8), blend=0.5)
    save_joint(tmp_path / "joint.toml", joint)
    export_joint(tmp_path / "joint.toml", tmp_path / "joint.onnx")
    wanted = joint(rows)
    assert 0 < wanted.deferred.sum() < 64
    z = rows @ WEIGHTS[:, :columns]
    right = z.argmax(axis=1) if columns > 1 else (z[:, 0] > 0).astype(int)
    assert (wanted.prediction == right).all()
    for name in ("joint.toml", "joint.onnx"):
        found = load_joint(tmp_path / name)(rows)
        assert (found.deferred == wanted.deferred).all()
        np.testing.assert_allclose(found.output, wanted.output, atol=1e-5)


def test_the_command_line_sees_it_says_it_and_keeps_it(tmp_path, run):
    path = write(tmp_path / "m.onnx", "Softmax")
    rows = RNG.normal(size=(64, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", inputs=rows, targets=(rows @ WEIGHTS).argmax(axis=1))
    pair = ["--student", path, "--teacher", path, "--data", tmp_path / "data.npz"]
    code, _, said = run("record", *pair, "-o", tmp_path / "o.npz")
    assert code == 0
    assert said.count("raw output is probabilities") == 2
    goal = ["--goal", "budget", "--deferral-rate", "0.3", "--score", "softmax"]
    code, _, said = run("calibrate", tmp_path / "o.npz", *goal, "-o", tmp_path / "joint.toml")
    assert code == 0, said
    joint = load_joint(tmp_path / "joint.toml")
    assert joint.student.kind == "probabilities"
    assert np.exp(joint.student(rows)).sum(axis=1) == pytest.approx(1)
    code, _, said = run("record", *pair, "-o", tmp_path / "o.npz", "--output-kind", "logits")
    assert code == 0
    assert "probabilities" not in said


CERTAIN = np.r_[[0.0, 1.0] * 32, np.tile([0.1, 0.2, 0.3, 0.9], 100)]


@pytest.mark.parametrize("columns", [1, 2])
def test_answers_that_begin_with_0_and_1_are_probabilities_all_the_same(columns):
    def answers(batch):
        chance = CERTAIN[np.asarray(batch, int)]
        return chance[:, None] if columns == 1 else np.column_stack([1 - chance, chance])

    rows, targets = np.arange(len(CERTAIN)), (CERTAIN > 0.5).astype(int)
    with pytest.warns(RecordingNote, match="raw output is probabilities"):
        found = record(answers, answers, rows, targets, output_kind="auto")
    assert found.student_quality.mean() == 1.0
    assert np.exp(found.student).sum(axis=1) == pytest.approx(1)
    with pytest.raises(ValueError, match="raw output is probabilities"):
        record(answers, answers, rows, targets)  # as soon as a batch tells


def test_probabilities_of_few_digits_are_seen():
    chance = softmax(RNG.normal(size=(64, 8)), axis=1)
    halves = torch.as_tensor(chance).to(torch.bfloat16).float().numpy()
    for rows in (halves, np.round(chance, 2), np.round(256 * chance) / 256):
        assert as_task("classification").output_kind_of(rows) == "probabilities"


def test_a_score_that_is_rounding_alone_is_one_number():
    said = log_softmax(8 * RNG.normal(size=(500, 6)), axis=1).astype(np.float32)
    targets = said.argmax(axis=1)
    outcomes = Outcomes(said, said, targets)
    goal = {"goal": "budget", "deferral_rate": 0.3, "blend": 0.0}
    with pytest.warns(OutputWarning, match="score energy is the same for all examples"):
        run_study(outcomes, score="energy", **goal)
    point = calibrate(outcomes, score="energy", **goal)
    assert point.deferral_rate == 0.0
    for batch in (1, 7):
        moved = np.concatenate([point.router(said[k : k + batch])[1] for k in range(0, 500, batch)])
        assert not moved.any()
    assert len(TradeOffCurve.of(outcomes, "softmax")) > 400
