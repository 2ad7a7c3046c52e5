"""Who may move the knob and read the server is told by the socket, and by no header."""

from __future__ import annotations

import json
import re
import socket
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import exchange, received, request, running, served
from starlette.testclient import TestClient

from ebjr.serving.app import build_app
from ebjr.serving.doors import Doors
from ebjr.serving.limits import Limits, loops_back

READS = ("/", "/v1/status", "/v1/router", "/metrics")
OTHER = "other.example:8080"
PROXY = {"X-Forwarded-For": "203.0.113.8"}


def opened(**options):
    """A real server, as `ebjr serve` starts it."""
    return running(build_app(served(), **options), proxy_headers=False)


@pytest.fixture(scope="module")
def address():
    with opened() as found:
        yield found


def asked(address, method, path, headers, body=None) -> tuple[int, dict]:
    """One request with just these headers; `Host` is left out where it is None."""
    with closing(HTTPConnection(*address, timeout=30)) as connection:
        connection.putrequest(method, path, skip_host="Host" in headers)
        given = [(name, value) for name, value in headers.items() if value is not None]
        for name, value in [*given, ("Content-Length", str(len(body or b"")))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if answer.status >= 400 else {}


def put(address, headers) -> int:
    return asked(address, "PUT", "/v1/router", headers, b'{"threshold": 2}')[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Host": "[::1]:8080"}, 200),
        ({"Origin": "http://127.0.0.1:3000"}, 200),
        ({"Host": OTHER}, 421),
        ({"Host": "localhost.other.example"}, 421),
        ({"Host": "127.0.0.1.other.example:80"}, 421),
        ({"Host": OTHER, "Origin": f"http://{OTHER}"}, 421),
        ({"Host": socket.gethostname()}, 403),  # a proxy may pass it on
        ({"Origin": f"http://{OTHER}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://localhost.other.example"}, 403),
        ({"Origin": "http://localhost, http://other.example"}, 403),
        ({"X-Forwarded-For": "203.0.113.8"}, 403),
        ({"X-Forwarded-For": "127.0.0.1"}, 403),
        ({"X-Forwarded-For": "127.0.0.1, 203.0.113.8"}, 403),
        ({"Forwarded": "for=127.0.0.1"}, 403),
        ({"X-Real-IP": "127.0.0.1"}, 403),
        ({"Via": "1.1 a proxy"}, 403),
        ({"X-Forwarded-Host": "localhost"}, 403),
    ],
)
def test_the_knob_is_moved_by_this_machine_alone_whatever_a_request_says(address, headers, status):
    assert put(address, headers) == status


def test_nobody_is_trusted_to_say_who_asks(monkeypatch):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    with running(build_app(served()), proxy_headers=True) as address:  # as uvicorn's own command
        assert put(address, {"X-Forwarded-For": "127.0.0.1"}) == 403
        assert put(address, {}) == 200
    with TestClient(build_app(served()), client=("192.0.2.7", 5000)) as client:
        headers = {"X-Forwarded-For": "127.0.0.1", "Host": "localhost"}
        assert client.put("/v1/router", json={"threshold": 2}, headers=headers).status_code == 403


@pytest.mark.parametrize("path", [*READS, "/v1/late/x", "/v1/both", "/v1/status/"])
def test_another_sites_name_that_leads_here_reads_nothing(address, path):
    status, said = asked(address, "GET", path, {"Host": OTHER})
    assert status == 421
    assert said["error"] == (
        "'other.example' is not a name of this server; add it with --allow-host"
    )


@pytest.mark.parametrize("path", READS)
def test_this_machine_reads_by_each_of_its_names(address, path):
    names = ("localhost", f"127.0.0.1:{address[1]}", "[::1]", socket.gethostname())
    assert [asked(address, "GET", path, {"Host": name})[0] for name in names] == [200] * len(names)


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/joint", "/openapi.json"])
def test_health_and_metadata_ask_for_no_name(address, path):
    assert asked(address, "GET", path, {"Host": OTHER})[0] == 200


@pytest.mark.parametrize("path", READS)
def test_from_another_machine_any_name_reads(path):
    with TestClient(build_app(served()), client=("192.0.2.7", 5000)) as client:
        assert client.get(path, headers={"Host": "my-service:8080"}).status_code == 200


def test_a_proxy_on_this_machine_reads_by_a_name_that_is_allowed_and_moves_nothing():
    with opened(hosts=["Edge.example"]) as address:
        for name, status in (("edge.example", 200), ("edge.example:443", 200), (OTHER, 421)):
            assert asked(address, "GET", "/v1/status", {"Host": name, **PROXY})[0] == status
        assert put(address, {"Host": "edge.example", **PROXY}) == 403
        assert put(address, {"Host": "edge.example"}) == 403
    with opened(hosts=["*"]) as address:
        assert asked(address, "GET", "/v1/status", {"Host": OTHER})[0] == 200
        assert put(address, {"Host": OTHER}) == 403


