"""A model repository: loaded, reloaded and let go of while it serves, by unmodified clients."""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

import httpx2 as httpx
import tritonclient.grpc
import tritonclient.http
from small import asking, load, received, request, served, student, teacher
from starlette.testclient import TestClient
from tiny import CLASSES, SIZE, write_linear, write_pair
from tritonclient.utils import InferenceServerException

from ebjr import EbjrError, JointConfig
from ebjr.data.preprocess import unprepared
from ebjr.joint import models_of
from ebjr.joint_file import ModelEntry
from ebjr.serving.app import build_app
from ebjr.serving.grpc import grpc_server
from ebjr.serving.repository import Repository
from ebjr.serving.sources import Files, Folder, source_of

ROWS = np.ones((2, 3, SIZE, SIZE), np.float32)


def write(folder: Path, teacher: float = 20.0, weights: Path | None = None, **how) -> Path:
    """A joint.toml in a folder, of the pair there or in `weights`; how large its teacher's says."""
    folder.mkdir(parents=True, exist_ok=True)
    own = folder if weights is None else weights
    own.mkdir(exist_ok=True)
    student, _ = write_pair(own)
    large = write_linear(own / f"teacher-{teacher:g}.onnx", teacher * np.eye(3)[::-1])
    entries = [ModelEntry.of_file(path) for path in (student, large)]
    about = {"score": "softmax", "threshold": 0.5, "labels": CLASSES, **how}
    JointConfig(*entries, **about).save(folder / "joint.toml")
    return folder / "joint.toml"


