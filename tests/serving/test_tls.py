"""Real servers and clients shake hands, by certificates that change meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import signal
import socket
import ssl
import threading
import time
from contextlib import closing

import numpy as np
import pytest
from pki import Authority, x509
from small import NAME, request
from test_process import server

from ebjr.serving.tls import Kept, Tls, impatient_loop

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")
grpc = pytest.importorskip("grpc", reason="the extra `grpc` is not installed")
triton_http = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
triton_grpc = pytest.importorskip("tritonclient.grpc", reason="tritonclient is not installed")


@pytest.fixture
def ca(tmp_path):
    return Authority(tmp_path)


def files(pair, **more) -> dict[str, str]:
    """Options of a server with this certificate and key."""
    known = {"ssl_certfile": pair[0], "ssl_keyfile": pair[1], **more}
    return {key: str(value) for key, value in known.items()}


def trusting(ca, pair=None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca.file)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def connect(url, context) -> http.client.HTTPSConnection:
    place, _, port = url.removeprefix("https://").partition(":")
    return http.client.HTTPSConnection(place, int(port), context=context, timeout=30)


def lives(connection) -> bool:
    with closing(connection):
        try:
            connection.request("GET", "/v2/health/live")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False


def infer(connection, path=f"{NAME}/infer") -> int:
    connection.request("POST", path, json.dumps(request()))
    answer = connection.getresponse()
    found = json.loads(answer.read())
    assert "outputs" in found
    return answer.status


def shown(connection) -> int:
    """The number of the certificate that a connection was opened by."""
    if connection.sock is None:
        connection.connect()
    return int(connection.sock.getpeercert()["serialNumber"], 16)


def triton_tensors(kind):
    tensor = kind.InferInput("x", [2, 2], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5, 0.0], [5.0, 0.0]], np.float32))
    return [tensor]


def test_https_answers_by_both_ways_and_keeps_the_connection(ca):
    with server(**files(ca.certificate("server"))) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = trusting(ca)
            context.maximum_version = version
            with closing(connect(url, context)) as connection:
                assert infer(connection) == 200  # the short way
                held = connection.sock
                assert infer(connection, f"{NAME}/infer?") == 200  # and the long one
                assert connection.sock is held
                assert held.version() == version.name.replace("v1_", "v1.")
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(url, ssl.create_default_context()).connect()
        plain = http.client.HTTPConnection(*url.removeprefix("https://").split(":"), timeout=30)
        assert not lives(plain)


def test_triton_clients_ask_over_tls_and_show_tokens(ca):
    options = files(ca.certificate("server"), infer_token="ask", token="move")
    with server(grpc_port=0, **options) as (process, first):
        urls = dict(line.split("://") for line in (first, process.stdout.readline().strip()))
        how = {"ssl": True, "ssl_context_factory": lambda: trusting(ca)}
        with closing(triton_http.InferenceServerClient(urls["https"], **how)) as client:
            assert client.is_server_ready()
            for token in ("ask", "move"):
                headers = {"Authorization": f"Bearer {token}"}
                found = client.infer("joint", triton_tensors(triton_http), headers=headers)
                assert found.as_numpy("prediction").tolist() == [1, 0]
            with pytest.raises(Exception, match="a query needs the header Authorization"):
                client.infer("joint", triton_tensors(triton_http))
        how = {"ssl": True, "root_certificates": str(ca.file)}
        with closing(triton_grpc.InferenceServerClient(urls["grpcs"], **how)) as client:
            assert client.is_server_ready()
            assert client.get_model_metadata("joint").name == "joint"
            headers = {"authorization": "Bearer ask"}
            found = client.infer("joint", triton_tensors(triton_grpc), headers=headers)
            assert found.as_numpy("prediction").tolist() == [1, 0]
            for headers in ({}, {"authorization": "Bearer other"}):
                with pytest.raises(Exception, match="a query needs the header") as refused:
                    client.infer("joint", triton_tensors(triton_grpc), headers=headers)
                assert "UNAUTHENTICATED" in str(refused.value.status())


def test_with_authorities_clients_show_certificates(ca, tmp_path):
    others = Authority(tmp_path, "others")
    own, stranger = ca.certificate("client"), others.certificate("stranger")
    options = files(ca.certificate("server"), ssl_ca_certs=ca.file)
    with server(grpc_port=0, **options) as (process, first):
        urls = dict(line.split("://") for line in (first, process.stdout.readline().strip()))
        with closing(connect(urls["https"], trusting(ca, own))) as connection:
            assert infer(connection) == 200
        for pair, ready in ((own, True), (stranger, False), (None, False)):  # probes, too
            assert lives(connect(urls["https"], trusting(ca, pair))) == ready
            texts = [path.read_bytes() for path in (ca.file, *reversed(pair or ()))]
            credentials = grpc.ssl_channel_credentials(*texts)
            with grpc.secure_channel(urls["grpcs"], credentials) as channel:
                ask = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
                if ready:
                    assert ask(b"", timeout=30)
                else:
                    with pytest.raises(grpc.RpcError):
                        ask(b"", timeout=30)


def expiry(certificate) -> float:
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return found.not_valid_after_utc.timestamp()


def test_when_the_certificate_expires_is_known_also_where_clients_show_theirs(ca):
    pair = ca.certificate("server", 3)
    plain, asking = Tls(*pair), Tls(*pair, ca_certs=ca.file)
    assert plain.expires == asking.expires == expiry(pair[0])
    ca.certificate("server", 5)
    plain.kept.look(again=True)
    assert plain.expires == expiry(pair[0]) > asking.expires


def test_the_metrics_say_when_the_certificate_expires(ca):
    pair = ca.certificate("server", 3)
    with server(**files(pair)) as (_, url), closing(connect(url, trusting(ca))) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    (found,) = re.findall(r"^ebjr_certificate_expiry_timestamp_seconds (.*)$", text, re.MULTILINE)
    assert float(found) == expiry(pair[0])


def until(condition) -> None:
    """Wait for what another process does within a second or so."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("hang_up", [True, False])
