"""What others add: scores and metrics that an installed package declares as entry points."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from ebjr.errors import one_line


def load_entry_points(group: str, register: Callable[[Any], Any]) -> None:
    """Register what installed packages declare in a group; what fails is a warning, not an end.

    Parameters
    ----------
    group
        ``"ebjr.scores"`` or ``"ebjr.metrics"``.
    register
        Called with each function.

    Warns
    -----
    UserWarning
        An entry point cannot be loaded or registered: its name, and why.
    """
    for entry in entry_points(group=group):
        try:
            register(entry.load())
        except Exception as error:
            package = "a package" if entry.dist is None else f"package {entry.dist.name}"
            warnings.warn(
                f"{package} declares {entry.name!r} in {group}, which cannot be used: "
                f"{one_line(error)}",
                stacklevel=2,
            )
