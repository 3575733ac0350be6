"""Who can dial whom: nodes behind a NAT, relays between them, callers that are called back, introductions."""

import pytest

from farflung.sim import Link, Simulation, Topology
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact
from farflung.world.errors import Unreachable
from farflung.world.host import Host
from tests.sim.messages import Echo, EchoServer
from tests.sim.test_faults import LATENCY, ask, ask_from, losses


def behind_nat(*, has_relay: bool) -> Simulation:
    simulation = Simulation(topology=Topology(between=Link(latency_seconds=LATENCY)))
    simulation.node("server", site="eu", boot=lambda w: Host(EchoServer(), w, "echo"), is_dial_only=True)
    simulation.node("client", site="us", is_dial_only=True)
    simulation.node("middle", site="asia", is_relay=has_relay, boot=lambda w: Host(EchoServer(), w, "echo"))
    return simulation


def test_two_dial_only_nodes_need_a_relay_and_pay_its_latency() -> None:
    with behind_nat(has_relay=False) as simulation, pytest.raises(Unreachable, match="no way"):
        ask_from(simulation, 1)
    with behind_nat(has_relay=True) as simulation:
        assert ask_from(simulation, 1) == Echo(number=2)
        assert simulation.now() == pytest.approx(4 * LATENCY)
        simulation.crash("middle")
        simulation.advance(1.0)
        assert [reason for _, reason in losses(simulation, "client")] == ["server: its relay died"]
        with pytest.raises(Unreachable, match="no way"):
            ask_from(simulation, 2)


def test_a_node_that_dialled_out_is_called_back() -> None:
    with behind_nat(has_relay=False) as simulation:
        with pytest.raises(Unreachable, match="no way"):
            ask_from(simulation, 1, node="middle")
        assert simulation.now() == 2.0
        middle = Address(PeerId("middle"), "echo")
        simulation.run(ask(simulation.world("server"), 1, target=middle), node="server")
        assert ask_from(simulation, 2, node="middle") == Echo(number=4)


def test_with_introductions_only_the_introduced_are_reached() -> None:
    with Simulation(must_introduce=True) as simulation:
        simulation.node("server", boot=lambda world: Host(EchoServer(), world, "echo"))
        world = simulation.node("client")
        with pytest.raises(Unreachable, match="no way"):
            ask_from(simulation, 1)
        simulation.at(3.0, lambda: world.network.introduce(PeerId("server"), Contact(endpoints=("server:1",))))
        assert ask_from(simulation, 2) == Echo(number=4)
