"""A joint model in MLflow: the flavor `ebjr`, and a pyfunc with a signature.

``ebjr.mlflow.log_model("joint.toml")`` logs the folder of `ebjr.hub.pack_joint`, without a pickle.
``mlflow.pyfunc.load_model`` needs `mlflow`, `ebjr` and the models' runtimes.
"""

import os
import sys
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import ebjr
from ebjr.backends.entry import ModelEntry
from ebjr.backends.python import SAVED, import_path
from ebjr.errors import needs
from ebjr.hub import FILE, pack_joint
from ebjr.joint import JointAnswer, JointModel, models_of
from ebjr.joint_file import JointConfig
from ebjr.model import facts
from ebjr.protocol import DATATYPES
from ebjr.serving.served import KNOBS, Served, served_of

with needs("mlflow", "ebjr.mlflow"):
    import mlflow.artifacts
    import mlflow.pyfunc
    import pandas
    from mlflow.models import Model, ModelSignature
    from mlflow.models.model import ModelInfo
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
    from mlflow.types.schema import AnyType

FLAVOR, FOLDER = "ebjr", "joint"
TOLD = {"score": "double", "deferred": "boolean", "degraded": "boolean"}
"""Columns of each row beside its answer."""
FIGURES = ("quality", "student_quality", "teacher_quality", "deferral_rate")


def save_model(
    joint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    trust: bool = False,
    signature: ModelSignature | None = None,
    pip_requirements: list[str] | None = None,
    mlflow_model: Model | None = None,
    **more: Any,
) -> None:
    """Save the joint model of a ``joint.toml`` as an MLflow model in a new folder, `path`.

    `trust` allows loading pickles and Python code, to find the models' inputs. `signature` defaults
    to that of the models and the task, `pip_requirements` to this version of ebjr with the models'
    extras; `more` are arguments of `mlflow.pyfunc.save_model`.

    Raises
    ------
    FileNotFoundError
        `joint`, or a model that it names, is missing.
    ModelError
        A model of `joint` has changed, or is code or a pickle without `trust`.
    """
    config = JointConfig.read(joint)
    model = Model() if mlflow_model is None else mlflow_model
    model.signature = signature or signature_of(served_of(config, trust=trust))
    model.add_flavor(FLAVOR, ebjr_version=ebjr.__version__, joint=f"data/{FOLDER}/{FILE}")
    with TemporaryDirectory() as place:
        packed = pack_joint(joint, Path(place) / FOLDER)
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=__name__,
            data_path=str(packed.path.parent),
            mlflow_model=model,
            pip_requirements=pip_requirements or requirements_of(config),
            model_config={"trust": False},  # the loading side may override it
            **more,
        )


def log_model(joint: str | os.PathLike[str], name: str = "joint", **more: Any) -> ModelInfo:
    """Log a joint model to MLflow, and the figures on its held-out half to the active run, if any.

    `name` is the model's name in MLflow; `more` are arguments of `save_model` and ``Model.log``,
    like ``registered_model_name``. Errors are those of `save_model`.
    """
    logged = Model.log(None, sys.modules[__name__], name=name, joint=str(joint), **more)
    if mlflow.active_run() is not None:
        found = JointConfig.read(joint).calibration.get("held_out", {})
        own = {key: float(found[key]) for key in FIGURES if key in found}
        mlflow.log_metrics(own, model_id=logged.model_id)
    return logged


def load_model(uri: str, *, trust: bool = False, **options: Any) -> JointModel:
    """Load the joint model of an MLflow model, like `ebjr.load_joint`.

    Raises
    ------
    ValueError
        The model at `uri` has no flavor `ebjr`.
    ModelError
        A model has changed, or cannot be loaded or trusted.
    """
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    flavor = Model.load(str(folder)).flavors.get(FLAVOR)
    if flavor is None:
        raise ValueError(f"{uri} is not a joint model: log one with ebjr.mlflow.log_model")
    return JointConfig.read(folder / flavor["joint"]).load(trust=trust, **options)


def signature_of(served: Served) -> ModelSignature:
    """Return the signature: the models' inputs, the task's outputs, and the knob as params."""
    columns, known = _columns(served), facts(models_of(served.joint)[0])
    inputs = None  # unknown for a function
    if columns is not None:
        kind = "string" if served.takes_texts else "double"
        inputs = Schema([ColSpec(kind, name) for name in columns])
    elif served.takes_images or known.input_shape is not None:
        told = served.input()
        named = served.takes_images or known.input_dtype is not None
        dtype = DATATYPES[told.datatype] if named else np.dtype(np.float64)  # as `open_data` reads
        inputs = Schema([TensorSpec(dtype, told.shape)])
    task = served.joint.kind
    plain = {"classification": "long", "specialized": "long", "regression": "double"}
    answers: dict[str, Any] = {"prediction": plain.get(task.name) or AnyType()}
    if served.labels is not None and task.has_labels:
        answers["label"] = "string"
    outputs = Schema([ColSpec(kind, name) for name, kind in (answers | TOLD).items()])
    types = ("double", "double", "string")
    params = [ParamSpec(name, kind, None) for name, kind in zip(KNOBS, types, strict=True)]
    return ModelSignature(inputs, outputs, ParamSchema(params))


def requirements_of(config: JointConfig) -> list[str]:
    """Return the pip requirements: this version of ebjr, with the extras of the models."""
    files = [each.path for each in config.parts if isinstance(each, ModelEntry)]
    extras = {"remote"} if len(files) < len(config.parts) else set()
    for path in (path for path in files if not import_path(path)):
        kind = Path(path).suffix.lower()
        extras.add("learned" if kind in SAVED else "torch" if kind == ".pt2" else "onnx")
    named = f"[{','.join(sorted(extras))}]" if extras else ""
    return [f"ebjr{named}=={ebjr.__version__}"]


class JointPyfunc:
    """A joint model as MLflow calls it: a frame or an array in, a frame of answers out."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """Return a row for each input: prediction, label if classes have names, score, deferred.

        Raises
        ------
        ValueError
            `params` set the knob twice, or name an unknown operating point.
        """
        served = self.served
        wish = {name: value for name, value in (params or {}).items() if value is not None}
        found: JointAnswer = _at(served.joint, served.chosen(wish))(_inputs(served, model_input))
        rows = served.joint.kind.plain(found.prediction, served.labels)
        told = {name: getattr(found, name) for name in TOLD}
        return pandas.DataFrame(rows).assign(**told)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> JointPyfunc:
    """Load the pyfunc of a folder; MLflow calls it."""
    config = JointConfig.read(Path(path) / FILE)
    return JointPyfunc(served_of(config, trust=bool((model_config or {}).get("trust"))))


def _at(joint: JointModel, threshold: float | None) -> JointModel:
    """Return the joint model with another threshold, for one call."""
    if threshold is None:
        return joint
    other = copy(joint)
    other.router = copy(joint.router)
    other.router.threshold = threshold
    return other


def _columns(served: Served) -> tuple[str, ...] | None:
    """Return the columns of a frame that the models read; None if they take an array."""
    return served.columns or ((served.input().name,) if served.takes_texts else None)


def _inputs(served: Served, given: Any) -> Any:
    """Convert MLflow's input to the models' input."""
    columns = _columns(served)
    if columns is None:
        return given
    frame = given[list(columns)]
    if not served.takes_texts:
        return frame.to_numpy(np.float64)  # the type of tables in `open_data`
    return frame[columns[0]].tolist() if len(columns) == 1 else frame.to_numpy(object)
