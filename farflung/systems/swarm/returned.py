"""What servers return of a pass, checked before it is used (pure)."""

from collections.abc import Sequence

import torch

from farflung.model.lowrank import Additions, factors
from farflung.systems.swarm.adapters import NamedAdapter, decode_factors
from farflung.systems.swarm.messages import BackwardDone, Hop
from farflung.wire.tensor import MalformedTensor, WireTensor, decode_tensor, encode_tensor
from farflung.world.errors import PeerMisbehaved


def encode_optional(tensor: torch.Tensor | None) -> WireTensor | None:
    return encode_tensor(tensor) if tensor is not None else None


def decode_of(hop: Hop, wire: WireTensor, shape: Sequence[int]) -> torch.Tensor:
    try:
        if tuple(wire.shape) != tuple(shape):
            raise MalformedTensor(f"a tensor of shape {wire.shape[:8]} instead of {tuple(shape)}")
        return decode_tensor(wire)
    except MalformedTensor as error:
        raise PeerMisbehaved(hop.peer, str(error)) from None


def decode_factors_of(hop: Hop, answer: BackwardDone, adapter: NamedAdapter | None) -> Additions:
    """Gradients by the factors of a hop's blocks, which have their shapes."""
    assert adapter is not None
    expected = {block: adapter.additions[block] for block in range(hop.first, hop.last)}
    try:
        found = decode_factors(answer.factors_gradient or {}, hop.first, hop.last)
        if [each.keys() for each in found.values()] != [each.keys() for each in expected.values()]:
            raise MalformedTensor("gradients by other factors than those of the adapter")
        for one, other in zip(factors(found), factors(expected), strict=True):
            if one.shape != other.shape:
                raise MalformedTensor(f"a gradient of shape {tuple(one.shape)} instead of {tuple(other.shape)}")
    except MalformedTensor as error:
        raise PeerMisbehaved(hop.peer, str(error)) from None
    return found
