"""docs/operations.md knows every metric of a server and no other, and options that there are."""

from __future__ import annotations

import json
import re
from contextlib import closing
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("stamina", reason="the extra `remote` is not installed")

from small import NAME, request, served, teacher
from starlette.testclient import TestClient

from ebjr import FarTeacher, LateAnswers
from ebjr.serving.app import build_app

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_knows_every_metric_of_a_server_and_no_other(tmp_path):
    late = LateAnswers(tmp_path / "late.sqlite")
    far = served(teacher=FarTeacher(teacher), when_unavailable="queue", late=late)
    app = build_app(far, hold="deferral_rate=0.3", audit_rate=1.0, state=tmp_path)
    with closing(late), TestClient(app) as client:
        client.post(f"{NAME}/infer", json=request())
        text = client.get("/metrics").text
    families = dict(re.findall(r"# TYPE (ebjr_\w+) (\w+)", text))
    created = {name for name in families if name.endswith("_created")}
    shown = set(re.findall(r"^\| `(ebjr_\w+)", PAGE, re.MULTILINE))
    assert shown == set(families) - created | {"ebjr_promise_in_force"}
    ends = "(?:_bucket|_sum|_count)?"
    for used in re.findall(r"ebjr_\w+", "".join(blocks("promql")) + PAGE):
        assert re.sub(f"{ends}$", "", used) in shown, used


def test_the_options_are_those_of_the_command(run):
    _, said, _ = run("serve", "--help")
    own = re.sub(r"## Install it\n.*?\n(?=## )", "", PAGE, flags=re.DOTALL)  # see tests/deploy
    own = re.sub(r"^(curl|openssl) .*$", "", own, flags=re.MULTILINE)
    for option in set(re.findall(r"--[a-z][a-z-]+", own)) - {"--delta"}:
        assert option in said, option


def test_lines_of_logs_are_json():
    found = [json.loads(block) for block in blocks("json")]
    assert [line.get("message", line.get("why")) is not None for line in found] == [True, True]
