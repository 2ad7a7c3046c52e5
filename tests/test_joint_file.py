from __future__ import annotations

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from chat_server import chat_server
from tiny import write_linear, write_pair

import ebjr
from ebjr import Cost, JointConfig, Outcomes, Preprocess, Preprocessed, Router
from ebjr.files import sha256_of
from ebjr.joint_file import ChatEntry, JointEntry, ModelEntry, RemoteEntry
from ebjr.monitor import DriftMonitor
from ebjr.serving.engine import Engine

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


ROLES = ("student", "teacher")


@pytest.fixture
def joint(tmp_path: Path) -> ebjr.JointModel:
    student, teacher = (ebjr.load_model(path) for path in write_pair(tmp_path))
    return ebjr.JointClassifier(
        Preprocessed(student, Preprocess(size=8)),
        Preprocessed(teacher, Preprocess(size=8)),
        Router("softmax(temperature=2.0)", 0.5),
        blend=0.25,
    )


def images(n: int = 20) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), np.uint8)


def test_a_joint_model_survives_the_file(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint, labels=("b", "g", "r"))
    again = ebjr.load_joint(tmp_path / "joint.toml")
    assert (again.router.threshold, again.blend) == (0.5, 0.25)
    assert str(again.router.score) == "softmax(temperature=2.0)"
    first, second = joint(images()), again(images())
    assert np.array_equal(first.output, second.output)
    assert np.array_equal(first.deferred, second.deferred)
    assert 0 < first.deferred.mean() < 1


def test_a_blend_with_temperatures_survives_the_file(joint, tmp_path):
    joint.blend = ebjr.Blend(0.5, teacher_temperature=2.0)
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    assert 'blend = "blend(weight=0.5, teacher_temperature=2.0)"' in (
        (tmp_path / "joint.toml").read_text()
    )
    assert ebjr.load_joint(tmp_path / "joint.toml").blend == joint.blend


@pytest.fixture
def specialized(tmp_path) -> Path:
    """A joint.toml of a student of red and "other" beside a teacher of three colors."""
    student = write_linear(tmp_path / "red.onnx", np.array([[9.0, 0.0], [0.0, 4.5], [0.0, 4.5]]))
    _, teacher = write_pair(tmp_path)
    models = [Preprocessed(ebjr.load_model(p), Preprocess(size=8)) for p in (student, teacher)]
    joint = ebjr.SpecializedJointClassifier(
        *models, Router("specialized_energy", 0.1), known_classes=[2], classes=3
    )
    ebjr.save_joint(tmp_path / "joint.toml", joint, labels=("b", "g", "r"))
    return tmp_path / "joint.toml"


def test_a_specialized_joint_model_survives_the_file(specialized):
    again = ebjr.load_joint(specialized)
    assert type(again) is ebjr.SpecializedJointClassifier
    assert (again.known_classes, again.classes) == ((2,), 3)
    answer = again(images())
    assert 0 < answer.deferred.mean() < 1
    assert (answer.prediction[~answer.deferred] == 2).all()
    JointConfig.read(specialized).save(specialized.with_name("again.toml"))
    assert specialized.with_name("again.toml").read_text() == specialized.read_text()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("classes = 3\n", "", "task 'specialized' needs known_classes, and classes, their total"),
        ("classes = 3\n", "classes = 2\n", "the teacher's labels, not 2"),
        ("[2]", "[2, 2]", "label 2 is there twice"),
        ('"specialized"', '"classification"', "known_classes go with task 'specialized'"),
    ],
)
def test_a_label_map_that_does_not_fit_is_one_sentence(specialized, old, new, sentence):
    text = specialized.read_text()
    assert old in text
    specialized.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence):
        ebjr.load_joint(specialized)


NAMED = """
import numpy as np


def of(labels, scale):
    def model(rows):
        return scale * np.asarray(rows)[:, : len(labels)]

    model.labels, model.columns = labels, ("x", "y", "z")
    return model


student, teacher = of(("b", "g", "r"), 1.0), of(("b", "g", "r"), 2.0)
numbered, red = of(("0", "1", "2"), 1.0), of(("r", "other"), 1.0)
"""


@pytest.fixture
def named(tmp_path) -> Path:
    """The file of models in Python that name their classes and their columns."""
    (tmp_path / "named.py").write_text(NAMED)
    return tmp_path / "named.py"


