"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# as wide as tables need: xdist tells its workers that a terminal has 80 columns
os.environ["COLUMNS"] = "200"

# these machines are shared: how long an example takes says nothing about the code; and what judges
# a change draws the same examples each time
settings.register_profile(
    "shared",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared")


CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 120_000
"""Milliseconds that a page may take for anything."""


@pytest.fixture(params=["numpy", "torch"])
def asarray(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Make an array of each library in turn: what holds for NumPy holds for PyTorch."""
    if request.param == "numpy":
        return np.asarray
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch.as_tensor


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real images and weights that are not in the repository."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("EBJR_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real images and weights are absent; set EBJR_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory) -> Path:
    """A joint.toml of the tiny pair of colored images."""
    from tiny import write_joint

    return write_joint(tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="module")
def far_process():
    """A teacher in a process of its own, one for the tests of a file."""
    from far import FarTeacherProcess

    process = FarTeacherProcess()
    yield process
    process.kill()


@pytest.fixture
def far(far_process):
    """A teacher in a process of its own that behaves, until a test says otherwise."""
    far_process.behave("right")
    return far_process


@pytest.fixture(scope="module")
def browser():
    """Chromium, whose pages have patience: others have the cores at times."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: install Debian's chromium to test in a browser")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with (
        sync_api.sync_playwright() as play,
        play.chromium.launch(executable_path=str(CHROMIUM), args=flags) as opened,
    ):
        sync_api.expect.set_options(timeout=PATIENCE)
        yield opened


@pytest.fixture
def new_page(browser):
    """Make a page of a browser; options are Playwright's."""
    with ExitStack() as stack:

        def make(**options: Any) -> Any:
            page = stack.enter_context(browser.new_page(**options))
            page.set_default_timeout(PATIENCE)
            return page

        yield make


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in an empty folder: (exit code, standard output, standard error)."""
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    monkeypatch.chdir(tmp_path)

    from ebjr.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["ebjr", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call