def change(file: Path, **how) -> None:
    replace(JointConfig.read(file), **how).save(file)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two models, of which one has two versions."""
    shop = tmp_path / "models"
    shop.mkdir()
    write(shop / "colors")
    for version, threshold in (("1", 0.3), ("2", 0.6), ("10", 0.9)):
        write(shop / "kinds" / version, threshold=threshold)
    (shop / "README").write_text("no model")
    (shop / "weights").mkdir()
    return shop


def body(rows=ROWS) -> dict:
    tensor = {"name": "image", "shape": list(rows.shape), "datatype": "FP32"}
    return {"inputs": [{**tensor, "data": rows.ravel().tolist()}]}


def ask(client, name, version=None):
    path = f"/v2/models/{name}{f'/versions/{version}' if version else ''}/infer"
    return client.post(path, json=body())


def index(client) -> dict:
    found = client.post("/v2/repository/index").json()
    return {(one["name"], one["version"]): (one["state"], one.get("reason")) for one in found}


READY = ("READY", None)


def test_a_folder_is_served_by_name_and_version_the_newest_unless_one_is_named(folder):
    with asking(build_app(Folder(folder))) as client:
        assert index(client) == {
            ("colors", "1"): READY,
            ("kinds", "1"): READY,
            ("kinds", "2"): READY,
            ("kinds", "10"): READY,
        }
        assert client.get("/v2/models/kinds").json()["versions"] == ["1", "2", "10"]
        for version, own, threshold in ((None, "10", 0.9), ("2", "2", 0.6), ("1", "1", 0.3)):
            answer = ask(client, "kinds", version).json()
            assert (answer["model_version"], answer["parameters"]["threshold"]) == (own, threshold)
            query = f"?model=kinds&version={version}" if version else "?model=kinds"
            assert client.get(f"/v1/router{query}").json()["threshold"] == threshold
        assert client.get("/v2/models/kinds/versions/2/ready").status_code == 200
        assert client.get("/v2/models/kinds/versions/3/ready").json()["error"] == (
            "there is no version '3' of 'kinds'; it has '1', '2', '10'"
        )
        text = client.get("/metrics").text
    assert 'ebjr_rows_total{model="kinds",version="2"} 2.0' in text
    assert 'ebjr_rows_total{model="colors"} 0.0' in text


def test_a_model_whose_name_leads_elsewhere_is_refused_before_it_is_loaded(folder, caplog):
    (folder / "stats").mkdir()
    (folder / "stats" / "joint.toml").write_text("not read")
    why = "a model cannot be called 'stats': /v2/models/stats is another address of the server"
    with asking(build_app(Folder(folder))) as client:
        assert index(client)["stats", "1"] == ("UNAVAILABLE", why)
        answer = load(client, "stats")
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            f"stats cannot be loaded: {why}",
        )
        assert len(client.get("/v2/models/stats").json()["model_stats"]) == 4
    file = write(folder / "alone", name="stats")
    with pytest.raises(ValueError, match=re.escape(why)):
        build_app(Files(file))


def test_what_load_says_of_a_broken_model_has_no_path_of_the_server(folder, caplog):
    write(folder / "gone").with_name("student.onnx").unlink()
    with asking(build_app(Folder(folder))) as client:
        write(folder / "both")
        write(folder / "both" / "1")
        for name, why in (
            ("gone", "gone cannot be loaded: joint.toml names the missing model file "),
            ("both", "both has both a joint.toml and versions: keep one"),
        ):
            said = load(client, name).json()["error"]
            assert said.startswith(why)
            assert str(folder) not in said
            assert str(folder / "gone") in caplog.text


def test_the_description_is_made_once_and_again_when_a_model_has_changed(folder):
    app = build_app(Folder(folder))
    with asking(app) as client:
        first = client.get("/openapi.json").content
        app.state.repository.of("colors").served.operating_points = {"unseen": 0.5}
        assert client.get("/openapi.json").content == first
        change(folder / "colors" / "joint.toml", operating_points={"late": {"threshold": 0.7}})
        assert load(client, "colors").status_code == 200
        assert b'"late"' in client.get("/openapi.json").content


def test_broken_models_have_a_reason_and_the_others_serve(folder, caplog):
    (folder / "toml").mkdir()
    (folder / "toml" / "joint.toml").write_text("threshold = ")
    write(folder / "weights-gone")
    (folder / "weights-gone" / "student.onnx").unlink()
    write(folder / "named", name="colors")
    write(folder / "both")
    write(folder / "both" / "1")
    with asking(build_app(Folder(folder))) as client:
        found = index(client)
        assert ask(client, "colors").status_code == 200
        assert client.get("/v2/models/named/ready").status_code == 404
        said = ask(client, "named").json()["error"]
        ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert str(folder) not in str([*found.values(), said])  # a client learns no path of the server
    assert str(folder) in caplog.text
    assert {name for (name, _), (state, _) in found.items() if state == "UNAVAILABLE"} == {
        *("toml", "weights-gone", "named", "both")
    }
    assert {one["name"] for one in ready} == {"colors", "kinds"}
    reasons = {name: reason for (name, _), (_, reason) in found.items()}
    assert "is not a TOML file" in reasons["toml"]
    assert "joint.toml names the missing model file" in reasons["weights-gone"]
    assert "calls its model 'colors', but its folder is 'named'" in reasons["named"]
    assert "has both a joint.toml and versions: keep one" in reasons["both"]
    assert said.startswith("'named' is not served now: ")
    assert caplog.text.count("cannot be loaded: ") == 4


def test_a_model_is_loaded_unloaded_and_loaded_again(folder):
    with asking(build_app(Folder(folder))) as client:
        assert load(client, "kinds", "unload").status_code == 200
        assert {index(client)["kinds", version] for version in ("1", "2", "10")} == {
            ("UNAVAILABLE", "unloaded")
        }
        gone = ask(client, "kinds")
        assert (gone.status_code, gone.json()["error"]) == (
            404,
            "'kinds' is not served now: unloaded",
        )
        assert ask(client, "colors").status_code == 200
        assert client.get("/v1/router").status_code == 200  # of the only one
        assert load(client, "kinds").status_code == 200
        assert ask(client, "kinds").json()["model_version"] == "10"
        write(folder / "third", threshold=0.7)
        shutil.rmtree(folder / "kinds" / "10")
        assert load(client, "third").status_code == 200
        assert load(client, "kinds").status_code == 200
        assert ask(client, "third").json()["parameters"]["threshold"] == 0.7
        assert ask(client, "kinds").json()["model_version"] == "2"
        assert ("kinds", "10") not in index(client)


OUTSIDE = ["../outside", "..", ".", "/etc", "colors/../../outside", "linked", "weights", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_outside_of_the_repository_is_not_loaded(folder, name):
    write(folder.parent / "outside")
    (folder / "linked").symlink_to(folder.parent / "outside")
    with serving(Folder(folder)) as (client, over_grpc):
        before = index(client)
        answer = client.post(f"/v2/repository/models/{name.replace('/', '%2F')}/load")
        assert 400 <= answer.status_code < 500
        assert "\n" not in answer.json()["error"]
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            over_grpc.load_model(name)
        assert index(client) == before
        assert ask(client, "colors").status_code == 200


def ready(triton) -> set:
    """What a client sees to be ready in the index."""
    if isinstance(triton, tritonclient.grpc.InferenceServerClient):
        found = triton.get_model_repository_index(as_json=True)["models"]
    else:
        found = triton.get_model_repository_index()
    return {(one["name"], one["version"]) for one in found if one["state"] == "READY"}


@contextmanager
def serving(models, token=None):
    """Over HTTP and gRPC: a client of each."""
    address: list[str] = []

    def beside(repository):
        return grpc_server(repository, port=0, started=address.append)

    with (
        asking(build_app(models, token=token, beside=[beside])) as client,
        tritonclient.grpc.InferenceServerClient(address[0].removeprefix("grpc://")) as other,
    ):
        yield client, other


def test_tritons_clients_do_all_of_it_unchanged(folder):
    with serving(Folder(folder)) as (client, over_grpc):
        place = str(client.base_url).removeprefix("http://").rstrip("/")
        with tritonclient.http.InferenceServerClient(place) as over_http:
            for triton in (over_http, over_grpc):
                told = {"as_json": True} if triton is over_grpc else {}

                assert len(ready(triton)) == 4
                triton.unload_model("kinds")
                assert ("kinds", "2") not in ready(triton)
                triton.load_model("kinds")
                assert triton.is_model_ready("kinds", "2")
                own = tritonclient.grpc if told else tritonclient.http
                given = own.InferInput("image", ROWS.shape, "FP32")
                given.set_data_from_numpy(ROWS)
                answer = triton.infer("kinds", [given], model_version="2")
                assert answer.as_numpy("score").shape == (2,)
                config = triton.get_model_config("colors", **told)
                config = config["config"] if told else config
                assert (config["name"], config["max_batch_size"]) == ("colors", 32)
                (given,) = config["input"]
                assert given["data_type"] == "TYPE_FP32"
                assert [int(size) for size in given["dims"]] == [3, SIZE, SIZE]
                kinds = {one["name"]: one["data_type"] for one in config["output"]}
                assert (kinds["score"], kinds["deferred"]) == ("TYPE_FP32", "TYPE_BOOL")
                stats = triton.get_inference_statistics("kinds", "2", **told)["model_stats"]
                (own,) = stats
                assert (own["name"], own["version"]) == ("kinds", "2")
                assert int(own["inference_count"]) == 2
                assert int(own["execution_count"]) == sum(
                    int(each["compute_infer"]["count"]) for each in own["batch_stats"]
                )
                figures = own["inference_stats"]
                assert int(figures["success"]["count"]) == 1
                for name in ("success", "queue", "compute_infer"):
                    assert int(figures[name]["ns"]) > 0
                every = triton.get_inference_statistics(**told)["model_stats"]
                assert [(one["name"], one["version"]) for one in every] == [
                    *(("colors", "1"), ("kinds", "1"), ("kinds", "2"), ("kinds", "10"))
                ]
            with pytest.raises(InferenceServerException, match="send no parameters"):
                over_grpc.load_model("kinds", config="{}")
            with pytest.raises(InferenceServerException, match="send no parameters"):
                over_http.load_model("kinds", config="{}")


def test_only_who_may_move_the_knob_loads_models(folder):
    with serving(Folder(folder), token="sesame") as (client, over_grpc):
        refused = load(client, "kinds")
        assert refused.status_code == 401
        assert refused.json()["error"].startswith("loading models needs the right to move the")
        for call in (over_grpc.load_model, over_grpc.unload_model):
            with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
                call("kinds")
            call("kinds", headers={"authorization": "Bearer sesame"})
        shown = {"Authorization": "Bearer sesame"}
        assert client.post("/v2/repository/models/kinds/load", headers=shown).status_code == 200
    with serving(Folder(folder)) as (client, over_grpc):
        elsewhere = {"X-Forwarded-For": "192.0.2.7"}
        refused = client.post("/v2/repository/models/kinds/unload", headers=elsewhere)
        assert refused.status_code == 403
        with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
            over_grpc.unload_model("kinds", headers={"x-forwarded-for": "192.0.2.7"})
        assert ask(client, "kinds").status_code == 200


@pytest.mark.parametrize("nonsense", [b"[]", b"{", b'{"ready": 1}', b" " * 5000])
def test_nonsense_is_refused_in_a_sentence(folder, nonsense):
    with TestClient(build_app(Folder(folder))) as client:
        answer = client.post("/v2/repository/index", content=nonsense)
        assert answer.status_code in (400, 413)
        assert "\n" not in answer.json()["error"]


def test_explicit_files_are_all_right_or_none_is_served(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    with pytest.raises(ValueError, match="two models are called 'joint': give each its own name"):
        Repository(Files(first, second))
    change(second, name="second")
    assert list(Repository(Files(first, second))._named) == ["joint", "second"]
    second.write_text("threshold = ")
    with pytest.raises(ValueError, match="is not a TOML file"):
        Repository(Files(first, second))
    with pytest.raises(ValueError, match="is given twice"):
        Files(first, first)


def test_a_folder_that_has_no_model_or_none_that_serves_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="a model repository has one for each model"):
        source_of([tmp_path])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "joint.toml").write_text("x")
    with pytest.raises(ValueError, match="none of the models can be served: a: "):
        Repository(source_of([tmp_path]))
    one = write(tmp_path / "b")
    assert isinstance(source_of([one.parent]), Files)
    with pytest.raises(ValueError, match="is a folder: give one folder of models alone"):
        source_of([tmp_path, one])


def test_models_that_name_the_same_file_share_it(tmp_path):
    weights = tmp_path / "weights"
    shop = tmp_path / "models"
    for name in ("a", "b"):
        write(shop / name, weights=weights, threshold=0.3 if name == "a" else 0.6)
    repository = Repository(Folder(shop))
    first, second = (
        [unprepared(model)[0] for model in models_of(service.served.joint)]
        for service in repository.services
    )
    assert [mine is other for mine, other in zip(first, second, strict=True)] == [True, True]
    thresholds = [service.knob.threshold for service in repository.services]
    assert thresholds == [0.3, 0.6]


def test_a_model_of_python_is_not_loaded_again():
    with TestClient(build_app(served())) as client:
        answer = load(client, "joint")
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            "'joint' came from no joint.toml, so it cannot be reloaded",
        )
        assert load(client, "other").status_code == 404


def test_what_was_let_go_of_is_forgotten(folder):
    """Its weights go with it: nothing knows a service that was replaced or unloaded."""
    app = build_app(Folder(folder))
    with asking(app) as client:
        ask(client, "kinds")
        ask(client, "colors")
        gone = [weakref.ref(service) for service in app.state.repository.services]
        load(client, "kinds", "unload")
        write(folder / "colors", teacher=40.0)
        assert load(client, "colors").status_code == 200
        ask(client, "colors")
        until(lambda: gc.collect() is not None and not any(each() for each in gone))


@contextmanager
def callers(ask, stop: threading.Event, number: int = 3):
    """Threads that ask until the end."""
    threads = [threading.Thread(target=ask) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


CHANGES = {
    "threshold": lambda file: change(file, threshold=0.8),
    "operating points": lambda file: change(file, operating_points={"fast": {"threshold": 0.4}}),
    "labels": lambda file: change(file, labels=("b", "g", "r")),
    "weights": lambda file: write(file.parent, teacher=40.0, threshold=0.8),
    "score": lambda file: change(file, score="margin", threshold=0.1),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_file_takes_over_without_a_failed_request(folder, what):
    file, failed, stop, thresholds = folder / "colors" / "joint.toml", [], threading.Event(), set()
    app = build_app(Folder(folder))
    with asking(app) as client:

        def asks():
            with httpx.Client(base_url=client.base_url, timeout=60) as own:
                while not stop.is_set():
                    answer = ask(own, "colors")
                    if answer.status_code != 200:
                        failed.append(answer.text)
                    else:
                        thresholds.add(answer.json()["parameters"]["threshold"])

        with callers(asks, stop):
            before = app.state.repository.of("colors")
            CHANGES[what](file)
            assert load(client, "colors").status_code == 200
            expected = JointConfig.read(file).threshold
            assert client.get("/v1/router?model=colors").json()["threshold"] == expected
            assert ask(client, "colors").json()["parameters"]["threshold"] == expected
            same = app.state.repository.of("colors") is before
            assert same == (what in ("threshold", "operating points"))
            if what == "labels":
                both = client.post("/v1/both?model=colors", json=body(ROWS[:1])).json()
                assert {one["label"] for one in both["student"]["top"]} <= {"b", "g", "r"}
            file.write_text("threshold = ")
            wrong = load(client, "colors")
            assert wrong.status_code == 400
            assert wrong.json()["error"].startswith("colors stays as it was: ")
            state, reason = index(client)["colors", "1"]
            assert state == "READY"
            assert "is not a TOML file" in reason
            assert ask(client, "colors").json()["parameters"]["threshold"] == expected
    assert not failed
    assert thresholds <= {0.5, expected}


def test_weights_that_have_changed_beside_their_file_are_refused_and_the_old_ones_answer(folder):
    with asking(build_app(Folder(folder))) as client:
        before = ask(client, "colors").json()["outputs"]
        write_linear(folder / "colors" / "student.onnx", np.ones((3, 3)))
        wrong = load(client, "colors")
        assert wrong.status_code == 400
        assert "student.onnx has changed since the threshold was calibrated" in wrong.text
        assert ask(client, "colors").json()["outputs"] == before


def test_a_look_takes_what_has_changed_leaves_the_rest_and_finds_what_is_new(folder, caplog):
    async def looks():
        repository = Repository(Folder(folder))
        repository.start()
        before = {(one.served.name, one.version): one for one in repository.services}
        before["kinds", "1"].knob.move(0.45, who="a hand", why="it wants to")
        await repository.unload("kinds")
        await repository.load("kinds")
        before = {(one.served.name, one.version): one for one in repository.services}
        write(folder / "new")
        shutil.rmtree(folder / "kinds" / "1")
        (folder / "kinds" / "2" / "joint.toml").write_text("?")
        write(folder / "colors", teacher=40.0)
        await repository.look()
        after = {(one.served.name, one.version): one for one in repository.services}
        assert set(after) == {("colors", "1"), ("kinds", "2"), ("kinds", "10"), ("new", "1")}
        assert after["kinds", "2"] is before["kinds", "2"]
        assert after["kinds", "10"] is before["kinds", "10"]
        assert after["colors", "1"] is not before["colors", "1"]
        await repository.unload("new")
        await repository.look()
        assert "new" not in repository._named  # until it is asked for
        await asyncio.to_thread(repository.stop)

    asyncio.run(looks())
    assert "kinds stays as it was: " in caplog.text


def test_the_autopilot_and_the_moves_go_on_over_a_reload(folder):
    file = folder / "colors" / "joint.toml"
    quantiles = [number / 100 for number in range(101)]
    change(file, calibration={"score_quantiles": quantiles})
    with TestClient(build_app(Folder(folder), audit_log=folder / "audit.jsonl")) as client:
        moved = client.put("/v1/router?model=colors", json={"hold": "deferral_rate=0.25"})
        assert moved.json()["autopilot"]["hold"] == "deferral_rate=0.25"
        write(folder / "colors", teacher=40.0, calibration={"score_quantiles": quantiles})
        assert load(client, "colors").status_code == 200
        state = client.get("/v1/router?model=colors").json()
        assert state["autopilot"]["hold"] == "deferral_rate=0.25"
        client.put("/v1/router?model=colors", json={"threshold": 0.2})
        write(folder / "colors", teacher=60.0, calibration={"score_quantiles": quantiles})
        assert load(client, "colors").status_code == 200
        state = client.get("/v1/router?model=colors").json()
        assert (state["autopilot"], state["threshold"]) == (None, 0.5)
    log = (folder / "audit.jsonl").read_text()
    assert '"who": "joint.toml", "from": 0.2, "to": 0.5, "why": "it was read again"' in log
    assert (folder / "kinds" / "2" / "monitor.json").is_file()


def calibrated(points: dict[str, float], scale: float) -> dict:
    """A calibration whose scores are uniform up to `scale`: a threshold's rate is its share."""
    found = {name: {"threshold": threshold} for name, threshold in points.items()}
    quantiles = [scale * number / 100 for number in range(101)]
    return {"calibration": {"score_quantiles": quantiles}, "operating_points": found}


