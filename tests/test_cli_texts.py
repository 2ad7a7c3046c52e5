"""Texts from record to a server: pipelines of scikit-learn, and rows of several columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from ebjr import JointConfig, Outcomes, load_joint

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

MODELS = """
import csv
import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

with open("train.csv", newline="") as file:
    ROWS = list(csv.DictReader(file))
TEXTS, LABELS = [row["text"] for row in ROWS], [row["label"] for row in ROWS]


def student():
    few = CountVectorizer(vocabulary=["great", "awful"])
    return make_pipeline(few, LogisticRegression()).fit(TEXTS, LABELS)


def teacher():
    return make_pipeline(TfidfVectorizer(), LogisticRegression(C=100)).fit(TEXTS, LABELS)


def of_columns(weight):
    def model(rows):
        sides = np.array([[len(title), len(body)] for title, body in rows.tolist()])
        return weight * (sides - sides.mean())

    model.columns, model.labels = ("title", "body"), ("title", "body")
    model.input_dtype = np.dtype(object)
    return model


small, large = of_columns(1.0), of_columns(3.0)
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Models of texts, and reviews: `text` of data.csv is `review` in more.jsonl."""
    rng = np.random.default_rng(0)
    words = {"ok": ["great", "lovely", "kind"], "harm": ["awful", "cruel", "cold"]}
    rows = [
        (" ".join([*rng.choice(words[label], 2), rng.choice(["film", "plot"])]), label)
        for label in rng.choice(["ok", "harm"], 240).tolist()
    ]
    for name, part in (("train.csv", rows[:80]), ("data.csv", rows[80:])):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([("id", "text", "label"), *((1, *row) for row in part)])
    lines = [json.dumps({"review": text}) for text, _ in rows[80:]]
    (tmp_path / "more.jsonl").write_text("\n".join(lines))
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def test_pipelines_of_texts_go_from_record_to_a_server(run, folder):
    models = "--student models.py:student --teacher models.py:teacher"
    code, _, error = run(*f"record {models} --data data.csv -o o.npz".split())
    assert code == 0, error
    assert "inputs are the texts in text (1 columns), the label is label, left out is id" in error
    assert Outcomes.load("o.npz").columns == ("text",)
    assert run("calibrate", "o.npz", "--tolerance", "0.02", "-o", "joint.toml")[0] == 0
    predict = "predict joint.toml --trust -o {0}.csv --data {0}"
    answers = []
    for name in ("data.csv", "more.jsonl"):  # a lone column may have any name
        code, _, error = run(*predict.format(name).split())
        assert code == 0, error
        with Path(f"{name}.csv").open(newline="") as file:
            answers.append(list(csv.DictReader(file)))
    for one, other in zip(*answers, strict=True):
        assert {**one, "name": ""} == {**other, "name": ""}
        assert one["answered_by"] == ("teacher" if one["deferred"] == "true" else "student")
    assert {row["answered_by"] for row in answers[0]} == {"student", "teacher"}
    code, _, error = run(*f"record {models} --data more.jsonl -o m.npz".split())
    assert (code, Outcomes.load("m.npz").columns) == (0, ("review",)), error
    assert run("evaluate", "m.npz", "--joint", "joint.toml")[0] == 0
    check_server(
        [json.loads(line)["review"] for line in Path("more.jsonl").read_text().splitlines()][:20]
    )


def check_server(texts: list[str]) -> None:
    """A server of joint.toml answers texts as the joint model here does, and refuses numbers."""
    pytest.importorskip("starlette", reason="the extra `serve` is not installed")
    testclient = pytest.importorskip("starlette.testclient", reason="httpx2 is not installed")
    from ebjr.serving.app import build_app, served_of

    here = load_joint("joint.toml", trust=True)(texts)
    served = served_of(JointConfig.read("joint.toml"), trust=True)
    with testclient.TestClient(build_app(served)) as client:
        (tensor,) = client.get("/v2/models/joint").json()["inputs"]
        assert (tensor["datatype"], tensor["shape"]) == ("BYTES", [-1])
        asked = {"name": tensor["name"], "shape": [20], "datatype": "BYTES", "data": texts}
        found = client.post("/v2/models/joint/infer", json={"inputs": [asked]})
        assert found.status_code == 200, found.text
        said = {output["name"]: output["data"] for output in found.json()["outputs"]}
        assert said["prediction"] == here.prediction.tolist()
        assert said["deferred"] == here.deferred.tolist()
        wrong = {**asked, "datatype": "FP32", "data": [1.0] * 20}
        refused = client.post("/v2/models/joint/infer", json={"inputs": [wrong]})
        assert refused.status_code == 400
        assert "BYTES" in refused.json()["error"]


def test_columns_that_models_name_are_read_by_every_command(run, folder):
    rows = [("7" * (k % 5 + 1), "word " * (k % 3), ["title", "body"][k % 2]) for k in range(60)]
    for name, order in (
        ("t.csv", (0, 1, 2)),
        ("turned.csv", (2, 1, 0)),
    ):  # titles look like numbers
        head = [("title", "body", "label")[at] for at in order]
        with Path(name).open("w", newline="") as file:
            csv.writer(file).writerows([head, *([row[at] for at in order] for row in rows)])
    Path("one.csv").write_text("title,other\na,b\n")
    models = "--student models.py:small --teacher models.py:large"
    refused = run(*f"record {models} --data one.csv -o t.npz".split())
    assert refused[0] == 2
    assert "must have one column named 'body', but has none among title, other" in refused[2]
    code, _, error = run(*f"record {models} --data t.csv -o t.npz".split())
    assert code == 0, error
    assert "inputs are" not in error  # nothing was guessed
    assert Outcomes.load("t.npz").columns == ("title", "body")
    assert run("calibrate", "t.npz", "--tolerance", "0.5", "-o", "t.toml")[0] == 0
    said = []
    for name in ("t.csv", "turned.csv"):
        code, _, error = run(*f"predict t.toml --trust --data {name} -o {name}.jsonl".split())
        assert code == 0, error
        lines = Path(f"{name}.jsonl").read_text().splitlines()
        said.append([json.loads(line)["score"] for line in lines])
    assert said[0] == said[1]
    promised = "--promise agreement --teacher-calls 30 --delta 0.1 -o p.jsonl"
    code, _, error = run(*f"predict t.toml --trust --data turned.csv {promised}".split())
    assert code == 0, error
    lines = [json.loads(line) for line in Path("p.jsonl").read_text().splitlines()]
    assert {line["answered_by"] for line in lines} == {"student", "teacher"}
    for words in ("predict t.toml --trust -o no.jsonl", f"record {models} -o no.npz"):
        code, _, error = run(*words.split(), "--data", "t.csv", "--input-columns", "body,title")
        assert code == 2
        assert "the models read the columns title, body in this order, not body, title" in error
    assert list(folder.glob("no.*")) == []
