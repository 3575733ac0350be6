"""Whether others can call this machine: takes part as a server would, hangs up, and waits to be called."""

import asyncio
from collections.abc import Callable

from farflung.apps.doctor.finding import Finding, fine, wrong
from farflung.apps.joining import JoinFailed
from farflung.apps.wiring import Connection, Place, SwarmNode

TOPIC = "doctor"
"""Nodes measure the ways to those that say anything, a few in every 10 s."""
SECONDS_MAX = 25.0
"""Then the lease ends of what this node has said, and nobody knows of it any more."""
LOOK_SECONDS = 0.05
MENDS = "let calls in through the firewall, forward the port and --advertise ADDRESS:PORT, or serve with --dial-only"


def check_called_back(ticket: str, place: Place) -> Finding:
    """Listen at that place under the addresses that it advertises, and see whether the swarm calls there."""
    try:
        connection = Connection(ticket, place)
    except (JoinFailed, ValueError) as error:
        return wrong("calls", str(error), MENDS)
    with connection:
        endpoints = ", ".join(connection.node.node.endpoints)
        if connection.bridge.run(_is_called(connection)):
            return fine("calls", f"the swarm can call this machine at {endpoints}")
    return wrong("calls", f"nobody of the swarm could call this machine at {endpoints}", MENDS)


async def _is_called(connection: Connection) -> bool:
    node = connection.node
    network, meetings = node.node.network, [meeting.peer for meeting in node.node.ticket.meetings]
    node.publish(TOPIC, b"")
    await _until(node, lambda: node.member.is_heard, SECONDS_MAX)
    for host in node.hosts:
        host.stop()  # from here on nothing is said, so that a new link is the other side's
    for peer in meetings:
        await network.drop(peer)
    return await _until(node, lambda: "called us" in network.links().values(), SECONDS_MAX)


async def _until(node: SwarmNode, holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it comes to hold within so many seconds."""
    deadline = node.world.clock.now() + seconds
    while not holds():
        if node.world.clock.now() >= deadline:
            return False
        await asyncio.sleep(LOOK_SECONDS)
    return True
