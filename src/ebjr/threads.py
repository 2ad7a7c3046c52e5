"""A few threads: results in the order of what was asked, and no more in work than was said."""

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

JITTER = Random()  # of waits: what a program draws by its own seed is left alone


def in_order(
    function: Callable[[In], Out],
    items: Iterable[In],
    *,
    workers: int,
    ahead: int,
    name: str = "ebjr",
) -> Iterator[Out]:
    """Map on a few threads, with the results in the order of `items`, taken in the reader's thread.

    At most `ahead` of them are in work or finished before the reader takes the first.
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
    """A thread that does some work, not started yet; the process does not wait for it to end."""
    return Thread(target=work, args=given, name=f"ebjr-{name}", daemon=True)


def available_cores(quota: str | os.PathLike[str] = "/sys/fs/cgroup/cpu.max") -> int:
    """How many cores this process may use, by its affinity and by its container's `quota`."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # there is none, or it says "max"
        allowed, period = Path(quota).read_text().split()
        own = min(own, max(1, int(allowed) // int(period)))
    return own


def shared_cores(work: int) -> int:
    """The cores of each of so many pieces of work at once, one at least."""
    return max(1, available_cores() // work)
