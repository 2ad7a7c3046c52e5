"""joint.toml <-> joint model: `calibrate` writes it, `predict` and `serve` read it."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from ebjr.backends import load_model
from ebjr.backends.exported import ExportedJoint
from ebjr.blend import as_blend, blend_text
from ebjr.calibration.guarantee import Certificate
from ebjr.costs import UNITS, Cost
from ebjr.curve import OperatingPoint, TradeOffCurve
from ebjr.data.preprocess import Preprocess, prepared, unprepared
from ebjr.errors import ModelError, PromiseWarning, ProtocolError, TeacherUnavailable
from ebjr.evaluation.plots import thin_rows
from ebjr.files import sha256_of, write_whole
from ebjr.joint import (
    JointClassifier,
    JointDetector,
    JointModel,
    JointRegressor,
    SpecializedJointClassifier,
)
from ebjr.known_classes import Traffic, check_known_classes
from ebjr.link.far import FarTeacher, Link
from ebjr.link.late import LateAnswers
from ebjr.model import Model, model_name
from ebjr.monitor import DriftMonitor
from ebjr.outcomes import Outcomes
from ebjr.precision import CommonScale
from ebjr.protocol import read_metadata
from ebjr.router import Router, check_threshold
from ebjr.scores import as_score
from ebjr.study import Study, study_point
from ebjr.tasks import as_task
from ebjr.threads import shared_cores

log = logging.getLogger("ebjr.joint_file")

FINALS: dict[str, type[JointModel]] = {
    final.task: final
    for final in (JointClassifier, SpecializedJointClassifier, JointRegressor, JointDetector)
}


@dataclass(frozen=True)
class ModelEntry:
    """One model in ``joint.toml``: where it is, what it was, and how its inputs are prepared.

    Parameters
    ----------
    path
        A model file; relative ones are relative to ``joint.toml``.
    sha256
        Of the file when the threshold was calibrated.
    preprocess
        How a decoded image becomes this model's input; None where inputs are arrays already.
    cost
        Per example.
    options
        For `load_model`: threads, providers, batch_size; of a detector its layout, classes and
        what else `OnnxDetector` takes.
    """

    path: str
    sha256: str
    preprocess: Preprocess | None = None
    cost: Cost = field(default_factory=Cost)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_file(cls, path: str | os.PathLike[str], **about: Any) -> ModelEntry:
        """The entry of a model file as it is now.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no model file {path}")
        return cls(str(Path(path).resolve()), sha256_of(path), **about)

    def check(self) -> None:
        """Check that the file is what it was.

        Raises
        ------
        ModelError
            The file has changed since the threshold was calibrated.
        FileNotFoundError
            It is gone.
        """
        if not Path(self.path).is_file():
            raise FileNotFoundError(f"the model file {self.path} that joint.toml names is missing")
        found = sha256_of(self.path)
        if found != self.sha256:
            raise ModelError(
                f"{self.path} has changed since the threshold was calibrated (sha256 "
                f"{found[:12]}..., expected {self.sha256[:12]}...); record and calibrate again"
            )

    def load(self, **options: Any) -> Model:
        """Load the model, with its preprocessing, if its file passes `check`."""
        self.check()
        model = load_model(self.path, **{**self.options, **options})
        return model if self.preprocess is None else prepared(model, self.preprocess)

    def as_table(self, folder: Path) -> dict[str, Any]:
        """The TOML table, with the path relative to `folder`."""
        table: dict[str, Any] = {
            "path": os.path.relpath(self.path, folder),
            "sha256": self.sha256,
            **self.options,
        }
        if self.cost.as_dict():
            table["cost"] = self.cost.as_dict()
        if self.preprocess is not None:
            table["preprocess"] = self.preprocess.as_dict()
        return table

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path, where: str) -> ModelEntry:
        """Read a TOML table; `where` names it in errors."""
        _check_keys(table, ("path", "sha256", *_SHARED, *OPTIONS), where)
        _check_present(table, ("path", "sha256"), where)
        return cls(
            path=str((folder / table["path"]).resolve()),
            sha256=table["sha256"],
            options={key: table[key] for key in OPTIONS if key in table},
            **_shared(table, where),
        )


