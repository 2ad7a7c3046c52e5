"""The server over HTTP: tritonclient works unchanged, mistakes are one sentence, the knob moves."""

from __future__ import annotations

import io
import json
import threading
import time

import numpy as np
import pytest
from small import NAME, asking, request, served, student, teacher

from ebjr import JointClassifier, JointConfig, Router, TeacherUnavailable, load_joint
from ebjr.demo import run_demo
from ebjr.protocol import LENGTH_HEADER, InferRequest, write_request

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from starlette.testclient import TestClient

from ebjr.serving.app import Served, build_app, served_of


@pytest.fixture
def client():
    with TestClient(build_app(served())) as opened:
        yield opened


def outputs(answer) -> dict:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def test_it_answers_as_the_joint_model_does(client):
    answer = client.post(f"{NAME}/infer", json=request())
    found = outputs(answer)
    assert found["prediction"] == [2, 0]
    assert found["score"] == [0.5, 5.0]
    assert found["deferred"] == [True, False]
    assert found["degraded"] == [False, False]
    assert answer.json()["parameters"] == {"threshold": 1.0, "calibration": "abc"}


def test_health_and_metadata_are_those_of_the_protocol(client):
    for path in ("/v2/health/live", "/v2/health/ready", f"{NAME}/ready"):
        assert client.get(path).status_code == 200
    extensions = client.get("/v2").json()["extensions"]
    assert extensions == [
        *("binary_tensor_data", "classification"),
        *("model_repository", "model_configuration", "statistics"),
    ]
    about = client.get(NAME).json()
    assert about["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
    assert [output["name"] for output in about["outputs"]][2:] == [
        "score",
        "deferred",
        "degraded",
        "stage",
    ]
    assert "there is no model 'other' here" in client.get("/v2/models/other").json()["error"]


@pytest.mark.parametrize(
    ("parameters", "deferred", "threshold"),
    [
        ({"threshold": 6.0}, [True, True], 6.0),
        ({"operating_point": "careful"}, [True, False], 3.0),
        ({"deferral_rate": 0.0}, [False, False], 0.0),
        ({"deferral_rate": 0.6}, [True, True], 6.0),
        ({"deferral_rate": 1.0}, [True, True], "inf"),
    ],
)
def test_a_request_chooses_its_own_threshold(client, parameters, deferred, threshold):
    answer = client.post(f"{NAME}/infer", json=request(**parameters))
    assert outputs(answer)["deferred"] == deferred
    assert answer.json()["parameters"]["threshold"] == threshold
    assert client.get("/v1/router").json()["threshold"] == 1.0


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (request(threshold="high"), "threshold must be a number, not 'high'"),
        (request(threshold=True), "threshold must be a number, not a boolean"),
        (request(threshold=1.0, deferral_rate=0.5), "give one of threshold and deferral_rate"),
        (request(deferral_rate=1.5), "deferral_rate must lie between 0 and 1, not 1.5"),
        (request(operating_point="wild"), "no operating point 'wild'; there are: careful"),
        (request(colour=1), "no parameter 'colour'"),
        (request(timeout_seconds=0), "timeout_seconds must be above 0 and up to 3600, not 0"),
        (request(timeout_seconds="5"), "timeout_seconds must be above 0"),
        (request(timeout_seconds=True), "timeout_seconds must be above 0"),
        (request(timeout=5.0), "not 5.0; timeout_seconds takes seconds"),
        (request(timeout="5"), "not '5'; timeout_seconds takes seconds"),
        (request(timeout=True), "timeout_seconds takes seconds"),
        (request(timeout=-1), "timeout must be microseconds, a whole number up to 3600000000"),
        (request(timeout=3_600_000_001), "up to 3600000000, not 3600000001"),
        (request(timeout=1, timeout_seconds=1), "give one of timeout_seconds and timeout"),
        (request(priority=1.0), "priority must be a whole number from 0 to 2**64 - 1"),
        (request(priority=-1), "(0 and 1 go first), not -1"),
        (request(priority=2**64), "not 18446744073709551616"),
        (request(values=[]), "at least one row"),
        ({"inputs": []}, "at least one tensor"),
        ([], "must be a JSON object"),
        (
            {"inputs": [{"name": "y", "shape": [1], "datatype": "FP32", "data": [1]}]},
            "one input, 'x', but the request has 'y'",
        ),
        (
            {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]},
            "must have shape [-1, 2], not [1, 3]",
        ),
        (
            {**request(), "threshold": 6.0},
            "a request has no 'threshold'; it has inputs, outputs, parameters, id, model_name",
        ),
        ({**request(), "model_name": "b"}, "names the model 'joint', but the request 'b'"),
        (
            {"inputs": [{**request()["inputs"][0], "threshold": 6.0}]},
            "the tensor 'x' has no 'threshold'; it has name, datatype, shape, data, parameters",
        ),
        (
            {"inputs": [{**request()["inputs"][0], "parameters": {"content_type": "np"}}]},
            "'parameters' of the tensor 'x' has no 'content_type'; it has binary_data_size",
        ),
        (
            {**request(), "outputs": [{"name": "output", "classification": 1}]},
            "the requested output 'output' has no 'classification'; it has name, parameters",
        ),
        (
            {
                **request(),
                "outputs": [{"name": "output", "parameters": {"shared_memory_region": "r"}}],
            },
            "has no 'shared_memory_region'; it has binary_data, classification",
        ),
    ],
)
def test_a_mistake_is_a_400_in_one_sentence_and_the_server_goes_on(client, message, says):
    answer = client.post(f"{NAME}/infer", json=message)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert "\n" not in answer.json()["error"]
    assert outputs(client.post(f"{NAME}/infer", json=request()))["prediction"] == [2, 0]


