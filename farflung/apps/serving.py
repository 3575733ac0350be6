"""A block server from start to end: choose blocks, load them, measure them, announce them, serve until told to stop."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from farflung.apps.announced import TOPIC, AnnouncedServers
from farflung.apps.capacity import CACHE_TOKENS_DEFAULT, capacity_blocks, choose_device, choose_dtype, free_bytes
from farflung.apps.machines import MACHINE_TOPIC, machine_info
from farflung.apps.moving import Mover
from farflung.apps.speed import Speed, is_faster_by_column, is_faster_packed, measure
from farflung.apps.wiring import SwarmNode
from farflung.model.layout import order_for_decoding
from farflung.model.load import load_span
from farflung.model.packed import pack_for_batches
from farflung.model.source import ModelSource
from farflung.model.span import Span
from farflung.runtime.memory import return_freed_memory
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.config import ServerConfig
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.messages import ACTOR
from farflung.systems.swarm.placement import choose_blocks, holders
from farflung.systems.swarm.server import Server
from farflung.world.address import PeerId
from farflung.world.version import __version__

ANNOUNCE_SECONDS = 2.0
"""How often changes of queue and cache are told."""

Tell = Callable[[str], None]
"""Told, sentence by sentence, what the server does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What the owner of a server decides."""

    blocks: str | None = None
    """A:B pins the range; None: the swarm's needs decide."""
    num_blocks: int | None = None
    """How many blocks to hold; None: as many as fit into free memory."""
    device: str = "auto"
    dtype: str = "auto"
    num_cache_tokens: int = CACHE_TOKENS_DEFAULT
    """Tokens of attention cache over all blocks held."""
    batch_sessions_max: int = 64
    """Sessions that are computed together at most."""
    adapter_mebibytes: int = 256
    """Memory for clients' adapters, beside weights and cache."""
    is_packed: bool = False
    """Whether to keep matrices a second time, laid out for several sessions at once (CPU, float32)."""
    context_length_max: int | None = None
    """Positions of one session; None: what the model was made for."""

    def __post_init__(self) -> None:
        if self.blocks is not None and self.num_blocks is not None:
            raise ValueError("give --blocks or --num-blocks, not both")
        if self.num_blocks is not None and self.num_blocks < 1:
            raise ValueError("--num-blocks must be at least 1")
        if self.num_cache_tokens < 1:
            raise ValueError("--cache-tokens must be at least 1")
        if self.batch_sessions_max < 1:
            raise ValueError("--batch-sessions must be at least 1")
        if self.adapter_mebibytes < 0:
            raise ValueError("--adapter-memory must be 0 MiB, which refuses adapters, or more")


