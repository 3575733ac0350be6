"""Schedules at the points that define them, and everywhere between."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest

from farflung.learn.schedule import Constant, Cosine, Schedule, WarmupStableDecay

EVERYWHERE = [number / 200 for number in range(201)]


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Constant(), {0.0: 1, 0.5: 1, 1.0: 1}),
        (Cosine(warmup=0.1, floor=0.1), {0.0: 0, 0.05: 0.5, 0.1: 1, 0.55: 0.55, 1.0: 0.1}),
        (Cosine(warmup=0.0, floor=0.0), {0.0: 1, 1 / 3: 0.75, 0.5: 0.5, 1.0: 0}),
        (Cosine(warmup=1.0, floor=0.1), {0.0: 0, 0.5: 0.5, 1.0: 1}),
        (WarmupStableDecay(warmup=0.1, decay=0.4, floor=0.2), {0.0: 0, 0.1: 1, 0.6: 1, 0.8: 0.6, 1.0: 0.2}),
        (WarmupStableDecay(warmup=0.0, decay=0.0, floor=0.0), {0.0: 1, 0.5: 1, 1.0: 1}),
        (WarmupStableDecay(warmup=0.5, decay=0.5, floor=0.0), {0.25: 0.5, 0.5: 1, 0.75: 0.5, 1.0: 0}),
    ],
)
def test_factors_at_known_points(schedule: Schedule, points: dict[float, float]) -> None:
    for progress, factor in points.items():
        assert math.isclose(schedule(progress), factor, abs_tol=1e-12), progress


def test_the_published_schedule_of_halos() -> None:
    # 300 of 6,144 steps of warm-up, floor 10 %: the factor of step 3,222, midway between warm-up and end, is 0.55.
    schedule = Cosine(warmup=300 / 6144, floor=0.1)
    assert math.isclose(schedule(150 / 6144), 0.5) and math.isclose(schedule((300 + 6144) / 2 / 6144), 0.55)


@pytest.mark.parametrize("schedule", [Cosine(), WarmupStableDecay(), Cosine(warmup=0.3, floor=1.0)])
def test_rates_rise_once_and_fall_once_without_jumps(schedule: Schedule) -> None:
    factors = [schedule(progress) for progress in EVERYWHERE]
    top = factors.index(max(factors))
    assert all(a <= b + 1e-12 for a, b in pairwise(factors[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[top:]))
    assert max(abs(a - b) for a, b in pairwise(factors)) < 0.11
    assert math.isclose(max(factors), 1.0)


def test_progress_beyond_the_ends_is_the_nearer_end() -> None:
    for schedule in (Cosine(), WarmupStableDecay()):
        assert schedule(1.7) == schedule(1.0) and schedule(-0.2) == schedule(0.0)


@pytest.mark.parametrize(
    "make",
    [lambda: Cosine(warmup=1.5), lambda: Cosine(floor=-0.1), lambda: WarmupStableDecay(warmup=0.6, decay=0.6)],
)
def test_impossible_shares_are_refused(make: Callable[[], Schedule]) -> None:
    with pytest.raises(ValueError, match=r"share|fit"):
        make()
