"""A server's copy to the client may come after the answer of the whole chain; that is no reason to replay anything."""

import pytest

from farflung.sim.station import MessageEvent
from farflung.sim.topology import Link, Topology
from tests.chaos.swarm_modes import MODES, same
from tests.swarms import SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos


@pytest.mark.parametrize("mode", ["decode", "beam", "lookup"])
def test_late_copies_cause_no_replay(small: SmallModel, mode: str) -> None:
    late = Topology().link("a", "client", Link(latency_seconds=0.02), back=Link(latency_seconds=0.001))
    fresh_starts: list[int] = []

    def watch(event: MessageEvent) -> None:
        if event.kind == "Step" and event.phase == "send" and event.source == "client":
            fresh_starts.append(event.message.base)  # pyright: ignore[reportAttributeAccessIssue]

    with SimulatedSwarm(small, {"a": (0, 2), "b": (2, 4)}, topology=late) as swarm:
        swarm.simulation.watch(watch)
        prompt = tokens(small, 1, 6)
        assert same(MODES[mode](swarm.model, prompt), MODES[mode](small.whole, prompt))
    assert len(fresh_starts) > 2 and fresh_starts.count(0) == 1, "only the first step starts afresh"
