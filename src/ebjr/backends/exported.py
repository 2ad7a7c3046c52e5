"""ExportedJoint: a joint model in one ``.onnx`` file, written by `ebjr.export`."""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ebjr.arrays import Batch, join_rows
from ebjr.backends.onnx import (
    DTYPES,
    can_become,
    external_files,
    known_shape,
    open_session,
    runtime_says,
)
from ebjr.blend import as_blend
from ebjr.errors import ModelError
from ebjr.files import sha256_of
from ebjr.joint import JointAnswer
from ebjr.model import ModelFacts
from ebjr.router import Router, round_up
from ebjr.scores import Score, as_score
from ebjr.task import Task
from ebjr.tasks import as_task
from ebjr.tasks.detection.boxes import Detections

OUTPUTS = ("prediction", "output", "score", "deferred")
DETECTION_OUTPUTS = ("boxes", "labels", "scores", "score", "deferred")
TOLD = ("task", "score", "threshold", "blend")


class ExportedJoint:
    """A joint model in one ``.onnx`` file of `export_joint`: a batch in, a `JointAnswer` out.

    `about` is the file's metadata: the task, the score, the blend, the models' hashes and routers,
    the calibration, the operating points. `router.threshold` is the knob: a new value takes effect
    at the next batch. `threads` and `providers` are as for an `OnnxModel`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self._session = open_session(self.path, threads, providers)
        said = self._session.get_modelmeta().custom_metadata_map
        self.about = {key[5:]: _read(text) for key, text in said.items() if key[:5] == "ebjr."}
        for weights in external_files(self.path):
            if self.about.get("weights", found := sha256_of(weights)) != found:
                raise ModelError(f"{weights} has changed since {path} was exported; export again")
        knobs = list(self._session.get_overridable_initializers())
        self.output_names = tuple(node.name for node in self._session.get_outputs())
        own = tuple(name for name in self.output_names if name != "stage")  # older files lack it
        known = own in (OUTPUTS, DETECTION_OUTPUTS) and set(TOLD) <= set(self.about)
        if [node.name for node in knobs] != ["threshold"] or not known:
            raise ModelError(f"{path} is not a joint model; `ebjr export` writes one")
        (given,) = self._session.get_inputs()
        self.name = str(self.about.get("name", self.path.stem))
        self.input_name: str = given.name
        self.input_dtype: np.dtype[Any] = np.dtype(DTYPES[given.type])
        self.input_shape: tuple[Any, ...] = tuple(given.shape)
        self._knob = np.dtype(DTYPES[knobs[0].type])
        self.task: str = self.about["task"]
        self.kind: Task = as_task(self.task, self.about.get("known_classes"))
        self.labels: tuple[str, ...] | None = tuple(self.about.get("labels", ())) or None
        self.columns: tuple[str, ...] | None = tuple(self.about.get("columns", ())) or None
        self.operating_points: dict[str, Any] = self.about.get("operating_points", {})
        self.blend = as_blend(self.about["blend"])
        score, threshold = _score(self.about["score"]), float(self.about["threshold"])
        self.router = Router(score, threshold, self.about.get("skip"))

    @cached_property
    def facts(self) -> ModelFacts:
        """Name, path, labels and input."""
        return ModelFacts(
            self.name,
            self.path,
            labels=self.labels,
            input_name=self.input_name,
            input_shape=known_shape(self.input_shape),
            input_dtype=self.input_dtype,
            multilabel=self.kind.targets_are == "label sets",
        )

    def __call__(self, inputs: Batch, /) -> JointAnswer:
        """Answer a batch: an array (n, ...), or a list of n inputs."""
        parts = [self._run(batch) for batch in self._dense(inputs)]
        whole = {name: join_rows([part[name] for part in parts]) for name in parts[0]}
        return JointAnswer(**whole, degraded=np.zeros(len(whole["score"]), bool))

    def _dense(self, inputs: Batch) -> list[np.ndarray]:
        if isinstance(inputs, list | tuple):
            alike = len({np.shape(entry) for entry in inputs}) == 1
            batches = [np.stack(inputs)] if alike else [np.asarray(entry)[None] for entry in inputs]
        else:
            batches = [np.asarray(inputs)]
        if self.input_shape[0] == 1:
            batches = [row[None] for batch in batches for row in batch]
        return batches

    def _run(self, batch: np.ndarray) -> dict[str, Any]:
        if not can_become(batch.dtype, self.input_dtype):
            raise TypeError(f"{self.name} takes {self.input_dtype}, but was given {batch.dtype}")
        threshold = self.router.threshold
        single = self._knob == np.float32
        knob = np.array(round_up(threshold) if single else threshold, self._knob)
        feed = {self.input_name: batch.astype(self.input_dtype, copy=False), "threshold": knob}
        try:
            found = self._session.run(list(self.output_names), feed)
        except Exception as error:
            raise ModelError(
                f"{self.name} failed on a batch of shape {batch.shape}: {runtime_says(error)}"
            ) from error
        whole = dict(zip(self.output_names, found, strict=True))
        if "prediction" in whole:
            return whole
        return self._detected(whole, batch.shape[1:3])

    def _detected(self, whole: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        columns = [whole.pop(name) for name in DETECTION_OUTPUTS[:3]]
        found, classes = [], int(self.about["classes"])
        for boxes, labels, scores in zip(*columns, strict=True):
            real = labels >= 0
            about: dict[str, Any] = {"labels": labels[real], "classes": classes}
            found.append(Detections.of_scores(boxes[real], scores[real], size, **about))
        return {"prediction": found, "output": found, **whole}

    def __repr__(self) -> str:
        return f"ExportedJoint({str(self.path)!r}, threshold={self.router.threshold!r})"


def _score(text: str) -> Score:
    """Return the score of a name; an unknown one is a name only, since the graph computes it."""
    try:
        return as_score(text)
    except ValueError:
        return Score(text, _unknown)


def _unknown(_output: Any) -> Any:
    raise ValueError("only the exported file has this score; register it under its name")


def _read(text: str) -> Any:
    """Read metadata, which is JSON or plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
