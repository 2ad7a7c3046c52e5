"""Journal: a run's records beside its output, written by one process at a time."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ebjr.journal import Journal

WHOSE = {"score": "energy", "contents": "5f"}


def write(output, *contents, whose=WHOSE, restart=False):
    """Add records as a run that is then interrupted."""
    with pytest.raises(KeyboardInterrupt), Journal(output, restart=restart) as journal:  # noqa: PT012
        journal.resume(whose)
        for content in contents:
            journal.add({"rows": len(content)}, content)
        raise KeyboardInterrupt


def read(output, whose=WHOSE):
    with Journal(output) as journal:
        journal.resume(whose)
        return [content for _, content in journal.records()]


def test_records_come_back_in_their_order_whatever_is_in_them(tmp_path):
    contents = [b"", b"\n\n", b'{"bytes": 3}\n', bytes(range(256))]
    write(tmp_path / "a", *contents[:2])
    write(tmp_path / "a", *contents[2:])
    assert read(tmp_path / "a") == contents


@pytest.mark.parametrize("cut", range(1, 70, 4))
def test_a_record_that_was_cut_short_is_cut_off_and_written_again(tmp_path, cut):
    journal = tmp_path / "a.part"
    write(tmp_path / "a", b"first\n", b"second\n", b"")
    journal.write_bytes(journal.read_bytes()[:-cut])
    kept = read(tmp_path / "a")
    assert kept == [b"first\n", b"second\n", b""][: len(kept)]
    assert len(kept) < 3
    write(tmp_path / "a", b"again")
    assert read(tmp_path / "a") == [*kept, b"again"]


def test_nothing_is_left_of_a_run_that_recorded_nothing(tmp_path):
    write(tmp_path / "a")
    with pytest.raises(OSError, match="early"), Journal(tmp_path / "a"):
        raise OSError("early")
    assert not list(tmp_path.iterdir())


def test_an_error_says_where_the_records_are(tmp_path):
    with pytest.raises(ValueError, match="torn") as caught, Journal(tmp_path / "a") as journal:  # noqa: PT012
        journal.resume(WHOSE)
        journal.add({}, b"1")
        raise ValueError("torn")
    assert caught.value.__notes__ == [
        f"the finished part is in {tmp_path / 'a.part'}; the same command resumes from it"
    ]


def test_a_journal_of_something_else_is_refused_with_what_differs(tmp_path):
    write(tmp_path / "a", b"1")
    says = r"with other settings \(score 'energy', now 'margin'\): .* start over with .*--restart"
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "a", {"score": "margin", "contents": "90"})
    with pytest.raises(ValueError, match=r"data that have changed since: .*--restart"):
        read(tmp_path / "a", WHOSE | {"contents": "90"})
    assert read(tmp_path / "a") == [b"1"]
    write(tmp_path / "a", b"2", whose={"score": "margin"}, restart=True)
    assert read(tmp_path / "a", {"score": "margin"}) == [b"2"]


@pytest.mark.parametrize("content", [b"a download", b"\x00\x01\n\x02", b'{"whose": 3}\n', b"[]\n"])
def test_a_file_of_another_program_is_never_cut(tmp_path, content):
    (tmp_path / "a.part").write_bytes(content)
    says = "was not written by an interrupted run: move it away"
    with pytest.raises(ValueError, match=says):
        read(tmp_path / "a")
    if content != b'{"whose": 3}\n':
        with (
            Journal(tmp_path / "a", restart=True) as journal,
            pytest.raises(ValueError, match=says),
        ):
            journal.resume(WHOSE)
    assert (tmp_path / "a.part").read_bytes() == content


SECOND = """
import sys
from ebjr.journal import Journal
with Journal(sys.argv[1], restart=True) as journal:
    journal.resume({})
"""


def second(output):
    words = [sys.executable, "-c", SECOND, str(output)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path):
    pytest.importorskip("fcntl", reason="no locks of files here")
    output = tmp_path / "a"
    with Journal(output) as journal:
        journal.resume(WHOSE)
        journal.add({}, b"1")
        refused = second(output)
        assert f"BlockingIOError: another run is writing {output}; wait for" in refused.stderr
        with pytest.raises(BlockingIOError, match=r"give another output \(--output\)"):
            Journal(output, restart=True)
        assert [content for _, content in journal.records()] == [b"1"]
        journal.remove()
    assert second(output).returncode == 0


def test_a_journal_that_the_first_run_removed_is_not_taken_for_the_second_ones(tmp_path):
    """A lock on a file that has no name any more would keep nobody away."""
    for _ in range(3):
        with Journal(tmp_path / "a") as journal:
            journal.resume(WHOSE)
            journal.add({}, b"1")
            journal.remove()
            with Journal(tmp_path / "a") as other:
                other.resume(WHOSE)
                assert other.path.is_file()
                assert not list(other.records())
