"""A hash says which models answer, and not how they are run or where the knob is."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from tiny import write_joint, write_linear

import ebjr
from ebjr import JointClassifier, JointConfig, Preprocess, Router, load_model
from ebjr.backends.entry import ModelEntry, RemoteEntry
from ebjr.backends.identity import identities

pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return JointConfig.read(write_joint(tmp_path_factory.mktemp("pair")))


def of(config):
    return identities(config.load(threads=1), config.student, config.teacher)


def test_a_model_is_known_by_the_hash_of_its_file(config):
    found = of(config)
    for role in ("student", "teacher"):
        entry = getattr(config, role)
        own = sha256(Path(entry.path).read_bytes()).hexdigest()
        assert found[role] == entry.sha256 == own
    assert len(found["model"]) == 64


def test_the_joint_models_hash_is_of_all_that_answers_depend_on_and_of_no_more(config):
    known = of(config)["model"]
    same = replace(config.student, options={**config.student.options, "threads": 1})
    assert of(replace(config, threshold=config.threshold + 1, student=same))["model"] == known
    half = replace(config.teacher, preprocess=Preprocess(size=4))
    plain = replace(config, calibration={})
    assert of(plain)["model"] == known
    for other in ({"score": "entropy"}, {"blend": 0.25}):
        assert of(replace(plain, **other))["model"] != known
    joint = config.load(threads=1)
    assert identities(joint, config.student, half)["model"] != known
    assert identities(joint, replace(config.student, sha256="0" * 64), config.teacher)["model"] != (
        known
    )


def test_models_without_a_file_are_known_by_what_they_have_learned(tmp_path):
    weight = np.eye(3, dtype=np.float32)

    def made(weight):
        return lambda x: x @ weight

    def of_pair(student, teacher):
        return identities(JointClassifier(student, teacher, Router("margin", 0.5)))

    one, other = made(weight), made(2 * weight)
    assert of_pair(one, other) == of_pair(made(weight.copy()), made(2 * weight))
    assert of_pair(one, other)["model"] != of_pair(one, made(3 * weight))["model"]
    assert of_pair(one, lambda x: x).keys() == {"student"}  # nobody knows what it is
    path = write_linear(tmp_path / "linear.onnx", weight)
    alone = load_model(path, threads=1)
    assert of_pair(alone, alone)["teacher"] == ModelEntry.of_file(path).sha256


def test_a_far_model_is_known_by_what_its_server_says(config):
    said = {"name": "far", "versions": [], "platform": "", "inputs": [], "outputs": []}
    joint = config.load(threads=1)
    silent = RemoteEntry("http://far/v2/models/far", said)
    assert identities(joint, config.student, silent).keys() == {"student"}
    told = replace(silent, sha256="5f1c" * 16)
    found = identities(joint, config.student, told)
    assert found["teacher"] == "5f1c" * 16
    moved = replace(told, url="http://elsewhere/v2/models/far")
    assert identities(joint, config.student, moved) == found
    more = identities(joint, config.student, replace(told, sha256="c1f5" * 16))
    assert more["model"] != found["model"]


def test_a_stage_is_known_by_its_models_and_its_router(config, tmp_path):
    first, last = config.load(threads=1), config.load(threads=1).teacher
    joint = JointClassifier(first, last, Router("margin", 0.5))
    known = identities(joint)
    ebjr.save_joint(tmp_path / "nested.toml", joint)
    nested = JointConfig.read(tmp_path / "nested.toml")
    assert identities(nested.load(threads=1), nested.student, nested.teacher) == known
    first.router.threshold += 1
    assert identities(joint) == known
    first.router = Router("entropy", 0.5)
    assert identities(joint)["student"] != known["student"]
