"""The directory under random crashes, power cuts, freezes, partitions and loss: once they end, all live views agree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farflung.mesh.config import MemberConfig
from farflung.sim import Faults
from tests.mesh.swarm import Swarm

MEETINGS = ("meet-0", "meet-1", "meet-2")
NODES = tuple(f"node-{number}" for number in range(4))
SITES = ("eu", "us", "asia")
CHAOS_SECONDS = 120.0


def chaotic(seed: int) -> Swarm:
    """Seven nodes on three sites; all of them, rendezvous nodes too, are hit."""
    faults = Faults.random(seed, [*MEETINGS, *NODES], until=CHAOS_SECONDS, num_faults=14, sites=SITES)
    faults.duplicate(0.02, during=(0, CHAOS_SECONDS))
    # Two nodes are gone for good, one of them without a word.
    faults.crash("gone-0", at=60.0).crash("gone-1", at=CHAOS_SECONDS, is_silent=True)
    swarm = Swarm(seed=seed, faults=faults)
    for number, name in enumerate(MEETINGS):
        swarm.meet(name, site=SITES[number])
    for number, name in enumerate([*NODES, "gone-0", "gone-1"]):
        # Each ticket names only one rendezvous node, and not the same.
        swarm.join(name, site=SITES[number % 3], knows=[MEETINGS[number % 3]])
    return swarm


@pytest.mark.chaos
@pytest.mark.parametrize("seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 50))])
def test_views_of_the_living_converge_and_the_dead_vanish_with_their_lease(seed: int) -> None:
    config = MemberConfig()
    with chaotic(seed) as swarm:
        swarm.simulation.advance(CHAOS_SECONDS)
        # The last lease of the dead runs out; by then every living node has renewed its own.
        swarm.simulation.advance(config.lease_seconds + 1.0)
        living = {*MEETINGS, *NODES}
        for name in sorted(living):
            assert swarm.seen_by(name) == living, f"{name} sees {swarm.seen_by(name)}; {swarm.faults}"
        heads = {name: {peer: record.sequence for peer, record in swarm.members[name].view.items()} for name in living}
        # A renewal may be under way; half a second later it has arrived.
        swarm.publish("node-0", "swarm", b"after")
        swarm.simulation.advance(1.0)
        for name in sorted(living):
            assert swarm.members[name].topic("swarm") == {swarm.peer("node-0"): b"after"}
            for peer, record in swarm.members[name].view.items():
                assert record.sequence >= heads[name][peer], "a view went back in time"


SCENARIO = """
from tests.mesh.test_directory_chaos import chaotic
with chaotic(7) as swarm:
    swarm.simulation.advance(60.0)
    print(swarm.simulation.trace.trace_hash, swarm.simulation.trace.num_events)
"""


def test_one_seed_has_one_history_under_any_hash_seed() -> None:
    root = Path(__file__).resolve().parents[2]

    def run(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
        command = [sys.executable, "-c", SCENARIO]
        return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True).stdout

    assert run("1") == run("2")
