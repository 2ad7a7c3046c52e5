"""Hashes of a joint model: of everything that its answers depend on, and nothing else."""

import hashlib
import json
from contextlib import suppress
from typing import Any

from ebjr.backends.entry import ChatEntry, Entry, JointEntry, ModelEntry, RemoteEntry, picked
from ebjr.backends.python import import_path
from ebjr.backends.weights import weights_of
from ebjr.blend import blend_text
from ebjr.data.preprocess import Preprocess, unprepared
from ebjr.joint import JointModel, router_table
from ebjr.model import Model, facts

ANSWERS = (
    *("output", "output_kind", "dtype", "layout", "classes", "nms", "above", "limit", "label_ids"),
    *("features", "continues"),
)
"""Options of a model that change its answers."""


def identities(
    joint: JointModel, student: Entry | None = None, teacher: Entry | None = None
) -> dict[str, str]:
    """Return the SHA-256 of `student`, of `teacher` and of both as `model`, as far as known.

    A model's hash is that of its files, as in ``joint.toml``, of a Python object's weights, or what
    a remote server gives. The joint model's hash covers both, their preprocessing, the blend and
    the score, but not the threshold, which is a knob. `student` and `teacher` are the models'
    entries, if known.
    """
    first = _known(joint.student, student)
    alone = joint.teacher is joint.student  # one model without a teacher: hash it once
    known = {"student": first, "teacher": first if alone else _known(joint.teacher, teacher)}
    found = {role: sha256 for role, (sha256, _) in known.items() if sha256 is not None}
    if len(found) == 2:
        scale = None if joint.rescale is None else joint.rescale.as_dict()
        own = [joint.kind.name, joint.known_classes, joint.classes, scale]
        router = router_table(joint.router, joint.blend)
        found["model"] = _hash(own, _steady(router), *known.values())
    return found


Known = tuple[str | None, Any]  # a model's hash, and what else its answers depend on


def _known(model: Model, entry: Entry | None) -> Known:
    return _of_model(model) if entry is None else _of_entry(entry)


def _of_entry(entry: Entry) -> Known:
    if isinstance(entry, JointEntry):
        parts = _of_entry(entry.student), _of_entry(entry.teacher)
        return _of_pair(entry.task, dict(entry.router), *parts)
    about = [entry.preprocess and entry.preprocess.as_dict(), picked(entry.options, ANSWERS)]
    weights = entry.weights_sha256 if isinstance(entry, ModelEntry) else None
    return entry.sha256, [*about, weights]


def _of_model(model: Model) -> Known:
    if isinstance(model, JointModel):
        router = router_table(model.router, model.blend)
        return _of_pair(model.task, router, _of_model(model.student), _of_model(model.teacher))
    known = facts(model)
    prepare = None if known.preprocess is None else Preprocess.from_dict(known.preprocess)
    how: Any = {"preprocess": prepare, "options": known.options}
    once: Any = unprepared(model)[0]
    if "chat" in known.options:
        return _of_entry(ChatEntry(known.options))
    if known.url is not None:
        return _of_entry(RemoteEntry(known.url, {}, sha256=known.sha256, **how))
    if known.path is not None and known.path.is_file():
        return _of_entry(ModelEntry.of_file(known.path, **how))
    if known.path is not None and import_path(known.path):
        return _of_entry(ModelEntry.of_file(known.path, weights_sha256=once.weights(), **how))
    with suppress(Exception):  # an arbitrary object may fail in any way when inspected
        return weights_of(once), None
    return None, None


def _of_pair(task: str, router: dict[str, Any], student: Known, teacher: Known) -> Known:
    if None in (student[0], teacher[0]):
        return None, None
    return _hash(task, _steady(router), student, teacher), None


def _steady(router: dict[str, Any]) -> dict[str, Any]:
    """Return a router's table without the threshold."""
    blend = blend_text(router.get("blend", 0.0))
    return {"score": str(router["score"]), "blend": blend, "skip": router.get("skip")}


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
