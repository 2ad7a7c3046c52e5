"""The server over gRPC: tritonclient works unchanged, mistakes are a status and one sentence."""

from __future__ import annotations

import asyncio
import queue
import re
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from random import Random

import numpy as np
import pytest

from ebjr import FarTeacher, TeacherUnavailable

pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")

import grpc
import tritonclient.grpc as triton
from small import assert_boxes, files_of, images, joint_detector, received, served
from tritonclient.grpc import model_config_pb2, service_pb2

from ebjr.protocol import DATATYPES
from ebjr.serving.app import Served
from ebjr.serving.doors import Doors
from ebjr.serving.grpc import (
    ANSWER_COPIES,
    CONTENTS,
    MESSAGES,
    SERVICE,
    grpc_server,
    parsed_size,
)
from ebjr.serving.limits import Limits
from ebjr.serving.repository import Repository


@contextmanager
def serving(served: Served, *, log_requests=False, repository=None, **options):
    """A real server on a free port, in a thread of its own: its address."""
    address: list[str] = []
    ready, ended = threading.Event(), threading.Event()

    async def run():
        nonlocal repository
        repository = repository or Repository(served, **options)
        repository.start()
        lines = {"log_requests": log_requests}
        async with grpc_server(repository, port=0, started=address.append, **lines):
            ready.set()
            await asyncio.to_thread(ended.wait)
        repository.stop()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert ready.wait(30)
        yield address[0].removeprefix("grpc://")
    finally:
        ended.set()
        thread.join(30)


@pytest.fixture(scope="module")
def address():
    with serving(served()) as found:
        yield found


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as opened:
        yield opened


ROWS = np.array([[0.5, 0.0], [5.0, 0.0]], np.float32)


def tensor(values=ROWS, name="x", datatype="FP32"):
    found = triton.InferInput(name, list(values.shape), datatype)
    found.set_data_from_numpy(values)
    return found


@contextmanager
def refused(code: str, says: str):
    """What a client is told: a status, and one sentence."""
    with pytest.raises((triton.InferenceServerException, grpc.RpcError)) as caught:
        yield caught
    error = caught.value
    if isinstance(error, grpc.RpcError):
        found, sentence = error.code().name, error.details()
    else:
        found, sentence = error.status().removeprefix("StatusCode."), error.message()
    assert (found, "\n" in sentence) == (code, False)
    assert says in sentence


