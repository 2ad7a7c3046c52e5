"""The code of docs/edge.md runs, with the servers that it starts, and ends, in its terminals."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from pages import DOCS, blocks, free_port, real
from PIL import Image

from ebjr import Link
from ebjr.backends.entry import LINK_KEYS, REMOTE_OPTIONS
from ebjr.cli import main
from ebjr.demo import shipped
from ebjr.link.remote import RemoteModel

for name in ("onnxruntime", "starlette", "uvicorn", "aiohttp", "stamina"):
    pytest.importorskip(name, reason=f"{name} is not installed")

NAME = "edge.md"
PAGE = (DOCS / NAME).read_text()


class Terminals:
    """What the page's reader has: a folder, and servers on ports of their own."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self._patch = folder, monkeypatch
        self.ports = {"8001": free_port(), "8080": free_port()}
        self.servers: dict[str, subprocess.Popen] = {}

    def real(self, text: str) -> str:
        for shown, own in self.ports.items():
            text = text.replace(f"--port {shown}", f"--port {own}")
        return real(text, self.ports)

    def type(self, line: str) -> None:
        words = self.real(line).split()
        if line.startswith("ebjr serve"):
            words = [sys.executable, "-m", *words]
            server = subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, text=True)
            assert " at http" in server.stdout.readline()
            self.servers[line.split()[2]] = server
            return
        self._patch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, line

    def end(self, what: str) -> None:
        server = self.servers.pop(what)
        server.terminate()
        server.wait(30)
        server.stdout.close()


@pytest.fixture
def terminals(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            shutil.copy(path, tmp_path / name)
    for number in range(40):
        place = tmp_path / "images" / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(place / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    opened = Terminals(tmp_path, monkeypatch)
    yield opened
    for what in list(opened.servers):
        opened.end(what)


def test_the_page_runs_from_the_first_line_to_the_last(terminals, capsys):
    lines = [
        line for line in "\n".join(blocks(NAME, "sh")).splitlines() if line.startswith("ebjr ")
    ]
    starts, costs = lines[:4], lines[4:]
    assert [line.split()[1] for line in starts] == ["serve", "record", "calibrate", "serve"]
    for line in starts:
        terminals.type(line)
    names: dict = {}

    def run(block):
        exec(compile(terminals.real(block), "edge.md", "exec"), names)

    asking, parts, *others = blocks(NAME, "python")
    run(asking)
    assert names["outputs"]["degraded"] == [False, False]
    assert names["outputs"]["deferred"] == [True, True]
    terminals.end("teacher.onnx")
    (away,) = blocks(NAME, 'python title="after the cloud has gone"')
    run(away)
    assert names["outputs"]["degraded"] == [True, True]
    terminals.type(starts[0])
    (back,) = blocks(NAME, 'python title="after the cloud is back"')
    run(back)
    run(parts)
    assert names["answer"].degraded.any()
    for line in costs:
        terminals.type(line)
    for block in others:
        run(block)
    assert names["point"].cost.bytes <= 500
    said = capsys.readouterr().out
    assert "[True, True]" in said
    table = tomllib.loads((terminals.folder / "joint.toml").read_text())["teacher"]
    assert table["when_unavailable"] == "queue"
    assert table["cost"]["bytes"] > 0


def test_every_key_that_the_page_names_is_one():
    (text,) = blocks(NAME, "toml")
    table = tomllib.loads(text)["teacher"]
    assert set(table) - {"url"} <= {*LINK_KEYS, *REMOTE_OPTIONS}
    section = PAGE.split("## When the teacher is away")[1].split("In `joint.toml`")[0]
    for name, default in re.findall(r"`([a-z]+_?[a-z]*)` \(([\d.]+)\)", section):
        own = Link() if name in LINK_KEYS else None
        known = getattr(own, name) if own else signature(RemoteModel).parameters[name].default
        assert float(default) == known, name
