"""The checker of our prose finds what it is there for, and lets the rest be."""

from __future__ import annotations

import pytest

from docs.make.prose import in_python

DOCSTRING = '''"""Read a rate.

Raises
------
ValueError
    `rate` is negative.
KeyError
    {entry}

Notes
-----
It is fine to begin so here.
"""
'''


@pytest.mark.parametrize("entry", ["It is not known.", "There is none.", "One of them is away."])
def test_an_entry_under_raises_names_what_is_wrong(entry):
    assert list(in_python(DOCSTRING.format(entry=entry))) == [
        (8, f"`Raises` without subject: {entry}")
    ]


def test_entries_with_a_subject_are_left_alone():
    assert not list(in_python(DOCSTRING.format(entry="`name` is not known.")))


def test_phrases_are_found_in_comments_messages_and_across_lines():
    banned = "so", "many"
    source = f"x = '{banned[0]} {banned[1]} rows'  # {banned[0]} {banned[1]}\n"
    source += f'"""{banned[0]}\n{banned[1]}"""\nsomany = 1\n'
    assert [line for line, _ in in_python(source)] == [1, 1, 2]