def test_a_new_certificate_is_shown_to_new_connections_while_old_ones_go_on(ca, hang_up):
    pair = ca.certificate("server")
    with server(grpc_port=0, **files(pair)) as (process, first):
        second = process.stdout.readline().strip().removeprefix("grpcs://")
        with closing(connect(first, trusting(ca))) as connection:
            before = shown(connection)
            assert infer(connection) == 200
            assert ca.certificate("server") == pair  # another one, under the same names
            if hang_up:
                process.send_signal(signal.SIGHUP)

            def changed() -> bool:
                with closing(connect(first, trusting(ca))) as other:
                    return shown(other) != before

            until(changed)
            assert infer(connection) == 200
            assert shown(connection) == before
        place, _, port = second.partition(":")

        def changed_for_grpc() -> bool:
            context = trusting(ca)
            context.set_alpn_protocols(["h2"])
            with (
                socket.create_connection((place, int(port)), 30) as plain,
                context.wrap_socket(plain, server_hostname="localhost") as opened,
            ):
                return int(opened.getpeercert()["serialNumber"], 16) != before

        until(changed_for_grpc)


def test_a_wrong_file_later_changes_nothing_and_is_said(ca):
    cert, key = ca.certificate("server")
    with server(**files((cert, key))) as (process, url):
        with closing(connect(url, trusting(ca))) as connection:
            before = shown(connection)
        _, other = ca.certificate("other")
        key.write_bytes(other.read_bytes())
        process.send_signal(signal.SIGHUP)
        line = process.stderr.readline()
        assert "the certificate of the server stays as it was" in line
        assert "does not belong to the certificate" in line
        with closing(connect(url, trusting(ca))) as connection:
            assert shown(connection) == before
            assert infer(connection) == 200


def test_an_authority_that_was_taken_out_is_trusted_no_more(ca, tmp_path):
    others, trusted = Authority(tmp_path, "others"), tmp_path / "trusted.pem"
    trusted.write_bytes(ca.file.read_bytes())
    old, new = ca.certificate("old"), others.certificate("new")
    options = files(ca.certificate("server"), ssl_ca_certs=trusted)

    def is_taken(url, pair) -> bool:
        return lives(connect(url, trusting(ca, pair)))

    with server(**options) as (process, url):
        assert is_taken(url, old)
        assert not is_taken(url, new)
        trusted.write_bytes(others.file.read_bytes())
        process.send_signal(signal.SIGHUP)
        until(lambda: is_taken(url, new))
        assert not is_taken(url, old)


