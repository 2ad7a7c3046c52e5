"""Many deadlines, one timer."""

from __future__ import annotations

import asyncio

from ebjr.serving.deadlines import Deadlines


def test_a_wait_that_is_too_long_is_called_and_one_that_has_ended_is_not():
    async def wait():
        deadlines, called = Deadlines(), []
        done = asyncio.Event()
        ended = deadlines.begin(0.001, lambda: called.append("ended"))
        deadlines.begin(0.02, done.set)
        deadlines.begin(0.01, lambda: called.append("late"))
        deadlines.end(ended)
        deadlines.end(ended)
        await asyncio.wait_for(done.wait(), 10)
        return called

    assert asyncio.run(wait()) == ["late"]


def test_after_a_quiet_time_the_next_wait_is_called_too():
    async def wait():
        deadlines, done = Deadlines(), asyncio.Event()
        for _ in range(3):
            done.clear()
            deadlines.begin(0.001, done.set)
            await asyncio.wait_for(done.wait(), 10)

    asyncio.run(wait())
