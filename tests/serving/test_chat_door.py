"""OpenAI's own client asks a pair about texts, and is told who answered, and for how much."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("openai", reason="openai is not installed")

import openai
from small import exchange, running, served
from starlette.testclient import TestClient
from texts import LABELS, Texts, served_texts

from ebjr import JointClassifier, Router, TeacherUnavailable
from ebjr.serving.app import Served, build_app

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello world"}]


@contextmanager
def asking(app):
    """OpenAI's client of a real server."""
    with running(app) as (host, port):
        url = f"http://{host}:{port}/v1"
        with openai.OpenAI(base_url=url, api_key="sk-sesame", max_retries=0) as client:
            yield client


@pytest.fixture(scope="module")
def client():
    with asking(build_app(served_texts())) as client:
        yield client


def ask(client, text="hello world", **how):
    messages = how.pop("messages", [{"role": "user", "content": text}])
    return client.chat.completions.create(**{"model": "joint", "messages": messages, **how})


def test_openais_client_gets_the_label_and_how_it_came_about(client):
    found = ask(client)
    (choice,) = found.choices
    assert choice.message.content == "keep"
    assert (choice.finish_reason, choice.message.role) == ("stop", "assistant")
    assert (found.object, found.model) == ("chat.completion", "joint")
    usage = found.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (10, 1, 11)
    assert found.model_extra["ebjr"] == {
        "label": "keep",
        "stage": 0,
        "answered_by": "student",
        "deferred": False,
        "degraded": False,
        "score": 11.0,
        "threshold": 5.0,
        "calibration": "abc",
        "dollars": 1e-6,
    }


def test_tokens_and_dollars_of_a_deferred_text_are_those_of_both_models(client):
    found = ask(client, "abc")
    assert found.choices[0].message.content == "remove"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (30, 2)
    how = found.model_extra["ebjr"]
    assert (how["stage"], how["answered_by"], how["deferred"]) == (1, "teacher", True)
    assert how["dollars"] == pytest.approx(1.001e-3)


def test_headers_say_the_same(client):
    raw = client.chat.completions.with_raw_response.create(model="joint", messages=HELLO)
    own = {name: value for name, value in raw.headers.items() if name.startswith("x-ebjr-")}
    assert own == {
        "x-ebjr-label": "keep",
        "x-ebjr-stage": "0",
        "x-ebjr-answered-by": "student",
        "x-ebjr-deferred": "false",
        "x-ebjr-degraded": "false",
        "x-ebjr-score": "11.0",
        "x-ebjr-threshold": "5.0",
        "x-ebjr-dollars": "1e-06",
    }
    assert raw.headers["x-request-id"]


@pytest.mark.parametrize(
    ("wish", "threshold"),
    [
        ({"threshold": 20.0}, 20.0),
        ({"operating_point": "careful"}, 50.0),
        ({"deferral_rate": 1.0}, "inf"),
    ],
)
def test_a_request_may_bring_its_own_knob(client, wish, threshold):
    how = ask(client, extra_body={**wish, "timeout_seconds": 5, "priority": 2}).model_extra["ebjr"]
    assert (how["threshold"], how["deferred"]) == (threshold, True)


def test_what_cannot_change_a_label_is_taken(client):
    harmless = {"temperature": 0.7, "top_p": 0.5, "max_tokens": 1, "seed": 3, "user": "me"}
    more = {"stop": ["x"], "stream": False, "n": 1, "tools": openai.omit, "logprobs": False}
    found = ask(client, **harmless, **more, response_format={"type": "text"})
    assert found.choices[0].message.content == "keep"


def test_a_text_may_come_as_a_part(client):
    part = [{"type": "text", "text": "hello world"}]
    assert ask(client, messages=[{"role": "user", "content": part}]).choices[0]


