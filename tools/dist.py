"""Build the wheel and the sdist, and use the wheel with no extra and with each one alone.

``make dist`` runs it with the Python of `.venv/dist`, which has build and twine. Names of extras
limit the run to these: ``make dist EXTRAS="onnx serve"``. The install without extras is always
checked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "dist"
MOST_BYTES = 12_000_000
TOGETHER = ("dev", "docs")
"""Extras that stand for others, or serve work on the project."""

USES = {
    "core": "import ebjr.cli, ebjr.calibration, ebjr.evaluation.report, ebjr.within",
    "onnx": """
from ebjr.demo import shipped
with shipped("student.onnx") as path:
    ebjr.load_model(path)(np.zeros((2, 3, 32, 32), np.float32))
import ebjr.quantize, ebjr.split
""",
    "export": "import ebjr.export",
    "torch": """
import torch
ebjr.load_model(torch.nn.Linear(2, 3))(np.zeros((4, 2), np.float32))
import ebjr.training.energy_head, ebjr.training.specialized
""",
    "transformers": "import ebjr.backends.transformers, transformers",
    "parquet": """
import pyarrow as pa, pyarrow.parquet
pyarrow.parquet.write_table(pa.table({"a": [1.0, 2.0], "label": [0, 1]}), "rows.parquet")
from ebjr.data.open import open_data
open_data("rows.parquet")
""",
    "power": "import pynvml; from ebjr.evaluation.power import find_joules",
    "report": "import ebjr.evaluation.report",
    "learned": """
from sklearn.linear_model import LogisticRegression
ebjr.load_model(LogisticRegression().fit([[0.0], [1.0]], [0, 1]))(np.zeros((2, 1)))
import ebjr.estimator, skops.io
""",
    "detection": "import faster_coco_eval; import ebjr.tasks.detection.precision",
    "grpc": "import ebjr.serving.grpc, ebjr.serving.app",
    "hub": "import ebjr.hub, huggingface_hub",
    "mlflow": "import ebjr.mlflow",
    "otel": "from ebjr.serving.tracing import Tracing; Tracing.to_collector('joint')",
    "remote": """
import ebjr.backends.chat
from ebjr.errors import ModelError
try:
    ebjr.load_model("http://127.0.0.1:9/v2/models/joint")
except ModelError as error:
    assert "127.0.0.1" in str(error), error
""",
    "scale": "import ebjr.scale.ray_data, ebjr.scale.ray_serve",
    "serve": "import ebjr.serving.app, ebjr.serving.http",
    "supervision": "import supervision, ebjr; ebjr.to_supervision, ebjr.from_supervision",
}
"""What each extra is for, in as few words of Python as use it."""


def run(*words: str | Path, cwd: Path = ROOT) -> str:
    """What a command prints; if it fails, this script ends with its output."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=clean, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build() -> Path:
    """Build both, the wheel from the sdist, and check them; return the wheel."""
    shutil.rmtree(BUILT, ignore_errors=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", BUILT, ROOT)
    run(sys.executable, "-m", "twine", "check", "--strict", *BUILT.iterdir())
    (wheel,) = BUILT.glob("*.whl")
    size = wheel.stat().st_size
    if size >= MOST_BYTES:
        sys.exit(f"{wheel.name} must be smaller than {MOST_BYTES:,} bytes, but has {size:,}")
    print(f"{wheel.name}: {size / 1e6:.2f} MB", flush=True)
    return wheel


def install(place: Path, wanted: str) -> None:
    """Install a requirement into the environment at a place, which needs no pip of its own."""
    pip = (sys.executable, "-m", "pip", "--python", place / "bin/python", "install", "--quiet")
    run(*pip, "--no-compile", "-c", ROOT / "constraints.txt", wanted)


def use(place: Path, extra: str, version: str) -> None:
    """Use what an extra is for, and the command line, in the environment at a place."""
    python = place / "bin/python"
    run(python, "-c", f"import ebjr, numpy as np\n{USES[extra]}", cwd=place)
    said = run(python, "-m", "ebjr", "--version", cwd=place)
    if said.split()[:1] != [version]:
        sys.exit(f"ebjr --version must begin with {version}, but says {said}")
    if "record" not in run(python, "-m", "ebjr", "--help", cwd=place):
        sys.exit("ebjr --help must name the commands")


def check(core: Path, wheel: Path, extra: str, version: str) -> None:
    """Add one extra to a copy of the core environment, whose files are linked, and use it."""
    began = perf_counter()
    place = core.with_name(extra)
    shutil.copytree(core, place, symlinks=True, copy_function=os.link)
    install(place, f"{wheel}[{extra}]")
    installed = perf_counter()
    use(place, extra, version)
    times = f"{installed - began:.0f} s to install, {perf_counter() - installed:.0f} s to use"
    print(f"{extra}: {times}", flush=True)
    shutil.rmtree(place)


def main() -> None:
    """Build, check, install and use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for name in project["optional-dependencies"] if name not in TOGETHER]
    if sorted(USES) != sorted(["core", *extras]):
        sys.exit(f"USES in tools/dist.py must have core and the extras {', '.join(extras)}")
    chosen = sys.argv[1:] or extras
    if unknown := set(chosen) - set(extras):
        sys.exit(f"no extra is called {', '.join(sorted(unknown))}; there are {', '.join(extras)}")
    wheel = build()
    (version,) = re.findall(r"^ebjr-(.*)-py3", wheel.name)
    with TemporaryDirectory(dir=BUILT) as folder:  # beside the wheel, so that files can be linked
        core = Path(folder) / "core"
        run(sys.executable, "-m", "venv", "--without-pip", core)
        install(core, str(wheel))
        run(core / "bin/ebjr", "--version")
        use(core, "core", version)
        print("core: installed and used", flush=True)
        for extra in chosen:
            check(core, wheel, extra, version)


if __name__ == "__main__":
    main()
