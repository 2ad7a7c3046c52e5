"""Memory in a fresh process, latency within its budget, the whole profile, and every setting."""

import json
import threading
import time

import numpy as np
import pytest
from nets import save, zeros
from onnx import helper
from torch import nn

from ebjr.backends import load_model
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.profile import measure_latency, measure_peak_memory, profile, tune


def test_latency_stays_within_its_budget():
    start = time.perf_counter()
    slow, slower = measure_latency(
        lambda batch: time.sleep(0.001 * batch), lambda n: n, (1, 10), seconds=0.1
    )
    assert time.perf_counter() - start < 1
    assert slow.p50_seconds >= 0.001
    assert slower.p50_seconds >= 0.01
    assert slow.p50_seconds <= slow.p95_seconds
    assert slow.repeats > slower.repeats >= 1


def test_one_batch_is_timed_whatever_the_budget():
    (latency,) = measure_latency(lambda batch: batch, np.zeros, [2], seconds=0)
    assert latency.repeats == 1


@pytest.mark.parametrize("sizes", [(), (0,), (1, -2)])
def test_batch_sizes_are_at_least_one(sizes):
    with pytest.raises(ValueError, match="batch_sizes must be whole numbers of at least 1"):
        measure_latency(abs, np.zeros, sizes)


def test_peak_memory_holds_the_weights(tmp_path):
    side = 2000  # 16 MB of weights
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weights = [("w", np.ones((side, side), np.float32))]
    path = save(tmp_path / "net.onnx", nodes, [("x", ["n", side])], weights=weights)
    peak = measure_peak_memory(load_model(path, threads=1), zeros(1, side))
    if peak is None:
        pytest.skip("this system does not tell the memory of a process")
    assert 4 * side**2 < peak < 40 * side**2


def test_memory_does_not_depend_on_the_process_that_asks(conv_net):
    model, batch = load_model(conv_net, threads=1), zeros(1, 3, 16, 16)
    alone = measure_peak_memory(model, batch)
    ballast = np.ones(25_000_000)  # 200 MB
    assert measure_peak_memory(model, batch) < (alone or 0) + 100e6
    del ballast


def test_a_model_without_a_file_has_no_memory_figure():
    assert measure_peak_memory(load_model(nn.Linear(3, 2)), zeros(1, 3)) is None


def test_a_profile_is_json(conv_net):
    report = profile(load_model(conv_net, threads=1), batch_sizes=(1, 4), seconds=0.02)
    plain = json.loads(json.dumps(report.as_dict()))
    assert plain["name"] == "conv_net"
    assert plain["input_shape"] == [1, 3, 16, 16]
    assert plain["flops"] == count_flops(conv_net).flops
    assert [row["batch_size"] for row in plain["latencies"]] == [1, 4]
    assert plain["memory_batch_size"] == 4


def test_a_callable_is_timed_all_the_same():
    report = profile(lambda batch: batch, (1, 3), batch_sizes=[2], seconds=0)
    assert (report.flops, report.parameters, report.peak_memory_bytes) == (None, None, None)
    assert report.latencies[0].batch_size == 2


def test_a_path_must_be_loaded_before_it_is_profiled(conv_net):
    with pytest.raises(TypeError, match=r"load it with ebjr\.load_model"):
        profile(str(conv_net))


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
    with pytest.raises(ValueError, match=r"must be .*at least 1"):
        tune(lambda threads: np.negative, (1, 2), **wrong)


def test_the_command_says_which_flags_to_use(run, tmp_path):
    from tiny import write_linear

    write_linear(tmp_path / "net.onnx", np.eye(3))
    code, printed, error = run("profile", "net.onnx", "--tune", "--seconds", "0.01")
    assert code == 0, error
    assert "most examples per second: --threads" in printed
    code, _, error = run("profile", "net.pt2", "--tune")
    assert code == 2
    assert "--tune needs an .onnx file, not net.pt2" in error
