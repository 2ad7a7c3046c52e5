"""Ray Data: the local joint model's answers, every row once, whatever dies on the way."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ebjr import JointConfig, load_joint
from ebjr.backends.entry import JointEntry, ModelEntry
from ebjr.data.examples import Data
from ebjr.data.open import open_data
from ebjr.errors import ModelError
from ebjr.predict import predict as predict_here

pytest.importorskip("ray", reason="the extra `scale` is not installed")

from cluster import inputs, write_joint, write_stages
from pages import check_output, printed_by, shown
from tiny import write_coco, write_detectors, write_images, write_pair

from ebjr.scale import predict
from ebjr.scale.models import check_teacher, checked_config, thread_option
from ebjr.scale.ray_data import (
    _dataset,
    _lines,
    _objects,
    _share,
    _stacked,
    _Student,
    _Teacher,
    predict_file,
)

pytestmark = pytest.mark.ray
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
LIGHT = {"num_cpus": 0.5}


@pytest.fixture(scope="module")
def joint(tmp_path_factory) -> Path:
    return write_joint(tmp_path_factory.mktemp("data"))


def test_several_actors_answer_as_the_local_model(nodes, joint):
    data = inputs(2_500)
    stage = {"num_cpus": 1, "concurrency": 2}  # all CPUs that there are
    answers = predict(data, joint, student=stage, teacher=stage, batch_size=256, threads=1)
    found = answers.to_pandas().sort_values("row")
    local = load_joint(joint)(data)
    assert found["row"].tolist() == list(range(len(data)))
    assert found["prediction"].tolist() == local.prediction.tolist()
    assert found["deferred"].tolist() == local.deferred.tolist()
    np.testing.assert_allclose(found["score"], local.score, rtol=1e-5, atol=1e-6)
    assert found["stage"].tolist() == local.stage.tolist()
    assert not found["degraded"].any()
    assert 0.2 < local.deferred.mean() < 0.5


def test_three_stages_answer_as_the_local_model(nodes, tmp_path):
    stages = write_stages(tmp_path)
    answers = predict(inputs(600), stages, student=LIGHT, teacher=LIGHT, threads=1)
    found = answers.to_pandas().sort_values("row")
    local = load_joint(stages)(inputs(600))
    assert found["stage"].tolist() == local.stage.tolist()
    assert found["prediction"].tolist() == local.prediction.tolist()
    assert set(local.stage.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("cpus", [0.0, 1.0, 2.0, 64.0])
def test_both_stages_fit_on_any_machine(cpus):
    assert 2 * _share(cpus) == min(2.0, cpus)


def test_a_killed_node_loses_no_row(nodes, tmp_path):
    slow = write_joint(tmp_path, layers=24)
    first, second = nodes.add(teacher=1), nodes.add(teacher=1)
    data = inputs(2_000)
    far = {"num_cpus": 0, "resources": {"teacher": 1}, "concurrency": 2}
    answers = predict(
        data, slow, student=LIGHT, teacher=far, batch_size=64, teacher_batch=4, threads=1
    )
    found: list[int] = []
    deferred = 0
    for batch in answers.iter_batches(batch_size=None, batch_format="numpy"):
        if not found:
            nodes.kill(first)
        found += batch["row"].tolist()
        deferred += int(batch["deferred"].sum())
    nodes.kill(second)
    assert sorted(found) == list(range(len(data)))
    assert deferred == load_joint(slow)(data).deferred.sum()


def test_ray_finishes_what_one_machine_began_and_asks_nothing_again(nodes, joint, tmp_path):
    np.savez(tmp_path / "data.npz", inputs=inputs(400))
    data, local = open_data(tmp_path / "data.npz"), load_joint(joint)
    whole, again = tmp_path / "whole.jsonl", tmp_path / "again.jsonl"
    predict_here(local, data, whole, labels=("a", "b", "c"))

    def stop(_what: str, done: int, _total: int | None) -> None:
        if done >= 192:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_here(local, data, again, labels=("a", "b", "c"), tell=stop)
    done = predict_file(joint, data, again, student=LIGHT, teacher=LIGHT)
    assert (done.examples, done.resumed) == (400, 192)
    ours, theirs = (map(json.loads, path.read_text().splitlines()) for path in (again, whole))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert mine == other
    assert not (tmp_path / "again.jsonl.part").exists()


def stages(config: JointConfig, data: Data, most: int) -> tuple[dict[str, np.ndarray], list[int]]:
    """Both stages by hand: the answers, and the rows of each batch that the teacher got."""
    found, rows = data.take(range(len(data)))
    column = found.inputs if hasattr(found.inputs, "shape") else _objects(found.inputs)
    student, teacher = _Student(config, 1), _Teacher(config, 1, most, "student")
    batches: list[int] = []
    model = teacher.joint.teacher

    def counting(batch: Any) -> Any:
        batches.append(len(batch))
        return model(batch)

    teacher.joint.teacher = counting
    parts = [
        student({"row": part, "name": np.array(found.names)[part], "inputs": column[part]})
        for part in np.array_split(rows, -(-len(rows) // 32))
    ]
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return teacher(joined), batches


def test_teacher_batches_are_at_least_four_times_as_large(joint, tmp_path):
    np.savez(tmp_path / "data.npz", inputs=inputs(1280))
    quantiles = JointConfig.read(joint).calibration["score_quantiles"]
    config = replace(JointConfig.read(joint), threshold=quantiles[20])
    answers, batches = stages(config, open_data(tmp_path / "data.npz"), 32)
    deferred = answers["deferred"]
    alone = np.mean([part.sum() for part in np.split(deferred, 40)])
    assert sum(batches) == deferred.sum()
    assert max(batches) <= 32
    assert np.mean(batches) >= 4 * alone


def test_detectors_answer_in_two_stages_as_one_model(tmp_path):
    layout = {"layout": "detr", "classes": 3}
    entries = [ModelEntry.of_file(path, options=layout) for path in write_detectors(tmp_path)]
    config = JointConfig(*entries, score="max_confidence", threshold=0.6, task="detection")
    data = open_data(write_coco(tmp_path, 40))
    middle = np.median(config.load()(data.take(range(40))[0].inputs).score)
    config = replace(config, threshold=float(middle))
    answers, _ = stages(config, data, 8)
    model = config.load()
    local = model(data.take(range(40))[0].inputs)
    lines = _lines(answers, ("student", "teacher"))
    assert [line["deferred"] for line in lines] == local.deferred.tolist()
    assert 0 < local.deferred.mean() < 1
    said = model.kind.plain(local.prediction, None)
    assert [line["prediction"] for line in lines] == [row["prediction"] for row in said]


def test_python_code_is_refused_on_ray_in_any_stage(tmp_path):
    inner = JointConfig.read(write_joint(tmp_path))
    (tmp_path / "models.py").write_text("def model(x):\n    return x[:, :3]\n")
    code = ModelEntry.of_file(tmp_path / "models.py:model")
    student = JointEntry(code, inner.teacher, {"score": "softmax", "threshold": 0.4})
    JointConfig(student, inner.teacher, "softmax", 0.5).save(tmp_path / "staged.toml")
    with pytest.raises(ModelError, match=r"models\.py:model is Python code or a pickle"):
        checked_config(tmp_path / "staged.toml")


@pytest.mark.parametrize("policy", ["right", "away"])
@pytest.mark.filterwarnings("ignore:the student answers instead")
def test_a_joint_model_as_student_says_which_of_three_models_answered(tmp_path, policy):
    config = checked_config(write_stages(tmp_path))
    assert thread_option(config.student, 3) == {"threads": 3}
    np.savez(tmp_path / "data.npz", inputs=inputs(300))
    first, second = _Student(config, 1), _Teacher(config, 1, 32, "student")
    local = config.load()
    if policy == "away":
        second.joint.teacher = local.teacher = lambda x: np.full((len(x), 3), np.nan)
    column = inputs(300)
    rows = np.arange(300)
    found = second(first({"row": rows, "name": rows.astype(str), "inputs": column}))
    expected = local(column)
    assert set(expected.stage.tolist()) == ({0, 1, 2} if policy == "right" else {0, 1})
    for name in ("prediction", "deferred", "degraded", "stage"):
        np.testing.assert_array_equal(found[name], getattr(expected, name))
    lines = _lines(found, ("student", "model-2", "teacher"))
    assert [line["stage"] for line in lines] == expected.stage.tolist()
    assert {line["answered_by"] for line in lines} >= {"student", "model-2"}


def test_rows_of_several_texts_reach_both_models_as_on_one_machine(nodes, tmp_path):
    rows = [["a", "good one"], ["b", "bad one"]] * 40
    with (tmp_path / "t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["title", "body"], *rows])
    data = open_data(tmp_path / "t.csv", input_columns="title,body")
    batches = _dataset(data, 0).iter_batches(batch_size=50, batch_format="numpy")
    found = [_stacked(list(batch["inputs"])) for batch in batches]
    assert all((batch.dtype, batch.ndim) == (object, 2) for batch in found)
    assert np.concatenate(found).tolist() == rows


def test_a_teacher_that_continues_from_features_is_refused(tmp_path):
    def head(features):
        return features

    check_teacher(head)
    head.continues = True
    with pytest.raises(ModelError, match="head continues from the student's features"):
        check_teacher(head)


def test_the_command_line_writes_what_it_writes_without_ray(nodes, run, tmp_path):
    student, teacher = write_pair(tmp_path)
    data = write_images(tmp_path / "images", 60)
    models = ("--student", student, "--teacher", teacher)
    assert run("record", *models, "--data", data, "-o", "outcomes.npz")[0] == 0
    config = tmp_path / "joint.toml"
    goal = ("--goal", "budget", "--deferral-rate", 0.4)
    assert run("calibrate", "outcomes.npz", *goal, "-o", config)[0] == 0
    (data / "red" / "broken.png").write_bytes(b"no image")
    files = [tmp_path / name for name in ("local.jsonl", "ray.jsonl")]
    common = ("predict", config, "--data", data, "--json")
    told = [run(*common, "-o", files[0]), run(*common, "-o", files[1], "--ray")]
    assert [code for code, _, _ in told] == [0, 0], told
    assert files[1].read_text() == files[0].read_text()
    figures = [json.loads(out) for _, out, _ in told]
    assert figures[0]["unreadable"] == figures[1]["unreadable"] == 1
    assert figures[0]["deferred"] == figures[1]["deferred"] > 0


def test_a_score_of_ones_own_is_known_to_the_actors(nodes, run, tmp_path):
    student, teacher = write_pair(tmp_path)
    data = write_images(tmp_path / "images", 60)
    own = tmp_path / "own.py"
    own.write_text(
        "import ebjr\n@ebjr.register_score\ndef top_of_own(logits):\n    return logits.max(-1)\n"
    )
    models = ("--student", student, "--teacher", teacher)
    assert run("record", *models, "--data", data, "-o", "outcomes.npz")[0] == 0
    config = tmp_path / "joint.toml"
    how = ("--import", own, "--score", "top_of_own", "--blend", 0)
    goal = ("--goal", "budget", "--deferral-rate", 0.4)
    assert run("calibrate", "outcomes.npz", *goal, *how, "-o", config)[0] == 0
    common = ("predict", config, "--import", own, "--data", data, "--json")
    files = [tmp_path / name for name in ("local.jsonl", "ray.jsonl")]
    assert run(*common, "-o", files[0])[0] == run(*common, "-o", files[1], "--ray")[0] == 0
    assert files[1].read_text() == files[0].read_text()


def test_the_code_of_the_page_runs(nodes, joint, tmp_path, monkeypatch):
    code, serving = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    compile(serving, "scale.md", "exec")  # its GPUs are not here
    shutil.copytree(joint.parent, tmp_path, dirs_exist_ok=True)
    np.savez(tmp_path / "data.npz", inputs=inputs(300))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    printed = printed_by(lambda: exec(compile(code, "scale.md", "exec"), names))
    check_output(printed, shown(PAGE.name, "python")[0][1])
    table = names["table"].sort_values("row")
    assert table["row"].tolist() == list(range(300))
    assert table["prediction"].tolist() == load_joint(joint)(inputs(300)).prediction.tolist()