def config_of(file, student="student", teacher="teacher", **about) -> JointConfig:
    entries = (ModelEntry.of_file(f"{file}:{name}") for name in (student, teacher))
    how = {"score": "margin", "threshold": 0.5, **about}
    config = JointConfig(*entries, **how)
    config.save(file.with_name("joint.toml"))
    return JointConfig.read(file.with_name("joint.toml"))


@pytest.mark.parametrize("student", ["student", "numbered"])
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (("g", "b", "r"), "class 0 is 'b' in .* and 'g' in joint.toml: write the model's names"),
        (("b", "g", "x"), "class 2 is 'r' in .* and 'x' in joint.toml"),
        (("b", "g"), "class 2 is 'r' in .* and None in joint.toml"),
    ],
)
def test_labels_that_are_not_in_the_models_order_are_refused(named, student, labels, sentence):
    config = config_of(named, student, labels=labels)
    with pytest.raises(ValueError, match=sentence):
        config.load(trust=True)


@pytest.mark.parametrize("student", ["student", "numbered"])
@pytest.mark.parametrize("labels", [None, ("b", "g", "r"), ("0", "1", "2"), ("x", "y", "z")])
def test_classes_may_have_the_models_names_none_or_the_users_own(named, student, labels):
    assert config_of(named, student, labels=labels).load(trust=True)(np.eye(3)).prediction[2] == 2


def test_a_specialized_student_names_the_classes_that_it_knows(named):
    how = {"task": "specialized", "classes": 3, "score": "specialized_energy"}
    config_of(named, "red", labels=("b", "g", "r"), known_classes=(2,), **how).load(trust=True)
    config = config_of(named, "red", labels=("r", "g", "x"), known_classes=(0,), **how)
    with pytest.raises(ValueError, match=r"class 0 is 'b' in .* and 'r' in joint\.toml"):
        config.load(trust=True)


def test_columns_that_are_not_in_the_models_order_are_refused(named):
    config_of(named, columns=("x", "y", "z")).load(trust=True)
    config = config_of(named, columns=("y", "x", "z"))
    with pytest.raises(ValueError, match=r"reads the columns x, y, z, but joint\.toml has y, x, z"):
        config.load(trust=True)


def test_a_chat_models_labels_are_compared_when_the_file_is_read(named):
    about = {"model": "tiny-1", "prompt": "{text}", "labels": {"no": "n", "yes": "y"}}
    entry = ChatEntry({"chat": "http://127.0.0.1:9/v1", **about})
    student = ModelEntry.of_file(f"{named}:student")
    JointConfig(student, entry, "margin", 0.5, labels=("no", "yes"))
    with pytest.raises(ValueError, match=r"class 0 is 'no' in tiny-1 and 'yes' in joint\.toml"):
        JointConfig(student, entry, "margin", 0.5, labels=("yes", "no"))


def declared(config, *dollars) -> JointConfig:
    """A configuration whose models cost so much a row, as somebody said."""
    entries = zip(ROLES, dollars, strict=True)
    costs = {role: replace(getattr(config, role), cost=Cost(dollars=one)) for role, one in entries}
    return replace(config, **costs)


def test_what_was_said_to_be_paid_for_a_row_is_billed_for_each_that_was_asked(named):
    config = declared(config_of(named, score="max_logit"), 0.5, 2.0)
    rows = np.diag([1.0, 0.1, 1.0])  # the second one is deferred
    found = config.load(trust=True)(rows)
    assert found.deferred.tolist() == [False, True, False]
    assert found.spent.tolist() == [[0, 0, 0.5], [0, 0, 2.5], [0, 0, 0.5]]
    engine = Engine(config.load(trust=True))
    engine.start()
    assert np.array_equal(engine.ask(rows).result(10).answer.spent, found.spent)
    engine.stop()
    assert declared(config, None, 2.0).load(trust=True)(rows).spent[:, 2].tolist() == [0, 2, 0]
    assert declared(config, 0.0, None).load(trust=True)(rows).spent is None  # it is free


