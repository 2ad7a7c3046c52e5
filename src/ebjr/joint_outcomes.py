"""Whether recorded outcomes are of the models of a joint.toml, and which role each model has.

A threshold means something only for the models, the inputs and the classes it was chosen for.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ebjr.backends.entry import Entry, ModelEntry, Single
from ebjr.backends.python import import_path
from ebjr.calibration.stage_search import Stage
from ebjr.errors import ModelError, PromiseWarning, note
from ebjr.labels import check_same_classes
from ebjr.outcomes import Outcomes

_IDENTITY = ("sha256", "weights_sha256", "metadata", "preprocess")
"""The keys of an entry that identify the model and its input."""

_AGAIN = "record again with the models of joint.toml"


def stages_in(
    outcomes: Outcomes, parts: Sequence[Single], routers: Sequence[Mapping[str, Any]]
) -> list[Stage]:
    """Return a file's stages, by their roles in some outcomes; the last has no router.

    `parts` are the file's models, and `routers` those between the first stages. A ValueError names
    a model that is missing from the outcomes. Outcomes without entries must have the same number of
    models.
    """
    if not routers and len(outcomes.roles) == 2:  # `check_same` compares these two
        return [Stage(role) for role in outcomes.roles]
    roles = list[str]()
    for part in parts:
        own = part.as_table(None)
        free = (role for role in outcomes.roles if role not in roles)  # a file may come twice
        same = [role for role in free if _is_same(own, outcomes.models.get(role, {}))]
        if not same and (outcomes.models or len(outcomes.roles) != len(parts)):
            look = "" if part.preprocess is None else f" ({part.preprocess.as_text()})"
            raise ValueError(
                "the outcomes must be of all models of joint.toml, but lack "
                f"{own.get('path', own.get('url'))}{look}; record all of them at once"
            )
        roles.append(same[0] if same else outcomes.roles[len(roles)])
    inner = zip(roles[1:-1], routers, strict=True)
    stages = [Stage(role, **router) for role, router in inner]
    return [Stage(roles[0]), *stages, Stage(roles[-1])]


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    said = [(key, one.get(key), other.get(key)) for key in _IDENTITY]
    unsaid = "url" in one and None in said[0]  # a server may have begun to give a hash since
    return all(was == found for _, was, found in (said[1:] if unsaid else said))


def check_same(
    outcomes: Outcomes,
    pair: Mapping[str, Entry],
    said: Mapping[str, Any],
    classes: int | None,
    labels: Sequence[str] | None,
) -> None:
    """Check that outcomes of two models are of a file's models and classes; else a ValueError.

    `pair` has the file's entries by role, and `said` its other facts, by the outcomes' attributes.
    Facts that either side does not know are not compared.
    """
    facts = {name: (expected, getattr(outcomes, name)) for name, expected in said.items()}
    for role, entry in pair.items():
        own, found = entry.as_table(None), outcomes.models.get(role, {})
        facts |= {f"{role} ({key})": (own.get(key), found.get(key)) for key in _IDENTITY}
        if not found and isinstance(entry, Single):  # a chain's cost is a mean over its examples
            facts[f"{role} (FLOPs)"] = entry.cost.flops, outcomes.cost_of(role).flops
    count = classes if labels is None else len(labels)
    answered = outcomes.kind.common_classes(outcomes.student, outcomes.teacher)
    facts["number of classes"] = count, answered
    if [len(names or ()) for names in facts["columns"]] == [1, 1]:
        del facts["columns"]  # a single column may have any name
    for what, (expected, came) in facts.items():
        if None not in (expected, came) and came != expected:
            raise ValueError(
                f"the outcomes are of another {what} than joint.toml: {came!s:.80}, not "
                f"{expected!s:.80}; {_AGAIN}"
            )
    check_same_classes("the outcomes", outcomes.labels, "joint.toml", labels, _AGAIN)


def unnamed(outcomes: Outcomes) -> str | None:
    """Say which models some outcomes do not name; None if they name all."""
    if not (roles := [role for role in outcomes.roles if role not in outcomes.models]):
        return None
    return (
        f"the outcomes do not name their {' and '.join(roles)}, so it cannot be checked that the "
        "models of joint.toml gave these answers; `ebjr record` names them"
    )


def models_changed(parts: Sequence[Single]) -> bool:
    """Tell, with a warning, whether a model's file has changed."""
    for entry in parts:
        try:
            entry.check()
        except FileNotFoundError:  # outcomes can be evaluated on another machine
            continue
        except ModelError as error:
            told = f"{error}; the figures are of the model as it was"
            warnings.warn(told, PromiseWarning, stacklevel=5)
            return True
        if isinstance(entry, ModelEntry) and import_path(entry.path):  # would have to run code
            note(f"the weights of {entry.path} are checked only when it is loaded")
    return False
