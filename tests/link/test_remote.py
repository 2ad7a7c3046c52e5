"""A model behind HTTP answers as one at hand, or says in one sentence why it does not."""

from __future__ import annotations

import pickle
import socket
import threading
import time
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from multiprocessing import get_all_start_methods, get_context

import far_server
import numpy as np
import pytest
from far import teach
from pki import Authority
from tiny import write_pair

from ebjr import (
    JointClassifier,
    ModelError,
    Preprocess,
    Preprocessed,
    Router,
    TeacherUnavailable,
    load_model,
)
from ebjr.certificates import server_context
from ebjr.model import as_answer

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")

X = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)


def test_it_answers_as_the_model_itself(far):
    model = load_model(far.url)
    np.testing.assert_array_equal(model(X), teach(X))
    assert (model.input_name, model.input_shape, model.output_name) == ("x", (None, 2), "logits")
    assert model.metadata.versions == ("7",)
    model(X)[0] = 0  # the caller's own, to change


@pytest.mark.parametrize(
    "tail", ["", "/", "/v2", "/v2/models/teacher/", "/v2/models/teacher/infer"]
)
def test_an_address_may_be_that_of_a_server_with_one_model(far, tail):
    assert load_model(far.server + tail).url == far.url


@pytest.mark.parametrize("options", [{"gzip": True}, {"batch_size": 2}, {"timeout_seconds": 3}])
def test_options_change_the_way_and_not_the_answer(far, options):
    np.testing.assert_array_equal(load_model(far.url, **options)(X), teach(X))


def test_a_server_without_the_binary_extension_is_asked_in_json(far):
    far.behave("json")
    np.testing.assert_allclose(load_model(far.url)(X), teach(X), rtol=1e-6)


def test_lists_and_other_numbers_become_the_tensor_that_it_takes(far):
    model = load_model(far.url)
    np.testing.assert_array_equal(model(list(X)), teach(X))
    np.testing.assert_array_equal(model(np.array([[1, 2]])), [[-1, 0, 3]])
    with pytest.raises(ValueError, match=r"expects a batch of shape \(n, 2\), but was given"):
        model(np.ones((3, 5), np.float32))
    with pytest.raises(ValueError, match="the inputs have different shapes"):
        model([np.ones(2), np.ones(3)])
    with pytest.raises(TypeError, match="expects inputs of type float32"):
        model(np.ones((1, 2), complex))
    with pytest.raises(ValueError, match="needs at least one"):
        model(X[:0])


@pytest.mark.parametrize(
    ("behavior", "says"),
    [
        ("hung", "gave no answer within 0.3 s"),
        ("drip", "gave no answer within 0.3 s"),
        ("head", "gave no answer within 0.3 s"),
        ("error", "status 500: out of order"),
        ("missing", "status 404: no model"),
        ("garbage", "cannot be reached"),
        ("page", "gave an invalid answer"),
        ("cut", "cannot be reached"),
        ("classes", r"'logits' as float32 of shape \[-1, 3\], but returned float32 of \(5, 6\)"),
        ("rows", r"must return 5 rows, but returned float32 of shape \(6, 3\)"),
        ("fewer", r"must return 5 rows, but returned float32 of shape \(4, 3\)"),
        ("text", r"'logits' as float32 of shape \[-1, 3\], but returned object of \(5, 3\)"),
        ("bool", r"'logits' as float32 of shape \[-1, 3\], but returned bool of \(5, 3\)"),
        ("absurd", "must return 5 rows, but returned|gave an invalid answer"),
    ],
)
def test_whatever_is_no_answer_is_a_teacher_that_is_away(far, behavior, says):
    model = load_model(far.url, timeout_seconds=0.3)
    far.behave(behavior)
    began = time.monotonic()
    with pytest.raises(TeacherUnavailable, match=says) as raised:
        model(X)
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 2
    far.behave("right")
    np.testing.assert_array_equal(model(X), teach(X))


def test_a_look_at_the_model_and_the_question_share_one_deadline(far):
    known = load_model(far.url).metadata.as_dict()
    model = load_model(far.url, metadata=known, timeout_seconds=0.3)
    far.behave("hung")  # the first thing that is asked hangs, and takes all of the time
    began = time.monotonic()
    with pytest.raises(TeacherUnavailable, match="gave no answer within"):
        model(X)
    assert time.monotonic() - began < 0.6


def test_a_name_that_nobody_resolves_costs_no_more_than_the_timeout(monkeypatch):
    hold = threading.Event()

    def hanging(*_args, **_how):
        hold.wait(10)
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    began = time.monotonic()
    with pytest.raises(TeacherUnavailable, match="gave no answer within"):
        load_model("http://cloud.example/v2/models/teacher", timeout_seconds=0.3)
    hold.set()
    assert time.monotonic() - began < 2


