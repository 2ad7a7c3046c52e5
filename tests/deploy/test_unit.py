"""The unit of systemd: read by systemd, hardened, and its commands are ones that there are."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import socket
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from pages import free_port
from shipped import DEPLOY, process, said_by, tool

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

UNIT = DEPLOY / "ebjr.service"
PROGRAM = "/opt/ebjr/bin/ebjr"


def told(key: str) -> str:
    """The value of a key that the unit's service has once."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(UNIT)
    return unit["Service"][key]


@pytest.fixture
def here(tmp_path) -> Path:
    """The unit, with a program that is on this machine."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace(PROGRAM, sys.executable))
    return path


def test_systemd_takes_the_unit_and_has_no_objection(here):
    said = said_by(tool("systemd-analyze"), "verify", here)
    assert UNIT.name not in said  # it may say something of the system's own units


def test_the_service_is_exposed_to_little(here):
    said = said_by(tool("systemd-analyze"), "security", "--offline=true", "--no-pager", here)
    (exposure,) = re.findall(r"exposure level for \S+: ([\d.]+)", said)
    assert float(exposure) < 2  # of 10; a unit that says nothing has 9.6


def test_what_it_writes_is_in_the_folder_that_it_may_write_to():
    words = shlex.split(told("ExecStart"))
    state = f"/var/lib/{told('StateDirectory')}/"
    assert words[words.index("--audit-log") + 1].startswith(state)


def test_its_command_serves_and_its_reload_takes_over_a_calibration(calibrated, tmp_path):
    program, *words = shlex.split(told("ExecStart"))
    assert program == PROGRAM
    port, log = free_port(), tmp_path / "audit.jsonl"
    known = {"/etc/ebjr/joint.toml": calibrated, "8080": port, "/var/lib/ebjr/audit.jsonl": log}
    command = [str(known.get(word, word)) for word in words]
    (home := tmp_path / "home").mkdir()
    # ONNX Runtime tells nobody anything in CI
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    environment |= {"HOME": str(home), **dict([told("Environment").split("=")])}
    environment.pop("XDG_CACHE_HOME", None)
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(environment.setdefault("NOTIFY_SOCKET", str(tmp_path / "notify")))
    manager.settimeout(30)
    assert told("Type") == "notify"
    with manager, process(sys.executable, "-m", "ebjr", *command, env=environment) as server:
        assert "serving joint" in server.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=30):
            pass
        assert manager.recv(100) == b"READY=1"
        said_by(*shlex.split(told("ExecReload").replace("$MAINPID", str(server.pid))))
        end = time.monotonic() + 20
        while "joint.toml" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.05)
        assert "joint.toml" in [json.loads(line)["who"] for line in log.read_text().splitlines()]
        assert manager.recv(100).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(100) == b"READY=1"
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
    assert not list(home.iterdir())  # nothing is kept to be sent to anybody
