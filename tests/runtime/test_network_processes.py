"""Nodes in processes of their own: they die, freeze, hide behind a NAT, and meet through a relay."""

import signal
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.runtime.conftest import Program, eventually

pytestmark = pytest.mark.loopback

Start = Callable[..., Awaitable[Program]]


async def test_two_processes_exchange_small_and_large_messages(program: Start) -> None:
    a, b = await program(), await program()
    for number in range(5):
        await b.ask(a.peer, number, num_bytes=1000, num_bytes_back=2000)
    await b.ask(a.peer, 5, num_bytes=3 << 20, num_bytes_back=4 << 20)
    for number in range(5):
        await b.until(answer=number, num_bytes=2000, peer=a.peer)
    await b.until(answer=5, num_bytes=4 << 20, peer=a.peer)
    await a.until(got=5, num_bytes=3 << 20, peer=b.peer)


async def test_a_killed_process_is_lost_at_once(program: Start) -> None:
    a, b = await program(), await program()
    await b.ask(a.peer, 1)
    await b.until(answer=1)
    a.signal(signal.SIGKILL)
    seen = await b.until(lost=a.peer)
    assert "no sign of life" not in str(seen["reason"]), "it is not silence that tells of it"
    # Whoever writes to it now hears as quickly that nobody is there.
    await b.ask(a.peer, 2)
    await eventually(lambda: [seen.get("lost") for seen in b.seen].count(a.peer) == 2)
    assert b.seen[-1]["reason"] == f"nobody listens at {a.endpoints[0]}"


@pytest.mark.parametrize("frozen", ["the one that was called", "the one that called"])
async def test_a_frozen_process_is_lost_after_seven_seconds(program: Start, frozen: str) -> None:
    a, b = await program(), await program()
    await b.ask(a.peer, 1)
    await b.until(answer=1)
    victim, witness = (a, b) if frozen == "the one that was called" else (b, a)
    frozen_at = time.monotonic()
    victim.signal(signal.SIGSTOP)
    try:
        seen = await witness.until(lost=victim.peer)
        assert time.monotonic() - frozen_at > 5.0
        assert seen["reason"] == "no sign of life for 7 seconds"
    finally:
        victim.signal(signal.SIGCONT)
    # The witness has hung up meanwhile, which the victim sees when it wakes: no further silence is needed.
    await victim.until(lost=witness.peer)
    await b.ask(a.peer, 2)
    await b.until(answer=2)


async def test_nodes_without_open_ports_are_called_back_and_meet_through_a_relay(program: Start) -> None:
    relay, hidden, other = await program(), await program("--dial-only"), await program("--dial-only")
    open_one = await program()
    assert hidden.endpoints == ()
    for node in (hidden, other):
        await node.tell(link=relay.peer)
        await node.until(linked=relay.peer, is_linked=True)
    for node in (other, open_one):
        await node.tell(introduce=hidden.peer, endpoints=[], relays=[relay.peer])
        await node.ask(hidden.peer, 7, num_bytes=2 << 20, num_bytes_back=10)
        await node.until(answer=7, num_bytes=10, peer=hidden.peer)
    await hidden.ask(other.peer, 8)
    await hidden.until(answer=8)
    # The relay's end is the end of what goes through it, and of nothing else.
    relay.signal(signal.SIGKILL)
    await other.until(lost=hidden.peer)
    await open_one.until(lost=relay.peer)
    await open_one.ask(hidden.peer, 9)
    await open_one.until(answer=9)
    assert not any(seen.get("lost") == hidden.peer for seen in open_one.seen)
