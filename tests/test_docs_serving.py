"""The code of docs/serving.md runs, against the servers that it starts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from pages import DOCS, blocks, file_of, free_port, run_commands, run_python, servers_of
from PIL import Image

from ebjr import JointConfig

for name in ("onnxruntime", "sklearn", "starlette", "uvicorn", "tritonclient.http"):
    pytest.importorskip(name, reason=f"{name} is not installed")

PAGE = "serving.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory, recorded_demo):
    """A folder, and the ports at which the page's servers run, by the ports that it names."""
    folder = tmp_path_factory.mktemp("docs")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    assert "ebjr demo --recorded" in blocks(PAGE, "sh")[0]
    shutil.copytree(recorded_demo, folder / "ebjr-demo")
    for place in re.findall(r"^models/(.*)/joint.toml", (DOCS / PAGE).read_text(), re.MULTILINE):
        (folder / "models" / place).mkdir(parents=True)
        config = JointConfig.read(folder / "ebjr-demo" / "joint.toml")
        config.save(folder / "models" / place / "joint.toml")
    with servers_of(PAGE, folder) as ports:
        yield folder, ports


def test_the_commands_run(site):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder, ports = site
    assert set(ports) == {"8080", "8081", "8083"}
    printed = run_commands(PAGE, folder, ports)
    read, starts = json.JSONDecoder().raw_decode, re.finditer(r'\{"model_name"', printed)
    said = [read(printed, start.start())[0] for start in starts]
    one, two, photos, drafts = (answer["outputs"] for answer in said)
    assert [(answer["model_name"], answer["model_version"]) for answer in said[-2:]] == [
        ("photos", "1"),
        ("drafts", "1"),
    ]
    assert photos == drafts == one
    assert '{"name":"drafts","version":"2","state":"READY"}' in printed
    assert one[0]["shape"] == [1]
    assert two[0]["shape"] == [2]
    assert '"hold":"deferral_rate=0.2"' in printed
    assert printed.count('"threshold":0.8,') == 2
    assert '{"error":"a request needs at least one tensor' in printed


def test_the_short_way_of_platform_md_runs(site):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    folder, ports = site
    printed = run_commands("platform.md", folder, ports)
    assert '"name":"deferred"' in printed
    assert re.search(r"^ebjr_\w+", printed, re.MULTILINE)


def test_the_python_code_runs(site, monkeypatch, capsys):
    folder, ports = site
    monkeypatch.chdir(folder)
    names = run_python(PAGE, ports)
    names["client"].close()
    assert "True inf" in capsys.readouterr().out
    assert set(names["answer"].get_response()["outputs"][0]) >= {"name", "shape", "datatype"}


def test_every_option_that_the_page_names_is_one(run):
    _, text, _ = run("serve", "--help")
    for option in re.findall(r"^\| (`--.*?) \|", (DOCS / PAGE).read_text(), re.MULTILINE):
        for name in re.findall(r"--[a-z-]+", option):
            assert name in text


def test_a_pair_in_memory_is_served_by_one_call(tmp_path):
    (tmp_path / "serve.py").write_text(file_of(PAGE, "serve.py").replace("8082", free_port()))
    command = [sys.executable, "-u", "serve.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = server.stdout.readline().removeprefix("serving joint at ").strip()
            tensor = {"name": "input", "datatype": "FP32", "shape": [2, 2], "data": [0, 9, 0.1, 0]}
            body = json.dumps({"inputs": [tensor]}).encode()
            with urllib.request.urlopen(f"{url}/v2/models/joint/infer", body) as answer:
                outputs = {each["name"]: each for each in json.load(answer)["outputs"]}
        finally:
            server.terminate()
    assert outputs["prediction"]["data"] == [1, 0]
    assert outputs["deferred"]["data"] == [False, True]
    assert outputs["label"]["data"] == ["dog", "cat"]
