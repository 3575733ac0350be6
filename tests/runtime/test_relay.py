"""Links through a relay, in one process: what it carries, what it cannot do, and what it may carry."""

from collections.abc import Callable

import msgspec
import pytest

from farflung.runtime.limits import NetworkLimits
from farflung.runtime.node import RealNode
from farflung.runtime.relay import Relay
from farflung.wire.control import Relayed
from farflung.wire.sealed import SealedFrame, decode_body, encode_body
from tests.runtime.conftest import PATIENCE_SECONDS, Swarm, eventually, introduce
from tests.runtime.echo import Echo

pytestmark = pytest.mark.loopback

Forward = Callable[[Relay, Relayed], None]


async def hidden_pair(
    swarm: Swarm, limits: NetworkLimits | None = None
) -> tuple[RealNode, tuple[RealNode, Echo], tuple[RealNode, Echo]]:
    """A relay, and two nodes that accept no calls and know each other's relay."""
    relay, _ = await swarm.add(limits=limits)
    a, b = await swarm.add(is_dial_only=True), await swarm.add(is_dial_only=True)
    for node, _ in (a, b):
        assert await node.network.linked(relay.identity.peer, PATIENCE_SECONDS)
    introduce(a[0], b[0])
    introduce(b[0], a[0])
    return relay, a, b


