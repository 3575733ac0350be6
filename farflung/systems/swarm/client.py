"""A transformers model whose blocks are in the swarm: `generate`, beams, assistants, gradients all work on it.

Embeddings, final norm and head are here; in place of the decoder layers stands a callable that runs a session (with a
cache) or a stateless pass (without), so every feature of GenerationMixin is transformers' own code.
"""

import functools
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, cast

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model.adapters import LoraAdapter
from farflung.model.ends import load_ends
from farflung.model.lowrank import factors
from farflung.model.source import ModelSource
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.cache import Bridge, RemoteCache
from farflung.systems.swarm.passes import Batch, Gradients, Passage
from farflung.systems.swarm.session import Session, SessionConfig
from farflung.systems.swarm.tuning import RemoteBlocks
from farflung.systems.swarm.view import SwarmView
from farflung.world.doors import World

_block_inputs: ContextVar[list[torch.Tensor] | None] = ContextVar("block inputs wanted by a forward", default=None)
_last_wanted: ContextVar[list[torch.Tensor] | None] = ContextVar("where last hidden states are collected", default=None)
_active_cache: ContextVar[RemoteCache | None] = ContextVar("cache of the inference session in force", default=None)


class SwarmBlocks:
    """All blocks of the model, somewhere in the swarm. One per model; usable from many threads."""

    def __init__(self, world: World, view: SwarmView, bridge: Bridge, config: SessionConfig) -> None:
        self.world = world
        self.view = view
        self.bridge = bridge
        self.config = config
        self.remote = RemoteBlocks(world, view, config.micro_batch_tokens_max)
        self.prompts_LPH: torch.Tensor | None = None
        """Deep prompts added to the first positions of every block's input; None: none."""
        self.lora: LoraAdapter | None = None
        """Added to the layers of every block; None: nothing is."""

    def open_cache(
        self, num_tokens_max: int, *, is_hop_per_block: bool = False, adapter: NamedAdapter | None = None
    ) -> RemoteCache:
        """A cache for at most so many tokens (batch times length; servers set them aside), under an adapter, by
        default the model's as it is now."""
        if adapter is None and self.lora is not None:
            adapter = NamedAdapter.of(self.lora)
        return self.bridge.run(self._open_cache(num_tokens_max, is_hop_per_block, adapter))

    async def _open_cache(
        self, num_tokens_max: int, is_hop_per_block: bool, adapter: NamedAdapter | None
    ) -> RemoteCache:
        config = replace(self.config, is_hop_per_block=is_hop_per_block or self.config.is_hop_per_block)
        prompts = self.prompts_LPH.detach() if self.prompts_LPH is not None else None
        session = Session(
            self.world, self.view, config, num_tokens_max=num_tokens_max, prompts_LPH=prompts, adapter=adapter
        )
        return RemoteCache(session, self.bridge)

    def __call__(
        self,
        hidden_BTH: torch.Tensor,
        *,
        position_ids_BT: torch.Tensor | None,
        attention_mask_BS: torch.Tensor | None,
        past_key_values: Cache | None,
        use_cache: bool,
    ) -> torch.Tensor:
        wants_gradients = self._wants_gradients(hidden_BTH)
        if isinstance(past_key_values, RemoteCache) and not wants_gradients:
            output = past_key_values.step(hidden_BTH, position_ids_BT, attention_mask_BS)
            _collect(past_key_values.session.hidden_states)
            return output
        if past_key_values is not None and past_key_values.get_seq_length():
            raise ValueError("gradients need a forward of the whole sequence: pass no past_key_values")
        batch = Batch(position_ids_BT, attention_mask_BS, self.prompts_LPH, codec=self.config.codec)
        if self.lora is not None:
            added = self.lora.additions()
            batch = replace(batch, adapter=NamedAdapter.holding(added, is_passing=self.lora.is_trained))
            if wants_gradients:
                return _Pass.apply(hidden_BTH, self.prompts_LPH, self, batch, *factors(added))
        if wants_gradients:
            return _Pass.apply(hidden_BTH, self.prompts_LPH, self, batch)
        output, passages = self.forward(hidden_BTH, batch)
        _collect(lambda: _inputs_of_blocks(passages))
        return output

    def _wants_gradients(self, hidden: torch.Tensor) -> bool:
        prompts, lora = self.prompts_LPH, self.lora
        is_trained = (prompts is not None and prompts.requires_grad) or (lora is not None and lora.is_trained)
        return torch.is_grad_enabled() and (hidden.requires_grad or is_trained)

    def forward(self, hidden: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, list[Passage]]:
        """A pass without cache."""
        is_hop_per_block = _block_inputs.get() is not None
        return self.bridge.run(self.remote.forward(hidden, batch, is_hop_per_block=is_hop_per_block))


