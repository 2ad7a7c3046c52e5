from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer.main
from rich.console import Console
from tiny import CLASSES, write_images, write_linear, write_pair

import ebjr
from ebjr import Outcomes
from ebjr.cli import app

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture
def recorded(run, tmp_path) -> Path:
    """A folder with the tiny pair, its images and what it said."""
    write_pair(tmp_path)
    write_images(tmp_path / "images")
    words = "record --student student.onnx --teacher teacher.onnx --data images -o outcomes.npz"
    code, _, error = run(*words.split(), "--student-flops", "100", "--teacher-flops", "1000")
    assert code == 0, error
    return tmp_path


def refused(result: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    code, printed, error = result
    assert code == 2, (code, printed, error)
    assert "Traceback" not in error
    lines = [line for line in error.splitlines() if line.startswith("ebjr: ")]
    assert len(lines) == 1, error
    return lines[0]


def test_data_without_labels_are_compared_with_the_teacher(run, recorded):
    np.savez("bare.npz", inputs=np.random.default_rng(0).random((200, 3, 8, 8), np.float32))
    words = "record --student student.onnx --teacher teacher.onnx --data bare.npz -o bare-o.npz"
    code, _, error = run(*words.split(), "--student-flops", "1", "--teacher-flops", "9")
    assert code == 0, error
    assert "NOTE: bare.npz has no labels: the teacher's own answers are taken for right" in error
    table = Outcomes.load("bare-o.npz")
    assert not table.labeled
    code, printed, error = run("calibrate", "bare-o.npz", "--tolerance", 0.4, "--delta", 0.1)
    assert code == 0, error
    assert "every accuracy is agreement with it" in printed
    assert "the teacher's own answers being taken for right" in printed


def test_a_table_of_paths_is_recorded_and_answered_as_csv(run, recorded):
    files = sorted(Path("images").rglob("*.png"))
    rows = [json.dumps({"photo": str(file), "label": file.parent.name}) for file in files]
    Path("photos.jsonl").write_text("\n".join(rows))
    Path("names.txt").write_text("\n".join(CLASSES))
    words = "--student student.onnx --teacher teacher.onnx --classes names.txt -o o.npz"
    code, _, error = run("record", *words.split(), "--data", "photos.jsonl")
    assert code == 0, error
    assert Outcomes.load("o.npz").targets.tolist() == Outcomes.load("outcomes.npz").targets.tolist()
    assert run("calibrate", "o.npz", "--tolerance", 0.5, "-o", "joint.toml")[0] == 0
    code, _, error = run("predict", "joint.toml", "--data", "photos.jsonl", "-o", "answers.csv")
    assert code == 0, error
    lines = Path("answers.csv").read_text().splitlines()
    assert lines[0] == "name,prediction,label,score,deferred,degraded,stage,answered_by"
    assert len(lines) == 1 + len(files)
    answer = run("predict", "joint.toml", "--data", "photos.jsonl", "-o", "answers.json")
    assert "the output must end in" in refused(answer)
    wrong = ("--data", "photos.jsonl", "--input-columns", "picture")
    said = refused(run("record", *words.split(), *wrong))
    assert "must have one column named 'picture', but has none among photo, label" in said


def test_columns_in_another_order_are_read_by_name(run, recorded):
    Path("models.py").write_text(
        "def student(rows):\n    return rows[:, :2] - [0.0, 0.2]\n"
        "def teacher(rows):\n    return 9 * rows[:, :2]\n"
    )
    values = np.random.default_rng(0).random((60, 3)).round(3)
    rows = [dict(zip("abc", row, strict=True)) for row in values.tolist()]
    lines = [",".join(map(str, (*row.values(), int(row["b"] > row["a"])))) for row in rows]
    Path("t.csv").write_text("\n".join(["a,b,c,label", *lines]))
    turned = [",".join(map(str, (row["c"], 7, row["b"], row["a"]))) for row in rows]
    Path("turned.csv").write_text("\n".join(["c,more,b,a", *turned]))
    words = "record --student models.py:student --teacher models.py:teacher --data t.csv -o t.npz"
    assert run(*words.split())[0] == 0
    assert Outcomes.load("t.npz").columns == ("a", "b", "c")
    assert run("calibrate", "t.npz", "-o", "t.toml")[0] == 0
    said = []
    for name in ("t.csv", "turned.csv"):
        code, _, error = run("predict", "t.toml", "--data", name, "-o", "said.jsonl", "--trust")
        assert code == 0, error
        said.append([json.loads(line) for line in Path("said.jsonl").read_text().splitlines()])
        Path("said.jsonl").unlink()
    assert [row["score"] for row in said[0]] == [row["score"] for row in said[1]]
    ask = ("predict", "t.toml", "--trust", "-o", "said.jsonl", "--data")
    Path("less.csv").write_text("a,c\n1,2\n")
    assert "must have one column named 'b'" in refused(run(*ask, "less.csv"))
    other = refused(run(*ask, "turned.csv", "--input-columns", "b,a,c"))
    assert "the models read the columns a, b, c in this order, not b, a, c: give these" in other


def test_raw_outputs_go_straight_into_calibrate_and_evaluate(run, recorded):
    with np.load("outcomes.npz") as arrays:
        raw = {name: arrays[name] for name in ("student", "teacher", "targets")}
    names = {"targets": np.array(CLASSES)[raw["targets"]], "labels": np.array(CLASSES)}
    np.savez("raw.npz", **{**raw, **names})
    figures = [
        json.loads(run("evaluate", file, "--json")[1]) for file in ("raw.npz", "outcomes.npz")
    ]
    kept = ("quality", "student_quality", "teacher_quality", "deferral_rate", "threshold")
    own, recorded_ones = ([each["held_out"][name] for name in kept] for each in figures)
    assert own == recorded_ones
    wanted = ("calibrate", "raw.npz", "--tolerance", 0.5, "-o", "joint.toml")
    assert "does not name the file of its student: give it with --student" in refused(run(*wanted))
    code, _, error = run(*wanted, "--student", "student.onnx", "--teacher", "teacher.onnx")
    assert code == 0, error
    assert ebjr.load_joint("joint.toml").router.threshold > 0
    chances = np.exp(raw["student"]) / np.exp(raw["student"]).sum(axis=1, keepdims=True)
    np.savez("raw.npz", **{**raw, "student": chances})
    assert "WARNING: the student's raw output is probabilities" in run("calibrate", "raw.npz")[2]
    said = refused(run("calibrate", "outcomes.npz", "--task", "regression"))
    assert "its task is classification, not regression: remove --task (task=)" in said


def test_a_guarantee_is_written_down_and_watched(run, recorded):
    asked = ("--tolerance", 0.5, "--delta", 0.1)
    code, printed, error = run("calibrate", "outcomes.npz", *asked, "-o", "joint.toml", "--json")
    assert code == 0, error
    certified = json.loads(printed)["chosen_on"]["certified"]
    assert (certified["promise"], certified["tolerance"]) == ("excess", 0.5)
    assert ebjr.JointConfig.read("joint.toml").certificate.as_dict() == certified

    text = Path("joint.toml").read_text()
    chosen = ebjr.JointConfig.read("joint.toml").threshold
    Path("joint.toml").write_text(text.replace(f"threshold = {chosen}", "threshold = 0.0", 1))
    code, _, error = run("predict", "joint.toml", "--data", "images", "-o", "answers.jsonl")
    assert code == 0
    assert (
        "WARNING: joint.toml has changed since it was calibrated (threshold is 0.0 and was" in error
    )


def test_a_guarantee_out_of_reach_names_one_within_it(run, recorded):
    said = refused(run("calibrate", "outcomes.npz", "--tolerance", "0.001", "--delta", "0.01"))
    assert "the smallest tolerance that can be certified is" in said
    said = refused(run("calibrate", "outcomes.npz", "--delta", "0.1"))
    assert "match-teacher needs a tolerance, like 0.01" in said


def test_four_commands_make_two_models_one(run, recorded):
    outcomes = Outcomes.load("outcomes.npz")
    assert len(outcomes) == 120
    assert outcomes.labels == CLASSES
    assert outcomes.student_quality.mean() < outcomes.teacher_quality.mean()

    code, printed, _ = run("calibrate", "outcomes.npz", "--json", "-o", "joint.toml")
    assert code == 0
    calibrated = json.loads(printed)
    assert calibrated["held_out"]["n"] == 60

    code, printed, _ = run("evaluate", "outcomes.npz", "--joint", "joint.toml", "--json")
    assert code == 0
    assert json.loads(printed)["held_out"] == calibrated["held_out"]
    evaluated = run("evaluate", "outcomes.npz", "--joint", "joint.toml", "--details")[1]
    assert "Margin: 0.75 standard errors" in evaluated

    code, _, _ = run("predict", "joint.toml", "--data", "images", "-o", "answers.jsonl")
    assert code == 0
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    joint = ebjr.load_joint("joint.toml")
    _, deferred = joint.router(outcomes.student)
    assert [row["deferred"] for row in answers] == list(deferred)
    assert all(row["label"] == CLASSES[row["prediction"]] for row in answers)


def test_every_command_prints_a_table_and_json(run, recorded):
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    pair = "--student student.onnx --teacher teacher.onnx"
    commands = {
        "calibrate": ("calibrate", "outcomes.npz"),
        "evaluate": ("evaluate", "outcomes.npz"),
        "predict": ("predict", "joint.toml", "--data", "images", "-o", "a.jsonl"),
        "profile": ("profile", "student.onnx", "--seconds", "0.05"),
        "record": tuple(f"record {pair} --data images -o b.npz".split()),
    }
    for words in commands.values():
        code, table, _ = run(*words)
        assert code == 0
        assert table.strip()
        code, printed, _ = run(*words, "--json")
        assert code == 0
        json.loads(printed)


def test_the_table_names_both_models_every_score_and_the_break_even(run, recorded):
    _, table, _ = run("calibrate", "outcomes.npz", "--details")
    for word in ("student", "teacher", "joint:", "energy (paper, eq. 3)", "softmax", "random"):
        assert word in table
    assert "the teacher alone is cheaper above a deferral rate of 90.0%" in table


def test_a_study_fits_one_screen(run, recorded, monkeypatch):
    monkeypatch.setattr("ebjr.cli.out", Console(width=100))
    for more, most in ((), 17), (("--details",), 46):
        words = ("calibrate", "outcomes.npz", "--tolerance", "0.3", "--delta", "0.1", *more)
        _, printed, _ = run(*words)
        lines = printed.splitlines()
        assert len(lines) <= most
        assert max(map(len, lines)) <= 100
        assert "…" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--tolerance", "0.5%"), "'0.5%' is not a number: write 0.005"),
        (("--delta", "10%"), "'10%' is not a number: write 0.1"),
        (("--fraction", "half"), "'half' is not a number: it must be like 0.005 or 2e6"),
    ],
)
def test_a_percentage_where_a_number_belongs_is_refused_with_the_number(run, words, said):
    code, *texts = run("calibrate", "outcomes.npz", *words)
    assert code == 2
    assert said in "".join(map(str, texts))


