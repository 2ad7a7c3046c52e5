"""Benchmarks and experiments stand on their own: neither imports the other, no rival imports us."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.serving import processes

ROOT = Path(__file__).parents[1]


def imported(file: Path) -> set[str]:
    """The packages that a file imports from."""
    nodes = list(ast.walk(ast.parse(file.read_text())))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    taken = [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in (*plain, *taken)}


@pytest.mark.parametrize(
    ("one", "other"), [("benchmarks", "experiments"), ("experiments", "benchmarks")]
)
def test_neither_imports_the_other(one, other):
    files = sorted((ROOT / one).rglob("*.py"))
    assert files
    assert not [file for file in files if other in imported(file)]


def test_what_a_rival_runs_imports_nothing_of_ours():
    files = sorted((ROOT / "benchmarks" / "serving" / "rivals").glob("*.py"))
    assert files
    assert not [file for file in files if {"ebjr", "benchmarks"} & imported(file)]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
def test_the_processor_time_of_a_server_is_also_that_of_its_daemons():
    burn = "import time\nwhile time.process_time() < 0.5: pass\ntime.sleep(60)"
    start = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {burn!r}]"
    start += ", start_new_session=True)"
    name, value = processes.MARK, f"test-{os.getpid()}"
    subprocess.run([sys.executable, "-c", start], env={**os.environ, name: value}, check=True)
    mark = f"{name}={value}"
    until = time.monotonic() + 30
    while (spent := processes.seconds(mark)) < 0.4 and time.monotonic() < until:
        time.sleep(0.05)
    processes.kill(mark)
    assert spent >= 0.4
    while (left := list(processes.marked(mark))) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
