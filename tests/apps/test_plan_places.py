"""What a plan counts of a simulation goes from where it was sent to where it was heard."""

from farflung.apps.plan.places import Nodes, between_sites
from farflung.sim import Link, Simulation, Topology
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox, call
from tests.sim.messages import EchoServer, Probe

SERVER = Address(PeerId("server"), "echo")
PADDING_BYTES = 10_000


async def ask(world: World) -> None:
    with Mailbox(world, "question") as mailbox:
        await call(mailbox, SERVER, Probe(number=1, padding=bytes(PADDING_BYTES)), world.clock.now() + 60.0)


def test_bytes_and_messages_are_counted_once_and_by_their_direction() -> None:
    nodes = Nodes({"server": "eu", "client": "us"})
    with Simulation(topology=Topology(between=Link(latency_seconds=0.05))) as simulation:
        simulation.node("server", site="eu", boot=lambda world: Host(EchoServer(), world, "echo"))
        simulation.node("client", site="us")
        simulation.run(ask(simulation.world("client")), node="client")
        sent, messages = between_sites(nodes.bytes_sent(simulation)), nodes.messages_sent(simulation)
    assert PADDING_BYTES < sent["us", "eu"] < PADDING_BYTES + 200
    assert 0 < sent["eu", "us"] < 200, "the answer alone"
    assert messages == {("us", "eu"): 1, ("eu", "us"): 1}