def test_each_stage_is_billed_once(named):
    stage = declared(config_of(named), 0.5, 2.0)
    router = {"score": "max_logit", "threshold": 0.5}
    student = JointEntry(stage.student, stage.teacher, router, cost=Cost(dollars=1.0))
    last = replace(stage.teacher, cost=Cost(dollars=8.0))
    joint = JointConfig(student, last, "max_logit", 0.5).load(trust=True)
    found = joint(np.diag([1.0, 0.3, 0.1]))
    assert found.stage.tolist() == [0, 1, 2]
    assert found.spent[:, 2].tolist() == [0.5, 2.5, 10.5]


@pytest.mark.parametrize("price", [None, {"input": 1e6, "output": 0.0}])
@pytest.mark.parametrize("usage", [True, False])
def test_a_chat_model_is_billed_by_its_price_and_else_by_what_was_said(named, price, usage):
    with chat_server() as server:
        if not usage:
            server.answer = lambda body, number: server.reply(body) | {"usage": None}
        about = {"chat": server.url, "model": "tiny-1", "prompt": "{text}", "labels": ["no", "yes"]}
        entry = ChatEntry(about if price is None else about | {"price": price})
        config = JointConfig(entry, entry, "margin", -1.0)
        [[_, _, dollars]] = declared(config, 0.25, None).load()(["one two three"]).spent.tolist()
    assert dollars == (0.25 if price is None else 3.0) or (price and not usage)
    assert np.isnan(dollars) == (price is not None and not usage)  # an average is no bill


