"""Two language models behind the door: texts in, labels out, and nothing guessed when one fails."""

from __future__ import annotations

import math
import threading
import time

import pytest

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")
pytest.importorskip("httpx2", reason="httpx2 is not installed")
pytest.importorskip("openai", reason="openai is not installed")

import httpx2
import openai
from chat_server import chat_server
from small import running

from ebjr import JointClassifier, Router
from ebjr.backends.chat import ChatModel
from ebjr.serving.app import Served, build_app

pytestmark = pytest.mark.filterwarnings("ignore:the teacher answers instead")
PRICE = {"input": 1.0, "output": 2.0}  # dollars per million tokens
NO_LOGPROBS = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}


def says(label, p):
    """A reply of one token, a label that is so likely, and the other label."""
    other = "no" if label == "yes" else "yes"
    pairs = ((label, p), (other, 1 - p - 1e-6))
    tokens = [{"token": text, "logprob": math.log(share)} for text, share in pairs]
    choice = {"message": {"content": label}, "finish_reason": "length"}
    choice["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 1}
    return {"choices": [choice], "usage": usage}


def chat_model(url, **how):
    how = {"model": "tiny-1", "prompt": "Is it? {text}", "labels": ["yes", "no"], **how}
    return ChatModel(url, price=PRICE, retries=0, **how)


class Gateway:
    """OpenAI's client of a server of two chat models, and what answers for each."""

    def __init__(self, client, app):
        self.client, self.service = client, app.state.service

    def ask(self, text, **how):
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="joint", messages=messages, **how)


@pytest.fixture
def gateway():
    """The student is sure of short texts; what either does is in `answers`."""
    answers = {
        "student": lambda body, n: says("yes", 0.6 if "hard" in str(body) else 0.99),
        "teacher": lambda body, n: says("no", 0.9),
    }

    def answering(role):
        return lambda body, number: answers[role](body, number)

    with (
        chat_server(answering("student")) as one,
        chat_server(answering("teacher")) as two,
    ):
        student, teacher = chat_model(one.url, concurrent=32), chat_model(two.url)
        joint = JointClassifier(student, teacher, Router("softmax", 0.8))
        app = build_app(Served(joint, labels=("yes", "no")))
        with running(app) as (host, port):
            url = f"http://{host}:{port}/v1"
            with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
                found = Gateway(client, app)
                found.answers = answers
                yield found
        student.close()
        teacher.close()


def test_each_text_is_answered_by_who_is_sure_of_it_and_both_are_paid(gateway):
    easy, hard = gateway.ask("easy"), gateway.ask("hard")
    assert easy.choices[0].message.content == "yes"
    assert hard.choices[0].message.content == "no"
    assert easy.usage.total_tokens == 101
    assert hard.usage.total_tokens == 202
    assert easy.model_extra["ebjr"]["dollars"] == pytest.approx(102e-6)
    assert hard.model_extra["ebjr"]["dollars"] == pytest.approx(204e-6)
    assert hard.model_extra["ebjr"]["answered_by"] == "teacher"


def test_lost_logprobs_defer_every_text_and_raise_an_alarm_within_100(gateway):
    gateway.answers["student"] = lambda body, n: NO_LOGPROBS
    for _ in range(100):
        found = gateway.ask("easy")
        assert found.choices[0].message.content == "no"
        assert found.model_extra["ebjr"]["deferred"]
    status = gateway.service.status()["spending"]["student"]
    assert status["unanswered_rows"] == 100
    assert "log-probabilities" in status["alarm"]


def test_a_text_that_neither_answers_is_refused_and_never_guessed(gateway):
    gateway.answers["student"] = gateway.answers["teacher"] = lambda body, n: NO_LOGPROBS
    with pytest.raises(
        openai.InternalServerError, match="neither student nor teacher answered"
    ) as caught:
        gateway.ask("easy")
    assert caught.value.status_code == 503


def test_a_row_that_neither_answers_is_named_where_it_has_company(gateway):
    def silent(said):
        return lambda body, n: NO_LOGPROBS if "poison" in str(body) else said

    gateway.answers["student"] = silent(says("yes", 0.6))
    gateway.answers["teacher"] = silent(says("no", 0.9))
    url = str(gateway.client.base_url).replace("/v1/", "/v2/models/joint/infer")
    for texts, status in ((["a", "b", "c"], 200), (["a", "poison", "c"], 503)):
        rows = {
            "name": gateway.service.input.name,
            "shape": [3],
            "datatype": "BYTES",
            "data": texts,
        }
        found = httpx2.post(url, json={"inputs": [rows]})
        assert found.status_code == status, found.text
    assert "neither student nor teacher answered row 1 (from 0): " in found.json()["error"]


def test_a_slow_text_keeps_no_other_waiting(gateway):
    hold = threading.Event()

    async def slow(body):
        import asyncio

        while not hold.is_set():
            await asyncio.sleep(0.01)
        return says("yes", 0.99)

    gateway.answers["student"] = lambda body, n: (
        slow(body) if "slow" in str(body) else says("yes", 0.99)
    )
    waiting = threading.Thread(target=gateway.ask, args=("slow",))
    waiting.start()
    try:
        while not gateway.service.admission.rows:
            time.sleep(0.001)
        for _ in range(20):
            assert gateway.ask("easy").choices[0].message.content == "yes"
        assert waiting.is_alive()
    finally:
        hold.set()
        waiting.join()
