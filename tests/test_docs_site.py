"""The site is whole: pages are reached, links and anchors lead somewhere, names are there."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from pages import DOCS
from typer.main import get_command

import ebjr
from docs.make import command_line, measured
from docs.make.check import asks, rooted
from docs.make.reference import not_shown, shown
from docs.make.sources import FENCED, LINK, ROOT, in_repository, linked, links, moved, navigation
from ebjr.cli import app
from ebjr.scores import OWN_SCORES
from ebjr.tasks import load_all

PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *ROOT.glob("experiments/**/README.md"),
    *ROOT.glob("benchmarks/**/README.md"),
    ROOT / "examples/README.md",
]


def heading_ids(path: Path) -> set[str]:
    """The anchors of a page's headings, as forges and the site make them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


def test_every_page_is_in_the_navigation_once_and_every_entry_is_a_page():
    entries = navigation()
    assert len(entries) == len(set(entries))
    assert all(in_repository(entry).is_file() for entry in entries)
    listed = {f"decisions/{name}" for name in links((DOCS / "decisions/index.md").read_text())}
    assert {path.relative_to(DOCS).as_posix() for path in PAGES} - listed <= set(entries)


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    assert all(path.is_file() for path in linked(page))
    text = FENCED.sub("", page.read_text())
    for path, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#([\w-]+)\)", text):
        target = page.parent / path if path else page
        assert anchor in heading_ids(target), f"{path}#{anchor}"


def test_a_link_out_of_docs_leads_to_the_sites_copy():
    page = DOCS / "edge.md"
    assert "](../benchmarks/README.md#" in page.read_text()
    assert "](benchmarks/README.md#" in moved(page)
    assert "](../edge.md)" in moved(DOCS / "reference" / "edge.md")
    study = ROOT / "experiments" / "diamonds" / "README.md"
    assert LINK.findall(moved(study)) == LINK.findall(study.read_text())


