"""A task is a folder: what one must declare, and what is said of one that declares too little."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import ebjr.tasks as folders

WHOLE = """
from ebjr.metric import Metric
from ebjr.scores import LOGITS
from ebjr.task import Task
from ebjr.tasks.classification import ACCURACY, JointClassifier

class Own(Task):
    name = "own"
    raw = LOGITS
    metrics = (ACCURACY,)
    final = JointClassifier

TASK = Own()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Put a folder called own among the tasks."""

    def write(text: str) -> None:
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "__init__.py").write_text(text)
        monkeypatch.setattr(folders, "__path__", [*folders.__path__, str(tmp_path)])
        folders.task_names.cache_clear()

    yield write
    monkeypatch.undo()
    sys.modules.pop("ebjr.tasks.own", None)
    folders.task_names.cache_clear()
    folders._declared.cache_clear()


def test_a_new_folder_is_a_new_task(folder):
    folder(WHOLE)
    assert "own" in folders.task_names()
    assert folders.as_task("own").metric().name == "accuracy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("TASK = Own()", ""), "the folder of task 'own' must declare a Task named TASK"),
        (("TASK = Own()", "TASK = Own"), "must declare a Task named TASK"),
        (("    metrics = (ACCURACY,)\n", ""), "task 'own' misses metrics: TASK must have name,"),
        (("    raw = LOGITS\n    metrics = (ACCURACY,)\n", ""), "task 'own' misses raw, metrics:"),
        (('name = "own"', 'name = "other"'), "task 'own' calls itself 'other'"),
    ],
)
def test_a_folder_that_declares_too_little_is_said_to_in_one_sentence(folder, change, message):
    folder(WHOLE.replace(*change))
    with pytest.raises(ValueError, match=message) as caught:
        folders.as_task("own")
    assert "\n" not in str(caught.value)


def test_an_unknown_task_names_those_that_this_version_knows():
    with pytest.raises(ValueError, match=r"task must be one of .*regression.* in EBJR \d.*'sing'"):
        folders.as_task("sing")


def test_a_score_that_competes_stands_in_the_report_too(monkeypatch):
    logits, known = np.zeros((4, 3)), folders.as_task("classification")
    plain = [name for name in known.auto if "(" not in name]
    assert known.compared(logits) == [*plain, "random"]
    monkeypatch.setattr(type(known), "auto", (*known.auto, "label_mass"))
    assert known.compared(logits) == [*plain, "label_mass", "random"]
