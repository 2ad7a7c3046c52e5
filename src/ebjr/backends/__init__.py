"""Backends: `load_model` makes a `Model` of a file, an address or a Python object.

A backend is imported when a model of its kind is loaded, never before.
"""

import inspect
import os
import sys
from pathlib import Path
from typing import Any

from ebjr.backends.python import SAVED, import_path, load_python
from ebjr.errors import ModelError
from ebjr.model import Model

FILES = (".onnx", ".pt2")
TAKES = (
    "an .onnx file, a .pt2 program, an http(s):// address, a chat model's .toml, an import path "
    "such as file.py:name, an estimator's .skops or .joblib, a torch nn.Module, a scikit-learn "
    "estimator, a transformers pipeline or a callable"
)


def load_model(source: Any, *, trust: bool = False, **options: Any) -> Model:
    """Make a model of a file, an address, an import path, a module, an estimator or a callable.

    Parameters
    ----------
    source
        One of:

        - a path to an ``.onnx`` file (`ebjr.backends.onnx.OnnxModel`)
        - a path to a ``.pt2`` program, or a torch ``nn.Module``
          (`ebjr.backends.pytorch.TorchModel`)
        - a fitted scikit-learn estimator (`ebjr.backends.sklearn.SklearnModel`), or its
          ``.skops``, ``.joblib``, ``.pkl`` or ``.pickle`` file
        - a Hugging Face pipeline, or a model with its ``processor``
          (`ebjr.backends.transformers.TransformersModel`)
        - the address of an Open Inference Protocol endpoint (`ebjr.link.remote.RemoteModel`)
        - the ``.toml`` of a language model behind OpenAI's API (`ebjr.backends.chat.ChatModel`)
        - any other callable, returned unchanged
        - the import path of one of these, ``"package.module:name"`` or ``"file.py:name"``, which
          ``joint.toml`` can store. A class, or a function without parameters, is called.
    trust
        Allow a pickle, which can run any code, or a ``.skops`` file with types that skops does not
        know to be safe.
    **options
        Options of the backend: ``threads``, ``providers``, ``batch_size`` and ``output`` for ONNX,
        or with ``layout`` (a name, or ``"auto"``) those of a detector
        (`ebjr.backends.detectors.OnnxDetector`); ``device``, ``dtype``, ``batch_size`` and
        ``compile`` for PyTorch, and with ``processor`` the same for Hugging Face; ``features`` and
        ``continues`` for a shared trunk in ONNX or PyTorch; ``output`` for scikit-learn; ``send``,
        ``timeout_seconds`` and more for an address. All but detectors take ``output_kind``, which
        says what the model returns if not logits (`ebjr.backends.output_kind.KINDS`).

    Raises
    ------
    FileNotFoundError
        `source` is a path without a file.
    TypeError
        `source` cannot be a model, or is a callable that came with options.
    ModelError
        `source` is corrupt, of a kind that EBJR does not read, an estimator that is not fitted, or
        a pickle without `trust`.
    ValueError
        The module of an import path cannot be imported.
    MissingExtra
        The package for this kind of model is not installed.

    Examples
    --------
    >>> double = load_model(lambda batch: batch * 2)
    >>> double(21)
    42
    """
    if (kind := options.pop("output_kind", None)) is not None:
        from ebjr.backends.output_kind import with_output_kind

        return with_output_kind(load_model(source, trust=trust, **options), kind)
    if isinstance(source, str | os.PathLike):
        return _load_file(source, trust, options)
    if _is_of("transformers", "Pipeline", source) or "processor" in options:
        from ebjr.backends.transformers import TransformersModel

        return TransformersModel(source, **options)
    if _is_of("sklearn.base", "BaseEstimator", source):
        from ebjr.backends.sklearn import SklearnModel

        return _loaded(SklearnModel, source, options)
    if _is_of("torch.nn", "Module", source):
        from ebjr.backends.pytorch import TorchModel

        return _loaded(TorchModel, source, options)
    if isinstance(source, type) or not callable(source):
        raise TypeError(f"a model must be {TAKES}, not {_described(source)}")
    if options:
        raise TypeError(
            f"a callable takes no options, but got {', '.join(options)}; set them where the "
            "callable is made"
        )
    return source


def is_address(source: str | os.PathLike[str]) -> bool:
    """Tell whether a model is named by an address, and not by a file or an import path."""
    return str(source).startswith(("http://", "https://"))


def _load_file(source: str | os.PathLike[str], trust: bool, options: dict[str, Any]) -> Model:
    if is_address(source):
        from ebjr.link.remote import RemoteModel

        return RemoteModel(str(source), **options)
    path = Path(source)
    if path.suffix.lower() == ".toml":
        from ebjr.backends.chat import ChatModel

        if options:
            raise TypeError(f"{path} holds all options of a chat model: leave {min(options)} out")
        return ChatModel.of_file(path)
    if import_path(source) or path.suffix.lower() in SAVED:
        return load_python(str(source), trust, options)
    if path.suffix.lower() not in FILES:
        way = f"name the model in it: {path}:NAME" if path.suffix == ".py" else "export it first"
        raise ModelError(f"a model must be {TAKES}, not the path {path}; {way}")
    if path.suffix.lower() == ".pt2":
        from ebjr.backends.pytorch import TorchModel, load_program

        return _loaded(TorchModel, path, options, load_program)
    if "layout" in options:
        from ebjr.backends.detectors import OnnxDetector

        return _loaded(OnnxDetector, path, options)
    from ebjr.backends.onnx import OnnxModel

    return _loaded(OnnxModel, path, options)


def _loaded(kind: type[Any], source: Any, options: dict[str, Any], load: Any = None) -> Model:
    """Make a model by its class, or by `load`, after checking the options' names."""
    takes = list(inspect.signature(kind).parameters)[1:]
    if unknown := [name for name in options if name not in takes]:
        name = source if isinstance(source, Path) else f"a {type(source).__name__}"
        raise TypeError(f"{name} takes the options {', '.join(takes)}, not {unknown[0]}")
    model: Model = (load or kind)(source, **options)
    return model


def _is_of(module: str, kind: str, source: Any) -> bool:
    """`isinstance` without an import: no instance exists before its module is imported."""
    imported = sys.modules.get(module)
    return imported is not None and isinstance(source, getattr(imported, kind, ()))


def _described(source: Any) -> str:
    if isinstance(source, type):
        return f"the class {source.__name__}: make an instance of it first"
    if hasattr(source, "predict"):
        return f"a {type(source).__name__}: give its method instead, such as predict_proba"
    return f"a {type(source).__name__}"