def test_every_command_and_option_is_in_the_reference():
    text = command_line.reference()
    sections = dict(
        re.findall(r"^## `ebjr (\S+)`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    )
    commands = get_command(app).commands
    assert list(sections) == list(commands)
    for name, command in commands.items():
        options = [option for found in command.params for option in getattr(found, "opts", [])]
        missing = [option for option in options if option not in sections[name]]
        assert not missing, (name, missing)


def test_the_builder_has_nothing_to_say_about_a_docstring(caplog):
    """It warns of an argument that is described and not in the signature."""
    griffe = pytest.importorskip("griffe", reason="the site's builder is not installed")
    found = [griffe.load("ebjr", search_paths=[str(ROOT / "src")])]
    for each in found:
        if each.docstring is not None:
            each.docstring.parse("numpy")
        found += [one for one in each.members.values() if not one.is_alias]
    assert len(found) > 1000
    assert not caplog.messages


def thing(path: str) -> object:
    """What a dotted name is."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)


def public() -> list[str]:
    """The names of `__all__`, of the package and of every module that has one."""
    source = ROOT / "src"
    found = []
    for file in sorted(source.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                path = ".".join(file.relative_to(source).with_suffix("").parts)
                module = path.removesuffix(".__init__")
                found += [f"{module}.{name}" for name in import_module(module).__all__]
    return found


def test_every_score_is_in_the_reference():
    listed = {name.rpartition(".")[2] for name in shown()}
    for task in load_all():
        assert {name for name in task.raw.scores if name not in OWN_SCORES} <= listed, task.name


def test_every_public_name_is_in_the_reference():
    own = {id(getattr(ebjr, name)) for name in ebjr.__all__}
    missing = [
        name
        for name in public()
        if name not in shown()
        and f"{name}.{name.rpartition('.')[2]}" not in shown()  # a module called as its function
        and (name.count(".") == 1 or id(thing(name)) not in own)
    ]
    assert not missing


def paper_rows() -> list[list[str]]:
    lines = re.findall(r"^\| (.*) \|$", (DOCS / "paper.md").read_text(), re.MULTILINE)
    return [line.split(" | ") for line in lines[1:]]


@pytest.mark.parametrize("row", paper_rows(), ids=lambda row: row[0])
def test_every_row_of_the_paper_names_a_function_and_a_test(row):
    name = re.search(r"`(ebjr[\w.]+)`", row[2])[1]
    assert callable(thing(name))
    assert {name, name.rpartition(".")[0]} & set(shown())
    assert f".md#{name})" in row[2]
    file, test = row[3].strip("`").split("::")
    assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text()


def test_the_paper_has_every_equation():
    cells = [row[0] for row in paper_rows() if row[0][0].isdigit()]
    assert sorted(int(number) for cell in cells for number in cell.split(", ")) == list(
        range(1, 19)
    )


def test_the_gap_of_equation_15_is_wider_for_every_specialized_student():
    for path in (ROOT / "experiments/specialized").glob("results_*.json"):
        found = json.loads(path.read_text())
        gaps = [row["eq_15"] for name, row in found.items() if name.endswith(" known")]
        assert gaps
        assert all(abs(gap["specialized"]["nats"]) > abs(gap["general"]["nats"]) for gap in gaps)


def test_the_architecture_lists_the_layers_that_import_linter_holds():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = config["contracts"][0]["layers"]
    held = [{module.strip() for module in line.split("|")} for line in reversed(layers)]
    text = (ROOT / "ARCHITECTURE.md").read_text()
    lines = re.findall(r"^\d+\. (\*\*`.*(?:\n +.*)*)", text, re.MULTILINE)
    assert [set(re.findall(r"\*\*`(\w+)/?`\*\*", line)) for line in lines] == held[:-1]
    assert held[-1] == {"__main__"}


def test_every_example_is_shown_as_it_is():
    text = (DOCS / "examples.md").read_text()
    shown = re.findall(r'^--8<-- "(.*)"$', text, re.MULTILINE)
    assert sorted(shown) == sorted(f"examples/{path.name}" for path in ROOT.glob("examples/*.py"))


def test_every_part_that_a_page_includes_is_made():
    named = [
        name for page in PAGES for name in re.findall(r"build/parts/(\S+)\"", page.read_text())
    ]
    assert set(named) == {"cli.md", *measured.parts()}


def test_the_tables_are_the_result_files():
    pairs = measured.classifier_pairs()
    assert len(pairs) == 6
    table = measured.classifiers_table(pairs)
    others = json.loads((ROOT / "experiments/other_pairs/results.json").read_text())["pairs"]
    for name, title in measured.PAIRS.items():
        (line,) = (line for line in table.splitlines() if title in line)
        at = others[name]["at_the_teachers_accuracy"]
        figures = [f"{at[score]['times_fewer_flops']:.2f}" for score in measured.COLUMNS]
        assert [cell.strip(" *") for cell in line.split("|")[3:-1]] == figures
    places = [measured.place(saving) for pair in pairs for saving in pair.saving.values()]
    assert min(places) > 0
    assert max(places) < 100


def test_a_name_that_the_site_does_not_show_is_found(tmp_path):
    (tmp_path / "reference").mkdir()
    for page in set(shown().values()):
        ids = "".join(f'<h2 id="{name}">' for name, place in shown().items() if place == page)
        (tmp_path / "reference" / f"{page}.html").write_text(ids)
    assert not not_shown(tmp_path)
    (tmp_path / "reference" / "errors.html").write_text("")
    assert "ebjr.MissingExtra" in not_shown(tmp_path)


def test_a_path_that_leads_nowhere_from_disk_is_found(tmp_path):
    (tmp_path / "good.html").write_text('<a href="./x.html">x</a><a href="//x.org/y">y</a>')
    (tmp_path / "404.html").write_text('<a href="/x.html">x</a>')
    assert not rooted(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "bad.html").write_text(
        '<a href="/x.html">x</a><script src=/a.js></script>'
    )
    assert rooted(tmp_path) == ["deep/bad.html: /x.html", "deep/bad.html: /a.js"]


def test_a_page_that_asks_the_network_is_found(tmp_path):
    (tmp_path / "good.html").write_text(
        '<a href="https://x.org">x</a><script src="./a.js"></script>'
    )
    assert not asks(tmp_path)
    (tmp_path / "bad.html").write_text(
        '<script type="a" src="https://x.org/a.js"></script>'
        '<link rel="stylesheet" href=//x.org/a.css>'
    )
    assert len(asks(tmp_path)) == 2
