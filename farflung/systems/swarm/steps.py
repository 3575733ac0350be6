"""The steps that a session sends, made from its log (pure)."""

from dataclasses import dataclass

import torch

from farflung.systems.swarm.history import History
from farflung.systems.swarm.messages import Hop, Step
from farflung.wire.tensor import WireTensor, encode_tensor
from farflung.world.address import Address


@dataclass(slots=True)
class Steps:
    """What all steps of one session have in common."""

    session: str
    client: Address
    model: str
    codec: str
    num_tokens_max: int
    prompts_LPH: torch.Tensor | None
    adapter: str = ""
    """Name of the adapter, if any."""
    has_positions: bool = False
    """Whether positions were ever given."""
    has_padding: bool = False
    """Whether a mask was ever given."""

    def make(
        self, history: History, route: tuple[Hop, ...], base: int, number: int, *, is_background: bool = False
    ) -> Step:
        """What brings the first hop of `route` from step `base` to step `number`."""
        logged = history.step(number)
        positions = history.position_ids(base, number) if self.has_positions else None
        mask = history.attention_mask(base, number) if self.has_padding else None
        return Step(
            session=self.session,
            model=self.model,
            route=route,
            client=self.client,
            base=base,
            upto=number,
            edits=history.edits(base, number),
            hidden=encode_tensor(history.inputs(route[0].first, base, number), self.codec),
            position_ids=_encoded(positions),
            attention_mask=_encoded(mask),
            prompts=_encoded(self.prompts_LPH) if base == 0 else None,
            adapter=self.adapter,
            num_tokens_max=max(self.num_tokens_max, logged.batch_size * history.length),
            codec=self.codec,
            is_background=is_background,
        )


def _encoded(tensor: torch.Tensor | None) -> WireTensor | None:
    return None if tensor is None else encode_tensor(tensor)