def test_health_and_metadata_are_those_of_the_protocol(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("joint")
    assert client.is_model_ready("joint", "1")
    assert client.get_server_metadata().name == "ebjr"
    about = client.get_model_metadata("joint")
    (taken,) = about.inputs
    assert (taken.name, taken.datatype, list(taken.shape)) == ("x", "FP32", [-1, 2])
    names = [output.name for output in about.outputs]
    assert names == ["prediction", "output", "score", "deferred", "degraded", "stage"]


def test_a_server_whose_teacher_is_away_says_that_it_is_not_ready():
    def away(x):
        raise TeacherUnavailable("the cable is cut")

    away.check = lambda: away(None)
    pair = served(teacher=FarTeacher(away))
    with (
        serving(pair, ready="teacher") as address,
        triton.InferenceServerClient(address) as client,
    ):
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("joint")
    pair.joint.teacher.close()


def test_the_hashes_of_a_model_are_in_the_metadata_after_its_own_and_in_each_answer():
    weight = np.eye(2, 3, dtype=np.float32)

    def student(x):
        return x @ weight

    vars(student).update(input_shape=(None, 2), input_name="x", input_dtype=np.float32)
    pair = served(student=student, teacher=student)
    assert pair.identity.keys() == {"student", "teacher", "model"}
    with serving(pair) as address, grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(f"/{SERVICE.full_name}/ModelMetadata")
        asked = MESSAGES["ModelMetadataRequest"](name="joint").SerializeToString()
        _, call = ask.with_call(asked, timeout=30)
        found = dict(call.trailing_metadata())
        assert {key: found[f"ebjr-{key}"] for key in pair.identity} == pair.identity
        assert found["x-request-id"]
        with triton.InferenceServerClient(address) as client:
            answer = client.infer("joint", [tensor()]).get_response()
    assert answer.parameters["model"].string_param == pair.identity["model"][:12]


def test_the_boxes_of_detectors_come_as_bytes_and_as_values():
    joint, batch = joint_detector(), images()
    with serving(Served(joint)) as address, triton.InferenceServerClient(address) as client:
        found = client.infer("joint", [tensor(files_of(batch), "image", "BYTES")])
        names = [output.name for output in found.get_response().outputs]
        assert_boxes({name: found.as_numpy(name) for name in names}, joint(batch))
        contents = service_pb2.InferTensorContents(bytes_contents=list(files_of(batch)))
        asked = service_pb2.ModelInferRequest(model_name="joint")
        asked.inputs.add(name="image", datatype="BYTES", shape=[len(batch)], contents=contents)
        with grpc.insecure_channel(address) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            said = service_pb2.ModelInferResponse.FromString(
                infer(asked.SerializeToString())
            ).outputs
    boxes = np.reshape(said[0].contents.fp32_contents, said[0].shape)
    np.testing.assert_array_equal(boxes, found.as_numpy("boxes"))
    assert list(said[3].contents.int64_contents) == found.as_numpy("count").tolist()


def test_it_answers_as_the_joint_model_does(client):
    names = ("prediction", "output", "score", "deferred", "degraded", "stage")
    wanted = [triton.InferRequestedOutput(name) for name in names]
    found = client.infer("joint", [tensor()], request_id="7", outputs=wanted)
    answer = served().joint(ROWS)
    for name in names:
        np.testing.assert_array_equal(found.as_numpy(name), getattr(answer, name))
    message = found.get_response()
    assert (message.id, message.model_name, message.model_version) == ("7", "joint", "1")
    assert message.parameters["threshold"].double_param == 1.0
    assert message.parameters["calibration"].string_param == "abc"


def test_only_the_outputs_that_are_asked_for_come(client):
    wanted = [triton.InferRequestedOutput("score")]
    found = client.infer("joint", [tensor()], outputs=wanted)
    assert [output.name for output in found.get_response().outputs] == ["score"]


@pytest.mark.parametrize(
    ("parameters", "deferred"),
    [
        ({"threshold": 6.0}, [True, True]),
        ({"threshold": 6}, [True, True]),
        ({"operating_point": "careful"}, [True, False]),
        ({"deferral_rate": 0.0}, [False, False]),
        ({"deferral_rate": 1.0}, [True, True]),
    ],
)
def test_a_request_chooses_its_own_threshold(client, parameters, deferred):
    found = client.infer("joint", [tensor()], parameters=parameters)
    assert found.as_numpy("deferred").tolist() == deferred


def message(**fields):
    contents = {"fp32_contents": ROWS.ravel().tolist()}
    values = {"name": "x", "datatype": "FP32", "shape": ROWS.shape, "contents": contents}
    return service_pb2.ModelInferRequest(**{"model_name": "joint", "inputs": [values], **fields})


@contextmanager
def stub(address):
    with grpc.insecure_channel(address) as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            service_pb2.ModelInferRequest.SerializeToString,
            service_pb2.ModelInferResponse.FromString,
        )


def test_values_are_answered_in_values_and_bytes_in_bytes(address):
    with stub(address) as infer:
        found = infer(message())
    outputs = {output.name: output.contents for output in found.outputs}
    assert not found.raw_output_contents
    assert list(outputs["prediction"].int64_contents) == [2, 0]
    assert list(outputs["score"].fp32_contents) == [0.5, 5.0]
    assert list(outputs["deferred"].bool_contents) == [True, False]


@pytest.mark.parametrize(
    ("datatype", "field"),
    [
        *((name, "int_contents") for name in ("INT8", "INT16", "INT32")),
        *((name, "uint_contents") for name in ("UINT8", "UINT16", "UINT32")),
        ("INT64", "int64_contents"),
        ("UINT64", "uint64_contents"),
        ("FP32", "fp32_contents"),
        ("FP64", "fp64_contents"),
        ("BOOL", "bool_contents"),
    ],
)
def test_every_datatype_may_come_as_values(address, datatype, field):
    values = {"name": "x", "datatype": datatype, "shape": [1, 2], "contents": {field: [1, 0]}}
    with stub(address) as infer:
        found = infer(message(inputs=[values]))
    (score,) = (one for one in found.outputs if one.name == "score")
    assert list(score.contents.fp32_contents) == [1.0]