def test_ten_lines_say_it_and_details_the_rest(run, recorded):
    _, few, _ = run("calibrate", "outcomes.npz", "--tolerance", "0.3")
    assert len(few.splitlines()) <= 10
    assert few.startswith("Goal ")
    assert "held-out examples: at most 30 points under the teacher. Accuracy" in few
    _, all_of_it, _ = run("calibrate", "outcomes.npz", "--tolerance", "0.3", "--details")
    assert all_of_it.splitlines()[:2] == few.splitlines()[:2]
    assert "standard errors" in all_of_it
    report = ("--report", "r.html", "-o", "joint.toml")
    found = json.loads(run("calibrate", "outcomes.npz", "--tolerance", "0.3", "--json", *report)[1])
    assert found["standing"] in ("met", "missed", "not decided")
    assert few.replace("\n", " ").startswith(found["verdict"])
    assert html.escape(found["verdict"]) in Path("r.html").read_text()
    assert ebjr.JointConfig.read("joint.toml").calibration["verdict"] == found["verdict"]


def test_the_screen_shows_what_the_json_says(run, recorded):
    _, printed, _ = run("calibrate", "outcomes.npz", "--json")
    found = json.loads(printed)
    _, screen, _ = run("calibrate", "outcomes.npz", "--details")
    accuracy = found["intervals"]["accuracy"]
    assert f"accuracy {accuracy['low']:.2%} to {accuracy['high']:.2%}" in screen
    teacher = found["comparisons"][0]
    assert teacher["names"] == ["the joint model", "the teacher"]
    assert f"{teacher['p_exact']:.2g}" in row_of(screen, "the teacher")
    assert f"{found['best_accuracy']['quality']:.2%}" in row_of(screen, "for the best accuracy")
    for entry in found["ranking"]:
        gain = entry["calibration_gain"]
        words = (
            f"{100 * gain['estimate']:.2f} ({100 * gain['low']:.2f} to {100 * gain['high']:.2f})"
        )
        last = screen[screen.index("AUROC") :]
        assert words in row_of(last, entry["score"])
        assert f"{entry['auroc']:.4f}" in row_of(last, entry["score"])
        assert f"{entry['oracle_share']:.1%}" in row_of(last, entry["score"])
    assert found["promise"] is None
    assert "Promise" not in screen