def test_grpc_takes_no_key_with_a_password_and_says_what_to_do(ca, caplog):
    tls = Tls(*ca.certificate("locked", password="sesame"), password="sesame")
    with pytest.raises(ValueError, match="openssl pkey -in"):
        tls.for_grpc()
    plain = Tls(*ca.certificate("plain"), password="sesame")
    plain.for_grpc()
    ca.certificate("plain", password="sesame")
    plain.kept.look()
    assert (
        "stays as it was: gRPC takes no key with a password; decrypt it: openssl pkey"
        in caplog.text
    )


def test_what_was_read_stays_until_a_right_file_is_there(tmp_path, caplog):
    path, read = tmp_path / "secret", []

    def take() -> None:
        text = path.read_text()
        if not text:
            raise ValueError("it is empty")
        read.append(text)

    with pytest.raises(FileNotFoundError):
        Kept("secret", take, path)
    path.write_text("one")
    kept = Kept("secret", take, path)
    kept.look()
    assert read == ["one"]
    path.write_text("")
    kept.look()
    kept.look()  # it is said once
    assert caplog.text.count("the secret stays as it was: it is empty") == 1
    path.write_text("two")
    kept.look()
    kept.look(again=True)
    assert read == ["one", "two", "two"]


def test_a_client_that_does_not_shake_hands_is_hung_up_on(ca, monkeypatch):
    monkeypatch.setattr("ebjr.serving.tls.HANDSHAKE_SECONDS", 0.1)
    loop, context = impatient_loop(), Tls(*ca.certificate("server")).context()

    async def listen():
        return await loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)

    listening = loop.run_until_complete(listen())
    place = listening.sockets[0].getsockname()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    with socket.create_connection(place, 30) as idle:
        assert idle.recv(1) == b""
    loop.call_soon_threadsafe(listening.close)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(30)
    loop.close()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--ssl-certfile", "none.pem"), "none.pem: No such file or directory"),
        (("--ssl-keyfile", "server.key"), "TLS needs a certificate: add --ssl-certfile"),
        (("--ssl-certfile", "server.crt", "--ssl-keyfile", "other.key"), "does not belong to"),
        (("--ssl-certfile", "old.crt", "--ssl-keyfile", "old.key"), "certificate has expired"),
        (("--ssl-certfile", "locked.crt", "--ssl-keyfile", "locked.key"), "needs a password"),
        (("--token", ""), "a token (--token) is printable"),
        (("--infer-token-file", "empty"), "is empty: it must hold one token a line"),
        (("--infer-token", "a", "--infer-token-file", "empty"), "not both"),
        (("--ready", "both"), "ready must be one of student, teacher, not 'both'"),
    ],
)
def test_a_server_with_a_wrong_secret_does_not_start_and_says_so(
    calibrated, run, tmp_path, options, says
):
    ca = Authority(tmp_path)
    ca.certificate("server")
    ca.certificate("other")
    ca.certificate("old", days=-1)
    ca.certificate("locked", password="sesame")
    (tmp_path / "empty").write_text("\n")
    code, out, err = run("serve", calibrated, "--port", "0", *options)
    assert code == 2
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert "serving" not in out


@pytest.mark.parametrize(
    "variable", ["EBJR_TOKEN", "EBJR_INFER_TOKEN", "EBJR_SSL_KEYFILE_PASSWORD"]
)
def test_a_secret_that_was_not_filled_in_opens_no_server(calibrated, run, monkeypatch, variable):
    monkeypatch.setenv(variable, "")
    code, out, err = run("serve", calibrated, "--port", "0")
    said = " ".join(err.split()).replace(" │ │ ", " ")
    assert (code, f"{variable} is set but empty" in said) == (2, True), err
    assert "serving" not in out