def test_the_folder_may_move_as_a_whole(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    ebjr.load_joint(moved / "joint.toml")
    table = tomllib.loads((moved / "joint.toml").read_text())
    assert table["student"]["path"] == "student.onnx"


def test_a_study_is_kept_with_its_figures(joint, tmp_path):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    clear = 4 * np.eye(3)[targets]
    outcomes = Outcomes(
        clear + rng.normal(0, 3, clear.shape),
        clear,
        targets,
        student_cost=Cost(flops=1.0),
        teacher_cost=Cost(flops=9.0),
    )
    study = ebjr.run_study(outcomes, tolerance=0.01)
    entries = [ModelEntry.of_file(tmp_path / f"{r}.onnx") for r in ("student", "teacher")]
    JointConfig.of_study(*entries, study=study).save(tmp_path / "joint.toml")
    config = JointConfig.read(tmp_path / "joint.toml")
    assert config.threshold == study.point.threshold
    assert config.calibration["goal"] == "match-teacher"
    assert config.calibration["tolerance"] == 0.01
    assert config.calibration["outcomes"] == outcomes.fingerprint
    assert config.calibration["held_out"]["quality"] == study.result.quality
    assert config.operating_points["match-teacher"]["threshold"] >= config.threshold
    for name, point in config.operating_points.items():  # on examples that none was chosen on
        there = study.point.curve(study.held_out).at(threshold=point["threshold"])
        assert (point["quality"], point["deferral_rate"]) == (there.quality, there.deferral_rate), (
            name
        )
    assert config.calibration["verdict"] == study.verdict.text
    curve, kept = study.point.curve(study.held_out), config.calibration["curve"]
    assert kept["deferral_rate"][0] == curve.deferral_rate[0]
    assert (kept["threshold"][-1], kept["deferral_rate"][-1]) == (np.inf, 1.0)
    for threshold, quality in zip(kept["threshold"], kept["quality"], strict=True):
        assert curve.at(threshold=threshold * (1 - 1e-5)).quality == pytest.approx(quality)
    held, router = study.held_out, study.point.router
    scores = np.asarray(router.score(held.student), np.float64)
    drift = DriftMonitor.of_reference(config.calibration["drift"])
    assert drift.state() == DriftMonitor(scores, threshold=router.threshold).state()
    differs = held.student.argmax(axis=1) != held.teacher.argmax(axis=1)
    known = config.calibration["disagreement"]
    assert known["kept_and_contradicted"] == (differs & (scores >= router.threshold)).sum()
    JointConfig.read(tmp_path / "joint.toml").save(tmp_path / "again.toml")
    again = (tmp_path / "again.toml").read_text().replace("again.lists", "joint.lists")
    assert again == (tmp_path / "joint.toml").read_text()


LABELS = tuple(f'n{number:08d} "a, b", [' for number in range(1000))


@pytest.fixture
def thousand(joint, tmp_path) -> JointConfig:
    """The configuration of a pair with 1,000 classes, whose student knows 30 of them."""
    models = [ModelEntry.of_file(tmp_path / f"{role}.onnx") for role in ROLES]
    student = replace(models[0], options={"label_ids": list(range(80))})
    edges = {"edges": [float("-inf"), *range(30)], "ties": [0.5] * 31, "n": 5000}
    quantiles = [float("-inf"), *np.linspace(0, 1, 99).tolist(), float("inf")]
    known = {"drift": edges, "score_quantiles": quantiles, "verdict": "It pays.\nMostly."}
    return JointConfig(
        student, models[1], "specialized_energy", 0.25, task="specialized", labels=LABELS,
        known_classes=tuple(range(30)), classes=1000, calibration=known,
    )  # fmt: skip


def test_the_knob_comes_first_and_long_lists_are_in_a_file_beside(thousand, tmp_path):
    thousand.save(tmp_path / "joint.toml")
    text = (tmp_path / "joint.toml").read_text()
    lines = text.splitlines()
    assert len(lines) < 60
    assert lines[:2] == [
        "# The knob is threshold: inputs whose score is under it go to the teacher.",
        "# It pays. Mostly.",
    ]
    assert lines.index("threshold = 0.25") < lines.index("[student]") < lines.index("[teacher]")
    (beside,) = tmp_path.glob("joint.lists-*.toml")
    about = tomllib.loads(text)["lists"]
    assert about == {"path": beside.name, "sha256": sha256_of(beside)}
    assert beside.name in text.split("[router]")[0]
    lists = tomllib.loads(beside.read_text())
    assert lists["labels"] == list(LABELS)
    assert lists["student"] == {"label_ids": list(range(80))}
    assert lists["calibration"]["score_quantiles"][-1] == np.inf
    assert JointConfig.read(tmp_path / "joint.toml") == thousand


def test_short_lists_stay_in_the_file_on_one_line(joint, tmp_path):
    names = tuple(f'{number}, "x" [,\n    ' for number in range(20))
    how = Preprocess(size=8, mean=(0.5, 0.25, 0.125))
    config = JointConfig(
        *(ModelEntry.of_file(tmp_path / f"{role}.onnx", preprocess=how) for role in ROLES),
        score="margin", threshold=0.5, labels=names,
    )  # fmt: skip
    config.save(tmp_path / "joint.toml")
    assert "mean = [0.5, 0.25, 0.125]\n" in (tmp_path / "joint.toml").read_text()
    assert JointConfig.read(tmp_path / "joint.toml") == config
    assert not list(tmp_path.glob("*.lists-*"))


def test_a_file_with_its_lists_inside_as_they_were_written_before_still_reads(thousand, tmp_path):
    thousand.save(tmp_path / "joint.toml")
    (beside,) = tmp_path.glob("joint.lists-*.toml")
    table, lists = (tomllib.loads(file.read_text()) for file in (tmp_path / "joint.toml", beside))
    del table["lists"]
    table |= {"labels": lists["labels"], "known_classes": lists["known_classes"]}
    table["student"] |= lists["student"]
    table["calibration"]["score_quantiles"] = lists["calibration"]["score_quantiles"]
    table["calibration"]["drift"] |= lists["calibration"]["drift"]
    beside.unlink()
    (tmp_path / "old.toml").write_text(tomli_w.dumps(table))
    assert JointConfig.read(tmp_path / "old.toml") == thousand


def test_each_file_keeps_its_own_lists_and_a_copy_of_an_earlier_one_still_reads(thousand, tmp_path):
    thousand.save(tmp_path / "joint.toml")
    (tmp_path / "kept.toml").write_bytes((tmp_path / "joint.toml").read_bytes())
    other = replace(thousand, labels=LABELS[::-1])
    other.save(tmp_path / "other.toml")
    other.save(tmp_path / "joint.toml")
    read = {
        name: JointConfig.read(tmp_path / f"{name}.toml") for name in ("joint", "other", "kept")
    }
    assert read == {"joint": other, "other": other, "kept": thousand}


def test_lists_that_are_missing_changed_or_there_twice_are_refused_in_one_sentence(
    thousand, tmp_path, run
):
    file = tmp_path / "joint.toml"
    thousand.save(file)
    (beside,) = tmp_path.glob("joint.lists-*.toml")
    whole, text = beside.read_text(), file.read_text()
    file.write_text(text.replace("task =", 'labels = ["a"]\ntask =', 1))
    with pytest.raises(
        ValueError, match=r"joint\.toml: labels is both in the file and in its long"
    ):
        JointConfig.read(file)
    start = text.index("[calibration]")
    file.write_text("calibration = 5\n" + text[:start] + text[text.index("[lists]") :])
    with pytest.raises(ValueError, match=r"joint\.toml: calibration is both in the file and in"):
        JointConfig.read(file)
    file.write_text(text)
    beside.write_text(whole.replace("n00000007", "n00000008"))
    with pytest.raises(ValueError, match=r"joint\.toml: .* has changed: copy both files together"):
        JointConfig.read(file)
    beside.unlink()
    code, _, error = run("predict", "joint.toml", "--data", "none.npz", "-o", "answers.jsonl")
    assert code == 2
    assert f"{beside.name}, is missing: copy both files together, or" in error


def test_a_file_that_cannot_be_written_leaves_the_earlier_one_and_its_lists(thousand, tmp_path):
    thousand.save(tmp_path / "joint.toml")
    before = sorted(path.name for path in tmp_path.iterdir())
    unknown = replace(thousand, calibration={"verdict": object(), "curve": [1.0] * 30})
    with pytest.raises(TypeError):
        unknown.save(tmp_path / "joint.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert JointConfig.read(tmp_path / "joint.toml") == thousand


def test_an_answer_never_overwrites_the_lists_of_the_file_that_is_read(thousand, tmp_path, run):
    thousand.save(tmp_path / "joint.toml")
    (beside,) = tmp_path.glob("joint.lists-*.toml")
    code, _, error = run("predict", "joint.toml", "--data", "none.npz", "-o", beside.name)
    assert code == 2
    assert f"would overwrite {beside}" in error


@pytest.fixture
def certified(joint, tmp_path) -> tuple[Path, ebjr.OperatingPoint]:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 2000)
    clear = 4 * np.eye(3)[targets]
    outcomes = Outcomes(clear + rng.normal(0, 3, clear.shape), clear, targets)
    point = ebjr.calibrate(outcomes, tolerance=0.05, delta=0.1, score="margin", blend=0.0)
    joint.router, joint.blend = point.router, point.blend
    ebjr.save_joint(tmp_path / "joint.toml", joint, point=point)
    return tmp_path / "joint.toml", point


def test_a_certificate_survives_the_file(certified):
    file, point = certified
    config = JointConfig.read(file)
    assert config.certificate == point.certified
    assert "exchangeable" in config.calibration["certified"]["statement"]
    assert config.load().router.threshold == point.threshold


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("threshold", "0.123", "threshold is 0.123 and was"),
        ("score", '"softmax"', "score is 'softmax' and was 'margin'"),
        ("blend", "0.5", "blend is 0.5 and was 0.0"),
    ],
)
def test_what_is_no_longer_as_certified_is_said_in_words(certified, key, value, words):
    file, _ = certified
    table, rest = file.read_text().split("[student]", 1)
    lines = [f"{key} = {value}" if line.startswith(key) else line for line in table.splitlines()]
    file.write_text("\n".join(lines) + "\n[student]" + rest)
    with pytest.warns(ebjr.PromiseWarning, match=words) as caught:
        JointConfig.read(file).load()
    assert "its promise is void; calibrate again" in str(caught[0].message)
    assert JointConfig.read(file).certificate is None


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (
            "[calibration]",
            '[calibration]\ngoal = "accuracy"\ntarget = "1"\nmargin = "1"',
            "not supported between instances",
        ),
        (
            "[calibration]",
            '[calibration]\nsplit_seed = "1"',
            "split_seed must be a number, not '1'",
        ),
        ('name = "', 'operating_points = 3\nname = "', "operating_points must be a table, not int"),
        *(
            (old, new, f"calibration.{name} must be a table, not {kind}")
            for name, old, new, kind in (
                ("certified", "[calibration.certified]", "[[calibration.certified]]", "list"),
                ("traffic", "[calibration]", '[calibration]\ntraffic = "x"', "str"),
            )
        ),
        ('promise = "excess"', 'promised = "excess"', "unexpected keyword argument 'promised'"),
    ],
)
def test_a_damaged_promise_is_refused_when_the_file_is_read(certified, before, after, words):
    file, _ = certified
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(ValueError, match=rf"joint\.toml: .*{words}"):
        JointConfig.read(file)


