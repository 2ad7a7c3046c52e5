from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slices import check_same, joint_of_slices, write_joint

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")

from ebjr import ModelError
from ebjr.arrays import namespace, top_two
from ebjr.backends.exported import ExportedJoint
from ebjr.backends.onnx import open_session
from ebjr.blend import Blend
from ebjr.export import export_joint
from ebjr.export.operators import Operators
from ebjr.export.trace import hostile, run_graph, traced_score
from ebjr.scores import RAW_OUTPUTS, SCORES, as_score, register_score
from ebjr.tasks import load_all

LEARNED = (
    "learned(helps=[-1.0, -0.5, -0.2, 0.3, -0.1, 0.05], hurts=[-3.0, -0.2, -0.1, 0.1, 0.2, 0.1], "
    "classes=[[0.1, 0.0], [-0.2, 0.3], [0.0, 0.1], [0.4, -0.4], [0.0, 0.0]])"
)
CLASSIFIERS = [
    *("energy", "energy(temperature=2.5)", "softmax_energy", "softmax_energy(temperature=0.5)"),
    *("softmax", "softmax(temperature=3.0)", "entropy", "entropy(temperature=2.0)", "margin"),
    *("margin(temperature=0.7)", "max_logit", "normalized_logit", "normalized_logit(p=2.0)"),
    *("normalized_logit(p=1.0)", LEARNED),
]
SPECIALIZED = [
    *("specialized_energy", "specialized_energy(temperature=2.0)", "specialized_softmax"),
    *("specialized_margin", "specialized_entropy(temperature=1.5)", "known_softmax", "energy"),
]
REGRESSORS = [
    *("regression_energy", "regression_energy(widths=0.5)", "regression_energy(grid=(0.0, 9.0))"),
    *(
        "regression_energy(grid=[0.0, 1.0, 2.0, 3.0, 4.0], rule='simpson')",
        "density_entropy(grid=(0.0, 4.0))",
    ),
    *("density_entropy", "density_std(widths=[0.5, 1.0, 2.0, 0.5, 1.0])", "density_std"),
    *("interval_width", "ensemble_spread", "predicted_std", "predicted_std(of='variance')"),
    "predicted_std(of='log_variance')",
]
LABELS = ["smallest_margin", "set_probability", "label_entropy", "label_energy"]
CASES = [
    *(("classification", score, 5, 5, 0.0, {}) for score in CLASSIFIERS),
    ("classification", "softmax", 5, 5, 0.5, {}),
    ("classification", "margin", 5, 5, Blend(0.3, 2.0, 0.5), {}),
    *(
        ("specialized", score, 4, 6, 0.0, {"known_classes": (4, 0, 3), "classes": 6})
        for score in SPECIALIZED
    ),
    ("specialized", "known_softmax", 4, 6, 0.4, {"known_classes": (4, 0, 3), "classes": 6}),
    ("specialized", "energy", 2, 6, Blend(0.4, 2.0), {"known_classes": (5,), "classes": 6}),
    *(("regression", score, 2 if "predicted" in score else 6, 1, 0.0, {}) for score in REGRESSORS),
    ("regression", "ensemble_spread", 6, 1, 0.7, {}),
    *(("multilabel", score, 5, 5, 0.0, {}) for score in LABELS),
    ("multilabel", "label_entropy(temperature=2.0)", 5, 5, Blend(0.5, 2.0), {}),
]
IDS = [f"{task}-{score[:40]}-{blend}" for task, score, _, _, blend, _ in CASES]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Joint models and what was exported of them, made when first asked for."""
    made = {}

    def pair(number, dtype=np.float32):
        if (number, dtype) not in made:
            task, score, student, teacher, blend, more = CASES[number]
            folder = tmp_path_factory.mktemp("pair")
            joint = joint_of_slices(
                folder, score, student, teacher, task=task, blend=blend, dtype=dtype, **more
            )
            export_joint(write_joint(folder, joint), folder / "joint.onnx")
            made[number, dtype] = joint, ExportedJoint(folder / "joint.onnx", threads=1)
        return made[number, dtype]

    return pair


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_the_graph_decides_and_answers_as_the_joint_model(pairs, number):
    (joint, exported), (_, score, student, teacher, *_) = pairs(number), CASES[number]

    @settings(max_examples=12)
    @given(
        rows=st.sampled_from([1, 2, 7, 33]),
        seed=st.integers(0, 2**32 - 1),
        scale=st.sampled_from([0.1, 1.0, 3.0]),
        share=st.sampled_from([None, 0.0, 0.3, 0.8]),
    )
    def alike(rows, seed, scale, share):
        random = np.random.default_rng(seed)
        inputs = random.normal(0, scale, (rows, student + teacher)).astype(np.float32)
        if score == "interval_width":
            inputs[:, 1:6].sort(axis=1)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            values = np.asarray(joint.router.score(inputs[:, :student]), np.float64)
            known = values[np.isfinite(values)]
            if share is None or not len(known):
                joint.router.threshold = np.inf
            else:
                joint.router.threshold = float(np.quantile(known, share))
            check_same(exported, joint, inputs)

    alike()


@pytest.mark.parametrize("number", range(len(CASES)), ids=IDS)
def test_a_row_that_is_no_number_is_deferred_at_any_threshold(pairs, number):
    joint, exported = pairs(number)
    student, width = CASES[number][2], CASES[number][2] + CASES[number][3]
    inputs = np.random.default_rng(0).normal(size=(6, width)).astype(np.float32)
    if CASES[number][1] == "interval_width":
        inputs[:, 1:6].sort(axis=1)
    inputs[0, 1], inputs[1, 1], inputs[2, student - 1] = np.nan, np.inf, np.nan
    if "log_variance" not in CASES[number][1]:  # whose -inf is a deviation of 0
        inputs[3, :student] = -np.inf
    else:
        inputs[3, 1] = np.nan
    session = open_session(exported.path)
    for threshold in (-np.inf, -3e38, 0.0):
        knob = np.array(threshold, np.float32)
        (deferred,) = session.run(["deferred"], {"x": inputs, "threshold": knob})
        assert deferred[:4].all()
    joint.router.threshold = exported.router.threshold = -3e38
    with np.errstate(all="ignore"):
        wanted = joint(inputs)
    np.testing.assert_array_equal(exported(inputs).deferred, wanted.deferred)


@pytest.mark.parametrize("score", ["energy", "softmax", "entropy", "margin", "softmax_energy"])
def test_a_logit_of_minus_infinity_is_an_impossible_class(pairs, score):
    joint, exported = pairs(CLASSIFIERS.index(score))
    inputs = np.random.default_rng(1).normal(size=(8, 10)).astype(np.float32)
    inputs[::2, 3], inputs[1::2, 1:5] = -np.inf, -np.inf
    joint.router.threshold = -100.0
    check_same(exported, joint, inputs)


def test_classes_impossible_for_both_models_stay_so_in_a_blend(pairs):
    joint, exported = pairs(IDS.index("classification-softmax-0.5"))
    inputs = np.random.default_rng(1).normal(size=(8, 10)).astype(np.float32)
    inputs[:, [2, 7]] = -np.inf
    exported.router.threshold = np.inf
    found = exported(inputs).output  # the joint loop takes no such answer of a teacher
    mixed = joint.mix(joint.of_student(joint.student(inputs)), joint.teacher(inputs))
    np.testing.assert_allclose(found, mixed, rtol=1e-5, atol=1e-6)
    assert np.isneginf(found[:, 2]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("number", [0, 4, 8, 15])
def test_half_and_double_precision_are_computed_as_outside(pairs, number, dtype):
    joint, exported = pairs(number, dtype)
    inputs = np.random.default_rng(2).normal(0, 3, (40, 10)).astype(dtype)
    joint.router.threshold = float(np.median(joint(inputs).score))
    check_same(exported, joint, inputs)


# Every score that there is, traced alone

load_all()
NAMES = [
    name
    for raw, declared in RAW_OUTPUTS.items()
    if raw != "detections"
    for name in (*declared.scores, *declared.fitted)
]
READ = {"predicted_std": 2}  # columns, where it is not five


def graph_of(score, rows, opset=17):
    """A score's part of the graph, alone."""
    op = Operators(opset, rows.dtype, "joint")
    raw = ir.val("raw", ir.DataType.from_numpy(rows.dtype), ["n", *rows.shape[1:]])
    found = traced_score(op, as_score(score), raw, rows)
    parts = {"nodes": op.nodes, "initializers": op.constants, "opset_imports": {"": opset}}
    graph = ir.Graph([raw], [found], name="score", **parts)
    return ir.Model(graph, ir_version=8 if opset < 19 else 11)


