"""Joules: read from counters that a test moves, estimated by hand, and of one kind or refused."""

from __future__ import annotations

import math
import os
import sys
import textwrap
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr import Cost
from ebjr.backends import load_model
from ebjr.evaluation.flops import count_flops
from ebjr.evaluation.power import (
    Load,
    Meter,
    Power,
    estimate_joules,
    find_joules,
    find_meter,
    measure_joules,
    runs_on_gpu,
)
from ebjr.evaluation.profile import profile

RANGE = 262_143_328_850
AMOUNTS = st.floats(0, 1e15)


def zone(root, name, called, energy=0, size=RANGE):
    """One energy counter as Linux shows it."""
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{called}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{size}\n")
    return folder


@pytest.fixture
def powercap(tmp_path):
    """Two packages, with the parts and the doubles that must not be counted beside them."""
    root = tmp_path / "powercap"
    zone(root, "intel-rapl:0", "package-0")
    zone(root, "intel-rapl:1", "package-1")
    zone(root, "intel-rapl:0:0", "core")
    zone(root, "intel-rapl:0:1", "dram")
    zone(root, "intel-rapl:2", "psys")
    zone(root, "intel-rapl-mmio:0", "package-0")
    (root / "intel-rapl").mkdir()
    return root


def burning(*folders, microjoules, size=RANGE):
    """A model whose every call moves the counters."""

    def model(batch):
        for folder in folders:
            file = folder / "energy_uj"
            file.write_text(str((int(file.read_text()) + microjoules) % (size + 1)))
        return batch

    return model


def test_all_packages_are_counted_and_their_parts_are_not(powercap):
    meter = find_meter(powercap=powercap)
    assert meter.source == "RAPL package-0, package-1"
    model = burning(*powercap.glob("intel-rapl*:*"), microjoules=8_000_000)
    power = measure_joules(model, np.ones((4, 2)), meter=meter, seconds=0)
    # 8 J of each of two packages, for four examples.
    assert power == Power(4.0, "measured", "RAPL package-0, package-1", batch_size=4)


def test_a_longer_run_gives_the_joules_of_one_example_all_the_same(powercap):
    model = burning(powercap / "intel-rapl:1", microjoules=500_000)
    meter = find_meter(powercap=powercap)
    assert measure_joules(model, np.ones((2, 1)), meter=meter, seconds=0.05).joules == 0.25


def test_a_counter_that_wraps_around_is_read_on(powercap):
    folder = powercap / "intel-rapl:0"
    (folder / "energy_uj").write_text(str(RANGE - 5_000_000))
    meter = find_meter(powercap=powercap)
    before = meter.read()
    (folder / "energy_uj").write_text("1000000")
    assert meter.joules_between(before, meter.read()) == 6.0


@given(size=st.integers(1, 2**64), start=st.integers(0, 2**64), used=st.integers(0, 2**64))
def test_joules_do_not_depend_on_where_a_counter_stood(size, start, used):
    start, used = start % size, used % size
    meter = Meter("a counter", lambda: (0,), (size,))
    end = start + used if start + used < size else start + used - size
    assert meter.joules_between((start,), (end,)) == pytest.approx(used / 1e6)


def spoil_missing(folder):
    (folder / "energy_uj").unlink()


def spoil_unreadable(folder):
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").mkdir()


def spoil_words(folder):
    (folder / "energy_uj").write_text("much")


def spoil_negative(folder):
    (folder / "energy_uj").write_text("-1")


def spoil_range(folder):
    (folder / "max_energy_range_uj").unlink()


def spoil_permission(folder):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "energy_uj").chmod(0)


SPOILS = [
    spoil_missing,
    spoil_unreadable,
    spoil_words,
    spoil_negative,
    spoil_range,
    spoil_permission,
]


@pytest.mark.parametrize("spoil", SPOILS)
def test_one_package_that_cannot_be_read_means_no_measurement(powercap, spoil):
    spoil(powercap / "intel-rapl:1")
    assert find_meter(powercap=powercap) is None


def test_a_machine_without_counters_has_no_meter(tmp_path):
    assert find_meter(powercap=tmp_path) is None
    assert find_meter(powercap=tmp_path / "nowhere") is None
    zone(tmp_path, "intel-rapl:0", "psys")
    assert find_meter(powercap=tmp_path) is None


