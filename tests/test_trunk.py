"""A teacher that continues from the student's features: deferred rows cost only the rest."""

from __future__ import annotations

import time

import numpy as np
import pytest

import ebjr
from ebjr import Cost, JointClassifier, Outcomes, Preprocess, Router, load_model
from ebjr.cli import main
from ebjr.costs import alone_cost
from ebjr.data.preprocess import prepared
from ebjr.evaluation.flops import count_flops
from ebjr.model import Answer, facts

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

WIDTH, FEATURES, CLASSES = 6, 5, 3
RNG = np.random.default_rng(0)
TRUNK, REST, LAST = (
    RNG.normal(size=shape).astype(np.float32)
    for shape in ((WIDTH, FEATURES), (FEATURES, 40), (40, CLASSES))
)
EXIT = REST @ LAST  # without what bends between: good, and not as good
INPUTS = RNG.normal(size=(60, WIDTH)).astype(np.float32)


def write_network(path, batch="n", rest=REST):
    """inputs -> trunk -> features -> exit; features -> rest -> logits."""
    floats = TensorProto.FLOAT
    nodes = [
        helper.make_node("MatMul", ["x", "trunk"], ["linear"]),
        helper.make_node("Relu", ["linear"], ["features"]),
        helper.make_node("MatMul", ["features", "exit"], ["early"]),
        helper.make_node("MatMul", ["features", "rest"], ["wide"]),
        helper.make_node("Tanh", ["wide"], ["bent"]),
        helper.make_node("MatMul", ["bent", "last"], ["logits"]),
    ]
    weights = {"trunk": TRUNK, "exit": EXIT, "rest": rest, "last": LAST}
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", floats, [batch, WIDTH])],
        [
            helper.make_tensor_value_info(name, floats, [batch, CLASSES])
            for name in ("early", "logits")
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), str(path))
    return path


def features_of(inputs):
    return np.maximum(inputs @ TRUNK, 0)


def early(inputs):
    return features_of(inputs) @ EXIT


def whole(inputs):
    return np.tanh(features_of(inputs) @ REST) @ LAST


@pytest.fixture
def pair(tmp_path):
    path = write_network(tmp_path / "network.onnx")
    files = {role: tmp_path / f"{role}.onnx" for role in ("student", "teacher")}
    return ebjr.split_model(path, "features", **files)


def joined(student, teacher, share=0.5, **how):
    threshold = float(np.quantile(early(INPUTS).max(axis=1), share)) - 1e-3
    return JointClassifier(student, teacher, Router("max_logit", threshold), **how)