@dataclass(frozen=True)
class RemoteEntry:
    """A far teacher in ``joint.toml``: its address, what its server said of it, how it is asked.

    Parameters
    ----------
    url
        Of the model: ``http(s)://host:port/v2/models/NAME``.
    metadata
        What the server said when the threshold was calibrated: name, versions, tensors. A remote
        model has no file to be hashed: it is taken for the same as long as its server says the
        same of it, and answers as a version that is named here.
    link
        How it is asked, and what is done when it is away.
    preprocess, cost
        As of a `ModelEntry`; the cost includes the link.
    options
        For `load_model`: send, quality, gzip, timeout_seconds, batch_size, output.
    """

    url: str
    metadata: Mapping[str, Any]
    link: Link = field(default_factory=Link)
    preprocess: Preprocess | None = None
    cost: Cost = field(default_factory=Cost)
    options: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Nothing can be checked without asking the server: `load` asks it."""

    def load(self, **options: Any) -> FarTeacher:
        """The model, with its preprocessing, behind its link.

        A server that cannot be reached now may be there later: the rows until then are answered
        as the policy says. `options` are for models that run here.

        Raises
        ------
        ModelError
            The server says something else of the model than it did.
        """
        model: Any = load_model(self.url, **self.options, metadata=self.metadata)
        try:
            model.check()
        except TeacherUnavailable as error:
            log.warning("%s: the teacher is not there yet", error)
        if self.preprocess is not None:
            model = prepared(model, self.preprocess)
        return FarTeacher(model, self.link)

    def as_table(self, folder: Path) -> dict[str, Any]:
        """The TOML table, with the queue's path relative to `folder`."""
        table: dict[str, Any] = {"url": self.url, **self.options, **self.link.as_dict()}
        if "queue" in table:
            table["queue"] = os.path.relpath(table["queue"], folder)
        if self.cost.as_dict():
            table["cost"] = self.cost.as_dict()
        if self.preprocess is not None:
            table["preprocess"] = self.preprocess.as_dict()
        return {**table, "metadata": dict(self.metadata)}

    @classmethod
    def from_table(cls, table: Mapping[str, Any], folder: Path, where: str) -> RemoteEntry:
        """Read a TOML table; `where` names it in errors."""
        _check_keys(table, ("url", "metadata", *_SHARED, *REMOTE_OPTIONS, *LINK_KEYS), where)
        _check_present(table, ("url", "metadata"), where)
        try:
            read_metadata(table["metadata"])
        except (ProtocolError, AttributeError) as error:
            raise ValueError(f"{where}.metadata is no model's metadata: {error}") from error
        link = Link.from_dict({key: table[key] for key in LINK_KEYS if key in table})
        return cls(
            url=table["url"],
            metadata=table["metadata"],
            link=replace(link, queue=str((folder / link.queue).resolve())),
            options={key: table[key] for key in REMOTE_OPTIONS if key in table},
            **_shared(table, where),
        )


Entry = ModelEntry | RemoteEntry


def entry_of(model: Model, cost: Cost | None = None, link: Link | None = None) -> Entry:
    """The entry of a loaded model, with its preprocessing.

    Parameters
    ----------
    model
        A model that `load_model` made of a file or an address.
    cost
        Per example.
    link
        Of a remote model: how it is asked; None is as it is.

    Raises
    ------
    TypeError
        The model came from neither.
    """
    whole: Any = model
    if isinstance(whole, FarTeacher):
        whole, link = whole.teacher, link or whole.link
    options = getattr(whole, "options", None)  # of a detector, which prepares its images itself
    whole, preprocess = unprepared(whole)
    options = getattr(whole, "options", {}) if options is None else options
    about: dict[str, Any] = {"preprocess": preprocess, "cost": cost or Cost(), "options": options}
    if getattr(whole, "url", None) is not None:
        return RemoteEntry(whole.url, whole.metadata.as_dict(), link or Link(), **about)
    if getattr(whole, "path", None) is None:
        raise TypeError(
            f"joint.toml names files and addresses of models, but {model_name(whole)} has neither; "
            "use models that ebjr.load_model read"
        )
    return ModelEntry.of_file(whole.path, **about)


