"""A stretch of tuning LoRA through block servers in virtual time: servers, passes and messages that ship.

Hidden states and factors are narrow, and count on links as what they stand for; blocks only cost.
"""

import asyncio
import functools
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farflung.apps.plan.charged_span import ChargedSpan
from farflung.apps.plan.fleet import Machine
from farflung.apps.plan.goals import FinetuneGoal
from farflung.apps.plan.places import Bytes, Nodes, difference, scaled, topology_of
from farflung.apps.plan.plan_file import PlanFile
from farflung.apps.plan.serving_run import MEETING_SECONDS, Placed
from farflung.apps.plan.sizes import Sizes
from farflung.model.lowrank import LowRank
from farflung.sim.simulation import Simulation
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.handing import SLOWEST_LINK_BYTES_PER_SECOND
from farflung.systems.swarm.messages import ACTOR, Attach
from farflung.systems.swarm.passes import Batch
from farflung.systems.swarm.server import Server
from farflung.systems.swarm.tuning import BAN_SECONDS, REQUEST_SECONDS_MAX, RemoteBlocks
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox

CLIENT = "client"
HIDDEN_SIZE_MAX = 256
"""Of what stands for a hidden state."""
HEADER_BYTES = 400
"""Of a message, beside its values."""
LARGE = ("Forward", "ForwardDone", "Backward", "BackwardDone", "HandAdapter")
"""Messages that hold hidden states or factors."""
STEPS_MEASURED = 2
"""After the first one."""


@dataclass(frozen=True, slots=True)
class TunedStretch:
    """What was measured."""

    steps_per_second: float
    bytes_per_step: Bytes
    busy_share: float
    """Of the time, the busiest server or the client's own part of the model computes."""
    home: Machine
    """Where the client is."""


