"""Chores that fail are told of once, and done again."""

from __future__ import annotations

import logging

from ebjr.serving.periodic import Periodic


def test_a_chore_that_keeps_failing_is_logged_once_and_others_go_on(caplog):
    done = []

    def fails() -> None:
        done.append("fails")
        raise OSError("the disk is full")

    def works() -> None:
        done.append("works")

    periodic = Periodic(1.0)
    for _ in range(3):
        periodic.do(fails)
        periodic.do(works)
    assert done == ["fails", "works"] * 3
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


def test_a_keeper_that_was_never_started_can_be_stopped():
    Periodic(1.0).stop()
