"""Ray Data: joint inference over a dataset in two stages, each with its own actors.

The student answers every block, and adds the inputs of deferred rows to its answers. The teacher's
actors join the deferred rows of many blocks into dense batches. Everything streams, blocks of a
lost node are computed again, and each answer carries its row number.
"""

import json
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from ebjr.arrays import to_numpy
from ebjr.data.examples import Data
from ebjr.errors import EbjrError, ModelError, needs
from ebjr.joint import JointModel
from ebjr.joint_file import JointConfig
from ebjr.outcomes import roles_of
from ebjr.plugins import import_all
from ebjr.predict import Answered, Progress, Tell, answer_rows, whose_answers, write_answers
from ebjr.router import Router
from ebjr.scale.models import check_policy, check_teacher, checked_config, thread_option

with needs("scale", "running on Ray"):
    import ray
    import ray.data
    from ray.exceptions import RayError

COLUMNS = ("row", "name", "inputs")  # a dataset's columns: row number, name and input
READ_ROWS = 256  # rows of a block that we read
FULL_BATCHES = 8  # of the teacher in a block: more fill batches better, fewer answer sooner


def predict(
    data: Any,
    joint: str | os.PathLike[str],
    *,
    threshold: float | None = None,
    batch_size: int = 64,
    teacher_batch: int | None = None,
    student: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    when_unavailable: str = "student",
    start: int = 0,
    threads: int | None = None,
    imports: Sequence[str] = (),
) -> ray.data.Dataset:
    """Answer a dataset with a joint model; answers come in any order, when they are ready.

    Parameters
    ----------
    data
        A Ray dataset with a number (`row`), a `name` and `inputs` for each row; a `Data` of
        `ebjr.data.open.open_data`; or an array (n, ...). Each node must find the files under the
        same path.
    joint, threshold
        The ``joint.toml``, and a threshold to use instead of its own.
    batch_size, teacher_batch
        Rows in a batch of each model; the teacher's default is the student's.
    student, teacher
        Options of each model's actors: `num_cpus`, `num_gpus`, and `concurrency`, a number or a
        range to scale in. The default is one actor with one CPU, or half of a single CPU.
    when_unavailable
        As in `JointClassifier`.
    start
        The first row to answer.
    threads
        Of each model; None takes as many as its actor has CPUs.
    imports
        Files and modules that each actor runs first, for your own scores.

    Returns
    -------
    Dataset
        `row`, `name`, `prediction` (boxes as JSON), `label` if classes have names, `score`,
        `deferred`, `degraded` and `stage`. Nothing runs until it is read.

    Raises
    ------
    ValueError
        `joint` is not a ``joint.toml``, or `data` lacks a column.
    ModelError
        A model file, or the preprocessing, has changed since calibration.
    """
    config = checked_config(joint)
    if threshold is not None:
        config = replace(config, threshold=threshold)
    rows = _dataset(data, start)
    share = _share(ray.cluster_resources().get("CPU", 0.0))
    most = batch_size if teacher_batch is None else teacher_batch
    both = {"config": config, "threads": threads, "imports": imports}
    answered = rows.map_batches(
        _Student, fn_constructor_kwargs=both, batch_size=batch_size, **_actors(student, share)
    )
    policy = check_policy(when_unavailable)
    return answered.map_batches(
        _Teacher,
        fn_constructor_kwargs={**both, "most_rows": most, "when_unavailable": policy},
        batch_size=_rows_for(config, most),
        **_actors(teacher, share),
    )


def _share(cpus: float) -> float:
    """Return the default CPUs of an actor: both stages run at once, so they share the CPUs."""
    return min(1.0, cpus / 2)


def _actors(options: Mapping[str, Any] | None, cpus: float) -> dict[str, Any]:
    known = {"num_cpus": cpus, "concurrency": 1, **(options or {})}
    size = known.pop("concurrency")
    least, most = size if isinstance(size, tuple | list) else (size, size)
    return {**known, "compute": ray.data.ActorPoolStrategy(min_size=least, max_size=most)}


def _rows_for(config: JointConfig, most_rows: int) -> int:
    """Return the rows per block of the second stage, enough for some full teacher batches."""
    quantiles = config.calibration.get("score_quantiles", ())
    rate = float((np.asarray(quantiles) < config.threshold).mean()) if len(quantiles) else 1.0
    return int(FULL_BATCHES * most_rows / max(rate, 0.01))