def test_whoever_shows_the_token_moves_and_reads_by_any_name():
    shown = {"Authorization": "Bearer sesame", "Host": OTHER, **PROXY}
    with opened(token="sesame") as address:
        assert put(address, shown) == 200
        assert asked(address, "GET", "/v1/status", shown)[0] == 200
        assert put(address, {**shown, "Host": "localhost", "Authorization": "Bearer other"}) == 401
        assert asked(address, "GET", "/v1/status", {"Host": OTHER})[0] == 421


@pytest.mark.parametrize(
    ("host", "here"),
    [
        *((name, True) for name in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")),
        *((name, False) for name in ("192.0.2.7", "::ffff:192.0.2.7", "", "edge.example")),
    ],
)
def test_which_addresses_loop_back(host, here):
    assert loops_back(host) == here


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def test_a_405_says_what_each_path_takes_by_the_table_of_routes():
    app = build_app(served())
    taken: dict[str, set[str]] = {}
    for route in app.routes:
        taken.setdefault(route.path, set()).update(route.methods)
    assert taken["/v1/router"] == {"GET", "HEAD", "PUT"}
    with TestClient(app) as client:
        for path in taken:
            asked_at = path.format(name="joint", version="1", id="x")
            also = (one for one in app.routes if one.path_regex.fullmatch(asked_at))
            methods = set().union(*(route.methods for route in also))
            for method in METHODS:
                answer = client.request(method, asked_at)
                assert (answer.status_code == 405) == (method not in methods), (method, path)
                if answer.status_code == 405:
                    assert set(answer.headers["allow"].split(", ")) == methods
                    assert method == "HEAD" or " takes " in answer.text


ASKING = [
    ("/v2/models/joint/infer", {}),  # the short way
    ("/v2/models/joint/infer?", {}),  # the long one
    ("/v2/models/joint/versions/1/infer", {}),
    ("/v2/models/joint/infer", {"Content-Type": "multipart/form-data; boundary=x"}),
    ("/v2/models/other/infer", {}),
    ("/v1/both", {}),
    ("/v1/models/joint:predict", {}),
    ("/v1/chat/completions", {"Content-Type": "application/json"}),
]
OPEN = ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/joint", "/openapi.json")


@pytest.mark.parametrize(("path", "headers"), ASKING)
def test_with_a_token_nobody_asks_without_it_and_nothing_of_the_body_is_read(path, headers):
    with opened(infer_token="ask", token="move") as address:
        for shown in ({}, {"Authorization": "Bearer other"}, {"Authorization": "Basic ask"}):
            with closing(HTTPConnection(*address, timeout=30)) as connection:
                connection.putrequest("POST", path)
                for name, value in {**headers, **shown, "Content-Length": "1000"}.items():
                    connection.putheader(name, value)
                connection.endheaders()  # and no body
                answer = connection.getresponse()
                said = json.loads(answer.read())["error"]
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.headers["X-Request-Id"]
            sentence = said if isinstance(said, str) else said["message"]
            assert sentence == "a query needs the header Authorization: Bearer TOKEN"


def test_either_token_asks_and_what_probes_need_is_open():
    body = json.dumps(request()).encode()
    with opened(infer_token="ask", token="move") as address:
        for token in ("Bearer ask", "bearer ask", "Bearer move"):
            for path, _ in ASKING[:3]:
                status, _ = asked(address, "POST", path, {"Authorization": token}, body)
                assert status == 200
        assert put(address, {"Authorization": "Bearer ask"}) == 401  # it moves nothing
        for path in OPEN:
            assert asked(address, "GET", path, {"Host": OTHER})[0] == 200
        assert asked(address, "POST", "/v2/repository/index", {})[0] == 200
        document = json.loads(fetched(address, "/openapi.json"))
    paths = document["paths"]
    assert paths["/v2/models/{name}/infer"]["post"]["security"] == [{"token": []}]
    assert "security" not in paths["/v2/repository/index"]["post"]


def fetched(address, path) -> bytes:
    with closing(HTTPConnection(*address, timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read()


def test_a_refusal_keeps_its_place_among_pipelined_requests():
    body = json.dumps(request()).encode()
    head = "POST /v2/models/joint/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n%s\r\n"
    with opened(infer_token="ask") as address:
        told = [
            (head % (len(body), extra)).encode() + body
            for extra in (
                "Authorization: Bearer ask\r\n",
                "",
                "Authorization: Bearer ask\r\nConnection: close\r\n",
            )
        ]
        found = exchange(address, b"".join(told))
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200", b"401", b"200"]


def head(path="/v2/models/joint/infer", *lines: str, method="POST") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def answered(connection) -> tuple[int, str]:
    """The next answer on a connection: its status, and what it says of the connection."""
    with closing(HTTPResponse(connection)) as answer:
        answer.begin()
        answer.read()
        return answer.status, answer.headers.get("Connection", "")


@pytest.mark.parametrize("size", [0, 60_000, 65_000, 150_000, 1_000_000])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v2/models/joint/infer", 401),
        ("POST", "/v1/chat/completions", 401),
        ("PUT", "/v1/router", 401),
        ("POST", "/v2/repository/models/joint/load", 401),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v2/models/joint", 405),
        ("GET", "/v2/health/live", 200),
    ],
)
def test_the_body_of_what_is_answered_before_it_spoils_no_later_request(method, path, status, size):
    body = json.dumps(request()).encode()
    good = head(
        "/v2/models/joint/infer", "Authorization: Bearer ask", f"Content-Length: {len(body)}"
    )
    with (
        opened(infer_token="ask", token="move") as address,
        socket.create_connection(address, 30) as connection,
    ):
        for coding in (f"Content-Length: {size}", "Transfer-Encoding: chunked"):
            chunked = coding.startswith("T")
            connection.sendall(head(path, coding, method=method))
            assert answered(connection) == (status, "")
            part = b"x" * size
            framed = b"%x\r\n%b\r\n" % (size, part) if size else b""
            connection.sendall(framed + b"0\r\n\r\n" if chunked else part)
            connection.sendall(good + body)
            assert answered(connection) == (200, "")


def test_a_body_that_stays_away_after_its_refusal_ends_the_connection_without_another_answer():
    patience = Limits(body_seconds=0.5, body_bytes_per_second=2**20)
    with opened(infer_token="ask", limits=patience) as address:
        for rest in (b"{", b"", b"5\r\nxxxxxyz"):
            coding = "Transfer-Encoding: chunked" if b"x" in rest else "Content-Length: 100"
            with socket.create_connection(address, 30) as connection:
                connection.sendall(head("/v2/models/joint/infer", coding))
                assert answered(connection) == (401, "")
                connection.sendall(rest)
                assert received(connection) == b""


def test_a_body_that_is_not_asked_for_does_not_come_and_no_request_is_taken_for_it():
    body = json.dumps(request()).encode()
    waits = ("Expect: 100-continue", f"Content-Length: {len(body)}")
    with opened(infer_token="ask") as address:
        with socket.create_connection(address, 30) as connection:
            connection.sendall(head("/v2/models/joint/infer", *waits))
            assert answered(connection) == (401, "close")
            assert received(connection) == b""
        with socket.create_connection(address, 30) as connection:
            for _ in range(2):  # who may ask is told to go on, and keeps the connection
                shown = "Authorization: Bearer ask"
                connection.sendall(head("/v2/models/joint/infer", shown, *waits))
                assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.sendall(body)
                assert answered(connection) == (200, "")


def test_tokens_of_a_file_change_without_a_failed_request(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("old\n\n")
    doors = Doors(infer_token_file=file)
    (kept,) = doors.kept

    def may(token) -> bool:
        return doors.not_asking({b"authorization": b"Bearer " + token}) is None

    assert (may(b"old"), may(b"new"), may(b"")) == (True, False, False)
    file.write_text(" old \nnew\n")  # while clients move
    kept.look()
    assert (may(b"old"), may(b"new")) == (True, True)
    for wrong in ("\n \n", "two words", "\0", "caf\u00e9"):
        file.write_text(wrong)
        kept.look()
        assert (may(b"old"), may(b"new")) == (True, True)
    beside = tmp_path / "beside"
    beside.write_text("new")
    beside.replace(file)  # as Kubernetes does
    kept.look()
    assert (may(b"old"), may(b"new")) == (False, True)


def test_a_server_sees_a_new_token_by_itself(tmp_path):
    file, body = tmp_path / "tokens", json.dumps(request()).encode()
    file.write_text("old")
    with opened(infer_token_file=file) as address:

        def status(token):
            shown = {"Authorization": f"Bearer {token}"}
            return asked(address, "POST", "/v2/models/joint/infer", shown, body)[0]

        assert (status("old"), status("new")) == (200, 401)
        file.write_text("new")
        end = time.monotonic() + 30
        while status("new") != 200:
            assert time.monotonic() < end
        assert status("old") == 401


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"token": ""}, r"a token \(--token\) is printable"),
        ({"infer_token": "two words"}, r"a token \(--infer-token\) is printable"),
        ({"token": "a", "token_file": "b"}, "give --token or --token-file, not both"),
    ],
)
def test_a_token_that_cannot_be_shown_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Doors(**options)
    with pytest.raises(ValueError, match="is empty"):
        Doors(token_file="/dev/null")
    with pytest.raises(FileNotFoundError):
        Doors(token_file="/nowhere/token")
