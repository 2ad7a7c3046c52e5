"""`import ebjr` costs nothing, and every public name is where the table and the stub say."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import ebjr

STUB = Path(ebjr.__file__).with_suffix(".pyi")
HEAVY = {"numpy", "scipy", "array_api_compat", "PIL", "typer", "rich", "torch", "onnxruntime"}


def stub_modules() -> dict[str, str]:
    """Each name of the stub, and the module it is imported from."""
    imports = [
        node for node in ast.parse(STUB.read_text()).body if isinstance(node, ast.ImportFrom)
    ]
    return {alias.asname: str(node.module) for node in imports for alias in node.names}


def test_the_stub_and_all_name_the_same_names():
    assert sorted(stub_modules()) == ebjr.__all__
    assert set(ebjr.__all__) <= set(dir(ebjr))


@pytest.mark.parametrize(("name", "module"), stub_modules().items())
def test_a_public_name_is_the_modules_own(name, module):
    assert getattr(ebjr, name) is getattr(import_module(module), name)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'ebjr' has no attribute 'magic'"):
        ebjr.magic  # noqa: B018
    with pytest.raises(ImportError, match="magic"):
        from ebjr import magic  # noqa: F401


def test_importing_ebjr_imports_nothing_else():
    script = "import sys, ebjr; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    loaded = {name.partition(".")[0] for name in found.stdout.split()}
    assert "ebjr" in loaded
    assert not loaded & HEAVY
    assert not any(name.startswith("ebjr.") for name in found.stdout.split())
