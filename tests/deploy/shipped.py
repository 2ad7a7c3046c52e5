"""What deploy/ has, and the tools that read it where they are at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def documents(name: str) -> list[Any]:
    """The documents of a file of YAML."""
    yaml = pytest.importorskip("yaml", reason="the extra `scale` is not installed")
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def tool(name: str) -> str:
    """A program of this environment or of the system; skips where it is not installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    found = shutil.which(name, path=path)
    if found is None:
        pytest.skip(f"{name} is not at hand")
    return found


def said_by(*words: object) -> str:
    """What a command prints, which must succeed."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def process(*words: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process with its standard output, which does not outlive the test."""
    command = [*map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as started:
        try:
            yield started
        finally:
            started.kill()
