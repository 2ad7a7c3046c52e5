"""Several joint models in one server: each is asked, moved and counted by its own name."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")


from prometheus_client.parser import text_string_to_metric_families
from small import asking, request, served, student
from starlette.testclient import TestClient
from texts import served_texts
from tiny import write_pair

from ebjr import JointClassifier, JointConfig, Router
from ebjr.errors import Overloaded, TooLarge
from ebjr.joint_file import ModelEntry
from ebjr.serving.admission import Admission
from ebjr.serving.app import Served, build_app
from ebjr.serving.logs import Words
from ebjr.serving.sources import Folder


def other(x):
    return 2 * student(x)[:, ::-1]


other.input_shape, other.input_name, other.input_dtype = student.input_shape, "x", "float32"


def pair() -> list[Served]:
    """Two models of the same input whose answers differ."""
    second = Served(JointClassifier(other, other, Router("max_logit", 100.0)), "second")
    return [served(), second]


@pytest.fixture(scope="module")
def client():
    with asking(build_app(pair())) as opened:
        yield opened


def said(answer) -> str:
    return answer.json()["error"]


def metrics(client) -> dict:
    """Every sample by its name and labels; each may be there once."""
    found = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        assert family.name not in {name for name, _ in found}, family.name
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


@pytest.mark.parametrize("long", [False, True])
def test_a_request_goes_to_the_model_that_it_names(client, long):
    how = {"headers": {"Expect": "100-continue"}} if long else {}
    for name, deferred in (("joint", [True, False]), ("second", [True, True])):
        for address in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer"):
            answer = client.post(address, json=request(), **how).json()
            assert (answer["model_name"], answer["model_version"]) == (name, "1")
            outputs = {one["name"]: one["data"] for one in answer["outputs"]}
            assert outputs["deferred"] == deferred
    answer = client.post("/v2/models/third/infer", json=request(), **how)
    assert answer.status_code == 404
    assert said(answer) == (
        "there is no model 'third' here; the models are called 'joint', 'second'"
    )
    answer = client.post("/v2/models/second/versions/2/infer", json=request(), **how)
    assert (answer.status_code, said(answer)) == (
        404,
        "there is no version '2' of 'second'; it has '1'",
    )


def test_what_names_no_model_is_refused_in_a_sentence_that_lists_them(client):
    sentence = "name the model with ?model=NAME: the models are called 'joint', 'second'"
    asked = {
        "/v1/router": client.get,
        "/v1/status": client.get,
        "/v1/late/x": client.get,
        "/v1/both": lambda path: client.post(path, json=request([(1.0, 0.0)])),
    }
    for path, ask in asked.items():
        answer = ask(path)
        assert (answer.status_code, said(answer)) == (400, sentence), path
    answer = client.put("/v1/router", json={"threshold": 3.0})
    assert (answer.status_code, said(answer)) == (400, sentence)
    for name in ("joint", "second"):
        assert client.get(f"/v1/status?model={name}&version=1").json()["model"] == name
        both = client.post(f"/v1/both?model={name}", json=request([(1.0, 0.0)]))
        assert both.status_code == 200
    assert client.get("/v1/router?model=third").status_code == 404


def test_each_has_a_knob_of_its_own(client):
    moved = client.put("/v1/router?model=second", json={"threshold": 7.0})
    assert moved.json()["threshold"] == 7.0
    assert client.get("/v1/router?model=second").json()["threshold"] == 7.0
    assert client.get("/v1/router?model=joint").json()["threshold"] == 1.0
    client.put("/v1/router?model=second", json={"threshold": 100.0})


def test_the_index_and_the_metadata_name_them_all(client):
    index = client.post("/v2/repository/index").json()
    assert index == [
        {"name": name, "version": "1", "state": "READY"} for name in ("joint", "second")
    ]
    assert client.get("/v2/models/second").json()["versions"] == ["1"]


def test_metrics_are_one_exposition_by_model():
    with TestClient(build_app(pair())) as client:
        client.post("/v2/models/joint/infer", json=request())
        for _ in range(2):
            client.post("/v2/models/second/infer", json=request())
        client.post("/v2/models/second/infer", json={"inputs": []})
        client.post("/v2/models/third/infer", json=request())
        client.get("/v1/router")
        found = metrics(client)
    rows = {labels: value for (name, labels), value in found.items() if name == "ebjr_rows_total"}
    assert rows == {(("model", "joint"),): 2.0, (("model", "second"),): 4.0}
    requests = {
        tuple(value for _, value in labels): count
        for (name, labels), count in found.items()
        if name == "ebjr_requests_total"
    }
    assert requests == {
        ("joint", "200"): 1.0,
        ("second", "200"): 2.0,
        ("second", "400"): 1.0,
        ("", "404"): 1.0,
        ("", "400"): 1.0,
    }
    models = {dict(labels).get("model") for _, labels in found}
    assert models == {"joint", "second", ""}


def test_chat_completions_go_by_the_model_of_the_request():
    def ask(client, name):
        messages = [{"role": "user", "content": "hello"}]
        return client.post("/v1/chat/completions", json={"model": name, "messages": messages})

    texts = served_texts()
    texts.name = "texts"
    with TestClient(build_app([texts, *pair()])) as client:
        assert [one["id"] for one in client.get("/v1/models").json()["data"]] == [
            "joint",
            "second",
            "texts",
        ]
        assert ask(client, "texts").json()["model"] == "texts"
        refused = ask(client, "joint")
        assert refused.status_code == 404
        assert "chat completions need a model" in refused.json()["error"]["message"]
        unknown = ask(client, "none").json()["error"]["message"]
        assert unknown.startswith("there is no model 'none' here; the models are called 'joint'")
        nobody = client.post("/v1/chat/completions", json={"messages": []})
        assert nobody.status_code == 400
    with asking(build_app([texts, *pair()])) as client:
        assert ask(client, "texts").json()["model"] == "texts"
        assert ask(client, "joint").status_code == 404
        counted = metrics(client)
    assert counted["ebjr_requests_total", (("model", "texts"), ("status", "200"))] == 1.0
    assert counted["ebjr_requests_total", (("model", "joint"), ("status", "404"))] == 1.0


def test_two_models_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two models are called 'joint': give each its own name"):
        build_app([served(), served()])


def test_bytes_are_those_of_all_models_and_rows_each_ones_own():
    first = Admission(bytes=100, rows=10, seconds=1e9)
    second = Admission(bytes=100, rows=10, seconds=1e9, beside=first)
    held = first.hold("a")
    held.add(bytes=90, rows=10)
    with pytest.raises(Overloaded, match="hold 90 bytes of requests"):
        second.hold("b").add(bytes=20)
    with second.hold("b") as other:
        other.add(rows=10)
    held.end()
    with second.hold("b") as other:
        other.add(bytes=20)
        other.move(first)
        assert (first.held, second.held) == ([20, 0, 0], [0, 0, 0])
    with pytest.raises(TooLarge):
        first.hold("a").add(bytes=101)
    assert first.held == [0, 0, 0]


def test_the_audit_log_says_of_which_model_a_move_is(tmp_path):
    log = tmp_path / "audit.jsonl"
    with TestClient(build_app(pair(), audit_log=log)) as client:
        client.put("/v1/router?model=second", json={"threshold": 7.0})
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(entry["model"], entry["to"]) for entry in entries] == [
        ("joint", 1.0),
        ("second", 100.0),
        ("second", 7.0),
    ]
    assert (tmp_path / "joint").is_dir()
    assert (tmp_path / "second").is_dir()


def test_lines_of_the_log_and_moves_say_of_which_model_and_version_they_are(tmp_path, caplog):
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    for name in ("a", "b/1", "b/2"):
        (tmp_path / name).mkdir(parents=True)
        entries = [ModelEntry.of_file(path) for path in write_pair(tmp_path / name)]
        JointConfig(*entries, "softmax", 0.5).save(tmp_path / name / "joint.toml")
    app = build_app(Folder(tmp_path), audit_log=tmp_path / "audit.jsonl")
    with TestClient(app) as client, caplog.at_level("INFO", "ebjr.serving"):
        for query in ("model=a", "model=b&version=1", "model=b"):
            assert client.put(f"/v1/router?{query}", json={"threshold": 0.9}).status_code == 200
    lines = [Words("%(message)s").format(record) for record in caplog.records]
    moved = "the knob was moved from 0.5 to 0.9 by testclient: asked for threshold 0.9"
    assert [line for line in lines if "moved" in line] == [
        f"{moved} (model a)",
        f"{moved} (model b, version 1)",
        f"{moved} (model b, version 2)",
    ]
    moves = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    moves = [(move["model"], move.get("version")) for move in moves if move.get("to") == 0.9]
    assert moves == [("a", None), ("b", "1"), ("b", "2")]


@pytest.mark.parametrize(
    ("name", "address"),
    [("stats", "/v2/models/stats"), ("a:predict", "/v1/models/a:predict")],
)
def test_a_name_that_makes_another_address_is_refused(name, address):
    with pytest.raises(ValueError, match=f"called '{name}': {address} is another address"):
        build_app(Served(served().joint, name))


@pytest.mark.parametrize("name", ["infer", "ready", "versions", "models", "predict", "index"])
def test_a_name_that_leads_only_to_its_model_is_served(name):
    with asking(build_app(Served(served().joint, name))) as client:
        for path in ("/v2/models", "/v1/models"):
            assert client.get(f"{path}/{name}").json()["name"] == name
        assert client.post(f"/v2/models/{name}/infer", json=request()).status_code == 200