class BlockServer:
    """One server of one model. What needs no swarm is checked and measured at once; `serve` runs until cancelled."""

    def __init__(self, source: ModelSource, options: ServeOptions) -> None:
        """Raises ValueError for blocks out of range, an unknown device or type, and too little memory."""
        self._source = source
        self._options = options
        self._device = choose_device(options.device)
        self._dtype = choose_dtype(options.dtype, source, self._device)
        self._pinned = BlockRange.parse(options.blocks, source.num_blocks) if options.blocks is not None else None
        self._num_blocks = self._capacity()
        self._machine = machine_info(source, self._device, free_bytes(self._device))
        # On one block, before anybody is told, so that what is announced while the others load is true.
        first = self._pinned.first if self._pinned is not None else 0
        self._speed = measure(self._load(BlockRange(first, first + 1)))

    def _capacity(self) -> int:
        if self._pinned is not None:
            return self._pinned.num_blocks
        if self._options.num_blocks is not None:
            return min(self._options.num_blocks, self._source.num_blocks)
        return capacity_blocks(
            self._source,
            self._device,
            self._dtype,
            self._options.num_cache_tokens,
            num_weight_copies=2 if self._options.is_packed else 1,
        )

    async def serve(self, node: SwarmNode, tell: Tell) -> None:
        """Join the model's chain and serve; returns only by cancellation."""
        await node.wait_joined()
        announced = AnnouncedServers(node.member)
        blocks = self._choose(announced, node.peer, tell)
        started_at = node.world.clock.wall_seconds()
        node.publish(MACHINE_TOPIC, msgspec.msgpack.encode(self._machine))
        node.publish(TOPIC, self._joining(blocks, started_at).to_bytes())
        tell(f"loading blocks {blocks} of {self._source.name}")
        span = await asyncio.to_thread(self._load, blocks)
        speed = await asyncio.to_thread(measure, span)
        await asyncio.to_thread(return_freed_memory)
        server = Server(self._config(speed, started_at), span)
        host = node.host(server, ACTOR)
        node.publish(TOPIC, self._info(server, node).to_bytes())
        tell(f"serving blocks {blocks} at {speed.blocks_per_second:.0f} blocks/s")
        mover = Mover(node.peer, self._source, server, self._load, tell)
        while True:
            await asyncio.sleep(ANNOUNCE_SECONDS)
            if self._pinned is None and mover.decide(announced(), node.world.clock.now()):
                node.publish(TOPIC, self._info(server, node).to_bytes())
                await mover.move(host, node.world.clock.now)
            node.publish(TOPIC, self._info(server, node).to_bytes())

    def _choose(self, announced: AnnouncedServers, own: PeerId, tell: Tell) -> BlockRange:
        if self._pinned is not None:
            return self._pinned
        same = {peer: info for peer, info in announced().items() if info.model == self._source.fingerprint}
        same.pop(own, None)
        swarm = holders(same, self._source.num_blocks)
        blocks, reason = choose_blocks(swarm, self._source.num_blocks, self._num_blocks, self._speed.blocks_per_second)
        tell(f"takes blocks {blocks}: {reason}")
        return blocks

    def _load(self, blocks: BlockRange) -> Span:
        span = load_span(self._source, blocks.first, blocks.last, device=self._device, dtype=self._dtype)
        layers = torch.nn.ModuleList(span.layers)
        order_for_decoding(layers, is_faster_by_column)
        if self._options.is_packed:
            pack_for_batches(layers, is_faster_packed)
        return span

    def _context_length_max(self) -> int:
        return min(self._options.context_length_max or self._source.context_length_max, self._source.context_length_max)

    def _config(self, speed: Speed, started_at: float) -> ServerConfig:
        return ServerConfig(
            model=self._source.fingerprint,
            model_name=self._source.name,
            limits=Limits(hidden_size=self._source.hidden_size, context_length_max=self._context_length_max()),
            cache_tokens_max=self._options.num_cache_tokens,
            batch_sessions_max=self._options.batch_sessions_max,
            adapter_bytes_max=self._options.adapter_mebibytes << 20,
            blocks_per_second=speed.blocks_per_second,
            forward_tokens_per_second=speed.forward_tokens_per_second,
            version=__version__,
            started_at=started_at,
            num_model_blocks=self._source.num_blocks,
        )

    def _joining(self, blocks: BlockRange, started_at: float) -> ServerInfo:
        return ServerInfo(
            model=self._source.fingerprint,
            model_name=self._source.name,
            blocks=blocks,
            state=ServerState.JOINING,
            blocks_per_second=self._speed.blocks_per_second,
            forward_tokens_per_second=self._speed.forward_tokens_per_second,
            cache_tokens_max=self._options.num_cache_tokens,
            cache_tokens_left=self._options.num_cache_tokens,
            dtype=str(self._dtype).removeprefix("torch."),
            started_at=started_at,
            is_pinned=self._pinned is not None,
            version=__version__,
            num_model_blocks=self._source.num_blocks,
        )

    def _info(self, server: Server, node: SwarmNode) -> ServerInfo:
        return server.info(round_trips(node), is_pinned=self._pinned is not None)


def round_trips(node: SwarmNode) -> dict[PeerId, float]:
    """What this node tells of its ways to the others, in seconds."""
    now = node.world.clock.now()
    measured = {peer: node.surveyor.table.told(peer, now).round_trip_seconds for peer in sorted(node.member.view)}
    return {peer: seconds for peer, seconds in measured.items() if seconds is not None}


def limit_threads(num_threads: int | None) -> None:
    """How many threads arithmetic may use; None: one per core."""
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError("--threads must be at least 1")
        torch.set_num_threads(num_threads)