def test_a_guarantee_is_printed_with_its_bound_and_price(run, recorded):
    words = ("calibrate", "outcomes.npz", "--tolerance", "0.3", "--delta", "0.1")
    _, printed, _ = run(*words, "--json")
    promise = json.loads(printed)["promise"]
    _, screen, _ = run(*words, "--details")
    screen = " ".join(screen.split())
    assert f"Promise: {promise['statement']}" in screen
    assert f"would have passed a tolerance of {promise['bound']:.4g}" in screen
    assert f"({100 * promise['price']:+.1f} points)" in screen


def row_of(screen: str, start: str) -> str:
    """The line of a table that starts with some words."""
    [found] = [line for line in screen.splitlines() if line.strip().split("  ")[0] == start]
    return found


def test_evaluate_compares_with_other_outcomes_and_predictions(run, recorded):
    outcomes = Outcomes.load("outcomes.npz")
    _, rows = outcomes.split_rows(0.5, 0)
    swapped = Outcomes(outcomes.teacher, outcomes.student, outcomes.targets)
    swapped.save("swapped.npz")
    wrong = (outcomes.targets + 1) % 3
    np.savez("wrong.npz", predictions=wrong)
    np.savez("part.npz", predictions=wrong[rows], targets=outcomes.targets[rows])
    words = "evaluate outcomes.npz --compare swapped.npz --compare wrong.npz --compare part.npz"
    code, printed, _ = run(*words.split(), "--json")
    assert code == 0
    found = {test["names"][1]: test for test in json.loads(printed)["comparisons"]}
    for role, other in (("teacher", "student"), ("student", "teacher")):
        figures = dict(found[f"the {role}"]) | {"names": None, "better": None, "verdict": None}
        same = dict(found[f"the {other} of swapped.npz"])
        assert same | {"names": None, "better": None, "verdict": None} == figures
    right = round(json.loads(printed)["held_out"]["quality"] * len(rows))
    for name in ("wrong.npz", "part.npz"):
        assert (found[name]["first_only"], found[name]["second_only"]) == (right, 0)
        assert found[name]["odds_ratio"] == "inf"
        assert found[name]["better"] == "the joint model"
    _, screen, _ = run(*words.split())
    assert row_of(screen, "wrong.npz").endswith("better")
    assert str(right) in row_of(screen, "wrong.npz")