@pytest.mark.parametrize("teacher", [20.0, 40.0])  # adopted in place; loaded beside the old one
def test_the_autopilots_bounds_are_those_of_the_calibration_that_was_reloaded(folder, teacher):
    file = folder / "colors" / "joint.toml"
    change(file, **calibrated({"low": 0.2, "high": 0.6}, 1.0))
    with TestClient(build_app(Folder(folder))) as client:

        def pilot():
            return client.get("/v1/router?model=colors").json()["autopilot"]

        def reloaded(points, scale):
            write(folder / "colors", teacher=teacher, **calibrated(points, scale))
            return load(client, "colors")

        for between, first, then in (
            (None, [0.2, 0.6], [0.1, 0.5]),  # the threshold 0.5 is a point of its own
            (["low", 0.75], [0.2, 0.75], [0.1, 0.75]),
            ([0.05, "high"], [0.05, 0.6], [0.05, 0.4]),
        ):
            change(file, **calibrated({"low": 0.2, "high": 0.6}, 1.0))
            assert load(client, "colors").status_code == 200
            wish = {"hold": "p99=1s", **({} if between is None else {"between": between})}
            client.put("/v1/router?model=colors", json=wish)
            assert pilot()["between"] == pytest.approx(first)
            assert reloaded({"low": 0.1, "high": 0.4}, 1.0).status_code == 200
            assert pilot()["between"] == pytest.approx(then)
        threshold = client.get("/v1/router?model=colors").json()["threshold"]
        refused = reloaded({"low": 0.1}, 1.0)
        assert (refused.status_code, "no operating point 'high'" in refused.text) == (400, True)
        assert pilot()["between"] == pytest.approx([0.05, 0.4])
        state = client.get("/v1/router?model=colors").json()
        assert (state["threshold"], set(state["operating_points"])) == (threshold, {"low", "high"})
        client.put("/v1/router?model=colors", json={"hold": "deferral_rate=0.25"})
        assert reloaded({"low": 0.2, "high": 0.8}, 2.0).status_code == 200
        assert client.get("/v1/router?model=colors").json()["threshold"] == pytest.approx(0.5)


