"""What `--help` shows: every option in a group, every text whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import typer.main

from ebjr.cli import app
from ebjr.options import LISTED, Command

COMMANDS = typer.main.get_command(app).commands
CALIBRATE = {
    "Goal": {"--goal", "--tolerance", "--target", "--flops", "--deferral-rate"},
    "Guarantee": {"--delta", "--promise", "--loss-bound"},
    "Score": {"--score", "--blend"},
    "Task": {"--metric"},
    "Data": {"--fraction", "--seed", "--traffic", "--popular"},
    "Link": {"--link", "--over-link"},
    "Output": {"--output", "--name", "--report", "--json"},
}


@pytest.fixture(scope="module")
def shown():
    """By command, and "" for all of them: what a terminal of 80 columns shows."""

    def help_of(*words: str) -> str:
        script = "import ebjr.cli; ebjr.cli.main()"
        return subprocess.run(
            [sys.executable, "-c", script, *words, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "80"},
        ).stdout

    return {"": help_of()} | {name: help_of(name) for name in COMMANDS}


def words_of(text: str) -> str:
    """A text without its breaks: a word that is too long for a line is broken anywhere."""
    return re.sub(r"\s+", "", text)


def test_no_line_is_wider_than_the_terminal_or_cut(shown):
    for name, text in shown.items():
        assert max(map(len, text.splitlines())) <= 80, name
        assert "…" not in text
        assert not re.search(r"\w\.\.\.(?!\s*<)\s*$", text, re.MULTILINE), name


def test_every_help_text_is_shown_whole(shown):
    for name, command in COMMANDS.items():
        assert words_of(command.help.splitlines()[0]) in words_of(shown[""])
        for option in command.params:
            text = option.help or ""
            for word in LISTED:
                text = text.replace(f"${word}", "")
            assert words_of(text.rstrip(".")) in words_of(shown[name]), (name, option.name)


def test_options_stand_in_groups(shown):
    sections = re.findall(r"^(\w+):\n(.*?)(?=^\w+:\n|\Z)", shown["calibrate"], re.DOTALL | re.M)
    found = {title: set(re.findall(r"--[\w-]+(?= |$)", text, re.M)) for title, text in sections}
    assert {"Arguments", "Options", *CALIBRATE} <= set(found)
    for title, options in CALIBRATE.items():
        assert options <= found[title], title
    assert found["Options"] == {"--import", "--help"}


def test_every_option_of_every_command_is_in_a_group():
    for name, command in COMMANDS.items():
        assert isinstance(command, Command)
        alone = [
            option.name
            for option in command.params
            if option.param_type_name == "option" and not option.rich_help_panel
        ]
        assert not alone, (name, alone)


def test_a_help_text_lists_what_there_is(shown):
    from ebjr.demo import DEMOS
    from ebjr.quantize import METHODS
    from ebjr.tasks import task_names

    for name, known in (("record", task_names()), ("demo", DEMOS), ("quantize", METHODS)):
        assert words_of(", ".join(known)) in words_of(shown[name])
        assert "$" not in shown[name]


def test_the_list_of_commands_imports_nothing_heavy():
    script = (
        "import sys; from ebjr.cli import main; sys.argv = ['ebjr', '--help']\n"
        "try: main()\n"
        "except SystemExit: print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    modules = set(found.stdout.rpartition("\n\n")[2].split())
    assert "ebjr.cli" in modules
    assert not modules & {"numpy", "scipy", "PIL", "onnxruntime", "torch", "rich.progress"}
