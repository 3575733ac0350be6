"""Forward and backward through the swarm without a cache, with fail-over (PETALS, section 2.2).

A batch is cut into micro-batches of whole rows that travel at the same time, so that several servers work at once. The
client keeps the inputs of every span. Forward goes on from the block where a server failed; backward walks the
spans in reverse, first to the server that computed each and may have kept it. A span whose server failed is recomputed
by its replacement, which needs only the inputs kept here.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from farflung.model.lowrank import LowRank
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.handing import SLOWEST_LINK_BYTES_PER_SECOND, hand_adapter
from farflung.systems.swarm.info import BlockRange
from farflung.systems.swarm.messages import (
    ACTOR,
    Backward,
    BackwardDone,
    Forward,
    ForwardDone,
    Hop,
    RequestRefused,
)
from farflung.systems.swarm.passes import Batch, Computed, Gradients, Passage, SpanInput, add_up, micro_batches
from farflung.systems.swarm.returned import decode_factors_of, decode_of, encode_optional
from farflung.systems.swarm.view import SwarmView
from farflung.wire.tensor import encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.errors import FarflungError, PeerMisbehaved, Refused, Unreachable
from farflung.world.mailbox import Mailbox, PeerLost, call
from farflung.world.nursery import open_nursery

REQUEST_SECONDS_MAX = 300.0
WAIT_SECONDS_MAX = 60.0
BAN_SECONDS = 15.0


class RemoteBlocks:
    """Stateless passes through blocks [0, num_blocks) for one client."""

    def __init__(
        self,
        world: World,
        view: SwarmView,
        micro_batch_tokens_max: int,
        *,
        slowest_bytes_per_second: float = SLOWEST_LINK_BYTES_PER_SECOND,
    ) -> None:
        """`slowest_bytes_per_second`: a server that is handed an adapter is given so much time for its bytes."""
        self._world = world
        self._slowest_bytes_per_second = slowest_bytes_per_second
        self._view = view
        self._handed: set[tuple[PeerId, str, int, int]] = set()
        """Parts of the adapter of the newest pass, and the servers that were given them."""
        self._micro_batch_tokens_max = micro_batch_tokens_max

    async def forward(
        self, hidden: torch.Tensor, batch: Batch, *, is_hop_per_block: bool = False
    ) -> tuple[torch.Tensor, list[Passage]]:
        """Hidden states after the last block, and what every micro-batch met on the way: spans, or single blocks."""
        await self._hand_ahead(batch.adapter, is_hop_per_block)
        parts = micro_batches(hidden, batch, self._micro_batch_tokens_max)
        async with open_nursery() as nursery:
            tasks = [
                nursery.start(self._forward_rows(rows, part, is_hop_per_block), name=f"forward of micro-batch {number}")
                for number, (rows, part) in enumerate(parts)
            ]
        results: list[tuple[torch.Tensor, Passage]] = [task.result() for task in tasks]
        return torch.cat([output for output, _ in results]), [passage for _, passage in results]

    async def backward(self, passages: Sequence[Passage], gradient: torch.Tensor) -> Gradients:
        """Gradients by the input of the first block, by deep prompts and by an adapter that is being trained."""
        rows = [passage.inputs[0].hidden.shape[0] for passage in passages]
        async with open_nursery() as nursery:
            tasks = [
                nursery.start(self._backward_rows(passage, part), name=f"backward of micro-batch {number}")
                for number, (passage, part) in enumerate(zip(passages, gradient.split(rows), strict=True))
            ]
        return add_up([task.result() for task in tasks])

    async def _forward_rows(
        self, hidden: torch.Tensor, batch: Batch, is_hop_per_block: bool
    ) -> tuple[torch.Tensor, Passage]:
        inputs: list[SpanInput] = []
        with self._open_mailbox() as mailbox, contextlib.ExitStack() as under_way:
            hops = await self._find(mailbox, 0, self._view.num_blocks, is_hop_per_block)
            under_way.enter_context(self._view.under_way(hops))
            while hops:
                hop = hops.pop(0)
                name = self._view.new_name()
                try:
                    output = await self._forward(mailbox, hop, hidden, batch, name)
                except FarflungError as error:
                    hops = [*await self._replace(mailbox, hop, error, is_hop_per_block), *hops]
                    continue
                inputs.append(SpanInput(hop.first, hop.last, hidden, Computed(hop.peer, name)))
                hidden = output
        return hidden, Passage(batch, tuple(inputs))

    async def _backward_rows(self, passage: Passage, gradient: torch.Tensor) -> Gradients:
        batch = passage.batch
        prompts_gradient = torch.zeros_like(batch.prompts_LPH) if batch.prompts_LPH is not None else None
        factors_gradient: dict[int, Mapping[str, LowRank]] = {}
        with self._open_mailbox() as mailbox:
            waiting = list(passage.inputs)
            hops: list[Hop] = []
            hidden_of: dict[int, torch.Tensor] = {}
            kept_as = ""
            while waiting or hops:
                if not hops:
                    span = waiting.pop()
                    again = self._again(span)
                    if again is not None and span.computed is not None:
                        hops, hidden_of, kept_as = [again], {span.first: span.hidden}, span.computed.request
                    else:
                        (hops, hidden_of), kept_as = await self._share(mailbox, span, batch), ""
                hop = hops.pop()
                try:
                    done = await self._backward(mailbox, hop, hidden_of[hop.first], gradient, batch, kept_as)
                except FarflungError as error:
                    self._leave(mailbox, hop, error)
                    kept_as = ""
                    lost = SpanInput(hop.first, hop.last, hidden_of[hop.first])
                    found, inputs = await self._share(mailbox, lost, batch)
                    hops += found
                    hidden_of |= inputs
                    continue
                gradient = done.hidden
                if prompts_gradient is not None and done.prompts_LPH is not None:
                    prompts_gradient[hop.first : hop.last] += done.prompts_LPH
                factors_gradient |= done.factors or {}
        return Gradients(gradient, prompts_gradient, factors_gradient or None)

    def _again(self, span: SpanInput) -> Hop | None:
        """The server that computed the span, if it is still there."""
        peer = span.computed.peer if span.computed is not None else None
        info = None if peer is None or peer in self._view.banned() else self._view.servers().get(peer)
        if peer is None or info is None or not info.blocks.covers(BlockRange(span.first, span.last)):
            return None
        return Hop(peer, span.first, span.last)

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
                    input_of_hop = hidden_of[hop.first]
                    unkept = replace(batch, is_kept=False)
                    hidden_of[hop.last] = await self._forward(mailbox, hop, input_of_hop, unkept, self._view.new_name())
                except FarflungError as error:
                    waiting = [*await self._replace(mailbox, hop, error), *waiting]
                    continue
            hops.append(hop)
        return hops, hidden_of

    async def _forward(self, mailbox: Mailbox, hop: Hop, hidden: torch.Tensor, batch: Batch, name: str) -> torch.Tensor:
        fields = self._fields(hop, hidden, batch)
        request = Forward(request=name, model=self._view.model, is_kept=batch.is_kept, **fields)
        answer = await self._call(mailbox, hop, request, batch.adapter)
        if not isinstance(answer, ForwardDone):
            raise PeerMisbehaved(hop.peer, f"it answered a forward with {type(answer).__name__}")
        return decode_of(hop, answer.hidden, hidden.shape)

    async def _backward(
        self, mailbox: Mailbox, hop: Hop, hidden: torch.Tensor, gradient: torch.Tensor, batch: Batch, kept_as: str
    ) -> Gradients:
        request = Backward(
            request=self._view.new_name(),
            model=self._view.model,
            gradient=encode_tensor(gradient, batch.codec),
            forward=kept_as,
            **self._fields(hop, hidden, batch),
        )
        answer = await self._call(mailbox, hop, request, batch.adapter)
        if not isinstance(answer, BackwardDone):
            raise PeerMisbehaved(hop.peer, f"it answered a backward with {type(answer).__name__}")
        prompts = None
        if answer.prompts_gradient is not None and batch.prompts_LPH is not None:
            shape = (hop.last - hop.first, *batch.prompts_LPH.shape[1:])
            prompts = decode_of(hop, answer.prompts_gradient, shape)
        factors = decode_factors_of(hop, answer, batch.adapter) if request.wants_factors_gradient else None
        return Gradients(decode_of(hop, answer.gradient, hidden.shape), prompts, factors)

    def _fields(self, hop: Hop, hidden: torch.Tensor, batch: Batch) -> dict[str, Any]:
        prompts = batch.prompts_LPH[hop.first : hop.last] if batch.prompts_LPH is not None else None
        return {
            "first": hop.first,
            "last": hop.last,
            "hidden": encode_tensor(hidden, batch.codec),
            "position_ids": encode_optional(batch.position_ids),
            "attention_mask": encode_optional(batch.attention_mask),
            "prompts": encode_optional(prompts),
            "adapter": batch.adapter.name if batch.adapter is not None else "",
            "wants_factors_gradient": batch.adapter is not None and batch.adapter.is_passing,
            "codec": batch.codec,
        }

    async def _call(
        self, mailbox: Mailbox, hop: Hop, request: Forward | Backward, adapter: NamedAdapter | None
    ) -> object:
        """The answer to a request; a server that lacks the adapter is given it, once."""
        if adapter is not None and adapter.is_passing:
            await self._hand(adapter, hop)
        answer = await self._ask(mailbox, hop, request)
        if isinstance(answer, RequestRefused) and answer.wants_adapter and adapter is not None:
            self._handed.discard((hop.peer, adapter.name, hop.first, hop.last))
            await self._hand(adapter, hop)
            answer = await self._ask(mailbox, hop, request)
        if isinstance(answer, RequestRefused):
            if answer.is_fault_of_client:
                raise ValueError(f"the swarm cannot compute this: {answer.reason}")
            raise Refused(hop.peer, answer.reason)
        return answer

    async def _ask(self, mailbox: Mailbox, hop: Hop, request: Forward | Backward) -> object:
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
        return answer

    async def _hand_ahead(self, adapter: NamedAdapter | None, is_hop_per_block: bool) -> None:
        """Give a version that no server can have to those of the fastest chain, before all micro-batches ask there."""
        if adapter is None or not adapter.is_passing:
            return
        self._handed = {known for known in self._handed if known[1] == adapter.name}
        with self._open_mailbox() as mailbox:
            hops = await self._find(mailbox, 0, self._view.num_blocks, is_hop_per_block)
        async with open_nursery() as nursery:
            for hop in hops:
                nursery.start(self._hand_if_possible(adapter, hop), name=f"adapter for {hop.peer}")

    async def _hand_if_possible(self, adapter: NamedAdapter, hop: Hop) -> None:
        """Whoever asks there finds out if it was not, and asks another."""
        with contextlib.suppress(Refused, Unreachable):
            await self._hand(adapter, hop)

    async def _hand(self, adapter: NamedAdapter, hop: Hop) -> None:
        part = (hop.peer, adapter.name, hop.first, hop.last)
        if part not in self._handed:
            await hand_adapter(self._world, self._view, adapter, hop, self._slowest_bytes_per_second)
            self._handed.add(part)

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
