"""`--import`: a score of one's own goes from calibrate to the answers, on every command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import typer.main
from test_cli import refused
from tiny import write_images, write_pair

import ebjr
from ebjr.cli import app
from ebjr.options import import_own
from ebjr.plugins import is_refusal
from ebjr.scores import SCORES

OWN = """
import numpy as np
from ebjr import register_metric, register_score

@register_score
def second_gap(logits):
    ordered = np.sort(logits, axis=1)
    return ordered[:, -1] - ordered[:, -2]
"""


@pytest.fixture
def clean(run):
    """Forget at the end what was imported."""
    before, paths = set(sys.modules), list(sys.path)
    yield
    SCORES.pop("second_gap", None)
    for name in set(sys.modules) - before:
        if name.startswith(("ebjr_import_", "mine", "own_package")):
            del sys.modules[name]
    sys.path[:] = paths


@pytest.fixture
def own(run, clean, tmp_path):
    """A folder with recorded outcomes, and a file with a score."""
    write_pair(tmp_path)
    write_images(tmp_path / "images")
    words = "record --student student.onnx --teacher teacher.onnx --data images -o outcomes.npz"
    code, _, error = run(*words.split(), "--student-flops", "100", "--teacher-flops", "1000")
    assert code == 0, error
    Path("mine.py").write_text(OWN)
    return tmp_path


def forget():
    """As in a new process."""
    SCORES.pop("second_gap", None)
    sys.modules.pop("ebjr_import_mine", None)


def test_an_own_score_goes_through_every_step(run, own):
    words = ("calibrate", "outcomes.npz", "--score", "second_gap", "-o", "joint.toml")
    assert "there is no score named 'second_gap'" in refused(run(*words))
    code, printed, error = run(*words, "--import", "mine.py", "--json")
    assert code == 0, error
    chosen = json.loads(printed)
    assert chosen["chosen_on"]["score"] == "second_gap"
    config = ebjr.JointConfig.read("joint.toml")
    assert (config.score, config.imports) == ("second_gap", ("mine.py",))

    forget()
    after = {
        "evaluate": ("outcomes.npz", "--joint", "joint.toml"),
        "predict": ("joint.toml", "--data", "images", "-o", "answers.jsonl"),
    }
    for name, rest in after.items():
        sentence = refused(run(name, *rest))
        assert "joint.toml: there is no score named 'second_gap'" in sentence
        assert sentence.endswith("it was calibrated with --import mine.py")
        code, printed, error = run(name, *rest, "--import", "mine.py", "--json")
        assert code == 0, error
        forget()
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    kept = [row["score"] >= config.threshold for row in rows]
    assert kept == [not row["deferred"] for row in rows]


def test_a_fault_in_code_is_a_traceback_and_no_refusal_of_the_input(run, own):
    Path("mine.py").write_text(OWN.replace("np.sort(logits", "None + np.sort(logits"))
    words = ("calibrate", "outcomes.npz", "--score", "second_gap", "--import", "mine.py")
    with pytest.raises(TypeError, match="unsupported operand"):
        run(*words)
    with pytest.raises(TypeError, match="unknown argument 'nonsense'") as refusal:
        ebjr.record(len, len, [1], nonsense=1)
    assert is_refusal(refusal.value)
    with pytest.raises(TypeError) as fault:
        ebjr.Router("margin", object())  # EBJR's own line, but no `raise`
    assert not is_refusal(fault.value)


def test_a_file_never_makes_code_run(run, own):
    run("calibrate", "outcomes.npz", "--score", "second_gap", "-o", "j.toml", "--import", "mine.py")
    forget()
    Path("mine.py").write_text("open('ran', 'w').close()")
    refused(run("predict", "j.toml", "--data", "images", "-o", "answers.jsonl"))
    with pytest.raises(ValueError, match=r"calibrated with --import mine\.py"):
        ebjr.load_joint("j.toml")
    assert not Path("ran").exists()


def test_an_unknown_score_of_a_file_that_names_no_import_says_how_to_give_one(run, own):
    run("calibrate", "outcomes.npz", "--score", "margin", "-o", "joint.toml")
    assert "imports" not in Path("joint.toml").read_text()
    text = Path("joint.toml").read_text()
    Path("joint.toml").write_text(text.replace('score = "margin"', 'score = "magic"'))
    sentence = refused(run("evaluate", "outcomes.npz", "--joint", "joint.toml"))
    assert "there is no score named 'magic'" in sentence
    assert sentence.endswith("--import FILE registers your own")
    text = f"imports = 3\n{text}"
    Path("joint.toml").write_text(text)
    sentence = refused(run("evaluate", "outcomes.npz", "--joint", "joint.toml"))
    assert "imports must be a list of files and modules, not 3" in sentence


def test_a_module_of_a_package_is_imported_and_so_is_what_is_beside_a_file(run, own):
    package = own / "own_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "scores.py").write_text(OWN)
    words = ("calibrate", "outcomes.npz", "--score", "second_gap")
    assert run(*words, "--import", "own_package.scores")[0] == 0
    forget()
    (own / "folder").mkdir()
    (own / "folder" / "mine_helper.py").write_text(OWN)
    (own / "folder" / "main.py").write_text("import mine_helper")
    assert run(*words, "--import", "folder/main.py")[0] == 0


def test_several_are_imported_in_their_order_and_each_once(clean):
    Path("mine_first.py").write_text("runs = []")
    Path("mine_second.py").write_text(
        "import sys\nsys.modules['ebjr_import_mine_first'].runs.append(1)"
    )
    first = import_own("mine_first.py")
    for _ in range(2):
        import_own("mine_second.py")
        assert import_own("mine_first.py") is first
    assert first.runs == [1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n\nraise KeyError('gone')", "line 3: KeyError: 'gone'"),
        ("x = (1", "line 1: SyntaxError: '(' was never closed"),
        ("import json\n\njson.loads('no')", "line 3: JSONDecodeError: Expecting value"),
        ("import not_there_at_all", "line 1: ModuleNotFoundError: No module named"),
        ("import sys\nsys.exit(0)", "line 2: SystemExit: 0"),
        (
            "from ebjr import register_score\n\n@register_score\ndef margin(x): return x",
            "line 3: ValueError: a score named margin exists already: rename yours",
        ),
    ],
)
def test_what_fails_is_one_sentence_with_the_file_and_the_line(run, clean, text, sentence):
    Path("mine.py").write_text(text)
    said = refused(run("calibrate", "outcomes.npz", "--import", "mine.py"))
    assert "--import mine.py failed at " in said
    assert f"{Path('mine.py').resolve()}, {sentence}" in said


@pytest.mark.parametrize("name", ["missing.py", "own_package_that_is_not.there"])
def test_what_is_not_there_is_one_sentence(run, clean, name):
    said = refused(run("calibrate", "outcomes.npz", "--import", name))
    assert f"--import {name}" in said
    assert "does not exist" in said or "ModuleNotFoundError" in said


@pytest.mark.parametrize("name", typer.main.get_command(app).commands)
def test_every_command_imports(run, clean, name):
    command = typer.main.get_command(app).commands[name]
    [found] = [option for option in command.params if "--import" in option.opts]
    assert found.multiple
    required = [option for option in command.params if option.required]
    words: list[str] = []
    for option in required:
        flag = [] if option.param_type_name == "argument" else [option.opts[-1]]
        words += [*flag, "nowhere"]
    assert "--import missing.py" in refused(run(name, *words, "--import", "missing.py"))
