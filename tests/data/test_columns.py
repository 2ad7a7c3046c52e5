"""Columns of a table by name: what models say they read, and several columns of texts."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from ebjr import JointClassifier, Router, answer_within, record
from ebjr.data.columns import check_columns, read_by
from ebjr.data.open import open_data
from ebjr.errors import RecordingNote
from ebjr.predict import predict

TITLES = ["007", 'two\nlines, "quoted"', ""]
BODIES = ["good", "bad", "good"]
NAMES = ("t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.arrow")


def write(path: Path, /, **columns: list) -> Path:
    """A table in the form that its suffix says."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix in (".csv", ".tsv"):
        import csv

        with path.open("w", newline="") as file:
            form = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            form.writerows([list(columns), *(list(row.values()) for row in rows)])
    elif path.suffix == ".parquet":
        parquet.write_table(pa.table(columns), path, row_group_size=2)
    else:
        with pa.ipc.new_file(str(path), pa.table(columns).schema) as writer:
            writer.write_table(pa.table(columns), max_chunksize=2)
    return path


def reads(*columns: str, texts: bool = True):
    """A model of rows of texts that says so: is `good` in them?"""

    def model(rows):
        model.asked.append(rows)
        lines = [" ".join(row) if len(columns) != 1 else row for row in rows]
        good = np.array([4.0 if "good" in line else -4.0 for line in lines])
        return np.stack([-good, good], axis=1)

    model.asked = []
    model.columns = columns or None
    model.input_dtype = np.dtype(object if texts else float)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_several_columns_of_texts_are_rows_of_texts(name, tmp_path):
    path = write(tmp_path / name, body=BODIES, title=TITLES, label=[1, 0, 1])
    data = open_data(path, input_columns="title,body")
    assert data.columns == ("title", "body")
    (batch,) = data.batches(10)
    assert batch.inputs.dtype == object
    assert batch.inputs.tolist() == [[*row] for row in zip(TITLES, BODIES, strict=True)]
    assert batch.targets.tolist() == [1, 0, 1]
    found, where = data.take([0, 2])
    assert (found.inputs.tolist(), where.tolist()) == ([["007", "good"], ["", "good"]], [0, 2])
    batch.inputs[0, 0] = "changed"  # a model may write to its batch
    assert next(data.batches(1)).inputs[0, 0] == "007"


def test_numbers_beside_texts_are_texts_as_the_file_has_them(tmp_path):
    given = {"n": ["007", "1.50"], "day": ["2020-01-02", "2020-01-03"], "text": ["a", "b"]}
    wanted = [["007", "2020-01-02", "a"], ["1.50", "2020-01-03", "b"]]
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        data = open_data(write(tmp_path / name, **given), input_columns="n,day,text")
        assert data.inputs.tolist() == wanted
    assert open_data(tmp_path / "t.csv", input_columns="n", texts=True).inputs == ["007", "1.50"]
    typed = {"n": [7, 2], "x": [1.5, 3.0], "yes": [True, False], "text": ["a", "b"]}
    typed["day"] = [datetime.date(2020, 1, 2)] * 2
    for name in ("t.parquet", "t.arrow"):
        data = open_data(write(tmp_path / name, **typed), input_columns=list(typed))
        assert data.inputs[0].tolist() == ["7", "1.5", "true", "a", "2020-01-02"]
    (tmp_path / "t.jsonl").write_text('{"n": 7, "text": "a"}\n{"n": 1.5, "text": "b"}')
    data = open_data(tmp_path / "t.jsonl", input_columns="n,text")
    assert data.inputs.tolist() == [["7", "a"], ["1.5", "b"]]


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_a_cell_without_a_value_is_named_whatever_it_is_read_as(name, tmp_path):
    text = ["a", "b", "c"] if name == "t.csv" else ["a", None, "c"]
    path = write(tmp_path / name, text=text, n=[1, None, 3])
    column = "n" if name == "t.csv" else "text"  # an empty text of a .csv is a text
    with pytest.raises(
        ValueError, match=rf"row 1 \(from 0\) has no value for {column}: fill it in"
    ):
        open_data(path, input_columns="text,n")
    with pytest.raises(ValueError, match=r"row 1 \(from 0\) has no value for n"):
        open_data(path, input_columns="n", models=[reads()])


