"""Models from Python code: by import path, or estimators saved in files.

Both run their author's code. An import path given by the caller is run; one that a file names, and
every pickle, only if the caller trusts it.
"""

import inspect
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any

from ebjr.backends.weights import weights_of
from ebjr.errors import EbjrError, ModelError, needs, one_line
from ebjr.files import check_file
from ebjr.labels import some
from ebjr.model import Around, Model, ModelFacts, facts
from ebjr.plugins import import_own, module_file, place_of, words_of

SAVED = (".skops", ".joblib", ".pkl", ".pickle")
_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_IMPORT_PATH = re.compile(rf"(.+\.py|{_NAME}):({_NAME})")


def import_path(source: str | os.PathLike[str]) -> tuple[str, str] | None:
    """Split an import path into module, or file, and name; None if it is not one."""
    found = _IMPORT_PATH.fullmatch(os.fspath(source))
    return None if found is None else (found[1], found[2])


def in_module(source: str | os.PathLike[str]) -> bool:
    """Tell whether a source is a name in a module, which is the same from every folder."""
    found = import_path(source)
    return found is not None and not found[0].endswith(".py")


def absolute(source: str | os.PathLike[str], folder: Path = Path()) -> str:
    """Make a model's path, relative to a folder, absolute."""
    return os.fspath(source) if in_module(source) else str((folder / source).resolve())


def source_file(source: str | os.PathLike[str]) -> Path:
    """Return the file of a model, or of the named module, without running it."""
    module = (import_path(source) or [os.fspath(source)])[0]
    return Path((module_file(module) or module) if in_module(source) else module)


def is_pickle(source: str | os.PathLike[str]) -> bool:
    """Tell whether reading a file can run any code."""
    return Path(source).suffix.lower() in SAVED[1:]


class PythonModel(Around):
    """A model from an import path or a saved estimator's file, which is its path."""

    def __init__(self, model: Model, path: str, made_of: Any) -> None:
        super().__init__(model)
        self.path, self.made_of = path, made_of

    def __call__(self, batch: Any, /) -> Any:
        """Return the raw output for n inputs; a ModelError says where the user's code failed."""
        try:
            return self.model(batch)
        except Exception as error:
            if isinstance(error, EbjrError):
                raise
            where = place_of(error, source_file(self.path))
            raise ModelError(f"{self.path} failed{where}: {words_of(error)}") from error

    @cached_property
    def facts(self) -> ModelFacts:
        """The inner model's facts, with the path."""
        return replace(facts(self.model), path=Path(self.path))

    def weights(self) -> str | None:
        """Hash its weights as they are now, see `weights_of`."""
        return weights_of(self.made_of)


def load_python(source: str, trust: bool, options: Mapping[str, Any]) -> Model:
    """Load the model at an import path or in a saved estimator's file."""
    from ebjr.backends import load_model

    path = absolute(source)
    made = _named(path) if import_path(path) else _saved(Path(path), trust)
    own = getattr(made, "facts", None)
    if isinstance(own, ModelFacts) and (own.path or own.url) and not options:
        return made  # the code only loads a file or an address: that is the model's source
    try:
        model = load_model(made, **options)
    except TypeError as error:
        if options:
            raise
        raise ModelError(f"{path}: {one_line(error)}") from error
    nameless = _UNSAID & options.keys()
    return model if nameless else PythonModel(model, path, made)


_UNSAID = {"processor", "processing", "windows", "stride", "columns"}
"""Options that joint.toml cannot store: a model with one of them gets no path."""


def _named(path: str) -> Any:
    """Return the object at an import path; a class or a function without arguments is called."""
    module, name = import_path(path) or ("", "")
    imported = import_own(module, f"the model {path}")
    try:
        found = attrgetter(name)(imported)
        return found() if _makes(found) else found
    except Exception as error:
        has = [key for key, each in vars(imported).items() if callable(each) and key[0] != "_"]
        raise ModelError(
            f"the model {path} failed{place_of(error, source_file(path))}: {words_of(error)}; name "
            "a model, or a class or function without arguments that makes one; the module has "
            f"{some(has) or 'none'}"
        ) from error


def _makes(found: Any) -> bool:
    with suppress(ValueError, TypeError):  # not callable, or a C function without a signature
        return isinstance(found, type) or not inspect.signature(found).parameters
    return False


def _saved(path: Path, trust: bool) -> Any:
    check_file(path)
    risk = "is a pickle, which can run any code when it is read"
    with needs("learned", f"reading {path}"):
        import joblib
        import skops.io
    try:
        if path.suffix.lower() == ".skops":
            unknown = skops.io.get_untrusted_types(file=path)
            if trust or not unknown:
                return skops.io.load(path, trusted=unknown)
            risk = f"holds types that skops does not know to be safe, {some(unknown)}"
        elif trust:
            return joblib.load(path)
    except Exception as error:  # a pickle or a damaged file may fail in any way
        raise ModelError(
            f"{path} cannot be read: {words_of(error)}; save it with the package versions "
            "installed here, and give the file of its own classes with --import"
        ) from error
    raise ModelError(f"{path} {risk}: give --trust (trust=True) if you trust its author")
