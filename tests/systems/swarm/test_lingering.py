"""The device waits for whoever is about to be back, as long as that serves more sessions per second."""

import pytest

from farflung.systems.swarm.lingering import SECONDS_MAX, ReturnTime, compute_at


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
    assert compute_at(10.0, num_waiting, returns_at, batch_seconds=0.04) == begins_at


def test_a_steady_session_is_expected_when_it_comes_and_an_unsteady_one_later() -> None:
    steady, unsteady = ReturnTime(), ReturnTime()
    assert steady.latest_seconds(default=0.01) == 0.01
    for number in range(30):
        steady.add(0.005)
        unsteady.add(0.002 if number % 2 else 0.008)
    assert steady.latest_seconds(default=1.0) == pytest.approx(0.005, rel=0.01)
    assert unsteady.latest_seconds(default=1.0) > 0.008


def test_a_pause_is_forgotten_after_a_few_steps() -> None:
    session = ReturnTime()
    for seconds in [0.005] * 10 + [3600.0]:
        session.add(seconds)
    assert 0.05 < session.latest_seconds(default=0.0) < 2 * SECONDS_MAX
    for _ in range(12):
        session.add(0.005)
    assert session.latest_seconds(default=0.0) < 0.025
