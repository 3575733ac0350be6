"""Slots of a round: given out, given again, counted once; and shares by speed."""

from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.onebyte.slots import Slots, runs, shares


def test_runs_of_consecutive_numbers() -> None:
    assert runs([3, 4, 5, 9]) == (3, 3, 9, 1)
    assert runs([]) == ()


@given(st.sets(st.integers(0, 60)))
def test_runs_hold_every_number_once(numbers: set[int]) -> None:
    flat = runs(sorted(numbers))
    pairs = zip(flat[::2], flat[1::2], strict=True)
    held = [number for first, count in pairs for number in range(first, first + count)]
    assert held == sorted(numbers)


@given(
    st.integers(1, 300),
    st.dictionaries(st.text(max_size=3), st.floats(0, 1e6), min_size=1, max_size=9),
    st.integers(1, 64),
)
def test_shares_cover_all_slots(num_slots: int, speeds: dict[str, float], slots_min: int) -> None:
    given_out = shares(num_slots, speeds, slots_min)
    assert list(given_out) == list(speeds)
    assert num_slots <= sum(given_out.values()) < num_slots + slots_min


def test_shares_follow_speed_and_the_unknown_get_the_mean() -> None:
    assert shares(120, {"slow": 1.0, "fast": 3.0, "new": 0.0}, 10) == {"slow": 20, "fast": 60, "new": 40}


def test_the_first_measurement_counts_and_a_repeated_one_changes_nothing() -> None:
    slots = Slots(4)
    assert slots.issue("a", 2, now=0.0) == [0, 1] and slots.issue("b", 9, now=0.0) == [2, 3]
    slots.assign("b", [0], now=1.0)
    assert slots.take("a", 0, b"\x05\x06") == []
    assert slots.take("b", 0, b"\x07") == [0], "measured twice: to be compared"
    assert slots.take("a", 0, b"\x08\x09") == []
    assert {slot: each.code for slot, each in slots.fresh()} == {0: 5, 1: 6}


def test_a_slot_that_another_holds_is_not_taken_from_whoever_sends_it() -> None:
    slots = Slots(2)
    slots.issue("a", 1, now=0.0)
    slots.take("b", 0, b"\x01\x02")
    assert [slot for slot, _ in slots.fresh()] == [1], "only the slot that nobody held"


def three_seconds_each(holder: str, num_slots: int) -> float:
    return 3.0 * num_slots


def test_what_is_overdue_goes_to_another_and_either_may_send_it() -> None:
    slots = Slots(2)
    slots.issue("a", 2, now=0.0)
    assert slots.overdue("b", 5.9, three_seconds_each) == [] and slots.overdue("a", 60.0, three_seconds_each) == []
    assert slots.assign("b", slots.overdue("b", 6.0, three_seconds_each), now=6.0) == [0, 1]
    slots.take("b", 0, b"\x01")
    slots.take("a", 1, b"\x02")
    assert [each.measurer for _, each in slots.fresh()] == ["b", "a"]
    assert slots.owed("a") == [0] and slots.owed("b") == [1]


def test_what_a_measurer_that_is_gone_held_is_free_and_what_a_liar_sent_is_not_there() -> None:
    slots = Slots(3)
    slots.issue("a", 2, now=0.0)
    slots.take("a", 0, b"\x01")
    slots.release("a")
    assert slots.issue("b", 9, now=1.0) == [1, 2] and [slot for slot, _ in slots.fresh()] == [0]
    slots.forget("a")
    assert slots.fresh() == [] and slots.issue("b", 9, now=1.0) == [0]


def test_what_the_journal_holds_is_not_measured_again() -> None:
    slots = Slots(3, committed=[1])
    assert slots.issue("a", 9, now=0.0) == [0, 2] and slots.num_measured == 1
    slots.take("a", 0, b"\x01\x02\x03")
    assert [slot for slot, _ in slots.fresh()] == [0, 2] and slots.num_measured == 3