def test_without_a_promise_the_threshold_is_a_knob(certified, joint, tmp_path):
    _, point = certified
    joint.router.threshold = 0.25
    bare = replace(point, certified=None)
    ebjr.save_joint(tmp_path / "knob.toml", joint, point=bare)
    assert ebjr.load_joint(tmp_path / "knob.toml").router.threshold == 0.25


def test_changed_preprocessing_is_refused(certified):
    file, _ = certified
    text = file.read_text()
    assert "size = 8" in text
    file.write_text(text.replace("size = 8", "size = 9", 1))
    with pytest.raises(ebjr.ModelError, match="the preprocessing in joint"):
        ebjr.load_joint(file)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[2]", "[1]", "the list of known_classes in joint.toml has changed"),
        ("[2]", "[2, 1]", "the list of known_classes in joint.toml has changed"),
        ("classes = 3\n", "classes = 4\n", "the number of classes in joint.toml has changed"),
    ],
)
def test_a_changed_label_map_is_refused(specialized, old, new, words):
    joint = ebjr.load_joint(specialized)
    targets = np.arange(60) % 3
    outcomes = Outcomes(
        4 * np.eye(2)[(targets != 2) * 1], 4 * np.eye(3)[targets], targets, "specialized",
        known_classes=[2],
    )  # fmt: skip
    point = ebjr.calibrate(outcomes, score="known_softmax", blend=0.0)
    joint.router = point.router
    ebjr.save_joint(specialized, joint, point=point)
    assert ebjr.load_joint(specialized).known_classes == (2,)
    text = specialized.read_text()
    specialized.write_text(text.replace(old, new, 1))
    with pytest.raises(ebjr.ModelError, match=words):
        ebjr.load_joint(specialized)


