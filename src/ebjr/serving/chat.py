"""OpenAI's chat completions: a text as the question, the name of its label as the answer.

The prompt is part of ``joint.toml``, so a client sends only the text, or a row's columns as a JSON
object. Requests that need an open-ended model are refused, because an answer is always a label.
"""

import time
from collections.abc import Mapping
from functools import cache
from typing import Any
from urllib.parse import quote

import numpy as np

from ebjr.arrays import to_numpy
from ebjr.errors import ProtocolError, needs
from ebjr.files import json_number
from ebjr.labels import are_names
from ebjr.protocol import read_object
from ebjr.serving.call import Question
from ebjr.serving.engine import Ticket
from ebjr.serving.infer import Headers, Written
from ebjr.serving.limits import Refused
from ebjr.serving.logs import new_request_id
from ebjr.serving.served import Served
from ebjr.serving.service import REQUEST_PARAMETERS, Service

with needs("serve", "serving"):
    import msgspec.json

COMPLETIONS, MODELS = "/v1/chat/completions", "/v1/models"
PREDICT = ":predict"  # the end of KServe's prediction paths

NO_EFFECT = (
    *("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed", "stop"),
    *("presence_penalty", "frequency_penalty", "reasoning_effort", "verbosity", "service_tier"),
    *("user", "metadata", "store", "safety_identifier", "prompt_cache_key"),
)
"""Request fields that have no effect on an answer that is one of the labels."""

WHOLE: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "stream": ((False,), "answers are not streamed, because each is one label: leave stream out"),
    "n": ((1,), "a text has one answer: leave n out, or send 1"),
    "logprobs": ((False,), "log-probabilities are not sent: read the score in 'ebjr' instead"),
    "top_logprobs": ((0,), "log-probabilities are not sent: read the score in 'ebjr' instead"),
    "logit_bias": (({},), "labels cannot be biased: leave logit_bias out"),
    "tools": (([],), "this model calls no tools: its answer is one of the labels"),
    "tool_choice": (("none",), "this model calls no tools: its answer is one of the labels"),
    "functions": (([],), "this model calls no functions: its answer is one of the labels"),
    "response_format": (({"type": "text"},), "an answer is the label's name as plain text"),
    "modalities": ((["text"],), "an answer is the label's name as plain text"),
}
"""Request fields with the values that are supported, and the error for any other value."""

