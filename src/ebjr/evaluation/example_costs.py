"""Costs of an example on several models, as far as they can be found before a recording."""

from collections.abc import Mapping
from typing import Any

from ebjr.arrays import Batch, is_array, row_count, to_numpy
from ebjr.costs import Cost
from ebjr.data.looks import Look
from ebjr.data.preprocess import unprepared
from ebjr.errors import EbjrError, note, one_line
from ebjr.evaluation.flops import Flops, can_count, count_flops
from ebjr.evaluation.power import Load, with_joules
from ebjr.model import Model, facts


def costs_of(
    models: Mapping[str, Model],
    inputs: Batch,
    given: Mapping[str, Cost],
    *,
    flops: bool = True,
    joules: bool = False,
    features: Any = None,
) -> dict[str, Cost]:
    """Return each model's cost per example, with what can be found added to what is `given`.

    A model that continues from the student's features gets `features` instead of `inputs`.

    `joules` of all models are measured by the same counters, or all estimated; if one model is
    remote, none has joules.
    """
    costs: dict[str, Cost] = {}
    loads: dict[str, Load] = {}
    for name, each in models.items():
        model = each.model if isinstance(each, Look) else each  # a look costs what its model does
        known = facts(model)
        asked = features if known.continues else inputs
        costs[name] = given[name].filled(**known.cost.as_dict(), rest=known.continues or None)
        if known.url is None and (flops or joules):
            costs[name], loads[name] = _looked_into(model, asked, costs[name], joules)
    if not joules or len(loads) < len(models):
        return costs
    return with_joules(costs, loads)


def _looked_into(model: Model, inputs: Batch, cost: Cost, joules: bool) -> tuple[Cost, Load]:
    """Return a model's cost with its FLOPs, and the load for measuring its joules."""
    bare, preprocess = unprepared(model)
    if not joules and (cost.flops is not None or not can_count(bare)):
        return cost, Load(bare, None)
    batch = inputs[: facts(bare).fixed_batch or row_count(inputs)]
    if preprocess is not None:
        batch = preprocess(batch)
    counted = _counted(bare, batch, cost.flops is None) if can_count(bare) else None
    if counted is None:
        return cost, Load(bare, batch)
    if counted.known is not None:
        cost = cost.filled(flops=counted.known)
    return cost, Load(bare, batch, cost.flops, counted.parameter_bytes)


def _counted(model: Model, batch: Batch, wanted: bool) -> Flops | None:
    """Count a model's FLOPs if possible; note why a file's cannot be counted."""
    known = facts(model)
    if not is_array(batch):
        return None
    dtype = None if known.path or known.input_dtype else to_numpy(batch[:1]).dtype.name
    try:
        counted = count_flops(model, tuple(batch.shape), input_dtype=dtype)
    except (EbjrError, ValueError, TypeError, OSError) as error:
        if wanted and known.path:
            note(f"FLOPs not counted: {one_line(error)}")
        return None
    if wanted and counted.uncounted:
        how = "not counted" if counted.known is None else "a lower bound, which leaves out a part"
        note(f"FLOPs {how}: the model has {', '.join(counted.uncounted)}")
    return counted
