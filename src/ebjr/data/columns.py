"""Columns of a row: those that the models read, compared with those of the data."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ebjr.arrays import Batch
from ebjr.data.examples import ArrayData, Data
from ebjr.joint import models_of
from ebjr.model import Model, ModelFacts, facts


def read_by(*models: Model) -> tuple[tuple[str, ...] | None, bool]:
    """Return the columns that models read, None if no model names any, and if they read texts.

    Raises
    ------
    ValueError
        Two of `models` read different columns, or the same in another order.
    """
    every = _facts_of(models)
    said = [known for known in every if known.columns]
    for other in said[1:]:
        if other.columns != said[0].columns:
            raise ValueError(
                f"all models must read the same columns in the same order, but {said[0].name} "
                f"reads {_listed(said[0].columns)} and {other.name} reads "
                f"{_listed(other.columns)}: give both the same columns"
            )
    texts = any(_are_objects(known.input_dtype) and not known.sends_files for known in every)
    return said[0].columns if said else None, texts


def check_columns(inputs: Batch | Data, *models: Model) -> None:
    """Check that inputs have the columns that models read, and texts if they read texts.

    Arrays have no column names: only the number of texts is compared.

    Raises
    ------
    ValueError
        The columns of `inputs` are not those that the models read.
    """
    columns, texts = read_by(*models)
    held: Any = inputs.inputs if isinstance(inputs, ArrayData) else inputs
    have = inputs.columns if isinstance(inputs, Data) else None
    if have is not None:
        check_names(have, columns, texts=isinstance(held, list))
        if texts and not (isinstance(held, list) or _are_objects(held.dtype)):
            raise ValueError(
                f"the models read texts, but {_listed(have)} are numbers in the data: open it for "
                "these models, with open_data(..., models=[student, teacher])"
            )
    if (count := _texts_of(held)) is None:
        return
    if columns is not None and count != len(columns):
        raise ValueError(
            f"the models read {len(columns)} columns of texts, {_listed(columns)}, but a row of "
            f"the inputs has {count}"
        )
    for known in _facts_of(models):
        if known.input_shape == (None,) and _are_objects(known.input_dtype) and count > 1:
            raise ValueError(
                f"{known.name} reads one text in each row, but a row of the inputs has {count}: "
                "choose one with --input-columns (input_columns=), or another model"
            )


def check_names(have: Sequence[str], columns: Sequence[str] | None, *, texts: bool) -> None:
    """Check that columns are those that models read; a single one of texts may have any name."""
    lone = texts and len(have) == 1
    if columns is None or [*have] == [*columns] or (lone and len(columns) == 1):
        return
    raise ValueError(
        f"the models read the columns {_listed(columns)} in this order, not {_listed(have)}: give "
        "these with --input-columns (input_columns=), or leave it out"
    )


def _facts_of(models: Iterable[Model]) -> list[ModelFacts]:
    """Return the facts of all models, those in joint models included."""
    return [facts(part) for model in models for part in models_of(model)]


def _texts_of(held: Batch) -> int | None:
    """Count the texts of a row of inputs; None if they are not texts, or unknown."""
    if isinstance(held, list):
        return 1 if held and isinstance(held[0], str) else None
    if not isinstance(held, np.ndarray) or held.dtype.kind not in "OU":
        return None
    return 1 if held.ndim == 1 else held.shape[1] if held.ndim == 2 else None


def _are_objects(dtype: np.dtype[Any] | None) -> bool:
    return dtype is not None and dtype.hasobject


def _listed(columns: Sequence[str] | None) -> str:
    return ", ".join(columns or ())
