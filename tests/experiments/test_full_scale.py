from __future__ import annotations

import math
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from experiments import full_scale  # noqa: E402
from experiments.data import made_up  # noqa: E402
from experiments.full_scale import Recipe, Unfinished, train, varied  # noqa: E402
from experiments.nets import densenet_bc  # noqa: E402

RECIPE = Recipe(2, 4, 0.1)


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return densenet_bc(10, 2, 3)


def weights(trained: torch.nn.Module) -> list[np.ndarray]:
    return [value.numpy() for value in trained.state_dict().values()]


@pytest.mark.parametrize("flags", [[], ["--short", "--fast"]])
def test_a_quick_run_trains_and_records_both_networks(flags, capsys):
    full_scale.main(["cifar10", "--quick", *flags])
    said = capsys.readouterr().out
    assert "student: " in said
    assert "the paper's 94.76 %" in said


@pytest.mark.parametrize("name", ["caltech256", "imagenet"])
def test_a_quick_run_of_timms_networks(name, capsys):
    pytest.importorskip("timm", reason="timm is not installed")
    full_scale.main([name, "--quick", "--pretrained"])
    assert "teacher: " in capsys.readouterr().out


def test_without_timm_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit, match="pip install timm"):
        full_scale.main(["caltech256", "--quick", "--pretrained"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cifar100"], "give --data"),
        (["imagenet", "--quick", "--short"], "--short is for CIFAR"),
        (["cifar10", "--quick", "--pretrained"], "leave --pretrained out"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(given, words, capsys):
    with pytest.raises(SystemExit):
        full_scale.main(given)
    assert words in capsys.readouterr().err


def test_a_run_that_was_ended_in_an_epoch_gives_the_weights_of_one_that_was_not(tmp_path):
    data = made_up(32, 3, 18)  # five batches an epoch, the last smaller
    whole = weights(train(net(), data, RECIPE, tmp_path / "whole.pt", "cpu"))
    ended = 0
    while True:
        try:
            parts = train(net(), data, RECIPE, tmp_path / "parts.pt", "cpu", ends=-math.inf)
            break
        except Unfinished:
            ended += 1
    assert ended == 10
    for one, other in zip(whole, weights(parts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_another_recipe_began_is_not_gone_on_with(tmp_path):
    data, file = made_up(32, 3, 4), tmp_path / "net.pt"
    train(net(), data, RECIPE, file, "cpu")
    with pytest.raises(ValueError, match="give the flags that it was begun with"):
        train(net(), data, Recipe(3, 4, 0.1), file, "cpu")


def test_the_time_that_is_given_ends_a_run_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(full_scale, "TRAINED", tmp_path)
    monkeypatch.setattr(full_scale, "read", lambda *_: made_up(32, 10, 4))
    given = ["cifar10", "--data", str(tmp_path), "--epochs", "1", "--batch-size", "2"]
    with pytest.raises(SystemExit, match="the same command goes on from there"):
        full_scale.main([*given, "--minutes", "0"])
    full_scale.main(given)
    assert (tmp_path / "outcomes" / "cifar10.npz").exists()


def test_images_are_shifted_and_flipped_each_in_its_own_way():
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8) + 1
    for seed in range(8):
        made = varied(images, 2, torch.Generator().manual_seed(seed))
        assert made.shape == images.shape
        for one, source in zip(made, images, strict=True):
            padded = torch.nn.functional.pad(source, (2, 2, 2, 2))
            cuts = [
                padded[:, row : row + 8, column : column + 8]
                for row in range(5)
                for column in range(5)
            ]
            assert any(torch.equal(one, cut) or torch.equal(one, cut.flip(-1)) for cut in cuts)
