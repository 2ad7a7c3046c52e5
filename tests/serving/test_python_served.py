"""Models of Python code behind a server: read again with their file, and asked one at a time."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import asking, load

from ebjr import JointConfig
from ebjr.joint_file import ModelEntry
from ebjr.serving.app import build_app
from ebjr.serving.served import served_of
from ebjr.serving.sources import Files

CODE = """import threading
import time

import numpy as np

busy, most, lock = 0, 0, threading.Lock()


def student(x):
    global busy, most
    with lock:
        busy += 1
        most = max(most, busy)
    time.sleep(0.005)
    with lock:
        busy -= 1
    return np.asarray(x) * {times}


def teacher(x):
    return np.asarray(x) * {times}
"""


@pytest.fixture(autouse=True)
def clean():
    """Forget at the end what was imported."""
    before, paths = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        if "own_code" in name:
            del sys.modules[name]
    sys.path[:] = paths


def write(folder: Path, times: int, module: str | None = None, *files: str) -> list[Path]:
    """Code, and a joint.toml of it for each of `files`."""
    code = folder / "own_code.py"
    code.write_text(CODE.format(times=times))
    named = module or str(code)
    entries = [ModelEntry.of_file(f"{named}:{role}") for role in ("student", "teacher")]
    found = []
    for name in files or ("joint",):
        found.append(folder / f"{name}.toml")
        JointConfig(*entries, score="margin", threshold=0.001, name=name).save(found[-1])
    return found


def app_of(*files):
    return build_app(Files(*files, load=partial(served_of, trust=True)))


def ask(client, name="joint"):
    tensor = {"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
    body = {"inputs": [tensor], "outputs": [{"name": "output"}]}
    answer = client.post(f"/v2/models/{name}/infer", json=body)
    return answer.json()["outputs"][0]["data"] if answer.status_code == 200 else answer.text


def test_code_that_has_changed_with_its_file_answers_once_it_is_loaded(tmp_path):
    (file,) = write(tmp_path, 3)
    with asking(app_of(file)) as client:
        assert ask(client) == [3, 6, 9]
        write(tmp_path, 7)
        assert load(client).status_code == 200
        assert ask(client) == [7, 14, 21]
        right = (tmp_path / "own_code.py").read_text()
        text = file.read_text()
        (tmp_path / "own_code.py").write_text("x = 1 / 0")
        with pytest.raises(ValueError, match="division by zero"):
            served_of(JointConfig(*entries_of(file), score="margin", threshold=1), trust=True)
        (tmp_path / "own_code.py").write_text(right)
        file.write_text(text)
        assert load(client).status_code == 200
        assert ask(client) == [7, 14, 21]


def entries_of(file: Path):
    """The entries of the code as it is now."""
    code = file.parent / "own_code.py"
    return [ModelEntry.of_file(f"{code}:{role}") for role in ("student", "teacher")]


def test_a_module_that_has_changed_is_refused_and_what_was_imported_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (file,) = write(tmp_path, 3, "own_code")
    with asking(app_of(file)) as client:
        assert ask(client) == [3, 6, 9]
        write(tmp_path, 7, "own_code")
        wrong = load(client)
        assert wrong.status_code == 400
        assert "own_code.py has changed since it was imported: restart" in wrong.text
        assert ask(client) == [3, 6, 9]


def test_code_that_several_models_name_is_asked_by_one_worker_of_all(tmp_path):
    files = write(tmp_path, 3, None, "a", "b")
    with asking(app_of(*files)) as client, ThreadPoolExecutor(6) as pool:
        found = list(pool.map(partial(ask, client), "ab" * 20))
    assert found == [[3, 6, 9]] * 40
    assert sys.modules["ebjr_import_own_code"].most == 1
