"""Clients take turns, each in the order of arrival; waiting is for batches that will be full."""

from __future__ import annotations

import itertools
import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebjr.serving import turns
from ebjr.serving.engine import Ticket
from ebjr.serving.row_queue import YIELD_SECONDS, Part, RowQueue, Said, alike, pick
from ebjr.serving.turns import FADING_SECONDS, MOST_ADDRESSES, Usage


def put(queue: RowQueue, rows: int, client: object = None, priority: int = 0) -> Ticket:
    ticket = Ticket(np.zeros((rows, 2)), client=client, priority=priority)
    queue.put(Part(ticket, range(rows)))
    return ticket


def taken(queue: RowQueue, most: int) -> list[tuple[Ticket, int]]:
    return [(part.ticket, row) for part in queue.take(most) for row in part.rows]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 16))
def test_batches_are_full_and_in_the_order_of_arrival(sizes, most):
    queue = RowQueue()
    tickets = [put(queue, size) for size in sizes]
    batches = []
    while queue.rows:
        batches.append(taken(queue, most))
    wanted = [(t, row) for t, size in zip(tickets, sizes, strict=True) for row in range(size)]
    assert list(itertools.chain(*batches)) == wanted
    assert {len(batch) for batch in batches[:-1]} <= {most}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=20),
    st.integers(1, 16),
)
def test_every_row_is_given_out_once_and_clients_alike(asked, most):
    queue = RowQueue()
    tickets = [put(queue, rows, client) for client, rows in asked]
    left = {client: sum(n for c, n in asked if c == client) for client in range(4)}
    found = []
    while queue.rows:
        waiting = {client for client, rows in left.items() if rows}
        batch = taken(queue, most)
        found += batch
        for client in waiting:
            own = sum(ticket.client == client for ticket, _ in batch)
            assert own >= min(left[client], most // len(waiting))
            left[client] -= own
    assert len(found) == len(set(found)) == sum(ticket.rows for ticket in tickets)


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 20), st.sampled_from([0, 1, 2, 3, 2**64 - 1])),
        min_size=1,
        max_size=20,
    ),
    st.integers(1, 16),
    st.data(),
)
def test_rows_of_a_lower_number_leave_first_and_may_share_a_batch(asked, most, data):
    queue = RowQueue()
    tickets = [put(queue, rows, client, priority) for client, rows, priority in asked]
    gone = data.draw(st.sets(st.sampled_from(tickets)))
    for ticket in gone:
        ticket.cancel()
    left = sum(ticket.rows for ticket in tickets if ticket not in gone)
    found = []
    while queue.rows:
        assert queue.age() > 0
        batch = taken(queue, most)
        found += batch
        left -= len(batch)
        assert len(batch) == most or not left
    levels = [max(1, ticket.priority) for ticket, _ in found]
    assert levels == sorted(levels)
    assert (left, queue.age()) == (0, 0.0)
    assert len(found) == len(set(found))


@given(st.integers(1, 20), st.integers(2, 16))
def test_an_address_gets_no_more_by_opening_connections(connections, most):
    queue = RowQueue()
    for port in range(connections):
        put(queue, 40, ("many", port))
    put(queue, 40, ("one", 0))
    whole = [ticket.client for ticket, _ in taken(queue, most)]
    assert len(whole) == most
    assert sum(address == "one" for address, _ in whole) >= most // 2
    rest = [ticket.client for ticket, _ in taken(queue, most * connections)]
    counts = [(rest + whole).count(("many", port)) for port in range(connections)]
    assert max(counts) - min(counts) <= most


def test_the_address_that_has_had_least_lately_goes_first():
    now = 0.0
    usage = Usage(lambda: now)
    queue = RowQueue(usage=usage)
    usage.add("much", 2.0)
    usage.add("little", 1.0)
    assert queue.least() == float("inf")
    for name in ("much", "little", "new"):
        put(queue, 1, name)
    assert queue.least() == 0
    assert [ticket.client for ticket, _ in taken(queue, 2)] == ["new", "little"]
    now += 5 * FADING_SECONDS
    usage.add("little", 0.1)  # more, by now, than what the other had before
    put(queue, 1, "little")
    assert [ticket.client for ticket, _ in taken(queue, 1)] == ["much"]


def test_a_batch_counts_for_the_addresses_of_its_rows():
    usage = Usage(lambda: 0.0)
    usage.share(3.0, [("a", 1), ("b", 3), ("a", 2)])
    assert (usage["a"], usage["b"], usage["c"]) == (1.5, 1.5, 0.0)


