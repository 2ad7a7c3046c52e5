"""Many calls, one bell."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

from ebjr.serving.loop import Bell


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

        bell.mute()
        bell.read()
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