@pytest.mark.parametrize(
    ("wanted", "sent", "good", "bad"),
    [
        (np.uint8, np.float32, 7, 0.5),
        (np.uint8, np.int64, 255, 256),
        (np.int64, np.float64, -3, np.nan),
        (np.int32, np.int64, 5, 2**40),
        (np.float32, np.float64, 0.1, 1e300),
        (np.float32, np.float64, np.inf, -1e300),
        (np.float32, np.int64, 2**40 + 1, None),
        (np.bool_, np.int64, 1, 2),
    ],
)
def test_a_number_that_the_models_type_lacks_is_refused_and_not_changed(wanted, sent, good, bad):
    seen = []

    def model(x):
        seen.append(x)
        return student(x.astype(np.float32))

    model.input_shape, model.input_name, model.input_dtype = (None, 2), "x", wanted
    app = build_app(Served(JointClassifier(model, model, Router("max_logit", -1e9))))
    with asking(app) as client:
        for value in (good, bad, good):
            if value is None:
                continue
            rows = InferRequest({"x": np.array([[1, value]], sent)})
            body, length = write_request(rows)  # one head, whose reading is remembered
            answer = client.post(
                f"{NAME}/infer", content=body, headers={LENGTH_HEADER: str(length)}
            )
            assert answer.status_code == (400 if value is bad else 200), answer.text
            if value is bad:
                (name,) = [one["datatype"] for one in client.get(NAME).json()["inputs"]]
                said = f"the input 'x' must be {name}, which has no {np.array([bad], sent)[0]}"
                assert answer.json() == {"error": said}
            else:
                np.testing.assert_array_equal(seen[-1], np.array([[1, good]], wanted))


@pytest.mark.parametrize("name", ["threshold", "timeout", "outputs", "version"])
def test_a_parameter_in_the_address_is_refused_where_it_has_no_effect(client, name):
    for path in (f"{NAME}/infer", "/v1/models/joint:predict"):
        answer = client.post(f"{path}?{name}=2", json=request())
        assert answer.status_code == 400
        assert answer.json()["error"].startswith(f"{name!r} has no effect in the address: send")
    for method, path in (("PUT", "/v1/router"), ("GET", "/v1/status")):
        answer = client.request(method, f"{path}?verison=2", json={"threshold": 9.0})
        assert answer.status_code == 400
        assert answer.json()["error"] == (
            "the address after '?' has no 'verison'; it has model, version"
        )
    assert client.get("/v1/router").json()["threshold"] == 1.0
    assert client.post(f"{NAME}/infer?trace=2", json=request()).status_code == 200


def test_the_model_may_be_named_again_in_the_message(client):
    assert client.post(f"{NAME}/infer", json={**request(), "model_name": "joint"}).is_success


@pytest.mark.parametrize(("path", "known"), [("index", "ready"), ("models/x/load", "parameters")])
def test_a_call_of_the_repository_says_nothing_that_has_no_effect(client, path, known):
    answer = client.post(f"/v2/repository/{path}", json={"raedy": True})
    assert answer.status_code == 400
    assert answer.json()["error"] == f"the request has no 'raedy'; it has {known}"


def test_a_call_of_the_repository_has_each_name_once(client):
    answer = client.post("/v2/repository/index", content=b'{"ready": true, "ready": false}')
    assert answer.status_code == 400
    assert answer.json()["error"] == "the JSON has two values of 'ready': send one"


