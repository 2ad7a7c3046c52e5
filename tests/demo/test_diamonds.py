"""The table of diamonds: what its columns mean, and which rows are for training."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

from ebjr.demo import diamonds
from ebjr.demo.fetch import DataUnavailable

HEAD = '"carat","cut","color","clarity","depth","table","price","x","y","z"\n'
ROW = '0.23,"Ideal","E","SI2",61.5,55,326,3.95,3.98,2.43\n'


def table(n=500):
    rng = np.random.default_rng(0)
    rows = [ROW.replace("0.23", f"{carat:.2f}") for carat in rng.uniform(0.2, 5, n)]
    return HEAD + "".join(rows)


def test_the_columns_are_numbers_and_grades_from_the_worst_to_the_best():
    splits = diamonds.decode_table(HEAD + ROW)
    (features,) = np.concatenate([inputs for inputs, _ in splits.values()])
    (price,) = np.concatenate([targets for _, targets in splits.values()])
    named = dict(zip(diamonds.FEATURES, features.tolist(), strict=True))
    assert named["carat"] == pytest.approx(0.23)
    assert (named["cut"], named["color"], named["clarity"]) == (4, 5, 1)
    assert price == 326


def test_seven_in_ten_are_for_training_and_equal_diamonds_stay_together():
    text = table()
    once = diamonds.decode_table(text)
    twice = diamonds.decode_table(text + text.removeprefix(HEAD))
    assert len(once["train"][0]) / 500 == pytest.approx(0.7, abs=0.06)
    for split in ("train", "test"):
        assert len(twice[split][0]) == 2 * len(once[split][0])
        np.testing.assert_array_equal(twice[split][0][: len(once[split][0])], once[split][0])


def test_the_site_and_the_wheel_give_the_same(tmp_path):
    (tmp_path / "d.csv").write_text(table(), encoding="utf-8")
    with zipfile.ZipFile(tmp_path / "d.whl", "w") as wheel:
        wheel.writestr("plotnine/data/diamonds.csv", table())
    one = diamonds.DIAMONDS.sources[0].decode(tmp_path / "d.csv")
    other = diamonds.decode_wheel(tmp_path / "d.whl")
    for split in ("train", "test"):
        for left, right in zip(one[split], other[split], strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table has no column carat"),
        (HEAD.replace('"price",', "") + ROW, "the table has no column price"),
        (HEAD + ROW.replace("Ideal", "Square"), "cut must be one of Fair, Good"),
    ],
)
def test_another_table_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        diamonds.decode_table(text)


@pytest.mark.network
def test_the_real_table_has_53940_diamonds():
    try:
        (train, _), (test, log_price) = diamonds.load("train"), diamonds.load("test")
    except DataUnavailable as error:
        pytest.skip(str(error))
    assert len(train) + len(test) == 53_940
    assert 5.7 < log_price.min() < log_price.max() < 9.9
    assert not {row.tobytes() for row in train} & {row.tobytes() for row in test}