def test_the_answers_are_those_of_the_whole_network(pair):
    student, teacher = pair
    said = student(INPUTS)
    np.testing.assert_allclose(said.output, early(INPUTS), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(said.features, features_of(INPUTS), rtol=1e-4, atol=1e-5)
    answer = joined(student, teacher)(INPUTS)
    assert 0 < answer.deferred.sum() < len(INPUTS)
    wanted = np.where(answer.deferred[:, None], whole(INPUTS), early(INPUTS))
    np.testing.assert_allclose(answer.output, wanted, rtol=1e-4, atol=1e-5)


def counting(model, rows):
    def asked(batch):
        rows.append(batch.shape)
        return model(batch)

    asked.continues = facts(model).continues
    return asked


def test_deferred_rows_alone_reach_the_rest_as_features(pair):
    student, teacher = pair
    rows: list[tuple[int, ...]] = []
    answer = joined(student, counting(teacher, rows))(INPUTS)
    assert rows == [(answer.deferred.sum(), FEATURES)]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_batches_in_chunks_carry_the_features_of_each_row(pair, size):
    student = load_model(pair[0].path, features="features", batch_size=size)
    np.testing.assert_allclose(student(INPUTS).features, features_of(INPUTS), rtol=1e-4, atol=1e-5)
    assert student(INPUTS[:0]).features.shape == (0, FEATURES)


def test_a_fixed_batch_is_filled_up_and_cut_off_again(tmp_path):
    path = write_network(tmp_path / "four.onnx", batch=4)
    student, teacher = ebjr.split_model(
        path, "features", student=tmp_path / "s.onnx", teacher=tmp_path / "t.onnx"
    )
    found = joined(student, teacher)(INPUTS[:6])
    wanted = np.where(found.deferred[:, None], whole(INPUTS[:6]), early(INPUTS[:6]))
    np.testing.assert_allclose(found.output, wanted, rtol=1e-4, atol=1e-5)


def test_it_is_served_by_the_engine(pair):
    from ebjr.serving.engine import Engine

    joint = joined(*pair)
    wanted = joint(INPUTS)
    with Engine(joint) as engine:
        tickets = [engine.ask(INPUTS[start : start + 4]) for start in range(0, len(INPUTS), 4)]
        answers = [ticket.result(timeout=30).result() for ticket in tickets]
    for name in ("output", "deferred", "stage"):
        said = np.concatenate([getattr(answer, name) for answer in answers])
        np.testing.assert_allclose(said, getattr(wanted, name), rtol=1e-4, atol=1e-5)


def test_an_audit_hands_the_teacher_features(pair):
    from ebjr.serving.engine import Engine
    from ebjr.serving.events import Audited, Failed, Observer

    seen: list[object] = []

    class Watch(Observer):
        def observe(self, *events):
            seen.extend(events)

    joint = joined(*pair, share=0.0)
    watch = Watch()
    with Engine(joint, audit_rate=1.0, observer=watch) as engine:
        engine.ask(INPUTS[:8]).result(timeout=30)
        audits = lambda: sum(len(one.drawn) for one in seen if isinstance(one, Audited))  # noqa: E731
        until = time.monotonic() + 10
        while audits() < 8 and time.monotonic() < until:
            engine.tell()
            time.sleep(0.01)
    assert not [event for event in seen if isinstance(event, Failed)]
    found = np.concatenate([event.contradicted for event in seen if isinstance(event, Audited)])
    differs = whole(INPUTS[:8]).argmax(axis=1) != early(INPUTS[:8]).argmax(axis=1)
    assert found.sum() == differs.sum() > 0


def test_one_exported_file_holds_the_trunk_once(pair, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from ebjr.backends.exported import ExportedJoint
    from ebjr.export import export_joint

    joint = joined(*pair)
    written = export_joint(joint, tmp_path / "joint.onnx")
    assert written.difference < 1e-4
    held = onnx.load(tmp_path / "joint.onnx").graph
    shapes = [tuple(tensor.dims) for tensor in held.initializer]
    shapes += [
        tuple(tensor.dims)
        for node in held.node
        for attribute in node.attribute
        for tensor in attribute.g.initializer
    ]
    assert shapes.count((WIDTH, FEATURES)) == 1
    found, wanted = ExportedJoint(tmp_path / "joint.onnx")(INPUTS), joint(INPUTS)
    np.testing.assert_array_equal(found.deferred, wanted.deferred)
    np.testing.assert_allclose(found.output, wanted.output, rtol=1e-4, atol=1e-5)


def recorded(pair, **about):
    targets = whole(INPUTS).argmax(axis=1)
    return ebjr.record(*pair, INPUTS, targets, batch_size=16, **about)


def test_it_is_recorded_with_the_costs_of_the_rest(pair):
    table = recorded(pair)
    np.testing.assert_allclose(table.teacher, whole(INPUTS), rtol=1e-4, atol=1e-5)
    rest = count_flops(pair[1].path, (1, FEATURES)).flops
    assert table.teacher_cost.flops == rest == 2 * (FEATURES * 40 + 40 * CLASSES)
    assert table.student_cost.flops == 2 * (WIDTH * FEATURES + FEATURES * CLASSES)
    assert table.teacher_cost.rest
    assert not table.student_cost.rest


def test_joules_are_those_of_the_rest_too(pair):
    table = recorded(pair, joules=True)
    assert table.teacher_cost.joules > 0


def test_savings_are_over_both_parts_run_on_each_row(pair, tmp_path):
    table = recorded(pair)
    table.save(tmp_path / "outcomes.npz")
    point = ebjr.calibrate(Outcomes.load(tmp_path / "outcomes.npz"), tolerance=0.2)
    student, rest = table.student_cost.flops, table.teacher_cost.flops
    assert point.cost.flops == student + point.deferral_rate * rest
    assert point.saving == pytest.approx((student + rest) / point.cost.flops)
    assert point.saving > 1
    assert point.pays
    assert alone_cost(table.student_cost, table.teacher_cost).flops == student + rest


def test_joint_toml_names_both_parts_and_how_they_are_used(pair, tmp_path):
    joint = joined(*pair)
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    text = (tmp_path / "joint.toml").read_text()
    assert 'features = "features"' in text
    assert "continues = true" in text
    again = ebjr.load_joint(tmp_path / "joint.toml")
    np.testing.assert_array_equal(again(INPUTS).output, joint(INPUTS).output)


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["ebjr", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_the_command_line_does_all_of_it(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("rows.npz", inputs=INPUTS, targets=whole(INPUTS).argmax(axis=1))
    models = ["--student", "student.onnx", "--student-options", "features=features"]
    models += ["--teacher", "teacher.onnx", "--teacher-options", "continues=true"]
    assert run(monkeypatch, "record", *models, "--data", "rows.npz", "-o", "o.npz") == 0
    assert run(monkeypatch, "calibrate", "o.npz", "--tolerance", "0.1", "-o", "joint.toml") == 0
    assert run(monkeypatch, "evaluate", "o.npz", "--joint", "joint.toml", "--report", "r.html") == 0
    assert run(monkeypatch, "predict", "joint.toml", "--data", "rows.npz", "-o", "a.jsonl") == 0
    assert '"alone":' in (tmp_path / "r.html").read_text()
    capsys.readouterr()
    assert run(monkeypatch, "calibrate", "o.npz", "--stages", "auto", "-o", "j.toml") == 2
    assert "calibrate without --stages" in capsys.readouterr().err
    models[3] = "features=nowhere"
    assert run(monkeypatch, "record", *models, "--data", "rows.npz", "-o", "p.npz") == 2
    assert "features must be one of" in capsys.readouterr().err


def write_network_of_images(path):
    """Features that look like images: only the student's input is prepared."""
    floats, size = TensorProto.FLOAT, 8
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["maps"]),
        helper.make_node("Relu", ["maps"], ["features"]),
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["color"]),
        helper.make_node("MatMul", ["color", "exit"], ["early"]),
        helper.make_node("Mul", ["features", "features"], ["squares"]),
        helper.make_node("GlobalAveragePool", ["squares"], ["power"]),
        helper.make_node("Flatten", ["power"], ["row"]),
        helper.make_node("MatMul", ["row", "last"], ["logits"]),
    ]
    weights = {
        "kernel": np.array([[3, 1, 0], [0, 2, 1], [1, 0, 2]]).reshape(3, 3, 1, 1),
        "exit": 6 * np.eye(3),
        "last": 9 * np.eye(3),
    }
    graph = helper.make_graph(
        nodes,
        "images",
        [helper.make_tensor_value_info("image", floats, ["n", 3, size, size])],
        [
            helper.make_tensor_value_info(name, floats, ["n", CLASSES])
            for name in ("early", "logits")
        ],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    sets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=sets, ir_version=8), str(path))
    return path


