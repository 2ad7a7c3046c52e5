"""ChatModel: a language model behind OpenAI's API as a classifier of texts.

A closed question has an answer among labels. The log-probabilities of the labels, as far as the
server tells them, are the model's raw output: logits that sum to less than 1 by what it might have
said instead. So their energy (eq. 3) is the logarithm of the mass on the labels.
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
    needs,
    note,
    one_line,
)
from ebjr.files import read_text
from ebjr.link.http import Server, check_timeout, run, server_of
from ebjr.model import Answer, ModelFacts
from ebjr.protocol import is_number
from ebjr.threads import JITTER

APIS = {"chat": "chat/completions", "completions": "completions"}
"""How a server is asked, and the path under its address."""

CONFIDENCES = ("logprobs", "sampling", "verbalized")
"""What raw output is made of: tokens' log-probabilities, shares of samples, or a stated number."""

KEY_VARIABLE = "EBJR_CHAT_KEY"
MOST_TOKENS = 32  # of an answer, however long its labels are
MOST_COUNTED = 10**12  # tokens of a request that a server may say it has taken
MANY_ROWS, MOST_CUT = 16, 0.1  # after so many rows more tokens are asked for if one was too few
_DATED = re.compile(r"[-@:](\d{3,8}|\d{4}-\d{2}-\d{2}|latest)")  # what a name may end with
_FIELD = re.compile(r"\{(\w+)\}")