def test_the_same_file_read_again_leaves_the_autopilots_search_alone(folder):
    change(folder / "colors" / "joint.toml", **calibrated({"low": 0.2}, 1.0))
    with TestClient(build_app(Folder(folder))) as client:
        client.put("/v1/router?model=colors", json={"hold": "deferral_rate=0.25"})
        service = client.app.state.repository.of("colors")
        before = service.control.pilot
        assert load(client, "colors").status_code == 200
        assert service.control.pilot is before


def test_the_scores_buckets_stay_while_a_calibration_is_adopted_and_the_pages_bins_follow(folder):
    file = folder / "colors" / "joint.toml"
    change(file, **calibrated({}, 1.0))
    with TestClient(build_app(Folder(folder))) as client:

        def ends() -> list[str]:
            text = client.get("/metrics").text
            assert (
                "# HELP ebjr_score Scores; buckets end at deciles of the calibration that" in text
            )
            return re.findall(r'ebjr_score_bucket{le="([^"]+)",model="colors"}', text)

        before = ends()
        assert len(before) == 10
        change(file, **calibrated({}, 2.0))
        assert load(client, "colors").status_code == 200
        assert ends() == before
        status = client.get("/v1/status?model=colors").json()
        assert status["calibration"]["histogram"]["edges"][-1] == pytest.approx(1.98)
        assert client.app.state.repository.of("colors").recent.score_edges[-1] == 1.98
        write(folder / "colors", teacher=40.0, **calibrated({}, 2.0))  # loaded anew
        assert load(client, "colors").status_code == 200
        assert ends() != before


