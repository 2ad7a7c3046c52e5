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
from ebjr.data.preprocess import Preprocess, Preprocessed, prepared
from ebjr.joint import JointModel, models_of
from ebjr.joint_file import JointConfig
from ebjr.labels import are_names
from ebjr.model import facts
from ebjr.protocol import TensorMetadata, is_number
from ebjr.router import Router, check_threshold
from ebjr.task import Tensor
from ebjr.tasks.classification import JointClassifier

KNOBS = ("threshold", "deferral_rate", "operating_point")  # how to say where the threshold is
CALIBRATED = ("threshold", "calibration", "operating_points")  # of a `JointConfig`
SCORE_BINS = 40  # even bins in which live scores are counted


@dataclass
class Served:
    """A joint model under the name that clients call it by, and what its calibration knows.

    `operating_points` are thresholds by name. `score_quantiles`, of the scores on the calibration
    half and evenly spaced from 0 to 1, turn a deferral rate into a threshold. `calibration_id` is
    told with every answer, `certificate` is what is promised and at which thresholds, `costs` are
    those of student and teacher per row, and `calibration` is all that ``joint.toml`` says of it.
    `version` is its number, where there are several.
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
    config: JointConfig | None = None  # what ``joint.toml`` said, all of it
    version: str | None = None

    @property
    def about(self) -> dict[str, str]:
        """Which model it is, for a line of the log."""
        version = {} if self.version is None else {"version": self.version}
        return {"model": self.name, **version}

    def differs(self, config: JointConfig) -> list[str]:
        """What else than the calibration differs from what is served, by the names of its fields.

        ValueError: what is served came from no ``joint.toml``.
        """
        if self.config is None:
            raise ValueError("what is served came from no joint.toml")
        names = {one.name for one in fields(JointConfig)} - {*CALIBRATED}
        return sorted(name for name in names if getattr(config, name) != getattr(self.config, name))

    def recalibrate(self, config: JointConfig) -> None:
        """Take over another calibration of the same models.

        ValueError: `config` differs from what is served in more than that.
        """
        if other := self.differs(config):
            raise ValueError(
                f"joint.toml now has another {', '.join(other)}, and only another calibration of "
                "the same models is taken over"
            )
        config.check()
        vars(self).update(_calibrated(config), config=config)

    def threshold_at(self, deferral_rate: float) -> float:
        """The threshold that defers this share of the calibration half; ValueError if unknown."""
        if not 0 <= deferral_rate <= 1:
            raise ValueError(f"deferral_rate must lie between 0 and 1, not {deferral_rate!r:.60}")
        if not self.score_quantiles:
            raise ValueError(
                "deferral_rate needs a joint.toml with the scores' quantiles; calibrate again, or "
                "give a threshold"
            )
        return math.inf if deferral_rate == 1 else float(np.interp(deferral_rate, *self._grid()))

    def rate_at(self, threshold: float) -> float | None:
        """The share of the calibration half that a threshold defers; None where it is not known."""
        if not self.score_quantiles:
            return None
        rates, scores = self._grid()
        return 1.0 if threshold > scores[-1] else float(np.interp(threshold, scores, rates))

    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Deferral rates, and the finite thresholds that defer so much of the calibration half."""
        known = np.asarray(self.score_quantiles, np.float64)
        finite = np.where(np.isneginf(known), np.finfo(np.float64).min, known)
        return np.linspace(0, 1, len(known)), finite

    def score_deciles(self) -> list[float]:
        """The calibration's scores at 10, 20, ..., 90 %, each once; none if not known."""
        if not self.score_quantiles:
            return []
        found = {round(self.threshold_at(tenth / 10), 6) for tenth in range(1, 10)}
        return sorted(value for value in found if abs(value) < 1e300)

    def score_edges(self) -> list[float]:
        """Edges of even bins between the calibration's scores at 1 and 99 %; none if not known."""
        known = np.asarray(self.score_quantiles, np.float64)[1:-1]
        known = known[np.isfinite(known)]
        if not len(known) or known[0] == known[-1]:
            return []
        return np.linspace(known[0], known[-1], SCORE_BINS + 1).tolist()

    def point(self, name: str) -> float:
        """The threshold of a named operating point; ValueError where none has that name."""
        if name not in self.operating_points:
            known = ", ".join(self.operating_points) or "none"
            raise ValueError(f"there is no operating point {name!r:.60}; there are: {known}")
        return self.operating_points[name]

    def chosen(self, wish: Mapping[str, Any]) -> float | None:
        """The threshold that a request or the knob asks for; None where it asks for none.

        ValueError: it asks for two, or for one that is not possible.
        """
        asked = [name for name in KNOBS if name in wish]
        if len(asked) > 1:
            raise ValueError(f"give one of {' and '.join(asked)}, not both")
        if not asked:
            return None
        value = wish[asked[0]]
        if asked[0] == "operating_point":
            return self.point(str(value))
        if not is_number(value):
            raise ValueError(f"{asked[0]} must be a number, not {value!r:.60}")
        return check_threshold(value) if asked[0] == "threshold" else self.threshold_at(value)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """The hashes of what answers, see `identities`."""
        entries = () if self.config is None else (self.config.student, self.config.teacher)
        return identities(self.joint, *entries)

    @property
    def takes_images(self) -> bool:
        """Whether inputs are images, which each model prepares for itself."""
        return self.joint.kind.takes_images or isinstance(models_of(self.joint)[0], Preprocessed)

    @property
    def takes_texts(self) -> bool:
        """Whether inputs are known to be texts."""
        dtype = facts(models_of(self.joint)[0]).input_dtype
        return dtype is not None and dtype.kind in "OU"

    @property
    def columns(self) -> tuple[str, ...] | None:
        """What the columns of a row are called, where a model or ``joint.toml`` says it."""
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
        """What an answer says, by name; `outputs` adds how it came about."""
        classes = None if self.labels is None else len(self.labels)
        return self.joint.kind.tensors(classes, self.names)

    @property
    def names(self) -> tuple[str, ...] | None:
        """What its classes are called, where that says more than their numbers."""
        return self.labels if are_names(self.labels) else None

    def outputs(self) -> tuple[TensorMetadata, ...]:
        """The metadata of the outputs."""
        told = {"score": np.float32, "deferred": np.bool_, "degraded": np.bool_, "stage": np.int64}
        known = {name: (one.dtype, one.shape) for name, one in self.tensors().items()}
        known |= {name: (dtype, (None,)) for name, dtype in told.items()}
        return tuple(TensorMetadata.of(name, *about) for name, about in known.items())


def served_of(config: JointConfig, **options: Any) -> Served:
    """What a ``joint.toml`` describes, loaded; `options` are those of `load_model`.

    A ModelError says that a model file has changed, or cannot be loaded.
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
    """What a calibration says, as fields of `Served`."""
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
    """A classifier alone, for clients that have the student: a joint model that defers nothing.

    `preprocess` is how a decoded image becomes its input; None where inputs are arrays already.
    """
    model = load_model(path, **options)
    model = model if preprocess is None else prepared(model, preprocess)
    every = Router("max_logit", float(np.finfo(np.float64).min))
    return Served(JointClassifier(model, model, every), name=Path(path).stem)