def entry_from_table(table: Mapping[str, Any], folder: Path, where: str) -> Entry:
    """The entry of a TOML table, which names a file or an address."""
    _check_keys(table, None, where)
    kind = RemoteEntry if "url" in table else ModelEntry
    return kind.from_table(table, folder, where)


def check_remote(task: str) -> None:
    """Check that the teacher of a task may be at an address.

    Raises
    ------
    ValueError
        Its answers do not travel.
    """
    if task == "detection":
        raise ValueError("a detector at an address cannot be the teacher yet: give its file")


def parse_link(text: str) -> tuple[dict[str, Any], Link]:
    """Options of a remote model, and its link, as one flag of the command line gives them.

    Raises
    ------
    ValueError
        A part is not ``key=value``, or its key or value is not allowed.

    Examples
    --------
    >>> parse_link("send=jpeg,retries=1,when_unavailable=queue")
    ({'send': 'jpeg'}, Link(retries=1, ..., when_unavailable='queue', ...))
    """
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"a link is key=value,key=value,... but has {part!r}")
        try:
            values[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            values[name] = value
    _check_keys(values, (*REMOTE_OPTIONS, *LINK_KEYS), "a link")
    link = Link.from_dict({key: value for key, value in values.items() if key in LINK_KEYS})
    return {key: values[key] for key in REMOTE_OPTIONS if key in values}, link


def entries_of(
    outcomes: Outcomes,
    path: str | os.PathLike[str],
    given: Mapping[str, str | None],
    link: str | None = None,
) -> dict[str, Entry]:
    """Both models' entries by role: as recorded, unless others are given.

    Parameters
    ----------
    outcomes, path
        What was recorded, and its file.
    given
        By role: a file or an address in place of what was recorded.
    link
        How a far teacher is asked, as `parse_link` takes it.

    Raises
    ------
    ValueError
        A model is neither recorded nor given.
    """
    costs = {"student": outcomes.student_cost, "teacher": outcomes.teacher_cost}
    entries: dict[str, Entry] = {}
    for role, source in given.items():
        table, entry = outcomes.models.get(role), None
        if table is None and source is None:
            raise ValueError(
                f"{path} does not say which file its {role} was: give it with --{role}"
            )
        if table is not None:
            entry = entry_from_table(table, Path(path).resolve().parent, f"{path}: {role}")
        if source is not None:
            preprocess = None if entry is None else entry.preprocess
            entry = replace(_entry_at(source, link), preprocess=preprocess)
        elif isinstance(entry, RemoteEntry) and link is not None:
            options, how = parse_link(link)
            entry = replace(entry, options={**entry.options, **options}, link=how)
        assert entry is not None
        entries[role] = replace(entry, cost=costs[role])
    return entries


def _entry_at(source: str, link: str | None) -> Entry:
    """The entry of a file or of an address, as it is now."""
    if not source.startswith(("http://", "https://")):
        return ModelEntry.of_file(source)
    options, how = parse_link(link or "")
    return entry_of(load_model(source, **options), link=how)


OPTIONS = (
    *("threads", "providers", "batch_size", "output"),
    *("layout", "classes", "nms", "above", "limit"),
)

REMOTE_OPTIONS = ("send", "quality", "gzip", "timeout_seconds", "batch_size", "output")
LINK_KEYS = tuple(f.name for f in fields(Link))
_SHARED = ("cost", "preprocess")

_POINT_KEYS = (
    *(f.name for f in fields(OperatingPoint)),
    *("cost", "unit", "break_even", "pays", "saving"),
)
_GOAL_KEYS = (
    *("goal", "tolerance", "target", "flops", "seconds", "joules", "bytes", "deferral_rate"),
    *("delta", "promise", "loss_bound"),
)
_CALIBRATION_KEYS = (
    *("date", *_GOAL_KEYS, "outcomes", "split_fraction", "split_seed", "traffic"),
    *("certified", "chosen_on", "held_out", "score_quantiles", "curve", "drift", "disagreement"),
    *("preprocessing", "known_classes", "classes"),
)
_CURVE_ROWS = 51


@dataclass(frozen=True)
class JointConfig:
    """Everything that ``joint.toml`` says.

    Parameters
    ----------
    student, teacher
        The models: files, or of the teacher an address.
    score, threshold, blend
        The router, and the student's weight in a deferred answer.
    task, name, labels
        What it does, what it is called, and the classes' names.
    calibration
        How the threshold was chosen: the goal, the fingerprints of the data and of both models'
        preprocessing, what a specialized student then knew, the certificate if there is one
        (`certified`), the figures on the calibration half (`chosen_on`) and on the other
        (`held_out`), the calibration half's scores at 101 evenly spaced shares
        (`score_quantiles`), lowest first, by which a deferral rate is a threshold, and rows of the
        curve on the other half (`curve`: threshold, deferral_rate, quality), which say what another
        threshold would do. For the monitor of a server, of that half too: what a `DriftMonitor`
        keeps of its scores (`drift`), and how many rows the student keeps where the teacher says
        something else (`disagreement`).
    operating_points
        Other thresholds by name, each with its figures.
    rescale
        For detection: what puts both detectors' scores on one scale.
    known_classes, classes
        Of a specialized student: the teacher's labels that it knows, and how many there are.
    imports
        The files and modules that were imported for scores and metrics of the user's own. They
        are named where such a score is unknown, and never run because a file names them.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/joint.toml"
    >>> models = ModelEntry("student.onnx", "5f1c"), ModelEntry("teacher.onnx", "90ab")
    >>> JointConfig(*models, score="margin", threshold=0.3).save(path)
    >>> config = JointConfig.read(path)
    >>> config.score, config.threshold
    ('margin', 0.3)
    """

    student: Entry
    teacher: Entry
    score: str
    threshold: float
    blend: float = 0.0
    task: str = "classification"
    name: str = "joint"
    labels: tuple[str, ...] | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    operating_points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rescale: CommonScale | None = None
    known_classes: tuple[int, ...] | None = None
    classes: int | None = None
    imports: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.student, RemoteEntry):
            raise ValueError("the student answers every input and must be a file: give its path")
        if isinstance(self.teacher, RemoteEntry):
            check_remote(self.task)
        kind = as_task(self.task, self.known_classes)
        kind.check_scale(self.rescale)
        if self.task == "specialized":
            if self.known_classes is None or not isinstance(self.classes, int):
                raise ValueError("task 'specialized' needs known_classes, and classes: how many")
            check_known_classes(kind.known_classes, self.classes)
        object.__setattr__(self, "known_classes", kind.known_classes)
        router = Router(self.score, self.threshold)
        object.__setattr__(self, "blend", as_blend(self.blend))
        if not router.score.named:
            raise ValueError(
                f"joint.toml can only name a score, and {self.score} has no registered name; "
                "give it one with ebjr.register_score"
            )

    @classmethod
    def of_study(
        cls,
        student: Entry,
        teacher: Entry,
        study: Study,
        name: str = "joint",
        imports: Sequence[str] = (),
    ) -> JointConfig:
        """The configuration that a study leads to.

        Parameters
        ----------
        student, teacher
            The models' files.
        study
            The calibration, with its figures on both halves.
        name
            What a server calls the model.
        imports
            What was imported for the study's score.
        """
        fraction, seed = study.split
        return cls(
            student=student,
            teacher=teacher,
            score=study.point.score,
            threshold=study.point.threshold,
            blend=study.point.blend,
            task=study.outcomes.task,
            name=name,
            labels=study.outcomes.labels,
            calibration={
                "date": date.today(),
                **study.goal,
                "outcomes": study.outcomes.fingerprint,
                "split_fraction": fraction,
                "split_seed": seed,
                **({} if study.traffic is None else {"traffic": asdict(study.traffic)}),
                **_meaning(student, teacher, study.outcomes.known_classes, study.outcomes.classes),
                **_chosen(study.point),
                "held_out": study.result.as_dict(),
                "score_quantiles": _score_quantiles(study),
                "curve": _curve(study),
                **_watched(study),
            },
            operating_points={key: _figures(point) for key, point in study.named_points.items()},
            rescale=study.point.rescale,
            known_classes=study.outcomes.known_classes,
            classes=study.outcomes.classes,
            imports=tuple(imports),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all.

        Raises
        ------
        OSError
            It cannot be written.
        """
        folder = Path(path).resolve().parent
        table: dict[str, Any] = {"name": self.name, "task": self.task}
        if self.imports:
            table["imports"] = list(self.imports)
        if self.labels is not None:
            table["labels"] = list(self.labels)
        if self.known_classes is not None:
            table |= {"known_classes": list(self.known_classes), "classes": self.classes}
        table["router"] = {
            "score": self.score,
            "threshold": self.threshold,
            "blend": blend_text(self.blend),
        }
        if self.rescale is not None:
            table["router"]["rescale"] = self.rescale.as_dict()
        table["student"] = self.student.as_table(folder)
        table["teacher"] = self.teacher.as_table(folder)
        if self.calibration:
            table["calibration"] = dict(self.calibration)
        if self.operating_points:
            table["operating_points"] = {k: dict(v) for k, v in self.operating_points.items()}
        with write_whole(path, "wb") as file:
            tomli_w.dump(table, file)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> JointConfig:
        """Read a ``joint.toml``.

        Raises
        ------
        FileNotFoundError
            There is none.
        ValueError
            It is not TOML, misses a key, or has one that is not known.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"there is no {path}; `ebjr calibrate` makes one")
        try:
            table = tomllib.loads(file.read_text(encoding="utf-8"))
            return cls._from_table(table, file.resolve().parent)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a TOML file: {error}") from error
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_table(cls, table: Mapping[str, Any], folder: Path) -> JointConfig:
        top = ("name", "task", "labels", "router", "student", "teacher", "calibration")
        more = ("operating_points", "known_classes", "classes", "imports")
        _check_keys(table, (*top, *more), "the file")
        _check_present(table, ("router", "student", "teacher"), "the file")
        router = table["router"]
        _check_keys(router, ("score", "threshold", "blend", "rescale"), "router")
        _check_present(router, ("score", "threshold"), "router")
        imports = _checked_imports(table.get("imports", []))
        _check_score(router["score"], imports)
        calibration = table.get("calibration", {})
        _check_keys(calibration, _CALIBRATION_KEYS, "calibration")
        points = table.get("operating_points", {})
        for name, point in points.items():
            _check_keys(point, _POINT_KEYS, f"operating_points.{name}")
            _check_present(point, ("threshold",), f"operating_points.{name}")
        labels = table.get("labels")
        return cls(
            student=entry_from_table(table["student"], folder, "student"),
            teacher=entry_from_table(table["teacher"], folder, "teacher"),
            score=router["score"],
            threshold=check_threshold(router["threshold"]),
            blend=router.get("blend", 0.0),
            task=table.get("task", "classification"),
            name=table.get("name", "joint"),
            labels=None if labels is None else tuple(labels),
            calibration=calibration,
            operating_points=points,
            rescale=CommonScale.from_dict(router["rescale"]) if "rescale" in router else None,
            known_classes=table.get("known_classes"),
            classes=table.get("classes"),
            imports=imports,
        )

    @property
    def certificate(self) -> Certificate | None:
        """What is promised of the threshold, if it is still the one that was certified."""
        certified = self.calibration.get("certified")
        return None if certified is None or self.changes else Certificate.from_dict(certified)

    @property
    def changes(self) -> list[str]:
        """What is not as it was calibrated, one clause each.

        The threshold is a knob, and may be anything where nothing was certified.
        """
        chosen = self.calibration.get("chosen_on", {})
        certified = "certified" in self.calibration
        now = {"score": self.score, "threshold": self.threshold, "blend": blend_text(self.blend)}
        if self.rescale is not None or "rescale" in chosen:
            now["rescale"] = None if self.rescale is None else self.rescale.as_dict()
        watched = [key for key in now if certified or key != "threshold"]
        return [
            f"{key} is {now[key]!r} and was {chosen[key]!r}"
            for key in watched
            if key in chosen and chosen[key] != now[key]
        ]

    def check(self) -> None:
        """Check that the threshold was calibrated for what the file says of the models.

        Raises
        ------
        ModelError
            The preprocessing, or what a specialized student knows, has changed.

        Warns
        -----
        PromiseWarning
            Score, blend, or a certified threshold is not what was calibrated.
        """
        meaning = _meaning(self.student, self.teacher, self.known_classes, self.classes)
        for key, words in _MEANING.items():
            if self.calibration.get(key, meaning.get(key)) != meaning.get(key):
                raise ModelError(
                    f"the {words} in joint.toml has changed since the threshold was calibrated; "
                    "record and calibrate again"
                )
        if self.changes:
            void = "promise is" if "certified" in self.calibration else "figures are"
            warnings.warn(
                f"joint.toml is not as it was calibrated ({'; '.join(self.changes)}), so that "
                f"its {void} void; calibrate again",
                PromiseWarning,
                stacklevel=3,
            )

    def load(
        self, *, student: Model | None = None, teacher: Model | None = None, **options: Any
    ) -> JointModel:
        """Load both models and join them.

        Parameters
        ----------
        student, teacher
            In place of the file's, where that is loaded somewhere else.
        **options
            For `load_model`.

        Raises
        ------
        ModelError
            A model file, the preprocessing, or what a specialized student knows has changed, or a
            model cannot be loaded.

        Warns
        -----
        PromiseWarning
            Score, blend, or a certified threshold is not what was calibrated.
        """
        self.check()
        own = {name: getattr(self, name) for name in ("rescale", "known_classes", "classes")}
        return FINALS[self.task](
            self.student.load(**options) if student is None else student,
            self.teacher.load(**options) if teacher is None else teacher,
            Router(self.score, self.threshold),
            blend=self.blend,
            **{name: value for name, value in own.items() if value is not None},
            **(self._policy() if teacher is None else {}),
        )

    def study(self, outcomes: Outcomes, *, fraction: float = 0.5, seed: int = 0) -> Study:
        """The study of the file's threshold, on examples it was not chosen on.

        Outcomes that it was calibrated on are split and drawn as they were then.

        Parameters
        ----------
        outcomes
            What both models said.
        fraction, seed
            The split of other outcomes, as for `Outcomes.split`.
        """
        known = self.calibration
        if known.get("outcomes") == outcomes.fingerprint:
            fraction = known.get("split_fraction", fraction)
            seed = known.get("split_seed", seed)
        table = outcomes.with_scale(self.rescale)
        curve = TradeOffCurve.of(table, self.score, self.blend, keep=[self.threshold])
        point = replace(curve.at(threshold=self.threshold), certified=self.certificate)
        goal = {key: known[key] for key in _GOAL_KEYS if key in known}
        mix = known.get("traffic")
        traffic = None if mix is None else Traffic(mix["popular"], mix["popular_classes"])
        return study_point(
            outcomes, point, goal or None, fraction=fraction, seed=seed, traffic=traffic
        )

    def threads_for(self, overlap: int) -> int | None:
        """The threads of each model where so many batches are in work at once.

        They share the cores that there are; None where the file says how many, or a model is not
        ONNX Runtime's and takes none.
        """
        here = [each for each in (self.student, self.teacher) if isinstance(each, ModelEntry)]
        if any("threads" in each.options or not each.path.endswith(".onnx") for each in here):
            return None
        return shared_cores(overlap)

    def _policy(self) -> dict[str, Any]:
        """What is done when the teacher is away, which one that is here never is."""
        if isinstance(self.teacher, ModelEntry):
            return {}
        link = self.teacher.link
        late = None
        if link.when_unavailable == "queue":
            late = LateAnswers(
                link.queue, most_bytes=link.queue_bytes, keep_seconds=link.keep_seconds
            )
        return {"when_unavailable": link.when_unavailable, "late": late}


