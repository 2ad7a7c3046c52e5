"""Every example runs as it is, and its joint model defers some inputs and not all."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from pages import check_output, shown

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*_pair.py")))
def test_an_example_runs_as_it_is(name, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if name == "transformers_pair":
        pytest.importorskip("transformers", reason="transformers is not installed")
    if name == "onnx_pair":
        pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
        from ebjr.demo.cifar10 import load
        from ebjr.demo.fetch import DataUnavailable

        try:
            load("test")
        except DataUnavailable as error:
            pytest.skip(f"CIFAR-10 cannot be had here: {error}")
    import torch

    threads = torch.get_num_threads()
    try:
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    finally:
        torch.set_num_threads(threads)
    deferred = names["answer"].deferred
    assert 0 < int(deferred.sum()) < len(deferred)
    [(_, text)] = shown("examples.md", f' {{ .python title="examples/{name}.py" }}')
    check_output(capsys.readouterr().out, text)


def test_the_readme_lists_every_example():
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
