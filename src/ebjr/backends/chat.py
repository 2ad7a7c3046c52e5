"""ChatModel: a language model behind OpenAI's API as a classifier of texts.

The answer to a closed question is one of some labels. The labels' log-probabilities, as far as the
server returns them, are the raw output. The probabilities sum to less than 1, since the model might
have written something else; their energy (eq. 3) is the logarithm of the mass on the labels.
"""

import asyncio
import hashlib
import json
import math
import os
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebjr.arrays import row_count
from ebjr.backends.label_tokens import LabelTokens, Unclear, positions_of
from ebjr.errors import (
    ModelError,
    OtherModel,
    TeacherUnavailable,
    check_at_least,
    check_choice,
    check_seconds,
    needs,
    note,
    one_line,
)
from ebjr.files import read_text
from ebjr.labels import check_once
from ebjr.link.http import Server, run, server_of
from ebjr.model import Answer, ModelFacts
from ebjr.protocol import is_number
from ebjr.threads import JITTER

APIS = {"chat": "chat/completions", "completions": "completions"}
"""Each API, and its path under the server's address."""

CONFIDENCES = ("logprobs", "sampling", "verbalized")
"""Where raw output comes from: tokens' log-probabilities, shares of samples, a stated number."""

KEY_VARIABLE = "EBJR_CHAT_KEY"
MOST_TOKENS = 32  # of an answer, however long its labels are
MOST_COUNTED = 10**12  # a server that reports more tokens for a request is not believed
MANY_ROWS, MOST_CUT = 16, 0.1  # rows, and the share cut short, that raise `max_tokens` for all
_DATED = re.compile(r"[-@:](\d{3,8}|\d{4}-\d{2}-\d{2}|latest)")  # version suffix of a model's name
_FIELD = re.compile(r"\{(\w+)\}")