def save_joint(
    path: str | os.PathLike[str],
    joint: JointModel,
    *,
    point: OperatingPoint | None = None,
    labels: tuple[str, ...] | None = None,
    name: str = "joint",
) -> None:
    """Write a joint model whose models `load_model` read to ``joint.toml``.

    Parameters
    ----------
    path
        The file. Model paths in it are relative to its folder.
    joint
        The joint model; its router's threshold is what is written.
    point
        The operating point that `calibrate` chose: its figures are kept beside the threshold.
    labels
        The classes' names.
    name
        What a server calls the model.

    Raises
    ------
    TypeError
        A model came from neither a file nor an address.
    ValueError
        The score has no registered name, or the student is remote.

    Examples
    --------
    >>> import tempfile
    >>> from ebjr.demo import shipped
    >>> path = tempfile.mkdtemp() + "/joint.toml"
    >>> with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
    ...     models = load_model(student), load_model(teacher)
    ...     save_joint(path, JointClassifier(*models, Router("margin", 0.3)))
    ...     load_joint(path).router
    Router('margin', threshold=0.3)
    """
    costs = (Cost(), Cost()) if point is None else (point.student_cost, point.teacher_cost)
    student, teacher = entry_of(joint.student, costs[0]), entry_of(joint.teacher, costs[1])
    if isinstance(teacher, RemoteEntry):
        queue = teacher.link.queue if joint.late is None else str(Path(joint.late.path).resolve())
        link = replace(teacher.link, when_unavailable=joint.when_unavailable, queue=queue)
        teacher = replace(teacher, link=link)
    calibration: dict[str, Any] = {}
    if point is not None:
        meaning = _meaning(student, teacher, joint.known_classes, joint.classes)
        calibration = {"date": date.today(), **meaning, **_chosen(point)}
    JointConfig(
        student=student,
        teacher=teacher,
        score=str(joint.router.score),
        threshold=joint.router.threshold,
        blend=joint.blend,
        task=joint.task,
        name=name,
        labels=labels,
        calibration=calibration,
        rescale=joint.rescale,
        known_classes=joint.known_classes,
        classes=joint.classes,
    ).save(path)


