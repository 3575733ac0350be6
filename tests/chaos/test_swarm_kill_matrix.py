"""One server killed at each step and each stage of every way of generating: the words stay the same, nothing hangs.

The plan of the run is read off an undisturbed one: which servers it used, and how many steps each got. Then every one
of these is killed at every one of its steps, at five moments of the step, with a replica standing by.
"""

import functools

import pytest
import torch

from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from tests.chaos.swarm_modes import MODES, same
from tests.swarms import SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 3), "b2": (2, 3), "c1": (3, 4), "c2": (3, 4)}
STAGES = {"first": "a1", "middle": "b1", "last": "c1"}
PHASES = {
    "before the step is seen": ("Step", "deliver", "target"),
    "after computing, before anything left": ("Output", "send", "source"),
    "after the copy left": ("Output", "sent", "source"),
    "before the push leaves": ("Step", "send", "source"),
    "after the push left": ("Step", "sent", "source"),
}


def prompt_of(small: SmallModel, mode: str) -> torch.Tensor:
    return tokens(small, 2 if mode == "padded" else 1, 6)


@functools.cache
def undisturbed(small: SmallModel, mode: str) -> tuple[torch.Tensor, dict[str, int]]:
    """The whole model's output, and how many steps each server of an undisturbed swarm gets."""
    expected = MODES[mode](small.whole, prompt_of(small, mode))
    num_steps = dict.fromkeys(SERVERS, 0)

    def count(event: MessageEvent) -> None:
        if event.kind == "Step" and event.phase == "delivered":
            num_steps[event.target] += 1

    with SimulatedSwarm(small, SERVERS) as swarm:
        swarm.simulation.watch(count)
        assert same(MODES[mode](swarm.model, prompt_of(small, mode)), expected)
    return expected, num_steps


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_server_changes_nothing(small: SmallModel, mode: str, stage: str) -> None:
    victim = STAGES[stage]
    expected, num_steps = undisturbed(small, mode)
    assert num_steps[victim] >= 1
    num_kills = 0
    for phase, (kind, moment, side) in PHASES.items():
        if stage == "last" and "push" in phase:
            continue
        for number in range(1, num_steps[victim] + 1):
            faults = Faults().crash(victim, when=nth(kind, number, moment, **{side: victim}))
            with SimulatedSwarm(small, SERVERS, faults=faults) as swarm:
                output = MODES[mode](swarm.model, prompt_of(small, mode))
                num_kills += not swarm.simulation.is_alive(victim)
            assert same(output, expected), f"{mode}: {victim} killed at step {number} {phase}"
    assert num_kills >= num_steps[victim]


def test_a_frozen_server_is_left(small: SmallModel) -> None:
    """A process that stops answering without dying costs one deadline, not the answer."""
    expected, _ = undisturbed(small, "decode")
    faults = Faults().freeze("b1", during=(0.01, 1000))
    with SimulatedSwarm(small, SERVERS, faults=faults) as swarm:
        assert same(MODES["decode"](swarm.model, prompt_of(small, "decode")), expected)
        assert swarm.simulation.now() < 10