async def test_messages_of_all_sizes_pass_both_ways(swarm: Swarm) -> None:
    relay, (a, echo_a), (b, echo_b) = await hidden_pair(swarm)
    for number, size in enumerate([0, 1000, 900_000, 3 << 20, 20 << 20, 10]):
        echo_a.ask(b.identity.peer, number, num_bytes=size, num_bytes_back=size // 2)
    await eventually(lambda: sorted(map(str, echo_a.answers())) == list("012345"))
    assert a.network.links()[b.identity.peer] == f"through relay {relay.identity.peer}"
    assert b.network.links()[a.identity.peer] == f"through relay {relay.identity.peer}"
    echo_b.ask(a.identity.peer, 9, num_bytes=5 << 20)
    await eventually(lambda: echo_b.answers() == [9])
    assert not echo_a.losses() and not echo_b.losses()
    assert a.network.bytes_per_second(b.identity.peer) is not None


async def test_both_calling_at_once_through_a_relay_end_up_with_one_link(swarm: Swarm) -> None:
    _, (a, echo_a), (b, echo_b) = await hidden_pair(swarm)
    for number in range(20):
        echo_a.ask(b.identity.peer, number)
        echo_b.ask(a.identity.peer, number)
    for echo in (echo_a, echo_b):
        await eventually(lambda echo=echo: echo.answers() == list(range(20)))
        assert not echo.losses()


async def test_what_passes_is_counted_by_all_three(swarm: Swarm) -> None:
    relay, (a, echo_a), (b, _) = await hidden_pair(swarm)
    for number in range(10):
        echo_a.ask(b.identity.peer, number, num_bytes=50_000)
    echo_a.ask(b.identity.peer, 10, num_bytes=4 << 20)
    await eventually(lambda: len(echo_a.answers()) == 11)
    peer = b.identity.peer
    sent = a.world.traffic.total(peer=peer, kind="RuntimeQuestion", sent=True)
    received = b.world.traffic.total(peer=a.identity.peer, kind="RuntimeQuestion", sent=False)
    # Parts carry the cost of relaying on the wire, which only their receiver sees part by part.
    assert abs(sent - received) < 4000
    assert 0 < sent - (10 * 50_000 + (4 << 20)) < 15_000
    passed = relay.world.traffic.total(peer=peer, kind="Relayed", sent=True)
    assert sent - 15_000 < passed < sent + 15_000


def flip(relay: Relay, frame: Relayed) -> None:
    """A relay that changes one bit of every sealed frame."""
    body = decode_body(frame.data)
    if isinstance(body, SealedFrame):
        changed = bytearray(body.sealed)
        changed[-1] ^= 1
        data = memoryview(encode_body(msgspec.structs.replace(body, sealed=memoryview(changed))))
        frame = msgspec.structs.replace(frame, data=data)
    genuine_forward(relay, frame)


def repeat(relay: Relay, frame: Relayed) -> None:
    """A relay that sends everything twice."""
    genuine_forward(relay, frame)
    genuine_forward(relay, frame)


genuine_forward = Relay.forward


@pytest.mark.parametrize(("forward", "reason"), [(flip, "altered"), (repeat, "repeated")])
async def test_a_relay_that_tampers_is_noticed_and_nothing_forged_is_delivered(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, forward: Forward, reason: str
) -> None:
    caplog.set_level("INFO", "farflung")
    _, (_, echo_a), (b, echo_b) = await hidden_pair(swarm)
    echo_a.ask(b.identity.peer, 1)
    await eventually(lambda: echo_a.answers() == [1])
    monkeypatch.setattr(Relay, "forward", forward)
    echo_a.ask(b.identity.peer, 2)
    await eventually(lambda: echo_a.losses() and echo_b.losses())
    assert reason in caplog.text
    assert len([entry for entry in echo_b.seen if entry.get("got") == 2]) <= 1
    monkeypatch.undo()
    echo_a.ask(b.identity.peer, 3)
    await eventually(lambda: 3 in echo_a.answers())


async def test_a_relay_sees_no_content(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    def look(relay: Relay, frame: Relayed) -> None:
        seen.append(bytes(frame.data))
        genuine_forward(relay, frame)

    monkeypatch.setattr(Relay, "forward", look)
    _, (_, echo_a), (b, _) = await hidden_pair(swarm)
    echo_a.ask(b.identity.peer, 1, num_bytes=100_000)
    await eventually(lambda: echo_a.answers() == [1])
    assert len(seen) > 4
    everything = b"".join(seen)
    assert len(everything) > 100_000
    # The question's data are zeros, and its envelope names kinds and actors.
    assert bytes(16) not in everything
    assert b"RuntimeQuestion" not in everything and b"echo" not in everything


async def test_a_relay_passes_on_no_faster_than_it_may(swarm: Swarm) -> None:
    limits = NetworkLimits(relay_bytes_per_second_max=4e6)
    _, (a, echo_a), (b, _) = await hidden_pair(swarm, limits)
    echo_a.ask(b.identity.peer, 1, num_bytes=6 << 20)
    echo_a.ask(b.identity.peer, 2)
    await eventually(lambda: len(echo_a.answers()) == 2)
    rate = a.network.bytes_per_second(b.identity.peer)
    # The first quarter of a second's worth, and the part after it, pass at once.
    assert rate is not None
    assert rate < (6 << 20) / ((6 << 20) - 1e6 - (1 << 20)) * 4e6


async def test_more_than_a_relay_may_hold_loses_the_link_and_not_the_relay(swarm: Swarm) -> None:
    limits = NetworkLimits(relay_bytes_per_second_max=2e5, relay_queue_bytes_max=1 << 20)
    relay, (_, echo_a), (b, _) = await hidden_pair(swarm, limits)
    for number in range(30):
        echo_a.ask(b.identity.peer, number, num_bytes=100_000)
    await eventually(echo_a.losses)
    assert echo_a.losses()[0] == (b.identity.peer, "more waits at the relay than may")
    echo_a.ask(relay.identity.peer, 99)
    await eventually(lambda: 99 in echo_a.answers())


async def test_without_a_relay_that_has_a_link_the_peer_is_lost_in_words(swarm: Swarm) -> None:
    relay, _ = await swarm.add()
    a, _ = await swarm.add(is_dial_only=True)
    b, echo_b = await swarm.add(is_dial_only=True)
    await a.network.close()
    introduce(b, a)
    echo_b.ask(a.identity.peer, 1)
    await eventually(echo_b.losses)
    assert echo_b.losses()[0][1] == f"through {relay.identity.peer}: the relay has no link to it"