def test_the_knob_is_read_and_moved(client):
    assert client.get("/v1/router").json() == {
        "score": "max_logit",
        "threshold": 1.0,
        "deferral_rate": 0.1,
        "operating_points": {"careful": 3.0},
        "calibration": "abc",
        "promise": None,
        "autopilot": None,
    }
    for wish, threshold in (
        ({"threshold": 6.0}, 6.0),
        ({"operating_point": "careful"}, 3.0),
        ({"deferral_rate": 0.25}, 2.5),
    ):
        assert client.put("/v1/router", json=wish).json()["threshold"] == threshold
    assert outputs(client.post(f"{NAME}/infer", json=request()))["deferred"] == [True, False]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "the knob takes JSON like"),
        (b"[]", "the knob takes JSON like"),
        (b"{}", "the knob takes JSON like"),
        (b'{"threshold": NaN}', "above -inf"),
        (b'{"threshold": 1e400}', "1e400 is beyond JSON's numbers"),
        (b'{"threshold": Infinity}', "an infinite threshold is 'inf'"),
        (b'{"threshold": "Infinity"}', "must be a number, not 'Infinity'"),
        (b'{"threshold": true}', "must be a number"),
        (b'{"threshold": 0.1, "threshold": 0.82}', "the JSON has two values of 'threshold'"),
        (b'{"threshold": 1, "deferral_rate": 0.5}', "the knob takes JSON like"),
        (b'{"deferral_rate": 2}', "between 0 and 1"),
        (b'{"hold": null, "between": [0.1, 0.5]}', "the knob takes JSON like"),
        (b'{"hold": 5}', "the autopilot holds p99=50ms"),
    ],
)
def test_a_knob_that_cannot_be_moved_like_that_stays_where_it_is(client, content, says):
    answer = client.put("/v1/router", content=content)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert client.get("/v1/router").json()["threshold"] == 1.0


def test_an_infinite_threshold_can_be_sent_as_answers_and_the_knob_tell_it(client):
    own = client.post(f"{NAME}/infer", json=request(deferral_rate=1.0)).json()["parameters"]
    assert own["threshold"] == "inf"
    again = client.post(f"{NAME}/infer", json=request(threshold=own["threshold"]))
    assert outputs(again)["deferred"] == [True, True]
    assert again.json()["parameters"]["threshold"] == "inf"
    assert client.put("/v1/router", json={"threshold": "inf"}).json()["threshold"] == "inf"


def test_with_a_token_the_knob_wants_to_see_it():
    with TestClient(build_app(served(), token="sesame")) as client:
        assert client.put("/v1/router", json={"threshold": 2}).status_code == 401
        wrong = {"Authorization": "Bearer other"}
        assert client.put("/v1/router", json={"threshold": 2}, headers=wrong).status_code == 401
        right = {"Authorization": "Bearer sesame"}
        assert client.put("/v1/router", json={"threshold": 2}, headers=right).status_code == 200


def test_without_a_token_the_knob_is_moved_from_this_machine_alone():
    app = build_app(served())
    with TestClient(app, client=("192.0.2.7", 5000)) as client:
        answer = client.put("/v1/router", json={"threshold": 2})
    assert (answer.status_code, "--token" in answer.json()["error"]) == (403, True)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8080", 200),
        ("http://[::1]:8080", 200),
        ("http://example.com", 403),  # whose name leads here by now
        ("http://localhost.example.com", 403),
        ("null", 403),
        ("http://[::1", 403),
    ],
)
def test_without_a_token_no_other_sites_page_moves_the_knob(client, origin, status):
    answer = client.put("/v1/router", json={"threshold": 2}, headers={"Origin": origin})
    assert answer.status_code == status
    assert client.get("/v1/router").json()["threshold"] == (2.0 if status == 200 else 1.0)


def test_a_teacher_that_is_away_degrades_its_rows():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    with TestClient(build_app(served(teacher=away))) as client:
        found = outputs(client.post(f"{NAME}/infer", json=request()))
        assert found["degraded"] == [True, False]
        assert found["prediction"] == [0, 0]
    with TestClient(build_app(served(teacher=away, when_unavailable="error"))) as client:
        answer = client.post(f"{NAME}/infer", json=request())
        assert (answer.status_code, answer.json()["error"]) == (503, "the cloud is gone")


@pytest.mark.parametrize("wish", [{"timeout_seconds": 0.2}, {"timeout": 200_000}])
def test_a_deadline_gives_the_students_answer_marked(wish):
    gate = threading.Event()

    def slow(x):
        gate.wait(30)
        return teacher(x)

    with TestClient(build_app(served(teacher=slow))) as client:
        try:
            found = outputs(client.post(f"{NAME}/infer", json=request(**wish)))
        finally:
            gate.set()
    assert found["degraded"] == [True, False]


