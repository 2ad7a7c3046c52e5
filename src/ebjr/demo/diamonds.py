"""The prices of ggplot2's 53,940 diamonds, and the demo of regression on them.

The table comes from the repository of ggplot2, or else from a package that ships it.
"""

import csv
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.demo.fetch import Arrays, DataSet, Package, Website
from ebjr.demo.flow import Demo

NUMBERS = ("carat", "depth", "table", "x", "y", "z")
GRADES = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": tuple("JIHGFED"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}
"""From the worst to the best."""

FEATURES = (*NUMBERS, *GRADES)  # the columns of the inputs

TRAIN_SHARE = 0.7


def load(split: str = "test", **how: Any) -> Arrays:
    """`DataSet.load`: `FEATURES` (n, 9), grades as indices into `GRADES`, and (n,) log dollars."""
    features, price = DIAMONDS.load(split, **how)
    return features, np.log(price)


def decode_table(text: str) -> dict[str, Arrays]:
    """Read both splits from the CSV table: features and prices in dollars."""
    rows = list(csv.DictReader(io.StringIO(text)))
    missing = {*FEATURES, "price"} - set(rows[0] if rows else ())
    if missing:
        raise ValueError(f"the table has no column {min(missing)}")
    columns = [np.array([float(row[name]) for row in rows]) for name in NUMBERS]
    for name, grades in GRADES.items():
        unknown = {row[name] for row in rows} - set(grades)
        if unknown:
            raise ValueError(f"{name} must be one of {', '.join(grades)}, not {min(unknown)!r}")
        columns.append(np.array([float(grades.index(row[name])) for row in rows]))
    table = np.column_stack(columns).astype(np.float32)
    price = np.array([float(row["price"]) for row in rows])
    train = _is_train(table)
    return {"train": (table[train], price[train]), "test": (table[~train], price[~train])}


def decode_wheel(wheel: Path) -> dict[str, Arrays]:
    """Read both splits from the package's wheel, without running its code."""
    with zipfile.ZipFile(wheel) as archive:
        return decode_table(archive.read("plotnine/data/diamonds.csv").decode())


def _is_train(table: np.ndarray) -> np.ndarray:
    """Split by a hash of the features: the table has duplicates, which must share a split."""
    words = np.ascontiguousarray(table, "<f4").view("<u4").astype(np.uint64)
    place = np.zeros(len(words), np.uint64)
    for column in words.T:  # the Fowler-Noll-Vo hash, a word at a time
        place = (place ^ column) * np.uint64(0x100000001B3)
        place ^= place >> np.uint64(29)
    return (place >> np.uint64(11)).astype(np.float64) / 2**53 < TRAIN_SHARE


DIAMONDS = DataSet(
    name="the diamonds",
    key="diamonds",
    sources=(
        Website(
            name="the repository of ggplot2",
            url="https://raw.githubusercontent.com/tidyverse/ggplot2/main/data-raw/diamonds.csv",
            decode=lambda file: decode_table(file.read_text(encoding="utf-8")),
        ),
        Package(
            registry="Python",
            package="plotnine",
            version="0.15.9",
            sha256="36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd",
            decode=decode_wheel,
            total_bytes=1_573_070,
        ),
    ),
    sha256={
        "test": "95bf95efb2b9c1246cfdb837b2374db3f7f18d9e84da2eb42f3d724c20b20e7e",
        "train": "87cf6aee2ec86b6885dc4358c116bbacc369434fd8a686c10fbc8484fc6273ad",
    },
)

DEMO = Demo(
    task="regression",
    title="EBJR on diamonds: the shipped network and trees",
    data="the 16,206 diamonds that neither model was fitted to",
    load=lambda progress: load("test", progress=progress),
    batch_size=1024,
    goal={"goal": "match-teacher", "tolerance": 0.0017},
)
"""A small network and gradient-boosted trees: both take the table's columns and predict the
logarithm of the price. The tolerance is 2 % of the trees' RMSE, which is 0.088.
"""