def test_flags_mirror_the_arguments(run, recorded):
    words = "calibrate outcomes.npz --goal budget --deferral-rate 0.2 --score margin --blend 0"
    code, printed, _ = run(*words.split(), "--json")
    assert code == 0
    found = json.loads(printed)["chosen_on"]
    assert found["deferral_rate"] <= 0.2
    assert (found["score"], found["blend"]) == ("margin", 0.0)


def test_joules_are_recorded_for_both_models_alike_and_can_be_a_budget(run, recorded):
    costs = Outcomes.load("outcomes.npz").student_cost, Outcomes.load("outcomes.npz").teacher_cost
    assert costs[0].joules_are == costs[1].joules_are
    assert costs[0].joules_are in ("measured", "estimated")
    assert min(cost.joules for cost in costs) > 0
    budget = costs[0].joules + 0.5 * costs[1].joules
    words = f"calibrate outcomes.npz --goal budget --joules {budget} -o joint.toml"
    code, printed, _ = run(*words.split(), "--json")
    assert code == 0
    chosen = json.loads(printed)["chosen_on"]
    assert chosen["cost"]["joules"] <= budget * (1 + 1e-9)
    assert chosen["cost"]["joules_are"] == costs[0].joules_are
    config = ebjr.JointConfig.read("joint.toml")
    assert (config.student.cost, config.teacher.cost) == costs
    code, printed, _ = run("evaluate", "outcomes.npz", "--joint", "joint.toml", "--json")
    assert json.loads(printed)["goal"]["joules"] == budget
    saved = json.loads(printed)["intervals"]["joules_saved"]
    code, printed, _ = run("evaluate", "outcomes.npz", "--joint", "joint.toml", "--details")
    words = f"{saved['low']:.1%} to {saved['high']:.1%} of the teacher's joules saved"
    assert words in " ".join(printed.split())


def test_a_profile_says_whether_its_joules_are_measured_or_estimated(run, recorded):
    _, table, _ = run("profile", "student.onnx", "--seconds", "0.05")
    _, printed, _ = run("profile", "student.onnx", "--seconds", "0.05", "--json")
    powers = json.loads(printed)["powers"]
    assert [power["batch_size"] for power in powers] == [1, 64]
    for power in powers:
        assert power["how"] in ("measured", "estimated")
        row = f"an example in a batch of {power['batch_size']} +[0-9.e-]+ mJ, {power['how']}"
        assert re.search(row, table)
        assert f"joules are {power['how']}: {power['source']}" in table


def test_predict_takes_a_threshold_or_a_named_operating_point(run, recorded):
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    words = ("predict", "joint.toml", "--data", "images", "-o", "a.jsonl", "--json")
    _, all_teacher, _ = run(*words, "--threshold", "inf")
    assert json.loads(all_teacher)["deferral_rate"] == 1.0
    _, named, _ = run(*words, "--operating-point", "match-teacher")
    assert json.loads(named)["deferral_rate"] < 1.0
    sentence = refused(run(*words, "--operating-point", "best"))
    assert "there is no operating point 'best'; the file has match-teacher" in sentence


def test_the_report_is_one_file(run, recorded):
    code, _, _ = run("evaluate", "outcomes.npz", "--report", "report.html")
    assert code == 0
    assert Path("report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_report_shows_images_of_the_data_that_were_recorded_and_of_no_others(run, recorded):
    words = ("evaluate", "outcomes.npz", "--report", "report.html", "--data")
    code, _, error = run(*words, "images")
    assert code == 0, error
    text = Path("report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL).group(1))
    assert all(sample["image"] for sample in data["samples"])
    assert {sample["there"]["label"] for sample in data["samples"]} <= set(CLASSES)
    Path("report.html").unlink()
    write_images(recorded / "more", 123)
    assert "more has 123 images and the outcomes have 120" in refused(run(*words, "more"))
    moved = sorted((recorded / "images" / "red").iterdir())[0]
    moved.rename(recorded / "images" / "blue" / moved.name)
    assert "the labels in images differ from the outcomes' labels" in refused(run(*words, "images"))
    np.savez("rows.npz", inputs=np.zeros((120, 3, 8, 8), np.float32))
    assert "a report shows images (bytes" in refused(run(*words, "rows.npz"))
    assert not Path("report.html").exists()


def write_table(path: Path, images: Path, names: tuple[str, str, str, str]) -> None:
    """A table of two image columns and two label columns, of which the first are nonsense."""
    pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    files = sorted(images.glob("*/*.png"))
    encoded = [file.read_bytes() for file in files]
    labels = [CLASSES.index(file.parent.name) for file in files]
    columns = [[b"no image"] * len(files), encoded, [0] * len(files), labels]
    pa.parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), path)


def test_a_tables_columns_can_be_named(run, recorded):
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    write_table(Path("t.parquet"), Path("images"), ("image", "scan", "label", "color"))
    pair = "--student student.onnx --teacher teacher.onnx"
    columns = ("--image-column", "scan", "--label-column", "color")
    words = f"record {pair} --data t.parquet -o again.npz".split()
    assert run(*words)[0] == 2
    code, _, error = run(*words, *columns)
    assert code == 0, error
    again, before = Outcomes.load("again.npz"), Outcomes.load("outcomes.npz")
    assert np.array_equal(again.targets, before.targets)
    np.testing.assert_allclose(again.student, before.student, rtol=1e-5)
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    words = ["predict", "joint.toml", "--data", "t.parquet", "-o", "a.jsonl", "--json"]
    code, printed, _ = run(*words, *columns)
    assert code == 0
    assert json.loads(printed)["examples"] == 120
    sentence = refused(run(*words, "--image-column", "scans"))
    assert "must have one column named 'scans', but has none among image, scan, label" in sentence
    words[3] = "images"
    assert "are for tables, which images is not" in refused(run(*words, *columns))


