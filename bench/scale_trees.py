"""Trees of many workers (HALoS) in the simulator: what an update costs a worker, its local server and the global."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.scale_sizes import reachable_bytes
from farflung.learn.parameters import Tensors, copies
from farflung.sim.simulation import Simulation
from farflung.systems.hierarchy.config import HierarchyConfig
from farflung.systems.hierarchy.global_server import GlobalServer
from farflung.systems.hierarchy.local_server import LocalServer
from farflung.systems.hierarchy.messages import ACTOR
from farflung.systems.hierarchy.worker import Worker
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host

GLOBAL = "global"
NUM_VALUES = 256
UPDATES_PER_WORKER = 3
STEPS_PER_UPDATE = 4
SECONDS_PER_STEP = 1.0
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeCost:
    """What a tree of so many workers costs."""

    num_nodes: int
    num_regions: int
    core_seconds_per_update: float
    """Of the whole simulation: all roles, and links."""
    worker_messages_per_update: float
    """Sent and heard."""
    server_messages_per_update: float
    """Of a local server, for one update of a worker."""
    global_messages_per_update: float
    server_held_bytes_per_worker: float
    """By a local server, beside what it holds without workers."""
    busiest_messages_per_second: float
    """Of the local server, in virtual time."""


@dataclass(frozen=True)
class Descended:
    """What some steps came to."""

    loss: float
    num_steps: int
    num_tokens: int


class Pulled:
    """A learner whose every step goes a tenth of the way to zero."""

    def __init__(self) -> None:
        self.parameters: Tensors = {"weight": torch.ones(NUM_VALUES)}

    def run(self, num_steps: int, progress_of_step: Callable[[int], float]) -> Descended:
        """That many steps."""
        loss = float((self.parameters["weight"] ** 2).sum())
        self.parameters["weight"] *= 0.9**num_steps
        return Descended(loss, num_steps, num_steps)


class Tree:
    """One simulated tree, of about as many regions as each has workers."""

    def __init__(self, num_workers: int) -> None:
        self.num_regions = max(1, round(math.sqrt(num_workers) / 2))
        budget = num_workers * UPDATES_PER_WORKER * STEPS_PER_UPDATE
        self._config = HierarchyConfig(budget_steps=budget, num_local_steps=STEPS_PER_UPDATE, is_speed_scaled=False)
        self._initial = Pulled().parameters
        self._num_workers = num_workers
        self._tasks: list[asyncio.Task[None]] = []
        self.num_ended = 0
        self.servers: list[LocalServer] = []
        self.simulation = Simulation(keep_trace=False)
        self.simulation.node(GLOBAL, boot=self._boot_global)
        for region in range(self.num_regions):
            self.simulation.node(_server(region), boot=lambda world, region=region: self._boot_local(region, world))
        self.empty_bytes = reachable_bytes(self.servers[0])
        for number in range(num_workers):
            self.simulation.node(f"worker-{number}", boot=lambda world, number=number: self._boot(number, world))

    def _boot_global(self, world: World) -> None:
        Host(GlobalServer.open(world, self._config, copies(self._initial)), world, ACTOR)

    def _boot_local(self, region: int, world: World) -> None:
        above = Address(PeerId(GLOBAL), ACTOR)
        server = LocalServer.open(world, self._config, copies(self._initial), name=_server(region), above=above)
        self.servers.append(server)
        Host(server, world, ACTOR)

    def _boot(self, number: int, world: World) -> None:
        worker = Worker(
            world,
            self._config,
            Pulled(),
            name=f"worker-{number}",
            server=Address(PeerId(_server(number % self.num_regions)), ACTOR),
            seconds_per_step=SECONDS_PER_STEP,
        )

        async def work() -> None:
            # At different times, as machines do: what all send at one moment costs the simulator their number squared.
            await asyncio.sleep(STEPS_PER_UPDATE * SECONDS_PER_STEP * number / self._num_workers)
            await worker.run()
            self.num_ended += 1

        self._tasks.append(asyncio.get_running_loop().create_task(work()))


def _server(region: int) -> str:
    return f"server-{region}"


def measure(num_nodes: int) -> TreeCost:
    """Let a tree spend its budget."""
    torch.set_num_threads(1)
    began = time.process_time()
    tree = Tree(num_nodes)
    simulation = tree.simulation

    async def wait() -> None:
        while tree.num_ended < num_nodes:  # noqa: ASYNC110 (workers come to their ends one by one)
            await asyncio.sleep(LOOK_SECONDS)

    simulation.run(wait())
    core_seconds = time.process_time() - began
    num_updates = num_nodes * UPDATES_PER_WORKER
    own = sum(simulation.traffic("worker-0").num_messages.values())
    local = sum(simulation.traffic(_server(0)).num_messages.values())
    held = reachable_bytes(tree.servers[0]) - tree.empty_bytes
    num_below = len(range(0, num_nodes, tree.num_regions))
    return TreeCost(
        num_nodes=num_nodes,
        num_regions=tree.num_regions,
        core_seconds_per_update=core_seconds / num_updates,
        worker_messages_per_update=own / UPDATES_PER_WORKER,
        server_messages_per_update=local / (num_below * UPDATES_PER_WORKER),
        global_messages_per_update=sum(simulation.traffic(GLOBAL).num_messages.values()) / num_updates,
        server_held_bytes_per_worker=held / num_below,
        busiest_messages_per_second=local / simulation.now(),
    )