class TuningRun:
    """Some steps of one client, beside the fastest of the servers."""

    def __init__(self, plan: PlanFile, goal: FinetuneGoal, sizes: Sizes, servers: Sequence[Placed]) -> None:
        self._plan, self._goal, self._sizes, self._servers = plan, goal, sizes, servers
        self._home = max((placed.machine for placed in servers), key=lambda one: one.flops)
        self._hidden_size = min(sizes.source.hidden_size, HIDDEN_SIZE_MAX)
        self._factor = sizes.source.hidden_size / self._hidden_size
        self._layers = {name: (self._narrow(wide), self._narrow(tall)) for name, (wide, tall) in sizes.layers.items()}
        self._nodes = Nodes({CLIENT: self._home.site})
        self._roles: dict[str, Server] = {}

    def _narrow(self, size: int) -> int:
        return max(1, round(size / self._factor))

    def _size_of(self, kind: str, num_bytes: int) -> int:
        """What a message of narrow values stands for."""
        if kind not in LARGE:
            return num_bytes
        return round(max(0, num_bytes - HEADER_BYTES) * self._factor) + min(num_bytes, HEADER_BYTES)

    def run(self) -> TunedStretch:
        """Until it goes on as before.

        Raises:
            ValueError: a piece of a batch does not come through in the time that a server is given.
        """
        with Simulation(topology=topology_of(self._plan), keep_trace=False, size_of=self._size_of) as simulation:
            for placed in self._servers:
                self._nodes.sites[placed.machine.name] = placed.machine.site
                simulation.node(
                    placed.machine.name, site=placed.machine.site, boot=functools.partial(self._boot, placed)
                )
            world = simulation.node(CLIENT, site=self._home.site)
            return self._measure(simulation, world)

    def _measure(self, simulation: Simulation, world: World) -> TunedStretch:
        view = self._view(world)
        blocks = RemoteBlocks(
            world,
            view,
            self._goal.micro_batch_tokens,
            slowest_bytes_per_second=SLOWEST_LINK_BYTES_PER_SECOND / self._factor,
        )
        simulation.run(self._meet(world), deadline=float("inf"))
        simulation.run(self._patiently(view, self._step(blocks, 0)), deadline=float("inf"))
        before, busy, begun_at = self._nodes.bytes_sent(simulation), self._busy(simulation), simulation.now()
        for number in range(STEPS_MEASURED):
            simulation.run(self._patiently(view, self._step(blocks, number + 1)), deadline=float("inf"))
        seconds = simulation.now() - begun_at
        sent = difference(self._nodes.bytes_sent(simulation), before)
        shares = [(total - busy[name]) / seconds for name, total in self._busy(simulation).items()]
        return TunedStretch(
            steps_per_second=STEPS_MEASURED / seconds,
            bytes_per_step=scaled(sent, 1 / STEPS_MEASURED),
            busy_share=min(1.0, max([*shares, STEPS_MEASURED * self._ends_seconds / seconds])),
            home=self._home,
        )

    def _busy(self, simulation: Simulation) -> Mapping[str, float]:
        devices: dict[str, Any] = {name: simulation.world(name).compute for name in self._roles}
        return {name: device.busy_seconds for name, device in devices.items()}

    @property
    def _ends_seconds(self) -> float:
        """The client's part of a step: the head, forward and back; embeddings are looked up."""
        return 2 * 2 * self._sizes.head_parameters * self._goal.tokens_per_batch / self._home.flops

    async def _meet(self, world: World) -> None:
        """Let the client reach every server once, as a node that measures distances does."""
        with Mailbox(world, "meeting") as mailbox:
            for placed in self._servers:
                mailbox.send(Address(PeerId(placed.machine.name), ACTOR), Attach(session="meeting"))
        longest = max((link.round_trip_ms for link in (*self._plan.links, self._plan.default_link)), default=0.0)
        await asyncio.sleep(MEETING_SECONDS + 4 * longest / 1000)

    async def _patiently(self, view: SwarmView, step: Coroutine[Any, Any, None]) -> None:
        """Nobody dies here, so who leaves a server has not had its answer in time, and never would."""
        task = asyncio.get_running_loop().create_task(step)
        while not (await asyncio.wait([task], timeout=BAN_SECONDS / 2))[0]:
            if view.banned():
                task.cancel()
                raise ValueError(
                    f"a piece of a batch does not come through within the {REQUEST_SECONDS_MAX:.0f} s that a server is "
                    f"given: lower goal.micro_batch_tokens ({self._goal.micro_batch_tokens}) or goal.batch_size "
                    f"({self._goal.batch_size}), of which all pieces travel at the same time"
                )
        task.result()

    async def _step(self, blocks: RemoteBlocks, number: int) -> None:
        """Forward, the head, and back, with the adapter of this step."""
        batch = Batch(adapter=self._adapter(number), is_kept=True)
        hidden = torch.zeros(self._goal.batch_size, self._goal.sequence_length, self._hidden_size)
        output, passages = await blocks.forward(hidden, batch)
        await asyncio.sleep(self._ends_seconds)
        await blocks.backward(passages, output)

    def _adapter(self, number: int) -> NamedAdapter:
        def factors(wide: int, tall: int) -> LowRank:
            return LowRank(torch.full((self._goal.rank, wide), float(number)), torch.zeros(tall, self._goal.rank))

        within = {name: factors(*size) for name, size in self._layers.items()}
        return NamedAdapter.holding(dict.fromkeys(range(self._sizes.num_blocks), within), is_passing=True)

    def _view(self, world: World) -> SwarmView:
        source = self._sizes.source
        return SwarmView(world, source.fingerprint, source.num_blocks, source.hidden_size, self._announced)

    def _announced(self) -> dict[PeerId, Any]:
        return {PeerId(name): role.info({}) for name, role in self._roles.items()}

    def _boot(self, placed: Placed, world: World) -> None:
        source, machine = self._sizes.source, placed.machine
        config = ServerConfig(
            model=source.fingerprint,
            model_name=self._sizes.name,
            limits=Limits(hidden_size=self._hidden_size, context_length_max=source.context_length_max),
            cache_tokens_max=self._goal.sequence_length,
            blocks_per_second=machine.blocks_per_second(self._sizes.block_parameters),
            forward_tokens_per_second=machine.forward_tokens_per_second(self._sizes.block_parameters),
            version="planned",
            started_at=0.0,
        )
        span = ChargedSpan(source, *placed.blocks, hidden_size=self._hidden_size, layer_sizes=self._layers)
        role = self._roles[machine.name] = Server(config, span)
        Host(role, world, ACTOR)