def load_joint(path: str | os.PathLike[str], **options: Any) -> JointModel | ExportedJoint:
    """The joint model that a ``joint.toml`` describes, or that `ebjr export` wrote.

    Parameters
    ----------
    path
        The ``joint.toml``, or the ``.onnx`` file.
    **options
        For `load_model`, over those in the file: threads, providers, batch_size; of an exported
        one, threads and providers.

    Raises
    ------
    FileNotFoundError
        The file, or a model that it names, is missing.
    ValueError
        It is not TOML, misses a key, or has one that is not known.
    ModelError
        A model file has changed since the threshold was calibrated, or is no joint model.

    Examples
    --------
    >>> import tempfile
    >>> from ebjr.demo import shipped
    >>> path = tempfile.mkdtemp() + "/joint.toml"
    >>> with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
    ...     models = [ModelEntry.of_file(model) for model in (student, teacher)]
    ...     JointConfig(*models, score="margin", threshold=0.3).save(path)
    ...     joint = load_joint(path, threads=1)
    >>> answer = joint(np.zeros((2, 3, 32, 32), np.float32))
    >>> answer.prediction.shape, answer.deferred.shape
    ((2,), (2,))
    """
    if Path(path).suffix.lower() == ".onnx":
        return ExportedJoint(path, **options)
    return JointConfig.read(path).load(**options)