def test_models_choose_the_columns_by_name(tmp_path):
    path = write(tmp_path / "t.csv", id=[1, 2, 3], body=BODIES, n=[5, 6, 7], title=TITLES)
    model = reads("title", "body")
    data = open_data(path, models=[lambda rows: rows, model])
    assert data.columns == ("title", "body")
    assert data.inputs[1].tolist() == [TITLES[1], "bad"]
    assert open_data(path, models=[model], input_columns="title,body").columns == data.columns
    with pytest.raises(ValueError, match="read the columns title, body in this order, not body"):
        open_data(path, models=[model], input_columns="body,title")
    with pytest.raises(ValueError, match="one column named 'kind', but has none among id"):
        open_data(path, models=[reads("title", "kind")])
    with pytest.raises(ValueError, match=r"body \(texts\), n \(texts\), title \(texts\): name"):
        open_data(path, models=[reads()])
    joint = JointClassifier(model, model, Router("margin", 1.0))
    assert open_data(path, models=[joint]).columns == ("title", "body")
    assert open_data(path, models=[reads()], columns=["n", "body"]).inputs[2].tolist() == [
        *("7", "good")
    ]


def test_columns_of_numbers_are_chosen_by_name_too(tmp_path):
    path = write(tmp_path / "t.csv", a=[1, 2], b=[3.5, 4], c=[0, 0])
    data = open_data(path, models=[reads("b", "a", texts=False)])
    assert data.inputs.tolist() == [[3.5, 1], [4, 2]]


def test_a_lone_column_of_texts_may_have_any_name_unless_the_models_is_there(tmp_path):
    path = write(tmp_path / "t.csv", review=BODIES, label=[1, 0, 1])
    model = reads("text")
    with pytest.warns(RecordingNote, match="inputs are the texts in review"):
        data = open_data(path, models=[model])
    assert (data.inputs, data.columns) == (BODIES, ("review",))
    check_columns(data, model)
    both = write(tmp_path / "both.csv", review=["x", "y"], text=["1", "2"])
    assert open_data(both, models=[model]).inputs == ["1", "2"]  # and as texts
    assert open_data(both, models=[model], input_columns="review").inputs == ["x", "y"]
    numbers = write(tmp_path / "numbers.csv", other=[1.5, 2])
    with pytest.raises(ValueError, match="the models read the columns a in this order, not other"):
        open_data(numbers, models=[reads("a", texts=False)], input_columns="other")
    pages = write(tmp_path / "pages.csv", path=["a.png", "b.png"], label=[0, 1])
    assert open_data(pages, models=[reads("path")]).inputs == ["a.png", "b.png"]


def test_models_that_read_other_columns_go_with_each_other_never():
    assert read_by(reads("a", "b"), lambda rows: rows) == (("a", "b"), True)
    assert read_by(lambda rows: rows) == (None, False)
    with pytest.raises(ValueError, match="model reads a, b and model reads b, a: give both"):
        read_by(reads("a", "b"), reads("b", "a"))


@pytest.mark.filterwarnings("ignore::ebjr.RecordingNote")
def test_every_door_compares_columns_before_a_model_runs(tmp_path):
    path = write(tmp_path / "t.csv", title=TITLES, text=BODIES, label=[1, 0, 1])
    student, teacher = reads("title", "body"), reads()
    data = open_data(path, input_columns="title,text")
    lone = open_data(path, input_columns="text")
    joint = JointClassifier(student, teacher, Router("margin", 1.0))
    for wrong, words in (
        (data, "the models read the columns title, body in this order, not title, text"),
        (lone, "the models read the columns title, body in this order, not text"),
        (BODIES, "read 2 columns of texts, title, body, but a row of the inputs has 1"),
        (np.array([["a", "b", "c"]], object), "a row of the inputs has 3"),
    ):
        doors = [
            lambda: record(student, teacher, wrong),  # noqa: B023
            lambda: answer_within(student, teacher, wrong, at_least=0.9, delta=0.1),  # noqa: B023
        ]
        if wrong is data:
            doors.append(lambda: predict(joint, data, tmp_path / "answers.jsonl"))
        for door in doors:
            with pytest.raises(ValueError, match=words):
                door()
    numbers = open_data(write(tmp_path / "n.csv", a=[1, 2], label=[0, 1]))
    with pytest.raises(ValueError, match=r"the models read texts, but a are numbers.*models="):
        record(reads(), reads(), numbers)
    one = reads()
    one.input_shape = (None,)
    with pytest.raises(ValueError, match="model reads one text in each row, but a row of the inp"):
        record(one, teacher, data)
    assert student.asked == teacher.asked == one.asked == []
    assert not (tmp_path / "answers.jsonl.part").exists()


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_rows_of_texts_are_recorded_by_any_batch_alike(name, tmp_path):
    path = write(tmp_path / name, title=TITLES * 4, body=BODIES * 4, label=[1, 0, 1] * 4)
    student, teacher = reads("title", "body"), reads("title", "body")
    found = [
        record(student, teacher, open_data(path, models=[student]), batch_size=size)
        for size in (1, 5, 64)
    ]
    assert found[0].columns == ("title", "body")
    assert len({each.fingerprint for each in found}) == 1
    assert found[0].quality("teacher") == 1.0
    assert all(rows.shape[1] == 2 for rows in student.asked)
