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

# tables need the width; workers of pytest-xdist report 80 columns
os.environ["COLUMNS"] = "200"

# Shared machines make an example's time meaningless, so there is no deadline. CI draws the same
# examples each time, so that a change is judged alike twice.
settings.register_profile(
    "shared",
    deadline=None,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("shared")


LONGEST = (
    "test_ray_serve.py",
    "test_within.py",
    "test_recalibration.py",
    "test_experiments.py",
    "test_table_rows.py",
    "test_docs_pages.py",
)
"""Files that start first, so that no core waits at the end for the last of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the longest files first."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


CHROMIUM = Path("/usr/bin/chromium")
PATIENCE = 120_000
"""Milliseconds that any step in a browser may take."""


@pytest.fixture(params=["numpy", "torch"])
def asarray(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Make arrays of NumPy, then of PyTorch."""
    if request.param == "numpy":
        return np.asarray
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    return torch.as_tensor


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images and weights outside the repository."""
    root = Path(__file__).parents[1]
    folder = Path(os.environ.get("EBJR_DATA", root.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the real images and weights are absent; set EBJR_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory) -> Path:
    """A joint.toml of the tiny pair on colored images."""
    from tiny import write_joint

    return write_joint(tmp_path_factory.mktemp("calibrated"))


@pytest.fixture(scope="session")
def recorded_demo(tmp_path_factory) -> Path:
    """The folder that `ebjr demo --recorded` leaves; tests that change it copy it."""
    from ebjr.demo import run_demo

    folder = tmp_path_factory.mktemp("recorded") / "ebjr-demo"
    run_demo(folder, recorded=True)
    return folder


@pytest.fixture(scope="module")
def far_process():
    """A teacher in its own process, shared by the tests of a file."""
    from far import FarTeacherProcess

    process = FarTeacherProcess()
    yield process
    process.kill()


@pytest.fixture
def far(far_process):
    """A teacher in its own process; it answers correctly until a test changes that."""
    far_process.behave("right")
    return far_process


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium with long timeouts, since other tests use the cores too."""
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
    """Open pages in the browser, with Playwright's options."""
    with ExitStack() as stack:

        def make(**options: Any) -> Any:
            page = stack.enter_context(browser.new_page(**options))
            page.set_default_timeout(PATIENCE)
            return page

        yield make


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run `ebjr` in an empty folder; return exit code, standard output and standard error."""
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