@pytest.fixture
def evaluated(joint, tmp_path):
    """A joint.toml, and outcomes of its own models."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 200)
    clear = 4 * np.eye(3)[targets]
    noisy = clear + rng.normal(0, 3, clear.shape)
    entries = {role: ModelEntry.of_file(tmp_path / f"{role}.onnx") for role in ROLES}
    models = {role: entry.as_table(tmp_path) for role, entry in entries.items()}
    outcomes = Outcomes(noisy, clear, targets, labels=("b", "g", "r"), models=models)
    study = ebjr.run_study(outcomes, score="margin", blend=0.0, tolerance=0.1)
    JointConfig.of_study(*entries.values(), study=study).save(tmp_path / "joint.toml")
    return JointConfig.read(tmp_path / "joint.toml"), outcomes


def test_the_split_and_the_margin_of_a_calibration_are_its_own(evaluated):
    config, outcomes = evaluated
    assert config.study(outcomes, fraction=0.5, seed=0).point.margin == 0.75
    with pytest.raises(ValueError, match=r"--seed \(seed=\) must be 0, .*, not 3: remove it"):
        config.study(outcomes, seed=3)
    with pytest.raises(ValueError, match=r"--fraction \(fraction=\) must be 0.5, .*, not 0.9"):
        config.study(outcomes, fraction=0.9)
    others = outcomes.take(np.arange(150))
    assert config.study(others, fraction=0.9, seed=3).split == (0.9, 3)
    assert config.study(others).point.margin is None
    assert replace(config, threshold=0.1).study(outcomes).point.margin is None


@pytest.mark.parametrize("role", ROLES)
def test_outcomes_of_another_model_are_not_evaluated(evaluated, role):
    config, outcomes = evaluated
    assert config.study(outcomes).outcomes is outcomes
    known = outcomes.models[role]
    other = outcomes.models | {role: known | {"sha256": "5f1c" * 16}}
    with pytest.raises(
        ValueError, match=rf"another {role} \(sha256\) than joint\.toml: 5f1c.*record"
    ):
        config.study(replace(outcomes, models=other))
    prepared = replace(
        config, **{role: replace(getattr(config, role), preprocess=Preprocess(size=8))}
    )
    again = outcomes.models | {role: known | {"preprocess": {"size": 9}}}
    with pytest.raises(ValueError, match=rf"another {role} \(preprocess\) .*'size': 9.* not .*: 8"):
        prepared.study(replace(outcomes, models=again))
    moved = outcomes.models | {role: known | {"path": "elsewhere.onnx"}}
    config.study(replace(outcomes, models=moved))


def test_a_far_teacher_is_told_by_what_its_server_says(evaluated):
    config, outcomes = evaluated
    said = {"name": "far", "versions": ["7"], "inputs": [], "outputs": []}
    config = replace(config, teacher=RemoteEntry("http://here", said))
    config.study(outcomes)  # recorded beside the student, asked over a link

    def at(url, metadata):
        far = {"teacher": {"url": url, "metadata": metadata}}
        return config.study(replace(outcomes, models=outcomes.models | far))

    at("http://elsewhere", dict(said))
    with pytest.raises(ValueError, match=r"another teacher \(metadata\) .*\['8'\].* not .*\['7'\]"):
        at("http://here", said | {"versions": ["8"]})


@pytest.mark.parametrize("models", [True, False])
@pytest.mark.parametrize(
    ("classes", "labels", "sentence"),
    [
        (3, ("g", "b", "r"), "class 0 is 'g' in the outcomes and 'b' in joint.toml: record again"),
        (3, ("b", "g", "red"), "class 2 is 'red' in the outcomes and 'r' in joint.toml"),
        (4, None, "another number of classes than joint.toml: 4, not 3; record again"),
        (4, ("b", "g", "r", "x"), "another number of classes than joint.toml: 4, not 3"),
    ],
)
def test_outcomes_of_other_classes_are_not_evaluated(evaluated, models, classes, labels, sentence):
    config, outcomes = evaluated
    columns = [
        np.pad(each, ((0, 0), (0, classes - 3))) for each in (outcomes.student, outcomes.teacher)
    ]
    named = outcomes.models if models else {}
    with pytest.raises(ValueError, match=sentence):
        config.study(Outcomes(*columns, outcomes.targets, labels=labels, models=named))


def test_outcomes_that_say_less_are_compared_by_what_they_say(evaluated):
    config, outcomes = evaluated
    table = (outcomes.student, outcomes.teacher, outcomes.targets)
    for labels in (None, ("0", "1", "2"), ("b", "g", "r")):
        assert config.study(Outcomes(*table, labels=labels)).result.n == 100
    several = np.eye(3, dtype=int)[outcomes.targets]
    with pytest.raises(ValueError, match=r"another task than joint\.toml: multilabel, not class"):
        config.study(Outcomes(*table[:2], several, "multilabel"))


def test_outcomes_that_name_no_models_are_compared_by_their_flops(evaluated):
    config, outcomes = evaluated
    entries = {role: replace(getattr(config, role), cost=Cost(flops=7.0)) for role in ROLES}
    config, unnamed = replace(config, **entries), replace(outcomes, models={})
    costs = {"student_cost": Cost(flops=7.0, seconds=3.0), "teacher_cost": Cost(seconds=4.0)}
    config.study(replace(unnamed, **costs))
    with pytest.raises(
        ValueError, match=r"another teacher \(FLOPs\) than joint.toml: 8.0, not 7.0"
    ):
        config.study(replace(unnamed, teacher_cost=Cost(flops=8.0)))
    config.study(replace(outcomes, teacher_cost=Cost(flops=8.0)))  # its hash says more


def test_what_the_joules_are_survives_the_file(joint, tmp_path):
    costs = {role: Cost(flops=1.0, joules=2.0, joules_are="measured") for role in ROLES}
    entries = {
        role: ModelEntry.of_file(tmp_path / f"{role}.onnx", cost=costs[role]) for role in ROLES
    }
    JointConfig(**entries, score="energy", threshold=1.0).save(tmp_path / "joint.toml")
    config = JointConfig.read(tmp_path / "joint.toml")
    assert {role: getattr(config, role).cost for role in ROLES} == costs


def test_a_changed_model_file_is_refused(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    write_linear(tmp_path / "teacher.onnx", np.eye(3))
    with pytest.raises(ebjr.ModelError, match=r"teacher.onnx has changed since the threshold"):
        ebjr.load_joint(tmp_path / "joint.toml")


def test_a_missing_model_file_is_named(joint, tmp_path):
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    (tmp_path / "student.onnx").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"joint.toml names the missing model file .*student.onnx"
    ):
        ebjr.load_joint(tmp_path / "joint.toml")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("blend =", "blnd =", "router has an unknown key 'blnd'; did you mean 'blend'"),
        ("name =", "nickname =", "the file has an unknown key 'nickname'; did you mean 'name'"),
        ("threshold = 0.5", "", "router lacks threshold"),
        ("threshold = 0.5", "threshold = nan", "threshold must be a number above -inf"),
        ("threshold = 0.5", 'threshold = "high"', "number above -inf, not 'high'"),
        ("softmax(temperature=2.0)", "magic", "there is no score named 'magic'"),
        ("blend = 0.25", "blend = -1", "blend must be a finite weight"),
        ('task = "classification"', 'task = "chess"', "task must be one of classification"),
        ("[router]", "[router", "is not a TOML file"),
        ("[router]", '[router]\nskip = "x"', "skip must be a number above -inf, not 'x'"),
        ('name = "joint"', "name = 3", "name must be a text of at least one letter, not 3"),
        ('name = "joint"', 'name = ""', "name must be a text of at least one letter, not ''"),
        (
            'name = "joint"',
            'name = "a"\nlabels = "cat"',
            "labels must be a list of names, not 'cat'",
        ),
        ('name = "joint"', 'name = "a"\ncolumns = 3', "columns must be a list of names, not 3"),
        (
            'name = "joint"',
            'name = "a"\nclasses = 3',
            "classes go with task 'specialized', not with",
        ),
        ("[student]\n", "[student]\ncolour = 1\n", "student has an unknown key 'colour'"),
        ("size = ", "sise = ", "sise"),
    ],
)
def test_a_bad_file_is_one_sentence(joint, tmp_path, old, new, sentence):
    file = tmp_path / "joint.toml"
    ebjr.save_joint(file, joint)
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=r"joint\.toml") as caught:
        JointConfig.read(file)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_does_not_hide_a_key(joint, tmp_path):
    file = tmp_path / "joint.toml"
    ebjr.save_joint(file, joint)
    text = file.read_text()
    before = JointConfig.read(file)
    file.write_text(text, encoding="utf-8-sig")
    assert JointConfig.read(file) == before
    file.write_text(text, encoding="utf-16")
    with pytest.raises(ValueError, match=r"joint\.toml is not UTF-8 text: save it in that"):
        JointConfig.read(file)


def test_no_file_says_what_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="`ebjr calibrate` writes one"):
        ebjr.load_joint(tmp_path / "joint.toml")


def test_a_lambda_cannot_be_written_down(tmp_path):
    joint = ebjr.JointClassifier(lambda x: x, lambda x: x, Router("energy", 1.0))
    with pytest.raises(
        TypeError,
        match=r"but <lambda> has none: define it in a file.*load_model\('models\.py:name'\)",
    ):
        ebjr.save_joint(tmp_path / "joint.toml", joint)
    assert not list(tmp_path.iterdir())


def test_a_function_with_the_name_of_a_score_is_not_written_down_as_that_score(joint, tmp_path):
    joint.router.score = ebjr.Score("margin", lambda output: output[:, 0])
    with pytest.raises(ValueError, match="but margin has no registered name"):
        ebjr.save_joint(tmp_path / "joint.toml", joint)
    outer = ebjr.JointClassifier(joint, joint.teacher, Router("margin", 0.5))
    with pytest.raises(TypeError, match="but margin has no registered name"):
        ebjr.save_joint(tmp_path / "joint.toml", outer)


def test_a_score_without_a_name_cannot_be_written_down(joint, tmp_path):
    joint.router = Router(lambda logits: logits[:, 0], 1.0)
    with pytest.raises(ValueError, match=r"joint.toml stores a score by name|no score named"):
        ebjr.save_joint(tmp_path / "joint.toml", joint)
    assert not (tmp_path / "joint.toml").exists()


def test_reading_the_file_does_not_import_what_only_a_study_or_a_server_needs(joint, tmp_path):
    """In a fresh process, whose package is left bare: its public names import all of it."""
    ebjr.save_joint(tmp_path / "joint.toml", joint)
    script = """
import sys, types
package = types.ModuleType("ebjr")
package.__path__ = [sys.argv[1]]
sys.modules["ebjr"] = package
from ebjr.joint_file import load_joint
load_joint(sys.argv[2])
heavy = ("ebjr.evaluation", "ebjr.monitor", "ebjr.link.late", "ebjr.study", "scipy.stats", "torch")
print([name for name in heavy if name in sys.modules])
"""
    arguments = [sys.executable, "-c", script, str(Path(ebjr.__file__).parent), "joint.toml"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"