def test_beyond_the_queue_is_a_429_that_says_when_to_come_again():
    gate = threading.Event()

    def slow(x):
        gate.wait(30)
        return student(x)

    slow.input_shape, slow.input_name, slow.input_dtype = (None, 2), "x", np.float32
    joint = JointClassifier(slow, teacher, Router("max_logit", 1.0))
    app = build_app(Served(joint), queue_rows=2, timeout_seconds=0.3)
    with TestClient(app) as client:
        try:
            codes = [client.post(f"{NAME}/infer", json=request()).status_code for _ in range(2)]
            refused = client.post(f"{NAME}/infer", json=request())
        finally:
            gate.set()
    assert codes == [504, 504]
    assert refused.status_code in (429, 504)


def test_metrics_count_what_happened(client):
    client.post(f"{NAME}/infer", json=request())
    client.post(f"{NAME}/infer", json={})
    text = client.get("/metrics").text
    assert 'ebjr_rows_total{model="joint"} 2.0' in text
    assert 'ebjr_deferred_rows_total{model="joint"} 1.0' in text
    assert 'ebjr_requests_total{model="joint",status="200"} 1.0' in text
    assert 'ebjr_requests_total{model="joint",status="400"} 1.0' in text
    assert 'ebjr_threshold{model="joint"} 1.0' in text


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    return run_demo(tmp_path_factory.mktemp("demo"), recorded=True).files["joint.toml"]


def test_images_come_as_pixels_or_as_files_and_are_answered_alike(shipped):
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    with TestClient(build_app(served_of(JointConfig.read(shipped)))) as client:
        pixels = {"name": "image", "shape": [3, 32, 32, 3], "datatype": "UINT8"}
        plain = client.post(
            f"{NAME}/infer", json={"inputs": [{**pixels, "data": images.ravel().tolist()}]}
        )
        files = []
        for image in images:
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            files.append(file.getvalue())
        raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        encoded = {"name": "image", "shape": [3], "datatype": "BYTES"}
        head = json.dumps(
            {"inputs": [{**encoded, "parameters": {"binary_data_size": len(raw)}}]}
        ).encode()
        sent = {"Inference-Header-Content-Length": str(len(head))}
        binary = client.post(f"{NAME}/infer", content=head + raw, headers=sent)
        broken = client.post(
            f"{NAME}/infer",
            json={"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["x"]}]},
        )
    assert outputs(plain) == outputs(binary)
    assert outputs(plain)["prediction"] == load_joint(shipped)(images).prediction.tolist()
    assert broken.status_code == 400
    said = broken.json()["error"]
    assert said.startswith("image 0 cannot be read (it is not an image of a known")
    assert "send the bytes of a JPEG, PNG" in said
    assert "or their base64 in JSON" in said


@pytest.fixture(scope="module")
def address(shipped):
    """A real server on a free port, in a thread of its own, that stops by itself."""
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    app = build_app(served_of(JointConfig.read(shipped)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_tritonclient_works_unchanged(address, shipped, binary, compression):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    images = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("joint")
        assert client.get_server_metadata()["name"] == "ebjr"
        assert client.get_model_metadata("joint")["inputs"][0]["name"] == "image"
        tensor = triton.InferInput("image", list(images.shape), "UINT8")
        tensor.set_data_from_numpy(images, binary_data=binary)
        wanted = [
            triton.InferRequestedOutput(name, binary_data=binary)
            for name in ("prediction", "score", "deferred", "degraded")
        ]
        found = client.infer(
            "joint", [tensor], outputs=wanted, request_compression_algorithm=compression
        )
    answer = load_joint(shipped)(images)
    np.testing.assert_array_equal(found.as_numpy("prediction"), answer.prediction)
    np.testing.assert_array_equal(found.as_numpy("deferred"), answer.deferred)
    np.testing.assert_allclose(found.as_numpy("score"), answer.score, rtol=1e-6)
    assert found.as_numpy("logits") is None


def test_a_model_or_version_that_is_not_here_is_a_404_that_names_what_is(client):
    versioned = client.post(f"{NAME}/versions/1/infer", json=request())
    assert outputs(versioned)["prediction"] == [2, 0]
    for path, says in (
        (f"{NAME}/versions/2/infer", "no version '2' of 'joint'; it has '1'"),
        ("/v2/models/other/infer", "the model is called 'joint'"),
    ):
        answer = client.post(path, json=request())
        assert (answer.status_code, says in answer.json()["error"]) == (404, True)
