"""``ebjr serve``, and the seconds of a core that its threads took for what.

``python -m benchmarks.timed_server joint.toml times.json`` prints the server's address, and writes
when it is told to end. An observer is told of each batch in the thread that answered it: what that
thread has worked since the batch before is what a batch takes, gathering and answering included.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ebjr import JointConfig
from ebjr.serving.app import run_server
from ebjr.serving.pipeline import Batched, Observer, Ticket
from ebjr.serving.served import served_of
from ebjr.serving.service import Service


class CoreSeconds(Observer):
    """The rows and core seconds of each batch; the event loop's and how many requests it read."""

    def __init__(self) -> None:
        self.batches: dict[str, list[tuple[int, float]]] = {"student": [], "teacher": []}
        self.requests = 0
        self._last = threading.local()

    def submitted(self, ticket: Ticket) -> None:
        self.requests += 1

    def batch(self, batch: Batched) -> None:
        spent = time.thread_time()
        before = getattr(self._last, "spent", None)
        self._last.spent = spent
        if before is not None:
            self.batches[batch.stage].append((batch.rows, spent - before))


def main() -> None:
    """Serve, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("joint", type=Path)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args()
    seen = CoreSeconds()

    @asynccontextmanager
    async def watched(service: Service) -> AsyncIterator[None]:
        service.pipeline.observer.add(seen)
        began = time.thread_time()
        yield
        http = (time.thread_time() - began) / max(1, seen.requests)
        asked.output.write_text(json.dumps({"http": http, **seen.batches}))

    run_server(
        served_of(JointConfig.read(asked.joint), threads=1),
        port=0,
        beside=[watched],
        started=lambda url: print(url, flush=True),
    )


if __name__ == "__main__":
    main()