def test_usage_is_forgotten_in_time_and_stays_finite():
    now = 0.0
    usage = Usage(lambda: now)
    for step in range(3000):
        now += FADING_SECONDS
        usage.add(step % 2, 1.0 + step % 2)
        assert 0 < usage[0] < float("inf")
    assert usage[1] > usage[0]
    for number in range(3 * MOST_ADDRESSES):
        usage.add(("another", number), 1e-6)
    assert len(usage._of) <= MOST_ADDRESSES + 1
    assert usage[1] > usage[0] > usage[("another", number)]


def test_very_many_addresses_cost_neither_memory_nor_time(monkeypatch):
    powers, exp = [], math.exp
    monkeypatch.setattr(turns.math, "exp", lambda power: powers.append(power) or exp(power))
    usage = Usage(lambda: 0.0)
    usage.add("heavy", 2.0)
    for number in range(3 * MOST_ADDRESSES):
        usage.add(number, 1.0)
        assert usage[number] == 1.0
    assert len(usage._of) <= MOST_ADDRESSES + 1
    assert len(powers) < 10 * MOST_ADDRESSES
    assert usage["heavy"] == 2.0


def test_work_that_is_counted_while_usage_fades_fades_too(monkeypatch):
    now, others, exp = 0.0, [], math.exp

    def interrupted(power):
        nonlocal now
        if not others:  # another worker makes all usage fade meanwhile, or waits until it may
            now = 101 * FADING_SECONDS
            others.append(threading.Thread(target=usage.add, args=("other", 1.0)))
            others[0].start()
            others[0].join(0.2)
        return exp(power)

    usage = Usage(lambda: now)
    now = 99 * FADING_SECONDS
    monkeypatch.setattr(turns.math, "exp", interrupted)
    usage.add("one", 1.0)
    others[0].join()
    assert usage["one"] == pytest.approx(exp(-2))
    assert usage["other"] == 1.0


def test_rows_that_have_yielded_for_long_enough_yield_no_more():
    now = 100.0
    queue = RowQueue(clock=lambda: now)
    bulk = put(queue, 4, "a", 2)
    later = put(queue, 4, "a", 3)
    bulk.since, later.since = now - YIELD_SECONDS - 1, now - YIELD_SECONDS + 1
    urgent = put(queue, 8, "b")
    assert [ticket for ticket, _ in taken(queue, 4)] == [urgent, urgent, bulk, bulk]
    assert [ticket for ticket, _ in taken(queue, 4)] == [urgent, urgent, bulk, bulk]
    now += 2
    assert [ticket for ticket, _ in taken(queue, 4)] == [urgent, urgent, later, later]
    assert queue.rows == 4


def test_what_nobody_waits_for_is_not_given_out():
    queue = RowQueue()
    put(queue, 3).cancel()
    stays = put(queue, 4)
    put(queue, 9).cancel()
    assert [ticket for ticket, _ in taken(queue, 99)] == [stays] * 4
    assert queue.rows == 0


def test_a_batch_that_fills_in_time_is_waited_for():
    now = 0.0
    queue = RowQueue(60.0, clock=lambda: now)
    for _ in range(31):  # a row each millisecond
        now += 0.001
        put(queue, 1)
    assert not queue.ready(32)
    assert 0 < queue.holds() < float("inf")
    put(queue, 1)
    assert queue.ready(32)


def test_a_batch_that_will_not_fill_in_time_is_taken_as_it_is():
    now = 0.0
    queue = RowQueue(10.0, clock=lambda: now)
    for _ in range(3):  # a row each second
        now += 1.0
        put(queue, 1)
    assert queue.ready(32)
    assert RowQueue(10.0).holds() == float("inf")


def test_rows_of_one_form_are_one_batch():
    tickets = [Ticket(np.zeros((1, width))) for width in (2, 3, 2)]
    groups = alike([Part(ticket, range(1)) for ticket in tickets])
    assert [[part.ticket for part in group] for group in groups] == [
        [tickets[0], tickets[2]],
        [tickets[1]],
    ]


def test_rows_are_chosen_with_what_was_said_of_them():
    ticket = Ticket(np.arange(5.0))
    parts = [Part(ticket, range(2)), Part(ticket, np.array([4, 2]))]
    yes = np.array([True, False, True, True])
    logits, none = np.array([[0.0], [1.0], [4.0], [2.0]]), np.zeros(4, bool)
    said = Said(logits, none, stage=np.array([0, 1, 1, 0]))
    found = pick(parts, yes, said)
    assert [
        (part.rows.tolist(), part.said.output.tolist(), part.said.stage.tolist()) for part in found
    ] == [([0], [[0.0]], [0]), ([4, 2], [[4.0], [2.0]], [1, 0])]
    assert [(part.rows.tolist(), part.inputs.tolist()) for part in pick(parts, ~yes, said)] == [
        ([1], [1.0])
    ]
    again = pick(found, np.array([False, False, True]))  # of what each part knows itself
    assert [(part.rows.tolist(), part.said.stage.tolist()) for part in again] == [([2], [0])]