def test_a_counter_that_stands_still_measures_nothing(powercap):
    meter = find_meter(powercap=powercap)
    assert measure_joules(lambda batch: batch, np.ones((2, 2)), meter=meter, seconds=0) is None


def test_a_counter_that_is_lost_on_the_way_measures_nothing(powercap):
    meter = find_meter(powercap=powercap)

    def model(batch):
        (powercap / "intel-rapl:0" / "energy_uj").unlink(missing_ok=True)
        return batch

    assert measure_joules(model, np.ones((2, 2)), meter=meter, seconds=0) is None


def test_a_models_own_error_is_not_taken_for_a_lost_counter(powercap):
    def model(batch):
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        measure_joules(model, np.ones((2, 2)), meter=find_meter(powercap=powercap))


@pytest.fixture
def pynvml(tmp_path, monkeypatch):
    """A library of the names that NVIDIA's has, for two GPUs that use 3 J between readings."""
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "pynvml.py").write_text(
        textwrap.dedent(
            """
            from itertools import count

            class NVMLError(Exception):
                pass

            energy = [count(5000, 3000), count(0, 3000)]

            def nvmlInit():
                pass

            def nvmlDeviceGetCount():
                return len(energy)

            def nvmlDeviceGetHandleByIndex(index):
                return index

            def nvmlDeviceGetTotalEnergyConsumption(handle):
                if energy[handle] is None:
                    raise NVMLError("Not Supported")
                return next(energy[handle])
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path / "library")
    import pynvml

    yield pynvml
    del sys.modules["pynvml"]


def test_gpus_are_counted_in_millijoules_and_with_the_packages(powercap, pynvml):
    meter = find_meter(gpu=True, powercap=powercap)
    assert meter.source == "RAPL package-0, package-1 + NVML GPU 0, GPU 1"
    model = burning(powercap / "intel-rapl:0", microjoules=1_000_000)
    assert measure_joules(model, np.ones((1, 1)), meter=meter, seconds=0).joules == 3 + 3 + 1


def test_a_gpu_is_measured_where_the_packages_cannot_be(pynvml):
    assert find_meter(gpu=True, powercap="/nowhere").source == "NVML GPU 0, GPU 1"


def test_the_packages_alone_are_no_measurement_of_a_model_on_a_gpu(powercap, pynvml):
    pynvml.energy[1] = None  # a GPU of before Volta
    assert find_meter(gpu=True, powercap=powercap) is None
    pynvml.energy.clear()
    assert find_meter(gpu=True, powercap=powercap) is None


def test_where_a_model_runs_is_told_by_its_device_or_its_providers(tmp_path):
    class On:
        def __init__(self, **about):
            self.__dict__.update(about)

        def __call__(self, batch):
            return batch

    import torch
    from nets import conv_net_graph

    graph = load_model(conv_net_graph(tmp_path / "net.onnx"))
    assert graph.providers == ("CPUExecutionProvider",)
    assert not any(map(runs_on_gpu, [graph, torch.nn.Linear(2, 2), On(device="cpu"), On()]))
    there = On(device=torch.device("cuda", 0))
    assert all(
        map(
            runs_on_gpu,
            [
                there,
                On(device="cuda:1"),
                On(providers=("CUDAExecutionProvider", "CPUExecutionProvider")),
                On(model=there),
                On(student=graph, teacher=there),
                torch.nn.Linear(2, 2, device="meta"),
            ],
        )
    )


def test_an_estimate_is_flops_and_bytes_times_their_constants():
    by_hand = 1e6 * 2.3 + (4000 / 8 + 30 + 2) * 160
    power = estimate_joules(1e6, weight_bytes=4000, input_bytes=30, output_bytes=2, batch_size=8)
    assert power.joules == pytest.approx(by_hand * 1e-12)
    assert (power.how, power.batch_size) == ("estimated", 8)
    assert power.source == "2.3 pJ per FLOP, 160 pJ per byte"


@given(flops=AMOUNTS, weights=AMOUNTS, size=st.integers(1, 4096), more=st.integers(1, 4096))
def test_a_larger_batch_never_costs_an_example_more(flops, weights, size, more):
    small = estimate_joules(flops, weight_bytes=weights, batch_size=size)
    large = estimate_joules(flops, weight_bytes=weights, batch_size=size + more)
    assert large.joules <= small.joules
    assert large.joules >= flops * 2.3e-12 * (1 - 1e-9)


AMOUNT_NAMES = ["weight_bytes", "input_bytes", "output_bytes"]


@pytest.mark.parametrize("name", ["flops", *AMOUNT_NAMES])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_an_estimate_of_a_negative_or_endless_amount_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number of at least 0, not"):
        estimate_joules(**{"flops": 1.0, name: value})


@pytest.mark.parametrize("size", [0, -3, math.nan])
def test_an_estimate_needs_a_batch(size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
        estimate_joules(1.0, batch_size=size)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_run_has_a_finite_time(seconds):
    with pytest.raises(ValueError, match="seconds must be a finite number of at least 0"):
        measure_joules(abs, np.ones(3), seconds=seconds)


def test_an_empty_batch_cannot_be_measured():
    with pytest.raises(ValueError, match="at least one example, but is empty"):
        measure_joules(abs, np.ones((0, 3)))


@pytest.mark.parametrize("joules", [-1.0, math.nan, math.inf])
def test_power_is_a_finite_number_of_one_of_two_kinds(joules):
    with pytest.raises(ValueError, match="joules must be a finite number of at least 0"):
        Power(joules, "measured", "by hand")
    with pytest.raises(ValueError, match="how must be one of measured, estimated, not 'guessed'"):
        Power(1.0, "guessed", "by hand")


def test_a_cost_takes_the_word_with_the_number():
    cost = Power(2.0, "measured", "a").add_to(Cost(flops=1.0))
    assert cost == Cost(flops=1.0, joules=2.0, joules_are="measured")


def ticking():
    """A meter that moves 1 J between readings."""
    energy = count(0, 1_000_000)
    return Meter("a counter", lambda: (next(energy),), (10**12,))


def same(batch):
    return batch


def test_all_loads_are_measured_or_all_are_estimated():
    batch = np.ones((2, 4))
    counted, unknown = Load(same, batch, flops=100, weight_bytes=64), Load(same, batch)
    assert [p.how for p in find_joules([counted, unknown], meter=ticking(), seconds=0)] == [
        "measured",
        "measured",
    ]
    energy = iter([0, 1, 1, 1, 1, 1])  # moves for the first load, stands still for the second
    tired = Meter("tired", lambda: (next(energy),), (10,))
    powers = find_joules([counted, counted], meter=tired, seconds=0)
    assert [power.how for power in powers] == ["estimated", "estimated"]
    # 32 bytes in and out of each example, and half of the weights.
    assert powers[0].joules == pytest.approx((100 * 2.3 + (32 + 32 + 32) * 160) * 1e-12)
    still = Meter("still", lambda: (0,), (10,))
    assert find_joules([counted, unknown], meter=still, seconds=0) == ()


def test_bytes_of_several_outputs_add_up():
    batch = np.ones((2, 4))

    def model(rows):
        return {"a": rows, "b": [rows, rows], "c": "words"}

    (power,) = find_joules([Load(model, batch, flops=0)], meter=Meter("still", lambda: (0,), (1,)))
    assert power.joules == pytest.approx(4 * 32 * 160e-12)


def test_a_profile_has_joules_for_each_batch_size(conv_net):
    model = load_model(conv_net, threads=1)
    still = Meter("still", lambda: (0,), (1,))
    report = profile(model, batch_sizes=(1, 4), seconds=0.01, meter=still)
    counted = count_flops(conv_net)
    assert [power.batch_size for power in report.powers] == [1, 4]
    one, four = report.powers
    assert one.how == four.how == "estimated"
    saved = counted.parameter_bytes * (1 - 1 / 4) * 160e-12
    assert one.joules - four.joules == pytest.approx(saved)
    measured = profile(model, batch_sizes=(1,), seconds=0.01, meter=ticking())
    assert [power.how for power in measured.powers] == ["measured"]
    assert measured.as_dict()["powers"][0]["source"] == "a counter"


def test_a_callable_without_a_counter_has_no_joules():
    still = Meter("still", lambda: (0,), (1,))
    assert profile(same, (1, 3), batch_sizes=[2], seconds=0, meter=still).powers == ()
