"""Ray Serve: student replicas that score and route, teacher replicas that get the deferred rows.

A student replica is the server of `ebjr.serving`, with a handle to the teacher replicas as its
teacher. The teacher replicas join the deferred rows of all students into dense batches. One knob,
in its own replica, sends every student its threshold.
"""

import asyncio
import hashlib
import inspect
import logging
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ebjr.arrays import Batch
from ebjr.backends.entry import Entry
from ebjr.errors import EbjrError, TeacherUnavailable, check_at_least, needs
from ebjr.joint_file import JointConfig
from ebjr.link.far import FarTeacher, Link
from ebjr.model import Model
from ebjr.router import check_threshold
from ebjr.scale.models import check_policy, check_teacher, checked_config, thread_option
from ebjr.scale.ray_metrics import Mirror
from ebjr.serving.app import build_app as build_server
from ebjr.serving.engine import Engine, Ticket
from ebjr.serving.knob import Knob
from ebjr.serving.metrics import Metrics
from ebjr.serving.served import Served, served_of
from ebjr.task import Task
from ebjr.tasks import as_task
from ebjr.threads import background

with needs("scale", "running on Ray"):
    from ray import serve
    from ray.exceptions import RayActorError, RayError, RayTaskError
    from ray.serve.exceptions import RayServeException
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("ebjr.serving")

WATCH_SECONDS = 5.0  # how long a replica waits for a move before it asks again, as a heartbeat
TRIES = 3  # replicas that may die on one batch before the teacher counts as away
LEFT_ALONE = Link(retries=0, failures=1, probe_seconds=0.2)  # fail fast while the teacher is away
MOVE_SECONDS = 10.0  # that a move waits for the replicas, which usually takes milliseconds


def build_app(
    joint: str | os.PathLike[str],
    *,
    student: Mapping[str, Any] | None = None,
    teacher: Mapping[str, Any] | None = None,
    student_batch: int = 64,
    teacher_batch: int = 64,
    teacher_calls: int = 4,
    max_wait_seconds: float = 0.0,
    teacher_wait_seconds: float = 0.05,
    queue_rows: int = 4096,
    timeout_seconds: float = 30.0,
    teacher_timeout_seconds: float = 10.0,
    when_unavailable: str = "student",
    threads: int | None = None,
    token: str | None = None,
) -> serve.Application:
    """Build a Ray Serve application of a joint model, for ``serve.run`` and ``serve run``.

    It has three deployments: ``Student`` takes the requests, scores and routes; ``Teacher`` gets
    batches of the rows that all students defer; ``Knob`` holds the threshold of all students.

    Parameters
    ----------
    joint
        The ``joint.toml``. Each node must find the model files under the same path.
    student, teacher
        Options of each deployment: `num_replicas`, `autoscaling_config`, `ray_actor_options` and
        any other. Both scale separately, the teacher by its batches in flight.
    student_batch, teacher_batch
        The most rows in a batch of a replica.
    teacher_calls
        Batches of deferred rows that a student replica has in flight at once.
    max_wait_seconds, queue_rows
        As in `Engine` and `Service`, for each student replica.
    teacher_wait_seconds
        How long a teacher replica waits for its batch to fill, if the rows of all students arrive
        fast enough to fill it; 0 does not wait.
    timeout_seconds
        The timeout of requests that set none.
    teacher_timeout_seconds
        The time after which a teacher that does not answer counts as away.
    when_unavailable
        What happens to deferred rows while the teacher is away, as in `JointClassifier`.
    threads
        Of each model; None takes as many as its replica has CPUs.
    token
        The token that a request must carry to move the knob.

    Raises
    ------
    ValueError
        `joint` is not a ``joint.toml``, or another argument is out of range.
    ModelError
        A model file, or the preprocessing, has changed since calibration.
    """
    config = checked_config(joint)
    check_at_least(1, teacher_batch=teacher_batch, teacher_calls=teacher_calls)
    if not 0 <= teacher_wait_seconds < teacher_timeout_seconds:
        raise ValueError(
            f"teacher_wait_seconds must be at least 0 and below teacher_timeout_seconds "
            f"({teacher_timeout_seconds:g}), not {teacher_wait_seconds:g}"
        )
    pipeline = {
        "student_batch": student_batch,
        "teacher_batch": teacher_batch,
        "teacher_workers": teacher_calls,
        "max_wait_seconds": max_wait_seconds,
        "queue_rows": queue_rows,
    }
    epoch = _epoch(config)
    shared = _deployment(
        SharedKnob, "Knob", max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
    )
    taught = _deployment(Teacher, "Teacher", **{"max_ongoing_requests": 64, **(teacher or {})})
    scored = _deployment(Student, "Student", **{"max_ongoing_requests": 256, **(student or {})})
    return scored.bind(
        config,
        taught.bind(
            config.teacher,
            as_task(config.task, config.known_classes),
            config.name,
            most_rows=teacher_batch,
            max_wait_seconds=teacher_wait_seconds,
            threads=threads,
        ),
        shared.bind(config.threshold, epoch),
        epoch=epoch,
        threads=threads,
        when_unavailable=check_policy(when_unavailable),
        teacher_timeout_seconds=teacher_timeout_seconds,
        server={"token": token, "hosts": ["*"], "timeout_seconds": timeout_seconds, **pipeline},
    )