class _Pass(torch.autograd.Function):
    """Forward and backward through the remote blocks; their weights are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        prompts: torch.Tensor | None,
        blocks: SwarmBlocks,
        batch: Batch,
        *factors_of_adapter: torch.Tensor,
    ) -> torch.Tensor:
        """`factors_of_adapter` are those of `batch.adapter`, seen by autograd."""
        ctx.blocks = blocks
        detached = replace(batch, prompts_LPH=prompts.detach() if prompts is not None else None, is_kept=True)
        output, ctx.passages = blocks.forward(hidden.detach(), detached)
        _collect(lambda: _inputs_of_blocks(ctx.passages))
        return output

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, ...]:
        blocks = ctx.blocks
        found: Gradients = blocks.bridge.run(blocks.remote.backward(ctx.passages, gradient))
        num_factors = len(ctx.needs_input_grad) - 4
        of_factors = factors(found.factors) if found.factors is not None else [None] * num_factors
        return found.hidden, found.prompts_LPH, None, None, *of_factors


class SwarmModel:
    """Mixed into the family's own class by `load_swarm_model`."""

    _blocks: SwarmBlocks

    @contextmanager
    def inference_session(self, *, num_tokens_max: int, lora: LoraAdapter | None = None) -> Generator[RemoteCache]:
        """Keep one cache over several `generate` calls of this block, under this adapter, by default the model's.

        Each call is given the whole text so far, as with any cache in transformers; only what is new is computed.
        """
        adapter = NamedAdapter.of(lora) if lora is not None else None
        cache = self._blocks.open_cache(num_tokens_max, adapter=adapter)
        token = _active_cache.set(cache)
        try:
            yield cache
        finally:
            _active_cache.reset(token)
            cache.close()

    def set_deep_prompts(self, prompts_LPH: torch.Tensor | None) -> None:
        """Add these [blocks, prompt length, hidden size] to the first positions of every block's input (None: stop)."""
        self._blocks.prompts_LPH = prompts_LPH

    def set_lora(self, lora: LoraAdapter | None) -> None:
        """Adapt the layers of every block, where it is computed; `lora.parameters()` get gradients (None: stop).

        Sessions that are open keep the adapter that they were opened with."""
        self._blocks.lora = lora

    @contextmanager
    def last_hidden_states(self) -> Generator[list[torch.Tensor]]:
        """Collects what forwards of this thread, within the block, have after the final norm: [batch, tokens, H]."""
        collected: list[torch.Tensor] = []
        token = _last_wanted.set(collected)

        def collect(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if _last_wanted.get() is collected:  # and not of a forward in another thread
                collected.append(output.last_hidden_state)

        (runner,) = self._runner  # pyright: ignore[reportAttributeAccessIssue]
        hook = runner.register_forward_hook(collect)
        try:
            yield collected
        finally:
            hook.remove()
            _last_wanted.reset(token)

    def forward(self, *args: Any, output_hidden_states: bool | None = None, **kwargs: Any) -> Any:
        is_wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states  # pyright: ignore[reportAttributeAccessIssue]
        if kwargs.get("use_cache") is None and kwargs.get("past_key_values") is None:
            kwargs["use_cache"] = False  # a cache nobody asked for would hold memory on other people's machines
        if not is_wanted:
            return super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        collected: list[torch.Tensor] = []
        token = _block_inputs.set(collected)
        try:
            with self.last_hidden_states() as last:
                outputs = super().forward(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            _block_inputs.reset(token)
        collected += last
        outputs["hidden_states"] = tuple(collected)
        return outputs

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; within `inference_session` it continues that session's cache."""
        active = _active_cache.get()
        if active is not None and active.session.is_for(self._blocks.view):
            kwargs.setdefault("past_key_values", active)
        return super().generate(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], generation_mode: Any, batch_size: int, length: int
    ) -> None:
        """Give `generate` a session instead of a cache of its own."""
        given = model_kwargs.get("past_key_values")
        if given is None and generation_config.use_cache is not False:
            rows = batch_size * max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            model_kwargs["past_key_values"] = self._blocks.open_cache(
                rows * length, is_hop_per_block=bool(generation_config.output_hidden_states)
            )
            return
        if given is not None and not isinstance(given, RemoteCache):
            raise ValueError(
                "this model's cache is in the swarm: leave out past_key_values, or use model.inference_session()"
            )
        super()._prepare_cache_for_generation(  # pyright: ignore[reportAttributeAccessIssue]
            generation_config, model_kwargs, generation_mode, batch_size, length
        )


def load_swarm_model(
    source: ModelSource,
    world: World,
    view: SwarmView,
    bridge: Bridge,
    config: SessionConfig | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> PreTrainedModel:
    """Load embeddings, norm and head of `source` and put the swarm in place of its blocks.

    The result is an instance of the family's own class, such as LlamaForCausalLM, and of SwarmModel.
    """
    blocks = SwarmBlocks(world, view, bridge, config if config is not None else SessionConfig())
    model = load_ends(source, blocks, device=device, dtype=dtype)
    model.__class__ = _swarm_class(type(model))
    cast(Any, model)._blocks = blocks
    return model


@functools.cache
def _swarm_class(family: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """A subclass of the family's class that shows the family's own signature, which `generate` inspects."""

    @functools.wraps(family.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return SwarmModel.forward(self, *args, **kwargs)

    return type(f"Swarm{family.__name__}", (SwarmModel, family), {"__module__": __name__, "forward": forward})


def _inputs_of_blocks(passages: list[Passage]) -> list[torch.Tensor]:
    """Inputs of every block, micro-batches put together; all of them went one hop per block."""
    of_passages = [[span.hidden for span in passage.inputs] for passage in passages]
    return [torch.cat(rows) for rows in zip(*of_passages, strict=True)]


def _collect(make: Any) -> None:
    collected = _block_inputs.get()
    if collected is not None:
        collected += make()
