"""The Dockerfile: linted, and its steps and commands run here, where there need be no Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import urllib.request
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import numpy as np
import pytest
from pages import free_port
from shipped import DEPLOY, ROOT, documents, process, said_by, tool

for name in ("onnxruntime", "starlette", "uvicorn"):
    pytest.importorskip(name, reason=f"{name} is not installed")

FILE = DEPLOY / "Dockerfile"
PREFIX = "/opt/ebjr"


def instructions() -> list[tuple[str, str]]:
    """Each instruction with what it is given, in order."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE))
    return [(line.split()[0], line.partition(" ")[2]) for line in text.splitlines() if line]


def given(name: str) -> list[str]:
    return [text for known, text in instructions() if known == name]


def extras() -> list[str]:
    """What of the package is installed."""
    (found,) = re.findall(r"/src\[([\w,]+)\]", "".join(given("RUN")))
    return found.split(",")


def test_the_linter_finds_nothing():
    said_by(tool("hadolint"), FILE)


def test_the_image_has_no_root_no_compiler_and_nothing_but_the_environment():
    bases = [text.split()[0] for text in given("FROM")]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+-slim", base) for base in bases)
    last = instructions()[[name for name, _ in instructions()].index("FROM", 1) :]
    assert "RUN" not in dict(last)
    assert [text for name, text in last if name == "COPY"] == [f"--from=build {PREFIX} {PREFIX}"]
    assert "ADD" not in dict(instructions())
    (user,) = given("USER")
    assert all(int(number) >= 10_000 for number in user.split(":"))


def test_what_is_copied_is_let_through_to_the_builder_and_nothing_else():
    first, *lines = (
        line
        for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert first == "*"
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = [word for text in given("COPY") if "--from" not in text for word in text.split()[:-1]]
    assert let_through == set(copied)
    assert all((ROOT / each).exists() for each in copied)


def test_pytorch_is_not_among_what_is_installed():
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    own = [line for extra in extras() for line in project["optional-dependencies"][extra]]
    asked = [requirements.Requirement(line) for line in (*project["dependencies"], *own)]
    waiting = [(one.name.lower(), extra) for one in asked for extra in ("", *one.extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        package, extra = waiting.pop()
        if (package, extra) in seen:
            continue
        seen.add((package, extra))
        try:
            lines = requires(package) or []
        except PackageNotFoundError:  # of another system
            continue
        for line in lines:
            one = requirements.Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(one.name.lower(), more) for more in ("", *one.extras)]
    names = {package for package, _ in seen}
    assert {"numpy", "onnxruntime", "uvicorn", "grpcio", "aiohttp"} <= names
    assert not {"torch", "transformers", "ray"} & names


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The environment that the image's steps make, at another place.

    The package is built and installed as there; what it needs is that of this environment.
    """
    folder = tmp_path_factory.mktemp("image")
    source, prefix = folder / "src", folder / "opt"
    source.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    for name, text in instructions():
        if name == "COPY" and "--from" not in text:
            *whence, _ = text.split()
            for each in whence:
                place = source / each
                if (ROOT / each).is_dir():
                    shutil.copytree(ROOT / each, place)
                else:
                    shutil.copy(ROOT / each, place)
        elif name == "RUN":
            script = text.replace(PREFIX, str(prefix)).replace('"/src', f'"{source}')
            script = script.replace(" install ", " install --quiet --no-deps ")
            subprocess.run(["sh", "-euc", script], cwd=source, env=clean, check=True, timeout=240)
    (packages,) = (prefix / "lib").glob("python*/site-packages")
    (packages / "here.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return prefix


def here(text: str, prefix: Path, joint: Path, port: str) -> str:
    """What stands in the Dockerfile, as it is on this machine."""
    known = {"/models/joint.toml": str(joint), "0.0.0.0": "127.0.0.1", "8080": port}
    for shown, own in known.items():
        text = text.replace(shown, own)
    return text


WITHOUT_RIGHTS = """
mount --make-rprivate /
for place in $(cut -d' ' -f2 /proc/self/mounts); do
  mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount -t tmpfs tmpfs "$TMPDIR"
if touch "$OUTSIDE" 2>/dev/null; then echo "it can write" >&2; exit 1; fi
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
"""


def in_a_box(folder: Path) -> tuple[list[str], dict[str, str]]:
    """What runs a command without rights that may write to /tmp alone, where that can be had."""
    alone = ["unshare", "--mount", "--"]
    if shutil.which("setpriv") is None or subprocess.run([*alone, "true"]).returncode:
        return [], {}
    about = {"TMPDIR": str(folder / "tmp"), "OUTSIDE": str(folder / "written")}
    return [*alone, "sh", "-euc", WITHOUT_RIGHTS, "box"], about


@pytest.mark.network
def test_the_command_serves_without_rights_and_the_health_check_tells(
    installed, calibrated, tmp_path
):
    (start,), (end,), (check,) = given("ENTRYPOINT"), given("CMD"), given("HEALTHCHECK")
    port = free_port()
    command = json.loads(start) + json.loads(here(end, installed, calibrated, port))
    check = json.loads(here(check.partition("CMD ")[2], installed, calibrated, port))
    (tmp_path / "tmp").mkdir()
    box, about = in_a_box(tmp_path)
    environment = {
        **dict(word.split("=") for word in given("ENV")[0].split()),
        "PATH": f"{installed}/bin{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path / "tmp"),
        **about,
    }
    healthy = [str(installed / "bin" / check[0]), *check[1:]]
    with process(*box, *command, env=environment, stderr=subprocess.PIPE) as server:
        assert f"serving joint at http://127.0.0.1:{port}" in server.stdout.readline()
        said_by(*healthy)
        pixels = np.zeros((1, 8, 8, 3), np.uint8)
        tensor = {"name": "image", "shape": pixels.shape, "datatype": "UINT8"}
        body = json.dumps({"inputs": [{**tensor, "data": pixels.tolist()}]}).encode()
        url = f"http://127.0.0.1:{port}/v2/models/joint/infer"
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
            assert json.load(answer)["outputs"]
        server.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in server.stderr.read().splitlines()]
        assert server.wait(30) in (0, -signal.SIGTERM)
    assert [line["path"] for line in lines if "path" in line] == ["/v2/models/joint/infer"]
    assert not (tmp_path / "written").exists()
    assert subprocess.run(healthy, capture_output=True).returncode == 1


@pytest.mark.network
def test_the_package_of_the_image_is_the_one_that_was_copied(installed):
    where = said_by(installed / "bin" / "python", "-Ic", "import ebjr; print(ebjr.__file__)")
    assert where.startswith(str(installed))


def test_the_manifests_run_the_image_as_it_is_made():
    (user,) = given("USER")
    (deployment,) = documents("kubernetes/deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    asked = pod["securityContext"]
    assert f"{asked['runAsUser']}:{asked['runAsGroup']}" == user
    (exposed,) = given("EXPOSE")
    (container,) = pod["containers"]
    assert "command" not in container  # the image's own
    assert [port["containerPort"] for port in container["ports"]] == [int(exposed)]