@pytest.mark.parametrize(("dtype", "opset"), [(np.float32, 13), (np.float64, 23)])
@pytest.mark.parametrize("name", NAMES)
def test_every_score_there_is_does_in_a_graph_what_it_does_with_numpy(name, dtype, opset):
    shape = (40, READ.get(name, 5))
    rows = hostile(np.random.default_rng(0).normal(0, 3, shape).astype(dtype))
    score = LEARNED if name == "learned" else name
    if name == "random":
        with pytest.raises(ValueError, match=r"random cannot be exported: `.*` \(score"):
            graph_of(score, rows)
        return
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        wanted = as_score(score)(rows)
    graph = graph_of(score, rows, opset)
    onnx.checker.check_model(ir.to_proto(graph), full_check=True)
    found = run_graph(graph, rows)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_no_rows_have_no_score():
    rows = np.zeros((4, 5), np.float32)
    assert run_graph(graph_of("margin", rows), rows[:0]).shape == (0,)


# Scores of your own


def second(logits):
    return top_two(logits)[1]


def own(tmp_path, score, registered=False):
    """What is exported of a joint model with a score of your own, and whether it does the same."""
    joint = joint_of_slices(tmp_path, score, 5, 5)
    given = write_joint(tmp_path, joint) if registered else joint
    export_joint(given, tmp_path / "joint.onnx", threshold=0.5)
    inputs = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    joint.router.threshold = 0.5
    check_same(ExportedJoint(tmp_path / "joint.onnx"), joint, inputs)


