"""The page on encoders: its pairs are recorded, calibrated and asked, with a server that runs."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import DOCS, blocks, file_of, run_python

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")

from chat_server import chat_server  # noqa: E402

from ebjr.cli import main  # noqa: E402

PAGE = "encoders.md"
WORDS = ("good", "kind", "film", "what", "is", "it", "bad", "cruel")


def write_encoder(folder: Path, labels: list[str]) -> None:
    """A tiny classifier with its tokenizer, as save_pretrained writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: k for k, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    made = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="[UNK]", **special
    )
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(ids),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        initializer_range=0.5,
        id2label=dict(enumerate(labels)),
        label2id={label: k for k, label in enumerate(labels)},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def judge(body: dict, _: int) -> dict:
    """A teacher that knows two words: what it says, with its log-probabilities."""
    asked = body["messages"][-1]["content"]
    names = ("fine", "harmful") if "harmful" in asked else ("right", "wrong")
    bad = "bad" in asked or "cruel" in asked
    top = [
        {"token": name, "bytes": list(name.encode()), "logprob": math.log(share)}
        for name, share in zip(names[:: -1 if bad else 1], (0.9, 0.1), strict=True)
    ]
    choice = {"index": 0, "finish_reason": "length"}
    choice |= {"message": {"role": "assistant", "content": top[0]["token"]}}
    choice |= {"logprobs": {"content": [{**top[0], "top_logprobs": top}]}}
    usage = {"prompt_tokens": 20, "completion_tokens": 1}
    return {"model": "a-large-model", "choices": [choice], "usage": usage}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The page's files, with addresses of a server that runs, and data for them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    known = [WORDS[: 6 + 2 * (k % 2)] for k in range(60)]
    texts = [" ".join(rng.choice(words, rng.integers(3, 40))) for words in known]
    bad = [bool(re.search("bad|cruel", text)) for text in texts]
    with Path("posts.csv").open("w", newline="") as file:
        rows = zip(range(60), texts, [["fine", "harmful"][each] for each in bad], strict=True)
        csv.writer(file).writerows([("id", "text", "label"), *rows])
    Path("new.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts[:20]))
    with Path("graded.csv").open("w", newline="") as file:
        rows = zip(
            texts, ["what is it"] * 60, [["right", "wrong"][each] for each in bad], strict=True
        )
        csv.writer(file).writerows([("answer", "question", "label"), *rows])
    write_encoder(tmp_path / "moderation-encoder", ["fine", "harmful"])
    write_encoder(tmp_path / "judge-encoder", ["right", "wrong"])
    Path("models.py").write_text(file_of(PAGE, "models.py"))
    with chat_server(judge, "a-large-model") as server:
        page = (DOCS / PAGE).read_text()
        for name, text in re.findall(r'```toml title="(\S+)"\n(.*?)```', page, re.DOTALL):
            Path(name).write_text(text.replace("http://localhost:8000/v1", server.url))
        yield tmp_path


@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
def test_an_encoder_is_the_student_of_a_language_model(folder, monkeypatch, capsys):
    lines = [line for line in "\n".join(blocks(PAGE, "sh")).splitlines() if line[:4] == "ebjr"]
    assert len(lines) == 3
    for line in lines:
        monkeypatch.setattr("sys.argv", line.split())
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, capsys.readouterr().err
    with Path("answers.csv").open(newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 20
    deferred = [row for row in answers if row["answered_by"] == "teacher"]
    assert deferred
    assert {row["tokens_in"] for row in deferred} == {"20"}
    assert all(math.isclose(float(row["dollars"]), 3.6e-6) for row in deferred)
    names = run_python(PAGE)
    assert names["graded"].columns == names["outcomes"].columns == ("question", "answer")
    assert names["outcomes"].quality("teacher") == 1.0
