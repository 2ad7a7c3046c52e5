"""The live risk by windows: each is judged by itself, and all together raise few false alarms."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ebjr.windows import RiskWindows


def test_windows_are_judged_each_by_itself_and_go_on_from_a_file():
    rng = np.random.default_rng(0)
    losses = [rng.random(700) < share for share in (0.005, 0.005, 0.4, 0.01, 0.01)]
    rows = np.concatenate(losses)
    audited, deferred = rng.random(len(rows)) < 0.5, rng.random(len(rows)) < 0.1
    how = {"audit_probability": 0.5, "audits": 500}
    whole, parted = RiskWindows(0.05, **how), RiskWindows(0.05, **how)
    whole.update(rows, "now", audited, deferred)
    for part in np.array_split(np.arange(len(rows)), 23):
        parted.update(rows[part], "now", audited[part], deferred[part])
        parted = RiskWindows.from_state(json.loads(json.dumps(parted.state())))
    assert whole.past == parted.past
    assert whole.state() == parted.state()
    ends = np.flatnonzero(audited)[499::500] + 1
    assert [window.rows for window in whole.past] == np.diff(ends, prepend=0).tolist()
    first, second, _ = whole.past
    assert (first.audited, first.deferred) == (500, deferred[: ends[0]].sum())
    assert (first.status, second.status) == ("kept", "broken")
    assert whole.broken == sum(window.status == "broken" for window in whole.past)
    seen = (rows * audited)[ends[0] : ends[1]]
    assert second.risk == pytest.approx(seen.mean() / 0.5)
    assert second.lower <= second.risk <= second.upper


def test_windows_of_a_promise_that_is_kept_are_hardly_ever_called_broken():
    broken = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        windows = RiskWindows(0.05, 0.1, audit_probability=0.5, audits=300)
        for _ in range(20):
            audited = rng.random(400) < 0.5
            windows.update(rng.random(400) < 0.05, "now", audited)
        assert len(windows.past) in range(11, 15)
        broken += windows.broken > 0
    assert broken <= 200 * 0.1 + 3 * (200 * 0.09) ** 0.5


def test_the_levels_of_all_windows_add_up_to_alpha():
    windows, spent = RiskWindows(0.05, 0.1, audits=1), 0.0
    for _ in range(500):
        spent += windows.state()["monitor"]["alpha"]
        windows.update(np.zeros(1), "now")
    assert 0.0995 < spent < 0.1
    assert len(windows.past) == RiskWindows.MOST


@pytest.mark.parametrize(
    "change",
    [{"format": "x"}, {"past": [{"rows": 1}]}, {"monitor": {}}, {"number": -1}, {"audits": None}],
)
def test_damaged_windows_are_refused(change):
    state = RiskWindows(0.05).state() | change
    with pytest.raises(ValueError, match="cannot resume the monitor"):
        RiskWindows.from_state(state)