class ChatModel:
    """A language model that is asked a closed question about texts: log-probabilities of labels.

    The key is read from the environment. Rows are asked at the same time, each on its own: one
    that is refused, or answered with none of the labels, is not answered (`Answer.answered`), and
    the others are.

    - `chat`: The address up to and with ``/v1``, of any server that speaks OpenAI's API.
    - `model`: The model's name there.
    - `prompt`: What is asked: a text with ``{column}`` where a column's text goes, or a list of
      messages, each a table of `role` and `content`. ``"{messages}"`` alone takes a text that is
      JSON of a list of messages, and passes it on.
    - `labels`: The names of the answers, which are their texts; or by name the text, or texts, that
      mean it.
    - `columns`: What the texts of a row are called, in their order; the prompt's, if left out.
    - `examples`: Examples with answers, shown before the question: tables of `columns` and `label`.
    - `api`: ``"chat"``, or ``"completions"``, for models that go on with a text.
    - `confidence`: ``"logprobs"``; for servers that do not tell these ``"sampling"``, the shares of
      labels among `samples` answers, or ``"verbalized"``, where the prompt asks for a label and for
      how sure it is, as in ``spam, 80%``.
    - `top_logprobs`: How many likeliest tokens are asked for.
    - `max_tokens`: The most tokens of an answer; None is one, and more for rows, or for all, where
      that does not tell the labels apart.
    - `price`: Dollars per million tokens, as ``{input = 0.15, output = 0.6}``.
    - `served_as`: The name that answers carry. If left out, it is `model`, or that with a date.
    - `request`: Further fields of each request.
    - `key_variable`: The environment variable with the key. It begins with ``EBJR_``, so that no
      file can send another secret.
    - `timeout_seconds`: How long a request may take, with all its attempts, once it is its turn.
    - `retries`: How often it is sent again where the server is busy, or fails.
    - `concurrent`: The most requests on their way at once.

    Raises
    ------
    ValueError
        An argument is out of range, or the prompt names a column that there is none of.
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
        check_timeout(timeout_seconds)
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
        how = {"sampling": f", by {samples} samples", "verbalized": ", by what it says of itself"}
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
        with needs("remote", "asking a chat model"):
            import msgspec
        self._encode, self._decode = msgspec.json.Encoder().encode, _decoder().decode
        token = os.environ.get(key_variable)
        self._has_key = bool(token)
        self._server = Server(
            self.url, self.name, timeout_seconds, token=token, connections=concurrent
        )

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> "ChatModel":
        """The model that a TOML file describes: its keys are the arguments.

        `examples` may name a table beside it with the columns and a column of labels. A ValueError
        says what is wrong with the file.
        """
        file = Path(path)
        try:
            table = tomllib.loads(read_text(file))
            return cls.of_table(table, file.parent)
        except (tomllib.TOMLDecodeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def of_table(cls, table: Mapping[str, Any], folder: Path) -> "ChatModel":
        """The model that a TOML table describes."""
        table = dict(table)
        if "router" in table:
            raise ValueError("it is a joint model's file, and not that of a chat model")
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
            raise ValueError(f"a value is of another type than it must be: {error}") from error

    @property
    def facts(self) -> ModelFacts:
        """All that the model says of itself."""
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
        """Log-probabilities (n, labels) of n texts, or of rows of k texts, and what they cost.

        TeacherUnavailable: the server answered none of them, and may later.
        """
        rows = self._rows(batch)
        if not rows:
            return Answer(np.zeros((0, len(self.labels))), spent=np.zeros((0, 3)))
        found: list[_Row] = run(self._ask_all(rows))
        answered = np.array([row.output is not None for row in found])
        failed = [row.error for row in found if row.error is not None]
        spent = np.array([row.spent for row in found])
        away = [error for error in failed if isinstance(error, TeacherUnavailable)]
        if len(away) == len(rows):
            away[0].spent = spent
            raise away[0]
        output = [row.output for row in found if row.output is not None]
        if not failed:
            return Answer(np.array(output), spent=spent)
        why = f"{self.name} gave no usable answer to {len(failed)} of {len(rows)}: {failed[0]}"
        known = np.array(output).reshape(len(output), len(self.labels))
        return Answer(known, answered=answered, why=why, spent=spent)

    def check(self) -> None:
        """Ask whether the server is there; else raise what is wrong."""
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
        """The texts of each row, (n, k)."""
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
        """The answer to a row, or what is wrong with it; and what was spent on it."""
        spent = np.zeros(3)
        try:
            fields = {**self._fields, **self._prompt.asked(row, self._shown)}
            return _Row(await self._answer(fields, spent), spent, None)
        except ModelError as error:
            return _Row(None, spent, error)
        except Exception as error:  # whatever a reply does, it does to its own row
            return _Row(None, spent, ModelError(one_line(error)))

    async def _answer(self, fields: dict[str, Any], spent: Any) -> Any:
        """(labels,): raw output of one row; `spent` is added to."""
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
            self._most_tokens = self._longer  # a few tokens cost less than asking twice
        return self._logprobs(await self._choice(fields, self._longer, spent))

    def _logprobs(self, choice: Any) -> Any:
        ended = choice.finish_reason == "stop"
        return self.tokens.logprobs(positions_of(choice.logprobs), ended=ended)

    async def _choice(self, fields: dict[str, Any], most: int, spent: Any) -> Any:
        """The one choice of a request, in its turn."""
        body = self._encode({**fields, "max_tokens": most})
        async with self._turns:
            return await self._asked_again(body, spent, time.monotonic() + self._seconds)

    async def _asked_again(self, body: bytes, spent: Any, until: float) -> Any:
        """The one choice of a request, which is sent again while the server is busy or fails."""
        for tried in range(self._retries + 1):
            try:
                said, _ = await self._server.ask("POST", APIS[self._api], body, _JSON, until=until)
                return self._read(said, spent)
            except TeacherUnavailable as error:
                if isinstance(error.__cause__, TimeoutError):
                    spent += math.nan  # it may be charged
                wait = self._wait(error, tried)
                if wait is None or tried == self._retries or time.monotonic() + wait > until:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("the last attempt raises")

    def _wait(self, error: TeacherUnavailable, tried: int) -> float | None:
        """In how many seconds an attempt that failed is worth another; None: it is not."""
        if error.retry_after_seconds is not None:
            return error.retry_after_seconds
        if error.status in (401, 403):
            state = "" if self._has_key else ", which is not set"
            raise TeacherUnavailable(f"{error}; its key is read from {self._key}{state}") from error
        if error.status == 404:
            raise TeacherUnavailable(
                f"{error}; chat must be the address before /{APIS[self._api]}, as http://host/v1, "
                "and model a name that is known there"
            ) from error
        return float(min(0.2 * 2**tried, 10.0) * JITTER.uniform(0.5, 1.0))

    def _read(self, said: bytes, spent: Any) -> Any:
        """The one choice in a reply, once it is known to be of the model that was asked."""
        try:
            with self._server.understanding():
                reply = self._decode(said)
        except TeacherUnavailable:
            spent += math.nan  # it may be charged
            raise
        self._count(reply.usage, spent)
        self._check_served(reply.model)
        with self._server.understanding():
            if not reply.choices:
                raise ValueError("its list of choices is empty")
        return reply.choices[0]

    def _count(self, usage: Any, spent: Any) -> None:
        """Add what a request took; NaN is not known."""
        usage = usage if isinstance(usage, dict) else {}
        tokens = [
            count if isinstance(count, int) and 0 <= count < MOST_COUNTED else math.nan
            for count in map(usage.get, ("prompt_tokens", "completion_tokens"))
        ]
        spent[:2] += tokens
        spent[2] += math.nan if self._price is None else np.dot(tokens, self._price)

    def _check_served(self, found: str | None) -> None:
        """Compare the model that answered with the one that was asked."""
        asked = self._served_as or self._model
        if found is None or found == asked:
            return
        dated = found.startswith(asked) and _DATED.fullmatch(found.removeprefix(asked))
        if self._served_as is not None or not (dated or found == asked.rpartition("/")[2]):
            raise OtherModel(
                f"{self.name} answers as {found!r}, and {asked!r} was asked: if that is right, "
                f"give served_as = {found!r}"
            )
        if not self._noted:
            self._noted = True
            note(f"{self.name} answers as {found}: served_as = {found!r} would notice another")


class _Row(NamedTuple):
    """Raw output (labels,) of a row, or why there is none; tokens in and out, and dollars."""

    output: Any
    spent: Any
    error: ModelError | None


class _Prompt(NamedTuple):
    """What is asked about a row: a text, or messages, of which the last is the question."""

    parts: tuple[tuple[str, str], ...]  # role and content
    columns: tuple[str, ...]
    api: str

    @classmethod
    def of(cls, prompt: Any, columns: Sequence[str] | None, api: str) -> "_Prompt":
        """A prompt as it is given; a ValueError says what is wrong with it."""
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        elif api == "completions":
            raise ValueError("with api = 'completions' prompt must be a text, not messages")
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
            raise ValueError("prompt has no {column} in it, where the text of a row goes")
        own = tuple(named) if columns is None else tuple(columns)
        if len({*own}) < len(own) or not all(isinstance(name, str) for name in own):
            raise ValueError(f"columns must be names that differ, not {', '.join(map(str, own))}")
        if missing := [name for name in named if name not in own]:
            raise ValueError(
                f"prompt names {{{missing[0]}}}, but the columns are {', '.join(own)}: name it "
                "among columns, or leave these out"
            )
        return cls(parts, own, api)

    def shown(
        self, examples: Sequence[Mapping[str, str]], answers: Mapping[str, Sequence[str]]
    ) -> list[tuple[str, str]]:
        """The question and the answer of each example."""
        found = []
        for number, example in enumerate(examples, 1):
            if missing := [name for name in (*self.columns, "label") if name not in example]:
                raise ValueError(f"example {number} has no {missing[0]!r}")
            if (label := example["label"]) not in answers:
                known = ", ".join(answers)
                raise ValueError(f"example {number} has the label {label!r}, none of {known}")
            row = tuple(example[name] for name in self.columns)
            found.append((self._filled(self.parts[-1][1], row), answers[label][0]))
        return found

    def asked(self, row: tuple[str, ...], shown: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The fields of a request that hold the question about a row."""
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
        """A text with the row's texts in it, which are not looked at for further columns."""
        values = dict(zip(self.columns, row, strict=True))
        return _FIELD.sub(lambda one: values[one[1]], text)


