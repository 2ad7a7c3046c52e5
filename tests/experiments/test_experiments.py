from __future__ import annotations

import json
import re
import runpy
from argparse import Namespace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from ebjr import Outcomes
from experiments import choices, data, frame, intervals, table
from experiments.fig3_ablation import ROUTERS, routed
from experiments.frame import Run
from experiments.pairs import shipped_pair

FOLDER = Path(table.__file__).parent


@pytest.fixture(scope="module")
def some() -> Outcomes:
    """A part of the shipped pair's outcomes."""
    return shipped_pair().split(0.3, seed=0)[0]


def test_the_readme_is_what_the_result_files_say():
    assert table.README.read_text() == table.page(), "run python -m experiments.table"


def test_a_score_and_a_rival_take_ten_lines_each(some, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (FOLDER / "head.md").read_text(), re.DOTALL)
    (tmp_path / "mine.py").write_text(code)

    routers = runpy.run_path(str(tmp_path / "mine.py"))["ROUTERS"]
    saved = {
        name: routed(some, router, splits=1)["times_fewer_flops"]
        for name, router in {**routers, "random": ROUTERS["random"]}.items()
    }
    assert min(saved["centered maximum"], saved["linear SVM"]) > saved["random"]


ONCE = ("edge_cloud", "table1_latency")
REPEATED = [name for name in table.ORDER if name not in ONCE]
"""Not those that time answers."""


@pytest.fixture(scope="module")
def turns(tmp_path_factory) -> list[Path]:
    """Two folders, each with results and choices of its own: what is in one is made anew."""
    return [tmp_path_factory.mktemp(turn) for turn in ("first", "second")]


@pytest.mark.parametrize("name", [*REPEATED, "rivals_cifar10"])
def test_a_quick_run_needs_nothing_but_what_is_shipped_and_gives_the_same_numbers_twice(
    name, turns, monkeypatch
):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    script, found = import_module(f"experiments.{name}"), []
    monkeypatch.setattr(intervals, "RESAMPLES", 200)  # a tenth, to be quick
    for folder in turns:
        monkeypatch.setattr(frame, "RESULTS", folder)
        monkeypatch.setattr(choices, "KEPT", folder / "choices")
        run = Run(name, "Figure 0", quick=True, asked=Namespace(add=None))
        result = json.loads(run.save(script.main(run)).read_text())
        found.append([result[key] for key in ("rows", "figures", "pictures", "caption")])
    assert found[0] == found[1]
    assert found[0][0]


def test_a_run_that_was_ended_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    made = []

    def make(value):
        made.append(value)
        return {"value": np.float64(value)}

    ended = Run("short", "Figure 0")
    ended.step("one", lambda: make(1))
    resumed = Run("short", "Figure 0")
    assert resumed.step("one", lambda: make(1)) == {"value": 1.0}
    resumed.step("two", lambda: make(2))
    path = resumed.save({})

    assert made == [1, 2]
    assert json.loads(path.read_text())["figure"] == "Figure 0"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["short.json"]


def test_steps_of_another_script_or_of_other_options_are_not_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    Run("short", "Figure 0").step("one", lambda: 1)
    assert Run("short", "Figure 0", source="another").step("one", lambda: 2) == 2
    asked = Namespace(add="mine.py")
    assert Run("short", "Figure 0", asked=asked).step("one", lambda: 3) == 3


def test_every_result_says_command_seed_commit_and_machine():
    for name, result in table.results().items():
        assert {"command", "seed", "commit", "machine", "figure", "minutes"} <= set(result), name
        assert result["commit"] != "unknown"
        for picture in result["pictures"]:
            assert (FOLDER / result["folder"] / picture).exists()


def test_cifar_is_read_in_its_binary_form(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 3, 32, 32), np.uint8)
    for name, skip, label in (("cifar10", 0, [7, 1, 0, 2]), ("cifar100", 1, [99, 1, 0, 2])):
        heads = np.column_stack([*np.full((skip, 4), 5), label]).astype(np.uint8)
        rows = np.concatenate([heads, pixels.reshape(4, -1)], axis=1)
        rows.tofile(tmp_path / {"cifar10": "test_batch.bin", "cifar100": "test.bin"}[name])

        images = data.read(name, tmp_path, "test", 32)
        (first, labels), _ = images.batches(3)
        assert labels.tolist() == label[:3]
        assert np.array_equal(first, data.normalized(pixels[:3]))


def test_caltechs_folders_are_cut_in_two_without_its_clutter(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setattr(data, "CALTECH_TRAINING", 2)
    for name in ("001.ak47", "002.american-flag", data.CLUTTER):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((20, 30, 3), 50 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")

    parts = [data.read("caltech256", tmp_path, split, 8) for split in ("train", "test")]
    assert [sorted(part.labels.tolist()) for part in parts] == [[0, 0, 1, 1], [0, 1]]
    (pixels, _), *_ = parts[1].batches(1)
    assert pixels.shape == (1, 3, 8, 8)


def test_a_network_of_the_paper_costs_what_table_1_says_within_three_percent():
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from ebjr.evaluation.flops import count_flops
    from experiments.nets import PAPER

    net = PAPER["cifar10"].student  # the others: results/table1.json
    flops = count_flops(net.make(), (1, 3, net.size, net.size)).flops
    assert flops == pytest.approx(net.paper_flops, rel=0.03)