def read_joint(
    path: str | os.PathLike[str], *, threads: int | None = None, overlap: int = 1
) -> JointConfig | ExportedJoint:
    """What a ``joint.toml`` says, or an exported file, loaded.

    Parameters
    ----------
    path
        The file.
    threads, overlap
        Of an exported one: its threads; None shares the cores among the batches in work at once.
    """
    if Path(path).suffix.lower() != ".onnx":
        return JointConfig.read(path)
    return ExportedJoint(path, threads=threads or shared_cores(overlap))


def chosen_threshold(
    joint: JointConfig | ExportedJoint, threshold: float | None = None, name: str | None = None
) -> float:
    """The threshold to use: as given, of a named operating point, or the file's own.

    Raises
    ------
    ValueError
        There are two, or the file names no such operating point.
    """
    if threshold is not None and name is not None:
        raise ValueError("give --threshold or --operating-point, not both")
    if threshold is not None:
        return threshold
    if name is None:
        return joint.threshold if isinstance(joint, JointConfig) else joint.router.threshold
    if name not in joint.operating_points:
        known = ", ".join(joint.operating_points) or "none"
        raise ValueError(f"there is no operating point {name!r}; the file names {known}")
    return float(joint.operating_points[name]["threshold"])


def _chosen(point: OperatingPoint) -> dict[str, Any]:
    """What a chosen threshold does, and what is promised of it."""
    figures = point.as_dict()
    certified = figures.pop("certified", None)
    return {"chosen_on": figures} | ({} if certified is None else {"certified": certified})