REFUSED = [
    ({"stream": True}, "not streamed"),
    ({"n": 2}, "one answer"),
    ({"logprobs": True}, "read the score in 'ebjr'"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "no tools"),
    ({"response_format": {"type": "json_object"}}, "as plain text"),
    ({"extra_body": {"treshold": 1.0}}, "the field 'treshold' is not known"),
    ({"extra_body": {"threshold": "high"}}, "threshold must be a number"),
    ({"extra_body": {"threshold": [1.0]}}, "threshold must be a number"),
    ({"extra_body": {"threshold": 1.0, "deferral_rate": 0.5}}, "not both"),
    ({"extra_body": {"timeout_seconds": {"s": 1}}}, "timeout_seconds must be above 0"),
    ({"extra_body": {"timeout": 0.5}}, "timeout_seconds takes seconds"),
    ({"extra_body": {"operating_point": "no"}}, "no operating point 'no'"),
    ({"messages": [{"role": "system", "content": "Be kind."}, *HELLO]}, "'system' is not accepted"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "a"}, *HELLO]}, "'assistant'"),
    ({"messages": [*HELLO, *HELLO]}, "this one has 2"),
    ({"messages": []}, "at least one message"),
    ({"messages": [{"role": "user", "content": None}]}, "must be a string"),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": []}]},
        "message field 'tool_calls'",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "one text part"),
    ({"messages": ["hello"]}, "a JSON object with a 'role'"),
]


@pytest.mark.parametrize(("wrong", "sentence"), REFUSED)
def test_what_would_be_silently_wrong_is_refused_in_a_sentence(client, wrong, sentence):
    with pytest.raises(openai.BadRequestError, match=sentence) as caught:
        ask(client, **wrong)
    error = caught.value.body
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError, match="the model is called 'joint'"):
        ask(client, model="gpt-4o")
    with pytest.raises(openai.NotFoundError, match="the model is called 'joint'"):
        client.models.retrieve("gpt-4o")


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["joint"]
    assert client.models.retrieve("joint").owned_by == "ebjr"


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"model": 3}', b"\xff", b'"x"'])
def test_what_is_no_request_is_refused_as_openais_clients_read_it(body):
    with TestClient(build_app(served_texts())) as client:
        answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_a_form_that_any_page_can_send_is_refused_as_answers_may_cost_money():
    with TestClient(build_app(served_texts())) as client:
        body = json.dumps({"model": "joint", "messages": HELLO})
        answer = client.post(PATH, content=body, headers={"content-type": "text/plain"})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]["message"]


