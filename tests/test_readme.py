from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from pages import blocks as page_blocks

from docs.make import committed
from ebjr import load_model
from ebjr.demo import shipped
from ebjr.errors import RecordingNote
from ebjr.scores import SCORES

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the shipped pair in it."""
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            shutil.copy(path, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_code_runs(folder, capsys):
    inputs = np.random.default_rng(0).random((400, 3, 32, 32), dtype=np.float32)
    names = {"inputs": inputs, "targets": load_model("teacher.onnx")(inputs).argmax(axis=1)}

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordingNote)  # on noise the student guesses
            for block in blocks("python"):
                exec(compile(block, "README.md", "exec"), names)
    finally:
        SCORES.pop("logit_gap", None)
    assert (folder / "joint.toml").exists()
    assert capsys.readouterr().out


def test_the_commands_are_those_of_the_page_that_explains_them():
    commands = [line[2:] for block in blocks("console") for line in block.splitlines()]
    assert "\n".join(commands) + "\n" == page_blocks("two-models.md", "sh")[0]


def test_every_installation_is_from_a_checkout_or_its_wheel_with_extras_that_there_are():
    """No registry has the package: its name there could be anybody's."""
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    pages = [README, *README.parent.glob("docs/*.md"), README.parent / "examples/README.md"]
    text = "\n".join(page.read_text() for page in pages)
    extras = re.findall(r"(?:ebjr|'\.|head -1\))\[([a-z,]+)\]", text)
    assert len(extras) > 8
    assert {name for each in extras for name in each.split(",")} <= set(
        project["optional-dependencies"]
    )
    folders = [README.parent / name for name in ("docs", "examples", "experiments", "benchmarks")]
    more = [
        page for folder in folders for kind in ("md", "yml") for page in folder.rglob(f"*.{kind}")
    ]
    assert not re.findall(
        r"pip install '?ebjr", "\n".join(page.read_text() for page in [README, *more])
    )


def test_the_line_for_a_wheel_takes_the_newest_of_several(tmp_path):
    (line,) = re.findall(r"`pip install (\"\$\(.*?\)\[.*?\]\")`", README.read_text())
    (tmp_path / "dist").mkdir()
    for age, name in enumerate(("ebjr-0.3.0", "ebjr-0.10.0", "ebjr-0.1.0")):
        wheel = tmp_path / "dist" / f"{name}-py3-none-any.whl"
        wheel.touch()
        os.utime(wheel, (1e9 - age, 1e9 - age))
    found = subprocess.run(
        ["sh", "-c", f"printf '%s;' {line}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "dist/ebjr-0.3.0-py3-none-any.whl[onnx,learned];"


def cells(line: str) -> list[str]:
    """The figures of a row of a table, without what only makes it look well."""
    return [cell.strip(" *").replace(" %", "%") for cell in line.split("|")[1:-1]]


def test_the_table_of_the_demo_is_what_the_demo_prints(run, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.setenv("COLUMNS", "200")
    shown = {
        "three stages": run("demo", "--recorded"),
        "": run("calibrate", "ebjr-demo/outcomes.npz", "--stages", "student,teacher"),
    }
    table = README.read_text().partition(committed.BEGIN)[2].partition(committed.END)[0]
    head, _, *rows = table.splitlines()
    assert len(rows) == 5
    for name, *figures in map(cells, rows):
        code, printed, error = shown["three stages" if name.startswith("three stages") else ""]
        assert code == 0, error
        (titles,) = (line for line in printed.splitlines() if "deferred  MFLOPs" in line)
        assert set(cells(head)[1:]) <= set(titles.split())
        own = re.sub("^(two|three) stages", "joint", name)
        lines = [line.strip() for line in printed.splitlines()]
        found = next(line for line in lines if re.split(r"  +", line)[0] == own)
        places = [found.partition(own)[2].split().index(figure) for figure in filter(None, figures)]
        assert places == sorted(places), name


def test_what_is_made_and_committed_is_as_it_would_be_made_now():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    stale = [path.name for path, text in committed.files().items() if path.read_text() != text]
    assert not stale, f"python -m docs.make.committed makes {stale} anew"
