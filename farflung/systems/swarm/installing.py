"""Gives the servers of one's own chain other weights: each gets its blocks' tensors and says when they are in place."""

from collections.abc import Iterator, Mapping

import torch

from farflung.systems.swarm.messages import ACTOR, Install, Installed
from farflung.systems.swarm.view import SwarmView
from farflung.wire.message import NoSuchActor, Refusal
from farflung.wire.tensor import encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.errors import Refused, Unreachable
from farflung.world.mailbox import Mailbox, PeerLost

PART_BYTES = 64 << 20
"""Of one message, unless a single tensor is larger."""
ASK_AGAIN_SECONDS = 5.0
SECONDS_MAX = 120.0
"""For all servers together."""


async def install_weights(
    world: World, view: SwarmView, tensors_of: Mapping[PeerId, Mapping[str, torch.Tensor]], model: str
) -> None:
    """Put weights called `model` in place on these servers, one after another, and let `view` mean them from then on.

    Sessions with the old weights are over: close them before. Tensors are named as in `Span.weights`.

    Raises:
        Refused: a server does not take them.
        Unreachable: one does not answer.
    """
    with Mailbox(world, f"weights-{view.new_name()}") as mailbox:
        for peer, tensors in tensors_of.items():
            parts = list(_parts(tensors))
            for number, part in enumerate(parts):
                wire = {name: encode_tensor(tensor) for name, tensor in part.items()}
                message = Install(model=model, part=number, num_parts=len(parts), tensors=wire)
                await _put(world, mailbox, Address(peer, ACTOR), message)
            view.forgive(peer)  # a server that had died refused what came before it had weights
    view.model = model


async def _put(world: World, mailbox: Mailbox, server: Address, message: Install) -> None:
    deadline, reason = world.clock.now() + SECONDS_MAX, "it does not answer"
    while world.clock.now() < deadline:
        mailbox.send(server, message)
        again_at = world.clock.now() + ASK_AGAIN_SECONDS
        while (received := await mailbox.receive(again_at)) is not None:
            source, said = received
            match said:
                case Installed(reason=why) if said.model == message.model and said.part == message.part:
                    if why:
                        raise Refused(server.peer, why)
                    return
                case Refusal(reason=why) if source.peer == server.peer:
                    raise Refused(server.peer, why)
                case PeerLost(reason=reason) | NoSuchActor(actor=reason) if source.peer == server.peer:
                    again_at = min(again_at, world.clock.now() + 1.0)
                case _:
                    pass
    raise Unreachable(server.peer, reason)


def _parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    part: dict[str, torch.Tensor] = {}
    num_bytes = 0
    for name, tensor in tensors.items():
        if part and num_bytes + tensor.nbytes > PART_BYTES:
            yield part
            part, num_bytes = {}, 0
        part[name] = tensor
        num_bytes += tensor.nbytes
    yield part
