"""What is served: a joint model, its name, and what its calibration knows."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.backends import load_model
from ebjr.backends.identity import identities
from ebjr.calibration.guarantee import Certificate
from ebjr.costs import Cost
from ebjr.data.preprocess import Preprocess, Preprocessed, prepared, unprepared
from ebjr.files import json_number
from ebjr.joint import JointModel, models_of
from ebjr.joint_file import JointConfig
from ebjr.labels import are_names
from ebjr.model import facts
from ebjr.protocol import TensorMetadata, is_number, kind_of
from ebjr.router import Router, check_threshold
from ebjr.task import Tensor
from ebjr.tasks.classification import JointClassifier

KNOBS = ("threshold", "deferral_rate", "operating_point")  # ways to name a threshold
CALIBRATED = ("threshold", "calibration", "operating_points")  # fields of `JointConfig`
SCORE_BINS = 40  # bins that live scores are counted in


@dataclass
class Served:
    """A joint model with the name that clients use, and what its calibration knows.

    `operating_points` maps names to thresholds. `score_quantiles`, evenly spaced from 0 to 1 on the
    calibration half, translate a deferral rate into a threshold. Every answer carries
    `calibration_id`. `certificate` states the promise and the thresholds it covers, `costs` are the
    student's and the teacher's per row, and `calibration` is all that ``joint.toml`` records of it.
    `version` is the model's number, where versions are numbered.
    """

    joint: JointModel
    name: str = "joint"
    labels: tuple[str, ...] | None = None
    operating_points: Mapping[str, float] = field(default_factory=dict)
    score_quantiles: tuple[float, ...] = ()
    calibration_id: str | None = None
    certificate: Certificate | None = None
    costs: tuple[Cost, Cost] = (Cost(), Cost())
    calibration: Mapping[str, Any] = field(default_factory=dict)
    config: JointConfig | None = None  # the whole ``joint.toml``
    version: str | None = None

    @property
    def about(self) -> dict[str, str]:
        """Which model this is, as fields of a log line."""
        version = {} if self.version is None else {"version": self.version}
        return {"model": self.name, **version}

    def differs(self, config: JointConfig) -> list[str]:
        """Return the names of fields, other than the calibration's, in which `config` differs."""
        if self.config is None:
            raise ValueError("the model was not loaded from a joint.toml")
        names = {one.name for one in fields(JointConfig)} - {*CALIBRATED}
        return sorted(name for name in names if getattr(config, name) != getattr(self.config, name))

    def recalibrate(self, config: JointConfig) -> None:
        """Adopt another calibration; ValueError if `config` differs in more than that."""
        if other := self.differs(config):
            raise ValueError(
                f"joint.toml now has another {', '.join(other)}; only another calibration of the "
                "same models can replace the one that is served"
            )
        config.check()
        vars(self).update(_calibrated(config), config=config)

    def threshold_at(self, deferral_rate: float) -> float:
        """Return the threshold that defers this share of the calibration half."""
        if not 0 <= deferral_rate <= 1:
            raise ValueError(f"deferral_rate must lie between 0 and 1, not {deferral_rate!r:.60}")
        if not self.score_quantiles:
            raise ValueError(
                "deferral_rate needs a joint.toml with score quantiles: calibrate again, or give a "
                "threshold"
            )
        return math.inf if deferral_rate == 1 else float(np.interp(deferral_rate, *self._grid()))

    def rate_at(self, threshold: float) -> float | None:
        """Return the share of the calibration half that a threshold defers; None if unknown."""
        if not self.score_quantiles:
            return None
        rates, scores = self._grid()
        return 1.0 if threshold > scores[-1] else float(np.interp(threshold, scores, rates))

    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Return deferral rates, and the finite thresholds that defer these shares."""
        known = np.asarray(self.score_quantiles, np.float64)
        finite = np.where(np.isneginf(known), np.finfo(np.float64).min, known)
        return np.linspace(0, 1, len(known)), finite

    def score_deciles(self) -> list[float]:
        """Return the calibration scores at 10, 20, ..., 90 %, without repeats; [] if unknown."""
        if not self.score_quantiles:
            return []
        found = {round(self.threshold_at(tenth / 10), 6) for tenth in range(1, 10)}
        return sorted(value for value in found if abs(value) < 1e300)

    def score_edges(self) -> list[float]:
        """Return edges of even bins from the 1 % to the 99 % calibration score; [] if unknown."""
        known = np.asarray(self.score_quantiles, np.float64)[1:-1]
        known = known[np.isfinite(known)]
        if not len(known) or known[0] == known[-1]:
            return []
        return np.linspace(known[0], known[-1], SCORE_BINS + 1).tolist()

    def point(self, name: str) -> float:
        """Return the threshold of a named operating point; ValueError if `name` is unknown."""
        if name not in self.operating_points:
            known = ", ".join(self.operating_points) or "none"
            raise ValueError(f"there is no operating point {name!r:.60}; there are: {known}")
        return self.operating_points[name]

    def chosen(self, wish: Mapping[str, Any]) -> float | None:
        """Return the threshold that a request or the knob asks for; None if it asks for none.

        An infinite threshold may be "inf", as in answers: JSON has no such number.
        ValueError if `wish` names more than one of `KNOBS`, or a value out of range.
        """
        asked = [name for name in KNOBS if name in wish]
        if len(asked) > 1:
            raise ValueError(f"give one of {' and '.join(asked)}, not both")
        if not asked:
            return None
        value = wish[asked[0]]
        if asked[0] == "operating_point":
            return self.point(str(value))
        if asked[0] == "threshold" and value == json_number(math.inf):
            return math.inf
        if not is_number(value):
            came = f"{value!r:.60}" if isinstance(value, str) else kind_of(value)
            raise ValueError(f"{asked[0]} must be a number, not {came}")
        return check_threshold(value) if asked[0] == "threshold" else self.threshold_at(value)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """The hashes of the models and their configuration, see `identities`."""
        entries = () if self.config is None else (self.config.student, self.config.teacher)
        return identities(self.joint, *entries)

    @property
    def takes_images(self) -> bool:
        """Whether inputs are images, which each model preprocesses itself."""
        return self.joint.kind.takes_images or isinstance(models_of(self.joint)[0], Preprocessed)

    @cached_property
    def fits(self) -> tuple[Preprocess, ...]:
        """The preprocessing by which images may be resized ahead, each way of resizing once.

        Empty if a model here takes images as they are.
        """
        here = [model for model in models_of(self.joint) if facts(model).url is None]
        known = [unprepared(model)[1] for model in here]
        found = {one.fitting: one for one in known if one is not None and one.size is not None}
        return () if None in known else tuple(found.values())

    @property
    def takes_texts(self) -> bool:
        """Whether inputs are declared to be texts."""
        dtype = facts(models_of(self.joint)[0]).input_dtype
        return dtype is not None and dtype.kind in "OU"

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The names of a row's columns, if a model or ``joint.toml`` gives them."""
        own = facts(models_of(self.joint)[0]).columns
        return own or (None if self.config is None else self.config.columns)

    def input(self) -> TensorMetadata:
        """The metadata of the input."""
        if self.takes_images:
            return TensorMetadata.of("image", np.uint8, (None, None, None, 3))
        known = facts(models_of(self.joint)[0])
        shape = (None, *(known.input_shape or (None,))[1:])
        if self.takes_texts and len(self.columns or ()) > 1:
            shape = (None, len(self.columns or ()))
        return TensorMetadata.of(known.input_name, known.input_dtype or np.float32, shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return the task's tensors by name; `outputs` adds score and flags."""
        classes = None if self.labels is None else len(self.labels)
        return self.joint.kind.tensors(classes, self.names)

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names, if they are more than numbers."""
        return self.labels if are_names(self.labels) else None

    def outputs(self) -> tuple[TensorMetadata, ...]:
        """The metadata of the outputs."""
        told = {"score": np.float32, "deferred": np.bool_, "degraded": np.bool_, "stage": np.int64}
        known = {name: (one.dtype, one.shape) for name, one in self.tensors().items()}
        known |= {name: (dtype, (None,)) for name, dtype in told.items()}
        return tuple(TensorMetadata.of(name, *about) for name, about in known.items())


def served_of(config: JointConfig, **options: Any) -> Served:
    """Load what a ``joint.toml`` describes; `options` are those of `load_model`.

    ModelError if a model file has changed, or cannot be loaded.
    """
    return Served(
        joint=config.load(**options),
        name=config.name,
        labels=config.labels,
        costs=(config.student.cost, config.teacher.cost),
        config=config,
        **_calibrated(config),
    )


def _calibrated(config: JointConfig) -> dict[str, Any]:
    """Return a calibration's facts as fields of `Served`."""
    points = config.operating_points
    return {
        "operating_points": {name: float(one["threshold"]) for name, one in points.items()},
        "score_quantiles": tuple(config.calibration.get("score_quantiles", ())),
        "calibration_id": config.calibration.get("outcomes"),
        "certificate": config.certificate,
        "calibration": config.calibration,
    }


def served_alone(
    path: str | os.PathLike[str], preprocess: Preprocess | None = None, **options: Any
) -> Served:
    """Return a classifier as a joint model that defers nothing, for clients that run the student.

    `preprocess` turns a decoded image into its input; None: inputs are arrays already.
    """
    model = load_model(path, **options)
    model = model if preprocess is None else prepared(model, preprocess)
    every = Router("max_logit", float(np.finfo(np.float64).min))
    return Served(JointClassifier(model, model, every), name=Path(path).stem)
