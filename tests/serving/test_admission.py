"""What requests hold is bounded for all clients, and one client leaves room for the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr.errors import Overloaded, TooLarge
from ebjr.serving.admission import SPARE, Admission


def admission_of(bytes=1e9, rows=1e9, seconds=1e9) -> Admission:
    return Admission(bytes=bytes, rows=rows, seconds=seconds)


def test_what_exceeds_a_limit_by_itself_is_never_taken():
    admission = admission_of(rows=100)
    with pytest.raises(
        TooLarge, match="may hold 100 rows, and this one needs 101: send it in parts"
    ):
        admission.hold("a").add(rows=101)
    assert admission.held == [0, 0, 0]
    admission.hold("a").add(rows=100)


def test_what_exceeds_a_limit_in_sum_is_never_taken_either():
    """Nothing is to be had by trying again, even if others hold something now."""
    admission = admission_of(bytes=100)
    admission.hold("other").add(bytes=20)
    with admission.hold("a") as hold:
        hold.add(bytes=45)
        with pytest.raises(
            TooLarge, match="may hold 100 bytes of requests, and this one needs 105"
        ):
            hold.add(bytes=60)
        with pytest.raises(Overloaded, match="65 bytes of requests, 45 of them this client's"):
            hold.add(bytes=30)


def test_what_exceeds_it_with_what_is_held_is_refused_until_there_is_room():
    admission = admission_of(rows=100)
    first = admission.hold("a")
    first.add(rows=90)
    with pytest.raises(Overloaded, match="hold 90 rows, 0 of them this client's"):
        admission.hold("b").add(rows=20)
    first.end()
    admission.hold("b").add(rows=20)
    assert admission.held == [0, 20, 0]


def test_a_client_that_holds_much_leaves_room_for_small_requests_of_others():
    admission = admission_of(rows=6400)
    greedy = [admission.hold("greedy") for _ in range(2)]
    greedy[0].add(rows=6400)
    for number in range(16):
        admission.hold(number).add(rows=100)
    assert admission.held[1] == SPARE * 6400
    with pytest.raises(Overloaded):
        admission.hold("one too many").add(rows=1)
    with pytest.raises(Overloaded):
        greedy[1].add(rows=1)


def test_beyond_half_of_it_no_client_holds_more_than_its_share():
    admission = admission_of(rows=100)
    greedy, modest = admission.hold("greedy"), admission.hold("modest")
    modest.add(rows=5)
    greedy.add(rows=45)
    with pytest.raises(Overloaded, match="45 of them this client's"):
        greedy.add(rows=10)
    modest.add(rows=40)


def test_an_estimate_of_time_alone_refuses_nobody_who_is_alone():
    admission = admission_of(seconds=60.0)
    alone = admission.hold("a")
    alone.add(seconds=1000.0)
    with pytest.raises(Overloaded):
        admission.hold("b").add(seconds=100.0)
    alone.end()
    admission.hold("b").add(seconds=100.0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 120), st.booleans()), max_size=60))
def test_what_is_held_never_exceeds_its_bound_and_all_of_it_is_given_back(steps):
    admission, open_ones = admission_of(rows=100, bytes=70), []
    for client, amount, ends in steps:
        hold = admission.hold(client)
        try:
            hold.add(rows=amount, bytes=amount / 2)
        except (Overloaded, TooLarge):
            hold.end()
        else:
            open_ones.append(hold)
        assert admission.held[1] <= SPARE * 100
        assert admission.held[0] <= SPARE * 70
        if ends and open_ones:
            open_ones.pop(0).end()
    for hold in open_ones:
        hold.end()
        hold.end()
        hold.add(rows=1)  # too late: it is over
    assert admission.held == [0, 0, 0]