def test_a_model_that_fails_on_its_first_batch_is_not_loaded_and_the_old_one_answers(
    folder, monkeypatch
):
    with asking(build_app(Folder(folder), warm_up=True)) as client:
        file = folder / "colors" / "joint.toml"
        monkeypatch.setattr("tiny.SIZE", 4)  # of the teacher's images, and not of the student's
        small = write_linear(folder / "colors" / "small.onnx", np.eye(3))
        change(file, teacher=ModelEntry.of_file(small))
        answer = load(client, "colors")
        assert answer.status_code == 400
        assert "small fails on its first batch" in answer.json()["error"]
        assert ask(client, "colors").status_code == 200


@pytest.mark.parametrize("header", ["", "Content-Encoding: gzip\r\n"])
def test_a_request_that_has_begun_is_answered_by_the_model_that_it_was_sent_to(folder, header):
    """Its body comes after that model was replaced; then there is nothing left of it."""
    payload = json.dumps(body()).encode()
    payload = gzip.compress(payload) if header else payload
    head = (
        "POST /v2/models/colors/infer HTTP/1.1\r\nHost: localhost\r\n"
        f"{header}Content-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    ).encode()
    app = build_app(Folder(folder))
    with asking(app) as client:
        old = weakref.ref(app.state.repository.of("colors"))
        place = client.base_url.host, client.base_url.port
        with socket.create_connection(place, 30) as connection:
            connection.sendall(head + payload[:50])
            until(lambda: old().admission.open)
            write(folder / "colors", teacher=40.0, threshold=0.8)
            assert load(client, "colors").status_code == 200
            assert ask(client, "colors").json()["parameters"]["threshold"] == 0.8
            connection.sendall(payload[50:])
            answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"threshold":0.5' in answer
        until(lambda: gc.collect() is not None and old() is None)


def until(found, seconds: float = 20.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_at_work_is_answered_though_its_model_is_unloaded():
    let, asked = threading.Event(), threading.Event()

    def slow(x):
        asked.set()
        let.wait(30)
        return teacher(x)

    with asking(build_app(served(teacher=slow))) as client:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(client.post, "/v2/models/joint/infer", json=request())
            asked.wait(30)
            assert load(client, "joint", "unload").status_code == 200
            assert client.post("/v2/models/joint/infer", json=request()).status_code == 404
            let.set()
            assert answer.result().status_code == 200
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/status").json()["error"] == (
            "name the model with ?model=NAME: no model is served now"
        )


def test_a_file_of_one_model_is_loaded_again_and_no_other(tmp_path):
    file = write(tmp_path / "a")
    with TestClient(build_app(Files(file))) as client:
        load(client, "joint", "unload")
        assert ask(client, "joint").status_code == 404
        assert load(client, "joint").status_code == 200
        assert ask(client, "joint").status_code == 200
        other = load(client, "other")
        assert (other.status_code, other.json()["error"]) == (
            404,
            "there is no model 'other' here, and no folder to load it from",
        )
        change(file, name="renamed")
        renamed = load(client, "joint")
        assert renamed.status_code == 400
        assert "now calls its model 'renamed': restart the server" in renamed.text
        assert ask(client, "joint").status_code == 200


def test_python_serves_several_files_by_one_call(tmp_path):
    first, second = (JointConfig.read(write(tmp_path / name, name=name)) for name in "ab")
    script = (
        "import sys, ebjr\n"
        "ebjr.serve([ebjr.JointConfig.read(path) for path in sys.argv[1:]], port=0)\n"
    )
    files = [str(tmp_path / name / "joint.toml") for name in "ab"]
    with subprocess.Popen(
        [sys.executable, "-uc", script, *files], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith(f"serving {first.name}, {second.name} at http://")
            with httpx.Client(base_url=said.split()[-1], timeout=60) as client:
                assert [name for name, _ in index(client)] == ["a", "b"]
        finally:
            process.kill()


def test_a_model_that_bears_one_worker_is_asked_by_one_of_all_engines():
    at_once, most, lock = 0, 0, threading.Lock()

    def shared(x):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.002)
        with lock:
            at_once -= 1
        return student(x)

    shared.input_shape, shared.input_name, shared.input_dtype = student.input_shape, "x", np.float32
    first, second = served(student=shared), served(student=shared)
    second.name = "second"
    with asking(build_app([first, second])) as client, ThreadPoolExecutor(8) as pool:
        names = ["joint", "second"] * 40
        rows = request([(5.0, 0.0)] * 3)
        found = [pool.submit(client.post, f"/v2/models/{name}/infer", json=rows) for name in names]
        assert {one.result().status_code for one in found} == {200}
    assert most == 1


def test_a_request_that_is_remembered_asks_for_todays_operating_point(folder):
    file = folder / "colors" / "joint.toml"
    change(file, operating_points={"careful": {"threshold": 0.9}})
    image = tritonclient.http.InferInput("image", ROWS.shape, "FP32")
    image.set_data_from_numpy(ROWS)

    def threshold(port) -> float:
        with tritonclient.http.InferenceServerClient(f"localhost:{port}") as client:
            found = client.infer("colors", [image], parameters={"operating_point": "careful"})
        return found.get_response()["parameters"]["threshold"]

    with asking(build_app(Folder(folder))) as client:
        port = client.base_url.port
        assert [threshold(port), threshold(port)] == [0.9, 0.9]
        change(file, operating_points={"careful": {"threshold": 0.4}})
        assert load(client, "colors").status_code == 200
        assert threshold(port) == 0.4
        change(file, operating_points={})
        assert load(client, "colors").status_code == 200
        with pytest.raises(InferenceServerException, match="no operating point 'careful'"):
            threshold(port)


@pytest.mark.parametrize("given", [("2", "10"), ("1", "2"), None])
def test_a_file_beside_versions_is_refused_and_all_that_serves_stays(folder, given):
    """Whichever came first: `given` versions, or the file."""
    own = folder / "colors"
    if given is not None:
        (own / "joint.toml").unlink()
        for version in given:
            write(own / version, threshold=0.1 * int(version) ** 0.5)
    app = build_app(Folder(folder))
    with asking(app) as client:
        before, answer = app.state.repository.services, ask(client, "colors").json()
        write(own if given else own / "2", threshold=0.9)
        asyncio.run(app.state.repository.look())
        assert app.state.repository.services == before
        reasons = {key: reason for key, (_, reason) in index(client).items() if key[0] == "colors"}
        assert {version for _, version in reasons} >= {*(given or ("1",))}
        assert all("has both a joint.toml and versions: keep one" in it for it in reasons.values())
        wrong = load(client, "colors")
        assert (wrong.status_code, "keep one" in wrong.json()["error"]) == (404, True)
        again = ask(client, "colors").json()
        assert (again["model_version"], again["outputs"]) == (
            answer["model_version"],
            answer["outputs"],
        )
        if given:
            (own / "joint.toml").unlink()
        else:
            shutil.rmtree(own / "2")
        asyncio.run(app.state.repository.look())
        assert {key: found for key, found in index(client).items() if key[0] == "colors"} == {
            ("colors", version): READY for version in given or ("1",)
        }


def test_what_is_unloaded_stays_so_until_it_is_loaded_well(folder):
    app = build_app(Folder(folder))
    with asking(app) as client:

        def look() -> set:
            asyncio.run(app.state.repository.look())
            return {name for (name, _), (state, _) in index(client).items() if state == "READY"}

        load(client, "kinds", "unload")
        write(folder / "kinds" / "11")
        assert look() == {"colors"}
        assert index(client)["kinds", "11"] == ("UNAVAILABLE", "unloaded")
        shutil.move(folder / "kinds", folder.parent / "away")
        assert look() == {"colors"}
        shutil.move(folder.parent / "away", folder / "kinds")
        assert look() == {"colors"}
        load(client, "colors", "unload")
        file = folder / "colors" / "joint.toml"
        right = file.read_text()
        file.write_text("x")
        assert load(client, "colors").status_code == 400
        file.write_text(right)
        assert look() == set()
        assert "is not a TOML file" in index(client)["colors", "1"][1]
        assert load(client, "colors").status_code == load(client, "kinds").status_code == 200
        assert ask(client, "kinds").json()["model_version"] == "11"
        write(folder / "kinds" / "12")
        assert look() == {"colors", "kinds"}
        assert ask(client, "kinds").json()["model_version"] == "12"


def test_the_reason_of_a_broken_file_goes_with_it(folder):
    """Whether another calibration is taken over after it, or the same."""
    file = folder / "colors" / "joint.toml"
    right = file.read_text()
    with asking(build_app(Folder(folder))) as client:
        for threshold in ("0.5", "0.7"):
            file.write_text("x")
            assert load(client, "colors").status_code == 400
            assert index(client)["colors", "1"] != READY
            file.write_text(right.replace("threshold = 0.5", f"threshold = {threshold}"))
            assert load(client, "colors").status_code == 200
            assert index(client)["colors", "1"] == READY


def test_a_name_that_urls_must_escape_means_one_model_on_every_way(tmp_path):
    names = ("a b", "a%20b", "\u00e4\u00f6", "%C3%A4%C3%B6", "a+b", "what?", "#1", "plain_1.-")
    for k, name in enumerate(names):
        write(tmp_path / name, threshold=0.1 + 0.1 * k, weights=tmp_path / ".weights")
    with serving(Folder(tmp_path)) as (client, over_grpc):
        place = str(client.base_url).removeprefix("http://").rstrip("/")
        with tritonclient.http.InferenceServerClient(place) as over_http:
            for k, name in enumerate(names):
                for triton, own in (
                    (over_http, tritonclient.http),
                    (over_grpc, tritonclient.grpc),
                ):
                    given = own.InferInput("image", ROWS.shape, "FP32")
                    given.set_data_from_numpy(ROWS)
                    found = triton.infer(name, [given]).get_response()
                    found = found["model_name"] if own is tritonclient.http else found.model_name
                    assert found == name
                every = "".join(f"%{byte:02x}" for byte in name.encode())
                for way in (every, every.upper(), quote(name), quote(name, safe="+?#"[:1])):
                    assert client.get(f"/v2/models/{way}").json()["name"] == name
                    said = ask(client, way).json()
                    assert said["model_name"] == name
                    assert said["parameters"]["threshold"] == pytest.approx(0.1 + 0.1 * k)
                asked = {"instances": ROWS.tolist()}
                said = client.post(f"/v1/models/{quote(name)}:predict", json=asked).json()
                assert said["parameters"]["threshold"] == pytest.approx(0.1 + 0.1 * k)
                moved = client.get("/v1/router", params={"model": name}).json()
                assert moved["threshold"] == pytest.approx(0.1 + 0.1 * k)


WRONG_NAMES = ["", "a/b", "a/versions/2", ".", "..", " a", "a\n", "a\x00b", "a\\b", "\udce4", 3]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_name_that_nobody_could_ask_by_is_refused(name):
    wrong = served()
    wrong.name = name
    with pytest.raises(ValueError, match=r"a model's name") as error:
        Repository(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "a\n"])
