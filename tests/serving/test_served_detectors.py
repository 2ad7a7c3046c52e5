"""Detectors are served: the boxes that come over HTTP are those of the local joint model."""

from __future__ import annotations

import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, write_coco, write_detectors

import ebjr
from ebjr import JointConfig, JointDetector, LateAnswers, Router, TeacherUnavailable
from ebjr.data.examples import decode_image
from ebjr.data.open import open_data
from ebjr.joint_file import ModelEntry, RemoteEntry
from ebjr.tasks.detection.boxes import Detections
from ebjr.tasks.detection.scale import CommonScale

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

import httpx2
from small import NAME, assert_boxes, detector, files_of, images, joint_detector, running
from starlette.testclient import TestClient

from ebjr.protocol import LENGTH_HEADER, InferRequest, read_response, write_request
from ebjr.serving.app import Served, build_app, served_of

OUTPUTS = ["boxes", "labels", "scores", "count", "score", "deferred", "degraded"]
SCALE = CommonScale.from_dict({"student": [1.0, 0.5, 0.2], "teacher": [0.8, 1.2, -0.1]})


def ask(client, tensor, *, binary=True, **parameters):
    """What a server says of a tensor of images."""
    body, length = write_request(InferRequest({"image": tensor}, None, None, parameters, binary))
    answer = client.post(f"{NAME}/infer", content=body, headers={LENGTH_HEADER: str(length)})
    assert answer.status_code == 200, answer.text
    return read_response(answer.content, answer.headers.get(LENGTH_HEADER))


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(
    "how",
    [{}, {"blend": 0.7}, {"blend": 0.7, "rescale": SCALE}],
    ids=["plain", "blended", "rescaled"],
)
def test_images_of_mixed_sizes_get_the_boxes_of_the_local_joint_model(how, binary):
    joint, batch = joint_detector(**how), images()
    answer = joint(batch)
    assert 0 < answer.deferred.sum() < len(batch)
    with TestClient(build_app(Served(joint))) as client:
        found = ask(client, files_of(batch), binary=binary)
    assert list(found.outputs) == OUTPUTS
    assert_boxes(found.outputs, answer)
    least = np.finfo(np.float32).min  # JSON has no infinity
    score = answer.score.clip(least) if not binary else answer.score
    np.testing.assert_allclose(found.outputs["score"], score, rtol=1e-6)


def test_pixels_and_forms_bring_images_too():
    joint, same = joint_detector(), images(*[(20, 30)] * 4)
    with TestClient(build_app(Served(joint))) as client:
        assert_boxes(ask(client, np.stack(same)).outputs, joint(same))
        sent = [("image", (f"{row}.png", file)) for row, file in enumerate(files_of(images()))]
        found = client.post(f"{NAME}/infer", files=sent, data={"threshold": "0.4"})
    joint.router.threshold = 0.4
    assert_boxes(read_response(found.content).outputs, joint(images()))


@pytest.mark.parametrize("kind", ["lies on its side", "is transparent"])
def test_a_file_is_decoded_as_data_is(kind):
    file, picture = io.BytesIO(), Image.fromarray(images((12, 20))[0])
    if kind == "is transparent":
        picture.putalpha(120)
        picture.save(file, "PNG")
    else:
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(file, "JPEG", exif=exif)
    tensor, joint = np.array([file.getvalue()], object), joint_detector()
    with TestClient(build_app(Served(joint))) as client:
        found = ask(client, tensor)
    assert_boxes(found.outputs, joint([decode_image(file.getvalue())]))


@pytest.mark.parametrize("binary", [True, False])
def test_an_image_without_boxes_is_deferred_and_may_still_have_none(binary):
    batch = images(*[(9, 9)] * 40)
    blank = next(image for image in batch if not len(detector(1)([image])[0]))
    nothing = lambda images: [Detections.none(3, image.shape[:2]) for image in images]  # noqa: E731
    joint = joint_detector(0.0, nothing)
    with TestClient(build_app(Served(joint))) as client:
        for asked in ([blank], [*batch[:3], blank]):
            found = ask(client, files_of(asked), binary=binary).outputs
            assert_boxes(found, joint(asked))
            assert (found["count"][-1], found["deferred"][-1]) == (0, True)


