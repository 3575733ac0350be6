"""Hands a server the part of an adapter that its blocks need, and waits until it is there."""

from farflung.systems.swarm.adapter_checks import num_bytes_of
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.messages import ACTOR, AdapterHanded, HandAdapter, Hop
from farflung.systems.swarm.view import SwarmView
from farflung.wire.message import NoSuchActor, Refusal
from farflung.world.address import Address
from farflung.world.doors import World
from farflung.world.errors import Refused, Unreachable
from farflung.world.mailbox import Mailbox, PeerLost

ASK_AGAIN_SECONDS = 5.0
NUM_ASKS_MAX = 3
SLOWEST_LINK_BYTES_PER_SECOND = 250_000.0


async def hand_adapter(
    world: World,
    view: SwarmView,
    adapter: NamedAdapter,
    hop: Hop,
    slowest_bytes_per_second: float = SLOWEST_LINK_BYTES_PER_SECOND,
) -> None:
    """Return once the server of `hop` has the adapter for its blocks.

    Raises:
        ValueError: the adapter itself is wrong, so that no server would take it.
        Refused: this server does not take it.
        Unreachable: it does not answer.
    """
    with Mailbox(world, f"adapter-{view.new_name()}") as mailbox:
        for part in adapter.parts(hop.first, hop.last):
            handed = await _hand(world, mailbox, Address(hop.peer, ACTOR), part, slowest_bytes_per_second)
            if handed.is_fault_of_client:
                raise ValueError(f"the swarm does not take this adapter: {handed.reason}")
            if handed.reason:
                raise Refused(hop.peer, handed.reason)


async def why_not_handed(world: World, view: SwarmView, adapter: NamedAdapter, hop: Hop) -> str | None:
    """Hand a server an adapter; why it could not be, or None. Raises ValueError as `hand_adapter`."""
    try:
        await hand_adapter(world, view, adapter, hop)
    except (Refused, Unreachable) as error:
        return str(error)
    return None


async def _hand(
    world: World, mailbox: Mailbox, server: Address, part: HandAdapter, slowest_bytes_per_second: float
) -> AdapterHanded:
    for _ in range(NUM_ASKS_MAX):
        mailbox.send(server, part)
        transfer_seconds = num_bytes_of(part) / slowest_bytes_per_second
        again_at = world.clock.now() + ASK_AGAIN_SECONDS + transfer_seconds
        while (received := await mailbox.receive(again_at)) is not None:
            source, said = received
            match said:
                case AdapterHanded() if source.peer == server.peer and said.first == part.first:
                    return said
                case Refusal(reason=reason) if source.peer == server.peer:
                    raise Refused(server.peer, reason)
                case PeerLost(reason=reason) if source.peer == server.peer:
                    raise Unreachable(server.peer, reason)
                case NoSuchActor() if source.peer == server.peer:
                    raise Unreachable(server.peer, "it serves no blocks any more")
                case _:
                    pass
    raise Unreachable(server.peer, "it does not answer")