def test_images_are_prepared_for_the_student_alone(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from ebjr.backends.exported import ExportedJoint
    from ebjr.export import export_joint

    path = write_network_of_images(tmp_path / "images.onnx")
    student, teacher = ebjr.split_model(
        path, "features", student=tmp_path / "s.onnx", teacher=tmp_path / "t.onnx"
    )
    colors = RNG.integers(0, 200, (60, 1, 1, 3)) + RNG.integers(0, 56, (60, 12, 10, 3))
    images = colors.astype(np.uint8)
    way = Preprocess(size=8)
    full = prepared(load_model(path, output="logits"), way)
    table = ebjr.record(prepared(student, way), teacher, images, full(images).argmax(axis=1))
    assert table.teacher_cost.flops == count_flops(teacher.path, (1, 3, 8, 8)).flops
    np.testing.assert_allclose(table.teacher, full(images), rtol=1e-4, atol=1e-4)
    threshold = float(np.median(table.student.max(axis=1))) - 1e-3
    joint = JointClassifier(prepared(student, way), teacher, Router("max_logit", threshold))
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    assert export_joint(tmp_path / "joint.toml", tmp_path / "joint.onnx").difference < 1e-3
    found, wanted = ExportedJoint(tmp_path / "joint.onnx")(images), joint(images)
    assert 0 < wanted.deferred.sum() < 60
    np.testing.assert_array_equal(found.deferred, wanted.deferred)
    np.testing.assert_allclose(found.output, wanted.output, rtol=1e-3, atol=1e-2)


def test_explain_asks_the_rest_about_features(pair):
    from ebjr.serving.explain import explain

    said = explain(joined(*pair), INPUTS[:1], np.inf)
    assert said["deferred"]
    assert said["teacher"]["prediction"] == whole(INPUTS[:1]).argmax()


@pytest.mark.parametrize("how", [{"blend": 0.3}, {"when_unavailable": "error"}])
def test_blends_and_policies_are_as_of_any_pair(pair, how):
    joint = joined(*pair, **how)
    plain = JointClassifier(early, whole, joint.router, **how)
    np.testing.assert_allclose(joint(INPUTS).output, plain(INPUTS).output, rtol=1e-3, atol=1e-4)


def test_probabilities_become_logits_and_keep_their_features(pair):
    student = load_model(pair[0].path, features="features", output_kind="logits")
    assert facts(student).features == facts(pair[0]).features
    again = joined(student, load_model(pair[1].path, continues=True, output_kind="logits"))
    np.testing.assert_array_equal(again(INPUTS).output, joined(*pair)(INPUTS).output)


def test_a_trunk_is_shared_by_the_first_two_of_three_stages(pair, tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    from ebjr.backends.exported import ExportedJoint
    from ebjr.export import export_joint

    last = load_model(tmp_path / "network.onnx", output="logits")
    three = JointClassifier(joined(*pair), last, Router("max_logit", 3.0))
    export_joint(three, tmp_path / "three.onnx")
    found, wanted = ExportedJoint(tmp_path / "three.onnx")(INPUTS), three(INPUTS)
    assert set(wanted.stage.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(found.stage, wanted.stage)
    np.testing.assert_allclose(found.output, wanted.output, rtol=1e-4, atol=1e-4)


def test_torch_modules_share_a_trunk_too(pair, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")

    class Student(torch.nn.Module):
        def __init__(self, form):
            super().__init__()
            self.form = form
            self.trunk, self.exit = (torch.nn.Parameter(torch.tensor(w)) for w in (TRUNK, EXIT))

        def forward(self, x):
            features = torch.relu(x @ self.trunk)
            return self.form(features @ self.exit, features)

    class Rest(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rest, self.last = (torch.nn.Parameter(torch.tensor(w)) for w in (REST, LAST))

        def forward(self, features):
            return torch.tanh(features @ self.rest) @ self.last

    rest = load_model(Rest(), continues=True)
    for form, key in (
        (lambda logits, features: (logits, features), 1),
        (lambda logits, features: {"logits": logits, "trunk": features}, "trunk"),
    ):
        student = load_model(Student(form), features=key)
        found = joined(student, rest)(INPUTS)
        wanted = np.where(found.deferred[:, None], whole(INPUTS), early(INPUTS))
        np.testing.assert_allclose(found.output, wanted, rtol=1e-4, atol=1e-5)
        assert recorded((student, rest)).teacher_cost.flops == 2 * (FEATURES * 40 + 40 * CLASSES)
    assert torch.is_tensor(student(torch.tensor(INPUTS)).features)
    plain = load_model(Student(lambda logits, features: logits), features=1)
    with pytest.raises(ebjr.ModelError, match="tuple or dictionary with features at 1"):
        plain(INPUTS)
    rows = {0: torch.export.Dim("n", min=2)}
    program = torch.export.export(
        Student(lambda logits, features: (logits, features)),
        (torch.tensor(INPUTS),),
        dynamic_shapes={"x": rows},
    )
    torch.export.save(program, tmp_path / "student.pt2")
    torch.export.save(
        torch.export.export(
            Rest(), (torch.tensor(features_of(INPUTS)),), dynamic_shapes={"features": rows}
        ),
        tmp_path / "teacher.pt2",
    )
    files = (
        load_model(tmp_path / "student.pt2", features=1, batch_size=16),
        load_model(tmp_path / "teacher.pt2", continues=True),
    )
    ebjr.save_joint(tmp_path / "joint.toml", joined(*files))
    found = ebjr.load_joint(tmp_path / "joint.toml")(INPUTS)
    np.testing.assert_allclose(found.output, joined(*pair)(INPUTS).output, rtol=1e-4, atol=1e-5)


def test_a_callable_says_it_by_an_answer_and_an_attribute():
    def teacher(features):
        return np.tanh(features @ REST) @ LAST

    teacher.continues = True
    found = joined(lambda x: Answer(early(x), features=features_of(x)), teacher)(INPUTS)
    wanted = np.where(found.deferred[:, None], whole(INPUTS), early(INPUTS))
    np.testing.assert_allclose(found.output, wanted, rtol=1e-5)


class TestRefused:
    """Each in one sentence, before any answer is given."""

    def test_a_features_output_that_does_not_exist(self, pair):
        with pytest.raises(ValueError, match=r"features must be one of .*nowhere"):
            load_model(pair[0].path, features="nowhere")

    def test_the_only_output_as_features(self, pair):
        with pytest.raises(ValueError, match="not the only one"):
            load_model(pair[1].path, features="logits")

    def test_the_output_itself_as_features(self, pair):
        with pytest.raises(ValueError, match="output must be one of features"):
            load_model(pair[0].path, features="early", output="early")

    def test_features_of_another_shape(self, pair, tmp_path):
        path = write_network(tmp_path / "wide.onnx")
        other = ebjr.split_model(
            path, "bent", student=tmp_path / "s.onnx", teacher=tmp_path / "t.onnx"
        )
        with pytest.raises(
            ValueError, match=r"features \(40,\) of float32.*carry \(5,\) of float32"
        ):
            joined(pair[0], other[1])

    def test_features_of_another_type(self, pair):
        teacher = counting(pair[1], [])
        teacher.input_shape, teacher.input_dtype = (None, FEATURES), np.dtype(np.float64)
        with pytest.raises(ValueError, match=r"of float64.*of float32"):
            joined(pair[0], teacher)

    def test_features_whose_shape_only_the_first_answer_shows(self, pair):
        narrow = lambda x: Answer(early(x), features=features_of(x)[:, :2])  # noqa: E731
        with pytest.raises(ValueError, match=r"features \(5,\) of float32.*carry \(2,\)"):
            joined(narrow, pair[1])(INPUTS)
        with pytest.raises(ValueError, match="carry none for each row"):
            joined(early, pair[1])(INPUTS)
        with pytest.raises(ValueError, match="carry none for each row"):
            recorded((early, pair[1]))

    def test_a_student_without_features(self, pair):
        with pytest.raises(ValueError, match="the answers of student carry none"):
            joined(load_model(pair[0].path, output="early"), pair[1])

    def test_a_student_that_continues(self, pair):
        with pytest.raises(ValueError, match="can only be a teacher"):
            joined(pair[1], whole)

    def test_a_joint_student(self, pair):
        inner = joined(*pair)
        with pytest.raises(ValueError, match="the answers of JointClassifier carry none"):
            joined(inner, pair[1])
        assert joined(inner, whole)(INPUTS).output.shape == (60, CLASSES)

    def test_a_teacher_elsewhere(self, pair):
        far = counting(pair[1], [])
        far.url = "http://127.0.0.1:1/v2/models/rest"
        with pytest.raises(ValueError, match="not from images: give its file"):
            joined(pair[0], far)

    def test_preprocessing_of_features(self, pair):
        with pytest.raises(ValueError, match="leave its preprocessing out"):
            joined(pair[0], prepared(pair[1], Preprocess()))
        with pytest.raises(ValueError, match="features are not images"):
            recorded(pair, teacher_preprocess="size=8")

    def test_rows_that_wait_for_it(self, pair, tmp_path):
        late = ebjr.LateAnswers(tmp_path / "late.sqlite")
        with pytest.raises(ValueError, match="cannot wait"):
            joined(*pair, when_unavailable="queue", late=late)

    def test_a_teacher_loaded_elsewhere(self, pair, tmp_path):
        ebjr.save_joint(tmp_path / "joint.toml", joined(*pair))
        with pytest.raises(ValueError, match="cannot run elsewhere"):
            ebjr.JointConfig.read(tmp_path / "joint.toml").load(teacher=whole)

    def test_a_model_without_features_between_the_two(self, pair):
        other = load_model(pair[0].path, output="early")
        with pytest.raises(ValueError, match="the answers of student carry none"):
            ebjr.record_all([pair[0], other, pair[1]], INPUTS, np.zeros(60, int))

    def test_stages_are_whole_models(self, pair):
        from ebjr.calibration.stages import calibrate_stages

        with pytest.raises(ValueError, match="calibrate without --stages"):
            calibrate_stages(recorded(pair))

    def test_a_cut_that_does_not_part_the_outputs(self, pair, tmp_path):
        files = {"student": tmp_path / "s.onnx", "teacher": tmp_path / "t.onnx"}
        for at in ("early", "nowhere"):
            with pytest.raises(ebjr.ModelError, match=f"cannot be cut at {at}"):
                ebjr.split_model(tmp_path / "network.onnx", at, **files)


def test_a_cost_of_a_rest_is_read_back():
    cost = Cost(flops=3.0, rest=True)
    assert Cost(**cost.as_dict()) == cost
    assert "rest" not in Cost(flops=3.0).as_dict()


def test_the_page_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    from pages import blocks, run_python

    pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    monkeypatch.chdir(tmp_path)
    write_network("network.onnx")
    np.savez("data.npz", inputs=INPUTS, targets=whole(INPUTS).argmax(axis=1))
    names = run_python("shared-trunk.md")
    assert 0 < names["answer"].deferred.sum() < 100
    lines = "\n".join(blocks("shared-trunk.md", "sh")).replace("\\\n", " ").splitlines()
    for line in lines:
        assert run(monkeypatch, *line.split()[1:]) == 0, line
    assert "rest = true" in (tmp_path / "joint.toml").read_text()
