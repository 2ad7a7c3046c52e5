"""The shipped CIFAR-10 pair as a ``joint.toml``, and a server of it for the time of a block."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ebjr import JointConfig, Outcomes, run_study
from ebjr.demo import shipped
from ebjr.demo.cifar10 import load as load_cifar10
from ebjr.joint_file import ModelEntry


def write_pair(folder: Path, deferral_rate: float | None = None) -> Path:
    """The ``joint.toml`` of the pair: as the demo calibrates it, or at another deferral rate."""
    entries = []
    for name in ("student.onnx", "teacher.onnx"):
        with shipped(name) as path:
            shutil.copy(path, folder / name)
        entries.append(ModelEntry.of_file(folder / name))
    goal = {} if deferral_rate is None else {"goal": "budget", "deferral_rate": deferral_rate}
    with shipped("outcomes.npz") as path:
        study = run_study(Outcomes.load(path), margin=0.0, **goal)
    JointConfig.of_study(*entries, study).save(folder / "joint.toml")
    return folder / "joint.toml"


def cifar_inputs(count: int) -> np.ndarray:
    """Test images as the pair takes them, (count, 3, 32, 32)."""
    images, _ = load_cifar10("test")
    return np.ascontiguousarray(images[:count].transpose(0, 3, 1, 2), np.float32) / 255


@contextmanager
def running_server(joint: Path, threads: int) -> Iterator[int]:
    """Start ``ebjr serve`` in a separate process: its port."""
    command = [sys.executable, "-m", "ebjr", "serve", str(joint), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        found = next(filter(None, (re.search(r":(\d+)\s*$", line) for line in server.stdout)))
        yield int(found[1])
    finally:
        server.terminate()
        server.wait()
