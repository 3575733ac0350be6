"""Who joins a swarm knows it before it decides anything, also where it keeps the directory for others itself."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from farflung.apps.joining import JoinFailed
from farflung.apps.wiring import Place, SwarmNode, join
from farflung.wire.ticket import Meeting, Ticket
from tests.apps.processes import free_port

pytestmark = pytest.mark.loopback

Opened = Callable[..., Awaitable[SwarmNode]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Opened]:
    """Opens nodes that keep the directory; they leave at the end."""
    async with AsyncExitStack() as stack:

        async def open_node(name: str, **how: str) -> SwarmNode:
            node = await join(Place(home=tmp_path / name, is_rendezvous=True), **how)
            stack.push_async_callback(node.close)
            return node

        yield open_node


def elsewhere(ticket: Ticket, *, own: Meeting | None = None) -> str:
    """The same ticket, as if the founder had been at a place where nobody listens any more."""
    (founder,) = ticket.meetings
    lost = Meeting(founder.peer, (f"127.0.0.1:{free_port()}",))
    return replace(ticket, meetings=(lost, own) if own is not None else (lost,)).text()


async def test_a_newcomer_has_heard_of_the_others_once_it_has_joined(opened: Opened) -> None:
    founder = await opened("founder", new_swarm="here")
    await founder.wait_joined()
    founder.publish("said", b"by the founder")
    for _ in range(6000):
        if founder.member.is_heard:
            break
        await asyncio.sleep(0.02)
    newcomer = await opened("newcomer", ticket=founder.node.ticket.text())
    await newcomer.wait_joined(60)
    assert newcomer.member.view[founder.peer].topics == {"said": b"by the founder"}


async def test_nobody_joins_by_its_own_word(opened: Opened) -> None:
    founder = await opened("founder", new_swarm="here")
    alone = await opened("alone", ticket=elsewhere(founder.node.ticket))
    with pytest.raises(JoinFailed, match="swarm 'here' cannot be joined at"):
        await alone.wait_joined(1.0)


async def test_one_of_the_meeting_places_goes_on_alone_when_no_other_answers(opened: Opened, tmp_path: Path) -> None:
    founder = await opened("founder", new_swarm="here")
    first = await join(Place(home=tmp_path / "second", is_rendezvous=True), ticket=founder.node.ticket.text())
    own = Meeting(first.peer, first.node.endpoints)
    await first.close()
    again = await opened("second", ticket=elsewhere(founder.node.ticket, own=own))
    await again.wait_joined(1.0)