def one(**fields):
    values = {"name": "x", "datatype": "FP32", "shape": [1, 2], **fields}
    return message(inputs=[values])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (message(inputs=[]), "at least one tensor"),
        (one(), "needs 2 elements, but has 0"),
        (one(contents={"int_contents": [1, 2]}), "needs 2 elements, but has 0"),
        (one(shape=[-1, 2]), "0 or more, not"),
        (one(datatype="FP8"), "of FP8 cannot be sent as contents"),
        (one(datatype="FP16"), "send raw_input_contents"),
        (one(datatype="INT8", contents={"int_contents": [1, 300]}), "exceed INT8"),
        (one(datatype="BYTES", contents={"bytes_contents": [b"a", b"b"]}), "must be FP32, not"),
        (one(name="y", contents={"fp32_contents": [1, 2]}), "one input, 'x', but the request"),
        (one(name="", contents={"fp32_contents": [1, 2]}), "needs a 'name'"),
        (one(shape=[1, 1], contents={"fp32_contents": [1]}), "must have shape [-1, 2]"),
        (message(raw_input_contents=[b"\0" * 16]), "contents, not both"),
        (
            message(
                inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 2]}],
                raw_input_contents=[b"\0" * 8] * 2,
            ),
            "one element for each of the 1 inputs, not 2",
        ),
        (message(outputs=[{"name": "logits"}]), "there is no output 'logits'"),
        (
            message(
                outputs=[{"name": "score", "parameters": {"classification": {"int64_param": 3}}}]
            ),
            "the output 'score' of this model has no logits",
        ),
        (message(parameters={"colour": {"int64_param": 1}}), "no parameter 'colour'"),
        (
            message(parameters={"binary_data_output": {"bool_param": True}}),
            "gRPC takes no 'binary_data_output': outputs come as inputs do",
        ),
        (
            message(
                outputs=[{"name": "score", "parameters": {"binary_data": {"bool_param": False}}}]
            ),
            "gRPC takes no 'binary_data': outputs come as inputs do",
        ),
        (
            one(
                contents={"fp32_contents": [1, 2]},
                parameters={"binary_data_size": {"int64_param": 4}},
            ),
            "needs 2 elements, but has 1",
        ),
        (message(parameters={"threshold": {}}), "not nothing"),
        (message(parameters={"threshold": {"string_param": "high"}}), "must be a number"),
        (
            message(parameters={"timeout_seconds": {"double_param": 0.0}}),
            "timeout_seconds must be above 0",
        ),
        (message(parameters={"timeout": {"double_param": 5.0}}), "timeout_seconds takes seconds"),
        (message(parameters={"priority": {"double_param": 2.0}}), "priority must be a whole"),
        (message(parameters={"deferral_rate": {"double_param": float("nan")}}), "between 0 and 1"),
    ],
)
def test_a_mistake_is_an_invalid_argument_and_the_server_goes_on(address, client, asked, says):
    with stub(address) as infer, refused("INVALID_ARGUMENT", says):
        infer(asked)
    assert client.infer("joint", [tensor()]).as_numpy("prediction").tolist() == [2, 0]


@pytest.mark.parametrize("name", ["RepositoryIndex", "RepositoryModelLoad"])
def test_a_repository_that_is_named_is_refused_as_there_is_one(address, name):
    asked = getattr(service_pb2, f"{name}Request")(repository_name="other").SerializeToString()
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/{name}")
        with refused("INVALID_ARGUMENT", "one repository: leave repository_name empty"):
            call(asked, timeout=30)


def test_what_is_no_message_is_an_invalid_argument(address):
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with refused("INVALID_ARGUMENT", "the message is not a valid ModelInferRequest"):
            infer(b"\xff" * 40)