def _deployment(kind: type, name: str, **options: Any) -> serve.Deployment:
    """A class as a deployment; `options` given later win, and logs have no line a request."""
    return serve.deployment(kind).options(
        **{"name": name, "logging_config": {"enable_access_log": False}, **options}
    )


def app(args: Mapping[str, Any]) -> serve.Application:
    """Build the application of ``serve run ebjr.scale:app joint=joint.toml`` and of Serve's YAML.

    `args` are `joint` and other arguments of `build_app`; numbers may be text.
    """
    known = inspect.signature(build_app).parameters
    unknown = set(args) - set(known)
    if unknown or "joint" not in args:
        wrong = f"not {min(unknown)!r}" if unknown else "and joint must be among them"
        raise ValueError(f"the arguments are {', '.join(known)}, {wrong}")
    return build_app(**{name: _number(value) for name, value in args.items()})


def _number(value: Any) -> Any:
    if isinstance(value, str):
        for kind in (int, float):
            with suppress(ValueError):
                return kind(value)
    return value


def _epoch(config: JointConfig) -> str:
    """What tells one calibration from another: thresholds of one mean nothing to the other."""
    models = [entry.as_table(Path.cwd()) for entry in (config.student, config.teacher)]
    known = (config.score, config.threshold, models, config.calibration.get("outcomes"))
    return hashlib.sha256(repr(known).encode()).hexdigest()


@serve.ingress()
class Student:
    """A replica of the server: its own student, the shared teacher, the shared knob."""

    def __init__(
        self,
        config: JointConfig,
        teacher: DeploymentHandle,
        knob: DeploymentHandle,
        *,
        epoch: str,
        threads: int | None,
        when_unavailable: str,
        teacher_timeout_seconds: float,
        server: Mapping[str, Any],
    ) -> None:
        served = served_of(
            config,
            teacher=FarTeacher(RayTeacher(teacher, teacher_timeout_seconds), LEFT_ALONE),
            **thread_option(config.student, threads),
        )
        served.joint.when_unavailable = when_unavailable
        self._server = build_server(served, knob=RemoteKnob(served, knob, epoch), **server)
        Mirror(self._server.state.service.metrics.families, without_stage="teacher").start()

    def __serve_build_asgi_app__(self) -> Any:  # Serve's name
        return self._server


class RayTeacher:
    """The teacher replicas as one model; a batch whose replica dies goes to another one."""

    name = "the teacher on Ray"

    def __init__(self, handle: DeploymentHandle, timeout_seconds: float) -> None:
        self._handle, self._timeout = handle, timeout_seconds

    def __call__(self, inputs: Batch) -> Batch:
        """Return raw output of deferred rows; TeacherUnavailable if no replica answers in time."""
        until = time.monotonic() + self._timeout
        for _ in range(TRIES):
            response = self._handle.remote(inputs)
            try:
                return response.result(timeout_s=max(until - time.monotonic(), 0.0))
            except RayTaskError as error:  # the replica is alive, and its model raised this
                raise error.cause from None
            except RayActorError:
                continue
            except TimeoutError:
                response.cancel()
                raise TeacherUnavailable(
                    f"no replica of the teacher answered within {self._timeout:g} s"
                ) from None
            except (RayError, RayServeException) as error:
                raise TeacherUnavailable(f"the teacher cannot be reached: {error}") from error
        raise TeacherUnavailable(f"{TRIES} replicas of the teacher died, one after another")

    def check(self) -> None:
        """Check that a replica answers; else raise Ray's error."""
        response = self._handle.live.remote()
        try:
            response.result(timeout_s=1.0)
        except TimeoutError:
            response.cancel()
            raise


class Teacher:
    """A teacher replica: it answers the queued rows of all students, in dense batches.

    It uses the engine of `ebjr serve`, because Serve's batching counts calls, not rows.
    """

    def __init__(
        self,
        entry: Entry,
        kind: Task,
        name: str,
        *,
        most_rows: int,
        max_wait_seconds: float,
        threads: int | None,
    ) -> None:
        model: Model = entry.load(**thread_option(entry, threads))
        check_teacher(model)
        metrics = Metrics(name, (), ("teacher",))
        self._engine = Engine(
            model,
            kind,
            student_batch=most_rows,
            max_wait_seconds=max_wait_seconds,
            workers=1,
            observer=metrics,
        )
        metrics.read("waiting_rows", "Rows in a queue.", self._engine.waiting, "stage")

        def families() -> Iterable[Any]:
            self._engine.tell()
            return metrics.families()

        Mirror(families).start()
        self._engine.start()

    async def live(self) -> None:
        """Show that the replica is alive."""

    async def __call__(self, inputs: Batch) -> Batch:
        """Return raw output of some rows."""
        ticket: Ticket = await asyncio.wrap_future(self._engine.ask(inputs))
        return ticket.result().output


