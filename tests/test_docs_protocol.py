"""The code of docs/protocol.md runs, against the server that it starts, and its tables are true."""

from __future__ import annotations

import json
import re
import shutil

import pytest

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

from pages import DOCS, run_commands, run_python, servers_of
from PIL import Image

from benchmarks.malformed import joint_toml
from ebjr.protocol import MOST_JSON_BYTES, MOST_JSON_VALUES, MOST_TEXTS
from ebjr.serving.grpc import CODES, IDLE_SECONDS, MOST_CALLS, MOST_FIELDS, SERVICE
from ebjr.serving.limits import Limits
from ebjr.serving.service import REQUEST_PARAMETERS

PAGE = "protocol.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder, and the ports at which the page's server runs, by the ports that it names."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "ebjr-demo").mkdir()
    joint_toml(folder / "ebjr-demo")
    Image.new("RGB", (32, 32), "teal").save(folder / "photo.png")
    with servers_of(PAGE, folder) as ports:
        assert set(ports) == {"8080", "8001"}
        yield folder, ports


def test_the_commands_run(site):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    printed = run_commands(PAGE, *site)
    assert '"openapi": "3.1.0"' in printed
    answers = [json.loads(found) for found in re.findall(r'\{"model_name".*?\]\}\]\}', printed)]
    assert [answer.get("id") for answer in answers] == ["7", None]
    form = answers.pop()["outputs"]
    assert [output["name"] for output in form] == ["prediction", "output"]
    for answer, rows in zip(answers, (2,), strict=True):
        (output,) = answer["outputs"]
        assert (output["name"], output["shape"]) == ("prediction", [rows])


def test_the_python_code_runs(site, capsys):
    _, ports = site
    names = run_python(PAGE, ports)
    printed = capsys.readouterr().out
    assert "double_param" in printed
    assert "StatusCode.INVALID_ARGUMENT threshold must be a number, not 'high'" in printed
    assert len(names["answer"].as_numpy("prediction")) == 5


def rows(heading: str) -> list[list[str]]:
    """The first table under a heading, without its own heading."""
    section = (DOCS / PAGE).read_text().partition(f"{heading}\n")[2]
    lines = re.findall(r"^\| (.*) \|$", section.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines[1:]]


def test_the_tables_are_what_the_code_says():
    calls = [name for row in rows("# The protocol") for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(calls) == sorted(method.name for method in SERVICE.methods)
    parameters = [row[0].strip("`") for row in rows("## Parameters of a request")]
    assert parameters == [*REQUEST_PARAMETERS, "binary_data_output"]
    said = {(row[0].split(",")[0], row[1].strip("`")) for row in rows("## Errors")}
    assert {(str(status), code.name) for status, code in CODES.items() if status != 500} <= said


def test_the_limits_are_those_of_the_code():
    said, limits = {row[0]: row[1] for row in rows("## Limits")}, Limits()
    assert limits.body_bytes == 64 * 2**20
    assert said["the JSON in it"] == f"{MOST_JSON_BYTES // 2**20} MiB"
    assert limits.held_bytes == 2**30
    assert limits.image_pixels == 64 * 2**20
    assert (
        said["the head of a request"]
        == f"{limits.head_bytes // 1024} KiB, {limits.head_seconds:g} s"
    )
    pace = f"{limits.body_seconds:g} s, and 1 s for each {limits.body_bytes_per_second // 1024} KiB"
    assert said["time for a body"] == pace
    assert said["an answer that its client does not read"] == f"{limits.write_seconds:g} s"
    whole = limits.head_seconds + limits.body_seconds
    assert said["time for a gRPC message, whose progress gRPC does not tell"] == f"{whole:g} s"
    assert said["fields of a gRPC message"] == str(MOST_FIELDS)
    silent = said["a gRPC client with open calls that is silent, and then answers no ping"]
    assert silent == f"{limits.write_seconds:g} s each"
    for who in ("clients", "gRPC connections"):
        assert said[f"{who} at once (`--connections`)"] == str(limits.connections)
    assert said["gRPC calls at once"] == f"{MOST_CALLS}, {MOST_CALLS // 4} of a connection"
    assert said["a gRPC connection without calls"] == f"{IDLE_SECONDS:g} s"
    assert said["values in the JSON, counted by its commas"] == f"{MOST_JSON_VALUES // 2**20} Mi"
    assert said["elements of a `BYTES` tensor beside the JSON"] == f"{MOST_TEXTS // 2**10} Ki"
