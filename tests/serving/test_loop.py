"""Many deadlines, one timer; many calls, one bell."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

from ebjr.serving.loop import Bell, Deadlines


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


def test_calls_of_threads_are_done_in_the_loop_and_none_is_forgotten():
    async def count():
        bell, done, all_done = Bell(), [], asyncio.Event()
        home = threading.get_ident()

        def call(number):
            done.append((number, threading.get_ident() == home))
            if len(done) == 4000:
                all_done.set()

        def post():
            for number in range(1000):
                bell.post(partial(call, number))
                if number % 7 == 0 or number == 999:
                    bell.ring()

        bell.here()
        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(all_done.wait(), 20)
        bell.mute()
        bell.post(lambda: done.append("here"))
        bell.ring()
        assert done[-1] != "here"
        bell.read()
        return done

    done = asyncio.run(count())
    assert done[-1] == "here"
    assert all(own for _, own in done[:-1])
    assert sorted(number for number, _ in done[:-1]) == sorted([*range(1000)] * 4)