_MEANING = {
    "preprocessing": "preprocessing",
    "known_classes": "list of known_classes",
    "classes": "number of classes",
}


def _meaning(
    student: Entry,
    teacher: Entry,
    known_classes: tuple[int, ...] | None,
    classes: int | None,
) -> dict[str, Any]:
    """What the models' files do not say of what goes in and what comes out, by `_MEANING`."""
    table: dict[str, Any] = {"preprocessing": _preprocessing(student, teacher)}
    if known_classes is not None:
        table |= {"known_classes": list(known_classes), "classes": classes}
    return table


def _score_quantiles(study: Study) -> list[float]:
    """The calibration half's scores at 0, 1, ..., 100 %; what always defers counts as -inf."""
    scores = np.asarray(study.point.router.score(study.calibration.student), np.float64)
    known = np.sort(np.where(np.isnan(scores), -np.inf, scores))
    at = np.linspace(0, len(known) - 1, 101).round().astype(int)
    return _short(known[at])


def _curve(study: Study) -> dict[str, list[float]]:
    """Rows of the held-out half's curve, even in deferral rate, both ends among them."""
    curve = study.point.curve(study.held_out)
    rows = thin_rows(curve, most=_CURVE_ROWS)
    columns = ("threshold", "deferral_rate", "quality")
    return {name: _short(getattr(curve, name)[rows]) for name in columns}


