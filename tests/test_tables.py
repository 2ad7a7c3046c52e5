"""Tables for a person: no figure is cut, however narrow the terminal is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ebjr.tables import plain_table, print_table

FIGURES = ("93.72%", "304.7", "0.08976", "123,456")


def printed(width: int, spare: tuple[str, ...] = ()) -> str:
    table = plain_table("", "accuracy", "MFLOPs", "mJ, estimated", "rows that are kept")
    table.add_row("joint: specialized_softmax, blend 0.5", *FIGURES)
    console = Console(file=io.StringIO(), width=width)
    print_table(console, table, spare)
    return console.file.getvalue()


def test_a_wide_table_has_its_titles_on_one_line() -> None:
    lines = printed(160).splitlines()
    assert len(lines) == 2
    assert "mJ, estimated" in lines[0]


@pytest.mark.parametrize("width", [80, 66, 60])
def test_no_figure_is_cut_and_names_break_where_they_must(width: int) -> None:
    text = printed(width)
    assert "…" not in text
    assert all(figure in text for figure in FIGURES)
    assert all(len(line) <= width for line in text.splitlines())
    assert all(word in text for word in ("joint:", "specialized_softmax", "blend"))


def test_columns_that_do_not_fit_are_left_out_and_named() -> None:
    text = printed(50, spare=("mJ, estimated", "MFLOPs"))
    assert "0.08976" not in text
    assert "left out, for a wider terminal: mJ, estimated" in text
    assert all(figure in text for figure in ("93.72%", "304.7", "123,456"))


def test_a_table_that_fits_leaves_nothing_out() -> None:
    assert "left out" not in printed(160, spare=("MFLOPs",))
