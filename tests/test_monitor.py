"""False alarms within alpha, breaks found, the same answers for any batches and after a restart."""

from __future__ import annotations

import json
import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import Legendre
from scipy.stats import binomtest

from ebjr import Outcomes, calibrate
from ebjr.betting import BLOCK
from ebjr.calibration.guarantee import PROMISES
from ebjr.monitor import LOSS_VALUES, DriftMonitor, RiskMonitor, draw_audits, excess, harm

RUNS = 1_000
ALPHA = 0.1


def coin(rng: np.random.Generator, n: int, p: float) -> np.ndarray:
    """Harm in a share p of n rows."""
    return (rng.random(n) < p).astype(float)


def ternary(rng: np.random.Generator, n: int, worse: float, better: float) -> np.ndarray:
    """An excess of 1 in a share `worse` of n rows, and of -1 in a share `better`."""
    return rng.choice([-1.0, 0.0, 1.0], p=[better, 1 - worse - better, worse], size=n)


# False alarms


def audited_run(rng: np.random.Generator) -> str:
    deferred = rng.random(1_500) < 0.3
    loss = np.where(deferred, 0.0, coin(rng, 1_500, 0.05 / 0.7))
    audited, chance = draw_audits(deferred, 0.2, rng)
    monitor = RiskMonitor(0.05, ALPHA, audit_probability=0.2)
    return monitor.update(np.where(audited, loss, np.nan), audited, chance)


def wandering_run(rng: np.random.Generator) -> str:
    mean = 0.05 * rng.random(1_500).round()  # at its limit, or 0
    return RiskMonitor(0.05, ALPHA).update((rng.random(1_500) < mean).astype(float))


