"""Blocks [first, last) of a model as one thing: forward with a cache, or with gradients.

Legend: B batch, T new tokens, S past and new tokens, H hidden width, L blocks asked for, P prompt positions.
One forward at a time: a span belongs to one compute thread.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from farflung.model.cache import SpanCache
from farflung.model.cut import Call, Prelude
from farflung.model.decode import DecodePlan
from farflung.model.lowrank import Additions, Stretch, adding, layers_within, side_by_side, whole
from farflung.model.packed import pack_again
from farflung.model.pool import CachePool
from farflung.model.ragged import RaggedBatch, running
from farflung.model.source import ModelSource


class Span:
    """Decoder layers [first, last) with their weights, made by `farflung.model.load.load_span`."""

    def __init__(
        self,
        source: ModelSource,
        prelude: Prelude,
        layers: list[nn.Module],
        first: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.first = first
        self.last = first + len(layers)
        self.device = device
        self.dtype = dtype
        self.hidden_size = source.hidden_size
        self._config = source.config
        self._prelude = prelude
        self.layers = layers
        self.plan: DecodePlan | None = None
        self.can_batch = False
        """Whether sessions may be computed side by side (`forward_batch`)."""

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(weight.nbytes for layer in self.layers for weight in layer.parameters())

    def weights(self) -> dict[str, Tensor]:
        """The weights themselves, as `3.mlp.up_proj.weight`: by block and name within it."""
        return {
            f"{number}.{name}": weight
            for number, layer in enumerate(self.layers, self.first)
            for name, weight in layer.named_parameters()
        }

    def misfit(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Why these cannot take the places of weights of these names; None: they can."""
        own = self.weights()
        for name, tensor in tensors.items():
            if name not in own:
                return f"blocks {self.first}:{self.last} have no weights {name[:100]!r}"
            if own[name].shape != tensor.shape:
                return f"{name} has shape {tuple(tensor.shape)}, and {tuple(own[name].shape)} is needed"
        return None

    @cached_property
    def layer_sizes(self) -> dict[int, dict[str, tuple[int, int]]]:
        """What an adapter may add to: features that enter and leave linear layers, by block and name within it."""
        return {number: layers_within(layer) for number, layer in enumerate(self.layers, self.first)}

    @torch.no_grad()
    def install(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy these values in place of weights of these names, which fit; caches made before are of no use."""
        own = self.weights()
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
        pack_again(nn.ModuleList(self.layers))

    @torch.inference_mode()
    def probe(self) -> None:
        """Check that the family can be cut exactly (ValueError where not) and learn how it calls its layers."""
        self._prelude.probe(self.new_cache(), self.hidden_size, self.device, self.dtype)
        stand_in = torch.zeros(1, 1, self.hidden_size, device=self.device, dtype=self.dtype)
        self.plan = DecodePlan(self._prelude, self._config, stand_in)
        self.can_batch = self._asks_the_registry(stand_in)

    def _asks_the_registry(self, stand_in_11H: Tensor) -> bool:
        """Whether every layer takes its attention from transformers' registry, as a trial says."""
        assert self.plan is not None
        pool = CachePool(self.last - self.first)
        caches = [self.new_cache(pool=pool) for _ in range(2)]
        if self.plan.calls(0, caches[0]) is None:
            return False
        for cache in caches:
            cache.expect(1, 1)
        batch = RaggedBatch([(cache, 1) for cache in caches], self._attention)
        try:
            self._run_batch(torch.cat([stand_in_11H, stand_in_11H], dim=1), batch, self.first, self.last)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False  # its layers do with keys and values what a registered attention does not
        return batch.num_attended == self.last - self.first

    def new_cache(
        self,
        first: int | None = None,
        last: int | None = None,
        *,
        pool: CachePool | None = None,
        num_tokens_expected: int = 1,
    ) -> SpanCache:
        """An empty cache for blocks [first, last) of the span, all of them by default; in a `pool` with others, or in
        one of its own. So many tokens are expected in each row: a hint for where to put it."""
        return SpanCache(self._config, *self._range(first, last), pool, num_tokens_expected)

    @torch.inference_mode()
    def forward(
        self,
        hidden_BTH: Tensor,
        cache: SpanCache | None,
        *,
        position_ids_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
        first: int | None = None,
        last: int | None = None,
        prompts_LPH: Tensor | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """Pass hidden states through blocks [first, last) and append to the cache, if there is one.

        `position_ids` None counts on from the cache; `attention_mask` None means that nothing is padding, else it
        is 1 for tokens and 0 for padding over past and new tokens. `prompts_LPH` is added to the first P positions
        of each block's input (deep prompt tuning; PETALS, section 2.2); `additions`, which fit, are an adapter's.
        Returns [B, T, H]. Raises ValueError for shapes that do not fit; the cache is then as it was.
        """
        first, last = self._range(first, last)
        hidden = self._accept(hidden_BTH, cache, first, last)
        past = 0 if cache is None else cache.length
        position_ids_BT, attention_mask_BS = self._accept_places(hidden, past, position_ids_BT, attention_mask_BS)
        self._check_prompts(prompts_LPH, last - first)
        calls = None
        if hidden.shape[1] == 1 and cache is not None and position_ids_BT is None and attention_mask_BS is None:
            assert self.plan is not None, "a span is probed when it is loaded"
            calls = self.plan.calls(past, cache)
        if calls is None:
            calls = self._prelude.calls(hidden, cache, position_ids_BT, attention_mask_BS)
        with adding(self.layers, self.first, whole(additions)):
            hidden = self._run(hidden, calls, first, last, past, prompts_LPH)
        if cache is not None:
            cache.advance(hidden.shape[1])
        return hidden

    @torch.inference_mode()
    def forward_batch(
        self,
        pieces: Sequence[tuple[Tensor, SpanCache]],
        *,
        first: int | None = None,
        last: int | None = None,
        additions: Sequence[Additions | None] = (),
    ) -> list[Tensor]:
        """Pass new tokens of several sessions through blocks [first, last) at once, each as `forward` would.

        `pieces` are hidden states [batch, tokens, H] and their cache, all of one pool; positions count on from the
        cache and nothing is padding. `additions` are those of each piece, by default none. `can_batch` must hold.
        Raises ValueError for shapes that do not fit and OutOfPages where there is no room; the caches are then as they
        were.
        """
        assert self.can_batch, "this family is computed session by session"
        first, last = self._range(first, last)
        accepted = [self._accept(hidden, cache, first, last) for hidden, cache in pieces]
        order, stretches = side_by_side([hidden.shape[0] * hidden.shape[1] for hidden in accepted], additions)
        batch = RaggedBatch([(pieces[at][1], pieces[at][0].shape[1]) for at in order], self._attention)
        rows_1NH = torch.cat([accepted[at].reshape(1, -1, self.hidden_size) for at in order], dim=1)
        left_1NH = self._run_batch(rows_1NH, batch, first, last, stretches)
        for hidden, cache in pieces:
            cache.advance(hidden.shape[1])
        split = left_1NH.split([accepted[at].shape[0] * accepted[at].shape[1] for at in order], dim=1)
        left = dict(zip(order, split, strict=True))
        return [left[at].reshape(hidden.shape) for at, hidden in enumerate(accepted)]

    def _run_batch(
        self, hidden_1NH: Tensor, batch: RaggedBatch, first: int, last: int, stretches: Sequence[Stretch] = ()
    ) -> Tensor:
        assert self.plan is not None, "a span is probed when it is loaded"
        calls = self.plan.ragged_calls(batch.pieces, batch)
        if calls is None:
            raise ValueError("sessions at such positions cannot be computed side by side: compute them one by one")
        with running(batch, self._prelude.base.config, self._attention), adding(self.layers, self.first, stretches):
            return self._run(hidden_1NH, calls, first, last, 0, None)

    @property
    def _attention(self) -> str:
        """The attention that the family's layers use otherwise."""
        return str(self._prelude.base.config._attn_implementation)

    def forward_train(
        self,
        hidden_BTH: Tensor,
        *,
        position_ids_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
        first: int | None = None,
        last: int | None = None,
        prompts_LPH: Tensor | None = None,
        additions: Additions | None = None,
    ) -> Tensor:
        """Like `forward` without a cache, keeping what the gradients of hidden states, prompts and additions need."""
        first, last = self._range(first, last)
        hidden = self._accept(hidden_BTH, None, first, last)
        position_ids_BT, attention_mask_BS = self._accept_places(hidden, 0, position_ids_BT, attention_mask_BS)
        self._check_prompts(prompts_LPH, last - first)
        calls = self._prelude.calls(hidden.detach(), None, position_ids_BT, attention_mask_BS)
        with adding(self.layers, self.first, whole(additions)):
            return self._run(hidden, calls, first, last, 0, prompts_LPH)

    def _range(self, first: int | None, last: int | None) -> tuple[int, int]:
        first = self.first if first is None else first
        last = self.last if last is None else last
        if not self.first <= first < last <= self.last:
            raise ValueError(
                f"this span holds blocks {self.first}:{self.last}, not {first}:{last}: ask for a range within it"
            )
        return first, last

    def _accept(self, hidden: Tensor, cache: SpanCache | None, first: int, last: int) -> Tensor:
        if hidden.ndim != 3 or hidden.shape[2] != self.hidden_size or 0 in hidden.shape:
            raise ValueError(
                f"hidden states have shape {tuple(hidden.shape)}: "
                f"send [batch, tokens, {self.hidden_size}], none of them 0"
            )
        if cache is not None:
            if (cache.first, cache.last) != (first, last):
                raise ValueError(
                    f"the cache is of blocks {cache.first}:{cache.last}: ask for these, or make another cache"
                )
            cache.expect(hidden.shape[0], hidden.shape[1])
        return hidden.to(self.device, self.dtype)

    def _accept_places(
        self, hidden: Tensor, past: int, position_ids: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Positions and mask on the span's device, once they are seen to be for these hidden states."""
        num_rows, num_new, _ = hidden.shape
        if position_ids is not None:
            if position_ids.shape not in ((1, num_new), (num_rows, num_new)) or position_ids.dtype != torch.int64:
                raise ValueError(
                    f"positions have shape {tuple(position_ids.shape)} and type {position_ids.dtype}: "
                    f"send 64-bit integers [{num_rows}, {num_new}]"
                )
            position_ids = position_ids.to(self.device)
        if mask is not None:
            if mask.shape != (num_rows, past + num_new):
                raise ValueError(
                    f"the attention mask has shape {tuple(mask.shape)}: "
                    f"send [{num_rows}, {past + num_new}], over past and new tokens"
                )
            mask = mask.to(self.device)
        return position_ids, mask

    def _check_prompts(self, prompts_LPH: Tensor | None, num_blocks: int) -> None:
        if prompts_LPH is not None and (
            prompts_LPH.ndim != 3 or prompts_LPH.shape[0] != num_blocks or prompts_LPH.shape[2] != self.hidden_size
        ):
            raise ValueError(
                f"deep prompts have shape {tuple(prompts_LPH.shape)}: "
                f"send [{num_blocks}, positions, {self.hidden_size}], a row for each block asked for"
            )

    def _run(
        self, hidden: Tensor, calls: list[Call], first: int, last: int, past: int, prompts_LPH: Tensor | None
    ) -> Tensor:
        for number in range(first, last):
            if prompts_LPH is not None:
                hidden = _add_prompt(hidden, prompts_LPH[number - first], past)
            call = calls[number]
            output: Any = self.layers[number - self.first](hidden, *call.args, **call.kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden


def _add_prompt(hidden_BTH: Tensor, prompt_PH: Tensor, past: int) -> Tensor:
    """Add a block's prompt where the new tokens lie within its first P positions; not in place, for autograd's sake."""
    num_prompted = min(prompt_PH.shape[0] - past, hidden_BTH.shape[1])
    if num_prompted <= 0:
        return hidden_BTH
    prompt = prompt_PH[past : past + num_prompted].to(hidden_BTH)
    return torch.cat([hidden_BTH[:, :num_prompted] + prompt, hidden_BTH[:, num_prompted:]], dim=1)
