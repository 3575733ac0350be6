"""A pipeline of four servers in virtual time whose servers die at a given rate, and three ways to generate on it.

After PETALS, Table 1: BLOOM-7.1B in four stages. The servers, the network's protocol and our way are the code that
ships; arithmetic is done for real by a small model of four blocks, one per stage, and charged the seconds of a stage
of BLOOM-7.1B. The charges are fitted to two rows of the paper that involve no fail-over: a token in STAGE_SECONDS to
its undisturbed caching row (17.1 steps/s), a long forward in TOKENS_PER_SECOND to its cache-less row (0.89 steps/s at
512 tokens on average). Links: 1 Gbit/s and 1 ms round trip; hidden states of the small model are DILATION times
smaller than BLOOM's, so bandwidth is divided by that.

At every step every server of the pipeline dies with the given probability, at some moment of the step. Two more of each
stage stand by, and a dead one is soon succeeded by a new one under another name, as in a swarm large enough.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch

from farflung.model.load import load_span
from farflung.model.source import ModelSource
from farflung.model.span import Span
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.systems.swarm.chain import Link as ChainLink
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.config import ServerConfig, SessionConfig
from farflung.systems.swarm.info import ServerInfo
from farflung.systems.swarm.messages import ACTOR
from farflung.systems.swarm.server import Server
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.tuning import Batch, RemoteBlocks
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host

NUM_STAGES = 4
NUM_ALIVE_PER_STAGE = 3
STAGE_SECONDS = 0.0125
"""One token through one stage (7.5 blocks of BLOOM-7.1B on average)."""
TOKENS_PER_SECOND = 2400.0
"""Through one stage in a long forward."""
CLIENT_SECONDS = 0.005
"""Embeddings, head and choice of a token."""
DILATION = 16
"""Bytes of one hidden state of BLOOM-7.1B (4096 values of 2 bytes) over those of the small model (128 of 4)."""
LINK = Link(latency_seconds=0.0005, bytes_per_second=125e6 / DILATION)
LEASE_SECONDS = 30.0
"""The directory still shows a dead server for so long."""
CACHELESS_STRIDE = 16
"""Without a cache the seconds of a step depend on its position alone: every so many positions one is measured."""


class ChainBroken(Exception):
    """A server died, and with it this attempt."""


class BrittleSession(Session):
    """Our session without fail-over: a lost server ends it. For the baselines."""

    async def _replace(self, link: ChainLink) -> None:
        self._view.ban(link.peer, link.trouble or "it does not answer", self._config.ban_seconds)
        raise ChainBroken(link.peer)


@dataclass(eq=False)
class Ends:
    """Embeddings and head of the small model: what is between two steps of a greedy generation."""

    source: ModelSource
    table: torch.Tensor = field(init=False)
    spans: list[Span] = field(init=False)
    _expected: dict[int, list[int]] = field(default_factory=dict[int, list[int]])

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(self.source.config.vocab_size, self.source.hidden_size, generator=generator)
        self.spans = [load_span(self.source, stage, stage + 1) for stage in range(NUM_STAGES)]

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """[1, tokens, hidden size]"""
        return self.table[list(tokens)].unsqueeze(0)

    def expected(self, num_tokens: int) -> list[int]:
        """What a generation of so many tokens must give, computed here without any swarm."""
        if num_tokens not in self._expected:
            caches, tokens = [span.new_cache() for span in self.spans], [0]
            while len(tokens) <= num_tokens:
                hidden = self.embed(tokens[-1:])
                for span, cache in zip(self.spans, caches, strict=True):
                    hidden = span.forward(hidden, cache)
                tokens.append(self.choose(hidden))
            self._expected[num_tokens] = tokens
        return self._expected[num_tokens]

    def choose(self, hidden_BTH: torch.Tensor) -> int:
        """The next token."""
        return int((self.table @ hidden_BTH[0, -1]).argmax())


@dataclass
class FailingSwarm:
    """The pipeline, and one client; `is_silent`: servers do not crash, their machines lose power."""

    ends: Ends
    failure_rate: float
    seed: int
    is_silent: bool = False
    num_failures: int = 0
    _num_added: int = 0
    _roles: dict[str, Server] = field(default_factory=dict[str, Server])
    _died_at: dict[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        self.simulation = Simulation(seed=self.seed, topology=Topology(within=LINK), keep_trace=False)
        self._random = Random(f"{self.seed}:failures")
        for stage in range(NUM_STAGES):
            for _ in range(NUM_ALIVE_PER_STAGE):
                self._add(stage)
        source = self.ends.source
        self.world = self.simulation.node("client")
        self.view = SwarmView(self.world, source.fingerprint, NUM_STAGES, source.hidden_size, self._announced)

    def __enter__(self) -> FailingSwarm:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.simulation.__exit__(*exception)

    def run(self, work: Awaitable[list[int]]) -> tuple[list[int], float]:
        """(result, virtual seconds) of a coroutine on the client."""
        started_at = self.simulation.now()

        async def client() -> list[int]:
            return await work

        return self.simulation.run(client(), node="client"), self.simulation.now() - started_at

    def strike(self, peers: Sequence[PeerId]) -> None:
        """The step that begins now may be the last of these servers."""
        for peer in peers:
            if self._random.random() < self.failure_rate and self.simulation.is_alive(peer):
                moment = self.simulation.now() + self._random.uniform(0, NUM_STAGES * STAGE_SECONDS)
                self.simulation.at(moment, functools.partial(self._kill, peer))

    def _kill(self, peer: PeerId) -> None:
        if self.simulation.is_alive(peer):
            self.num_failures += 1
            self._died_at[peer] = self.simulation.now()
            self.simulation.crash(peer, is_silent=self.is_silent)
            self._add(self._roles[peer].blocks.first)

    def _add(self, stage: int) -> None:
        self._num_added += 1
        name = f"stage-{stage}-{self._num_added}"
        self.simulation.node(name, boot=functools.partial(self._boot, name, stage))

    def _boot(self, name: str, stage: int, world: World) -> Host:
        source = self.ends.source
        config = ServerConfig(
            model=source.fingerprint,
            model_name=source.name,
            limits=Limits(hidden_size=source.hidden_size, context_length_max=4096),
            cache_tokens_max=100_000,
            blocks_per_second=1 / STAGE_SECONDS,
            forward_tokens_per_second=TOKENS_PER_SECOND,
            version="bench",
            started_at=0.0,
        )
        self._roles[name] = Server(config, self.ends.spans[stage])
        return Host(self._roles[name], world, ACTOR)

    def _announced(self) -> Mapping[PeerId, ServerInfo]:
        now = self.simulation.now()
        for name in [name for name, died_at in self._died_at.items() if now - died_at > LEASE_SECONDS]:
            del self._died_at[name], self._roles[name]
        return {PeerId(name): role.info({}) for name, role in self._roles.items()}


Way = Callable[[FailingSwarm, int, float], Awaitable[list[int]]]


async def ours(swarm: FailingSwarm, num_tokens: int, give_up_at: float) -> list[int]:
    """The session that ships: what a lost server held is replayed to its successor."""
    session = Session(swarm.world, swarm.view, SessionConfig(), num_tokens_max=num_tokens)
    tokens = [0]
    while len(tokens) <= num_tokens:
        swarm.strike([link.peer for link in session.chain.links])
        await _append(swarm, session, tokens, tokens[-1:])
    session.close()
    return tokens


async def restarting(swarm: FailingSwarm, num_tokens: int, give_up_at: float) -> list[int]:
    """Caching with restarts, as the paper has it: a lost server means to begin again from the first token."""
    while swarm.simulation.now() < give_up_at:
        session, tokens = BrittleSession(swarm.world, swarm.view, SessionConfig(), num_tokens_max=num_tokens), [0]
        try:
            while len(tokens) <= num_tokens and swarm.simulation.now() < give_up_at:
                swarm.strike([link.peer for link in session.chain.links])
                await _append(swarm, session, tokens, tokens[-1:])
        except ChainBroken:
            continue
        finally:
            session.close()
        if len(tokens) > num_tokens:
            return tokens
    return []


async def recomputing(swarm: FailingSwarm, num_tokens: int, give_up_at: float) -> list[int]:
    """A better baseline than the paper's: a lost server means one forward of the text so far through a new chain."""
    tokens = [0]
    while len(tokens) <= num_tokens:
        session, is_fresh = BrittleSession(swarm.world, swarm.view, SessionConfig(), num_tokens_max=num_tokens), True
        try:
            while len(tokens) <= num_tokens:
                swarm.strike([link.peer for link in session.chain.links])
                await _append(swarm, session, tokens, tokens if is_fresh else tokens[-1:])
                is_fresh = False
        except ChainBroken:
            continue
        finally:
            session.close()
    return tokens


async def cacheless(swarm: FailingSwarm, num_tokens: int, give_up_at: float) -> list[int]:
    """No cache: every step is a forward of the whole text so far. Returns one token per position measured."""
    blocks = RemoteBlocks(swarm.world, swarm.view, SessionConfig().micro_batch_tokens_max)
    tokens: list[int] = []
    for length in range(CACHELESS_STRIDE, num_tokens + 1, CACHELESS_STRIDE):
        first_of_stage = [next(peer for peer in swarm.view.servers() if f"stage-{n}-" in peer) for n in range(4)]
        swarm.strike(first_of_stage)
        hidden = swarm.ends.embed([number % 256 for number in range(length)])
        output, _ = await blocks.forward(hidden, Batch())
        await asyncio.sleep(CLIENT_SECONDS)
        tokens.append(swarm.ends.choose(output))
    return tokens


async def _append(swarm: FailingSwarm, session: Session, tokens: list[int], new: Sequence[int]) -> None:
    output = await session.step(swarm.ends.embed(new))
    await asyncio.sleep(CLIENT_SECONDS)
    tokens.append(swarm.ends.choose(output))
