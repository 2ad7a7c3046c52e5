"""What one client does, the others do not feel: limits on bodies, heads, patience and number."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import os
import socket
import sys
import threading
import time
import zlib
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import NAME, exchange, received, refusal, request, running, served, student
from starlette.testclient import TestClient

from ebjr import JointClassifier, Preprocess, Router
from ebjr.data import preprocess
from ebjr.data.preprocess import prepared
from ebjr.errors import ProtocolError
from ebjr.protocol import InferRequest, read_response, write_request
from ebjr.serving import bodies, memory
from ebjr.serving.admission import Admission
from ebjr.serving.app import Served, build_app
from ebjr.serving.images import decoded_images, opened_images
from ebjr.serving.lanes import LARGE_BYTES, NICENESS, Lane
from ebjr.serving.limits import Limits, Refused, exposure

BODY = json.dumps(request()).encode()


@pytest.fixture
def client():
    with TestClient(build_app(served(), limits=Limits(body_bytes=10_000))) as opened:
        yield opened


def send(client, body, **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.post(f"{NAME}/infer", content=body, headers=named)


def gated():
    """A student that waits until its gate is open, and that gate."""
    gate = threading.Event()

    def slow(x):
        gate.wait(60)
        return student(x)

    slow.input_shape, slow.input_name, slow.input_dtype = (None, 2), "x", np.float32
    return slow, gate


def says(answer) -> tuple[int, str]:
    sentence = answer.json()["error"]
    assert "\n" not in sentence
    return answer.status_code, sentence


def ask(address) -> int:
    """What another client is told."""
    head = f"POST {NAME}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n"
    answer = exchange(address, head.encode() + b"Connection: close\r\n\r\n" + BODY)
    return int(answer.split()[1])


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_bodies_may_be_compressed_and_bombs_are_refused(client, encoding):
    def squeezed(raw):
        return gzip.compress(raw) if encoding == "gzip" else zlib.compress(raw)

    assert send(client, squeezed(BODY), Content_Encoding=encoding).status_code == 200
    for body, status, sentence in (
        (squeezed(b" " * 1_000_000), 413, "10000 bytes decompressed"),
        (squeezed(BODY)[:-5], 400, "ends inside"),
        (squeezed(BODY) + b"x", 400, "goes on after"),
        (b"nothing of the kind", 400, "is not valid"),
    ):
        found = says(send(client, body, Content_Encoding=encoding))
        assert (found[0], sentence in found[1]) == (status, True), found


def test_a_bomb_that_says_its_size_is_not_decompressed(client, monkeypatch):
    noise = 3 * np.random.default_rng(0).bytes(3334)
    monkeypatch.setattr(bodies.zlib, "decompressobj", lambda *_: pytest.fail("it is"))
    found = says(send(client, gzip.compress(noise), Content_Encoding="gzip"))
    assert found == (413, "a body may have at most 10000 bytes decompressed; this one says 10002")


def test_a_body_that_has_more_than_it_says_is_refused(client):
    sent = gzip.compress(BODY)
    for size in (len(BODY) - 1, len(BODY) + 1):
        body = sent[:-4] + size.to_bytes(4, "little")
        found = says(send(client, body, Content_Encoding="gzip"))
        assert found == (400, "the body is not valid gzip")
    assert send(client, sent, Content_Encoding="gzip").status_code == 200
    with pytest.raises(Refused, match="it has more than 10 bytes"):
        unpacked(gzip.compress(bytes(2**22)), "gzip", 10)


def unpacked(body, encoding, size=2**24):
    with Admission(bytes=2**30, rows=1, seconds=1).hold("client") as hold:
        found = bodies._decompressed(body, encoding, size, 2**24, hold)
        assert hold.mine[0] == len(found)
        return found


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
@pytest.mark.parametrize("noise", [False, True])
def test_bodies_of_any_size_are_decompressed_whole(pack, noise):
    encoding = "gzip" if pack is gzip.compress else "deflate"
    for size in (0, 1, *range(bodies.FED_BYTES - 30, bodies.FED_BYTES, 3), 3 * 2**20 + 1):
        raw = np.random.default_rng(size).bytes(size) if noise else bytes(size)
        body = pack(raw)
        assert unpacked(body, encoding) == raw
        with pytest.raises(Refused, match="ends inside"):
            unpacked(body[:-1], encoding)
        for more in (b"x", bytes(2 * bodies.FED_BYTES)):
            with pytest.raises(Refused, match="goes on after"):
                unpacked(body + more, encoding)


def test_a_large_body_that_becomes_a_small_one_is_decompressed_beside_the_loop(monkeypatch):
    packer, seen = zlib.compressobj(wbits=zlib.MAX_WBITS | 16), []
    body = packer.compress(BODY) + packer.flush(zlib.Z_FULL_FLUSH)
    body += b"\x00\x00\x00\xff\xff" * LARGE_BYTES  # blocks without content
    body += packer.flush()
    decompressed = bodies._decompressed

    def watched(*how):
        seen.append(threading.current_thread().name[:10])
        return decompressed(*how)

    monkeypatch.setattr(bodies, "_decompressed", watched)
    with TestClient(build_app(served())) as client:
        assert send(client, body, Content_Encoding="gzip").status_code == 200
        assert send(client, gzip.compress(BODY), Content_Encoding="gzip").status_code == 200
    assert seen[0] == "ebjr-large"
    assert seen[1] != "ebjr-large"


def test_bodies_that_are_too_large_are_refused_declared_or_not(client):
    assert says(send(client, b"x" * 20_000))[0] == 413
    assert says(send(client, iter([b"x" * 5_000] * 4)))[0] == 413
    assert says(send(client, BODY, Content_Encoding="br"))[0] == 415


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0, br", None),
        ("gzip;q=much", None),
        ("identity", None),
    ],
)
def test_answers_are_compressed_for_who_asks_for_it(client, accepted, encoding):
    rows = [(float(number), 0.0) for number in range(100)]
    plain = send(client, json.dumps(request(rows)), Accept_Encoding="identity")
    found = send(client, json.dumps(request(rows)), Accept_Encoding=accepted)
    assert found.headers.get("content-encoding") == encoding
    assert found.json() == plain.json()


def test_what_is_held_at_once_is_bounded_and_is_let_go():
    slow, gate = gated()
    app = build_app(served(slow), limits=Limits(held_bytes=len(BODY) + 10))
    with TestClient(app) as client:
        first = threading.Thread(target=send, args=(client, BODY))
        first.start()
        while not app.state.service.admission.held[0]:
            pass
        answer = send(client, BODY)
        gate.set()
        first.join(30)
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        assert "the limit is" in answer.json()["error"]
        assert send(client, BODY).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        f"{NAME}/infer",
        "/v1/models/joint:predict",
        "/v1/chat/completions",
        "/v1/both?model=joint",
    ],
)
def test_a_large_json_is_counted_as_the_objects_that_it_becomes(path):
    body = b"[%b0]" % (b"0," * LARGE_BYTES)
    many = [served(), replace(served(), name="another")]
    with TestClient(build_app(many, limits=Limits(held_bytes=6 * len(body)))) as client:
        answer = client.post(path, content=body)
        assert answer.status_code == 413
        assert "bytes of requests" in answer.text
        assert client.post(path, content=body[-LARGE_BYTES:]).status_code == 400


def png_of(pixels):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def png(width, height):
    return png_of(np.zeros((height, width, 3), np.uint8))


def test_clients_take_turns_to_have_their_images_decoded():
    decoder, order = Lane("test"), []
    begun, done = threading.Event(), threading.Event()
    decoder.put("first", lambda: begun.wait(30))
    for number in range(3):
        decoder.put("greedy", partial(order.append, number))
    decoder.put("greedy", done.set)
    decoder.put("modest", partial(order.append, "modest"))
    begun.set()
    assert done.wait(30)
    decoder.stop()
    assert order == [0, "modest", 1, 2]


def test_an_address_has_no_more_turns_by_opening_connections():
    lane, order = Lane("test"), []
    begun, done = threading.Event(), threading.Event()
    lane.put("first", lambda: begun.wait(30))
    for port in range(3):
        for number in range(2):
            lane.put(("greedy", port), partial(order.append, (port, number)))
    for name in ("modest", "patient"):
        lane.put(("another", 1), partial(order.append, name))
    lane.put(("greedy", 2), done.set)
    begun.set()
    assert done.wait(30)
    lane.stop()
    assert order == [(0, 0), "modest", (1, 0), "patient", (2, 0), (0, 1), (1, 1), (2, 1)]


def decoded(files, most_pixels, hold=None):
    hold = hold or Admission(bytes=2**30, rows=1, seconds=1).hold("client")
    return decoded_images(opened_images(files, most_pixels, hold), hold)


def test_images_of_many_pixels_are_refused_before_they_are_decoded():
    bomb = png(4000, 4000)
    assert len(bomb) < 100_000
    with pytest.raises(ProtocolError, match="with image 0 they have 16000000"):
        decoded([bomb], 1_000_000)
    with pytest.raises(ProtocolError, match="with image 3 they have 400"):
        decoded([png(10, 10)] * 9, 399)
    assert [image.shape for image in decoded([png(10, 9)] * 2, 180)] == [(9, 10, 3)] * 2


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000"])
def test_what_record_decodes_is_decoded_here(form):
    from PIL import Image

    from ebjr.data.examples import decode_image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).save(file, form)
    (found,) = decoded([file.getvalue()], 100)
    np.testing.assert_array_equal(found, decode_image(file.getvalue()))
    sent_on = getattr(found, "file", None)
    assert sent_on == (file.getvalue() if form in ("PNG", "JPEG", "WEBP") else None)
    with pytest.raises(ProtocolError, match="with image 0 they have 63"):
        decoded([file.getvalue()], 62)


@pytest.mark.parametrize("form", ["ICO", "ICNS"])
def test_a_picture_that_may_be_larger_than_its_file_says_is_refused(form):
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, form)
    with pytest.raises(ProtocolError, match="image 0 cannot be read"):
        decoded([file.getvalue()], 10_000)


@pytest.mark.parametrize(
    "write",
    [
        base64.b64encode,
        base64.encodebytes,  # with line ends
        lambda file: b"data:image/png;base64," + base64.b64encode(file),
    ],
)
def test_base64_of_an_image_is_the_image(write):
    with Admission(bytes=2**30, rows=1, seconds=1).hold("client") as hold:
        (found,) = decoded([write(png(90, 70))], 90 * 70, hold)
        assert hold.mine[0] == found.nbytes + len(found.file)  # a copy of what was sent
    assert found.shape == (70, 90, 3)
    assert found.file == png(90, 70)
    with pytest.raises(ProtocolError, match="with image 1 they have 6400"):
        decoded([png(10, 10), write(png(90, 70))], 6399)


def test_text_that_looks_like_base64_and_is_an_image_is_that_image():
    (found,) = decoded([b"P1 4 2 0000 0000"], 8)
    assert found.shape == (2, 4, 3)


@pytest.mark.parametrize("sent", [b"", b"!", b"aGVsbG8=", b"data:image/png;base64,", b"aGVsbG8"])
def test_base64_of_anything_else_says_what_is_expected(sent):
    with pytest.raises(ProtocolError, match=r"image 1 cannot .* JPEG, .* or their base64 in JSON$"):
        decoded([png(2, 2), sent], 100)


@pytest.mark.parametrize("sent", [bytes, base64.b64encode])
def test_an_image_of_more_pixels_than_can_be_opened_is_over_the_limit(sent):
    file = bytearray(png(2, 2))
    file[16:24] = 2 * (60_000).to_bytes(4, "big")
    file[29:33] = zlib.crc32(file[12:29]).to_bytes(4, "big")
    words = "may have at most 100 pixels together; with image 1 they have over 178956970"
    with pytest.raises(ProtocolError, match=f"^the images of a request {words}$"):
        decoded([png(2, 2), sent(bytes(file))], 100)


def test_images_that_are_bombs_are_a_400_and_the_next_is_answered():
    def flat(x):
        return np.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], axis=1)

    model = prepared(flat, Preprocess(size=(4, 4)))
    app = build_app(
        Served(JointClassifier(model, model, Router("max_logit", 1.0))),
        limits=Limits(image_pixels=10_000),
    )

    def body(*files):
        raw = b"".join(len(file).to_bytes(4, "little") + file for file in files)
        tensor = {"name": "image", "shape": [len(files)], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": len(raw)}
        head = json.dumps({"inputs": [tensor]}).encode()
        return head + raw, {"Inference_Header_Content_Length": str(len(head))}

    with TestClient(app) as client:
        for files in ([png(4000, 4000)], [png(90, 90)] * 2):
            content, headers = body(*files)
            status, sentence = says(send(client, content, **headers))
            assert (status, "10000 pixels together" in sentence) == (400, True)
        content, headers = body(png(90, 90))
        assert send(client, content, **headers).status_code == 200


def brightness(x):
    return np.stack([x.mean((1, 2, 3)), 0.4 - x.mean((1, 2, 3))], axis=1)


def images_of(*files):
    """The body and headers of a request for encoded images."""
    tensor = np.empty(len(files), object)
    tensor[:] = files
    body, length = write_request(InferRequest({"image": tensor}, binary=True))
    return body, {"Inference_Header_Content_Length": str(length)}


@pytest.fixture
def pair_of_sizes():
    """A student of 4 x 4 pixels and a teacher of 8 x 6, which rarely agree."""
    models = (Preprocess(size=4), Preprocess(size=(8, 6), resize="crop"))
    return JointClassifier(
        *(prepared(brightness, each) for each in models), Router("softmax", 0.52)
    )


@pytest.mark.parametrize("encoded", [True, False])
def test_large_images_are_resized_once_and_ahead_of_the_batches(
    pair_of_sizes, encoded, monkeypatch
):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 900, 700, 3), np.uint8)
    said, fit, seen = pair_of_sizes(list(pixels)), preprocess._fit, []

    def watched(image, size, *how):
        niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        seen.append((image.shape[0], size, threading.current_thread().name[:10], niceness))
        return fit(image, size, *how)

    monkeypatch.setattr(preprocess, "_fit", watched)
    with TestClient(build_app(Served(pair_of_sizes))) as client:
        body, headers = images_of(*map(png_of, pixels))
        if not encoded:
            body, length = write_request(InferRequest({"image": pixels}, binary=True))
            headers = {"Inference_Header_Content_Length": str(length)}
        answer = send(client, body, **headers)
        large, seen[:] = [*seen], []
        assert send(client, *images_of(png(90, 70))[:1], **images_of(png(90, 70))[1]).is_success
    length = answer.headers["Inference-Header-Content-Length"]
    outputs = read_response(answer.content, length).outputs
    for name in ("prediction", "deferred"):
        assert outputs[name].tolist() == getattr(said, name).tolist()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    nice = usual + NICENESS if sys.platform == "linux" else usual
    assert sorted(large) == sorted(
        2 * [(900, size, "ebjr-large", nice) for size in ((4, 4), (8, 6))]
    )
    assert seen
    assert {who for *_, who, _ in seen}.isdisjoint({"ebjr-large"})


@pytest.mark.parametrize(
    ("files", "advice"), [([(90, 90)], "a smaller one"), ([(80, 80)] * 2, "it in parts")]
)
def test_what_a_single_image_needs_cannot_be_sent_in_parts(pair_of_sizes, files, advice):
    app = build_app(Served(pair_of_sizes), limits=Limits(held_bytes=150_000))
    with TestClient(app) as client:
        body, headers = images_of(*(png(*size) for size in files))
        status, sentence = says(send(client, body, **headers))
    assert (status, sentence.endswith(f"send {advice}")) == (413, True), sentence


def test_resized_copies_are_counted_before_they_are_made(monkeypatch):
    monkeypatch.setattr(preprocess, "_fit", lambda *_: pytest.fail("it is resized"))
    one = prepared(brightness, Preprocess(size=(2000, 2000)))
    joint = JointClassifier(one, one, Router("softmax", 0.5))
    with TestClient(build_app(Served(joint), limits=Limits(held_bytes=12_000_000))) as client:
        body, length = write_request(
            InferRequest({"image": np.zeros((1, 900, 700, 3), np.uint8)}, binary=True)
        )
        answer = send(client, body, Inference_Header_Content_Length=str(length))
        assert says(answer)[0] == 413


def test_small_images_do_not_wait_for_large_ones(pair_of_sizes):
    free = threading.Event()
    app = build_app(Served(pair_of_sizes))
    with TestClient(app) as client:
        try:
            app.state.repository.shared.lanes.large.put("another", lambda: free.wait(30))
            body, headers = images_of(png(90, 70))
            assert send(client, body, **headers).is_success
        finally:
            free.set()


def test_small_images_do_not_wait_for_long_files_of_few_pixels(pair_of_sizes):
    """To read a header may take as long as its file is."""
    free = threading.Event()
    app = build_app(Served(pair_of_sizes), timeout_seconds=5.0)
    with TestClient(app) as client:
        try:
            app.state.repository.shared.lanes.small.put("another", lambda: free.wait(30))
            body, headers = images_of(png(90, 70) + bytes(LARGE_BYTES))
            assert send(client, body, **headers).is_success
        finally:
            free.set()


def test_what_requests_leave_behind_is_returned_when_they_are_answered(monkeypatch):
    returned = []
    monkeypatch.setattr(memory, "return_freed", lambda: returned.append(1))
    admission = Admission(bytes=2**30, rows=10, seconds=10)
    beside = Admission(bytes=2**30, rows=1, seconds=1, beside=admission)
    with beside.hold("client") as hold:
        hold.add(bytes=memory.MUCH_BYTES)
        memory.return_ebbed(admission)
        assert not returned
    for _ in range(2):
        memory.return_ebbed(admission)
        assert len(returned) == 1
    with admission.hold("client") as hold:
        hold.add(bytes=memory.MUCH_BYTES - 1)
    memory.return_ebbed(admission)
    assert len(returned) == 1


SHORT = Limits(
    head_bytes=4096, head_seconds=0.7, body_seconds=0.7, body_bytes_per_second=2**20, connections=4
)


@pytest.fixture(scope="module", params=["infer goes its short way", "all is logged"])
def address(request):
    """A server with little patience."""
    logged = request.param == "all is logged"
    with running(build_app(served(), limits=SHORT, log_requests=logged)) as found:
        yield found


START = f"POST {NAME}/infer HTTP/1.1\r\nHost: x\r\n".encode()


def test_who_says_nothing_is_hung_up_on(address):
    assert exchange(address) == b""
    assert ask(address) == 200


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([START], 408),
        ([START + b"Content-Length: 100\r\n\r\n{"], 408),
        ([START + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{"], 408),
        ([START, b"X: y\r\n" * 2000], 431),
        ([START, b"X: " + b"y" * 10_000], 431),
        ([b"GET /" + b"y" * 10_000], 431),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"], 400),
        ([b"GET nowhere\r\n\r\n"], 400),
        ([START + b"Content-Length: -1\r\n\r\n"], 400),
        ([START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"], 400),
        ([START + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"], 400),
        ([START + b"Content-Length: 99999999999999\r\n\r\n"], 413),
    ],
)
def test_who_is_too_slow_or_sends_too_much_is_told_so_in_json(address, parts, status):
    found, _ = refusal(exchange(address, *parts))
    assert found in {status, 400} if status == 431 else found == status
    assert ask(address) == 200


@pytest.mark.parametrize("logged", [False, True])
def test_a_client_that_goes_away_frees_its_rows(logged, caplog):
    slow, gate = gated()
    whole = START + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    app = build_app(served(slow), queue_rows=5, log_requests=logged)
    with running(app) as address:
        at_work = socket.create_connection(address, 30)
        try:
            at_work.sendall(whole)
            while not app.state.service.admission.held[1] or any(
                app.state.service.engine.waiting().values()
            ):
                time.sleep(0.01)
            for _ in range(10):  # each would be refused if the rows of the last still waited
                with socket.create_connection(address, 30) as hasty:
                    hasty.sendall(whole)
                    hasty.settimeout(0.1)
                    with pytest.raises(TimeoutError):
                        hasty.recv(1)
                time.sleep(0.1)
            assert not [line for line in caplog.records if line.levelname == "ERROR"]
            assert len(app.state.service.forsaken) <= 1  # the others were hung up on
        finally:
            gate.set()
            at_work.close()


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("path", [f"{NAME}/infer", "/v2/models/joint"])
def test_a_client_that_has_said_all_is_still_answered(logged, path):
    """It has closed its side alone, as `nc` and some proxies do."""
    body = BODY if path.endswith("infer") else b""
    method = "POST" if body else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with (
        running(build_app(served(), log_requests=logged)) as address,
        socket.create_connection(address, 10) as connection,
    ):
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("logged", [False, True])
def test_a_client_that_has_said_all_and_makes_room_for_another_is_told(logged):
    """Else its connection, and what waits for its answer, would stay for ever."""
    slow, gate = gated()
    whole = START + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    app = build_app(served(slow), queue_rows=3, log_requests=logged)
    with running(app) as address, socket.create_connection(address, 10) as first:
        first.sendall(whole)
        first.shutdown(socket.SHUT_WR)
        while not app.state.service.forsaken:
            time.sleep(0.01)
        with socket.create_connection(address, 10) as second:
            second.sendall(whole)
            assert received(first).startswith(b"HTTP/1.1 429")
            gate.set()
            second.shutdown(socket.SHUT_WR)
            assert received(second).startswith(b"HTTP/1.1 200")


def test_requests_sent_at_once_are_answered_in_their_order(address):
    def asked(rows):
        raw = json.dumps(request([(float(row), 0.0) for row in rows])).encode()
        return START + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw

    last = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    meta = last.replace(b"Connection: close\r\n", b"")
    answer = exchange(address, asked([5]) + meta + asked([6, 7, 8]) + meta + asked([9]) + last)
    heads = answer.split(b"HTTP/1.1 ")[1:]
    assert [head[:3] for head in heads] == [b"200"] * 6
    bodies = [json.loads(head.partition(b"\r\n\r\n")[2]) for head in heads]
    scores = [body["outputs"][1]["data"] if "outputs" in body else None for body in bodies]
    assert scores == [[5.0], None, [6.0, 7.0, 8.0], None, [9.0], None]


def test_of_a_head_without_end_no_more_is_read_while_a_request_before_it_is_at_work():
    slow, gate = gated()
    with (
        running(build_app(served(slow))) as address,
        socket.create_connection(address, 2) as client,
    ):
        client.sendall(START + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY + START)
        with pytest.raises(TimeoutError):
            client.sendall(b"X: " + b"y" * 2**26)
        gate.set()
        found = received(client)
    assert found.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 431" in found


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"Host: x\r\nHost: y\r\n", 400),
        (b"", 400),
        (b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", 400),
        (b"Host: x\r\nTransfer-Encoding: identity\r\n", 400),
        (b"Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Host: x\r\nContent-Length: 99999999999999999999999\r\n", 400),
    ],
)
def test_heads_that_may_be_read_in_two_ways_are_refused(address, head, status):
    found = exchange(address, f"POST {NAME}/infer HTTP/1.1\r\n".encode() + head + b"\r\n")
    assert refusal(found)[0] == status
    assert ask(address) == 200


@pytest.mark.parametrize("said", ["9" * 18, "9" * 2000, "-1", "x", ""])
def test_a_length_of_json_that_is_none_is_malformed(address, said):
    head = f"Content-Length: {len(BODY)}\r\nInference-Header-Content-Length: {said}\r\n"
    found = exchange(address, START + head.encode() + b"Connection: close\r\n\r\n" + BODY)
    assert refusal(found)[0] == 400
    assert ask(address) == 200


def test_a_length_of_json_that_no_number_holds_is_malformed():
    head = f"Content-Length: {len(BODY)}\r\nInference-Header-Content-Length: {'9' * 5000}\r\n"
    with running(build_app(served())) as at:
        found = exchange(at, START + head.encode() + b"Connection: close\r\n\r\n" + BODY)
    assert refusal(found)[0] == 400


def test_an_answer_comes_in_one_piece(address):
    with socket.create_connection(address, 10) as connection:
        connection.sendall(START + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert json.loads(body)["model_name"] == "joint"


def test_a_large_message_of_numbers_is_answered_as_a_small_one():
    rows = [[float(number), 0.0] for number in range(20_000)]
    with TestClient(build_app(served(), queue_rows=20_000)) as client:
        found = client.post(f"{NAME}/infer", json=request(rows)).json()
    outputs = {output["name"]: output for output in found["outputs"]}
    assert outputs["prediction"]["shape"] == [20_000]


def test_who_does_not_read_is_hung_up_on():
    rows = json.dumps(request([(1.0, 0.0)] * 20_000)).encode()
    head = START + f"Content-Length: {len(rows)}\r\n\r\n".encode()
    limits, lazy = Limits(write_seconds=0.3), socket.socket()
    with running(build_app(served(), limits=limits, queue_rows=20_000)) as address, lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        lazy.settimeout(30)
        lazy.connect(address)
        lazy.sendall(head + rows)
        assert lazy.recv(12) == b"HTTP/1.1 200"
        time.sleep(2.0)  # longer than the server's patience
        assert not received(lazy).endswith(b"]}]}")
        assert ask(address) == 200


def test_beyond_the_most_connections_one_more_is_told_so_and_the_others_go_on(address):
    with ExitStack() as stack:
        kept = [
            stack.enter_context(socket.create_connection(address, 10))
            for _ in range(SHORT.connections)
        ]
        for each in kept:
            each.sendall(START + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        assert all(each.recv(15).startswith(b"HTTP/1.1 200") for each in kept)
        assert refusal(exchange(address)) == (
            503,
            "4 clients are connected, the limit; try again later",
        )
        kept[0].sendall(START + f"Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
    for _ in range(200):
        if ask(address) == 200:
            break
    else:
        pytest.fail("places were not given back")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/v2/models/../../../etc/passwd",
        "/v2/models/joint/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/v2/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/v2/models/joint%00.onnx",
        "/v2/models//etc/passwd",
        "/..%5c..%5cetc%5cpasswd",
        "/student.onnx",
        "/joint.toml",
        "//etc/passwd",
    ],
)
def test_no_path_leads_to_a_file(address, path):
    answer = exchange(
        address, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    status, sentence = refusal(answer)
    assert status == 404
    assert "root:" not in sentence


def test_what_is_nowhere_or_not_taken_is_said_in_json(client):
    assert says(client.get("/v3")) == (
        404,
        "there is nothing at '/v3'; /openapi.json lists the routes",
    )
    answer = client.get(f"{NAME}/infer")
    assert says(answer) == (405, f"{NAME}/infer takes POST, not GET")
    assert answer.headers["allow"] == "POST"
    assert says(client.delete("/v1/router"))[0] == 405


@pytest.mark.parametrize("length", ["141820239", "9" * 18, "x"])
def test_a_head_that_says_more_json_than_there_is_holds_nothing_and_is_malformed(length):
    """It is a mistake of the head, not a request too large to be held."""
    with TestClient(build_app(served())) as client:
        headers = {"Inference-Header-Content-Length": length}
        answer = client.post("/v2/models/joint/infer", content=b"{}", headers=headers)
        assert answer.status_code == 400


def test_our_own_mistake_is_a_500_without_its_traceback(caplog):
    app = build_app(served())
    app.state.repository.server_metadata = lambda: {}["secret"]
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/v2")
    assert says(answer) == (500, "the server failed on this request; its log says why")
    assert "secret" not in answer.text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "edge.example"])
def test_listening_wider_is_warned_of_by_what_is_open(host):
    said = exposure(host, asking=False, secret=False)
    assert said.startswith(f"{host} may be reached from other machines: anyone may query")
    assert "--infer-token" in said
    assert "is unencrypted (--ssl-certfile)" in said
    assert "anyone" not in exposure(host, asking=True, secret=False)
    assert "unencrypted" not in exposure(host, asking=False, secret=True)
    assert exposure(host, asking=True, secret=True) is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_listening_to_this_machine_alone_is_not_warned_of(host):
    assert exposure(host, asking=False, secret=False) is None


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
@pytest.mark.parametrize("name", [each.name for each in fields(Limits)])
def test_limits_are_above_zero_and_finite(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*(above 0|at least 1).*, not {value}"):
        Limits(**{name: value})


@pytest.mark.parametrize("value", [-1, math.nan, math.inf])
@pytest.mark.parametrize(
    "name",
    [
        *("timeout_seconds", "chore_seconds", "max_wait_seconds", "audit_rate", "queue_rows"),
        *("student_batch", "teacher_batch", "workers", "teacher_workers"),
    ],
)
def test_a_number_that_cannot_be_is_refused_at_the_start(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, not {value}"):
        build_app(served(), **{name: value})


@pytest.mark.parametrize("seconds", [0, 1e9])
def test_the_servers_timeout_has_the_range_of_a_requests(seconds):
    with pytest.raises(ValueError, match="timeout_seconds must be above 0 and up to 3600, not"):
        build_app(served(), timeout_seconds=seconds)


def test_a_request_of_more_rows_than_may_wait_is_refused_by_itself():
    rows = [[float(number), 0.0] for number in range(11)]
    with TestClient(build_app(served(), queue_rows=10)) as client:
        answer = client.post(f"{NAME}/infer", json=request(rows))
        assert says(answer) == (
            413,
            "a request may hold 10 rows, and this one needs 11: send it in parts",
        )
        assert client.post(f"{NAME}/infer", json=request(rows[:10])).status_code == 200


@pytest.mark.parametrize("policy", ["student", "error"])
def test_a_teacher_that_fails_with_any_error_is_away(policy):
    def failing(x):
        raise KeyError("secret place")

    about = served(teacher=failing, when_unavailable=policy)
    with TestClient(build_app(about)) as client:
        answer = send(client, BODY)
    assert "Traceback" not in answer.text
    if policy == "error":
        assert says(answer)[0] == 503
    else:
        outputs = {one["name"]: one["data"] for one in answer.json()["outputs"]}
        assert outputs["degraded"] == [True, False]
        assert outputs["prediction"] == teacherless()


def teacherless() -> list[int]:
    return student(np.array([[0.5, 0.0], [5.0, 0.0]])).argmax(1).tolist()
