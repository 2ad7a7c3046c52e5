"""Who may move the knob and read the server is told by the socket, and by no header."""

from __future__ import annotations

import json
import socket
from contextlib import closing
from http.client import HTTPConnection

import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")

from small import running, served
from starlette.testclient import TestClient

from ebjr.serving.app import build_app
from ebjr.serving.limits import loops_back

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
    assert said["error"] == ("'other.example' is no name of this server; --allow-host adds more")


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
        for path, methods in taken.items():
            asked_at = path.format(name="joint", version="1", id="x")
            for method in METHODS:
                answer = client.request(method, asked_at)
                assert (answer.status_code == 405) == (method not in methods), (method, path)
                if answer.status_code == 405:
                    assert set(answer.headers["allow"].split(", ")) == methods
                    assert method == "HEAD" or " does not take " in answer.json()["error"]