class SharedKnob:
    """The threshold of all student replicas, and its version, which rises with each move.

    Students ask for a newer version and wait for it; the question tells which version they have. A
    move ends when every living student has it. If the knob's replica dies, its successor learns
    threshold and version from the students. Students of another epoch (calibration) keep their
    threshold while they are replaced.
    """

    def __init__(self, threshold: float, epoch: str) -> None:
        self._threshold, self._epoch, self._version = threshold, epoch, 0
        self._moved = False
        self._heard: dict[str, tuple[float, float]] = {}  # each student's version, and when it came
        self._changed = asyncio.Condition()

    async def watch(
        self, epoch: str, student: str, version: int, threshold: float
    ) -> tuple[int, float]:
        """Return a version newer than the student's, or the current one after a while."""
        if epoch != self._epoch:
            self._heard[student] = (math.inf, time.monotonic())  # never waited for by a move
            await asyncio.sleep(WATCH_SECONDS)
            return version, threshold
        async with self._changed:
            if version > self._version and not self._moved:
                self._threshold = threshold
            if version >= self._version:  # from the knob before this one: its last move holds
                self._version = version + (threshold != self._threshold)
            self._heard[student] = (version, time.monotonic())
            self._changed.notify_all()
            with suppress(TimeoutError):
                newer = self._changed.wait_for(lambda: self._version > version)
                await asyncio.wait_for(newer, WATCH_SECONDS)
            return self._version, self._threshold

    async def move(self, threshold: float, known: int, students: int) -> int:
        """Move all students' threshold; one knows version `known`. Return the new version."""
        async with self._changed:
            self._version = max(self._version, known) + 1
            self._threshold, self._moved = threshold, True
            self._changed.notify_all()
            with suppress(TimeoutError):
                all_know = self._changed.wait_for(lambda: self._know(students))
                await asyncio.wait_for(all_know, MOVE_SECONDS)
            return self._version

    def _know(self, students: int) -> bool:
        """Whether all living students, and at least `students`, have the current version."""
        gone = time.monotonic() - 2 * WATCH_SECONDS
        self._heard = {name: heard for name, heard in self._heard.items() if heard[1] > gone}
        told = [version >= self._version for version, _ in self._heard.values()]
        return all(told) and len(told) >= students  # a new knob may not have heard from all


class RemoteKnob(Knob):
    """A student replica's view of the `SharedKnob`; a move reaches all replicas."""

    def __init__(self, served: Served, handle: DeploymentHandle, epoch: str) -> None:
        super().__init__(served)
        self.version = -1
        self._handle, self._epoch = handle, epoch
        self._replica = serve.get_replica_context().replica_id
        self._told = threading.Event()
        background("knob", self._watch).start()
        self._told.wait(MOVE_SECONDS)  # a new replica starts at the others' threshold

    def move(self, threshold: float, *, who: str, why: str, request: str | None = None) -> None:
        """Move the threshold of all replicas, and wait until they have it."""
        if who == "autopilot":
            raise ValueError("the autopilot works on one server alone: on Ray, set a threshold")
        after, before = check_threshold(threshold), self.threshold
        response = self._handle.move.remote(after, self.version, self._students())
        try:
            response.result(timeout_s=2 * MOVE_SECONDS)
        except (RayError, RayServeException, TimeoutError) as error:
            response.cancel()  # else a later knob would still execute the refused move
            raise EbjrError("the knob cannot be reached now; try again") from error
        self.moves["hand"] += 1
        log.info("the knob was moved from %g to %g by %s: %s", before, after, who, why)

    def state(self) -> dict[str, Any]:
        """Return the content of ``GET /v1/router``, and the version."""
        return {**super().state(), "version": self.version}

    def _students(self) -> int:
        own = self._replica.deployment_id
        app = serve.status().applications.get(own.app_name)
        return app.deployments[own.name].replica_states.get("RUNNING", 0) if app else 0

    def _watch(self) -> None:
        while True:
            known = (self._epoch, self._replica.unique_id, self.version, self.threshold)
            response = self._handle.watch.remote(*known)
            try:
                version, threshold = response.result(timeout_s=4 * WATCH_SECONDS)
            except (RayError, RayServeException, TimeoutError):
                response.cancel()
                time.sleep(0.5)
                continue
            if version > self.version:
                self.served.joint.router.threshold = threshold
                self.version = version
            self._told.set()
