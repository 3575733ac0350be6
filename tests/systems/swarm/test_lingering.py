"""The device waits for whoever is about to be back, as long as that serves more sessions per second."""

from dataclasses import dataclass, field

import pytest

from farflung.systems.swarm.lingering import Habit, Lingering, Returns, compute_at


@pytest.mark.parametrize(
    ("num_waiting", "returns_at", "begins_at"),
    [
        (3, [], 10.0),
        (3, [10.01] * 5, 10.01),
        (7, [10.01], 10.0),
        (7, [10.004], 10.004),
        (1, [10.03], 10.03),
        (1, [10.05], 10.0),
        (2, [10.01, 10.012, 10.5], 10.012),
        (2, [9.99, 9.999], 10.0),
    ],
    ids=[
        "nobody is expected",
        "most are about to come",
        "the last one comes too late",
        "the last one comes at once",
        "two at once are worth a wait shorter than a batch",
        "and no longer one",
        "not for who comes much later",
        "who is late is not waited for",
    ],
)
def test_a_batch_begins_when_most_are_served_per_second(
    num_waiting: int, returns_at: list[float], begins_at: float
) -> None:
    assert compute_at(10.0, num_waiting, returns_at, batch_seconds=lambda number: 0.04) == begins_at


def test_who_makes_the_batch_longer_is_worth_a_shorter_wait() -> None:
    returns_at = [10.02] * 3
    assert compute_at(10.0, 3, returns_at, batch_seconds=lambda number: 0.04) == 10.02
    assert compute_at(10.0, 3, returns_at, batch_seconds=lambda number: 0.01 * number) == 10.0


def test_a_steady_session_is_expected_when_it_comes_however_long_it_is_away() -> None:
    for seconds in (0.005, 1.5):
        session = Habit()
        assert session.latest_seconds(uncertain_seconds_max=0.05) is None
        for _ in range(30):
            session.add(seconds)
        latest_seconds = session.latest_seconds(uncertain_seconds_max=0.05)
        assert latest_seconds == pytest.approx(seconds, abs=0.01)


def test_an_unsteady_session_is_expected_later_and_one_that_nobody_can_tell_not_at_all() -> None:
    unsteady, wild = Habit(), Habit()
    for number in range(30):
        unsteady.add(0.002 if number % 2 else 0.008)
        wild.add(0.2 if number % 2 else 0.8)
    latest_seconds = unsteady.latest_seconds(uncertain_seconds_max=0.05)
    assert latest_seconds is not None and latest_seconds > 0.008
    assert wild.latest_seconds(uncertain_seconds_max=0.05) is None


@pytest.mark.parametrize("before", [[0.005] * 10, []], ids=["between steps", "at first"])
def test_a_pause_is_forgotten_after_some_steps(before: list[float]) -> None:
    session = Habit()
    for seconds in [*before, 3600.0]:
        session.add(seconds)
    for _ in range(24):
        session.add(0.005)
    latest_seconds = session.latest_seconds(uncertain_seconds_max=0.05)
    assert latest_seconds is not None and latest_seconds < 0.05


@dataclass(eq=False)
class Session:
    returns: Returns = field(default_factory=Returns)
    is_closed: bool = False


def test_sessions_that_were_computed_together_are_waited_for_when_the_first_is_back() -> None:
    lingering, sessions = Lingering(uncertain_seconds_max=0.05), [Session() for _ in range(8)]
    now = 0.0
    for absence_seconds in (3.0, 0.4, 1.1, 7.0):  # nobody could tell when
        lingering.took(8, 0.1, is_decoding=True)
        lingering.answered(sessions, now)
        now += absence_seconds
        for number, session in enumerate(sessions):
            lingering.came(session, now + 0.002 * number)
            begins_at = lingering.begins_at(now + 0.002 * number, number + 1, 64)
            is_waiting = begins_at > now + 0.002 * number
            assert is_waiting if number < 4 else number < 7 or not is_waiting
        now += 0.2


def test_who_has_left_is_not_waited_for() -> None:
    lingering, (one, two) = Lingering(uncertain_seconds_max=0.05), (Session(), Session())
    lingering.took(2, 0.1, is_decoding=True)
    lingering.answered([one, two], 0.0)
    two.is_closed = True
    lingering.came(one, 0.3)
    assert lingering.begins_at(0.3, 1, 64) == 0.3


def test_nobody_is_waited_for_where_that_is_forbidden() -> None:
    lingering, sessions = Lingering(uncertain_seconds_max=0.0), [Session(), Session()]
    for start in range(10):
        lingering.took(2, 0.1, is_decoding=True)
        lingering.answered(sessions, start)
        lingering.came(sessions[0], start + 0.2)
        assert lingering.begins_at(start + 0.2, 1, 64) == start + 0.2
        lingering.came(sessions[1], start + 0.2)
