"""The audit log: every entry that was acknowledged is there, whole, whatever kills the process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ebjr.serving.journal import Journal


def lines(path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_entries_are_json_lines_in_order_with_their_time(tmp_path):
    with Journal(tmp_path / "audit.jsonl") as journal:
        for number in range(3):
            journal.write({"to": number})
    found = lines(tmp_path / "audit.jsonl")
    assert [entry["to"] for entry in found] == [0, 1, 2]
    assert sorted(entry["time"] for entry in found) == [entry["time"] for entry in found]


@settings(max_examples=40)
@given(st.integers(0, 400), st.sampled_from([b"", b"\x00\x00", "\u00e4".encode()[:1]]))
def test_cut_off_anywhere_it_is_whole_again_and_loses_no_whole_line(size, noise):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        with Journal(path) as journal:
            for number in range(6):
                journal.write({"why": "because", "to": number})
        torn = path.read_bytes()[:size] + noise
        path.write_bytes(torn)
        whole = torn.count(b"\n")
        with Journal(path) as journal:
            journal.write({"to": "again"})
        found = lines(path)
        assert [entry.get("to") for entry in found[:whole]] == list(range(whole))
        assert found[-1]["to"] == "again"


def test_a_line_longer_than_what_is_read_at_once_is_repaired_too(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"to": 1}\n{"to": "' + b"x" * 200_000)
    with Journal(path) as journal:
        assert journal.repaired == 200_008
    assert [entry.get("to") for entry in lines(path)] == [1, None]


def test_a_folder_that_is_not_there_is_said_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Journal(tmp_path / "none" / "audit.jsonl")
    assert not (tmp_path / "none").exists()


def test_an_entry_that_does_not_fit_on_the_disk_leaves_nothing_behind(tmp_path):
    pytest.importorskip("resource", reason="no limits of a process here")
    path = tmp_path / "audit.jsonl"
    code = (
        "import resource, sys\n"
        "from ebjr.serving.journal import Journal\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with Journal(sys.argv[1]) as journal:\n"
        "    journal.write({'to': 1})\n"
        "    try:\n"
        "        journal.write({'to': 'x' * 5000})\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
        "    journal.write({'to': 2})\n"
    )
    said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=True)
    assert said.stdout == b"File too large\n"
    assert [entry["to"] for entry in lines(path)] == [1, 2]


def test_whatever_was_acknowledged_survives_a_kill(tmp_path):
    path = tmp_path / "audit.jsonl"
    code = (
        "import sys\n"
        "from ebjr.serving.journal import Journal\n"
        "journal = Journal(sys.argv[1])\n"
        "for number in range(10**9):\n"
        "    journal.write({'to': number, 'why': 'x' * 3000})\n"
        "    print(number, flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(50):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        told = 50 + len(writer.stdout.read().splitlines())
    with Journal(path):
        pass
    found = [entry["to"] for entry in lines(path) if "to" in entry]
    assert found == list(range(len(found)))
    assert told <= len(found)


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (lambda path: path.unlink(), "deleted"),
        (lambda path: path.rename(path.with_suffix(".1")), "moved"),
        (lambda path: (path.rename(path.with_suffix(".1")), path.touch()), "moved"),
        (lambda path: path.write_bytes(b""), "cut"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "cut"),
        (lambda path: (path.unlink(), path.write_bytes(b'{"to": "of another"}\n{')), "deleted"),
    ],
)
def test_a_file_that_is_taken_away_is_noticed_and_gone_on_with(tmp_path, harm, what):
    path = tmp_path / "audit.jsonl"
    with Journal(path) as journal:
        journal.write({"to": 1})
        harm(path)
        for number in (2, 3):
            journal.write({"to": number})
        found = lines(path)
        noted = [entry for entry in found if entry.get("who") == "journal"]
        assert noted[-1]["why"] == f"the file was {what} while it was in use"
        assert [entry.get("to") for entry in found[-3:]] == [None, 2, 3]
    if what == "moved":
        assert [entry["to"] for entry in lines(path.with_suffix(".1"))] == [1]


def test_a_folder_that_is_taken_away_is_an_error_until_it_is_back(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    with Journal(folder / "audit.jsonl") as journal:
        journal.write({"to": 1})
        folder.rename(tmp_path / "elsewhere")
        for _ in range(2):
            with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
                journal.write({"to": 2})
        folder.mkdir()
        journal.write({"to": 3})
        assert [entry.get("to") for entry in lines(folder / "audit.jsonl")] == [None, 3]
