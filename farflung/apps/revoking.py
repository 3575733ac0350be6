"""Withdrawing a ticket in a swarm that one has joined: told to the rendezvous nodes, and waited for."""

from farflung.apps.wiring import SwarmNode
from farflung.mesh.messages import REVOCATIONS_ACTOR, CompareRevocations, SameRevocations
from farflung.wire.revocation import Revocation
from farflung.world.address import Address, PeerId
from farflung.world.errors import Unreachable
from farflung.world.mailbox import Mailbox, call

REVOKE_SECONDS_MAX = 15.0
ASK_SECONDS = 1.0
ACTOR = "revoking"


async def revoke_in_swarm(node: SwarmNode, revocation: Revocation) -> str:
    """Tell the swarm; returns, with a sentence, once rendezvous nodes know. They tell all others.

    Raises:
        ChainRefused: it proves nothing.
        Unreachable: no rendezvous node has said in time that it knows.
    """
    node.withdraw(revocation)
    deadline = node.world.clock.now() + REVOKE_SECONDS_MAX
    waiting = _rendezvous(node)
    knowing: list[PeerId] = []
    with Mailbox(node.world, ACTOR) as mailbox:
        while waiting and node.world.clock.now() < deadline:
            peer = waiting.pop(0)
            if await _knows(node, mailbox, peer, deadline):
                knowing.append(peer)
            elif node.world.clock.now() < deadline and not knowing:
                waiting.append(peer)
    if not knowing:
        raise Unreachable(node.peer, "no rendezvous node of the swarm has heard of it: try again when one is there")
    return f"{len(knowing)} rendezvous node{'' if len(knowing) == 1 else 's'} know and tell all others"


def _rendezvous(node: SwarmNode) -> list[PeerId]:
    view = node.member.view
    return [peer for peer in sorted(view) if view[peer].is_rendezvous and peer != node.peer]


async def _knows(node: SwarmNode, mailbox: Mailbox, peer: PeerId, deadline: float) -> bool:
    question = CompareRevocations(digest=node.revocations.digest)
    soon = min(deadline, node.world.clock.now() + ASK_SECONDS)
    try:
        return isinstance(await call(mailbox, Address(peer, REVOCATIONS_ACTOR), question, soon), SameRevocations)
    except Unreachable:
        return False
