"""A rollout worker whose model's blocks are on other machines: a chain of block servers that computes for it alone.

The worker keeps embeddings, norm and head, and fetches versions as any other. Installing one closes the sessions of the
old one, hands every server its blocks' tensors, and opens new sessions under the new name: a session, and so a token,
belongs to one version. With an adapter the servers hold its matrices beside the frozen ones, as peft does.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from transformers.cache_utils import Cache

from farflung.learn.parameters import Tensors, assign_, fingerprint
from farflung.model.cut import build_skeleton
from farflung.model.load import load_span
from farflung.model.source import ModelSource
from farflung.model.span import Span
from farflung.systems.swarm.cache import Bridge
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.client import load_swarm_model
from farflung.systems.swarm.config import ServerConfig, SessionConfig
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState, equal_ranges
from farflung.systems.swarm.installing import install_weights
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.version import __version__

PEFT_PREFIX = "base_model.model."
RATE = 1000.0
"""Blocks and tokens per second that servers of a chain say of themselves: there is no choice between them."""
CACHE_TOKENS_MAX = 1 << 20
BATCH_SECONDS_MAX = 3600.0
"""A prompt is computed in one piece: nobody else waits."""

WAIT_SECONDS_MAX = 5.0
"""For a server that is gone: who takes its place has no weights until this worker begins anew."""

Result = TypeVar("Result")


class RunningLoop:
    """How a compute thread reaches the loop that a node lives on. Made on that loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run to the end and return the result; called from outside the loop's thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call_soon(self, function: Callable[[], object]) -> None:
        """Call `function` on the loop soon; nothing happens once the loop has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)


def stage_blocks(num_blocks: int, num_stages: int) -> list[BlockRange]:
    """Equal parts of the model, first to last.

    Raises:
        ValueError: there are fewer blocks than stages.
    """
    if num_stages > num_blocks:
        raise ValueError(f"rollout.stages is {num_stages} and the model has {num_blocks} blocks: one each at least")
    return equal_ranges(num_blocks, num_stages)


def stage_config(source: ModelSource, owner: PeerId) -> ServerConfig:
    """Of a block server that computes for one worker."""
    return ServerConfig(
        model=source.fingerprint,
        model_name=source.name,
        limits=Limits(hidden_size=source.hidden_size, context_length_max=source.context_length_max),
        cache_tokens_max=CACHE_TOKENS_MAX,
        blocks_per_second=RATE,
        forward_tokens_per_second=RATE,
        batch_seconds_max=BATCH_SECONDS_MAX,
        linger_seconds_max=0.0,
        version=__version__,
        started_at=0.0,
        owner=owner,
    )


def load_stage(source: ModelSource, blocks: BlockRange, device: torch.device, adapter: Any) -> Span:
    """A stage's blocks; `adapter`: the peft settings of what is trained, None: all weights are."""
    span = load_span(source, blocks.first, blocks.last, device=device)
    if adapter is not None:
        from peft import inject_adapter_in_model

        for layer in span.layers:
            inject_adapter_in_model(adapter, layer)
            layer.requires_grad_(False).eval()
    return span


@dataclass(slots=True)
class Chain:
    """The servers of a worker, and the model whose blocks they hold."""

    model: Any
    view: SwarmView
    world: World
    bridge: Bridge
    stages: Mapping[PeerId, BlockRange]
    layers_path: str
    """Of the blocks in the model."""

    @classmethod
    def connect(
        cls, source: ModelSource, world: World, bridge: Bridge, stages: Mapping[PeerId, BlockRange], device: str = "cpu"
    ) -> "Chain":
        """Load the ends of `source`; the servers are told their weights by the first `assign`."""

        def announced() -> dict[PeerId, ServerInfo]:
            return {peer: _info(view.model, source, blocks) for peer, blocks in stages.items()}

        view = SwarmView(world, source.fingerprint, source.num_blocks, source.hidden_size, announced)
        config = SessionConfig(wait_seconds_max=WAIT_SECONDS_MAX)
        model = load_swarm_model(source, world, view, bridge, config, device=device)
        layers_path = build_skeleton(source, torch.float32).layers_path
        return cls(model, view, world, bridge, stages, layers_path)

    def assign(self, tensors: Tensors) -> None:
        """Compute with these weights from now on, here and on all servers; called from the compute thread."""
        ends: Tensors = {}
        of_stage: dict[PeerId, Tensors] = {peer: {} for peer in self.stages}
        for name, tensor in tensors.items():
            place = place_of(name, self.layers_path)
            if place is None:
                ends[name.removeprefix(PEFT_PREFIX)] = tensor
                continue
            number, rest = place
            peer = next(peer for peer, blocks in self.stages.items() if blocks.contains(number))
            of_stage[peer][f"{number}.{rest}"] = tensor
        own = {name: tensor for name, tensor in self.model.named_parameters() if name in ends}
        if own.keys() != ends.keys():
            raise ValueError(
                f"{next(iter(ends.keys() - own.keys()))} is trained and lies neither in a block nor in the ends of the "
                f"model: sample without stages"
            )
        assign_(own, ends)
        self.bridge.run(install_weights(self.world, self.view, of_stage, fingerprint(tensors).hex()))

    @contextmanager
    def open_cache(self, num_tokens: int) -> Iterator[Cache]:
        """A session over the chain."""
        cache = self.model._blocks.open_cache(num_tokens)
        try:
            yield cache
        finally:
            cache.close()


def place_of(name: str, layers_path: str) -> tuple[int, str] | None:
    """The block that a parameter belongs to, and what it is called within; None: it is in none."""
    found = re.search(rf"\.{re.escape(layers_path)}\.(\d+)\.(.+)$", f".{name}")
    return (int(found[1]), found[2]) if found is not None else None


def _info(model: str, source: ModelSource, blocks: BlockRange) -> ServerInfo:
    return ServerInfo(
        model=model,
        model_name=source.name,
        blocks=blocks,
        state=ServerState.ONLINE,
        blocks_per_second=RATE,
        forward_tokens_per_second=RATE,
        cache_tokens_max=CACHE_TOKENS_MAX,
        cache_tokens_left=CACHE_TOKENS_MAX,
        dtype="float32",
        started_at=0.0,
        version=__version__,
    )