def test_unreadable_images_are_named_counted_and_passed_over(run, recorded):
    Path("images/red/broken.png").write_bytes(b"not an image")
    words = "record --student student.onnx --teacher teacher.onnx --data images -o again.npz"
    code, _, error = run(*words.split())
    assert code == 0
    assert "1 example could not be read" in error
    assert "broken.png" in error
    assert len(Outcomes.load("again.npz")) == 120
    sentence = refused(run(*words.replace("again", "never").split(), "--strict"))
    assert "broken.png" in sentence
    assert not Path("never.npz").exists()


def test_what_makes_no_example_is_counted_in_one_note(run, recorded):
    Path("images/red/notes.heic").write_bytes(b"")
    Path("images/red/more.heic").write_bytes(b"")
    Path("images/.git").mkdir()
    record = "record --student student.onnx --teacher teacher.onnx --data images -o again.npz"
    note = "NOTE: left out of images: hidden or system folders (1), .heic files (2)"
    code, _, error = run(*record.split())
    assert (code, error.count(note)) == (0, 1)
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    code, _, error = run("predict", "joint.toml", "--data", "images", "-o", "answers.jsonl")
    assert (code, error.count(note)) == (0, 1)


def test_classes_in_the_models_order_fit_any_data(run, recorded):
    """A table's numbers and a file that begins with a byte-order mark."""
    import pyarrow
    import pyarrow.parquet

    rows = [(file.read_bytes(), file.parent.name) for file in sorted(Path("images").rglob("*.png"))]
    names = sorted({name for _, name in rows})
    labels = [names.index(name) for _, name in rows]
    table = pyarrow.table({"image": [image for image, _ in rows], "label": labels})
    about = {"info": {"features": {"label": {"names": names}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pyarrow.parquet.write_table(table, "images.parquet")
    Path("classes.txt").write_text("\ufeff" + "\r\n".join(CLASSES), encoding="utf-8")
    found = []
    for data in ("images", "images.parquet"):
        words = f"record --student student.onnx --teacher teacher.onnx --data {data}".split()
        more = ("--classes", "classes.txt", "-o", "again.npz", "--json")
        code, printed, error = run(*words, *more)
        assert code == 0, error
        found.append({key: json.loads(printed)[key] for key in ("student_quality", "examples")})
        assert Outcomes.load("again.npz").labels == CLASSES
    assert found[0] == found[1]


def test_preprocessing_is_inferred_said_and_kept(run, recorded):
    words = "record --student student.onnx --teacher teacher.onnx --data images -o again.npz"
    code, _, error = run(*words.split(), "--student-preprocess", "size=8,mean=0.5/0.5/0.5")
    assert code == 0
    assert "no --teacher-preprocess given" in error
    assert "no --student-preprocess given" not in error
    assert Outcomes.load("again.npz").models["student"]["preprocess"]["mean"] == [0.5, 0.5, 0.5]


def test_outcomes_of_ones_own_need_the_models_named(run, recorded):
    old = Outcomes.load("outcomes.npz")
    Outcomes(old.student, old.teacher, old.targets).save("own.npz")
    sentence = refused(run("calibrate", "own.npz", "-o", "own.toml"))
    assert "give it with --student" in sentence
    words = ("calibrate", "own.npz", "--student", "student.onnx", "--teacher", "teacher.onnx")
    code, printed, _ = run(*words, "-o", "own.toml")
    assert code == 0
    assert "costs are not known" in printed
    ebjr.load_joint("own.toml")


SPECIALIZED = (
    "record --student some.onnx --teacher teacher.onnx --data images -o some.npz --task specialized"
)


@pytest.fixture
def specialist(recorded) -> Path:
    """A student of green, red and "other" beside the tiny teacher."""
    own = 6 * np.array([[0.0, 1.0, 0.3], [1.0, 0.2, 0.0], [0.0, 0.1, 1.0]])
    return write_linear(recorded / "some.onnx", own)


@pytest.mark.parametrize("listed", ["1,2", "green,red", "known.txt"])
def test_four_commands_make_a_specialized_student_and_its_teacher_one(run, specialist, listed):
    Path("known.txt").write_text("green\n\nred\n")
    flops = ("--student-flops", 100, "--teacher-flops", 1000)
    code, _, error = run(*SPECIALIZED.split(), "--known-classes", listed, *flops)
    assert code == 0, error
    table = Outcomes.load("some.npz")
    assert (table.task, table.known_classes, table.labels) == ("specialized", (1, 2), CLASSES)

    words = "calibrate some.npz --score specialized_energy -o joint.toml --json"
    code, printed, error = run(*words.split())
    assert code == 0, error
    assert "known_softmax" in json.loads(printed)["scores"]
    words = ("evaluate", "some.npz", "--joint", "joint.toml", "--report", "report.html")
    code, printed, _ = run(*words, "--details")
    assert code == 0
    assert "specialized_energy (paper, eq. 17)" in printed
    assert "specialized_energy, the paper&#x27;s (eq. 17)" in Path("report.html").read_text()

    code, _, error = run("predict", "joint.toml", "--data", "images", "-o", "answers.jsonl")
    assert code == 0, error
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == set(CLASSES)
    assert all(row["label"] in ("green", "red") for row in rows if not row["deferred"])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (SPECIALIZED, "task 'specialized' needs known_classes"),
        (f"{SPECIALIZED} --known-classes 1,3", "the teacher's labels, not 3"),
        (f"{SPECIALIZED} --known-classes 0,1,2", "leave none of the teacher's 3 for 'other'"),
        (
            f"{SPECIALIZED} --known-classes mauve",
            "'mauve' is neither a class number nor a class name; known",
        ),
        (f"{SPECIALIZED} --known-classes 1", "1 known classes must return (n, 2)"),
        (
            SPECIALIZED.replace("specialized", "classification") + " --known-classes 1",
            "known_classes go with task 'specialized', not with 'classification'",
        ),
    ],
)
def test_known_classes_that_do_not_fit_are_one_sentence(run, specialist, words, sentence):
    flops = ("--student-flops", 100, "--teacher-flops", 1000)
    assert sentence in refused(run(*words.split(), *flops))
    assert not Path("some.npz").exists()


@pytest.fixture
def candidates(run, specialist) -> list[str]:
    """Outcomes of the student of two classes, and of the general one."""
    flops = ("--student-flops", 100, "--teacher-flops", 1000)
    code, _, error = run(*SPECIALIZED.split(), "--known-classes", "1,2", *flops)
    assert code == 0, error
    return ["some.npz", "outcomes.npz"]


def test_of_several_students_the_best_for_the_traffic_is_taken(run, candidates):
    words = "--traffic popular=0.8 --tolerance 0.05 -o joint.toml --report report.html --json"
    code, printed, error = run("calibrate", *candidates, *words.split())
    assert code == 0, error
    figures = json.loads(printed)
    best = figures["sweep"]["best"]
    assert set(figures["sweep"]["candidates"]) == {"some", "outcomes"}
    assert figures["sweep"]["traffic"] == {"popular": 0.8, "popular_classes": [1, 2]}
    # 40 images of each color: 80 % of 100 are popular
    assert figures["chosen_on"]["n"] + figures["held_out"]["n"] in range(98, 103)
    page = Path("report.html").read_text()
    assert "Which student" in page
    assert "The traffic decides" in page

    config = ebjr.JointConfig.read("joint.toml")
    assert config.calibration["traffic"] == {"popular": 0.8, "popular_classes": [1, 2]}
    assert Path(config.student.path).stem == {"some": "some", "outcomes": "student"}[best]
    code, printed, error = run("evaluate", f"{best}.npz", "--joint", "joint.toml", "--json")
    assert code == 0, error
    assert json.loads(printed)["held_out"] == figures["held_out"]  # drawn alike


def test_a_sweep_is_printed_with_its_shares(run, candidates):
    code, printed, error = run("calibrate", *candidates, "--traffic", "popular=0.6")
    assert code == 0, error
    assert re.search(r"student +knows +accuracy +deferred", printed)
    assert re.search(r"times cheaper by popular share +25% +50% +60% +75% +90% +100%", printed)
    assert "is best on the calibration half" in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("calibrate some.npz --traffic 0.75", "must be written like 'popular=0.75', not '0.75'"),
        ("calibrate some.npz --traffic popular=2", "must lie between 0 and 1, not 2"),
        ("calibrate some.npz --popular 1", "--popular goes with --traffic"),
        ("calibrate outcomes.npz --traffic popular=0.5", "name the popular classes with --popular"),
        ("calibrate some.npz other.npz", "examples of some and other differ"),
        ("calibrate some.npz ./some.npz", "some.npz is given twice: give each outcomes file once"),
        ("calibrate some.npz a/some.npz", "some.npz and a/some.npz are both called some: rename"),
        ("calibrate some.npz --report nowhere/r.html", "the folder nowhere does not exist"),
    ],
)
def test_traffic_and_candidates_that_make_no_sense_are_one_sentence(
    run, candidates, words, sentence
):
    table = Outcomes.load("some.npz")
    table.take(np.arange(len(table))[::-1]).save("other.npz")
    assert sentence in refused(run(*words.split()))