KEPT = {
    "harm": lambda rng: RiskMonitor(0.05, ALPHA).update(coin(rng, 1_500, 0.05)),
    "harm that changes": wandering_run,
    "harm of which a fifth is audited": audited_run,
    "excess": lambda rng: RiskMonitor(0.0, ALPHA, promise="excess").update(
        ternary(rng, 1_500, 0.04, 0.04)
    ),
    "risk": lambda rng: RiskMonitor(0.2, ALPHA, promise="risk").update(rng.beta(0.5, 2.0, 1_500)),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_promise_that_is_just_kept_alarms_in_at_most_alpha_of_1000_runs(case):
    rng = np.random.default_rng(0)
    assert np.mean([KEPT[case](rng) == "broken" for _ in range(RUNS)]) <= ALPHA


@pytest.mark.parametrize(
    ("squeeze", "calibration"),
    [(np.array, 100), (np.array, 1_000), (np.round, 200), (np.zeros_like, 50)],
    ids=["few", "many", "ties", "one value"],
)
def test_scores_of_calibration_alarm_in_at_most_alpha_of_1000_runs(squeeze, calibration):
    rng = np.random.default_rng(1)

    def run() -> str:
        monitor = DriftMonitor(
            squeeze(rng.normal(size=calibration)), ALPHA, threshold=-0.5, rate_tolerance=0.0
        )
        return monitor.update(squeeze(rng.normal(size=1_200)))

    assert np.mean([run() == "drifted" for _ in range(RUNS)]) <= ALPHA


def test_a_deferral_rate_within_its_tolerance_does_not_alarm():
    rng = np.random.default_rng(2)
    rang = []
    for _ in range(200):
        monitor = DriftMonitor(rng.random(2_000), ALPHA, threshold=0.3, rate_tolerance=0.1)
        monitor.update(rng.random(3_000) * 0.3 / 0.38)  # 38 % are under 0.3
        rang.append(monitor.alarms["deferral_rate"] is not None)
    assert np.mean(rang) <= ALPHA


@pytest.mark.parametrize("promise", ["harm", "excess", "risk"])
def test_both_bounds_hold_at_all_times_while_the_risk_changes(promise):
    rng = np.random.default_rng(3)
    mean = np.concatenate([np.full(400, 0.02), np.full(400, 0.3), np.full(1_200, 0.1)])
    sofar = np.cumsum(mean) / np.arange(1, 2_001)
    missed = np.zeros(2)
    for _ in range(200):
        loss = {
            "harm": lambda: (rng.random(2_000) < mean) * 1.0,
            "excess": lambda: (rng.random(2_000) < mean + 0.1) - (rng.random(2_000) < 0.1) * 1.0,
            "risk": lambda: 2 * mean * rng.random(2_000),
        }[promise]()
        monitor = RiskMonitor(0.1, ALPHA, promise=promise)
        ever = np.zeros(2, bool)
        for stop in range(100, 2_001, 100):
            monitor.update(loss[stop - 100 : stop])
            ever |= [monitor.lower > sofar[stop - 1], monitor.upper < sofar[stop - 1]]
        missed += ever
    assert (missed / 200 <= ALPHA).all()


def test_audits_bound_the_risk_of_all_rows():
    rng = np.random.default_rng(4)
    deferred = rng.random(100_000) < 0.4
    loss = np.where(deferred, ternary(rng, 100_000, 0.01, 0.03), ternary(rng, 100_000, 0.05, 0.01))
    audited, chance = draw_audits(deferred, 0.25, rng)
    monitor = RiskMonitor(0.1, promise="excess", audit_probability=0.25)
    assert monitor.update(np.where(audited, loss, np.nan), audited, chance) == "kept"
    assert monitor.lower < 0.016 < monitor.upper
    assert monitor.risk == pytest.approx(0.016, abs=0.005)
    assert monitor.upper - monitor.lower < 0.03


# Breaks found


def rows_until_alarm(rng: np.random.Generator, quiet: int) -> int:
    monitor = RiskMonitor(0.01)
    monitor.update(coin(rng, quiet, 0.005))
    while monitor.alarm is None:
        monitor.update(coin(rng, 1_000, 0.02))
    return monitor.alarm - quiet


@pytest.mark.parametrize(
    ("quiet", "median", "most"), [(0, 1_500, 4_000), (20_000, 3_500, 6_500)], ids=["first", "later"]
)
def test_a_doubling_of_harm_is_found_within_the_stated_rows(quiet, median, most):
    rng = np.random.default_rng(5)
    rows = [rows_until_alarm(rng, quiet) for _ in range(100)]
    assert np.median(rows) < median
    assert np.quantile(rows, 0.9) < most


@pytest.mark.parametrize(
    ("live", "rows"),
    [
        (lambda rng: rng.normal(-1.0, 1.0, 2_000), 100),
        (lambda rng: rng.normal(0.3, 1.0, 2_000), 1_500),
        (lambda rng: rng.normal(0.0, 2.0, 2_000), 300),
        (lambda rng: rng.normal(0.0, 0.5, 2_000), 300),
        (lambda rng: np.full(2_000, np.nan), 30),
    ],
    ids=["lower", "a little higher", "wider", "narrower", "not a number"],
)
def test_scores_that_move_or_spread_are_found(live, rows):
    rng = np.random.default_rng(6)
    found = []
    for _ in range(20):
        monitor = DriftMonitor(rng.normal(size=5_000))
        monitor.update(live(rng))
        found.append(monitor.alarms["scores"] or math.inf)
    assert np.quantile(found, 0.9) <= rows


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_a_deferral_rate_that_leaves_its_tolerance_is_found_either_way(rate):
    rng = np.random.default_rng(7)
    monitor = DriftMonitor(rng.random(5_000), threshold=0.3, rate_tolerance=0.05)
    monitor.update(rng.random(2_000) * 0.3 / rate if rate > 0.3 else 0.3 - rate + rng.random(2_000))
    assert monitor.alarms["deferral_rate"] is not None
    assert monitor.deferral_rate == pytest.approx(rate, abs=0.05)
    assert "the deferral rate by row" in monitor.statement
    assert "0.3 at calibration" in monitor.statement.replace(
        f"{monitor.calibrated_rate:.4g}", "0.3"
    )


# References


def test_it_alarms_where_mapie_does_and_not_later():
    testing = pytest.importorskip("mapie.exchangeability_testing", reason="MAPIE is not installed")
    rng = np.random.default_rng(8)
    stream = np.concatenate([coin(rng, 300, 0.1), coin(rng, 700, 0.35)])
    # its bound spends a quarter of the level on one side
    theirs = testing.RiskMonitoring("accuracy", test_level=0.2, threshold=0.1, warn=False)
    theirs.update(np.ones(1_000), 1 - stream)
    late = np.flatnonzero(theirs.online_risk_lower_bound_sequence_history > 0.1)
    ours = RiskMonitor(0.1, alpha=0.05)
    assert ours.update(stream) == "broken"
    assert len(late)
    assert 300 < ours.alarm <= late[0] + 1
    assert theirs.online_risk_lower_bound_latest < ours.lower < stream.mean()


def test_neither_mapie_nor_we_alarm_where_the_promise_is_kept():
    testing = pytest.importorskip("mapie.exchangeability_testing", reason="MAPIE is not installed")
    stream = coin(np.random.default_rng(9), 1_000, 0.05)
    theirs = testing.RiskMonitoring("accuracy", test_level=0.2, threshold=0.1, warn=False)
    theirs.update(np.ones(1_000), 1 - stream)
    ours = RiskMonitor(0.1, alpha=0.05)
    assert ours.update(stream) == "kept"
    assert not theirs.harmful_shift_detected


def plain_capital(factors: list[np.ndarray], shares: np.ndarray) -> list[float]:
    """The game in a plain loop: every starting time and every bet has its own money."""
    money, capital = [0.5 * shares / shares.sum()], []
    for row, factor in enumerate(factors):
        k = row // BLOCK
        if row and row % BLOCK == 0:
            share = (1 / math.log2(k + 1) - 1 / math.log2(k + 2)) / 2
            money.append(share * shares / shares.sum())
        money = [pot * factor for pot in money]
        capital.append(sum(pot.sum() for pot in money))
    return capital


def test_the_risk_game_is_that_of_a_plain_loop():
    loss = np.concatenate(
        [coin(np.random.default_rng(10), n, p) for n, p in ((900, 0), (400, 1 / 8))]
    )
    size = np.geomspace(1e-3, 1e4, 32)
    factors = [(1 + size * x) / (1 + size * 0.05) for x in loss]
    capital = plain_capital(factors, 1 / (1 + np.log(size) ** 2))
    monitor = RiskMonitor(0.05, alpha=0.05)
    monitor.update(loss)
    assert monitor.evidence == pytest.approx(math.log10(max(0.5, *capital)))
    assert monitor.alarm == np.flatnonzero(np.array(capital) >= 20)[0] + 1


def test_the_drift_game_is_that_of_a_plain_loop_over_polya_s_urn():
    rng = np.random.default_rng(11)
    calibration, live = np.sort(rng.normal(size=63)), rng.normal(-0.2, 1.0, 700)
    edges = calibration[1::2][:31]  # 64 gaps, two to each of 32 groups
    integral = [Legendre.basis(degree).integ() for degree in (1, 2, 3)]
    urn, factors = np.full(32, 2), []
    for score in live:
        ends = 2 * np.concatenate([[0], np.cumsum(urn)]) / urn.sum() - 1
        k = np.searchsorted(edges, score)
        left, right = ends[k], ends[k + 1]
        means = np.array([(f(right) - f(left)) / (right - left) for f in integral])
        bets = np.outer([0.05, 0.2, 0.8], means).ravel()
        factors.append(1 + np.concatenate([bets, -bets]))
        urn[k] += 1
    monitor = DriftMonitor(calibration)
    monitor.update(live)
    capital = plain_capital(factors, np.ones(18))
    assert monitor.evidence["scores"] == pytest.approx(math.log10(max(0.5, *capital)))


def test_the_bound_of_two_valued_losses_covers_what_scipy_s_exact_interval_allows():
    loss = coin(np.random.default_rng(12), 2_000, 0.1)
    monitor = RiskMonitor(0.2, alpha=0.025)
    monitor.update(loss)
    once = binomtest(int(loss.sum()), 2_000).proportion_ci(0.95)  # holds at one time only
    assert monitor.lower < once.low < monitor.risk < once.high < monitor.upper
    assert monitor.upper - monitor.lower < 2.0 * (once.high - once.low)


def test_fractional_losses_are_bounded_nearly_as_well_as_exact_ones():
    rng = np.random.default_rng(13)
    loss = 0.2 + 0.02 * rng.random(5_000)
    monitor = RiskMonitor(0.5, promise="risk")
    monitor.update(loss)
    coarse = RiskMonitor(0.5)
    coarse.update((rng.random(5_000) < loss).astype(float))
    assert monitor.lower < 0.21 < monitor.upper
    assert monitor.upper - monitor.lower < 0.3 * (coarse.upper - coarse.lower)


# Any batches, a restart, constant memory


cuts = st.lists(st.integers(0, 1_300), max_size=6).map(sorted)


def facts(monitor: RiskMonitor | DriftMonitor) -> str:
    """Everything a monitor says and keeps."""
    return json.dumps([monitor.state(), monitor.statement, monitor.status, monitor.evidence])


def parts(n: int, where: list[int]) -> list[slice]:
    ends = [0, *where, n]
    return [slice(start, stop) for start, stop in pairwise(ends)]


@given(where=cuts, seed=st.integers(0, 99), promise=st.sampled_from(["harm", "excess", "risk"]))
@settings(max_examples=40, deadline=None)
def test_stopping_and_resuming_the_risk_monitor_anywhere_changes_nothing(where, seed, promise):
    rng = np.random.default_rng(seed)
    loss = {"harm": np.round, "excess": np.sign, "risk": np.array}[promise](rng.random(1_300))
    audited = rng.random(1_300) < 0.5
    chance = rng.uniform(0.5, 1.0, 1_300)
    whole = RiskMonitor(0.4, promise=promise, audit_probability=0.5)
    cut = RiskMonitor(0.4, promise=promise, audit_probability=0.5)
    whole.update(loss, audited, chance)
    for rows in parts(1_300, where):
        cut.update(loss[rows], audited[rows], chance[rows])
        cut = RiskMonitor.from_state(json.loads(json.dumps(cut.state())))
    assert facts(cut) == facts(whole)


@given(where=cuts, seed=st.integers(0, 99), ties=st.booleans())
@settings(max_examples=40, deadline=None)
def test_stopping_and_resuming_the_drift_monitor_anywhere_changes_nothing(where, seed, ties):
    rng = np.random.default_rng(seed)
    squeeze = np.round if ties else np.array
    scores = squeeze(rng.normal(size=200))
    scores[:40] = -np.inf
    live = squeeze(rng.normal(size=1_300))
    live[rng.random(1_300) < 0.2] = -np.inf
    whole = DriftMonitor(scores, threshold=-0.5)
    cut = DriftMonitor(scores, threshold=-0.5)
    whole.update(live)
    for rows in parts(1_300, where):
        cut.update(live[rows])
        cut = DriftMonitor.from_state(json.loads(json.dumps(cut.state(), allow_nan=False)))
    assert facts(cut) == facts(whole)


def test_a_saved_monitor_is_loaded_as_it_was(tmp_path):
    rng = np.random.default_rng(14)
    risk = RiskMonitor(0.02)
    risk.update(coin(rng, 700, 0.1))
    drift = DriftMonitor(rng.normal(size=100), threshold=math.inf)
    drift.update(rng.normal(size=700))
    for monitor in (risk, drift):
        monitor.save(tmp_path / "monitor.json")
        assert facts(type(monitor).load(tmp_path / "monitor.json")) == facts(monitor)
    assert [entry.name for entry in tmp_path.iterdir()] == ["monitor.json"]


def test_memory_does_not_grow_with_the_rows_seen():
    rng = np.random.default_rng(15)
    risk, drift = RiskMonitor(0.01), DriftMonitor(rng.normal(size=10_000))
    peaks = []
    for _ in range(2):
        for _ in range(4):
            batch = rng.normal(size=50_000)
            tracemalloc.start()
            risk.update((batch > 2.5).astype(float))
            drift.update(batch)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert max(peaks[4:]) < 1.1 * max(peaks[:4])
    assert len(json.dumps(drift.state())) < 10_000
    assert len(json.dumps(risk.state())) < 3_000


# Words


def test_the_statement_says_kept_undecided_or_broken():
    monitor = RiskMonitor(0.01)
    assert monitor.status == "undecided"
    assert monitor.statement == "Undecided: no rows yet."
    monitor.update(np.zeros(10))
    assert monitor.statement.startswith("Undecided: the average harm over 10 rows is 0, at least 0")
    monitor.update(np.zeros(990))
    assert monitor.statement.startswith("Kept: the average harm over 1,000 rows is at most 0.00")
    monitor.update(np.ones(50))
    assert monitor.statement.startswith("Broken: by row 1,0")
    monitor.update(np.zeros(100_000))
    assert monitor.status == "broken"
    assert monitor.upper < 0.01


def test_harm_is_a_kept_wrong_answer_that_the_teacher_had_right():
    student, teacher, targets = [0, 0, 0, 1, 0], [1, 1, 2, 1, 1], [1, 1, 1, 1, 2]
    deferred = [False, True, False, False, False]
    assert harm(student, teacher, deferred, targets).tolist() == [1, 0, 0, 0, 0]
    assert harm(student, teacher, deferred).tolist() == [1, 0, 1, 0, 1]


def test_excess_is_the_joint_error_minus_the_teacher_s():
    assert excess([0, 1, 1], [1, 0, 1], [1, 1, 1]).tolist() == [1, -1, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: harm([0, 1], [1, 1], [False, False], ["cat", "dog"]),
        lambda: harm(["cat", "dog"], [1, 1], [False, False]),
        lambda: excess([0, 1], [1, 1], ["cat", "dog"]),
    ],
)
def test_names_and_numbers_never_agree_and_are_refused(call):
    with pytest.raises(ValueError, match="labels must be all names or all whole numbers"):
        call()


