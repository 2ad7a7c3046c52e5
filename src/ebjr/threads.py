"""Threads: a bounded, ordered map, background threads and the number of cores."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any, TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

JITTER = Random()  # for waits: does not disturb a program's own seeded `random`


def in_order(
    function: Callable[[In], Out],
    items: Iterable[In],
    *,
    workers: int,
    ahead: int,
    name: str = "ebjr",
) -> Iterator[Out]:
    """Map on a few threads, with the results in the order of `items`.

    `items` is read in the caller's thread. At most `ahead` results are in flight or waiting.
    """
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def background(name: str, work: Callable[..., None], *given: Any) -> Thread:
    """Return a daemon thread, not started yet."""
    return Thread(target=work, args=given, name=f"ebjr-{name}", daemon=True)


def available_cores(quota: str | os.PathLike[str] = "/sys/fs/cgroup/cpu.max") -> int:
    """Return how many cores this process may use, by its affinity and its container's `quota`."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no quota file, or "max"
        allowed, period = Path(quota).read_text().split()
        own = min(own, max(1, int(allowed) // int(period)))
    return own


def shared_cores(work: int) -> int:
    """Return the cores for each of `work` concurrent jobs, at least one."""
    return max(1, available_cores() // work)
