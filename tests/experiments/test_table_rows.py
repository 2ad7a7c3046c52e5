from __future__ import annotations

import copy
import json
import re
import sys

import pytest

from experiments import check, claims, table

ROWS = (
    "baselines/5",
    "fig2_fig3/1",
    "fig3_ablation/24",
    "fig4/2",
    "fig5_resolution/1",
    "fig6_specialized/14",
    "significance/1",
    "table1/8",
    "table1/15",
    "table2_power/2",
)
"""Made again here from what is committed; each takes seconds."""


@pytest.fixture(scope="module")
def found() -> dict:
    """Every result file of the table."""
    return table.results()


@pytest.mark.parametrize("row", ROWS)
def test_a_row_is_made_again_from_what_is_committed(row, found):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    assert check.check(row, found)


def test_a_row_that_does_not_come_out_again_ends_with_status_1(found, monkeypatch, capsys):
    changed = copy.deepcopy(found)
    changed["fig4"]["rows"][0]["ours"] += 1.0
    monkeypatch.setattr(check, "results", lambda: changed)
    monkeypatch.setattr(sys, "argv", ["check", "fig4/1"])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 1
    assert "NOT the same" in capsys.readouterr().out


def test_a_row_that_no_script_can_make_again_ends_with_status_1(found, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", "fig5_detection/1"])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 1
    assert "not made again" in capsys.readouterr().out


@pytest.mark.parametrize("row", ["table1/0", "table1/999", "table1", "nowhere/1", "table1/x"])
def test_a_name_of_no_row_is_one_sentence(row, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", row])
    with pytest.raises(SystemExit) as ended:
        check.main()
    assert ended.value.code == 2
    assert f"there is no row {row}: give SCRIPT/NUMBER" in capsys.readouterr().err


BASE = {"paper": 2.0, "ours": 3.0, "unit": "x", "lower": False, "loss": 0.1}


@pytest.mark.parametrize(
    ("changes", "standing"),
    [
        ({"interval": [2.1, 4.0], "points": -0.1}, "beyond"),
        ({"interval": [2.1, 4.0], "points": -0.2}, "unequal"),
        ({"interval": [1.9, 4.0], "points": 0.5}, "undecided"),
        ({"interval": [1.0, 1.9], "points": 0.5, "ours": 1.5}, "short"),
        ({"interval": [1.0, 1.9], "points": -0.5, "ours": 1.5}, "short"),
        ({"interval": None, "points": None}, "undecided"),
        ({"interval": [1.0, 1.9], "points": None, "lower": True}, "beyond"),
        ({"interval": [2.1, 4.0], "points": None, "lower": True}, "short"),
        ({"interval": [2.1, 4.0], "points": None, "lower": None}, ""),
        ({"interval": None, "points": None, "paper": None}, ""),
    ],
)
def test_how_a_row_stands_beside_the_papers(changes, standing):
    row = {**BASE, **changes}
    assert claims.standing(row) == standing
    assert table.difference(row).startswith("**") is (standing == "beyond")


def test_bold_is_no_row_less_accurate_than_the_paper_or_without_an_interval_beyond_it(found):
    bold = 0
    for result in found.values():
        for row in result["rows"]:
            if table.difference(row).startswith("**"):
                bold += 1
                worst = row["interval"][1 if row["lower"] else 0]
                assert worst > row["paper"] if not row["lower"] else worst < row["paper"]
                assert row["points"] is None or row["points"] >= -row["loss"] - claims.ROUNDED
    assert bold


def test_no_less_accurate_stands_only_where_it_is(found):
    rows = [row for result in found.values() for row in result["rows"]]
    said = [row for row in rows if "no less accurate" in row["what"]]
    assert said
    assert all(row["points"] >= 0 for row in said)


def test_every_factor_beside_a_factor_of_the_paper_has_an_interval(found):
    for name, result in found.items():
        for row in result["rows"]:
            if row["unit"] == "x" and row["paper"] is not None and name != "fig5_detection":
                low, high = row["interval"]
                assert low <= row["ours"] <= high, row["what"]


def test_the_summary_comes_first_and_names_every_claim_and_target(found):
    page = table.README.read_text()
    screen = page.partition("## How to read it")[0]
    for claim in claims.CLAIMS:
        assert screen.count(f"| {claim.where} | {claim.says} |") == 1
    for asked, _ in claims.TARGETS:
        assert f"| {asked} |" in screen
    assert screen.index("In one screen") < page.index("## The table")


def test_a_claim_reproduces_where_a_row_is_beyond_it_and_none_is_worse():
    figures = {
        "beyond": (3.5, [3.0, 4.0]),
        "better": (2.5, [1.0, 4.0]),
        "worse": (1.5, [1.0, 4.0]),
        "short": (1.2, [1.0, 1.5]),
    }
    rows = {
        word: {**BASE, "points": 0.0, "interval": ends, "ours": ours}
        for word, (ours, ends) in figures.items()
    }
    every = list(rows.values())
    assert claims.group(every[:2]) == "holds"
    assert claims.group([rows["beyond"], rows["worse"]]) == "open"
    assert claims.group(every) == claims.group([rows["better"]]) == "open"
    assert claims.group([rows["short"]]) == claims.group([]) == "fails"
    assert claims.verdict(every) == "1 beyond, 2 undecided, 1 short"


def test_a_pair_that_loses_to_a_single_network_says_so_in_its_rows(found):
    pairs = found["baselines"]["figures"]["pairs"]
    lost = {
        name
        for name, pair in pairs.items()
        if pair["strongest"] and pair["singles"][pair["strongest"]]["joint_over_it_points"] < 0
    }
    assert lost
    lines = table.README.read_text().splitlines()
    for name, result in found.items():
        for place, row in enumerate(result["rows"], start=1):
            if row.get("pair") in lost:
                (line,) = [one for one in lines if one.startswith(f"| `{name}/{place}` ")]
                assert "loses to a single network" in line


def test_rows_of_rivals_begin_with_their_training_budget(found):
    rows = [row for row in found["rivals_cifar10"]["rows"] if row["step"] in ("single", "routers")]
    assert rows
    assert all(re.match(r".*42 epochs", row["why"]) for row in rows)


def test_results_are_as_a_row_needs_them(found):
    text = json.dumps({name: result["rows"] for name, result in found.items()})
    assert "NaN" not in text