def test_a_file_of_such_a_name_is_named(tmp_path, name):
    file = write(tmp_path / "n", name="named")
    file.write_text(file.read_text().replace('"named"', json.dumps(name)))
    with pytest.raises(ValueError, match=r"joint\.toml: "):
        Repository(Files(file))


def test_a_folder_of_such_a_name_is_not_served_and_the_log_says_so(folder, caplog):
    write(folder / "1")
    for name in ("a\n", " a", "\udce4", "a\\b"):
        write(folder / name, weights=folder / ".weights")
    with serving(Folder(folder)) as (client, over_grpc):
        before = index(client)
        assert {name for name, _ in before} == {"colors", "kinds", "1"}
        for name in ("", "a\n", " a", "a\\b"):
            with pytest.raises(InferenceServerException, match="NOT_FOUND"):
                over_grpc.load_model(name)
            answer = load(client, quote(name, safe=""))
            assert answer.status_code == 404
            assert "\n" not in answer.json()["error"]
        assert index(client) == before
    assert "the folder 'a\\n' in " in caplog.text


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"labels": ("a", "b")}, "there are 2 labels, but student answers 3 classes"),
        ({"labels": ("a", "b", "c", "d")}, "there are 4 labels, but student answers 3 classes"),
        ({"teacher": 5}, r"student returned rows of \(3,\) and wide of \(5,\)"),
        ({"teacher": 5, "labels": None}, r"student returned rows of \(3,\) and wide of \(5,\)"),
        ({"teacher": 5, "blend": 0.5}, r"student returned rows of \(3,\) and wide of \(5,\)"),
    ],
)
def test_labels_or_a_teacher_of_other_classes_are_refused_when_they_are_loaded(folder, how, said):
    file = folder / "colors" / "joint.toml"
    with asking(build_app(Folder(folder), warm_up=True)) as client:
        before = ask(client, "colors").json()["outputs"]
        if "teacher" in how:
            wide = write_linear(folder / "colors" / "wide.onnx", np.ones((3, how["teacher"])))
            how = how | {"teacher": ModelEntry.of_file(wide)}
        change(file, **how)
        wrong = load(client, "colors")
        assert wrong.status_code == 400
        assert re.search(said, wrong.json()["error"])
        state, reason = index(client)["colors", "1"]
        assert (state, bool(re.search(said, reason))) == ("READY", True)
        assert ask(client, "colors").json()["outputs"] == before
    with pytest.raises(EbjrError, match=said):
        build_app(Files(file), warm_up=True)
