"""The autopilot holds what it is to hold, stays between its bounds, and comes to rest."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr import JointClassifier, Router
from ebjr.costs import Cost
from ebjr.model import Answer
from ebjr.serving.autopilot import Autopilot, Hold, Search
from ebjr.serving.engine import Engine
from ebjr.serving.events import Observers, Scored
from ebjr.serving.knob import Knob
from ebjr.serving.knob_control import KnobControl
from ebjr.serving.served import Served
from ebjr.serving.spending import Spending


def student(x):
    return np.stack([x, -np.abs(x)], axis=1)


def served(teacher=student, threshold=0.5, **about) -> Served:
    """The calibrated scores are uniform on [0, 1]: a threshold is its deferral rate."""
    known = {
        "operating_points": {"careful": 0.6, "quick": 0.1},
        "score_quantiles": tuple(np.linspace(0, 1, 101)),
        "costs": (Cost(flops=1e6), Cost(flops=1e7, dollars=1e-3)),
    }
    joint = JointClassifier(student, teacher, Router("max_logit", threshold))
    return Served(joint, **{**known, **about})


@pytest.mark.parametrize(
    ("text", "hold"),
    [
        ("p99=50ms", Hold("p99", 0.05)),
        ("p99.9=2s", Hold("p99.9", 2.0)),
        ("p50=800us", Hold("p50", 8e-4)),
        ("deferral_rate=0.2", Hold("deferral_rate", 0.2)),
        ("flops=5e7", Hold("flops", 5e7)),
        ("flops=1.5G", Hold("flops", 1.5e9)),
        ("dollars=0.0004", Hold("dollars", 4e-4)),
        ("dollars=4e-4", Hold("dollars", 4e-4)),
    ],
)
def test_what_is_held_is_read_and_written_alike(text, hold):
    assert Hold.of(text) == hold
    assert Hold.of(str(hold)) == hold


@pytest.mark.parametrize(
    "text",
    ["p99", "p99=50", "p9=1s", "latency=3ms", "deferral_rate=1.2", "deferral_rate=0", "flops=-1",
     "flops=3ms", "dollars=1M", "dollars=0", "p99=nan", "", "deferral_rate=20%"],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_in_one_sentence(text):
    with pytest.raises(ValueError, match=r"hold|held"):
        Hold.of(text)


def test_bounds_are_the_operating_points_with_room_around_a_rate():
    knob = Knob(served())
    search = Autopilot(Hold.of("p99=1s"), knob).search
    assert (search.low, search.high) == pytest.approx((0.1, 0.6))
    search = Autopilot(Hold.of("deferral_rate=0.4"), knob).search
    assert (search.low, search.high) == pytest.approx((0.1, 0.7))
    search = Autopilot(Hold.of("p99=1s"), knob, between=("quick", 0.5)).search
    assert (search.low, search.high) == pytest.approx((0.1, 0.5))


@pytest.mark.parametrize(
    ("hold", "between", "about", "says"),
    [
        ("deferral_rate=0.4", (0.5, 0.9), {}, "outside the bounds 0.5 to 0.9"),
        ("p99=1s", (0.5, 0.2), {}, "two rising deferral rates"),
        ("p99=1s", (0.5,), {}, "two deferral rates"),
        ("p99=1s", (False, True), {}, "a deferral rate or an operating point, not False"),
        ("p99=1s", ("slow", 1), {}, "no operating point 'slow'; there are: careful, quick"),
        ("p99=1s", None, {"score_quantiles": ()}, "needs a joint.toml with score quantiles"),
        ("flops=9M", None, {"costs": (Cost(), Cost(flops=1.0))}, "has the FLOPs of both models"),
        ("flops=9G", None, {}, "between 1e\\+06, the student alone, and 1.1e\\+07"),
        ("dollars=0.1", None, {"costs": (Cost(), Cost())}, "has the dollars of both models"),
        ("dollars=2", None, {}, "dollars can be held between 0, the student alone, and 0.001"),
    ],
)
def test_what_cannot_be_flown_is_refused_in_one_sentence(hold, between, about, says):
    with pytest.raises(ValueError, match=says):
        Autopilot(Hold.of(hold), Knob(served(**about)), between=between)


@st.composite
def responses(draw):
    """Any rising response of a measured rate to a commanded one, with slopes, steps and flats."""
    knots = draw(st.integers(1, 6))
    unit = st.floats(0, 1)
    xs = sorted(draw(st.lists(unit, min_size=knots, max_size=knots)))
    ys = sorted(draw(st.lists(unit, min_size=2 * knots, max_size=2 * knots)))

    def response(rate: float) -> float:
        place = int(np.searchsorted(xs, rate, side="right"))
        left = (0.0, 0.0) if place == 0 else (xs[place - 1], ys[2 * place - 1])
        right = (1.0, 1.0) if place == knots else (xs[place], ys[2 * place])
        width = right[0] - left[0]
        part = 0.0 if width <= 0 else (rate - left[0]) / width
        return left[1] + part * (right[1] - left[1])

    return response


def fly(response, target, search, windows, rows=None, rng=None) -> tuple[list[float], list[bool]]:
    """Rates of a search after each window, and whether it moved."""
    band = max(0.005, 0.05 * target)
    rates, moved = [], []
    n = deferred = 0.0
    for _ in range(windows):
        if rows is None:
            error, noise = target - response(search.rate), band
        else:
            deferred += rng.binomial(rows, response(search.rate))
            n += rows
            chance = 3 * math.sqrt(target * (1 - target) / n) + 1 / n
            error, noise = target - deferred / n, band + chance
        before = search.rate
        rates.append(search.step(error, noise))
        moved.append(rates[-1] != before)
        if moved[-1]:
            n = deferred = 0.0
    return rates, moved


@given(responses(), st.floats(0.02, 0.98), st.floats(0, 1), st.floats(0, 0.9))
@settings(max_examples=300)
def test_any_rising_response_is_met_and_then_left_alone(response, target, start, low):
    search = Search(start, low, 1.0)
    rates, moved = fly(response, target, search, 400)
    assert all(low <= rate <= 1.0 for rate in rates)
    assert not any(moved[-100:])
    rate, step = search.rate, 4 * (1 - low) / 1024
    band = max(0.005, 0.05 * target) + 1e-9
    met = abs(response(rate) - target) <= band
    too_low = rate == 1.0 and response(rate) < target
    too_high = rate == low and response(rate) > target
    jump = response(rate) <= target <= response(min(rate + step, 1.0))
    assert met or too_low or too_high or jump


@given(responses(), st.floats(0.05, 0.9), st.integers(0, 2**31), st.sampled_from([100, 1000]))
@settings(max_examples=100)
def test_noise_does_not_make_it_wander(response, target, seed, rows):
    search = Search(target, 0.0, 1.0)
    _, moved = fly(response, target, search, 300, rows, np.random.default_rng(seed))
    assert sum(moved[-100:]) <= 10


def test_a_rate_that_drifts_is_followed():
    search = Search(0.2, 0.0, 1.0)
    for shift in np.linspace(0, 0.5, 50):
        rates, _ = fly(lambda rate, by=shift: max(0.0, rate - by), 0.2, search, 20)
        assert abs(rates[-1] - shift - 0.2) <= 0.0101


def shifted(rng, n: int, by: float) -> np.ndarray:
    return rng.uniform(0, 1, n) ** (1 + by)


@pytest.mark.parametrize("by", [0.0, 2.0, -0.8])
def test_a_real_pipeline_is_held_at_its_rate_though_the_data_have_shifted(by):
    about = served()
    knob = Knob(about)
    pilot = Autopilot(Hold.of("deferral_rate=0.3"), knob, between=(0.01, 0.9))
    rng = np.random.default_rng(0)
    thresholds = []
    with Engine(about.joint, observer=pilot) as engine:
        pilot.begin("a test")
        for _ in range(80):
            engine.ask(shifted(rng, 500, by)).result(30)
            engine.tell()
            pilot.look()
            thresholds.append(knob.threshold)
        others = shifted(rng, 20_000, by)
    assert abs((others < knob.threshold).mean() - 0.3) <= 0.04
    assert len(set(thresholds[-20:])) <= 3
    assert all(0.01 <= threshold <= 0.9 for threshold in thresholds)


def test_flops_are_held_through_the_rate_that_they_are():
    about = served()
    pilot = Autopilot(Hold.of("flops=3M"), Knob(about))
    pilot.begin("a test")
    rng = np.random.default_rng(0)
    with Engine(about.joint, observer=pilot) as engine:
        engine.ask(shifted(rng, 5000, 0.0)).result(30)
        engine.tell()
        pilot.look()
    assert about.joint.router.threshold == pytest.approx(0.2)
    assert pilot.state()["measured"] == pytest.approx(3e6, rel=0.1)


@pytest.mark.parametrize("price", [5e-4, 1e-3, 2e-3])
def test_dollars_are_held_at_most_by_what_the_models_say_that_they_spend(price):
    """The teacher was calibrated at a thousandth, and deferred rows may be longer, or shorter."""

    def teacher(x):
        return Answer(student(x), spent=np.tile([9.0, 1.0, price], (len(x), 1)))

    def cheap(x):
        return Answer(student(x), spent=np.tile([9.0, 1.0, 1e-5], (len(x), 1)))

    about = served(teacher)
    about.joint.student = cheap
    pilot = Autopilot(Hold.of("dollars=3e-4"), Knob(about), between=(0.05, 0.9))
    pilot.begin("a test")
    assert pilot.state()["hold"] == "dollars=0.0003"
    rng = np.random.default_rng(0)
    with Engine(about.joint, observer=pilot) as engine:
        for _ in range(60):
            found = engine.ask(shifted(rng, 2000, 0.0)).result(30).answer
            engine.tell()
            pilot.look()
    assert 0.8 * 3e-4 <= found.spent[:, 2].mean() <= 1.05 * 3e-4
    assert pilot.state()["measured"] == pytest.approx(found.spent[:, 2].mean(), rel=0.2)


def test_rows_with_a_threshold_of_their_own_do_not_count():
    about = served()
    pilot = Autopilot(Hold.of("deferral_rate=0.3"), Knob(about))
    pilot.begin("a test")
    with Engine(about.joint, observer=pilot) as engine:
        engine.ask(np.ones(5000), threshold=2.0).result(30)
        engine.tell()
        pilot.look()
    assert pilot.measured is None


def test_a_student_that_falls_silent_does_not_sink_the_threshold_and_is_gone_on_with(caplog):
    """Silent rows are deferred at any threshold, and would count as if that were too high."""
    cut = [False]

    def moody(x):
        output = student(x)
        output[::2] = np.nan if cut[0] else output[::2]
        price = np.where(np.isnan(output[:, 0]), 2e-4, 1e-5)  # such rows were asked twice
        return Answer(output, spent=np.stack([x, x, price], axis=1))

    def teacher(x):
        return Answer(student(x), spent=np.tile([9.0, 1.0, 1e-3], (len(x), 1)))

    for hold in ("deferral_rate=0.3", "dollars=3e-4", "p99=1s"):
        cut[0], rng = False, np.random.default_rng(0)
        about = served(teacher)
        about.joint.student, about.joint._may_be_silent = moody, True
        knob, spending, observers = Knob(about), Spending(("student", "teacher")), Observers()
        control = KnobControl(knob, observers, lambda own=spending: own.silence)
        control.hold(hold, (0.05, 0.9), who="a test")
        observers.add(spending)

        def go(rounds, rows, engine, rng=rng, control=control):
            for _ in range(rounds):
                for ticket in [engine.ask(shifted(rng, rows // 10, 0.0)) for _ in range(10)]:
                    ticket.result(30)
                engine.tell()
                control.look()
            return control.pilot

        with Engine(about.joint, observer=observers) as engine:
            go(20, 1000, engine)
            control.hold(hold, (0.05, 0.9), who="a test")  # nothing is measured as yet
            cut[0], before = True, knob.threshold
            for rounds, rows in ((8, 20), (8, 1000)):  # before, and under the alarm
                pilot = go(rounds, rows, engine)
                assert knob.threshold >= before - 0.01, hold
            assert "the student gave no usable answer" in pilot.state()["still"]
            moves = knob.moves["autopilot"]
            go(8, 1000, engine)
            assert knob.moves["autopilot"] == moves
            cut[0] = False
            pilot = go(40, 1000, engine)
            assert pilot.state()["still"] is None
            assert abs(knob.threshold - before) <= 0.03
            control.hold("deferral_rate=0.6", (0.05, 0.9), who="a test")
            go(20, 1000, engine)
            assert knob.threshold == pytest.approx(0.6, abs=0.05)
    told = [record.getMessage() for record in caplog.records]
    assert sum(each.startswith("the autopilot pauses: ") for each in told) == 3
    assert told.count("the autopilot resumes") == 3


def test_requests_that_are_slow_as_the_student_is_silent_say_nothing_of_the_knob():
    knob = Knob(served())
    pilot = Autopilot(Hold.of("p99=50ms"), knob, between=(0.02, 0.6))
    pilot.begin("a test")
    before = knob.threshold
    for score, moves in ((np.nan, False), (0.0, True)):
        pilot._empty()
        each = np.full(60, score)
        pilot.observe(Scored(each, np.ones(60, bool), np.full(60, knob.threshold)))
        pilot._seconds.extend([0.4] * 60)
        pilot.look()
        assert (knob.threshold < before) == moves


def latencies(rng, rate: float, arrivals: float, seconds: float = 2.0) -> np.ndarray:
    """A queue in front of a teacher of 200 rows a second, beside a student of 2 ms."""
    n = rng.poisson(arrivals * seconds)
    at = np.sort(rng.uniform(0, seconds, n))
    found = np.full(n, 0.002)
    free = 0.0
    for row in np.flatnonzero(rng.random(n) < rate):
        free = max(free, at[row]) + 0.005
        found[row] += free - at[row]
    return found


def test_a_latency_is_held_while_the_load_rises_and_falls_without_swinging():
    about = served(threshold=0.6)
    knob = Knob(about)
    pilot = Autopilot(Hold.of("p99=50ms"), knob, between=(0.02, 0.6))
    pilot.begin("a test")
    rng = np.random.default_rng(3)
    rates, p99 = [], []
    for arrivals in (100, 600, 100):
        for _ in range(150):
            seconds = latencies(rng, pilot.search.rate, arrivals)
            p99.append(np.quantile(seconds, 0.99))
            pilot._seconds.extend(seconds.tolist())
            pilot.look()
            rates.append(pilot.search.rate)
    quiet, busy, again = (np.array(rates[k : k + 100]) for k in (50, 200, 350))
    assert (quiet == 0.6).all()
    assert 0.15 < busy.mean() < 0.33  # the teacher's capacity is a rate of 1/3
    assert busy.std() < 0.05
    assert np.median(p99[200:300]) < 0.06
    assert (again[50:] == 0.6).all()


def test_a_slow_teacher_is_asked_less_until_the_latency_holds():
    import time

    def slow(x):
        time.sleep(0.03)
        return student(x)

    about = served(slow)
    pilot = Autopilot(Hold.of("p99=10ms"), Knob(about), between=(0.0, 0.6))
    pilot.begin("a test")
    rng = np.random.default_rng(0)
    with Engine(about.joint, observer=pilot) as engine:
        for _ in range(25):
            for ticket in [engine.ask(rng.uniform(0, 1, 1)) for _ in range(60)]:
                ticket.result(30)
            engine.tell()
            pilot.look()
    assert pilot.search.rate < 0.05


def test_requests_that_waited_in_vain_are_slow_and_not_left_out():
    import asyncio
    import time

    from ebjr.errors import DeadlineExceeded
    from ebjr.protocol import InferRequest
    from ebjr.serving.service import Service

    def hung(x):
        time.sleep(0.2)
        return student(x)

    about = served(hung)
    about.joint.when_unavailable = "error"
    service = Service(about, hold="p99=20ms", between=(0.1, 0.6), chore_seconds=30)

    async def ask(number):
        row = np.full((1,), number % 10 / 10, np.float32)  # some are kept, and answered at once
        asked = InferRequest({"input": row}, parameters={"timeout_seconds": 0.1})
        try:
            await service.ask(service.question(asked), service.admission.hold(number))
        except DeadlineExceeded:
            return True
        return False

    async def ask_all():
        return await asyncio.gather(*(ask(number) for number in range(200)))

    service.start()
    before = service.control.pilot.search.rate
    try:
        expired = asyncio.run(ask_all())
    finally:
        service.stop()
    assert 20 < sum(expired) < 180
    service.engine.tell()
    service.control.look()
    assert service.control.pilot.search.rate < before


def test_what_moves_it_is_written_down_in_words(tmp_path):
    from ebjr.serving.journal import Journal

    about = replace(served(), operating_points={})
    with Journal(tmp_path / "audit.jsonl") as journal:
        pilot = Autopilot(Hold.of("deferral_rate=0.3"), Knob(about, journal))
        pilot.begin("127.0.0.1")
        threshold = np.full(1000, about.joint.router.threshold)
        pilot.observe(Scored(np.zeros(1000), np.ones(1000, bool), threshold))
        pilot.look()
    text = (tmp_path / "audit.jsonl").read_text()
    assert "127.0.0.1 asked to hold deferral_rate=0.3 between the rates 0.15 and 0.65" in text
    assert "deferral_rate was 1 over 1000 rows, and the target is deferral_rate=0.3" in text
    assert text.count('"who": "autopilot"') == 2
