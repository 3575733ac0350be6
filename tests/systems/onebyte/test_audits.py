"""Measurements that contradict each other: what an honest machine may send, and whom two others refute."""

import pytest

from farflung.systems.onebyte.audits import Audits, agree, outvoted, refuted
from farflung.systems.onebyte.code import SIGN_BIT
from farflung.systems.onebyte.slots import Measured

REFERENCE = 60


@pytest.mark.parametrize(
    ("one", "other", "is_honest"),
    [
        (70, 70, True),
        (70, 70 | SIGN_BIT, False),
        (70, 77, True),
        (70, 79, False),
        (30, 30 | SIGN_BIT, True),
        (59, 50 | SIGN_BIT, True),
        (60, 10, False),
        (0, 3, True),
    ],
)
def test_only_large_entries_are_held_to_each_other(one: int, other: int, is_honest: bool) -> None:
    assert agree(one, other, REFERENCE, octaves=1.0) is is_honest
    assert agree(other, one, REFERENCE, octaves=1.0) is is_honest


def named(*codes: int) -> list[Measured]:
    return [Measured(name, code) for name, code in zip("abcd", codes, strict=False)]


def test_one_against_two_is_refuted_and_one_against_one_is_not() -> None:
    assert refuted(named(70, 70 | SIGN_BIT), REFERENCE, 1.0) == []
    assert refuted(named(70, 70 | SIGN_BIT, 71), REFERENCE, 1.0) == ["b"]
    assert refuted(named(70 | SIGN_BIT, 70, 71), REFERENCE, 1.0) == ["a"]


def test_three_who_all_differ_refute_nobody() -> None:
    assert refuted(named(70, 70 | SIGN_BIT, 100), REFERENCE, 1.0) == []


def test_an_entry_is_counted_once_and_a_ban_comes_once() -> None:
    audits = Audits(disagreements_max=2)
    assert audits.judge(5, 1, ["x"]) == [] and audits.judge(5, 1, ["x"]) == []
    assert audits.judge(5, 2, ["x"]) == ["x"]
    assert audits.judge(6, 1, ["x"]) == []
    audits.forget_before(6)
    assert audits.num_refuted == {"x": 3}


def test_whose_weights_differ_from_two_others_is_outvoted_and_nobody_is_where_it_is_not_clear() -> None:
    assert outvoted({"a": b"1"}) == outvoted({"a": b"1", "b": b"2"}) == []
    assert outvoted({"a": b"2", "b": b"1", "c": b"1"}) == ["a"]
    assert outvoted({"a": b"1", "b": b"1", "c": b"2", "d": b"2"}) == []
    assert outvoted({"a": b"1", "b": b"1", "c": b"1", "d": b"2", "e": b"2"}) == ["d", "e"]