def test_one_class_only_is_refused(run, recorded):
    old = Outcomes.load("outcomes.npz")
    rows = np.flatnonzero(old.targets == 1)
    old.take(rows).save("green.npz")
    assert "of at least two classes" in refused(run("calibrate", "green.npz"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("calibrate missing.npz", "there is no outcomes file missing.npz"),
        ("calibrate torn.npz", "cannot read outcomes from torn.npz"),
        ("calibrate student.onnx", "cannot read outcomes from student.onnx"),
        ("calibrate outcomes.npz --goal accuracy --target 0.9999999", "no threshold reaches"),
        ("calibrate outcomes.npz --goal accuracy --target 94", "target must lie between 0 and 1"),
        ("calibrate outcomes.npz --goal best", "goal must be one of"),
        ("calibrate outcomes.npz --score magic", "there is no score named 'magic'"),
        ("calibrate outcomes.npz --blend much", "blend must be a weight or 'auto', not 'much'"),
        (
            "calibrate outcomes.npz --fraction 1.5",
            "fraction 1.5 leaves a part of 120 examples empty",
        ),
        ("calibrate outcomes.npz -o joint.toml --name a/b", "'a/b' cannot be a model's name"),
        ("calibrate outcomes.npz -o joint.toml --name a\u202eb", "cannot be a model's name"),
        ("calibrate outcomes.npz -o joint.toml --name stats", "/v2/models/stats is another addr"),
        ("calibrate outcomes.npz --unit foo", "--unit (unit=) is for chains of more than two"),
        ("calibrate outcomes.npz --most-stages 2", "--most-stages (most_stages=) is for chains"),
        ("calibrate outcomes.npz -o nowhere/joint.toml", "nowhere does not exist"),
        ("evaluate outcomes.npz --joint outcomes.npz", "outcomes.npz must be a joint.toml, as"),
        ("export outcomes.npz -o joint.onnx", "outcomes.npz must be a joint.toml, as `ebjr cali"),
        ("evaluate outcomes.npz --report nowhere/r.html", "nowhere does not exist"),
        ("evaluate outcomes.npz --compare missing.npz", "there is no file missing.npz to compare"),
        ("evaluate outcomes.npz --compare torn.npz", "cannot compare with torn.npz: the file is"),
        ("evaluate outcomes.npz --compare student.onnx", "it is not an .npz file"),
        (
            "evaluate outcomes.npz --compare short.npz",
            "it has 100 examples, not all 120",
        ),
        (
            "evaluate outcomes.npz --compare moved.npz",
            "its targets differ from the outcomes' targets",
        ),
        ("evaluate outcomes.npz --compare labels.npz", "no array named predictions; it has labels"),
        ("predict joint.toml --data images -o a.jsonl", "joint.toml does not exist"),
        ("profile missing.onnx", "missing.onnx"),
        ("profile torn.onnx", "torn.onnx"),
        ("profile student.onnx --input-shape 1,three", "must be whole numbers like 1,3,32,32"),
        ("profile student.onnx --input-shape 0,3,8,8", "of at least 1, not '0,3,8,8'"),
        ("profile student.onnx --tune --threads 1", "several numbers of threads: remove --threads"),
        (
            "record --student student.onnx --teacher four.onnx --data images -o x.npz",
            "the student has 3 and the teacher 4",
        ),
        (
            "record --student student.onnx --teacher none.onnx --data images -o x.npz",
            "none.onnx",
        ),
        (
            "record --student student.onnx --teacher teacher.onnx --data nothing -o x.npz",
            "nothing",
        ),
        (
            "record --student student.onnx --teacher teacher.onnx --data empty -o x.npz",
            "empty",
        ),
        (
            "record --student student.onnx --teacher teacher.onnx --data images -o no/x.npz",
            "the folder no does not exist",
        ),
        (
            "record --student student.onnx --teacher teacher.onnx --data images -o x.npz "
            "--student-preprocess colour=red",
            "colour",
        ),
        ("calibrate empty", "cannot read outcomes from empty: it is a folder"),
        ("calibrate outcomes.npz --student images -o j.toml", "(images is a folder)"),
        ("calibrate outcomes.npz --student none.onnx", "--student goes with --output: add"),
        ("calibrate outcomes.npz -o j.toml --link retries=1", "--link is for a teacher at an addr"),
        ("calibrate outcomes.npz --over-link seconds=1,seconds=2", "has the key 'seconds' twice"),
        (
            "calibrate outcomes.npz --over-link bytes=-1",
            "bytes must be a finite number of at least",
        ),
        ("calibrate outcomes.npz --over-link ,", "like bytes=3000,seconds=0.04, not ','"),
        ("calibrate outcomes.npz --import images", "--import images: it is no Python file"),
        ("calibrate outcomes.npz --import sys", "--import sys: it is no Python file"),
        ("evaluate outcomes.npz --joint images", "(images is a folder)"),
        ("evaluate outcomes.npz --compare images", "(images is a folder)"),
        ("evaluate outcomes.npz --data images", "--data goes with --report: add --report"),
        ("evaluate outcomes.npz --images images", "--images goes with --data: add --data"),
        ("predict images --data images -o a.jsonl", "(images is a folder)"),
        ("profile student.onnx --tune --seconds nan", "seconds must be at least 0, not nan"),
        (
            "record --student student.onnx --teacher teacher.onnx --data images -o x.npz "
            "--link retries=1",
            "--link is for a teacher at an address, not for a file",
        ),
        (
            "record --student student.onnx --teacher teacher.onnx --data images -o x.npz "
            "--classes empty.txt",
            "empty.txt must have a class on each line, but is empty",
        ),
        (
            "record --student student.onnx --teacher teacher.onnx --data images -o x.npz "
            "--look askew",
            "--look must be like mirror, shift=2/0 or size=192, not 'askew'",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(run, recorded, words, sentence):
    whole = Path("outcomes.npz").read_bytes()
    Path("torn.npz").write_bytes(whole[: len(whole) // 2])
    Path("torn.onnx").write_bytes(Path("student.onnx").read_bytes()[:100])
    old = Outcomes.load("outcomes.npz")
    old.take(np.arange(100)).save("short.npz")
    old.take(np.arange(120)[::-1]).save("moved.npz")
    np.savez("labels.npz", labels=old.targets)
    Path("empty").mkdir()
    Path("empty.txt").write_text("\n")
    write_linear(Path("four.onnx"), np.ones((3, 4)))
    write_linear(Path("fixed.onnx"), np.eye(3), batch=1)
    before = sorted(Path().iterdir())
    assert sentence in refused(run(*words.split()))
    assert sorted(Path().iterdir()) == before


def test_inputs_of_another_type_than_the_models_take_are_one_sentence(run, recorded):
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    np.savez("floats.npz", inputs=np.zeros((2, 8, 8, 3)))
    said = refused(run("predict", "joint.toml", "--data", "floats.npz", "-o", "a.jsonl"))
    assert "preprocess takes decoded images, uint8 arrays, not float64" in said
    assert not Path("a.jsonl").exists()


def test_more_threads_than_a_machine_can_have_are_refused_at_once(run, recorded):
    code, _, error = run("profile", "student.onnx", "--threads", "100000")
    assert (code, "--threads" in error) == (2, True), error


def test_a_changed_model_is_refused_before_an_answer_is_written(run, recorded):
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    write_linear(Path("teacher.onnx"), np.eye(3))
    sentence = refused(run("predict", "joint.toml", "--data", "images", "-o", "a.jsonl"))
    assert "has changed since the threshold was calibrated" in sentence
    assert not Path("a.jsonl").exists()


def test_outcomes_of_other_models_are_not_evaluated_with_a_promise(run, recorded):
    run("calibrate", "outcomes.npz", "--tolerance", 0.5, "--delta", 0.1, "-o", "joint.toml")
    write_linear(Path("other.onnx"), np.eye(3)[:, [1, 0, 2]])
    words = "record --student other.onnx --teacher teacher.onnx --data images -o other.npz"
    assert run(*words.split())[0] == 0
    sentence = refused(run("evaluate", "other.npz", "--joint", "joint.toml"))
    assert "the outcomes are of another student (sha256) than joint.toml: " in sentence
    assert sentence.endswith("; record again with the models of joint.toml")
    assert run("evaluate", "outcomes.npz", "--joint", "joint.toml")[0] == 0


def test_outcomes_that_name_no_models_are_judged_with_a_note(run, recorded):
    run("calibrate", "outcomes.npz", "--tolerance", 0.5, "-o", "joint.toml")
    known = Outcomes.load("outcomes.npz")
    arrays = {name: np.asarray(getattr(known, name)) for name in ("student", "teacher", "targets")}
    note = "the outcomes do not name their student and teacher, so it cannot be checked"
    np.savez("raw.npz", **arrays)  # the numbers that joint.toml was calibrated on
    for file in ("raw.npz", "outcomes.npz"):
        code, _, error = run("evaluate", file, "--joint", "joint.toml")
        assert (code, note in error) == (0, False)
    np.savez("raw.npz", **{name: rows[::-1] for name, rows in arrays.items()})
    code, _, error = run("evaluate", "raw.npz", "--joint", "joint.toml")
    assert (code, error.count(f"NOTE: {note}")) == (0, 1)
    code, _, error = run("recalibrate", "joint.toml", "--outcomes", "raw.npz")
    assert code in (0, 3, 4)
    assert error.count(f"NOTE: {note}") == 1
    half = replace(known, models={"teacher": known.models["teacher"]}, student=known.student * 2)
    half.save("half.npz")
    error = run("evaluate", "half.npz", "--joint", "joint.toml")[2]
    assert "NOTE: the outcomes do not name their student, so" in error


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (CLASSES[::-1], "class 0 is 'red' in --classes and 'blue' in the joint model: remove --cl"),
        (("blue", "green", "rot"), "class 2 is 'rot' in --classes and 'red' in the joint model"),
        (CLASSES[:2], "class 2 is None in --classes and 'red' in the joint model"),
    ],
)
def test_predict_takes_no_other_classes_than_joint_toml(run, recorded, names, sentence):
    run("calibrate", "outcomes.npz", "-o", "joint.toml")
    run("export", "joint.toml", "-o", "joint.onnx")
    words = ("--data", "images", "--classes", "classes.txt", "-o", "a.jsonl")
    Path("classes.txt").write_text("\n".join(CLASSES))
    assert run("predict", "joint.toml", *words)[0] == 0
    Path("a.jsonl").unlink()
    Path("classes.txt").write_text("\n".join(names))
    for joint in ("joint.toml", "joint.onnx"):
        assert sentence in refused(run("predict", joint, *words))
    assert not Path("a.jsonl").exists()


def test_every_command_has_help_and_a_place_in_the_readme(run):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in typer.main.get_command(app).commands:
        code, printed, _ = run(name, "--help")
        assert code == 0
        assert name in printed
        assert f"ebjr {name}" in readme


def test_a_file_of_classes_that_is_no_text_is_named(run, recorded):
    words = "record --student student.onnx --teacher teacher.onnx --data images -o again.npz"
    told = refused(run(*words.split(), "--classes", "outcomes.npz"))
    assert "outcomes.npz is not UTF-8 text" in told
    assert not Path("again.npz").exists()


def test_a_negative_seed_is_refused(run, recorded):
    told = refused(run("calibrate", "outcomes.npz", "--seed", -1))
    assert "seed must be a whole number of at least 0, not -1" in told