FIELDS = frozenset({"model", "messages", *NO_EFFECT, *WHOLE, *REQUEST_PARAMETERS})
IN_HEADERS = ("label", "stage", "answered_by", "deferred", "degraded", "score", "threshold")
TYPES = {404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error"}
"""OpenAI's error type for each status."""


class Chat:
    """Chat completions of one model, which must classify texts into named labels.

    `why_not` says why the model does not support them; None if it does.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        served = service.served
        self._columns = served.columns or ("text",)
        self._stages = service.engine.stages
        self.why_not = _why_not(served)
        self._labels = served.labels or ()

    def read(self, body: bytes, headers: Headers) -> Question:
        """Read a request; ProtocolError or Refused if it is not supported."""
        if self.why_not is not None:
            raise Refused(404, self.why_not)
        # a page of another site cannot send this type without CORS, and answers may cost money
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused(
                415, "send a chat completion as JSON, with Content-Type: application/json"
            )
        asked = {name: value for name, value in read_object(body).items() if value is not None}
        if unknown := asked.keys() - FIELDS:
            raise ProtocolError(
                f"the field {min(unknown)!r:.60} is not known; beside OpenAI's fields, a request "
                f"takes {', '.join(REQUEST_PARAMETERS)}"
            )
        for name, (allowed, sentence) in WHOLE.items():
            if name in asked and asked[name] not in allowed:
                raise ProtocolError(sentence)
        if not isinstance(model := asked.get("model"), str):
            raise ProtocolError("'model' must be a string, the name of the model")
        self._service.check_model(model)
        wishes = {name: asked[name] for name in REQUEST_PARAMETERS if name in asked}
        row = self._row(asked.get("messages"))
        return Question(row, self._service.wishes(wishes), self.write)

    def _row(self, messages: Any) -> np.ndarray:
        """Return a row of texts, (1,) or (1, columns)."""
        if not isinstance(messages, list) or not messages:
            raise ProtocolError("'messages' must be a list with at least one message")
        if not all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages):
            raise ProtocolError("each of 'messages' must be a JSON object with a 'role'")
        if self._columns == ("messages",):
            if not all(map(_says_something, messages)):
                raise ProtocolError(
                    "each of 'messages' must have 'content', a string or a list of parts, or "
                    "'tool_calls'"
                )
            return np.array([msgspec.json.encode(messages).decode()], object)
        text = _only_text(messages)
        if len(self._columns) == 1:
            return np.array([text], object)
        return np.array([self._cells(text)], object)

    def _cells(self, text: str) -> list[str]:
        names = ", ".join(self._columns)
        try:
            row = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise ProtocolError(f"the message must be a JSON object with the columns {names}")
        if row.keys() != {*self._columns}:
            came = ", ".join(sorted(row))
            raise ProtocolError(f"the message must have the columns {names}, not {came:.200}")
        if not all(isinstance(cell, str) for cell in row.values()):
            raise ProtocolError(f"each of the columns {names} must be a string")
        return [row[name] for name in self._columns]

    def write(self, ticket: Ticket) -> Written:
        """Return the headers and body of an answer."""
        answer = ticket.result()
        stage, score = int(answer.stage[0]), float(answer.score[0])
        label = self._labels[int(to_numpy(answer.prediction)[0])]
        *tokens, dollars = [None] * 3 if answer.spent is None else map(_known, answer.spent[0])
        how = {
            "label": label,
            "stage": stage,
            "answered_by": self._stages[min(stage, len(self._stages) - 1)],
            "deferred": bool(answer.deferred[0]),
            "degraded": bool(answer.degraded[0]),
            "score": json_number(_known(score)),
            **self._service.told(ticket),
            "dollars": dollars,
        }
        message = {"role": "assistant", "content": label, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        body = msgspec.json.encode(
            {
                "id": f"chatcmpl-{new_request_id(None).decode()}",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": self._service.served.name,
                "choices": [choice],
                "usage": _usage(*tokens),
                "ebjr": how,
            }
        )
        about = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        about += [
            (b"x-ebjr-" + name.replace("_", "-").encode(), _header(how[name]))
            for name in (*IN_HEADERS, "dollars")
            if how[name] is not None
        ]
        return about, body

    @staticmethod
    def error(status: int, sentence: str) -> bytes:
        """Return an error's body in OpenAI's form."""
        kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        about = {"message": sentence, "type": kind, "param": None, "code": None}
        return msgspec.json.encode({"error": about})


def _why_not(served: Served) -> str | None:
    """Return why a model does not support chat completions; None if it does."""
    if not served.joint.kind.has_labels or not are_names(served.labels):
        return "chat completions need a model whose labels have names"
    if not served.takes_texts:
        return "chat completions need a model whose input is declared as text"
    if served.columns is None and len(served.input().shape) > 1:
        return "chat completions need the names of a row's columns: set columns in joint.toml"
    return None


def _only_text(messages: list[dict[str, Any]]) -> str:
    """Return the text of the only message, which must be the user's."""
    others = [one["role"] for one in messages if one["role"] != "user"]
    if others:
        raise ProtocolError(
            f"a message with the role {others[0]!r:.60} is not accepted, because the prompt is "
            "part of joint.toml: send the text alone, as one user message"
        )
    if len(messages) > 1:
        raise ProtocolError(
            f"a request takes one message, the text to classify, and this one has {len(messages)}: "
            "send a request for each"
        )
    (message,) = messages
    if unknown := message.keys() - {"role", "content", "name"}:
        raise ProtocolError(f"the message field {min(unknown)!r:.60} is not known")
    content = message.get("content")
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], dict):
        (part,) = content
        if part.keys() == {"type", "text"} and part["type"] == "text":
            content = part["text"]
    if not isinstance(content, str):
        raise ProtocolError(
            "the content of the message must be a string, or a list of one text part"
        )
    return content


def _says_something(message: Mapping[str, Any]) -> bool:
    """Whether a message has content; an assistant's may have tool calls instead."""
    content = message.get("content")
    if isinstance(content, list):
        return bool(content) and all(
            isinstance(part, dict) and isinstance(part.get("type"), str) for part in content
        )
    calls = message["role"] == "assistant" and bool(message.get("tool_calls"))
    return isinstance(content, str) or (content is None and calls)


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _usage(prompt: float | None, completion: float | None) -> dict[str, int] | None:
    if prompt is None or completion is None:
        return None
    counts = {"prompt_tokens": int(prompt), "completion_tokens": int(completion)}
    return {**counts, "total_tokens": sum(counts.values())}


def _header(value: Any) -> bytes:
    """Encode a value for a header, which is ASCII."""
    if isinstance(value, bool):
        return b"true" if value else b"false"
    return _ascii(value) if isinstance(value, str) else b"%a" % value


@cache
def _ascii(text: str) -> bytes:
    return quote(text, safe=" !#$&'()*+,/:;<=>?@[]^`{|}~").encode()
