"""The code of docs/serving.md runs, against the servers that it starts."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ebjr.demo import run_demo

for name in ("onnxruntime", "plotly", "sklearn", "starlette", "uvicorn", "tritonclient.http"):
    pytest.importorskip(name, reason=f"{name} is not installed")

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
COMMAND = [sys.executable, "-m", "ebjr"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder, and the ports at which the page's servers run, by the ports that it names."""
    folder = tmp_path_factory.mktemp("docs")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    ports, servers = {}, []
    try:
        for line in "\n".join(blocks("sh")).splitlines():
            words = line.split()
            if line == "ebjr demo --recorded":
                run_demo(folder / "ebjr-demo", recorded=True)
            if words[:2] == ["ebjr", "serve"]:
                place = words.index("--port") + 1
                ports[words[place]] = words[place] = free_port()
                server = subprocess.Popen(
                    [*COMMAND, *words[1:]], cwd=folder, stdout=subprocess.PIPE, text=True
                )
                servers.append(server)
        assert all("serving joint at" in server.stdout.readline() for server in servers)
        yield folder, ports
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
            server.stdout.close()


def real(text: str, ports: dict[str, str]) -> str:
    """The text with the ports of the servers that run."""
    for shown, own in ports.items():
        text = text.replace(f"localhost:{shown}", f"127.0.0.1:{own}")
    return text


def test_the_commands_run(site):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder, ports = site
    assert set(ports) == {"8080", "8081"}
    lines = "\n".join(blocks("sh")).splitlines()
    script = "\n".join(line for line in lines if not line.startswith(("ebjr ", "pip ")))
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{real(script, ports)}"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert '"model": "joint"' in done.stdout
    read, starts = json.JSONDecoder().raw_decode, re.finditer(r'\{"model_name"', done.stdout)
    said = [read(done.stdout, start.start())[0] for start in starts]
    one, two, gray, zipped = (answer["outputs"] for answer in said)
    assert one[0]["shape"] == [1]
    assert two[0]["shape"] == [2]
    assert gray == zipped
    assert '"student":{' in done.stdout
    assert '"hold":"deferral_rate=0.2"' in done.stdout
    assert done.stdout.count('"threshold":0.8,') == 2
    assert '{"error":"a request needs at least one tensor' in done.stdout


def test_the_python_code_runs(site, monkeypatch, capsys):
    folder, ports = site
    monkeypatch.chdir(folder)
    names: dict = {}
    for block in blocks("python"):
        exec(compile(real(block, ports), "serving.md", "exec"), names)
    names["client"].close()
    assert "True inf" in capsys.readouterr().out
    assert set(names["answer"].get_response()["outputs"][0]) >= {"name", "shape", "datatype"}


def test_every_option_that_the_page_names_is_one(run):
    _, text, _ = run("serve", "--help")
    for option in re.findall(r"^\| (`--.*?) \|", PAGE.read_text(), re.MULTILINE):
        for name in re.findall(r"--[a-z-]+", option):
            assert name in text
