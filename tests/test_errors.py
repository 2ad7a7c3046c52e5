from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

import ebjr
from ebjr import errors

CORE = ("arrays", "blend", "costs", "curve", "errors", "files", "joint", "model", "outcomes")
HEAVY = ("torch", "onnx", "onnxruntime", "PIL", "pyarrow", "typer", "rich", "sklearn")


@pytest.mark.parametrize(
    ("error", "parent"),
    [
        (errors.EbjrError, Exception),
        (errors.CalibrationError, errors.EbjrError),
        (errors.ModelError, errors.EbjrError),
        (errors.OtherModel, errors.ModelError),
        (errors.TeacherUnavailable, errors.ModelError),
        (errors.ProtocolError, errors.EbjrError),
        (errors.MissingExtra, errors.EbjrError),
    ],
)
def test_the_tree_is_the_one_drawn(error, parent):
    assert issubclass(error, parent)
    assert not issubclass(error, ValueError | TypeError)
    assert error.__name__ in errors.__doc__
    assert getattr(ebjr, error.__name__) is error


def test_every_error_is_drawn():
    found = (value for value in vars(errors).values() if isinstance(value, type))
    defined = {kind.__name__ for kind in found if kind.__module__ == errors.__name__}
    assert all(name in errors.__doc__ for name in defined)


def test_a_missing_extra_is_an_import_error_and_names_its_install_line():
    error = errors.MissingExtra("parquet", "reading a table")
    assert isinstance(error, ImportError)
    assert str(error) == "reading a table needs an extra: pip install 'ebjr[parquet]'"
    assert error.extra == "parquet"


@pytest.mark.parametrize("name", ["CalibrationError", "ModelError", "TeacherUnavailable"])
def test_an_error_crosses_a_process_boundary(name):
    copy = pickle.loads(pickle.dumps(getattr(errors, name)("why")))
    assert (type(copy).__name__, str(copy)) == (name, "why")


def test_a_missing_extra_crosses_a_process_boundary():
    error = errors.MissingExtra("onnx", "reading model.onnx")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.extra) == (str(error), error.extra)


def test_importing_the_core_imports_nothing_heavy():
    modules = ", ".join(f"ebjr.{name}" for name in (*CORE, "router", "scores"))
    script = f"import sys, {modules}; print(*sorted({set(HEAVY)} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == []
    assert ran.stderr == ""


def test_every_public_name_is_there():
    assert len(set(ebjr.__all__)) == len(ebjr.__all__)
    for name in ebjr.__all__:
        assert getattr(ebjr, name) is not None


def test_a_count_has_its_nouns_number():
    words = [errors.counted(count, "example") for count in (0, 1, 1200)]
    assert words == ["0 examples", "1 example", "1,200 examples"]
