"""What installed packages add by entry points: scores and metrics."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import ebjr
from ebjr import plugins
from ebjr.plugins import EXTRAS

CODE = '''
import numpy as np

def own_gap(logits):
    """The gap between the two largest logits."""
    best = np.sort(logits, axis=1)
    return best[:, -1] - best[:, -2]

def own_loss(predictions, targets):
    return abs(predictions - targets) ** 3

not_callable = 3
'''

ENTRIES = """
[ebjr.scores]
own_gap = own_package:own_gap
{more}
[ebjr.metrics]
own_loss = own_package:own_loss
"""

SCRIPT = """
import warnings
import numpy as np
from ebjr import Outcomes, as_score, calibrate
from ebjr.tasks import as_task
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    clear = 3 * np.eye(3)[targets]
    outcomes = Outcomes(clear + rng.normal(0, 2, clear.shape), clear, targets)
    print("own_gap" in outcomes.kind.candidates(outcomes.student))
    print("own_gap" in outcomes.kind.compared(outcomes.student))
    print(calibrate(outcomes, score="own_gap").score, as_score("own_gap").named)
    print(as_task("regression").metric("own_loss").name)
print(*[str(each.message) for each in caught], sep="\\n")
"""


@pytest.fixture
def installed(tmp_path):
    """Install a package that declares entry points: run the script beside it."""

    def run(more: str = "") -> list[str]:
        info = tmp_path / "own_package-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(ENTRIES.format(more=more))
        (tmp_path / "own_package.py").write_text(CODE)
        source = str(Path(ebjr.__file__).parents[1])
        path = os.pathsep.join([str(tmp_path), source])
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        return done.stdout.splitlines()

    return run


def test_a_packages_score_and_metric_work_everywhere(installed):
    assert installed() == ["True", "True", "own_gap True", "own_loss", ""]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ("missing = own_package:missing", "has no attribute 'missing'"),
        ("away = no_such_package:score", "No module named 'no_such_package'"),
        ("number = own_package:not_callable", "'number' in ebjr.scores, which cannot be used"),
    ],
)
def test_what_cannot_be_loaded_is_a_warning_and_nothing_else(installed, more, reason):
    *usual, warned = installed(more)
    assert usual == ["True", "True", "own_gap True", "own_loss"]
    assert "package own-package declares" in warned
    assert reason in warned


def test_a_score_that_needs_more_classes_than_there_are_does_not_compete(registered):
    with pytest.warns(UserWarning, match="score third_logit does not compete: it fails"):
        assert "third_logit" not in outcomes(2).kind.candidates(outcomes(2).student)
    assert "third_logit" in outcomes(4).kind.candidates(outcomes(4).student)
    assert ebjr.calibrate(outcomes(4), score="third_logit", blend=0.0).score == "third_logit"
    with pytest.raises(ValueError, match="does not take the parameters"):
        ebjr.as_score("third_logit(temperature=2)")


def test_a_registered_score_of_logits_competes_for_specialized_students(registered):
    task = ebjr.tasks.as_task("specialized", (0, 1, 2))
    assert "third_logit" in task.candidates(np.zeros((5, 4)))
    assert "third_logit" in task.compared(np.zeros((5, 4)))


def outcomes(classes: int) -> ebjr.Outcomes:
    targets = np.arange(300) % classes
    clear = 3 * np.eye(classes)[targets]
    noise = np.random.default_rng(0).normal(0, 2, clear.shape)
    return ebjr.Outcomes(clear + noise, clear, targets)


@pytest.fixture
def registered():
    @ebjr.register_score
    def third_logit(logits):
        return np.sort(logits, axis=1)[:, -3]

    yield
    del ebjr.SCORES["third_logit"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda n: {}["few"], "score broken failed: KeyError: 'few'"),
        (lambda n: np.full(n, None), r"returned \(300,\) object"),
        (lambda n: np.full(n, 1j), r"returned \(300,\) complex128"),
        (lambda n: np.full(n, "a"), r"returned \(300,\) <U1"),
    ],
)
def test_a_registered_score_that_is_broken_is_one_sentence_and_does_not_compete(made, message):
    @ebjr.register_score
    def broken(logits):
        return made(len(logits))

    try:
        with pytest.raises(ValueError, match=message) as caught:
            ebjr.calibrate(outcomes(3), score="broken", blend=0.0)
        assert "\n" not in str(caught.value)
        with pytest.warns(UserWarning, match="score broken does not compete"):
            assert ebjr.calibrate(outcomes(3)).score != "broken"
    finally:
        del ebjr.SCORES["broken"]


@pytest.mark.parametrize("function", [lambda logits: logits, 3])
def test_what_has_no_name_is_not_registered(function):
    with pytest.raises(ValueError, match="as a function with a name"):
        ebjr.register_score(function)


def test_a_joint_model_refuses_a_score_of_another_raw_output():
    with pytest.raises(ValueError, match="smallest_margin is not for classification: it reads"):
        ebjr.JointClassifier(len, len, ebjr.Router("smallest_margin", 1.0))


def test_every_extra_says_what_it_brings():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev", "docs", "report"}
    assert extras["report"] == []  # of the core
    assert max(map(len, EXTRAS)) <= 13


class Installed:
    """What importlib says of a package."""

    requires = (
        "numpy>=2.0",
        "pytest>=8.3; extra == 'hub'",
        "no-such-package; (sys_platform == 'win32') and extra == 'hub'",
        "pytest>=8.3; extra == 'serve'",
        "no-such-package<2,>=1; extra == 'serve'",
        "no-such-package; extra == 'dev'",
    )


def test_an_extra_is_installed_once_all_that_it_requires_is(monkeypatch):
    real = plugins.distribution
    monkeypatch.setattr(
        plugins, "distribution", lambda name: Installed if name == "ebjr" else real(name)
    )
    found = plugins.installed_extras()
    assert found["hub"]
    assert not found["serve"]
    text = plugins.extras_text()
    assert "serve         ebjr serve" in text
    assert "ebjr push" not in text


def test_the_version_is_the_first_line_and_the_extras_follow(run):
    code, out, _ = run("--version")
    assert code == 0
    assert out.splitlines()[0] == ebjr.__version__
    assert "Extras installed: " in out
