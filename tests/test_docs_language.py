"""The code of docs/language-models.md runs as it is written, against servers of this machine."""

from __future__ import annotations

import csv
import re
import shlex

import numpy as np
import pytest
from pages import DOCS, blocks, run_python, servers_of

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
pytest.importorskip("openai", reason="openai is not installed")
pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
pytest.importorskip("starlette", reason="the extra `serve` is not installed")
from chat_server import chat_server

from ebjr.backends.chat import OPTIONS
from ebjr.cli import main

PAGE = "language-models.md"
WORDS = {
    "spam": ["cheap", "watches", "pills", "winner", "casino"],
    "fine": ["the", "my", "our", "a", "we"],
}


def moderator(name, sure):
    """A model that knows spam by its words, and is as sure as they are many."""

    def answer(body, number):
        said = body["messages"][-1]["content"].lower().split()
        weight = sure * sum(word in WORDS["spam"] for word in said) - 1.5
        p = 1 / (1 + np.exp(-weight))
        top = [_token("spam", p), _token("fine", 1 - p)]
        top.sort(key=lambda one: -one["logprob"])
        choice = {"message": {"content": top[0]["token"]}, "finish_reason": "length"}
        choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        usage = {"prompt_tokens": len(said), "completion_tokens": 1}
        return {"model": name, "choices": [choice], "usage": usage}

    return answer


def _token(text, p):
    return {"token": text, "logprob": float(np.log(max(p, 1e-9))), "bytes": list(text.encode())}


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Reports, and both models' files with the addresses of real servers."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(160):
        label = ("fine", "spam")[number % 2]
        words = [*rng.choice(WORDS["fine"], 6), *rng.choice(WORDS[label], 1 + number % 3)]
        rows.append((" ".join(words), label))
    for name, columns in (("reports.csv", 2), ("queue.csv", 1)):
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows(row[:columns] for row in [("text", "label"), *rows])
    monkeypatch.chdir(tmp_path)
    small, large = moderator("small", 1.0), moderator("large", 4.0)
    with chat_server(small) as cheap, chat_server(large) as dear:
        for name, server in (("small.toml", cheap), ("large.toml", dear)):
            [text] = re.findall(
                rf'```toml title="{name}"\n(.*?)```', (DOCS / PAGE).read_text(), re.DOTALL
            )
            (tmp_path / name).write_text(re.sub(r'chat = ".*"', f'chat = "{server.url}"', text))
        yield tmp_path


def test_a_moderation_queue_becomes_a_gateway(queue, monkeypatch, capsys):
    lines = [line for line in "\n".join(blocks(PAGE, "sh")).splitlines() if "ebjr " in line]
    assert [line.split()[1] for line in lines] == ["record", "calibrate", "predict", "serve"]
    for line in lines[:-1]:
        monkeypatch.setattr("sys.argv", shlex.split(line))
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, capsys.readouterr()
    said = capsys.readouterr().out
    assert "$ per 1,000" in said
    with (queue / "answers.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 160
    assert {row["label"] for row in answers} == {"fine", "spam"}
    assert all(float(row["dollars"]) > 0 for row in answers)
    with servers_of(PAGE, queue) as ports:
        names = run_python(PAGE, ports)
    assert names["answer"].choices[0].message.content == "spam"
    assert names["answer"].ebjr["dollars"] > 0


def test_the_page_names_no_option_that_there_is_none_of():
    text = (DOCS / PAGE).read_text()
    keys = re.findall(r"^(\w+) = ", "\n".join(re.findall(r"```toml.*?```", text, re.DOTALL)), re.M)
    assert keys
    assert set(keys) <= set(OPTIONS)
    for key in ("samples", "confidence", "examples", "served_as", "retries", "timeout_seconds"):
        assert f"`{key}" in text
        assert key in OPTIONS