def _messages(text: str) -> list[Any]:
    """Messages that came as JSON."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise ValueError("the prompt '{messages}' takes JSON of a list of messages")
    return found


def _check_types(given: Mapping[str, Any]) -> None:
    """Check what TOML may have as another type; a ValueError names the argument."""
    for name in ("samples", "top_logprobs", "max_tokens", "retries", "concurrent"):
        value = given[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be a whole number, not {value!r}")
    for name in ("chat", "model", "served_as", "key_variable"):
        value = given[name]
        if (value is not None or name == "model") and (not isinstance(value, str) or not value):
            raise ValueError(f"{name} must be a text that is not empty, not {value!r}")
    request = given["request"] or {}
    if not isinstance(request, Mapping):
        raise ValueError(f"request must be a table of further fields, not {request!r:.80}")
    if own := [name for name in request if name in _OWN_FIELDS]:
        raise ValueError(f"request cannot have {own[0]!r}, which is said otherwise or must not be")


_OWN_FIELDS = (
    *("model", "messages", "prompt", "max_tokens", "logprobs", "top_logprobs", "n", "stream"),
)


def _check_choices(api: str, confidence: str, key_variable: str) -> None:
    check_choice("api", api, APIS)
    check_choice("confidence", confidence, CONFIDENCES)
    if not key_variable.startswith("EBJR_"):
        raise ValueError(
            f"key_variable must begin with EBJR_, so that no file sends another secret, but is "
            f"{key_variable!r}"
        )


def _answers(labels: Any) -> dict[str, list[str]]:
    """By label the texts that mean it."""
    if isinstance(labels, str) or not isinstance(labels, Mapping | Sequence):
        raise ValueError(f"labels must be a list of names, or texts by name, not {labels!r:.80}")
    if not isinstance(labels, Mapping):
        if len({*labels}) < len(labels):
            raise ValueError("labels must differ, but one is there twice")
        if not all(isinstance(name, str) for name in labels):
            raise ValueError(f"labels must be texts, in quotes, not {[*labels]!r:.80}")
        return {name: [name] for name in labels}
    return {name: [text] if isinstance(text, str) else [*text] for name, text in labels.items()}


def _checked_price(price: Mapping[str, float] | None) -> NDArray[np.float64] | None:
    """Dollars per token, in and out."""
    if price is None:
        return None
    sound = isinstance(price, Mapping) and price.keys() == {"input", "output"}
    if not sound or not all(is_number(one) and 0 <= one < math.inf for one in price.values()):
        raise ValueError(
            "price must say input and output in dollars per million tokens, as "
            f"{{input = 0.15, output = 0.6}}, not {price!r:.80}"
        )
    return np.array([price["input"], price["output"]], np.float64) / 1e6


def _read_examples(file: Path, columns: Sequence[str], labels: Any) -> list[dict[str, str]]:
    """Examples in a table: its columns, and the one of labels."""
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
    """What a choice says, of a chat or a completion."""
    said = choice.text if choice.message is None else choice.message.content
    return said or ""


def _shares(found: Sequence[int | None], count: int, said: Sequence[str]) -> NDArray[np.float64]:
    """(labels,): the logarithm of the labels' shares among samples, none of them 0."""
    votes = np.bincount([one for one in found if one is not None], minlength=count)
    if not votes.any():
        raise Unclear(f"none of {len(found)} samples is a label; one is {said[0]!r:.60}")
    return np.asarray(np.log((votes + 1 / count) / (len(found) + 1)))