def test_a_request_that_nobody_reads_ends_in_time():
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        known = {
            "name": "teacher",
            "platform": "",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}],
        }
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/v2/models/teacher"
        model = load_model(url, metadata=known, timeout_seconds=0.3)
        model._met = True
        began = time.monotonic()
        with pytest.raises(TeacherUnavailable, match="gave no answer within"):
            model(np.zeros((4_000_000, 2), np.float32))
        assert time.monotonic() - began < 2


@contextmanager
def listening(certfile, keyfile, ca_certs=None):
    """The address of a far teacher over TLS, in this process."""
    context = server_context(certfile, keyfile, ca_certs=ca_certs)
    server = ThreadingHTTPServer(("127.0.0.1", 0), far_server.Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # who is refused hangs up
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}/v2/models/teacher"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def secure(tmp_path, monkeypatch):
    """A far teacher that the system's authorities vouch for."""
    ca = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca.file))
    monkeypatch.setattr(far_server.Handler, "behavior", "right")
    with listening(*ca.certificate("far")) as address:
        yield address


def test_tls_is_spoken_and_has_the_same_deadline(secure):
    model = load_model(secure, timeout_seconds=1)
    np.testing.assert_array_equal(model(X), teach(X))
    for behavior in ("head", "drip", "hung"):
        far_server.Handler.behavior = behavior
        began = time.monotonic()
        with pytest.raises(TeacherUnavailable, match="gave no answer within 1 s"):
            model(X)
        assert time.monotonic() - began < 3
        far_server.Handler.behavior = "right"
        np.testing.assert_array_equal(model(X), teach(X))


def test_a_busy_server_says_when_it_wants_to_be_asked_again(far):
    model = load_model(far.url)
    far.behave("busy")
    with pytest.raises(TeacherUnavailable, match="status 429: too many") as raised:
        model(X)
    assert raised.value.retry_after_seconds == 0.05
    assert pickle.loads(pickle.dumps(raised.value)).retry_after_seconds == 0.05


def test_inputs_that_are_refused_are_not_a_teacher_that_is_away(far):
    model = load_model(far.url)
    far.behave("refuse")
    with pytest.raises(ModelError, match="refused these inputs with status 400: no such") as raised:
        model(X)
    assert not isinstance(raised.value, TeacherUnavailable)


def test_another_version_is_another_model(far):
    model = load_model(far.url)
    far.behave("version")
    with pytest.raises(ModelError, match="answered as version '8', but was version '7'"):
        model(X)
    with pytest.raises(ModelError, match=r"its versions was \['7'\] and is \['8'\]"):
        model.check()


def test_a_known_model_is_not_asked_before_it_is_needed(far):
    known = load_model(far.url).metadata.as_dict()
    far.kill()
    try:
        model = load_model(far.url, metadata=known, timeout_seconds=1)
        with pytest.raises(TeacherUnavailable, match="cannot be reached"):
            model(X)
    finally:
        far.start()
    np.testing.assert_array_equal(model(X), teach(X))
    other = load_model(far.url, metadata={**known, "versions": ["6"]})
    with pytest.raises(ModelError, match="is not the model that was recorded"):
        other(X)


def test_a_copy_in_another_process_opens_its_own_connections(far):
    copy = pickle.loads(pickle.dumps(load_model(far.url, send="tensor", gzip=True)))
    np.testing.assert_array_equal(copy(X), teach(X))


