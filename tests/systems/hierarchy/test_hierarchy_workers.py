"""A worker that dies goes on with what it alone had: its unacknowledged update, what codecs left out, its moments."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from farflung.learn.parameters import Tensors
from farflung.sim.faults import Faults
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.keeping import Keeper
from tests.hierarchies import Descended, SimulatedHierarchy

NUM_VALUES = 150
NAMES = ("eu-0", "eu-1")


@dataclass
class Counted:
    """An optimizer's memory: how many updates it has seen, as a tensor and as a number."""

    tensors: Tensors = field(default_factory=lambda: {"moment/seen": torch.zeros(NUM_VALUES)})
    num_updates: int = 0

    def state(self) -> tuple[Tensors, Mapping[str, Any]]:
        return self.tensors, {"num_updates": self.num_updates}

    def load(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)
        self.num_updates = values["num_updates"]


class Wandering:
    """Changes its parameters by something random in each run, which is written down under the update's number."""

    def __init__(self, name: str, deltas: dict[tuple[str, int], torch.Tensor], next_update: Callable[[], int]) -> None:
        self.parameters: Tensors = {"values": torch.zeros(NUM_VALUES)}
        self.memory = Counted()
        self._name, self._deltas, self._next_update = name, deltas, next_update

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        number = self._next_update()
        generator = torch.Generator().manual_seed(1000 * NAMES.index(self._name) + number)
        change = torch.randn(NUM_VALUES, generator=generator)
        self.parameters["values"] -= change
        self._deltas[self._name, number] = change
        self.memory.num_updates += 1
        self.memory.tensors["moment/seen"] += 1
        return Descended(0.5, num_steps, num_steps)


def tree_of(codec: str, faults: Faults) -> tuple[SimulatedHierarchy, dict[tuple[str, int], torch.Tensor]]:
    """One local server that adds updates as they are, and its two workers; what they tell by (name, number)."""
    deltas: dict[tuple[str, int], torch.Tensor] = {}
    config = HierarchyConfig(
        budget_steps=300,
        num_local_steps=5,
        is_speed_scaled=False,
        local_learning_rate=1.0,
        local_momentum=0.0,
        local_delay=1,
        codec_up_local=codec,
        values_per_part=64,
        ask_again_seconds=1.0,
        ask_again_seconds_max=4.0,
    )

    def learner(region: str, number: int) -> Wandering:
        name = f"{region}-{number}"
        return Wandering(name, deltas, lambda: tree.workers[name].report().newest_update + 1)

    tree = SimulatedHierarchy(
        config,
        {"eu": (1.0, 1.3)},
        learner,
        {"values": torch.zeros(NUM_VALUES)},
        has_global=False,
        memory=lambda learner: learner.memory,
        seconds_per_step=0.1,
        faults=faults,
    )
    return tree, deltas


def crashes() -> Faults:
    """Workers and their server die again and again, while they compute and while their updates travel."""
    faults = Faults().lose(0.05, during=(0.0, 12.0))
    for place, at in enumerate((0.62, 1.9, 2.51, 3.3, 5.01, 5.5, 7.77, 9.0)):
        faults = faults.crash(NAMES[place % 2], at=at, restart_after=0.4)
    return faults.crash("eu-server", at=4.0, restart_after=0.5).crash("eu-server", at=8.0, restart_after=0.5)


@pytest.mark.parametrize("codec", ["raw", "int4", "int2"])
def test_nothing_is_lost_or_applied_twice_over_deaths_of_workers(codec: str) -> None:
    tree, deltas = tree_of(codec, crashes())
    with tree:
        tree.run(deadline=200)
        assert len(tree.lives) >= 8
        server = tree.servers["eu"]
        told, owed = torch.zeros(NUM_VALUES), torch.zeros(NUM_VALUES)
        for name in NAMES:
            worker = tree.workers[name]
            newest = worker.report().newest_update
            assert newest == server.report().clients[name].num_updates > 10
            told += sum(deltas[name, number] for number in range(1, newest + 1))
            for index, tensors in worker._owed.items():
                (plan,) = worker._parts[index]
                owed[plan.offset : plan.offset + plan.length] += tensors.get("values", torch.zeros(()))
        arrived = -server.state.model.parameters["values"]
        # What arrived and what is still owed is what was told: each update once, and each error once.
        assert torch.allclose(arrived + owed, told, rtol=0, atol=1e-3)
        if codec != "raw":
            assert float(owed.norm()) > 0.5, "the codec was called and has left something out"


def test_an_optimizer_goes_on_with_its_memory() -> None:
    tree, _ = tree_of("int4", crashes())
    with tree:
        tree.run(deadline=200)
        for name in NAMES:
            worker = tree.workers[name]
            memory, newest = worker._learner.memory, worker.report().newest_update  # pyright: ignore
            assert memory.num_updates == newest
            assert torch.equal(memory.tensors["moment/seen"], torch.full((NUM_VALUES,), float(newest)))


def test_what_was_kept_of_another_model_is_refused() -> None:
    tree, _ = tree_of("raw", Faults())
    with tree:
        tree.run(deadline=200)
        world = tree.simulation.world("eu-0")
        other = Keeper(world, "eu-0", b"another", 64)

        async def compute(function: Callable[..., Any], *arguments: object) -> Any:
            return function(*arguments)

        with pytest.raises(ValueError, match="another model"):
            tree.simulation.run(other.load(compute), node="eu-0")
        with pytest.raises(ValueError, match="another optimizer"):
            bigger = Counted({"moment/seen": torch.zeros(10 * NUM_VALUES)})
            worker = tree.workers["eu-0"]
            tree.simulation.run(Keeper(world, "eu-0", worker._keeper._layout, 64, bigger).load(compute), node="eu-0")
