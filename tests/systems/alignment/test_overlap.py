"""Advice follows the overlap rule: what limits a run is what more of it is advised for, with what it would gain."""

import pytest

from farflung.systems.alignment.overlap import Measured, advise


def test_sampling_that_takes_longest_needs_workers() -> None:
    slow = Measured(1.0, 0.1, 100, (10.0, 10.0), staleness_max=2)
    assert slow.seconds_per_step == 5.0
    best = advise(slow)[0]
    assert best.num_more_workers == 4 and best.speedup == pytest.approx(3.0)
    assert best.sentence(slow) == "add 4 workers: expected +200% steps per hour"


def test_a_run_that_goes_around_once_per_step_needs_staleness() -> None:
    sequential = Measured(1.0, 0.5, 100, (100.0,), staleness_max=0)
    assert sequential.seconds_per_step == 2.5
    assert advise(sequential)[-1].sentence(sequential) == "add 1 worker: expected +25% steps per hour"
    assert any(one.num_more_workers == 0 and one.staleness_max == 1 for one in advise(sequential))


def test_a_trainer_that_is_never_idle_needs_nothing() -> None:
    assert advise(Measured(5.0, 0.1, 100, (100.0, 100.0), staleness_max=1)) == []
