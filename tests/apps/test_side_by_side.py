"""Processes measure at the same time, and one that fails is told of."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from farflung.apps.pilot.side_by_side import measured


def told(tables: dict[str, Any], number: int, ready: Callable[[], object], seconds: float) -> tuple[int, int, float]:
    ready()
    return os.getpid(), tables["base"] + number, seconds


def one_fails(tables: dict[str, Any], number: int, ready: Callable[[], object], seconds: float) -> None:
    if number == 1:
        os._exit(7)
    ready()


def test_every_process_measures_and_is_told_in_order() -> None:
    found = measured(told, {"base": 40}, 3, 0.5, does="nothing")
    assert [one[1:] for one in found] == [(40, 0.5), (41, 0.5), (42, 0.5)]
    assert len({one[0] for one in found} | {os.getpid()}) == 4


def test_a_process_that_fails_is_told_of_while_others_wait() -> None:
    with pytest.raises(ValueError, match="measures nothing here ended with status 7: is there too little memory for 2"):
        measured(one_fails, {}, 2, 0.5, does="nothing")
