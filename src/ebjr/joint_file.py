"""joint.toml <-> joint model: `calibrate` writes it, `predict` and `serve` read it."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ebjr.backends.entry import (
    ROUTER_KEYS,
    ChatEntry,
    Entry,
    FarEntry,
    JointEntry,
    ModelEntry,
    RemoteEntry,
    Single,
    check_remote,
    check_table,
    entry_from_table,
    entry_of,
    joined,
    picked,
    stored_score,
)
from ebjr.backends.exported import ExportedJoint
from ebjr.blend import Blend, as_blend, blend_text
from ebjr.calibration.goal import ARGUMENTS, GUARANTEE, Goal
from ebjr.calibration.guarantee import Certificate
from ebjr.calibration.stages import StagedPoint, reduced
from ebjr.costs import Cost
from ebjr.curve import FIGURES, OperatingPoint, TradeOffCurve
from ebjr.errors import ModelError, PromiseWarning
from ebjr.files import check_file
from ebjr.joint import JointModel, models_of
from ebjr.joint_outcomes import check_same, models_changed, stages_in, unnamed
from ebjr.joint_text import read_table, write_table
from ebjr.labels import check_same_classes
from ebjr.model import Model, ModelFacts, facts
from ebjr.outcomes import Outcomes
from ebjr.protocol import check_name
from ebjr.router import Router, check_threshold
from ebjr.scores import as_score
from ebjr.tasks import as_task
from ebjr.threads import shared_cores

if TYPE_CHECKING:
    from ebjr.study import Study
    from ebjr.tasks.detection.scale import CommonScale
    from ebjr.tasks.specialized.known_classes import Traffic


_CALIBRATION_TABLES = (
    *("certified", "chosen_on", "held_out"),
    *("curve", "disagreement", "drift", "traffic"),
)
_CALIBRATION_KEYS = (
    *("date", "verdict", "goal", *ARGUMENTS, *GUARANTEE, *_CALIBRATION_TABLES),
    *("outcomes", "split_fraction", "split_seed", "preprocessing", "score_quantiles"),
    *("known_classes", "classes", "routers"),
)


@dataclass(frozen=True)
class JointConfig:
    """The content of ``joint.toml``.

    Parameters
    ----------
    student, teacher
        The models: files, or for the teacher an address.
    score, threshold, blend
        The router, and the student's weight in a deferred answer.
    task, name, labels
        The task, the model's name, and the classes' names.
    calibration
        How the threshold was chosen:

        - the goal; the fingerprints of the data and of both models' preprocessing; the classes that
          a specialized student knew
        - the certificate, if there is one (`certified`)
        - the figures on the calibration half (`chosen_on`) and on the held-out half (`held_out`)
        - the calibration half's scores at 101 evenly spaced quantiles, ascending
          (`score_quantiles`), which turn a deferral rate into a threshold
        - rows of the held-out half's curve (`curve`: threshold, deferral_rate, quality), which show
          the effect of another threshold
        - for a server's monitor, on the held-out half: the state of a `DriftMonitor` (`drift`), and
          how often student and teacher disagree on rows that the student keeps (`disagreement`)
    operating_points
        Other thresholds by name, each with its figures.
    rescale
        For detection: the common scale of both detectors' scores.
    known_classes, classes
        For a specialized student: the teacher's labels that it knows, and the number of labels.
    imports
        The files and modules that define the user's own scores and metrics. A message names them if
        such a score is unknown; they are never run because a file names them.
    columns
        For a table of numbers or texts: the columns' names, in the models' order.
    skip
        For a file that is a stage of another: see `Router`.

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
    blend: float | Blend = 0.0
    task: str = "classification"
    name: str = "joint"
    labels: tuple[str, ...] | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    operating_points: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rescale: "CommonScale | None" = None
    known_classes: tuple[int, ...] | None = None
    classes: int | None = None
    imports: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    skip: float | None = None

    def __post_init__(self) -> None:
        # what can be known without loading a model is checked here, so before the work
        if not (isinstance(self.name, str) and self.name):
            raise ValueError(f"name must be a text of at least one letter, not {self.name!r}")
        if any(isinstance(part, RemoteEntry) for part in self.student.parts):
            raise ValueError(
                "only the last teacher may be remote: the student answers every input, so that all "
                "its stages must be files: give its path"
            )
        for role, entry in (("student", self.student), ("teacher", self.teacher)):
            if not isinstance(entry, JointEntry):
                continue
            if entry.task != self.task:
                raise ValueError(
                    f"the {role} is a joint model of task {entry.task}, but this one is of "
                    f"{self.task}: all stages must have one task"
                )
            again = "give both the same class names"
            check_same_classes(str(entry.path), entry.labels, "joint.toml", self.labels, again)
        for role, entry in (("student", self.student), ("teacher", self.teacher)):
            for part in entry.parts:
                if isinstance(part, ChatEntry):  # other models say their names once loaded
                    names = tuple(part.options["labels"])
                    self._check_names(role, ModelFacts(part.options["model"], labels=names))
        if isinstance(self.teacher, RemoteEntry):
            check_remote(self.task)
        kind = as_task(self.task, self.known_classes)
        kind.check_scale(self.rescale)
        kind.check_classes(self.classes)
        object.__setattr__(self, "known_classes", kind.known_classes)  # the dataclass is frozen
        Router(self.score, self.threshold, self.skip)  # raises if it is none
        _ = self.goal  # likewise
        if "certified" in self.calibration:
            Certificate.from_dict(self.calibration["certified"])
        object.__setattr__(self, "blend", as_blend(self.blend))

    @classmethod
    def of_study(
        cls,
        student: Entry,
        teacher: Entry,
        study: "Study",
        name: str = "joint",
        imports: Sequence[str] = (),
    ) -> Self:
        """Make the configuration of a study; `imports` are the files that define its score."""
        check_name(name)
        fraction, seed = study.split
        point, table = study.point, study.outcomes
        figures = ("threshold", "deferral_rate", "quality", "cost")
        same = ("task", "labels", "known_classes", "classes", "columns")
        return cls(
            student,
            teacher,
            stored_score(point.router.score),
            point.threshold,
            point.blend,
            name=name,
            calibration={
                "date": date.today(),
                **study.goal.as_dict(),
                "outcomes": table.fingerprint,
                "split_fraction": fraction,
                "split_seed": seed,
                **({} if study.traffic is None else {"traffic": asdict(study.traffic)}),
                **_meaning(student, teacher, table),
                **_chosen(point),
                **({"routers": student.routers} if student.routers else {}),
                **study.kept_figures(),
            },
            operating_points={
                key: picked(named.as_dict(), figures) for key, named in study.named_results.items()
            },
            rescale=point.rescale,
            imports=tuple(imports),
            **{key: getattr(table, key) for key in same},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, and its long lists to a second one: both, or neither."""
        folder, known = Path(path).resolve().parent, self.calibration
        table = {
            "name": self.name,
            "task": self.task,
            "imports": list(self.imports) or None,
            "labels": None if self.labels is None else list(self.labels),
            "columns": None if self.columns is None else list(self.columns),
            **_known(self),
            "router": {
                "score": self.score,
                "threshold": self.threshold,
                "blend": blend_text(self.blend),
                "skip": self.skip,
                "rescale": None if self.rescale is None else self.rescale.as_dict(),
            },
            "student": self.student.as_table(folder),
            "teacher": self.teacher.as_table(folder),
            "calibration": self.calibration or None,
            "operating_points": self.operating_points or None,
        }
        comments = [
            "The knob is threshold: inputs whose score is under it go to the teacher.",
            f"Chosen for {Goal.from_dict(known)}." if "goal" in known else None,
            known.get("verdict"),
            known.get("certified", {}).get("statement"),
        ]
        write_table(path, table, comments)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a ``joint.toml``.

        Raises
        ------
        FileNotFoundError
            `path` does not exist.
        ValueError
            The file is not TOML, lacks a key or its long lists, or has an unknown key.
        """
        file = check_file(path, f"{path} does not exist; `ebjr calibrate` writes one")
        if file.suffix.lower() == ".onnx":
            raise ValueError(f"{path} is an exported file: give the joint.toml it was made from")
        table = read_table(path)
        try:
            return cls._from_table(table, file.resolve())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _from_table(cls, table: Mapping[str, Any], file: Path) -> Self:
        of_router = (*ROUTER_KEYS, "rescale")
        if "chat" in table:
            raise ValueError("it describes one chat model: give two models to `ebjr record`")
        own = [f.name for f in fields(cls) if f.name not in of_router]
        check_table(table, ("router", *own), "the file", ("router", "student", "teacher"))
        router = table["router"]
        check_table(router, of_router, "router", ("score", "threshold"))
        imports = table.get("imports", [])
        if not isinstance(imports, list) or not all(isinstance(each, str) for each in imports):
            raise ValueError(f"imports must be a list of files and modules, not {imports!r}")
        _check_score(router["score"], imports)  # first: other errors would hide `imports`
        calibration = table.get("calibration", {})
        check_table(calibration, _CALIBRATION_KEYS, "calibration")
        points = table.get("operating_points", {})
        for name in _CALIBRATION_TABLES:
            check_table(found := calibration.get(name, {}), found, f"calibration.{name}")
        check_table(points, points, "operating_points")
        for name in ("split_fraction", "split_seed"):
            if not isinstance(given := calibration.get(name, 0), int | float):
                raise ValueError(f"calibration.{name} must be a number, not {given!r:.80}")
        for name, point in points.items():
            check_table(point, FIGURES, f"operating_points.{name}", ("threshold",))
        named = picked(table, ("labels", "columns"))
        for key, value in named.items():
            if not isinstance(value, list):  # a text has a first and a last letter, too
                raise ValueError(f"{key} must be a list of names, not {value!r:.80}")
        names: dict[str, Any] = {key: tuple(value) for key, value in named.items()}
        return cls(
            student=entry_from_table(table["student"], file.parent, "student", (file,)),
            teacher=entry_from_table(table["teacher"], file.parent, "teacher", (file,)),
            score=router["score"],
            threshold=check_threshold(router["threshold"]),
            blend=router.get("blend", 0.0),
            skip=router.get("skip"),
            calibration=calibration,
            operating_points=points,
            rescale=as_task(table.get("task", "classification")).read_scale(router.get("rescale")),
            imports=tuple(imports),
            **names,
            **picked(table, ("task", "name", "known_classes", "classes")),
        )

    @property
    def parts(self) -> tuple[Single, ...]:
        """The entries of all models, the first student first."""
        return (*self.student.parts, *self.teacher.parts)

    @property
    def certificate(self) -> Certificate | None:
        """The certificate, if the file is still as it was certified."""
        certified = self.calibration.get("certified")
        return None if certified is None or self.changes else Certificate.from_dict(certified)

    @property
    def changes(self) -> list[str]:
        """What differs from the calibration, one clause each.

        The threshold is a knob, which may differ if nothing was certified.
        """
        chosen = self.calibration.get("chosen_on", {})
        certified = "certified" in self.calibration
        now = {"score": self.score, "threshold": self.threshold, "blend": blend_text(self.blend)}
        if self.rescale is not None or "rescale" in chosen:  # a scale may be added or removed
            now["rescale"] = None if self.rescale is None else self.rescale.as_dict()
        watched = [key for key in now if certified or key != "threshold"]
        inner = self.student.routers  # these are no knobs: the last score reads what they made
        changed = self.calibration.get("routers", inner) != inner
        return [
            *(
                f"{key} is {now[key]!r} and was {chosen[key]!r}"
                for key in watched
                if key in chosen and chosen[key] != now[key]
            ),
            *(["a router between the first stages has changed"] if changed else []),
        ]

    def check(self) -> None:
        """Check that the threshold was calibrated for these models and their inputs.

        Raises
        ------
        ModelError
            The preprocessing, or the classes of a specialized student, have changed.

        Warns
        -----
        PromiseWarning
            Score, blend, or a certified threshold differs from the calibration.
        """
        meaning = _meaning(self.student, self.teacher, self)
        for key, words in _MEANING.items():
            if self.calibration.get(key, meaning.get(key)) != meaning.get(key):
                raise ModelError(
                    f"the {words} in joint.toml has changed since the threshold was calibrated; "
                    "record and calibrate again"
                )
        if self.changes:
            void = "promise is" if "certified" in self.calibration else "figures are"
            warnings.warn(
                f"joint.toml has changed since it was calibrated ({'; '.join(self.changes)}), so "
                f"its {void} void; calibrate again",
                PromiseWarning,
                stacklevel=3,
            )

    def load(
        self, *, student: Model | None = None, teacher: Model | None = None, **options: Any
    ) -> JointModel:
        """Load both models and join them, after `check`.

        Parameters
        ----------
        student, teacher
            Models to use instead of the file's, if these run elsewhere.
        **options
            Options of `load_model`; `trust` allows Python code that the file names.

        Raises
        ------
        ModelError
            A model file has changed or cannot be loaded or trusted, or `check` fails.
        ValueError
            A model has other names of classes or columns than the file.
        """
        self.check()
        if teacher is not None and self.teacher.options.get("continues"):
            raise ValueError("a teacher that continues from features cannot run elsewhere")
        own = {name: getattr(self, name) for name in ("rescale", "known_classes", "classes")}
        asked_elsewhere = teacher is not None  # its caller has the policy for failures
        student = self.student.load(**options) if student is None else student
        teacher = self.teacher.load(**options) if teacher is None else teacher
        for role, model in (("student", student), ("teacher", teacher)):
            for part in models_of(model):
                self._check_names(role, facts(part))
        found: JointModel = joined(
            self.task,
            student,
            teacher,
            score=self.score,
            threshold=self.threshold,
            blend=self.blend,
            skip=self.skip,
            dollars=(self.student.dollars, self.teacher.dollars),
            **{name: value for name, value in own.items() if value is not None},
            **({} if asked_elsewhere else self._policy()),
        )
        return found

    def _check_names(self, role: str, known: ModelFacts) -> None:
        """Check that a model's names of classes and columns are the file's; else a ValueError.

        If no class has the model's name, the file's names are the user's own.
        """
        way = "write the model's names in joint.toml, in its order"
        said, labels = known.labels or (), self.labels or ()
        if self.known_classes is not None and role == "student":  # the last class is "other"
            said, known_to = said[:-1], self.known_classes
            labels = tuple(labels[label] for label in known_to if label < len(labels))
        if self.task != "detection" and not {*said}.isdisjoint(labels):
            check_same_classes(known.name, said, "joint.toml", labels, way)
        said, columns = known.columns or (), self.columns or ()
        if said and columns and said != columns and (len(said), len(columns)) != (1, 1):
            raise ValueError(
                f"{known.name} reads the columns {', '.join(said)}, but joint.toml has "
                f"{', '.join(columns)}: {way}"
            )

    def study(
        self, outcomes: Outcomes, *, fraction: float | None = None, seed: int | None = None
    ) -> "Study":
        """Study the file's threshold on examples that it was not chosen on.

        Outcomes that it was calibrated on are split and drawn as they were then; others are split
        by `fraction`, by default 0.5, and `seed`, by default 0, as for `Outcomes.split`. The goal
        is judged in its own metric; the figures are in that of `outcomes`.

        Raises
        ------
        ValueError
            `outcomes` are of another task, of other models, or of other classes; or `fraction` or
            `seed` differs from the calibration's on its own outcomes.

        Warns
        -----
        PromiseWarning
            A model's file has changed since, so that its promise is void.
        """
        from ebjr.study import study_point

        outcomes, point = self.point_on(outcomes)
        own = self.calibration.get("outcomes") == outcomes.fingerprint
        how: dict[str, Any] = {}
        for name, value, usual in (("fraction", fraction, 0.5), ("seed", seed, 0)):
            split = self.calibration.get(f"split_{name}") if own else None
            if split is not None and value not in (None, split):
                raise ValueError(  # never judge on rows that chose the threshold
                    f"--{name} ({name}=) must be {split:g}, that of the calibration on these "
                    f"outcomes, not {value:g}: remove it"
                )
            how[name] = next(one for one in (split, value, usual) if one is not None)
        point = replace(point, margin=self._margin if own else None)
        return study_point(outcomes, point, self.goal, traffic=self.traffic, **how)

    @property
    def goal(self) -> Goal | None:
        """The goal of the calibration; None if the file has none."""
        return Goal.from_dict(self.calibration) if "goal" in self.calibration else None

    @property
    def _margin(self) -> float | None:
        """The goal's margin, if the threshold is still the one that was chosen with it."""
        chosen = self.calibration.get("chosen_on", {})
        same = chosen.get("threshold") == self.threshold and not self.changes
        goal = self.goal if same and "margin" in chosen else None
        return None if goal is None else goal.own_margin

    def unchecked(self, outcomes: Outcomes) -> str | None:
        """Say whether some outcomes may be of other models; None if they name them.

        Also None for the numbers that the file was calibrated on.
        """
        if (told := unnamed(outcomes)) is None:
            return None
        pair = reduced(outcomes, stages_in(outcomes, self.parts, self.student.routers))
        return None if self.calibration.get("outcomes") == pair.fingerprint else told

    def in_own_metric(self, outcomes: Outcomes) -> Outcomes:
        """Return outcomes of the file's task in the metric of its goal, if it names one."""
        known = self.calibration.get("chosen_on", {}).get("metric", outcomes.metric)
        if outcomes.task != self.task or outcomes.metric == known:
            return outcomes
        return replace(outcomes, metric=known)

    @property
    def traffic(self) -> "Traffic | None":
        """The mix of classes that the calibration drew, if it did."""
        from ebjr.tasks.specialized.known_classes import Traffic

        mix = self.calibration.get("traffic")
        return None if mix is None else Traffic(mix["popular"], mix["popular_classes"])

    def point_on(self, outcomes: Outcomes) -> tuple[Outcomes, OperatingPoint]:
        """Reduce outcomes to the file's pair, and evaluate its threshold on all of them.

        The point's figures are in the metric of the file's goal. Warnings and errors are those of
        `study`.
        """
        if self.skip is not None:
            raise ValueError("a joint.toml with skip is a stage: evaluate the outer joint.toml")
        stages = stages_in(outcomes, self.parts, self.student.routers)
        outcomes = reduced(outcomes, stages)
        pair = {"student": self.student, "teacher": self.teacher}
        said = {name: getattr(self, name) for name in ("task", "known_classes", "columns")}
        check_same(outcomes, pair, said, self.classes, self.labels)
        table = self.in_own_metric(outcomes).with_scale(self.rescale)
        # a long curve is thinned, but must keep the row of this threshold
        curve = TradeOffCurve.of(table, self.score, self.blend, keep=[self.threshold])
        standing = None if models_changed(self.parts) else self.certificate
        point = replace(curve.at(threshold=self.threshold), certified=standing)
        if len(stages) > 2:
            last = replace(stages[-1], score=self.score, threshold=self.threshold, blend=self.blend)
            point = StagedPoint.of(point, (*stages[:-1], last))
        return outcomes, point

    def threads_for(self, overlap: int) -> int | None:
        """Return the threads of each model with `overlap` batches in flight.

        The batches share the cores. None if the file has `threads`, or if a model is not run by
        ONNX Runtime.
        """
        # a remote model uses no cores here, and PyTorch's threads are the process's, not a model's
        here = [each for each in self.parts if isinstance(each, ModelEntry)]
        if any("threads" in each.options or not each.path.endswith(".onnx") for each in here):
            return None
        return shared_cores(overlap)

    def _policy(self) -> dict[str, Any]:
        """Return the policy for a remote teacher; nothing for a local one."""
        if not isinstance(self.teacher, FarEntry):
            return {}
        link, late = self.teacher.link, None
        if link.when_unavailable == "queue":
            from ebjr.link.late import LateAnswers

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
    """Write a joint model, whose models come from `load_model`, to ``joint.toml``.

    Parameters
    ----------
    path
        The file. Model paths in it are relative to its folder.
    joint
        The joint model, written with its router's current threshold.
    point
        The operating point from `calibrate`, to store its figures with the threshold.
    labels
        The classes' names.
    name
        The model's name on a server.

    Raises
    ------
    TypeError
        A model came from no file, address or import path; the message says how to give it one.
    ValueError
        The score has no registered name, the student is remote, or no server takes `name`.

    See `load_joint` for an example.
    """
    check_name(name)
    costs = (Cost(), Cost()) if point is None else (point.student_cost, point.teacher_cost)
    student, teacher = entry_of(joint.student, costs[0]), entry_of(joint.teacher, costs[1])
    if isinstance(teacher, FarEntry):
        queue = teacher.link.queue if joint.late is None else str(Path(joint.late.path).resolve())
        link = replace(teacher.link, when_unavailable=joint.when_unavailable, queue=queue)
        teacher = replace(teacher, link=link)
    calibration: dict[str, Any] = {}
    if point is not None:
        meaning = _meaning(student, teacher, joint)
        calibration = {"date": date.today(), **meaning, **_chosen(point)}
    same = ("blend", "task", "rescale", "known_classes", "classes")
    JointConfig(
        student,
        teacher,
        stored_score(joint.router.score),
        joint.router.threshold,
        name=name,
        labels=labels,
        calibration=calibration,
        skip=joint.router.skip,
        **{key: getattr(joint, key) for key in same},
    ).save(path)


def load_joint(path: str | os.PathLike[str], **options: Any) -> JointModel | ExportedJoint:
    """Load a joint model from a ``joint.toml``, or from a file of `ebjr export`.

    Parameters
    ----------
    path
        The ``joint.toml``, or the ``.onnx`` file.
    **options
        Options of `load_model` that override the file's: threads, providers, batch_size; for an
        exported file, threads and providers. `trust` allows pickles, and Python code that the file
        names.

    Raises
    ------
    FileNotFoundError
        The file, or a model that it names, is missing.
    ValueError
        The file is not TOML, lacks a key, or has an unknown one.
    ModelError
        A model file has changed since the threshold was calibrated, or is not a joint model.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from ebjr import JointClassifier, load_model
    >>> from ebjr.demo import shipped
    >>> path = tempfile.mkdtemp() + "/joint.toml"
    >>> with shipped("student.onnx") as student, shipped("teacher.onnx") as teacher:
    ...     models = load_model(student), load_model(teacher)
    ...     save_joint(path, JointClassifier(*models, Router("margin", 0.3)))
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
    """Read a ``joint.toml``, or load an exported file on `threads` or its share of the cores."""
    if Path(path).suffix.lower() != ".onnx":
        return JointConfig.read(path)
    return ExportedJoint(path, threads=threads or shared_cores(overlap))


def chosen_threshold(
    joint: JointConfig | ExportedJoint, threshold: float | None = None, name: str | None = None
) -> float:
    """Return the threshold to use: given, of a named operating point, or the file's own."""
    if threshold is not None and name is not None:
        raise ValueError("give --threshold or --operating-point, not both")
    if threshold is not None:
        return threshold
    if name is None:
        return joint.threshold if isinstance(joint, JointConfig) else joint.router.threshold
    if name not in joint.operating_points:
        known = ", ".join(joint.operating_points) or "none"
        raise ValueError(f"there is no operating point {name!r}; the file has {known}")
    return float(joint.operating_points[name]["threshold"])


def _chosen(point: OperatingPoint) -> dict[str, Any]:
    figures = point.as_dict()
    certified = figures.pop("certified", None)
    return {"chosen_on": figures} | ({} if certified is None else {"certified": certified})


_MEANING = {
    "preprocessing": "preprocessing",
    "known_classes": "list of known_classes",
    "classes": "number of classes",
}


def _meaning(
    student: Entry, teacher: Entry, of: JointConfig | JointModel | Outcomes
) -> dict[str, Any]:
    """Return what the files' hashes do not cover of inputs and outputs, by `_MEANING`."""
    how = [
        each.preprocess and each.preprocess.as_dict() for each in (*student.parts, *teacher.parts)
    ]
    short = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()[:16]
    return {"preprocessing": short, **_known(of)}


def _known(of: JointConfig | JointModel | Outcomes) -> dict[str, Any]:
    known = of.known_classes
    return {} if known is None else {"known_classes": [*known], "classes": of.classes}


def _check_score(score: Any, imports: Sequence[str]) -> None:
    """Check that a score is known; else name the files to import."""
    try:
        as_score(score)
    except ValueError as error:
        if "no score named" not in str(error):
            raise
        words = " ".join(f"--import {name}" for name in imports)
        hint = f"it was calibrated with {words}" if imports else "--import FILE registers your own"
        raise ValueError(f"{error}; {hint}") from None
