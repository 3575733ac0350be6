"""A whole swarm in the simulator: block servers of a small model, and a client that is a real transformers model."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from farflung.model.load import load_span
from farflung.model.source import ModelSource
from farflung.model.span import Span
from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Topology
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.client import load_swarm_model
from farflung.systems.swarm.config import ServerConfig, SessionConfig
from farflung.systems.swarm.info import ServerInfo
from farflung.systems.swarm.messages import ACTOR
from farflung.systems.swarm.server import Server
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host
from tests.families import save_family

Result = TypeVar("Result")
CLIENT = "client"


@dataclass(frozen=True)
class SmallModel:
    """One family's small model: on disk, whole in transformers, and in spans (loaded once; they are read-only)."""

    source: ModelSource
    whole: Any  # a PreTrainedModel, whose `generate` foreign types call a tensor
    span: Callable[[int, int], Span]

    @classmethod
    def make(cls, family: str, folder: Path) -> "SmallModel":
        return cls.open(save_family(family, folder / family))

    @classmethod
    def open(cls, folder: Path) -> "SmallModel":
        """What lies there already."""
        source = ModelSource.open(str(folder))
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        for weight in whole.parameters():
            weight.data = weight.data.clone()  # the alignment of mapped files changes how kernels group their sums
        return cls(source, whole, functools.cache(functools.partial(load_span, source)))

    @property
    def num_blocks(self) -> int:
        return self.source.num_blocks


@dataclass
class SimulatedSwarm:
    """Servers by name with the blocks they hold, and a client; `announced` may be replaced to change what it sees."""

    small: SmallModel
    servers: Mapping[str, tuple[int, int]]
    sites: Mapping[str, str] = field(default_factory=dict[str, str])
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    topology: Topology | None = None
    config: SessionConfig = field(default_factory=lambda: SessionConfig(ask_again_seconds=0.5, piece_positions=3))
    cache_tokens_max: int = 100_000
    batch_sessions_max: int = 64
    server_class: type[Server] = Server
    kept_bytes_max: int = 1 << 29
    """Of forward passes that each server keeps for their gradients."""
    owner: PeerId | None = None
    """Who may give the servers other weights."""

    def __post_init__(self) -> None:
        self.is_over = False
        self.simulation = Simulation(seed=self.seed, faults=self.faults, topology=self.topology)
        self.roles: dict[str, Server] = {}
        for name, (first, last) in self.servers.items():
            site = self.sites.get(name, "site")
            self.simulation.node(name, site=site, boot=functools.partial(self._boot, name, first, last))
        self.world = world = self.simulation.node(CLIENT, site="home" if self.sites else "site")
        source = self.small.source
        self.view = SwarmView(world, source.fingerprint, source.num_blocks, source.hidden_size, self.announced)
        self.model: Any = load_swarm_model(source, world, self.view, self, self.config)

    def __enter__(self) -> "SimulatedSwarm":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.is_over = True
        self.simulation.__exit__(*exception)

    def announced(self) -> dict[PeerId, ServerInfo]:
        """A directory that never hears of a death: the hardest one to work with."""
        return {PeerId(name): role.info({}) for name, role in self.roles.items()}

    def _boot(self, name: str, first: int, last: int, world: World) -> Host:
        source = self.small.source
        config = ServerConfig(
            model=source.fingerprint,
            model_name=source.name,
            limits=Limits(hidden_size=source.hidden_size, context_length_max=512),
            cache_tokens_max=self.cache_tokens_max,
            batch_sessions_max=self.batch_sessions_max,
            kept_bytes_max=self.kept_bytes_max,
            blocks_per_second=1000.0,
            forward_tokens_per_second=20_000.0,
            version="test",
            started_at=0.0,
            owner=self.owner,
        )
        self.roles[name] = self.server_class(config, self.small.span(first, last))
        return Host(self.roles[name], world, ACTOR)

    # The bridge from transformers' synchronous code to the virtual event loop.

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return self.simulation.run(coroutine, node=CLIENT)

    def call_soon(self, function: Callable[[], object]) -> None:
        if self.is_over:
            return  # a cache that outlives its swarm

        async def call() -> None:
            function()

        if asyncio.events._get_running_loop() is None:
            self.run(call())
        else:  # the garbage collector found a cache while the simulation runs
            self.simulation.at(self.simulation.now(), lambda: (function(), None)[1])


def tokens(small: SmallModel, num_rows: int, num_tokens: int, seed: int = 0) -> torch.Tensor:
    """Random token ids without padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, small.source.config.vocab_size, (num_rows, num_tokens), generator=generator)