def test_another_method_is_refused_as_openais_clients_read_it():
    with TestClient(build_app(served_texts())) as client:
        answer = client.get(PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "takes POST, not GET" in answer.json()["error"]["message"]


def test_a_row_of_several_columns_is_a_json_object():
    student = Texts(columns=("question", "answer"))
    pair = served_texts(student, Texts(-1.0, columns=("question", "answer")))
    with asking(build_app(pair)) as client:
        ask(client, json.dumps({"answer": "yes, it is", "question": "is it?"}))
        assert student.asked == [("is it?", "yes, it is")]
        for wrong, sentence in [
            ("is it?", "JSON object with the columns question, answer"),
            ('{"question": "a"}', "columns question, answer, not question"),
            ('{"question": "a", "answer": "b", "c": "d"}', "not answer, c, question"),
            ('{"question": "a", "answer": 3}', "must be a string"),
        ]:
            with pytest.raises(openai.BadRequestError, match=sentence):
                ask(client, wrong)


def test_a_model_of_whole_conversations_gets_all_messages():
    student = Texts(columns=("messages",))
    messages = [{"role": "system", "content": "Be kind."}, *HELLO]
    with asking(build_app(served_texts(student))) as client:
        ask(client, messages=messages)
    (text,) = student.asked
    assert json.loads(text) == messages


def test_a_conversation_with_a_message_that_says_nothing_asks_no_model():
    student = Texts(columns=("messages",))
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    calls = {"role": "assistant", "tool_calls": [call]}
    with asking(build_app(served_texts(student))) as client:
        for wrong in (
            {"role": "user"},
            {"role": "user", "content": None},
            {"role": "user", "content": 3},
            {"role": "user", "content": []},
            {"role": "user", "content": ["hello"]},
            {"role": "user", "tool_calls": [call]},
            {"role": "assistant", "tool_calls": []},
        ):
            with pytest.raises(openai.BadRequestError, match="must have 'content'"):
                ask(client, messages=[*HELLO, wrong])
        assert not student.asked
        for right in (calls, {**calls, "content": None}, {"role": "user", "content": ""}):
            ask(client, messages=[*HELLO, right, *HELLO])
        parts = [{"type": "text", "text": "hello"}, {"type": "image_url", "image_url": {}}]
        ask(client, messages=[{"role": "user", "content": parts}])


@pytest.mark.parametrize(
    ("pair", "why"),
    [
        (served(), "labels have names"),
        (
            Served(
                JointClassifier(lambda x: x, lambda x: x, Router("max_logit", 1.0)),
                labels=("a", "b"),
            ),
            "declared as text",
        ),
        (served_texts(Texts(input_shape=(None, 2))), "set columns in"),
    ],
)
@pytest.mark.parametrize("short", [True, False])
def test_a_pair_that_cannot_be_asked_so_says_why(pair, why, short):
    with asking(build_app(pair, log_requests=not short)) as client:
        with pytest.raises(openai.NotFoundError, match=why):
            ask(client)
        assert [model.id for model in client.models.list()] == ["joint"]
    assert PATH not in build_app(pair).state.described()["paths"]


def test_what_is_unknown_is_null():
    teacher = Texts(-1.0)
    with TestClient(build_app(served_texts(Texts(), teacher))) as client:
        silent = client.post(PATH, json={"model": "joint", "messages": HELLO}).json()
    assert silent["usage"] is None
    assert silent["ebjr"]["dollars"] is None


def test_a_text_without_an_answer_of_the_students_is_the_teachers_or_nobodys():
    away = lambda batch: (_ for _ in ()).throw(TeacherUnavailable("the cloud is gone"))  # noqa: E731
    ours = [{"role": "user", "content": "silent"}]
    loud = lambda batch: np.tile([0.0, 0.0, 9.0], (len(batch), 1))  # noqa: E731
    with TestClient(build_app(served_texts(teacher=loud))) as client:
        found = client.post(PATH, json={"model": "joint", "messages": ours})
        assert found.json()["choices"][0]["message"]["content"] == LABELS[2]
        assert found.json()["ebjr"]["score"] is None
        assert found.headers["x-ebjr-label"] == "pr%C3%BCfen"
        assert "x-ebjr-score" not in found.headers
    with TestClient(build_app(served_texts(teacher=away))) as client:
        found = client.post(PATH, json={"model": "joint", "messages": ours})
        assert found.status_code == 503
        assert "neither student nor" in found.json()["error"]["message"]
        assert found.json()["error"]["type"] == "server_error"


def test_what_comes_too_late_or_is_too_much_has_its_status():
    gate = threading.Event()

    class Slow(Texts):
        def __call__(self, batch):
            assert gate.wait(30)
            return super().__call__(batch)

    app = build_app(served_texts(Slow()), queue_rows=1)
    rows = app.state.service.admission
    with asking(app) as client:
        with pytest.raises(openai.APIStatusError, match=r"no answer within 0\.05 s") as late:
            ask(client, extra_body={"timeout_seconds": 0.05})
        assert late.value.status_code == 504
        other = threading.Thread(target=ask, args=(client,))
        other.start()
        try:
            while not rows.rows:
                time.sleep(0.001)
            with pytest.raises(openai.RateLimitError) as much:
                ask(client, extra_body={"timeout_seconds": 0.05})
            assert much.value.response.headers["retry-after"] == "1"
        finally:
            gate.set()
            other.join()


@pytest.mark.parametrize("short", [True, False])
def test_both_ways_answer_alike(short):
    with running(build_app(served_texts(), log_requests=not short)) as address:
        body = json.dumps({"model": "joint", "messages": HELLO}).encode()
        head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        answer = exchange(address, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"x-ebjr-answered-by: student" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["ebjr"]["label"] == "keep"


def test_no_text_and_no_key_is_in_the_log(caplog):
    caplog.set_level(logging.DEBUG, "ebjr")
    with asking(build_app(served_texts(), log_requests=True)) as client:
        ask(client, "my secret")
        with pytest.raises(openai.BadRequestError):
            ask(client, "my secret", n=3)
    ours = "".join(str(vars(record)) for record in caplog.records if "ebjr" in record.name)
    assert PATH in ours
    assert "sesame" not in ours
    assert "secret" not in ours