def test_the_teachers_answer_to_a_row_may_be_unknown():
    assert harm([0, 1], [np.nan, 1], [True, False], [0, 1]).tolist() == [0, 0]


def test_deferred_rows_are_always_audited_and_kept_ones_at_the_given_rate():
    deferred = np.arange(50_000) < 10_000
    audited, chance = draw_audits(deferred, 0.1, np.random.default_rng(0))
    assert audited[:10_000].all()
    assert audited[10_000:].mean() == pytest.approx(0.1, abs=0.006)
    assert set(chance[:10_000]) == {1.0}
    assert set(chance[10_000:]) == {0.1}


def test_an_empty_batch_changes_nothing():
    risk, drift = RiskMonitor(0.1), DriftMonitor(np.arange(50.0))
    before = facts(risk), facts(drift)
    risk.update([])
    drift.update([])
    assert (facts(risk), facts(drift)) == before


# Bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: RiskMonitor(0.1, alpha=0.0), "alpha must lie between 0 and 1, not 0"),
        (lambda: RiskMonitor(0.1, alpha=math.nan), "alpha must lie"),
        (lambda: RiskMonitor(1.0), "tolerance of harm must be at least 0 and below 1"),
        (lambda: RiskMonitor(-0.1, promise="risk"), "tolerance of risk"),
        (lambda: RiskMonitor(math.nan), "tolerance of harm"),
        (lambda: RiskMonitor(0.1, promise="luck"), "harm, excess, risk"),
        (lambda: RiskMonitor(0.1, audit_probability=0), "audit_probability must lie"),
        (lambda: RiskMonitor(0.1).update([0.0, math.nan]), "nan in row 1"),
        (lambda: RiskMonitor(0.1).update([2.0]), "harm must lie between 0 and 1"),
        (lambda: RiskMonitor(0.1).update([[0.0]]), "one real number per row"),
        (lambda: RiskMonitor(0.1).update([0.0, 1.0], [True]), "of the same length"),
        (lambda: RiskMonitor(0.1).update([0.0], [1]), "audited must be bool"),
        (lambda: RiskMonitor(0.1, audit_probability=0.5).update([0.0]), "`audited` must be given"),
        (
            lambda: RiskMonitor(0.1, audit_probability=0.5).update([0.0], [True], [0.4]),
            r"between 0.5 \(audit_probability\) and 1",
        ),
        (lambda: DriftMonitor(np.zeros(19)), "at least 20 calibration scores, not 19"),
        (lambda: DriftMonitor(np.zeros(30), alpha=1.0), "alpha must lie"),
        (lambda: DriftMonitor(np.zeros(30), rate_tolerance=-1), "rate_tolerance must lie"),
        (lambda: DriftMonitor(np.zeros(30), threshold=math.nan), "threshold must be a number"),
        (lambda: DriftMonitor(np.zeros(30)).update(["a"]), "one real number per row"),
        (lambda: draw_audits([True], 0.0, np.random.default_rng(0)), "audit probability must lie"),
        (lambda: harm([0, 1], [0], [False, True]), "same length"),
        (lambda: excess([0], [0], [0, 1]), "same length"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_failed_update_leaves_the_monitor_as_it_was():
    monitor = RiskMonitor(0.1)
    monitor.update(np.zeros(5))
    before = facts(monitor)
    with pytest.raises(ValueError, match="nan in row 2"):
        monitor.update([0.0, 1.0, math.nan])
    assert facts(monitor) == before


def damaged(state: dict) -> list[dict]:
    """The same state with each entry in turn missing, or nonsense."""
    broken = [{k: v for k, v in state.items() if k != name} for name in state]
    for value in ("nonsense", -1.5, [], {}, [1.5, None]):
        broken += [{**state, name: value} for name in state if state[name] != value]
    return broken


@pytest.mark.parametrize("kind", ["risk", "drift"])
def test_a_damaged_state_is_refused_in_one_sentence(kind):
    monitor = RiskMonitor(0.1) if kind == "risk" else DriftMonitor(np.arange(50.0), threshold=25.0)
    monitor.update(np.zeros(100))
    for state in damaged(monitor.state()):
        if state.get("threshold") == -1.5:
            continue  # a threshold like any other
        with pytest.raises(ValueError, match="cannot resume the monitor"):
            type(monitor).from_state(state)
    with pytest.raises(ValueError, match="cannot resume the monitor"):
        type(monitor).from_state([])


def test_a_state_of_something_else_is_refused(tmp_path):
    drift = DriftMonitor(np.arange(50.0))
    with pytest.raises(ValueError, match="the format is 'ebjr-drift-monitor-1'"):
        RiskMonitor.from_state(drift.state())
    (tmp_path / "cut.json").write_text(json.dumps(drift.state())[:50])
    with pytest.raises(ValueError, match="is not JSON"):
        DriftMonitor.load(tmp_path / "cut.json")
    with pytest.raises(FileNotFoundError, match="there is no monitor file"):
        DriftMonitor.load(tmp_path / "absent.json")


def test_a_certificates_promise_can_be_watched():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 2000)
    clear = 4 * np.eye(3)[targets]
    table = Outcomes(clear + rng.normal(0, 3, clear.shape), clear, targets)
    for promise in ("harm", "excess"):
        point = calibrate(table, tolerance=0.05, delta=0.1, score="margin", promise=promise)
        monitor = RiskMonitor(point.certified.tolerance, promise=point.certified.promise)
        assert monitor.update(np.zeros(1000)) == "kept"
    assert set(LOSS_VALUES) <= set(PROMISES)


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_drift_is_watched_alike_from_what_a_file_kept_of_the_scores(threshold):
    rng = np.random.default_rng(0)
    scores = np.concatenate([[-np.inf, np.nan], rng.integers(0, 9, 500) / 8])  # with many ties
    live = rng.integers(0, 9, 3000) / 8
    first = DriftMonitor(scores, threshold=threshold)
    second = DriftMonitor.of_reference(first.reference)
    first.update(live)
    second.update(live)
    assert first.state() == second.state()
    with pytest.raises(ValueError, match="edges is missing"):
        DriftMonitor.of_reference({"n": 3})
