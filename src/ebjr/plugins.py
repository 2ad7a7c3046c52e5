"""Plugins: entry points of installed packages, and the user's own files and modules."""

import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from ebjr.errors import one_line
from ebjr.files import sha256_of

_HERE = str(Path(__file__).parent)

EXTRAS: Mapping[str, str] = {
    "onnx": "ONNX models, FLOPs, and ebjr demo",
    "export": "ebjr export: one ONNX file",
    "torch": "PyTorch models, and training",
    "transformers": "Hugging Face models",
    "learned": "scikit-learn models, and learned scores",
    "parquet": ".parquet and .arrow data",
    "serve": "ebjr serve",
    "grpc": "ebjr serve --grpc-port",
    "otel": "ebjr serve --otel",
    "remote": "models at an address, and chat models",
    "scale": "the joint model on Ray",
    "hub": "ebjr push and ebjr pull",
    "mlflow": "joint models in MLflow",
    "supervision": "detections for supervision",
    "detection": "faster-coco-eval, to compare mAP with",
    "power": "joules measured on NVIDIA's GPUs",
}
"""What each extra of the package brings."""


def installed_extras() -> dict[str, bool]:
    """Whether each of `EXTRAS` is installed: all that it requires, whatever the version.

    Requirements of some platforms alone do not count. Of source code that is not installed nothing
    is known: the answer is empty.
    """
    if not _installed("ebjr"):
        return {}
    required: dict[str, list[bool]] = {name: [] for name in EXTRAS}
    for line in distribution("ebjr").requires or ():
        found = re.fullmatch(r"([\w.-]+).*; *extra == ['\"]([\w-]+)['\"]", line)
        if found and found[2] in required:
            required[found[2]].append(_installed(found[1]))
    return {name: all(found) for name, found in required.items()}


def extras_text() -> str:
    """What this installation can do, and what the extras that are not installed bring."""
    installed = installed_extras()
    have = ", ".join(name for name, there in installed.items() if there)
    lines = [
        "Without extras: Python models, recorded outcomes, calibration, reports.",
        f"Extras installed: {have or 'none'}.",
    ]
    if missing := [name for name, there in installed.items() if not there]:
        lines.append("Others, for pip install 'ebjr[NAME]':")
        lines += [f"  {name:13} {EXTRAS[name]}" for name in missing]
    return "\n".join(lines)


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def load_entry_points(group: str, register: Callable[[Any], Any]) -> None:
    """Register what installed packages declare in a group; a failure is only a warning."""
    for entry in entry_points(group=group):
        try:
            register(entry.load())
        except Exception as error:
            package = "a package" if entry.dist is None else f"package {entry.dist.name}"
            warnings.warn(
                f"{package} declares {entry.name!r} in {group}, which cannot be used: "
                f"{one_line(error)}",
                stacklevel=2,
            )


def import_all(names: Sequence[str]) -> None:
    """Call `import_own` for each name."""
    for name in names:
        import_own(name)


def import_own(name: str, called: str | None = None) -> ModuleType:
    """Run a Python file, or import a module; both may import from the file's or current folder.

    `called` is its name in messages, ``--import NAME`` if left out. A file that has changed is run
    again; a changed module is a ValueError, since other code may have imported it.
    """
    called = called or f"--import {name}"
    file = Path(name).resolve() if name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise ValueError(f"{called}: the file does not exist")
    _look_in(Path.cwd() if file is None else file.parent)
    try:
        module = import_module(name) if file is None else _run(file)
    except (Exception, SystemExit) as error:
        absent = file is None and isinstance(error, ModuleNotFoundError)
        way = "; run in the folder that holds it, or install it" if absent else ""
        where = place_of(error, file)
        raise ValueError(f"{called} failed{where}: {words_of(error)}{way}") from error
    if (own := getattr(module, "__file__", None)) is None:  # a built-in module, or any folder
        raise ValueError(f"{called}: it is no Python file: name a .py file or a module")
    if file is None and _HASHES.setdefault(own, found := sha256_of(own)) != found:
        raise ValueError(f"{called}: {own} has changed since it was imported: restart the process")
    return module


_HASHES: dict[str, str] = {}
"""The hashes of the files whose code was run in this process."""


def module_file(name: str) -> str | None:
    """Find a module's file without running it or its packages; None if there is none."""
    _look_in(Path.cwd())
    where: Any = None
    origin = None
    for whole in accumulate(name.split("."), "{}.{}".format):
        found = (finder.find_spec(whole, where) for finder in sys.meta_path)
        if (spec := next(filter(None, found), None)) is None:
            return None
        where, origin = spec.submodule_search_locations or (), spec.origin
    return origin


def _look_in(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _run(file: Path) -> ModuleType:
    """Run a file as a module with a name of its own."""
    name = f"ebjr_import_{file.stem}"
    known, found = sys.modules.get(name), sha256_of(file)
    if known is not None and known.__file__ == str(file) and _HASHES.get(str(file)) == found:
        return known
    spec = spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        # not the cached bytecode, which misses a change within one second
        code = compile(file.read_bytes(), file, "exec")
        exec(code, vars(module))
    except BaseException:
        del sys.modules[name]
        if known is not None:
            sys.modules[name] = known
        raise
    _HASHES[str(file)] = found
    return module


def place_of(error: BaseException, file: Path | None) -> str:
    """Return file and line of an error: the last one in `file`, or else the last one."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}, line {error.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_HERE) and "importlib" not in frame.filename
    ]
    own = [frame for frame in frames if frame.filename == str(file)]
    return "".join(f" at {frame.filename}, line {frame.lineno}" for frame in (own or frames)[-1:])


def is_refusal(error: BaseException) -> bool:
    """Tell whether EBJR raised an error on purpose; else an operation or other code failed."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return last.filename.startswith(_HERE) and (last.line or "").startswith("raise ")


def words_of(error: BaseException) -> str:
    """Return an error's type and message, on one line."""
    text = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