def test_a_model_or_version_that_is_not_here_is_not_found(client):
    for call in (client.get_model_metadata, client.is_model_ready):
        with refused("NOT_FOUND", "no model 'other' here; the model is called 'joint'"):
            call("other")
    with refused("NOT_FOUND", "no version '2' of 'joint'"):
        client.infer("joint", [tensor()], model_version="2")


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_message_beyond_the_limit_is_refused(compression):
    rows = np.zeros((100_000, 2), np.float32)
    with (
        serving(served(), limits=Limits(body_bytes=100_000)) as at,
        triton.InferenceServerClient(at) as client,
    ):
        with refused("RESOURCE_EXHAUSTED", "larger than max"):
            client.infer("joint", [tensor(rows)], compression_algorithm=compression)
        found = client.infer("joint", [tensor(rows[:1000])], compression_algorithm=compression)
    assert len(found.as_numpy("score")) == 1000


def test_limits_above_what_grpc_can_count_start_too():
    with serving(served(), limits=Limits(body_bytes=2**40, connections=2**40)):
        pass


def test_a_teacher_that_is_away_degrades_its_rows_or_is_unavailable():
    def away(x):
        raise TeacherUnavailable("the cloud is gone")

    with serving(served(teacher=away)) as at, triton.InferenceServerClient(at) as client:
        assert client.infer("joint", [tensor()]).as_numpy("degraded").tolist() == [True, False]
    failing = served(teacher=away, when_unavailable="error")
    with (
        serving(failing) as at,
        triton.InferenceServerClient(at) as client,
        refused("UNAVAILABLE", "the cloud is gone"),
    ):
        client.infer("joint", [tensor()])


@contextmanager
def stuck(student=False, teacher=False, asked=None, **options):
    """The address of a server one of whose models does not answer while the context is open.

    The event `asked` is set once that model has something to do.
    """
    gate = threading.Event()
    asked = asked or threading.Event()

    def slow(x):
        asked.set()
        gate.wait(30)
        return x

    slow.input_shape, slow.input_name, slow.input_dtype = (None, 2), "x", np.float32
    who = {"student": slow} if student else {"teacher": slow}
    with serving(served(**who), **options) as at:
        try:
            yield at
        finally:
            gate.set()


@pytest.mark.parametrize(
    ("parameters", "deadline"),
    [
        ({"timeout_seconds": {"double_param": 0.2}}, None),
        ({"timeout": {"int64_param": 200_000}}, None),
        ({"timeout": {"int64_param": 0}}, 2.0),
        ({}, 2.0),
    ],
)
def test_a_deadline_gives_the_students_answer_marked(parameters, deadline):
    asked = message(parameters=parameters, outputs=[{"name": "degraded"}])
    with stuck(teacher=True) as at, stub(at) as infer:
        found = infer(asked, timeout=deadline)
    assert list(found.outputs[0].contents.bool_contents) == [True, False]


def test_a_deadline_before_the_student_is_exceeded():
    says = refused("DEADLINE_EXCEEDED", "no answer within 0.2 s")
    with stuck(student=True, timeout_seconds=0.2) as at, stub(at) as infer, says:
        infer(message())


def test_beyond_the_queue_is_resource_exhausted_and_says_when_to_come_again():
    with stuck(student=True, queue_rows=2) as at, stub(at) as infer:
        calls = [infer.future(message()) for _ in range(3)]  # one at work, one waits, one too many
        done = queue.Queue()
        for call in calls:
            call.add_done_callback(done.put)
        refused = done.get(timeout=30)
        for call in calls:
            call.cancel()
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "requests in progress hold" in refused.details()
    assert int(dict(refused.trailing_metadata())["grpc-retry-pushback-ms"]) > 0


def test_a_call_that_its_client_cancels_frees_its_rows():
    asked = threading.Event()
    with stuck(student=True, asked=asked, queue_rows=5) as at, stub(at) as infer:
        at_work = infer.future(message())
        assert asked.wait(20)  # or another call may come before it, and it waits in the queue
        accepted = 0
        for _ in range(500):  # all would be refused if one that was cancelled still waited
            waiting = infer.future(message(), timeout=20)
            time.sleep(0.03)
            accepted += not waiting.done()
            waiting.cancel()
            if accepted == 10:
                break
        at_work.cancel()
    assert accepted == 10