def _short(values: np.ndarray) -> list[float]:
    """Six digits."""
    return [float(f"{value:.6g}") for value in values]


def _watched(study: Study) -> dict[str, Any]:
    """What live scores and answers are compared with: those of the half that nothing was fitted on.

    Nothing where it is too small to tell; no disagreement where answers are no labels.
    """
    router, rows = study.point.router, study.held_out
    scores = np.asarray(router.score(rows.student), np.float64)
    if len(scores) < 20:
        return {}
    found: dict[str, Any] = {"drift": DriftMonitor(scores, threshold=router.threshold).reference}
    if rows.kind.has_labels:
        differs = rows.predictions("student") != rows.predictions("teacher")
        kept = scores >= router.threshold
        found["disagreement"] = {
            "threshold": router.threshold,
            "rows": len(scores),
            "kept_and_contradicted": int((kept & differs).sum()),
        }
    return found


def _preprocessing(student: Entry, teacher: Entry) -> str:
    """A short hash of how both models' inputs are prepared."""
    tables = [
        None if entry.preprocess is None else entry.preprocess.as_dict()
        for entry in (student, teacher)
    ]
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:16]


def _figures(point: OperatingPoint) -> dict[str, Any]:
    """What a named operating point keeps: its threshold and what it does."""
    whole = point.as_dict()
    return {key: whole[key] for key in ("threshold", "deferral_rate", "quality", "cost")}


def _shared(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What the tables of all models have."""
    cost, preprocess = table.get("cost", {}), table.get("preprocess")
    _check_keys(cost, (*UNITS, "joules_are"), f"{where}.cost")
    return {
        "cost": Cost(**cost),
        "preprocess": None if preprocess is None else Preprocess.from_dict(preprocess),
    }


def _check_keys(table: Any, allowed: tuple[str, ...] | None, where: str) -> None:
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, not {type(table).__name__}")
    for key in table if allowed is not None else ():
        assert allowed is not None
        if key not in allowed:
            close = difflib.get_close_matches(key, allowed, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(allowed)}"
            raise ValueError(f"{where} has an unknown key {key!r}; {hint}")


def _checked_imports(imports: Any) -> tuple[str, ...]:
    if not isinstance(imports, list) or not all(isinstance(each, str) for each in imports):
        raise ValueError(f"imports must be a list of files and modules, not {imports!r}")
    return tuple(imports)


def _check_score(score: Any, imports: tuple[str, ...]) -> None:
    """Check that a score is known; else say what must be imported first."""
    try:
        as_score(score)
    except ValueError as error:
        if "no score named" not in str(error):
            raise
        words = " ".join(f"--import {name}" for name in imports)
        hint = (
            f"it was calibrated with {words}" if imports else "--import FILE makes your own known"
        )
        raise ValueError(f"{error}; {hint}") from None


def _check_present(table: Mapping[str, Any], needed: tuple[str, ...], where: str) -> None:
    missing = [key for key in needed if key not in table]
    if missing:
        raise ValueError(f"{where} misses {', '.join(missing)}")