@pytest.mark.skipif("fork" not in get_all_start_methods(), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_copy_in_a_fork_of_this_process_answers_too(far):
    model = load_model(far.url)
    model(X)
    with get_context("fork").Pool(1) as pool:
        found = pool.apply_async(model, (X,)).get(timeout=10)
    np.testing.assert_array_equal(found, teach(X))


def test_threads_share_it(far):
    model, found = load_model(far.url), {}

    def ask(number):
        found[number] = model(X + number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        np.testing.assert_array_equal(found[number], teach(X + number))


def test_bytes_are_counted_and_gzip_saves_some(far):
    zeros = np.zeros((500, 2), np.float32)
    moved = []
    for options in ({}, {"gzip": True}):
        model = load_model(far.url, **options)
        before = model.bytes_moved
        model(zeros)
        moved.append(model.bytes_moved - before)
    assert 500 * 5 * 4 < moved[0] < 500 * 5 * 4 + 1000
    assert moved[1] < moved[0] - 3000


def test_it_is_a_teacher_like_any_other(far):
    student = lambda x: np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)  # noqa: E731
    joint = JointClassifier(student, load_model(far.url), Router("max_logit", 0.5))
    answer = joint(X)
    assert answer.deferred.any()
    assert not answer.degraded.any()
    far.behave("error")
    answer = joint(X)
    assert not answer.deferred.any()
    assert answer.degraded.any()


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("http://", {}, "a remote model's address must be"),
        ("http://host:port", {}, "address must be http"),
        ("http://127.0.0.1:1/v2/models/x", {"timeout_seconds": 0}, "timeout_seconds must be above"),
        ("http://127.0.0.1:1/v2/models/x", {"send": "gif"}, "send must be one of tensor, jpeg"),
        ("http://127.0.0.1:1/v2/models/x", {"quality": 0}, "quality must be a whole number"),
        ("http://127.0.0.1:1/v2/models/x", {"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_what_cannot_be_an_address_or_an_option_is_refused(url, options, says):
    with pytest.raises(ValueError, match=says):
        load_model(url, **options)


def test_a_server_that_is_not_there_is_said_when_a_model_is_loaded():
    with pytest.raises(TeacherUnavailable, match=r"x at 127\.0\.0\.1:1 cannot be reached"):
        load_model("http://127.0.0.1:1/v2/models/x")


def test_outputs_are_named_where_there_is_a_choice(far):
    with pytest.raises(ModelError, match="has the outputs logits, not 'energy'"):
        load_model(far.url, output="energy")
    with pytest.raises(ModelError, match="takes tensors of FP32, not files"):
        load_model(far.url, send="jpeg")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    """A joint model of images, and the address of a real EBJR server that has it."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    uvicorn = pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
    from ebjr.serving.app import Served, build_app

    models = [
        Preprocessed(load_model(path, threads=1), Preprocess(size=8))
        for path in write_pair(tmp_path_factory.mktemp("pair"))
    ]
    joint = JointClassifier(*models, Router("softmax", 0.9))
    app = build_app(Served(joint, labels=("red", "green", "blue")))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", joint
    server.should_exit = True
    thread.join(30)


def smooth_images(n: int = 4) -> np.ndarray:
    ramp = np.linspace(0, 255, 32, dtype=np.uint8)
    return np.stack([np.stack([*np.meshgrid(ramp, ramp), ramp[:, None] + 0 * ramp], -1)] * n)


def test_images_go_to_an_ebjr_server_as_files(cloud):
    address, joint = cloud
    images = smooth_images()
    expected = joint(images).output
    moved = {}
    for send in ("tensor", "png", "jpeg"):
        model = load_model(address, send=send)
        before = model.bytes_moved
        found = as_answer(model(list(images)))
        moved[send] = model.bytes_moved - before
        atol = 1e-4 if send != "jpeg" else 0.3
        np.testing.assert_allclose(found.output, expected, atol=atol)
    assert load_model(address).send == "png"
    assert moved["png"] < moved["tensor"] / 2
    mixed = [images[0], np.ascontiguousarray(np.tile(images[1], (2, 3, 1)))]
    assert as_answer(load_model(address)(mixed)).output.shape == (2, 3)
    with pytest.raises(TypeError, match="only decoded images"):
        load_model(address)(np.ones((2, 3, 8, 8), np.float32))


def test_rows_that_the_server_degraded_are_marked_as_such(cloud, monkeypatch):
    address, joint = cloud

    def away(images):
        raise TeacherUnavailable("further away still")

    monkeypatch.setattr(joint, "teacher", away)
    joint.router.threshold = 2.0  # every row is deferred
    answer = load_model(address)(smooth_images(3))
    joint.router.threshold = 0.9
    assert answer.degraded.tolist() == [True] * 3
    assert answer.output.shape == (3, 3)


def test_an_ebjr_server_says_which_of_its_models_answered(cloud):
    address, joint = cloud
    colors = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 3), np.uint8)
    images = np.broadcast_to(colors, (40, 8, 8, 3))
    assert set(joint(images).stage.tolist()) == {0, 1}
    found = load_model(address, batch_size=7)(images)
    np.testing.assert_array_equal(found.stage, joint(images).stage)
    student = JointClassifier(lambda x: np.zeros((len(x), 3)), joint, Router("margin", 1.0))
    around = JointClassifier(student.student, load_model(address), student.router)
    np.testing.assert_array_equal(around(images).stage, 1 + joint(images).stage)
    np.testing.assert_array_equal(around(images).stage, student(images).stage)


@pytest.mark.parametrize("stage", [[-1, 0], [0.0, 1.0], [1]])
def test_a_stage_that_is_none_is_left_out(cloud, monkeypatch, stage):
    from ebjr.serving.service import Service

    real = Service._output

    def lying(service, wanted):
        said = real(service, wanted)
        return (lambda ticket: np.array(stage)) if wanted.name == "stage" else said

    monkeypatch.setattr(Service, "_output", lying)
    found = as_answer(load_model(cloud[0])(smooth_images(2)))
    assert found.output.shape == (2, 3)
    assert found.stage is None or not found.stage.any()


@pytest.mark.parametrize("newer", [{"stage"}, {"label"}, {"stage", "label"}])
def test_a_server_that_says_less_of_its_answers_is_asked_for_no_more(cloud, newer):
    model = load_model(cloud[0])
    known = model.metadata.as_dict()
    known["outputs"] = [tensor for tensor in known["outputs"] if tensor["name"] not in newer]
    old = load_model(cloud[0], metadata=known)
    images = smooth_images()
    np.testing.assert_array_equal(as_answer(old(images)).output, as_answer(model(images)).output)
    assert (as_answer(old(images)).stage is None) == ("stage" in newer)


def test_an_image_that_came_as_a_file_goes_on_as_it_came():
    from ebjr.data.preprocess import ImageFile
    from ebjr.link.remote import encoded

    jpeg, png = b"\xff\xd8 a photo", b"\x89PNG a drawing"
    pixels = smooth_images(1)[0]
    assert encoded(ImageFile.of(pixels, jpeg), "jpeg", 90) == jpeg
    assert encoded(ImageFile.of(pixels, jpeg), "png", 90) == jpeg
    assert encoded(ImageFile.of(pixels, png), "png", 90) == png
    assert encoded(ImageFile.of(pixels, png), "jpeg", 90).startswith(b"\xff\xd8")
    part = ImageFile.of(pixels, png)[:8]
    assert encoded(part, "png", 90) != png  # a part of the image is no longer the file


def test_an_https_teacher_is_trusted_by_a_file_and_shown_a_certificate(tmp_path, monkeypatch):
    monkeypatch.setattr(far_server.Handler, "behavior", "right")
    ca, others = Authority(tmp_path), Authority(tmp_path, "others")
    cert, key = ca.certificate("device", password="sesame")
    stranger = others.certificate("stranger")
    known = {"ca_file": str(ca.file), "client_cert": str(cert), "client_key": str(key)}
    monkeypatch.setenv("EBJR_TEACHER_KEY_PASSWORD", "sesame")
    with listening(*ca.certificate("far"), ca_certs=ca.file) as url:
        model = load_model(url, **known)
        np.testing.assert_array_equal(model(X), teach(X))
        assert model.options.items() >= known.items()
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model))(X), teach(X))
        for wrong in (
            {},
            {"ca_file": known["ca_file"]},
            {**known, "ca_file": str(others.file)},
            {"ca_file": known["ca_file"], "client_cert": str(stranger[0])}
            | {"client_key": str(stranger[1])},
        ):
            with pytest.raises(TeacherUnavailable, match="cannot be reached"):
                load_model(url, **wrong)
    monkeypatch.setenv("EBJR_TEACHER_KEY_PASSWORD", "simsim")
    with pytest.raises(ValueError, match="has another password"):
        load_model(url, **known)
    with pytest.raises(ValueError, match="needs its certificate: give"):
        load_model(url, client_key=known["client_key"])
    with pytest.raises(ValueError, match="certificates are for an https:// address"):
        load_model("http://127.0.0.1:1/v2/models/x", ca_file=known["ca_file"])


@pytest.mark.parametrize("variable", ["EBJR_TEACHER_TOKEN", "EBJR_TEACHER_KEY_PASSWORD"])
def test_a_secret_that_was_not_filled_in_is_said_before_anything_is_asked(variable, monkeypatch):
    monkeypatch.setenv(variable, "")
    with pytest.raises(ValueError, match=f"{variable} is set but empty"):
        load_model("http://127.0.0.1:1/v2/models/x")


def test_a_client_whose_certificate_was_replaced_is_taken_again(tmp_path, monkeypatch):
    monkeypatch.setattr(far_server.Handler, "behavior", "right")
    ca, others = Authority(tmp_path), Authority(tmp_path, "others")
    own = others.certificate("device")
    known = dict(zip(("client_cert", "client_key"), map(str, own), strict=True))
    with listening(*ca.certificate("far")) as url:
        about = load_model(url, ca_file=str(ca.file)).metadata.as_dict()
    with listening(*ca.certificate("far"), ca_certs=ca.file) as url:
        model = load_model(url, ca_file=str(ca.file), metadata=about, **known)
        with pytest.raises(TeacherUnavailable):
            model(X)
        assert ca.certificate("device") == own  # under the same names
        with pytest.raises(TeacherUnavailable):
            model(X)  # which has it read again
        np.testing.assert_array_equal(model(X), teach(X))