def test_a_score_of_your_own_is_exported_by_its_name(tmp_path):
    @register_score
    def last_logit(logits):
        return logits[:, -1]

    try:
        own(tmp_path, "last_logit", registered=True)
    finally:
        del SCORES["last_logit"]


@pytest.mark.parametrize(
    "score",
    [
        second,
        lambda logits: -namespace(logits).std(logits, axis=-1),
        lambda logits: logits[:, 0] > logits[:, 1],
        lambda logits: namespace(logits).argmax(logits, axis=-1) % 3,
        lambda logits: namespace(logits).sum(logits**2, axis=-1) ** 0.5 - 3.0,
    ],
)
def test_a_score_of_your_own_needs_no_name_and_no_line_more(tmp_path, score):
    own(tmp_path, score)


def never_seen(logits):
    return (
        np.where(logits > 0, logits, 0.0)[:, 0]
        if isinstance(logits, np.ndarray)
        else second(logits)
    )


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (
            lambda logits: np.sort(logits)[:, -2],
            r"cannot be exported: `\(?lambda.*` \(test_exp.*, line \d+\) can",
        ),
        (
            lambda logits: np.array([max(row) for row in logits]),
            r"cannot be exported: `.*max\(row\).*`",
        ),
        (lambda logits: logits[:, 0] if len(logits) > 3 else logits[:, 1], "cannot be exported"),
        (lambda logits: np.ones(logits.shape[0] or 7), r"the returned value cannot be traced \(nd"),
        (never_seen, r"for the raw output \[.*\] its graph gives .*, but NumPy"),
        (
            lambda logits: logits[:, :1],
            r"must return one number for each of 8 rows, but .*\(8, 1\)",
        ),
        (lambda logits: logits.tolist(), "must return one number for each of 8 rows, but .* list"),
        (lambda logits: logits[:, 0].astype(str), "failed on a batch of random inputs: "),
    ],
)
def test_a_score_that_cannot_be_traced_is_one_sentence(tmp_path, score, says):
    joint = joint_of_slices(tmp_path, score, 5, 5)
    with pytest.raises((ModelError, ValueError), match=says) as error:
        export_joint(joint, tmp_path / "joint.onnx")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "joint.onnx").exists()


def test_exporting_twice_gives_the_same_file(tmp_path):
    joint = joint_of_slices(tmp_path, "margin", 5, 5, blend=0.5)
    paths = [tmp_path / "one.onnx", tmp_path / "other.onnx"]
    for path in paths:
        export_joint(joint, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