def test_our_messages_are_those_of_tritons_clients():
    theirs = {
        **model_config_pb2.DESCRIPTOR.message_types_by_name,
        **service_pb2.DESCRIPTOR.message_types_by_name,
    }

    def same(ours, known):
        for field in ours.fields:
            twin = known.fields_by_name[field.name]
            assert (field.number, field.type, field.is_repeated) == (
                twin.number,
                twin.type,
                twin.is_repeated,
            ), field.full_name
            if field.message_type is not None:
                same(field.message_type, twin.message_type)

    for name, ours in MESSAGES.items():
        same(ours.DESCRIPTOR, theirs[name])
    known = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    for method in SERVICE.methods:
        assert method.input_type.full_name == known[method.name].input_type.full_name
        assert method.output_type.full_name == known[method.name].output_type.full_name


def test_the_compiled_messages_are_those_of_the_source():
    source = files("ebjr.serving").joinpath("open_inference.proto").read_text()
    written = re.findall(r"^ +(?:repeated )?[\w.<>, ]+ (\w+) = (\d+);", source, re.MULTILINE)
    seen, compiled = [], [ours.DESCRIPTOR for ours in MESSAGES.values()]
    while compiled:
        about = compiled.pop()
        seen += [(field.name, str(field.number)) for field in about.fields]
        compiled += [kind for kind in about.nested_types if not kind.GetOptions().map_entry]
    assert sorted(seen) == sorted(written)
    assert [method.name for method in SERVICE.methods] == re.findall(r"rpc (\w+)", source)


def test_whatever_bytes_come_the_answer_is_a_status_and_one_sentence(address):
    whole = [
        message().SerializeToString(),
        message(
            inputs=[{"name": "x", "datatype": "FP32", "shape": [2, 2]}],
            raw_input_contents=[ROWS.tobytes()],
            parameters={"threshold": {"double_param": 0.5}},
            outputs=[{"name": "score"}],
        ).SerializeToString(),
    ]
    random = Random(0)
    found: Counter[str] = Counter()
    with grpc.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for _ in range(1_000):
            raw = bytearray(random.choice(whole))
            for _ in range(random.randint(1, 3)):
                start = random.randrange(len(raw) + 1)
                end = min(len(raw), start + random.choice((1, 1, 4, 30)))
                raw[start:end] = random.randbytes(random.choice((0, 1, end - start)))
            call = infer.future(bytes(raw), timeout=30)
            found[call.code().name] += 1
            sentence = call.details()
            assert bool(sentence) == (call.code() is not grpc.StatusCode.OK)
            assert "\n" not in sentence
    assert set(found) == {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}, found


def infer(address, metadata=(), asked=b""):
    """A call as bytes: the code, and the metadata that comes back."""
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        try:
            _, done = call.with_call(asked, metadata=metadata, timeout=30)
        except grpc.RpcError as error:
            done = error
        return done.code().name, dict(done.trailing_metadata())


def asked_bytes() -> bytes:
    contents = {"fp32_contents": ROWS.ravel().tolist()}
    about = {"name": "x", "datatype": "FP32", "shape": ROWS.shape, "contents": contents}
    return MESSAGES["ModelInferRequest"](model_name="joint", inputs=[about]).SerializeToString()


LIVE = f"/{SERVICE.full_name}/ServerLive"


def test_one_connection_of_calls_that_send_nothing_leaves_others_their_calls(monkeypatch):
    monkeypatch.setattr("ebjr.serving.grpc.MOST_CALLS", 8)
    never = threading.Event()

    def nothing():
        never.wait(30)
        yield from ()

    with serving(served()) as address, grpc.insecure_channel(address) as greedy:
        calls = [greedy.stream_unary(LIVE).future(nothing()) for _ in range(12)]
        own_pool = [("grpc.use_local_subchannel_pool", 1)]  # else both share a connection
        try:
            for _ in range(5):
                with grpc.insecure_channel(address, own_pool) as other:
                    assert other.unary_unary(LIVE)(b"", timeout=30)
                time.sleep(0.1)
        finally:
            never.set()
            for call in calls:
                call.cancel()


def test_connections_are_as_few_as_the_limit_and_idle_ones_are_closed(monkeypatch):
    monkeypatch.setattr("ebjr.serving.grpc.IDLE_SECONDS", 2.0)
    greeting = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    with serving(served(), limits=Limits(connections=3)) as address, ExitStack() as opened:
        host, _, port = address.rpartition(":")

        def connected() -> socket.socket:
            one = opened.enter_context(socket.create_connection((host, int(port)), 30))
            one.sendall(greeting)
            return one

        own = [connected() for _ in range(3)]
        assert all(one.recv(9) for one in own)
        assert connected().recv(9) == b""
        assert all(received(one) for one in own)  # until the server hangs up
        with grpc.insecure_channel(address) as channel:
            assert channel.unary_unary(LIVE)(b"", timeout=30)


