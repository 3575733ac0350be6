"""`farflung serve`: a process that founds or joins a swarm and serves blocks until it is told to stop."""

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from farflung.apps.announced import SERVING_ROLES
from farflung.apps.meetings import meetings_now
from farflung.apps.metrics.exporter import exporting
from farflung.apps.metrics.node import NodeCollector, on_running_loop
from farflung.apps.serving import BlockServer, ServeOptions, Tell
from farflung.apps.tickets import ticket_path, write_ticket
from farflung.apps.wiring import Place, SwarmNode, join
from farflung.model.source import ModelSource
from farflung.wire.certificate import TicketRole
from farflung.wire.ticket import SWARM_NAME_LENGTH_MAX, Meeting, Ticket
from farflung.world.nursery import open_nursery

SHOWN_TICKET_SECONDS = 30 * 86400.0
"""How long the ticket is valid that a founder prints for further servers."""
SERVE = "serve"
"""Under which a server's choices are noted."""
TICKET_SECONDS = 1.0
"""How often the founder's ticket is brought up to date with the rendezvous nodes there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """How a server gets into its swarm, and who may look at it."""

    ticket: str | None
    """None: found a new swarm."""
    swarm_name: str | None = None
    """Of a new swarm; None: the model's name."""
    ticket_file: Path | None = None
    """Where to write the founder's admin ticket besides the home."""
    metrics: str | None = None
    """Where Prometheus may ask: a port, or host:port."""


def serve(model: str, options: ServeOptions, place: Place, membership: Membership) -> None:
    """Serve until interrupted or terminated.

    Raises:
        ValueError: an unknown model, blocks out of range, a bad ticket, a port in use, no memory, a ticket file that
            cannot be written.
        FarflungError: nobody of the swarm answers.
    """
    if membership.ticket is not None:
        role = Ticket.parse(membership.ticket, time.time()).role
        if role not in SERVING_ROLES:
            raise ValueError(f"a {role} ticket does not let this node serve; ask for one made with --role server")
    source = ModelSource.open(model)
    server = BlockServer(source, options)
    asyncio.run(_serve(source, server, place, membership))


async def _serve(source: ModelSource, server: BlockServer, place: Place, membership: Membership) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    is_terminated = False

    def terminate() -> None:
        nonlocal is_terminated
        is_terminated = True
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    new_swarm = None
    if membership.ticket is None:
        new_swarm = membership.swarm_name or source.name[-SWARM_NAME_LENGTH_MAX:]
    node = await join(place, ticket=membership.ticket, new_swarm=new_swarm)
    _tell(f"node {node.peer}")
    try:
        own = NodeCollector(node, on_running_loop())
        with exporting(membership.metrics, [own], _tell):
            async with open_nursery() as nursery:
                if new_swarm is not None:
                    _tell_how_to_join(node, source.name)
                    paths = [ticket_path(place.home), *([membership.ticket_file] if membership.ticket_file else [])]
                    nursery.start(keep_tickets(node, paths, _tell), name="tickets")
                await server.serve(node, lambda sentence: _tell_all(node, sentence))
    except asyncio.CancelledError:
        if not is_terminated:
            raise  # an interrupt: the caller ends with its own status
    finally:
        _tell(f"leaves the swarm; {json.dumps(traffic(node))}")
        await node.close()


def traffic(node: SwarmNode) -> dict[str, dict[str, int]]:
    """Bytes sent to and received from each peer."""
    meter = node.world.traffic
    peers = sorted({peer for peer, _, _ in meter.num_bytes})
    return {
        peer: {"sent": meter.total(peer=peer, sent=True), "received": meter.total(peer=peer, sent=False)}
        for peer in peers
    }


def _tell(sentence: str) -> None:
    print(sentence, flush=True)


def _tell_all(node: SwarmNode, sentence: str) -> None:
    """To whoever started this server, and as a decision to the swarm."""
    _tell(sentence)
    node.world.note(SERVE, sentence)


def _tell_how_to_join(node: SwarmNode, model: str) -> None:
    now = time.time()
    ticket = node.node.ticket.invite(TicketRole.SERVER, now + SHOWN_TICKET_SECONDS, now)
    _tell(f"founded the swarm {node.node.ticket.swarm!r}, meeting at {', '.join(node.node.endpoints)}")
    _tell(f"more servers join with: farflung serve {model} --join {ticket.text()}")
    _tell("tickets for clients and other machines: farflung invite")


async def keep_tickets(node: SwarmNode, paths: Sequence[Path], tell: Tell) -> None:
    """Keep the founder's admin ticket in `paths`, naming the rendezvous nodes that are here; until cancelled.

    That a later one cannot be written (a full disk) is told once and tried again: the swarm can do without.

    Raises:
        ValueError: the first one cannot be written.
    """
    await node.wait_joined()
    known = _meetings(node)
    _write_tickets(node, known, paths)
    told = ""
    while True:
        await asyncio.sleep(TICKET_SECONDS)
        meetings = _meetings(node)
        if meetings == known:
            continue
        try:
            _write_tickets(node, meetings, paths)
            known, told = meetings, ""
        except ValueError as error:
            if str(error) != told:
                told = str(error)
                tell(told)


def _write_tickets(node: SwarmNode, meetings: Sequence[Meeting], paths: Sequence[Path]) -> None:
    text = node.node.ticket.meeting_at(meetings).text()
    for path in paths:
        write_ticket(path, text)


def _meetings(node: SwarmNode) -> list[Meeting]:
    """This node, and others that keep the directory too."""
    return meetings_now(Meeting(node.peer, node.node.endpoints), node.member.view)
