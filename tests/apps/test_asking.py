"""A seat's questions to its lead: answered also over a long way, a bad one, and by a lead that comes late."""

from collections.abc import Sequence

from farflung.apps.runs.asking import ask_lead
from farflung.apps.runs.messages import LEAD_ACTOR, SEAT_ACTOR, AskPeers, AskSeat, Noted, Peers
from farflung.sim.faults import Faults
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Effect, Send
from farflung.world.errors import FarflungError, Refused, Unreachable
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox
from farflung.world.role import Role

LEAD = Address(PeerId("lead"), LEAD_ACTOR)


class SmallLead(Role):
    """Says who sits where, and takes nobody in."""

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        if isinstance(message, AskPeers):
            return [Send(source, Peers(peers={"0": source.peer}))]
        return [Send(source, Refusal(reason="there is no room"))] if isinstance(message, AskSeat) else ()


def asked(
    *questions: object, faults: Faults | None = None, latency_seconds: float = 0.05, seconds_max: float = 60.0
) -> tuple[list[object], float]:
    """What comes of asking one after the other, and when the last one has ended."""
    link = Link(latency_seconds=latency_seconds, bytes_per_second=1e6)
    with Simulation(seed=1, topology=Topology(between=link), faults=faults or Faults()) as simulation:

        def boot(world: World) -> None:
            Host(SmallLead(), world, LEAD_ACTOR)

        simulation.node("lead", site="here", boot=boot)
        world = simulation.node("seat", site="there")

        async def ask() -> list[object]:
            found: list[object] = []
            with Mailbox(world, SEAT_ACTOR) as mailbox:
                for question in questions:
                    kind = Peers if isinstance(question, AskPeers) else Noted
                    try:
                        found.append(await ask_lead(world.clock, mailbox, LEAD, question, kind, seconds_max))  # pyright: ignore[reportArgumentType]
                    except FarflungError as error:
                        found.append(error)
            return found

        return simulation.run(ask(), node="seat"), simulation.now()


def test_an_answer_that_takes_longer_than_the_patience_of_one_question() -> None:
    found, seconds = asked(AskPeers(), AskPeers(), latency_seconds=12.0)
    assert found == [Peers(peers={"0": PeerId("seat")})] * 2
    assert 24.0 <= seconds < 60.0


def test_a_lead_that_comes_late_and_a_way_that_is_cut() -> None:
    faults = Faults().crash("lead", at=0.0, restart_after=21.0).partition("here", "there", during=(21.0, 33.0))
    found, seconds = asked(AskPeers(), faults=faults)
    assert found == [Peers(peers={"0": PeerId("seat")})] and seconds >= 33.0


def test_a_refusal_is_told_at_once_and_a_late_answer_to_another_question_is_dropped() -> None:
    found, _ = asked(AskPeers(), AskSeat(version="1"), latency_seconds=6.0)
    assert isinstance(found[0], Peers)
    assert isinstance(found[1], Refused) and "no room" in str(found[1])


def test_nobody_is_asked_for_ever() -> None:
    faults = Faults().crash("lead", at=0.0)
    (found,), seconds = asked(AskPeers(), faults=faults, seconds_max=25.0)
    assert isinstance(found, Unreachable) and seconds < 27.0
