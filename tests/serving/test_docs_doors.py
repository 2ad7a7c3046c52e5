"""The commands of "Who may do what" in docs/operations.md run, with the servers that they start."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from pages import DOCS, check_output, shown, start
from PIL import Image

from ebjr.demo import run_demo

for name in ("onnxruntime", "sklearn", "starlette", "uvicorn", "grpc"):
    pytest.importorskip(name, reason=f"{name} is not installed")

PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"## Who may do what\n(.*?)\n(?=## )", PAGE, re.DOTALL)
TOKENS, TLS = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The page's `models`, and a photo beside it."""
    found = tmp_path_factory.mktemp("doors")
    run_demo(found / "models", recorded=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(found / "photo.png")
    return found


def run_block(block: str, folder: Path) -> str:
    """Run each line in its turn, and what it serves beside the others: what was printed."""
    programs = [name for name in ("curl", "openssl") if shutil.which(name) is None]
    if programs:
        pytest.skip(f"{programs[0]} is not installed")
    printed, ports = "", dict[str, str]()
    with ExitStack() as stack:
        for line in block.splitlines():
            for shown, own in ports.items():
                line = line.replace(f"localhost:{shown}", f"localhost:{own}")
            words = line.split()
            if words[:2] == ["ebjr", "serve"]:
                started = start(words, folder, ports, stack)
                printed += "".join(server.stdout.readline() for server in started)
                continue
            done = subprocess.run(
                ["bash", "-c", f"set -eu\n{line.replace('curl ', 'curl -4 ')}"],
                cwd=folder,
                env=os.environ,
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, f"{line}: {done.stderr}"
            printed += done.stdout
    return printed


def test_a_token_asks_and_another_moves_the_knob(folder):
    printed = run_block(TOKENS, folder)
    assert printed.count('"model_name":"joint"') == 1
    assert '{"error":"a query needs the header Authorization: Bearer TOKEN"}' in printed
    assert '"threshold":0.8,' in printed
    [text] = [text for code, text in shown("operations.md", "sh") if code == TOKENS]
    check_output(printed, text)


def test_tls_is_spoken_with_a_certificate_of_ones_own(folder):
    printed = run_block(TLS, folder)
    assert len(re.findall(r"serving joint at (https|grpcs)://127.0.0.1:\d+", printed)) == 2
    assert printed.count('"model_name":"joint"') == 1