class _Student:
    """The first stage: every row's answer, and the inputs of deferred rows for the next stage."""

    def __init__(
        self, config: JointConfig, threads: int | None, imports: Sequence[str] = ()
    ) -> None:
        import_all(imports)
        self.labels = config.labels
        self.joint = config.load(teacher=_absent, **thread_option(config.student, threads))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        joint, column = self.joint, batch["inputs"]
        found = joint.ask_student(_stacked(list(column)) if column.dtype == object else column)
        score, deferred = map(to_numpy, joint.router(found.output))
        output, marked = joint.of_student(found.output), found.degraded
        sent = [b""] * len(score)
        for row in np.flatnonzero(deferred).tolist():
            sent[row] = pickle.dumps((column[row], output[row]))
        return {
            "row": batch["row"],
            "name": batch["name"],
            **_said(joint, output, self.labels),
            "score": score.astype(np.float64),
            "deferred": deferred,
            "degraded": np.zeros(len(score), bool) if marked is None else to_numpy(marked),
            "stage": found.stages(len(score)),
            "for_teacher": _objects(sent),
        }


class _Teacher:
    """The second stage: the teacher answers deferred rows; other rows pass through."""

    def __init__(
        self,
        config: JointConfig,
        threads: int | None,
        most_rows: int,
        when_unavailable: str,
        imports: Sequence[str] = (),
    ) -> None:
        import_all(imports)
        self.labels = config.labels
        self.joint = config.load(student=_absent, **thread_option(config.teacher, threads))
        check_teacher(self.joint.teacher)
        self.before = len(config.student.parts)
        self.joint.when_unavailable = when_unavailable
        self.most = most_rows

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        sent = batch.pop("for_teacher")
        batch = {name: column.copy() for name, column in batch.items()}
        waiting = np.flatnonzero(batch["deferred"])
        batch["degraded"][waiting] = False
        for rows in np.array_split(waiting, max(1, -(-len(waiting) // self.most))):
            if len(rows):
                inputs, own = zip(*(pickle.loads(sent[row]) for row in rows), strict=True)
                changed, missed = self._answer(_stacked(inputs), _stacked(own))
                batch["deferred"][rows[missed]] = False
                batch["degraded"][rows[missed]] = True
                rows = np.delete(rows, missed)
                for name, column in changed.items():
                    batch[name][rows] = column
        return batch

    def _answer(self, inputs: Any, own: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Return the columns that the teacher's answers change, and the rows it did not answer."""
        taught, missed = self.joint.defer(inputs, own)
        if taught is None:
            return {}, missed
        said = _said(self.joint, taught.output, self.labels)
        marks = {} if taught.degraded is None else {"degraded": to_numpy(taught.degraded)}
        stage = self.before + (0 if taught.stage is None else to_numpy(taught.stage))
        return {**said, **marks, "stage": stage}, missed


def _absent(_inputs: Any) -> Any:
    raise AssertionError("this stage does not run the other stage's model")


def _said(joint: JointModel, output: Any, labels: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Return the predictions as columns; boxes as JSON."""
    rows = joint.kind.plain(joint.predict(output), labels)
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {key: _column(values) for key, values in columns.items()}


def _column(values: Sequence[Any]) -> np.ndarray:
    if isinstance(values[0], list):
        values = [json.dumps(value) for value in values]
    # NumPy's own string type would cut off longer strings that are assigned later
    return np.array(values, object if isinstance(values[0], str) else None)


def _objects(values: Sequence[Any]) -> np.ndarray:
    """Return an object array of rows, whatever their shapes."""
    return np.fromiter(values, object, len(values))


def _stacked(rows: Sequence[Any]) -> Any:
    """Stack rows into a batch: equal shapes become an array, others stay a list."""
    if isinstance(rows[0], list):
        return np.array(rows, object)
    shapes = {getattr(row, "shape", None) for row in rows}
    return list(rows) if None in shapes or len(shapes) > 1 else np.stack(rows)


def _dataset(data: Any, start: int) -> ray.data.Dataset:
    """Return any data as a dataset of `COLUMNS`, starting at a row."""
    if isinstance(data, ray.data.Dataset):
        names = data.columns() or []
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(
                f"the dataset needs the columns {', '.join(COLUMNS)}, but lacks "
                f"{', '.join(missing)}; it has {', '.join(names)}"
            )
        return data if start == 0 else data.filter(expr=f"row >= {start}")
    rows = np.arange(start, len(data))
    blocks = np.array_split(rows, max(1, -(-len(rows) // READ_ROWS)))
    stored = ray.put(data)  # once for all readers, which read arrays from shared memory
    # readers request no CPU, because both models' actors may hold all: so keep them few
    readers = min(len(blocks), max(1, int(ray.cluster_resources().get("CPU", 1)) // 2))
    read = _Reader(stored)
    return ray.data.from_numpy(blocks).map_batches(read, num_cpus=0, concurrency=readers)


class _Reader:
    """Reads rows by number, on any node."""

    def __init__(self, data: ray.ObjectRef) -> None:
        self._data = data

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        data, rows = ray.get(self._data), batch["data"]
        if hasattr(data, "shape"):
            return {"row": rows, "name": rows.astype(str), "inputs": data[rows]}
        found, where = data.take(rows.tolist())
        inputs = found.inputs if hasattr(found.inputs, "shape") else _objects(found.inputs)
        return {"row": where, "name": np.array(found.names, str), "inputs": inputs}


def predict_file(
    joint: str | os.PathLike[str],
    data: Data,
    output: str | os.PathLike[str],
    *,
    about: Mapping[str, Any] | None = None,
    restart: bool = False,
    tell: Tell | None = None,
    **options: Any,
) -> Progress:
    """Answer data to a file, as `ebjr.predict.predict` does on one machine.

    The file is the same, and so is the state of an interrupted run: either command can finish the
    other's. `options` are those of `predict`.
    """
    config = JointConfig.read(joint)
    threshold, stages = options.get("threshold"), roles_of(len(config.parts))
    if not ray.is_initialized():  # keep the workers' output out of ours
        ray.init(log_to_driver=False, logging_level="WARNING")

    def answer(start: int) -> Iterator[Answered]:
        answers = predict(data, joint, start=start, **options)
        answers.context.execution_options.preserve_order = True
        answers.context.enable_progress_bars = False
        with _in_own_words():
            for batch in answers.iter_batches(batch_size=None, batch_format="numpy"):
                if not len(batch["row"]):
                    continue
                end = int(batch["row"][-1]) + 1
                unreadable = _unreadable(data, start, end, batch["row"])
                yield Answered(_lines(batch, stages), unreadable)
                start = end
        if start < len(data):
            yield Answered([], _unreadable(data, start, len(data), np.zeros(0)))

    router = Router(config.score, config.threshold if threshold is None else threshold)
    whose = whose_answers(router, config.blend, data, about)
    return write_answers(answer, output, len(data), whose, restart=restart, tell=tell)


@contextmanager
def _in_own_words() -> Iterator[None]:
    """Raise a task's own error, without Ray's wrapping."""
    try:
        yield
    except RayError as error:
        cause: Any = error
        while cause is not None:
            if isinstance(cause, EbjrError | ValueError | OSError) and not isinstance(
                cause, RayError
            ):
                raise cause from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise ModelError(f"Ray failed to answer: {error}") from error


def _lines(batch: Mapping[str, np.ndarray], stages: Sequence[str]) -> list[dict[str, Any]]:
    told = [key for key in ("prediction", "label") if key in batch]
    said = []
    for row in zip(*(batch[key].tolist() for key in told), strict=True):
        said.append(dict(zip(told, row, strict=True)))
        if isinstance(said[-1]["prediction"], str):
            said[-1]["prediction"] = json.loads(said[-1]["prediction"])
    return list(answer_rows(batch["name"].tolist(), said, SimpleNamespace(**batch), stages))


def _unreadable(data: Data, start: int, end: int, rows: np.ndarray) -> list[tuple[str, str]]:
    """Return the names and reasons of rows in a range that have no answer."""
    missing = np.setdiff1d(np.arange(start, end), rows)
    if not len(missing):
        return []
    data.unreadable.clear()
    data.take(missing.tolist())
    return list(data.unreadable)
