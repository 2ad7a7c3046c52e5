"""The page on hubs, MLflow, scikit-learn and supervision runs as it is written, and prints that."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest
from pages import blocks, run_python

PAGE = "adopt.md"


def test_the_commands_push_and_pull(tmp_path, monkeypatch):
    for name in ("onnxruntime", "uvicorn", "huggingface_hub"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    from hub_server import running

    lines = "\n".join(blocks(PAGE, "sh")).splitlines()
    with running() as hub:
        known = hub.environment(tmp_path / "hf")
        for line in lines:
            if line.startswith(("ebjr demo", "ebjr push", "ebjr pull")):
                command = [sys.executable, "-m", *line.split()]
                subprocess.run(command, cwd=tmp_path, env=known, check=True, timeout=120)
    here = tmp_path / "here"
    shown = [line.split()[0] for line in blocks(PAGE, "text")[0].splitlines()]
    found = sorted(file.relative_to(here).as_posix() for file in here.rglob("*") if file.is_file())
    # the long lists are named by their hash, and another processor's scores have other last digits
    assert [re.sub(r"-\w{8}\.toml$", ".toml", name) for name in found] == [
        re.sub(r"-\w{8}\.toml$", ".toml", name) for name in shown
    ]
    assert "ebjr serve here/joint.toml" in lines


def test_the_code_prints_what_the_page_says(tmp_path, monkeypatch, request):
    for name in ("onnxruntime", "mlflow", "sklearn", "supervision"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    shutil.copytree(request.getfixturevalue("recorded_demo"), "ebjr-demo")
    run_python(PAGE)
