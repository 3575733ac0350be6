"""Two regions over a shaped link lose a worker and a local server to kill -9: all that was acknowledged counts once."""

from pathlib import Path

import pytest

from bench.pretraining_kills import Kill, differences, train

pytestmark = pytest.mark.loopback

LEARNT_LOSS = 3.4
"""A model that has learnt nothing has 5.55."""


def test_every_acknowledged_update_is_applied_once_over_kills(tmp_path: Path) -> None:
    kills = [Kill("west-worker-2", 10_000), Kill("west-local-server", 40_000)]
    outcome = train(tmp_path, 250_000, kills, lived_seconds_min=3.0)
    assert outcome.killed == ["west-worker-2", "west-local-server"]
    assert differences(outcome.counters) == []
    assert sum(counters["acknowledged"] for seat, counters in outcome.counters.items() if "worker" in seat) > 20
    assert outcome.loss < LEARNT_LOSS
    assert differences({**outcome.counters, "west-worker-2": {"acknowledged": 1}}), "what does not add up is found"
