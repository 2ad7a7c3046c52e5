"""A teacher in a process of its own, for tests of what is far away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.request import Request, urlopen

import far_server
import numpy as np


def teach(x: np.ndarray) -> np.ndarray:
    """What the far teacher says."""
    return np.array(far_server.teach(x.tolist()), np.float32)


class FarTeacherProcess:
    """`far_server.py` on a port that it keeps when it is killed and started again."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("far_server.py")), str(self.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def server(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.server}/v2/models/teacher"

    def behave(self, how: str) -> None:
        with urlopen(Request(f"{self.server}/behave", how.encode(), method="PUT"), timeout=10):
            pass

    def seen(self) -> dict[str, int]:
        """How many requests and rows it was asked."""
        with urlopen(f"{self.server}/seen", timeout=10) as answer:
            return json.load(answer)
