"""A swarm without replicas: what comes back is used again soon, and what does not is named."""

import pytest

from farflung.sim.faults import Faults, nth
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.view import NoRoute
from tests.chaos.swarm_modes import MODES, same
from tests.swarms import SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos

SERVERS = {"a": (0, 2), "b": (2, 4)}


@pytest.mark.parametrize("mode", ["decode", "beam"])
def test_the_only_holder_is_used_again_when_it_is_back(small: SmallModel, mode: str) -> None:
    faults = Faults().crash("b", when=nth("Step", 3, "deliver", target="b"), restart_after=1.5)
    with SimulatedSwarm(small, SERVERS, faults=faults) as swarm:
        prompt = tokens(small, 1, 6)
        assert same(MODES[mode](swarm.model, prompt), MODES[mode](small.whole, prompt))
        assert 1.5 < swarm.simulation.now() < 6.0, "one server without a replica must not be avoided for a whole ban"


def test_a_missing_block_is_waited_for_and_then_named(small: SmallModel) -> None:
    waits: list[str] = []
    faults = Faults().crash("b", when=nth("Step", 3, "deliver", target="b"))
    config = SessionConfig(ask_again_seconds=0.5, wait_seconds_max=10.0)
    with SimulatedSwarm(small, SERVERS, faults=faults, config=config) as swarm:
        swarm.view.on_wait = lambda sentence, seconds_left: waits.append(sentence)
        with pytest.raises(NoRoute, match=r"2:4.*no process there"):
            MODES["decode"](swarm.model, tokens(small, 1, 6))
        assert 10.0 <= swarm.simulation.now() < 20.0
    assert waits and all("2:4" in sentence for sentence in waits)
