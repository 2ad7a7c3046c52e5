"""All processes of a server, daemons included, found by a mark in their environment.

A process group or a tree misses what starts a session of its own or outlives its parent, as
BentoML's and Ray's workers do; the environment is inherited by all of them.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "CASCADE_MARK"
TICKS = os.sysconf("SC_CLK_TCK")


def marked(mark: str) -> Iterator[Path]:
    """The folders in /proc of the processes that carry a mark, ``NAME=value``."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended, or is somebody else's
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                yield folder


def seconds(mark: str) -> float:
    """Processor time of all marked processes so far, and of their children that have ended."""
    ticks = 0
    for folder in marked(mark):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


def busy() -> float:
    """Processor time that the whole machine has spent, and that its host has kept from it."""
    user, nice, system, _, _, *rest = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return (user + nice + system + sum(rest)) / TICKS


def kill(mark: str) -> None:
    """End what is left of them."""
    for folder in marked(mark):
        with suppress(OSError):
            os.kill(int(folder.name), signal.SIGKILL)


def resident(pid: int) -> float:
    """MiB that a process holds in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