def test_many_callers_get_their_own_boxes_while_the_knob_moves():
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    joint, rng = joint_detector(blend=0.5), np.random.default_rng(0)
    sizes = [(20, 30), (30, 20), (8, 8)]
    requests = [
        images(*[sizes[each] for each in rng.integers(0, 3, rng.integers(1, 6))], seed=seed)
        for seed in range(60)
    ]
    app = build_app(Served(joint), student_batch=3, teacher_batch=2)
    with running(app) as (host, port), httpx2.Client(base_url=f"http://{host}:{port}") as client:
        stop = threading.Event()

        def move():
            for threshold in itertools.cycle([0.2, 0.7, 0.95]):
                if stop.wait(0.005):
                    return
                client.put("/v1/router", json={"threshold": threshold}).raise_for_status()

        mover = threading.Thread(target=move)
        mover.start()
        try:
            with ThreadPoolExecutor(8) as callers:
                tensors = map(files_of, requests)
                answers = list(callers.map(lambda tensor: ask(client, tensor), tensors))
        finally:
            stop.set()
            mover.join()
    thresholds = [float(found.parameters["threshold"]) for found in answers]
    assert len(set(thresholds)) > 1
    for batch, found, threshold in zip(requests, answers, thresholds, strict=True):
        joint.router.threshold = threshold
        assert_boxes(found.outputs, joint(batch))


def test_the_metadata_name_the_tensors_of_boxes():
    with TestClient(build_app(Served(joint_detector(), labels=CLASSES))) as client:
        about = client.get(NAME).json()
        document = client.get("/openapi.json").json()
        status = client.get("/v1/status").json()
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    shapes = {one["name"]: (one["datatype"], one["shape"]) for one in about["outputs"]}
    assert list(shapes) == [*OUTPUTS[:2], "label_names", *OUTPUTS[2:], "stage"]
    assert shapes["label_names"] == ("BYTES", [-1])
    assert shapes["boxes"] == ("FP32", [-1, 4])
    assert shapes["labels"] == shapes["count"] == ("INT64", [-1])
    given = document["components"]["schemas"]["InferResponse"]["properties"]["outputs"]
    assert given["items"]["properties"]["name"] == {"enum": [*shapes]}
    assert (status["task"], status["images"]) == ("detection", True)


def test_both_detectors_say_what_they_find_on_an_image():
    joint = joint_detector(blend=0.5)
    with TestClient(build_app(Served(joint, labels=CLASSES))) as client:
        for image in images():
            tensor = {"name": "image", "shape": [1, *image.shape], "datatype": "UINT8"}
            message = {"inputs": [{**tensor, "data": image.ravel().tolist()}]}
            found = client.post("/v1/both", json=message).json()
            answer = joint([image])
            assert found["deferred"] == answer.deferred[0]
            for role, boxes in (
                ("student", joint.student([image])),
                ("teacher", joint.teacher([image])),
                ("answer", answer.prediction),
            ):
                (said,) = joint.kind.plain(boxes, CLASSES)
                assert found[role]["prediction"] == said["prediction"]


def test_boxes_are_no_labels_to_audit_and_the_monitor_says_so():
    with pytest.raises(ValueError, match="audit_rate must be 0 for detection"):
        build_app(Served(joint_detector()), audit_rate=0.1)
    monitor = build_app(Served(joint_detector())).state.service.monitor
    assert monitor.status()["disagreement"].startswith(
        "not watched: answers of detection are not labels, which agree or contradict"
    )


def test_a_teacher_that_is_away_leaves_the_students_boxes_and_gives_its_own_later(tmp_path):
    there = threading.Event()

    def teacher(batch):
        if not there.is_set():
            raise TeacherUnavailable("the cable is cut")
        return detector(2)(batch)

    late = LateAnswers(tmp_path / "late.sqlite")
    joint = joint_detector(teacher=teacher, when_unavailable="queue", late=late)
    batch = images()
    hard = np.flatnonzero(joint_detector()(batch).deferred)
    with TestClient(build_app(Served(joint))) as client:
        found = ask(client, files_of(batch))
        assert np.flatnonzero(found.outputs["degraded"]).tolist() == hard.tolist()
        own = detector(1)(batch)
        assert found.outputs["count"].tolist() == [len(one) for one in own]
        address = f"/v1/late/{found.parameters['late']}"
        waits = client.get(address)
        assert (waits.status_code, waits.json()["waiting"]) == (202, hard.tolist())
        assert read_response(waits.content).outputs["boxes"].shape == (0, 4)
        there.set()
        late.deliver(joint)
        kept = read_response(client.get(address).content).outputs
    late.close()
    taught = detector(2)([batch[row] for row in hard])
    assert kept["row"].tolist() == hard.tolist()
    assert kept["count"].tolist() == [len(one) for one in taught]
    boxes = np.concatenate([one.boxes for one in taught])
    np.testing.assert_array_equal(kept["boxes"], boxes.astype(np.float32))


