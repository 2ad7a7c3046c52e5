"""``ebjr serve``, and how long each batch took, of which requests.

``python -m benchmarks.timed_server joint.toml times.json`` prints the server's address, and writes
when it is told to end: ``http``, the core seconds of the event loop for a request, and
``batches``, each with its stage, rows, seconds, and the numbers of the requests that it was made
of, in the order in which they came.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ebjr import JointConfig
from ebjr.serving.app import run_server
from ebjr.serving.engine import Ticket
from ebjr.serving.events import Batched, Observer
from ebjr.serving.repository import Repository
from ebjr.serving.served import served_of


class Times(Observer):
    """Return the record of the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int, float, list[int]]] = []
        self.numbers: dict[int, int] = {}  # of the requests, by the identity of their tickets
        self._kept: list[Ticket] = []  # or another one could get its identity
        self.handlers = {Batched: self._batched}

    def _batched(self, batch: Batched) -> None:
        self._kept += batch.tickets
        numbers = [self.numbers.setdefault(id(one), len(self.numbers)) for one in batch.tickets]
        self.batches.append((batch.stage, batch.rows, batch.seconds, numbers))


def main() -> None:
    """Serve, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("joint", type=Path)
    parser.add_argument("output", type=Path)
    asked = parser.parse_args()
    seen = Times()

    @asynccontextmanager
    async def watched(repository: Repository) -> AsyncIterator[None]:
        (service,) = repository.services
        service.observers.add(seen)
        began = time.thread_time()
        yield
        service.engine.tell()
        http = (time.thread_time() - began) / max(1, len(seen.numbers))
        asked.output.write_text(json.dumps({"http": http, "batches": seen.batches}))

    run_server(
        served_of(JointConfig.read(asked.joint), threads=1),
        port=0,
        beside=[watched],
        started=lambda url: print(url, flush=True),
    )


if __name__ == "__main__":
    main()