@pytest.mark.parametrize("method", ["ServerLive", "ModelInfer"])
def test_a_call_whose_message_never_comes_ends_in_time_and_gives_its_place_back(
    method, monkeypatch
):
    monkeypatch.setattr("ebjr.serving.grpc.MOST_CALLS", 8)  # two of a connection
    never = threading.Event()

    def nothing():
        never.wait(60)
        yield from ()

    limits = Limits(head_seconds=0.5, body_seconds=0.5)
    with serving(served(), limits=limits) as address, grpc.insecure_channel(address) as channel:
        calls = [
            channel.stream_unary(f"/{SERVICE.full_name}/{method}").future(nothing())
            for _ in range(2)
        ]
        try:
            for call in calls:
                with refused("DEADLINE_EXCEEDED", "message must arrive within 1 seconds"):
                    call.result(timeout=30)
            assert channel.unary_unary(LIVE)(b"", timeout=30)
        finally:
            never.set()


def test_a_call_that_ends_without_a_message_is_an_invalid_argument(address):
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_unary(LIVE)
        with refused("INVALID_ARGUMENT", "the call has no message"):
            call(iter(()), timeout=30)


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def unread_call() -> bytes:
    """A call whose client takes no byte of the answer."""
    about = {
        **{":method": "POST", ":scheme": "http", ":path": LIVE, ":authority": "x"},
        **{"te": "trailers", "content-type": "application/grpc"},
    }
    head = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in about.items()
    )
    no_window = frame(4, 0, 0, (4).to_bytes(2) + (0).to_bytes(4))
    asked = frame(1, 4, 1, head) + frame(0, 1, 1, bytes(5))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + no_window + asked


def test_a_client_that_takes_no_answer_and_is_silent_is_hung_up_on():
    with serving(served(), limits=Limits(write_seconds=2.0)) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 30) as one:
            began = time.monotonic()
            one.sendall(unread_call())
            received(one)  # until the server hangs up
            assert 1.0 < time.monotonic() - began < 15.0


def test_an_answer_is_counted_until_its_client_has_it_or_leaves():
    repository = Repository(served())

    def held(size: int) -> bool:
        until = time.monotonic() + 30
        while repository.admission.held[0] != size and time.monotonic() < until:
            time.sleep(0.01)
        return repository.admission.held[0] == size

    live = MESSAGES["ServerLiveResponse"](live=True).ByteSize()
    with serving(served(), repository=repository) as address:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 30) as one:
            one.sendall(unread_call())
            assert held(ANSWER_COPIES * live)
            assert infer(address, asked=asked_bytes())[0] == "OK"
            assert held(ANSWER_COPIES * live)
        assert held(0)


@pytest.mark.parametrize(("datatype", "value"), [("FP32", 0.5), ("INT64", 1), ("INT8", 1)])
def test_values_are_counted_as_they_cost_and_bytes_once_more(datatype, value):
    held: list[float] = []

    def student(x):
        held.append(repository.admission._all[0])
        return np.stack([x[:, 0], -x[:, 0], 0 * x[:, 0]], axis=1)

    rows, field = 2048, CONTENTS[datatype][0]
    student.input_shape, student.input_name = (None, 2), "x"
    student.input_dtype = np.dtype(DATATYPES[datatype])
    about = {"name": "x", "datatype": datatype, "shape": [rows, 2]}
    values = {**about, "contents": {field: [value] * (2 * rows)}}
    asked = [message(inputs=[values]), message(inputs=[about])]
    asked[1].raw_input_contents.append(np.full(2 * rows, value, student.input_dtype).tobytes())
    pair = served(student=student)
    repository = Repository(pair, student_batch=rows)
    with (
        serving(pair, repository=repository) as address,
        grpc.insecure_channel(address) as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE.full_name}/ModelInfer")
        for each in asked:
            infer(each.SerializeToString(), timeout=60)
    wide = np.dtype(CONTENTS[datatype][1]).itemsize
    sizes = [len(each.SerializeToString()) for each in asked]
    assert held[0] == 2 * sizes[0] + 4 * wide * 2 * rows
    assert held[1] == 2 * sizes[1]


