"""When a seat is not started again."""

import pytest

from farflung.apps.runs.lives import Lives


def num_lives(*ends: tuple[int, float, bool]) -> int:
    """How many of these lives (status, seconds, has reported) a seat has before it is given up; 0: it never is."""
    lives = Lives()
    gives_up = [lives.ended(status, seconds, has_reported=reported) for status, seconds, reported in ends]
    return gives_up.index(True) + 1 if True in gives_up else 0


@pytest.mark.parametrize(
    ("ends", "count"),
    [
        ([(1, 2.0, True)] * 9, 3),
        ([(1, 30.0, False)] * 9, 3),
        ([(2, 60.0, True)] * 9, 3),
        ([(1, 60.0, True)] * 9, 5),
        ([(-9, 60.0, True)] * 99, 0),
        ([(1, 2.0, True), (1, 2.0, True), (-9, 60.0, True)] * 9, 0),
        ([(1, 60.0, True)] * 4 + [(1, 3600.0, True)] + [(1, 60.0, True)] * 4, 0),
    ],
    ids=["at once", "never reports", "user error", "after a minute", "killed", "works between", "hours between"],
)
def test_a_seat_is_given_up_when_another_life_would_be_the_same(
    ends: list[tuple[int, float, bool]], count: int
) -> None:
    assert num_lives(*ends) == count
