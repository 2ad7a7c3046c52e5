"""The page on preprocessing says what the code does."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields

import numpy as np
import pytest
from pages import DOCS, blocks

from ebjr import Preprocess
from ebjr.data.preprocess import _CHOICES, PADDING, given_preprocess

PAGE = "preprocessing.md"
TEXT = (DOCS / PAGE).read_text()
ROWS = re.findall(r"^\| `(\w+)` \| (\S+) \| (.*) \|$", TEXT, re.MULTILINE)


def test_the_table_has_every_key_with_its_default_and_its_choices():
    assert [name for name, _, _ in ROWS] == [field.name for field in fields(Preprocess)]
    for name, default, meaning in ROWS:
        usual = getattr(Preprocess(), name)
        if default == "none":
            assert usual is None
        else:
            assert getattr(Preprocess.parse(f"{name}={default.strip('`')}"), name) == usual
        for choice in _CHOICES.get(name, ()):
            assert f"`{choice}`" in meaning
    assert f"gray ({PADDING})" in {name: meaning for name, _, meaning in ROWS}["resize"]


def test_values_are_made_in_the_order_that_the_page_gives():
    way = Preprocess(range=(-1, 3), mean=(0.5, 1, 2), std=(2, 4, 8), color="bgr", layout="nhwc")
    pixel = np.array([[[10, 20, 30]]], np.uint8)
    ranged = -1 + pixel[0, 0, ::-1] * 4 / 255
    expected = (ranged - np.array(way.mean)) / np.array(way.std)
    np.testing.assert_allclose(way([pixel])[0, 0, 0], expected, rtol=1e-6)


def test_every_way_on_the_page_is_whole_so_that_nothing_is_a_guess():
    known = re.findall(r"^\| .* \| `(size=[^`]*)` \|$", TEXT, re.MULTILINE)
    assert len(known) == 4
    for text in known:
        assert given_preprocess(text, "preprocess").mean is not None  # a note would be an error
    (file,) = (block for block in blocks(PAGE, "toml"))
    assert Preprocess.from_dict(tomllib.loads(file)).resize == "crop"


def test_the_code_prints_what_it_says(capsys):
    (code,) = blocks(PAGE, "python")
    exec(compile(code, PAGE, "exec"), {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"  # (\(.*)$", code, re.MULTILINE)


def test_cropping_to_a_size_keeps_more_than_scaling_further_first():
    whole = np.zeros((256, 256, 3), np.uint8)
    whole[:16] = 255
    way = Preprocess(size=224, resize="crop", dtype="uint8", layout="nhwc")
    assert way([whole])[0, 0, 0, 0] == 255
    assert (whole[16:-16, 16:-16] == 0).all()


def test_the_command_of_the_page_gives_both_models_all_of_it(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    from PIL import Image

    from ebjr.demo import shipped

    for number in range(10):
        (tmp_path / "images" / f"{number}").mkdir(parents=True)
        pixels = np.full((40, 60, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}" / "one.png")
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "teacher.toml").write_text(blocks(PAGE, "toml")[0])
    command, look = (text.replace("\\\n", " ").split()[1:] for text in blocks(PAGE, "sh"))
    code, _, error = run(*command)
    assert code == 0, error
    assert "a guess" not in error
    code, printed, error = run(*look)
    assert code == 0, error
    assert "student.onnx mirror=true" in printed