def test_a_message_is_counted_before_it_is_parsed_and_its_raw_bytes_as_they_are(monkeypatch):
    values = message(inputs=[{"name": "x", "contents": {"int64_contents": [1] * 100_000}}])
    raw = message(raw_input_contents=[bytes(100_000), bytes(7)], id="a")
    for each, size in ((values, values.ByteSize()), (raw, raw.ByteSize() - 100_007)):
        assert parsed_size(each.SerializeToString()) == size
    monkeypatch.setattr("ebjr.serving.grpc._parsed", None)  # it does not come to that
    with serving(served(), limits=Limits(held_bytes=2**20)) as address:
        code, _ = infer(address, asked=values.SerializeToString())
        assert code == "RESOURCE_EXHAUSTED"


def test_a_message_of_very_many_fields_is_refused(address):
    code, _ = infer(address, asked=asked_bytes() + b"\x2a\0" * 2000)
    assert code == "INVALID_ARGUMENT"


def test_a_call_has_an_id_and_a_line_whether_it_is_answered_or_refused(caplog):
    with caplog.at_level("INFO", logger="ebjr.serving"), serving(served(), log_requests=True) as at:
        good = infer(at, [("x-request-id", "abc-1")], asked_bytes())
        bad = infer(at, [("x-request-id", 'no "quotes"')], b"no message")
    made = bad[1]["x-request-id"]
    assert (good[0], good[1]["x-request-id"]) == ("OK", "abc-1")
    assert (bad[0], re.fullmatch("[0-9a-f]{32}", made) is not None) == ("INVALID_ARGUMENT", True)
    lines = [record.figures for record in caplog.records if hasattr(record, "figures")]
    assert [(line["method"], line["status"]) for line in lines] == [
        ("gRPC", "OK"),
        ("gRPC", "INVALID_ARGUMENT"),
    ]
    assert [lines[0][key] for key in ("rows", "deferred", "threshold")] == [2, 1, 1.0]
    assert lines[0]["path"] == f"/{SERVICE.full_name}/ModelInfer"


def test_who_may_not_ask_is_refused_before_the_message_comes(caplog):
    """Else clients without a token fill a server's memory with what it refuses."""
    comes = threading.Event()

    def message():
        comes.wait(60)
        yield asked_bytes()

    with (
        caplog.at_level("INFO", logger="ebjr.serving"),
        serving(served(), log_requests=True, doors=Doors(infer_token="ask")) as at,
        grpc.insecure_channel(at) as channel,
    ):
        ask = channel.stream_unary(f"/{SERVICE.full_name}/ModelInfer")
        for shown in ([], [("authorization", "Bearer other")], [("authorization", "ask")]):
            with pytest.raises(grpc.RpcError) as told:
                ask(message(), metadata=[*shown, ("x-request-id", "abc-1")], timeout=30)
            assert told.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert "a query needs the header Authorization" in told.value.details()
            assert ("x-request-id", "abc-1") in told.value.trailing_metadata()
        comes.set()
        ask(message(), metadata=[("authorization", "Bearer ask")], timeout=30)
    lines = [record.figures for record in caplog.records if hasattr(record, "figures")]
    assert [line["status"] for line in lines] == [
        "UNAUTHENTICATED",
        "OK",
    ]  # others are in its count


def test_a_call_has_a_span_below_that_of_its_client():
    pytest.importorskip("opentelemetry.sdk", reason="the extra `otel` is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from ebjr.serving.tracing import Tracing

    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with serving(served(), tracing=Tracing(provider)) as address:
        infer(address, [("traceparent", f"00-{trace}-{parent}-01")], asked_bytes())
    found = {span.name: span for span in spans.get_finished_spans()}
    own = found.pop(f"/{SERVICE.full_name}/ModelInfer")
    assert format(own.context.trace_id, "032x") == trace
    assert format(own.parent.span_id, "016x") == parent
    assert set(found) == {"student wait", "student batch", "teacher wait", "teacher batch"}
