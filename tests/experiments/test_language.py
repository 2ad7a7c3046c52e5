"""The study of language models: its rows, its prompts and its page."""

import json
import math

import numpy as np
import pytest

from experiments.language import table
from experiments.language.check import of_labels
from experiments.language.data import Labeled, without_doubt
from experiments.language.record import kept_answers


def test_the_page_shows_what_the_result_file_holds():
    found = json.loads((table.HERE / "results.json").read_text())["tasks"]
    assert table.README.read_text() == table.page(found), "run python -m experiments.language.table"


def test_a_text_that_stands_under_two_labels_is_left_out():
    rows = [("Ok then, go", "English"), ("Ok then, go", "Dutch"), ("Ga nu weg", "Dutch")] * 2
    rows.append(("Go away now", "English"))
    found = without_doubt(rows)
    assert found.classes == ("Dutch", "English")
    assert sorted(zip(found.texts, found.targets.tolist(), strict=True)) == [
        ("Ga nu weg", 0),
        ("Go away now", 1),
    ]


def test_a_part_of_labeled_rows_keeps_their_classes():
    whole = Labeled(["a", "b", "c"], np.array([0, 1, 0]), ("x", "y"))
    part = whole[1:]
    assert (part.texts, part.targets.tolist(), part.classes) == (["b", "c"], [1, 0], ("x", "y"))


def test_every_spelling_of_a_label_adds_up_and_no_other_word_does():
    shares = {" yes": 0.4, "Yes": 0.1, " yesterday": 0.3, " no": 0.2}
    listed = [{"token": text, "logprob": math.log(share)} for text, share in shares.items()]
    assert np.exp(of_labels(listed, ["no", "yes", "maybe"])) == pytest.approx([0.2, 0.5, 0.0])


def test_a_row_without_an_answer_is_nan_and_still_costs_its_tokens(tmp_path):
    kept = tmp_path / "said.jsonl"
    lines = [{"output": [-0.5, -1.0], "tokens": 7}, {"output": None, "tokens": 9}]
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = kept_answers(kept, 2)
    assert np.isnan(found["output"]).tolist() == [[False, False], [True, True]]
    assert found["tokens"].tolist() == [7, 9]


def test_a_prior_that_is_removed_lets_the_other_label_win():
    always = np.log([[0.9, 0.1], [0.8, 0.2]])
    prior = table.prior_of(np.log([[0.9, 0.1], [0.7, 0.3], [0.85, 0.15]]))
    assert always.argmax(axis=1).tolist() == [0, 0]
    assert (always - prior).argmax(axis=1).tolist() == [0, 1]
