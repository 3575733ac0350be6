"""Forward and backward through the swarm without a cache, with fail-over (PETALS, section 2.2).

A batch is cut into micro-batches of whole rows that travel at the same time, so that several servers work at once. The
client keeps the inputs of every span. Forward goes on from the block where a server failed; backward walks the
spans in reverse, and a span whose server failed is recomputed by its replacement, which needs only the inputs kept
here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farflung.systems.swarm.messages import (
    ACTOR,
    Backward,
    BackwardDone,
    Forward,
    ForwardDone,
    Hop,
    RequestRefused,
)
from farflung.systems.swarm.view import SwarmView
from farflung.wire.tensor import MalformedTensor, WireTensor, decode_tensor, encode_tensor
from farflung.world.address import Address
from farflung.world.doors import World
from farflung.world.errors import FarflungError, PeerMisbehaved, Refused, Unreachable
from farflung.world.mailbox import Mailbox, PeerLost, call
from farflung.world.nursery import open_nursery

REQUEST_SECONDS_MAX = 300.0
WAIT_SECONDS_MAX = 60.0
BAN_SECONDS = 15.0
MICRO_BATCH_TOKENS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """What goes with the hidden states through every span."""

    position_ids: torch.Tensor | None = None
    attention_mask: torch.Tensor | None = None
    prompts_LPH: torch.Tensor | None = None
    """Deep prompts of all blocks."""
    codec: str = "raw"


@dataclass(frozen=True, slots=True)
class SpanInput:
    """What one span of the forward pass was given, kept for the backward pass."""

    first: int
    last: int
    hidden: torch.Tensor


@dataclass(frozen=True, slots=True)
class Passage:
    """One micro-batch on its way through the blocks: what its backward pass needs."""

    batch: Batch
    inputs: tuple[SpanInput, ...]


class RemoteBlocks:
    """Stateless passes through blocks [0, num_blocks) for one client."""

    def __init__(self, world: World, view: SwarmView) -> None:
        self._world = world
        self._view = view

    async def forward(
        self, hidden: torch.Tensor, batch: Batch, *, is_hop_per_block: bool = False
    ) -> tuple[torch.Tensor, list[Passage]]:
        """Hidden states after the last block, and what every micro-batch met on the way: spans, or single blocks."""
        async with open_nursery() as nursery:
            tasks = [
                nursery.start(self._forward_rows(rows, part, is_hop_per_block), name=f"forward of micro-batch {number}")
                for number, (rows, part) in enumerate(_micro_batches(hidden, batch))
            ]
        results: list[tuple[torch.Tensor, Passage]] = [task.result() for task in tasks]
        return torch.cat([output for output, _ in results]), [passage for _, passage in results]

    async def backward(
        self, passages: Sequence[Passage], gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Gradients by the input of the first block and by the deep prompts (None without prompts)."""
        rows = [passage.inputs[0].hidden.shape[0] for passage in passages]
        async with open_nursery() as nursery:
            tasks = [
                nursery.start(self._backward_rows(passage, part), name=f"backward of micro-batch {number}")
                for number, (passage, part) in enumerate(zip(passages, gradient.split(rows), strict=True))
            ]
        results: list[tuple[torch.Tensor, torch.Tensor | None]] = [task.result() for task in tasks]
        of_prompts = [prompts for _, prompts in results if prompts is not None]
        return torch.cat([hidden for hidden, _ in results]), sum(of_prompts[1:], of_prompts[0]) if of_prompts else None

    async def _forward_rows(
        self, hidden: torch.Tensor, batch: Batch, is_hop_per_block: bool
    ) -> tuple[torch.Tensor, Passage]:
        inputs: list[SpanInput] = []
        with self._open_mailbox() as mailbox:
            hops = await self._find(mailbox, 0, self._view.num_blocks, is_hop_per_block)
            while hops:
                hop = hops.pop(0)
                try:
                    output = await self._forward(mailbox, hop, hidden, batch)
                except FarflungError as error:
                    hops = [*await self._replace(mailbox, hop, error, is_hop_per_block), *hops]
                    continue
                inputs.append(SpanInput(hop.first, hop.last, hidden))
                hidden = output
        return hidden, Passage(batch, tuple(inputs))

    async def _backward_rows(
        self, passage: Passage, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch = passage.batch
        prompts_gradient = torch.zeros_like(batch.prompts_LPH) if batch.prompts_LPH is not None else None
        with self._open_mailbox() as mailbox:
            waiting = list(passage.inputs)
            hops: list[Hop] = []
            hidden_of: dict[int, torch.Tensor] = {}
            while waiting or hops:
                if not hops:
                    hops, hidden_of = await self._share(mailbox, waiting.pop(), batch)
                hop = hops.pop()
                try:
                    done = await self._backward(mailbox, hop, hidden_of[hop.first], gradient, batch)
                except FarflungError as error:
                    self._leave(mailbox, hop, error)
                    lost = SpanInput(hop.first, hop.last, hidden_of[hop.first])
                    found, inputs = await self._share(mailbox, lost, batch)
                    hops += found
                    hidden_of |= inputs
                    continue
                gradient = done[0]
                if prompts_gradient is not None and done[1] is not None:
                    prompts_gradient[hop.first : hop.last] += done[1]
        return gradient, prompts_gradient

    async def _share(
        self, mailbox: Mailbox, span: SpanInput, batch: Batch
    ) -> tuple[list[Hop], dict[int, torch.Tensor]]:
        """Servers for a span, and the input of each; only a span that several share costs forwards."""
        waiting = await self._find(mailbox, span.first, span.last)
        hops: list[Hop] = []
        hidden_of = {span.first: span.hidden}
        while waiting:
            hop = waiting.pop(0)
            if waiting:
                try:
                    hidden_of[hop.last] = await self._forward(mailbox, hop, hidden_of[hop.first], batch)
                except FarflungError as error:
                    waiting = [*await self._replace(mailbox, hop, error), *waiting]
                    continue
            hops.append(hop)
        return hops, hidden_of

    async def _forward(self, mailbox: Mailbox, hop: Hop, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        request = Forward(request=self._view.new_name(), model=self._view.model, **self._fields(hop, hidden, batch))
        answer = await self._call(mailbox, hop, request)
        if not isinstance(answer, ForwardDone):
            raise PeerMisbehaved(hop.peer, f"it answered a forward with {type(answer).__name__}")
        return _decode(hop, answer.hidden, hidden.shape)

    async def _backward(
        self, mailbox: Mailbox, hop: Hop, hidden: torch.Tensor, gradient: torch.Tensor, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        wire_gradient = encode_tensor(gradient, batch.codec)
        fields = self._fields(hop, hidden, batch)
        request = Backward(request=self._view.new_name(), model=self._view.model, gradient=wire_gradient, **fields)
        answer = await self._call(mailbox, hop, request)
        if not isinstance(answer, BackwardDone):
            raise PeerMisbehaved(hop.peer, f"it answered a backward with {type(answer).__name__}")
        prompts = None
        if answer.prompts_gradient is not None and batch.prompts_LPH is not None:
            shape = (hop.last - hop.first, *batch.prompts_LPH.shape[1:])
            prompts = _decode(hop, answer.prompts_gradient, shape)
        return _decode(hop, answer.gradient, hidden.shape), prompts

    def _fields(self, hop: Hop, hidden: torch.Tensor, batch: Batch) -> dict[str, Any]:
        prompts = batch.prompts_LPH[hop.first : hop.last] if batch.prompts_LPH is not None else None
        return {
            "first": hop.first,
            "last": hop.last,
            "hidden": encode_tensor(hidden, batch.codec),
            "position_ids": _encode_optional(batch.position_ids),
            "attention_mask": _encode_optional(batch.attention_mask),
            "prompts": _encode_optional(prompts),
            "codec": batch.codec,
        }

    async def _call(self, mailbox: Mailbox, hop: Hop, request: Forward | Backward) -> object:
        deadline = self._world.clock.now() + REQUEST_SECONDS_MAX
        answer = await call(mailbox, Address(hop.peer, ACTOR), request, deadline)
        while getattr(answer, "request", request.request) != request.request:  # of a request given up earlier
            received = await mailbox.receive(deadline)
            if received is None:
                raise Unreachable(hop.peer, "no answer before the deadline")
            if received[0].peer == hop.peer:
                answer = received[1]
        if isinstance(answer, PeerLost):
            raise Unreachable(hop.peer, answer.reason)
        if isinstance(answer, RequestRefused):
            if answer.is_fault_of_client:
                raise ValueError(f"the swarm cannot compute this: {answer.reason}")
            raise Refused(hop.peer, answer.reason)
        return answer

    async def _replace(
        self, mailbox: Mailbox, hop: Hop, error: FarflungError, is_hop_per_block: bool = False
    ) -> list[Hop]:
        self._leave(mailbox, hop, error)
        return await self._find(mailbox, hop.first, hop.last, is_hop_per_block)

    def _leave(self, mailbox: Mailbox, hop: Hop, error: FarflungError) -> None:
        self._view.ban(hop.peer, str(error), BAN_SECONDS)
        self._world.note(mailbox.actor, f"leaves {hop.peer} for blocks {hop.first}:{hop.last}: {error}")

    async def _find(self, mailbox: Mailbox, first: int, last: int, is_hop_per_block: bool = False) -> list[Hop]:
        hops = await self._view.find_hops(
            mailbox,
            first,
            last,
            num_tokens=0,
            num_positions=0,
            is_hop_per_block=is_hop_per_block,
            wait_seconds_max=WAIT_SECONDS_MAX,
        )
        return list(hops)

    def _open_mailbox(self) -> Mailbox:
        return Mailbox(self._world, f"tuning-{self._view.new_name()}")


def _micro_batches(hidden: torch.Tensor, batch: Batch) -> list[tuple[torch.Tensor, Batch]]:
    """Whole rows of at most `MICRO_BATCH_TOKENS_MAX` tokens together (one row at least), with what goes with them."""
    num_rows = max(1, MICRO_BATCH_TOKENS_MAX // hidden.shape[1])
    parts: list[tuple[torch.Tensor, Batch]] = []
    for first in range(0, hidden.shape[0], num_rows):
        rows = slice(first, first + num_rows)
        ids, mask = batch.position_ids, batch.attention_mask
        ids = ids.expand(hidden.shape[:2])[rows] if ids is not None else None
        mask = mask[rows] if mask is not None else None
        parts.append((hidden[rows], Batch(ids, mask, batch.prompts_LPH, batch.codec)))
    return parts


def _encode_optional(tensor: torch.Tensor | None) -> WireTensor | None:
    return encode_tensor(tensor) if tensor is not None else None


def _decode(hop: Hop, wire: WireTensor, shape: Sequence[int]) -> torch.Tensor:
    try:
        if tuple(wire.shape) != tuple(shape):
            raise MalformedTensor(f"a tensor of shape {wire.shape[:8]} instead of {tuple(shape)}")
        return decode_tensor(wire)
    except MalformedTensor as error:
        raise PeerMisbehaved(hop.peer, str(error)) from None
