"""Rows are given out in the order of arrival, and waiting is for batches that will be full."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ebjr.serving.row_queue import RowQueue, alike


@dataclass(frozen=True)
class Rows:
    """Numbered rows, some of which nobody may wait for any more."""

    rows: range
    form: Any = None
    answered: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def cut(self, start: int, stop: int | None) -> Rows:
        return replace(self, rows=self.rows[start:stop])


def numbered(sizes: list[int]) -> list[Rows]:
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    return [Rows(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=20), st.integers(1, 16))
def test_batches_are_full_and_in_the_order_of_arrival(sizes, most):
    queue: RowQueue[Rows] = RowQueue()
    for part in numbered(sizes):
        assert queue.put(part, bounded=False)
    queue.close()
    batches = []
    while not queue.drained:
        batches.append([row for part in queue.take(most) for row in part.rows])
    assert [row for batch in batches for row in batch] == list(range(sum(sizes)))
    assert {len(batch) for batch in batches[:-1]} <= {most}


def test_what_nobody_waits_for_makes_room_and_is_not_given_out():
    queue: RowQueue[Rows] = RowQueue(limit=4)
    assert queue.put(Rows(range(3), answered=True), bounded=True)
    assert queue.put(Rows(range(4)), bounded=True)
    assert not queue.put(Rows(range(1)), bounded=True)
    queue.put(Rows(range(9), answered=True), bounded=False)
    assert [part.rows for part in queue.take(99)] == [range(4)]
    assert queue.rows == 0


def test_a_batch_that_fills_in_time_is_waited_for():
    times = iter(range(1_000))
    queue: RowQueue[Rows] = RowQueue(max_wait_seconds=60.0, clock=lambda: next(times) / 1e3)
    queue.put(Rows(range(1)), bounded=False)  # a row each millisecond

    def more() -> None:
        for _ in range(31):
            queue.put(Rows(range(1)), bounded=False)

    thread = threading.Timer(0.05, more)
    thread.start()
    assert sum(map(len, queue.take(32))) == 32
    thread.join()


def test_a_batch_that_will_not_fill_in_time_is_taken_as_it_is():
    times = iter(range(1_000))
    queue: RowQueue[Rows] = RowQueue(max_wait_seconds=10.0, clock=lambda: float(next(times)))
    queue.put(Rows(range(2)), bounded=False)  # two rows a second: 15 s to go
    assert sum(map(len, queue.take(32))) == 2


def test_rows_of_one_form_are_one_batch():
    parts = [Rows(range(1), form=form) for form in "aba"]
    assert [[part.form for part in group] for group in alike(parts)] == [["a", "a"], ["b"]]