_STATED = re.compile(r"\W*?(?<!-)(?<![.\d])(\d+(?:\.\d+)?)\s*([%\uff05]?)[\s.)*\u3002]*")


def _stated(text: str, tokens: LabelTokens) -> NDArray[np.float64]:
    """(labels,): the logarithm of what an answer says of how sure it is, shared by the others."""
    count, label = len(tokens.names), tokens.label(text)
    number = _STATED.fullmatch(tokens.after(text))
    if label is None or number is None:
        raise Unclear(f"the answer is no label and how sure it is, as in 'spam, 80%': {text!r:.60}")
    sure = float(number[1]) / (100 if number[2] or float(number[1]) > 1 else 1)
    if sure > 1:
        raise Unclear(f"the answer says that it is surer than 100 %: {text!r:.60}")
    sure = min(max(sure, 1 / count + 1e-6), 0.999)  # what it says is what it holds for likeliest
    found = np.full(count, (1 - sure) / (count - 1))
    found[label] = sure
    return np.asarray(np.log(found))


def _decoder() -> Any:
    """What reads a reply: the parts of it that are used, each with its type."""
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
        usage: Any = None  # odd usage costs no answer
        model: str | None = None

    return msgspec.json.Decoder(Reply)


def chat_identity(options: Mapping[str, Any]) -> str:
    """The SHA-256 of all in a chat model's table that its answers depend on."""
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
"""Those of them that its answers depend on."""
