"""Tuning: every setting is measured, and the fastest comes first."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from ebjr.evaluation.tune import tune


def test_so_many_calls_are_in_work_as_is_said():
    lock, now, most = threading.Lock(), 0, 0

    def model(batch):
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        return batch

    tune(lambda threads: model, (1, 2), batch_sizes=[4], cores=4, seconds=0.03, rounds=1)
    assert most == 4


def test_every_split_of_the_cores_is_tried_and_the_best_comes_first():
    asked = []
    found = tune(
        lambda threads: asked.append(threads) or np.negative,
        (1, 2),
        batch_sizes=(1, 3),
        cores=6,
        seconds=0.001,
        rounds=1,
    )
    assert asked == [1, 2, 4, 6]
    splits = {(setting.threads, setting.overlap) for setting in found}
    assert splits == {(1, 1), (1, 2), (1, 4), (1, 6), (2, 1), (2, 2), (2, 3), (4, 1), (6, 1)}
    rates = [setting.examples_per_second for setting in found]
    assert rates == sorted(rates, reverse=True)
    assert {setting.batch_size for setting in found} == {1, 3}


@pytest.mark.parametrize("wrong", [{"cores": 0}, {"rounds": 0}, {"batch_sizes": ()}])
def test_numbers_that_are_not_positive_are_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        tune(lambda threads: np.negative, (1, 2), **wrong)


def test_the_command_says_which_flags_to_use(run, tmp_path):
    from tiny import write_linear

    write_linear(tmp_path / "net.onnx", np.eye(3))
    code, printed, error = run("profile", "net.onnx", "--tune", "--seconds", "0.01")
    assert code == 0, error
    assert "most examples per second: --threads" in printed
    code, _, error = run("profile", "net.pt2", "--tune")
    assert code == 2
    assert "threads are tuned for an .onnx file, not for net.pt2" in error
