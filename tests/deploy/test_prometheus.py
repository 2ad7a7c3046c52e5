"""Alerts and dashboard: of metrics that there are, unit-tested, and asked of a real Prometheus."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import numpy as np
import pytest
from pages import DOCS, free_port
from shipped import DEPLOY, documents, process, said_by, tool

yaml = pytest.importorskip("yaml", reason="the extra `scale` is not installed")

RULES = DEPLOY / "prometheus" / "alerts.yaml"
BOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
OURS = re.compile(r"\bebjr_\w+")
ENDS = re.compile("_(bucket|sum|count)$")
NEVER_HERE = re.compile(
    "teacher_away|late_rows|dollars|tokens|unpriced|unanswered|promise_in_force"
)
"""Without a value where the teacher is near, nothing has a price, and nothing was promised."""


def rules() -> dict[str, Any]:
    (group,) = documents("prometheus/alerts.yaml")[0]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def targets() -> list[tuple[str, str]]:
    """The dashboard's expressions, as Grafana sends them, by the panel they are in."""
    drawn = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    found = [(panel["title"], each["expr"]) for panel in drawn for each in panel["targets"]]
    known = {"$__rate_interval": "1m", "$model": ".*"}
    for shown, own in known.items():
        found = [(title, expression.replace(shown, own)) for title, expression in found]
    return found


def test_every_metric_that_alerts_or_the_dashboard_name_is_one_that_the_page_has():
    known = set(re.findall(r"^\| `(ebjr_\w+)", PAGE, re.MULTILINE))
    named = {name for _, expression in targets() for name in OURS.findall(expression)}
    named |= {name for rule in rules().values() for name in OURS.findall(rule["expr"])}
    assert len(named) > 20
    assert {ENDS.sub("", name) for name in named} <= known


def test_the_page_says_what_to_do_about_each_alert():
    told = re.findall(r"^\| `(Ebjr\w+)` \|", PAGE, re.MULTILINE)
    assert told == list(rules())


def test_every_alert_is_tested_to_come_and_to_stay_away():
    (tests,) = documents("prometheus/alerts_test.yaml")
    for came in (True, False):
        found = {
            each["alertname"]
            for test in tests["tests"]
            for each in test["alert_rule_test"]
            if bool(each["exp_alerts"]) == came
        }
        assert found == set(rules())


def test_the_alerts_come_when_they_should():
    promtool = tool("promtool")
    said_by(promtool, "check", "config", RULES.parent / "prometheus.yml")
    said_by(promtool, "test", "rules", RULES.parent / "alerts_test.yaml")


def test_the_dashboard_is_one_that_grafana_can_lay_out():
    panels = BOARD["panels"]
    numbers = [panel["id"] for panel in panels]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        own = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not own & taken, panel["title"]
        assert max(x for x, _ in own) < 24
        taken |= own
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["description"]
        references = [each["refId"] for each in panel["targets"]]
        assert len(set(references)) == len(references)
        assert all("$model" in each["expr"] for each in panel["targets"])
    variables = {each["name"]: each for each in BOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "model"}
    assert OURS.search(variables["model"]["query"])


def asked(url: str, **parameters: str) -> Any:
    """What Prometheus answers."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(url + query, timeout=30) as answer:
        message = json.load(answer)
    assert message["status"] == "success"
    return message["data"]


def test_a_prometheus_reads_a_server_its_rules_and_all_that_the_dashboard_draws(
    calibrated, tmp_path
):
    prometheus, port, own = tool("prometheus"), free_port(), free_port()
    (config,) = documents("prometheus/prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    serve = (sys.executable, "-m", "ebjr", "serve", calibrated, "--port", port)
    watched = (*serve, "--hold", "deferral_rate=0.3", "--audit-rate", "1", "--state", tmp_path)
    looked = (
        prometheus,
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{own}",
        "--log.level=error",
    )
    rng, stop = np.random.default_rng(0), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            pixels = rng.integers(0, 256, (8, 8, 8, 3), np.uint8)
            tensor = {"name": "image", "shape": pixels.shape, "datatype": "UINT8"}
            body = json.dumps({"inputs": [{**tensor, "data": pixels.tolist()}]}).encode()
            url = f"http://127.0.0.1:{port}/v2/models/joint/infer"
            urllib.request.urlopen(urllib.request.Request(url, body), timeout=60).read()
            time.sleep(0.05)

    with process(*watched) as server, process(*looked):
        assert "serving joint" in server.stdout.readline()
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            api, empty = f"http://127.0.0.1:{own}/api/v1", {"not asked yet"}
            for _ in range(60):
                time.sleep(1)
                try:
                    empty = {
                        title
                        for title, expression in targets()
                        if not asked(f"{api}/query", query=expression)["result"]
                        and not NEVER_HERE.search(expression)
                    }
                except (ConnectionError, urllib.error.URLError):
                    continue
                if not empty:
                    break
            assert not empty
            (target,) = asked(f"{api}/targets")["activeTargets"]
            assert target["health"] == "up"
            (group,) = asked(f"{api}/rules")["groups"]
            assert {rule["name"]: rule["health"] for rule in group["rules"]} == dict.fromkeys(
                rules(), "ok"
            )
        finally:
            stop.set()
            asking.join()
