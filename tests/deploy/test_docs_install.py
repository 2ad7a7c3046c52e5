"""Every command of the section on installing: run, or what it names is read as its program does."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

import pytest
from pages import DOCS, blocks, free_port
from shipped import DEPLOY, ROOT, documents, process, said_by, tool

for name in ("onnxruntime", "sklearn", "uvicorn", "stamina"):
    pytest.importorskip(name, reason=f"{name} is not installed")

PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"## Install it\n(.*?)\n(?=## )", PAGE, re.DOTALL)
LINES = [
    line
    for block in re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)
    for line in block.split("\n")
]
SHELL = ("mkdir ", "cp ", "(cd ", "sed ")
ELSEWHERE = {  # the commands that others of these tests run, or read the files of
    "kubectl apply -k deploy/kubernetes": DEPLOY / "kubernetes" / "kustomization.yaml",
    "kubectl apply -f deploy/servingruntime.yaml": DEPLOY / "servingruntime.yaml",
    "promtool test rules deploy/prometheus/alerts_test.yaml": DEPLOY / "prometheus",
    "prometheus --config.file=deploy/prometheus/prometheus.yml": DEPLOY / "prometheus",
    "otelcol --config=deploy/otel-collector.yaml": DEPLOY / "otel-collector.yaml",
}


def commands(*starts: str) -> list[str]:
    """The section's commands that begin so."""
    return [line for line in LINES if line.startswith(starts)]


def test_every_command_of_the_section_is_one_that_is_tested():
    known = (*SHELL, "pip ", "ebjr ", "docker ", "curl ", "kubectl create secret", "install ")
    venv = ("python3 -m venv ", "/opt/ebjr/bin/pip install ", "systemctl ")
    assert [line for line in LINES if line and not line.startswith((*known, *venv))] == list(
        ELSEWHERE
    )
    assert all(path.exists() for path in ELSEWHERE.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The folder that the page's first commands make, moved to another place."""
    folder = tmp_path_factory.mktemp("checkout")
    demo, *_ = commands("ebjr ")
    assert demo.split() == ["ebjr", "demo", "--recorded"]
    said_by(sys.executable, "-m", "ebjr", "demo", "--recorded", "-o", folder / "ebjr-demo")
    script = "\n".join(commands(*SHELL))
    subprocess.run(["bash", "-euc", script], cwd=folder, check=True, timeout=60)
    shutil.rmtree(folder / "ebjr-demo")
    return (folder / "models").rename(tmp_path_factory.mktemp("mounted") / "models")


def test_the_folder_is_whole_and_a_server_of_it_is_asked_as_the_page_says(models):
    (asked,) = commands("curl ")
    *_, serve = commands("ebjr ")
    first, port = blocks("operations.md", "sh")[0].replace("\\\n", " "), free_port()
    known = {"8080": port, "/var/lib/ebjr/audit.jsonl": str(models / "audit.jsonl")}
    for line in (serve, first):
        words = [known.get(word, word) for word in shlex.split(line)]
        words = [str(models / Path(word).name) if "joint.toml" in word else word for word in words]
        with process(sys.executable, "-m", "ebjr", *words[1:], cwd=models) as server:
            assert "serving joint" in server.stdout.readline()
            url = next(word for word in asked.split() if word.startswith("localhost"))
            with urllib.request.urlopen(f"http://{url.replace('8080', port)}", timeout=30) as ready:
                assert ready.status == 200
            server.terminate()
            server.wait(30)


def test_what_pip_installs_is_what_the_package_offers():
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for line in commands("pip ", "/opt/ebjr/bin/pip "):
        (extras,) = re.findall(r"'\.\[([\w,]+)\]'", line)
        assert set(extras.split(",")) <= set(offered["optional-dependencies"])


def test_docker_runs_the_image_that_it_builds_where_it_expects_its_folder():
    build, run, *_ = (shlex.split(line) for line in commands("docker "))
    text = (ROOT / build[build.index("-f") + 1]).read_text()
    tag, context = build[build.index("-t") + 1], build[-1]
    assert (run[-1], context) == (tag, ".")
    ports = run[run.index("-p") + 1].split(":")
    assert f"EXPOSE {ports[-1]}\n" in text
    place, where, how = run[run.index("-v") + 1].split(":")
    assert (place, how) == ("$PWD/models", "ro")
    assert f'CMD ["{where}/joint.toml"' in text
    (shown,) = re.findall(r"`ebjr-serve (/[^`]+)`", SECTION)
    (command,) = re.findall(r"^CMD (\[.*\])", text, re.MULTILINE)
    assert shown.split()[:5] == json.loads(command)[:5]
    name = run[run.index("--name") + 1]
    assert all(line.split()[-1] == name for line in commands("docker ")[2:])


def test_docker_knows_every_option():
    away = {**os.environ, "DOCKER_HOST": "unix:///nowhere/docker.sock"}
    for line in commands("docker ")[1:]:
        words = [tool("docker"), *shlex.split(line)[1:]]
        done = subprocess.run(words, env=away, capture_output=True, text=True, timeout=60)
        assert re.search("onnect to the [Dd]ocker", done.stderr), done.stderr  # it read the rest


def test_the_secret_is_the_one_that_the_pods_ask_for():
    (line,) = commands("kubectl create secret")
    words = shlex.split(line.replace("$EBJR_TOKEN", "hidden"))[1:]
    made = json.loads(said_by(tool("kubectl"), *words, "--dry-run=client", "-o", "json"))
    (deployment,) = documents("kubernetes/deployment.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (variable,) = container["env"]
    asked = variable["valueFrom"]["secretKeyRef"]
    assert variable["name"] == "EBJR_TOKEN"
    assert (asked["name"], {asked["key"]}) == (made["metadata"]["name"], set(made["data"]))


def test_what_is_installed_is_what_the_unit_starts(models, tmp_path):
    for place in ("etc/ebjr", "etc/systemd/system"):
        (tmp_path / place).mkdir(parents=True)
    for line in commands("install "):
        script = line.replace("/etc", f"{tmp_path}/etc")
        script = script.replace("models/", f"{models}/").replace("deploy/", f"{DEPLOY}/")
        subprocess.run(["bash", "-euc", script], check=True, timeout=60)
    unit = (tmp_path / "etc/systemd/system/ebjr.service").read_text()
    (program, file) = re.findall(r"ExecStart=(\S+) serve (\S+)", unit)[0]
    assert (tmp_path / file[1:]).exists()
    assert f"python3 -m venv {Path(program).parents[1]}" in LINES
    assert len(list((tmp_path / "etc/ebjr").glob("*.onnx"))) > 1
    assert all(line.endswith((" ebjr", " daemon-reload")) for line in commands("systemctl "))
    assert "ExecReload=" in unit
    assert "[Install]" in unit