def test_tritonclient_reads_the_boxes():
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    joint, batch = joint_detector(), images()
    tensor = files_of(batch)
    image = triton.InferInput("image", list(tensor.shape), "BYTES")
    image.set_data_from_numpy(tensor)
    with (
        running(build_app(Served(joint))) as (host, port),
        triton.InferenceServerClient(f"{host}:{port}") as client,
    ):
        answer = client.infer("joint", [image])
    assert_boxes({name: answer.as_numpy(name) for name in OUTPUTS}, joint(batch))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with two tiny detectors in files, and their calibrated joint.toml."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    folder = tmp_path_factory.mktemp("tiny")
    how = {"layout": "detr", "classes": 3}
    paths = write_detectors(folder)
    (batch,) = open_data(write_coco(folder)).batches(80)
    outcomes = ebjr.record(
        *(ebjr.load_model(path, **how) for path in paths),
        batch.inputs,
        batch.targets,
        task="detection",
        labels=CLASSES,
    )
    study = ebjr.run_study(outcomes, score="max_confidence", blend=0.3, tolerance=0.02)
    entries = [ModelEntry.of_file(path, options=how) for path in paths]
    JointConfig.of_study(*entries, study).save(folder / "joint.toml")
    return folder


def test_a_calibrated_pair_in_files_is_served_as_it_predicts(tiny):
    config = JointConfig.read(tiny / "joint.toml")
    joint = config.load()
    assert joint.rescale is not None
    batch = next(open_data(tiny / "labels.json").batches(40))
    with TestClient(build_app(served_of(config))) as client:
        for rate in (0.0, 0.3, 1.0):
            knob = client.put("/v1/router", json={"deferral_rate": rate}).json()
            joint.router.threshold = float(knob["threshold"])
            found = ask(client, files_of(batch.inputs))
            assert_boxes(found.outputs, joint(batch.inputs))
        client.app.state.service.engine.tell()
        client.app.state.service.monitor.look()
        status = client.get("/v1/status").json()
        metrics = client.get("/metrics").text
    assert status["monitor"]["drift"]["rows"] == 120
    assert status["calibration"]["quality_title"] == "AP"
    assert status["live"]["rows"] == 120
    assert 'ebjr_rows_total{model="joint"} 120.0' in metrics


def test_a_detector_at_an_address_is_refused_as_a_teacher(tiny, run):
    config, far = JointConfig.read(tiny / "joint.toml"), "http://127.0.0.1:1/v2/models/joint"
    with pytest.raises(ValueError, match="a remote detector cannot be the teacher yet"):
        replace(config, teacher=RemoteEntry(far, {}))
    words = ["record", "--task", "detection", "--student", tiny / "student.onnx", "--teacher", far]
    code, _, error = run(*words, "--data", tiny / "labels.json", "-o", "outcomes.npz")
    assert code == 2
    assert "a remote detector cannot be the teacher yet: give its file" in error


def test_a_served_detector_is_no_model_of_another_joint_model():
    pytest.importorskip("stamina", reason="the extra `remote` is not installed")
    pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    with (
        running(build_app(Served(joint_detector()))) as (host, port),
        pytest.raises(ebjr.ModelError, match="is a joint detector, which cannot be used over HTTP"),
    ):
        ebjr.load_model(f"http://{host}:{port}")


def test_real_detectors_answer_over_http_as_they_do_here(shared_data):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    folder = shared_data / "detection"
    student, teacher = (
        ebjr.load_model(folder / "weights" / f"deimv2_{name}.onnx", layout="detr", threads=1)
        for name in ("atto_320", "femto_416")
    )
    joint = JointDetector(student, teacher, Router("box_count", -3.5), blend=0.5, rescale=SCALE)
    source = open_data(folder / "coco669_boxes.json", images=folder / "coco669_images.zip")
    batch = next(source.batches(6)).inputs
    answer = joint(batch)
    assert 0 < answer.deferred.sum() < 6
    with TestClient(build_app(Served(joint))) as client:
        assert_boxes(ask(client, files_of(batch)).outputs, answer)