class ChatModel:
    """A language model as a classifier of texts: log-probabilities of the labels.

    The key is read from the environment. Each row is one request, and requests run concurrently. A
    row whose request is refused, or whose answer is no label, is left unanswered
    (`Answer.answered`) without harm to the others.

    - `chat`: The address, ``/v1`` included, of a server with OpenAI's API.
    - `model`: The model's name on that server.
    - `prompt`: A text with ``{column}`` where a column's text goes, or a list of messages, each a
      table of `role` and `content`. ``"{messages}"`` alone passes on an input that is a JSON list
      of messages.
    - `labels`: The labels, which are also the answers' texts; or by label its text or texts.
    - `columns`: The names of a row's texts, in order; the prompt's if left out.
    - `examples`: Answered examples shown before the question: tables of `columns` and `label`.
    - `api`: ``"chat"``, or ``"completions"`` for models that continue a text.
    - `confidence`: ``"logprobs"``; for servers that do not return these, ``"sampling"``, the shares
      of labels among `samples` answers, or ``"verbalized"``, for a prompt that asks for a label and
      a confidence, like ``spam, 80%``.
    - `top_logprobs`: How many of the likeliest tokens to request.
    - `max_tokens`: The most tokens of an answer. None asks for one, and for more if one does not
      tell the labels apart.
    - `price`: Dollars per million tokens, like ``{input = 0.15, output = 0.6}``.
    - `served_as`: The model's name in answers; if left out, `model`, with or without a date.
    - `request`: More fields of each request.
    - `key_variable`: The environment variable with the key. It must begin with ``EBJR_``, so that a
      file cannot make us send another secret.
    - `timeout_seconds`: Seconds for a request with all its retries, not counting the wait for its
      turn.
    - `retries`: Retries of a request if the server is busy or fails.
    - `concurrent`: The most requests in flight.

    Raises
    ------
    ValueError
        An argument is out of range, or `prompt` names a column that is not in `columns`.
    """

    def __init__(
        self,
        chat: str,
        *,
        model: str,
        prompt: str | Sequence[Mapping[str, str]],
        labels: Sequence[str] | Mapping[str, str | Sequence[str]],
        columns: Sequence[str] | None = None,
        examples: Sequence[Mapping[str, str]] = (),
        api: str = "chat",
        confidence: str = "logprobs",
        samples: int = 10,
        top_logprobs: int = 20,
        max_tokens: int | None = None,
        price: Mapping[str, float] | None = None,
        served_as: str | None = None,
        request: Mapping[str, Any] | None = None,
        key_variable: str = KEY_VARIABLE,
        timeout_seconds: float = 30.0,
        retries: int = 2,
        concurrent: int = 16,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in OPTIONS}
        self.options = {name: given[name] for name in OPTIONS if given[name] != _USUAL[name]}
        _check_types(given)
        _check_choices(api, confidence, key_variable)
        check_seconds(timeout_seconds=timeout_seconds)
        check_at_least(1, samples=samples, max_tokens=max_tokens)
        check_at_least(2, top_logprobs=top_logprobs)
        check_at_least(1, concurrent=concurrent)
        check_at_least(0, retries=retries)
        self._price = _checked_price(price)
        answers = _answers(labels)
        self.tokens = LabelTokens(answers)
        self.labels = self.tokens.names
        self._prompt = _Prompt.of(prompt, columns, api)
        self.columns = self._prompt.columns
        self._shown = self._prompt.shown(examples, answers)
        parts = server_of(chat, "a chat model's address")
        how = {"sampling": f", by {samples} samples", "verbalized": ", by stated confidence"}
        self.url = str(chat).rstrip("/")
        self.name = f"{model} at {parts.netloc}{how.get(confidence, '')}"
        self._model, self._served_as, self._noted = model, served_as, False
        self._confidence, self._samples, self._api = confidence, samples, api
        self._seconds, self._retries, self._key = timeout_seconds, retries, key_variable
        self.concurrent, self._turns = concurrent, asyncio.Semaphore(concurrent)
        longer = min(self.tokens.longest + 2, MOST_TOKENS)
        self._longer, self._asked, self._cut = max_tokens or longer, 0, 0
        usual = {"logprobs": 1, "sampling": longer, "verbalized": MOST_TOKENS}[confidence]
        self._most_tokens = max_tokens or usual
        self._fields = {"model": model, "temperature": 1 if confidence == "sampling" else 0}
        if confidence == "logprobs":
            chats = {"logprobs": True, "top_logprobs": top_logprobs}
            self._fields |= chats if api == "chat" else {"logprobs": top_logprobs}
        self._fields |= request or {}
        with needs("remote", "calling a chat model"):
            import msgspec
        self._encode, self._decode = msgspec.json.Encoder().encode, _decoder().decode
        token = os.environ.get(key_variable)
        self._has_key = bool(token)
        self._server = Server(
            self.url, self.name, timeout_seconds, token=token, connections=concurrent
        )

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> "ChatModel":
        """Load the model that a TOML file describes: its keys are the arguments.

        `examples` may name a table beside the file, with the columns and a column of labels.

        Raises
        ------
        ValueError
            `path` is not a TOML file, or a key is missing, unknown or invalid.
        """
        file = Path(path)
        try:
            table = tomllib.loads(read_text(file))
            return cls.of_table(table, file.parent)
        except (tomllib.TOMLDecodeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def of_table(cls, table: Mapping[str, Any], folder: Path) -> "ChatModel":
        """Make the model that a TOML table describes."""
        table = dict(table)
        if "router" in table:
            raise ValueError("this file describes a joint model, not a chat model")
        needed = ("chat", "model", "prompt", "labels")
        for name in needed:
            if name not in table:
                raise ValueError(f"a chat model needs {', '.join(needed)}, and {name} is missing")
        if unknown := [name for name in table if name not in OPTIONS]:
            raise ValueError(f"a chat model has no {unknown[0]!r}; it has {', '.join(OPTIONS)}")
        if isinstance(examples := table.get("examples"), str):
            prompt = _Prompt.of(table["prompt"], table.get("columns"), table.get("api", "chat"))
            table["examples"] = _read_examples(folder / examples, prompt.columns, table["labels"])
        try:
            return cls(table.pop("chat"), **table)
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a value has the wrong type: {error}") from error

    @property
    def facts(self) -> ModelFacts:
        """Name, address, labels, columns and options."""
        return ModelFacts(
            self.name,
            url=self.url,
            labels=self.labels,
            columns=self.columns,
            input_name="text",
            input_dtype=np.dtype(object),
            input_shape=(None,) if len(self.columns) == 1 else (None, len(self.columns)),
            options=self.options,
            probabilities=False,
            calls=self.concurrent,
            bytes_moved=self._server.bytes_moved,
        )

    def __call__(self, batch: Any, /) -> Answer:
        """Return log-probabilities (n, labels) of n texts, or of n rows of k texts, and their cost.

        Raises
        ------
        TeacherUnavailable
            The server answered no row, but may later.
        """
        rows = self._rows(batch)
        if not rows:
            return Answer(np.zeros((0, len(self.labels))), spent=np.zeros((0, 3)))
        found: list[_Row] = run(self._ask_all(rows))
        answered = np.array([row.output is not None for row in found])
        failed = [row.error for row in found if row.error is not None]
        spent = np.array([row.spent for row in found])
        away = [error for error in failed if isinstance(error, TeacherUnavailable)]
        if len(away) == len(rows):  # else the server is there, and `answered` tells the rest
            away[0].spent = spent
            raise away[0]
        output = [row.output for row in found if row.output is not None]
        if not failed:
            return Answer(np.array(output), spent=spent)
        why = f"{self.name} gave no usable answer to {len(failed)} of {len(rows)}: {failed[0]}"
        known = np.array(output).reshape(len(output), len(self.labels))
        return Answer(known, answered=answered, why=why, spent=spent)

    def check(self) -> None:
        """Check that the server answers; raise a `ModelError` if not."""
        try:
            self._server.exchange("GET", "models")
        except ModelError as error:
            if error.status not in (404, 405):  # many servers list no models
                raise

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(ChatModel, **self.options), ()

    def __repr__(self) -> str:
        return f"ChatModel({self.url!r}, model={self._model!r})"

    def _rows(self, batch: Any) -> list[tuple[str, ...]]:
        """Return the texts of each row, (n, k)."""
        count, wanted = row_count(batch), len(self.columns)
        several = list | tuple | np.ndarray
        rows = [tuple(row) if isinstance(row, several) else (row,) for row in batch]
        for row in rows:
            if len(row) != wanted or not all(isinstance(text, str) for text in row):
                kinds = ", ".join(type(text).__name__ for text in row[:5])
                raise ValueError(
                    f"{self.name} takes rows of {wanted} texts ({', '.join(self.columns)}), but "
                    f"one of {count} is {len(row)} of {kinds}"
                )
        return rows

    async def _ask_all(self, rows: Sequence[tuple[str, ...]]) -> "list[_Row]":
        return list(await asyncio.gather(*map(self._ask_one, rows)))

    async def _ask_one(self, row: tuple[str, ...]) -> "_Row":
        """Return a row's answer or error, and what was spent on it."""
        spent = np.zeros(3)
        try:
            fields = {**self._fields, **self._prompt.asked(row, self._shown)}
            return _Row(await self._answer(fields, spent), spent, None)
        except ModelError as error:
            return _Row(None, spent, error)
        except Exception as error:  # an odd reply must not fail the other rows
            return _Row(None, spent, ModelError(one_line(error)))

    async def _answer(self, fields: dict[str, Any], spent: Any) -> Any:
        """Return the raw output of one row, (labels,), and add to `spent`."""
        if self._confidence == "sampling":
            asked = (self._choice(fields, self._most_tokens, spent) for _ in range(self._samples))
            said = [_text(one) for one in await asyncio.gather(*asked)]
            return _shares([self.tokens.label(text) for text in said], len(self.labels), said)
        self._asked += 1
        most = self._most_tokens
        choice = await self._choice(fields, most, spent)
        if self._confidence == "verbalized":
            return _stated(_text(choice), self.tokens)
        try:
            return self._logprobs(choice)
        except Unclear as error:
            if not error.longer or most >= self._longer:
                raise
        self._cut += 1
        if self._asked >= MANY_ROWS and self._cut > self._asked * MOST_CUT:
            self._most_tokens = self._longer  # a few more tokens cost less than a second request
        return self._logprobs(await self._choice(fields, self._longer, spent))

    def _logprobs(self, choice: Any) -> Any:
        ended = choice.finish_reason == "stop"
        return self.tokens.logprobs(positions_of(choice.logprobs), ended=ended)

    async def _choice(self, fields: dict[str, Any], most: int, spent: Any) -> Any:
        """Send a request in its turn, and return its choice."""
        body = self._encode({**fields, "max_tokens": most})
        async with self._turns:  # the deadline starts with the turn, not in the queue
            return await self._asked_again(body, spent, time.monotonic() + self._seconds)

    async def _asked_again(self, body: bytes, spent: Any, until: float) -> Any:
        """Send a request, with retries, and return its choice."""
        for tried in range(self._retries + 1):
            try:
                said, _ = await self._server.ask("POST", APIS[self._api], body, _JSON, until=until)
                return self._read(said, spent)
            except TeacherUnavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    spent += math.nan  # unknown: the server may charge for it
                wait = self._wait(error, tried)
                if wait is None or tried == self._retries or time.monotonic() + wait > until:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt raises")

    def _wait(self, error: TeacherUnavailable, tried: int) -> float | None:
        """Return the seconds to wait before a retry."""
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds
        if error.status in (401, 403):
            state = "" if self._has_key else ", which is not set"
            raise TeacherUnavailable(f"{error}; the key is read from {self._key}{state}") from error
        if error.status == 404:
            raise TeacherUnavailable(
                f"{error}; chat must be the address before /{APIS[self._api]}, like "
                "http://host/v1, and model a name that the server knows"
            ) from error
        return float(min(0.2 * 2**tried, 10.0) * JITTER.uniform(0.5, 1.0))

    def _read(self, said: bytes, spent: Any) -> Any:
        """Return the choice in a reply, after checking which model answered."""
        try:
            with self._server.understanding():
                reply = self._decode(said)
        except TeacherUnavailable:
            spent += math.nan  # unknown: the server may charge for it
            raise
        self._count(reply.usage, spent)  # first: another model's answer is charged as well
        self._check_served(reply.model)
        with self._server.understanding():
            if not reply.choices:
                raise ValueError("its list of choices is empty")
        return reply.choices[0]

    def _count(self, usage: Any, spent: Any) -> None:
        """Add a request's tokens and dollars to `spent`; NaN if unknown."""
        usage = usage if isinstance(usage, dict) else {}
        tokens = [
            count if isinstance(count, int) and 0 <= count < MOST_COUNTED else math.nan
            for count in map(usage.get, ("prompt_tokens", "completion_tokens"))
        ]
        spent[:2] += tokens
        spent[2] += math.nan if self._price is None else np.dot(tokens, self._price)

    def _check_served(self, found: str | None) -> None:
        """Check that the requested model answered."""
        asked = self._served_as or self._model
        if found is None or found == asked:
            return
        dated = found.startswith(asked) and _DATED.fullmatch(found.removeprefix(asked))
        if self._served_as is not None or not (dated or found == asked.rpartition("/")[2]):
            raise OtherModel(
                f"{self.name} answered as {found!r}, but {asked!r} was requested: if that is "
                f"right, set served_as = {found!r}"
            )
        if not self._noted:
            self._noted = True
            note(f"{self.name} answers as {found}: set served_as = {found!r} to refuse any other")


class _Row(NamedTuple):
    """A row's raw output (labels,) or error, and its tokens in, tokens out and dollars."""

    output: Any
    spent: Any
    error: ModelError | None


class _Prompt(NamedTuple):
    """The messages about a row, of which the last is the question; a text is one message."""

    parts: tuple[tuple[str, str], ...]  # role and content
    columns: tuple[str, ...]
    api: str

    @classmethod
    def of(cls, prompt: Any, columns: Sequence[str] | None, api: str) -> "_Prompt":
        """Check a prompt as the user gave it; a ValueError says what is wrong."""
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        elif api == "completions":
            raise ValueError("with api = 'completions', prompt must be a text, not messages")
        known = isinstance(prompt, list | tuple) and all(
            isinstance(one, Mapping)
            and one.keys() == {"role", "content"}
            and all(isinstance(text, str) for text in one.values())
            for one in prompt
        )
        if not known or not prompt:
            raise ValueError(
                "prompt must be a text with {column} in it, or a list of messages, each a table of "
                f"role and content, not {prompt!r:.80}"
            )
        parts = tuple((one["role"], one["content"]) for one in prompt)
        named = dict.fromkeys(name for _, text in parts for name in _FIELD.findall(text))
        if not named:
            raise ValueError("prompt must contain {column}, the place of a row's text")
        own = tuple(named) if columns is None else tuple(columns)
        if len({*own}) < len(own) or not all(isinstance(name, str) for name in own):
            raise ValueError(f"columns must be distinct names, not {', '.join(map(str, own))}")
        if missing := [name for name in named if name not in own]:
            raise ValueError(
                f"prompt names {{{missing[0]}}}, but the columns are {', '.join(own)}: add it to "
                "columns, or leave columns out"
            )
        return cls(parts, own, api)

    def shown(
        self, examples: Sequence[Mapping[str, str]], answers: Mapping[str, Sequence[str]]
    ) -> list[tuple[str, str]]:
        """Return the question and the answer of each example."""
        found = []
        for number, example in enumerate(examples, 1):
            if missing := [name for name in (*self.columns, "label") if name not in example]:
                raise ValueError(f"example {number} has no {missing[0]!r}")
            if (label := example["label"]) not in answers:
                known = ", ".join(answers)
                raise ValueError(f"example {number} has the label {label!r}, not one of {known}")
            row = tuple(example[name] for name in self.columns)
            found.append((self._filled(self.parts[-1][1], row), answers[label][0]))
        return found

    def asked(self, row: tuple[str, ...], shown: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Return the fields of a request that hold the question about a row."""
        if len(self.parts) == 1 and self.parts[0][1] == "{messages}":
            return {"messages": _messages(row[0])}
        *before, (role, question) = self.parts
        asked = self._filled(question, row)
        if self.api == "completions":
            told = [f"{one.rstrip()} {answer}" for one, answer in shown]
            return {"prompt": "\n\n".join([*told, asked.rstrip()])}
        talk = [(role, self._filled(text, row)) for role, text in before]
        for one, answer in shown:
            talk += [(role, one), ("assistant", answer)]
        talk.append((role, asked))
        return {"messages": [{"role": role, "content": text} for role, text in talk]}

    def _filled(self, text: str, row: Sequence[str]) -> str:
        """Fill a row's texts into a text."""
        values = dict(zip(self.columns, row, strict=True))
        # one pass: a row's text that contains {column} stays as it is
        return _FIELD.sub(lambda one: values[one[1]], text)


def _messages(text: str) -> list[Any]:
    """Read messages from JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise ValueError("with the prompt '{messages}', an input must be a JSON list of messages")
    return found


def _check_types(given: Mapping[str, Any]) -> None:
    """Check the types, which a TOML file may get wrong; a ValueError names the argument."""
    for name in ("samples", "top_logprobs", "max_tokens", "retries", "concurrent"):
        value = given[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
    for name in ("chat", "model", "served_as", "key_variable"):
        value = given[name]
        if (value is not None or name == "model") and (not isinstance(value, str) or not value):
            raise ValueError(f"{name} must be a non-empty text, not {value!r}")
    request = given["request"] or {}
    if not isinstance(request, Mapping):
        raise ValueError(f"request must be a table of more fields, not {request!r:.80}")
    if own := [name for name in request if name in _OWN_FIELDS]:
        raise ValueError(f"request cannot have {own[0]!r}, a field that EBJR sets itself")


_OWN_FIELDS = (
    *("model", "messages", "prompt", "max_tokens", "logprobs", "top_logprobs", "n", "stream"),
)


def _check_choices(api: str, confidence: str, key_variable: str) -> None:
    check_choice("api", api, APIS)
    check_choice("confidence", confidence, CONFIDENCES)
    if not key_variable.startswith("EBJR_"):
        raise ValueError(
            f"key_variable must begin with EBJR_, so that no other secret is sent, not "
            f"{key_variable!r}"
        )


def _answers(labels: Any) -> dict[str, list[str]]:
    """Return the texts of each label."""
    if isinstance(labels, str) or not isinstance(labels, Mapping | Sequence):
        raise ValueError(f"labels must be a list of names, or texts by name, not {labels!r:.80}")
    if not isinstance(labels, Mapping):
        if not all(isinstance(name, str) for name in labels):
            raise ValueError(f"labels must be texts, in quotes, not {[*labels]!r:.80}")
        check_once("labels", labels)
        return {name: [name] for name in labels}
    return {name: [text] if isinstance(text, str) else [*text] for name, text in labels.items()}


def _checked_price(price: Mapping[str, float] | None) -> NDArray[np.float64] | None:
    """Return the dollars per token, in and out."""
    if price is None:
        return None
    sound = isinstance(price, Mapping) and price.keys() == {"input", "output"}
    if not sound or not all(is_number(one) and 0 <= one < math.inf for one in price.values()):
        raise ValueError(
            "price must have input and output, in dollars per million tokens, like "
            f"{{input = 0.15, output = 0.6}}, not {price!r:.80}"
        )
    return np.array([price["input"], price["output"]], np.float64) / 1e6


def _read_examples(file: Path, columns: Sequence[str], labels: Any) -> list[dict[str, str]]:
    """Read examples from a table with the columns and a column of labels."""
    from ebjr.data.open import open_data

    names = [*_answers(labels)]
    data = open_data(file, input_columns=columns, classes=names, texts=True)
    if not data.has_targets:
        raise ValueError(f"{file} has no column of labels")
    (found,) = data.batches(max(1, len(data)))
    assert found.targets is not None
    rows = [(row,) if isinstance(row, str) else tuple(row) for row in found.inputs]
    return [
        {**dict(zip(columns, row, strict=True)), "label": names[int(target)]}
        for row, target in zip(rows, found.targets, strict=True)
    ]


def _text(choice: Any) -> str:
    """Return the text of a chat's or a completion's choice."""
    said = choice.text if choice.message is None else choice.message.content
    return said or ""


def _shares(found: Sequence[int | None], count: int, said: Sequence[str]) -> NDArray[np.float64]:
    """Return the logarithm of the labels' smoothed shares among samples, (labels,)."""
    votes = np.bincount([one for one in found if one is not None], minlength=count)
    if not votes.any():
        raise Unclear(f"none of {len(found)} samples is a label; one is {said[0]!r:.60}")
    return np.asarray(np.log((votes + 1 / count) / (len(found) + 1)))  # smoothed: log(0) is -inf


_STATED = re.compile(r"\W*?(?<!-)(?<![.\d])(\d+(?:\.\d+)?)\s*([%\uff05]?)[\s.)*\u3002]*")


def _stated(text: str, tokens: LabelTokens) -> NDArray[np.float64]:
    """Return the logarithm of the stated probability; the other labels share the rest."""
    count, label = len(tokens.names), tokens.label(text)
    number = _STATED.fullmatch(tokens.after(text))
    if label is None or number is None:
        raise Unclear(
            f"the answer must be a label and a confidence, like 'spam, 80%': {text!r:.60}"
        )
    sure = float(number[1]) / (100 if number[2] or float(number[1]) > 1 else 1)
    if sure > 1:
        raise Unclear(f"the answer states a confidence above 100 %: {text!r:.60}")
    sure = min(max(sure, 1 / count + 1e-6), 0.999)  # the stated label stays the likeliest
    found = np.full(count, (1 - sure) / (count - 1))
    found[label] = sure
    return np.asarray(np.log(found))


def _decoder() -> Any:
    """Return a decoder of the fields of a reply that are used, each with its type."""
    import msgspec

    class Token(msgspec.Struct):
        token: str
        logprob: float
        bytes: list[int] | None = None

    class Place(Token):
        top_logprobs: list[Token] | None = None

    class Logprobs(msgspec.Struct):
        content: list[Place] | None = None
        tokens: list[str] | None = None
        token_logprobs: list[float | None] | None = None
        top_logprobs: list[dict[str, float] | None] | None = None

    class Message(msgspec.Struct):
        content: str | None = None

    class Choice(msgspec.Struct):
        message: Message | None = None
        text: str | None = None
        logprobs: Logprobs | None = None
        finish_reason: str | None = None

    class Reply(msgspec.Struct):
        choices: list[Choice]
        usage: Any = None  # untyped: an odd `usage` must not lose the answer
        model: str | None = None

    return msgspec.json.Decoder(Reply)


def chat_identity(options: Mapping[str, Any]) -> str:
    """Hash the options that a chat model's answers depend on."""
    known = {name: options[name] for name in IDENTITY if name in options}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


_JSON = {"Content-Type": "application/json"}
_USUAL = {
    name: None if each.default is each.empty else each.default
    for name, each in signature(ChatModel.__init__).parameters.items()
    if name != "self"
}
OPTIONS = tuple(_USUAL)
"""The keys of a chat model's table: the arguments of `ChatModel`."""

IDENTITY = (
    *("model", "prompt", "labels", "columns", "examples", "api", "confidence", "samples"),
    *("top_logprobs", "max_tokens", "served_as", "request"),
)
"""The options that a chat model's answers depend on."""
