"""Faults: who hears of a death, a freeze or a partition, and when; kills at an exact moment of a message."""

import asyncio

import pytest

from farflung.sim import Faults, Link, Simulation, Topology, nth
from farflung.sim.errors import ProcessDied
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Effect, WakeAt
from farflung.world.errors import Unreachable
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox, PeerLost, call
from farflung.world.role import Role
from tests.sim.messages import Echo, EchoServer, Probe

LATENCY = 0.05
SERVER = Address(PeerId("server"), "echo")


def build(faults: Faults | None = None, *, seconds: float = 0.0, seed: int = 0) -> Simulation:
    topology = Topology(between=Link(latency_seconds=LATENCY))
    simulation = Simulation(seed=seed, topology=topology, faults=faults)
    simulation.node("server", site="eu", boot=lambda world: Host(EchoServer(seconds), world, "echo"))
    simulation.node("client", site="us")
    return simulation


async def ask(world: World, number: int, seconds: float = 60.0, target: Address = SERVER) -> object:
    with Mailbox(world, f"question-{number}") as mailbox:
        return await call(mailbox, target, Probe(number=number), world.clock.now() + seconds)


def ask_from(simulation: Simulation, number: int, seconds: float = 60.0, node: str = "client") -> object:
    return simulation.run(ask(simulation.world(node), number, seconds), node=node)


def losses(simulation: Simulation, node: str) -> list[tuple[float, str]]:
    return [(round(event.time, 6), event.detail) for event in simulation.trace.of("lost", node)]


def test_a_crash_is_heard_one_latency_later_by_those_who_talked_to_it() -> None:
    with build(Faults().crash("server", at=5.0)) as simulation:
        simulation.node("stranger", site="us")
        assert ask_from(simulation, 1) == Echo(number=2)
        simulation.advance(10.0)
        assert losses(simulation, "client") == [(5.0 + LATENCY, "server: its process died")]
        assert losses(simulation, "stranger") == []


def test_a_message_to_a_dead_process_comes_back_after_a_round_trip() -> None:
    with build(Faults().crash("server", at=0.0)) as simulation:
        simulation.advance(1.0)
        with pytest.raises(Unreachable, match="no process there"):
            ask_from(simulation, 1)
        assert simulation.now() == pytest.approx(1.0 + 2 * LATENCY)


def test_power_loss_and_freezing_are_noticed_by_silence() -> None:
    for faults in (Faults().crash("server", at=5.0, is_silent=True), Faults().freeze("server", during=(5.0, 50.0))):
        with build(faults) as simulation:
            assert ask_from(simulation, 1) == Echo(number=2)
            simulation.advance(40.0)
            assert losses(simulation, "client") == [(12.0, "server: silent for 7 s")]


def test_a_short_freeze_only_delays() -> None:
    with build(Faults().freeze("server", during=(5.0, 11.0))) as simulation:
        ask_from(simulation, 1)
        simulation.advance(5.5 - simulation.now())
        assert ask_from(simulation, 2) == Echo(number=4)
        assert simulation.now() == pytest.approx(11.0 + LATENCY)
        assert losses(simulation, "client") == []


def test_a_frozen_process_learns_on_thawing_that_it_was_given_up() -> None:
    with build(Faults().freeze("client", during=(5.0, 30.0))) as simulation:
        ask_from(simulation, 1)
        simulation.advance(40.0)
        assert losses(simulation, "server") == [(12.0, "client: silent for 7 s")]
        assert losses(simulation, "client") == [(30.0, "server: silent for 7 s")]


def test_timers_of_a_frozen_process_wait_and_those_of_a_dead_one_never_fire() -> None:
    log: list[tuple[str, float]] = []

    async def tick(world: World) -> None:
        while True:
            await asyncio.sleep(1.0)
            log.append((world.network.peer, world.clock.now()))

    def boot(world: World) -> object:
        return asyncio.get_running_loop().create_task(tick(world))

    faults = Faults().freeze("frozen", during=(2.5, 6.25)).crash("dead", at=2.5)
    with Simulation(faults=faults) as simulation:
        simulation.node("frozen", boot=boot)
        simulation.node("dead", boot=boot)
        simulation.advance(8.0)
        assert [time for name, time in log if name == "frozen"] == [1.0, 2.0, 6.25, 7.25]
        assert [time for name, time in log if name == "dead"] == [1.0, 2.0]


def test_wakes_of_a_dead_role_never_come() -> None:
    class Ticking(Role):
        def __init__(self) -> None:
            self.wakes: list[float] = []

        def start(self, now: float) -> list[Effect]:
            return [WakeAt(now + 1.0)]

        def wake(self, now: float) -> list[Effect]:
            self.wakes.append(now)
            return [WakeAt(now + 1.0)]

    roles: list[Ticking] = []

    def boot(world: World) -> object:
        roles.append(Ticking())
        return Host(roles[-1], world, "ticking")

    with Simulation(faults=Faults().crash("node", at=2.5).restart("node", at=5.25)) as simulation:
        simulation.node("node", boot=boot)
        simulation.advance(7.0)
        assert [role.wakes for role in roles] == [[1.0, 2.0], [6.25]]


def test_what_waited_for_a_frozen_process_is_lost_once_it_was_given_up() -> None:
    with build(Faults().freeze("server", during=(5.0, 30.0))) as simulation:
        ask_from(simulation, 1)
        simulation.advance(6.0 - simulation.now())
        with pytest.raises(Unreachable, match="silent"):
            ask_from(simulation, 2)
        simulation.advance(40.0)
        assert len(list(simulation.trace.of("deliver", "server"))) == 1


def test_a_partition_loses_what_is_under_way_breaks_links_and_heals() -> None:
    with build(Faults().partition("eu", "us", during=(5.0, 20.0))) as simulation:
        ask_from(simulation, 1)
        simulation.advance(4.97 - simulation.now())  # the question is in the air when the cut comes
        with pytest.raises(Unreachable, match="silent for 7 s"):
            ask_from(simulation, 2)
        assert simulation.now() == pytest.approx(12.0)
        with pytest.raises(Unreachable, match="silent for 7 s"):
            ask_from(simulation, 3)
        simulation.advance(20.0 - simulation.now())
        assert ask_from(simulation, 4) == Echo(number=8)
        assert losses(simulation, "server")[0] == (12.0, "client: silent for 7 s")
        assert len(list(simulation.trace.of("deliver", "server"))) == 2


def test_a_death_during_a_short_partition_is_heard_after_it_heals() -> None:
    with build(Faults().partition("eu", "us", during=(5.0, 8.0)).crash("server", at=6.0)) as simulation:
        ask_from(simulation, 1)
        simulation.advance(10.0)
        assert losses(simulation, "client") == [(8.0 + LATENCY, "server: its process died")]


def test_a_partition_of_nodes_leaves_others_alone() -> None:
    with build(Faults().partition(["server"], ["client"], during=(0.0, 100.0))) as simulation:
        simulation.node("other", site="us")
        simulation.advance(1.0)
        assert ask_from(simulation, 1, node="other") == Echo(number=2)
        with pytest.raises(Unreachable):
            ask_from(simulation, 2)


def test_a_restart_begins_a_new_life_and_old_links_are_reset() -> None:
    seen: list[EchoServer] = []

    def boot(world: World) -> object:
        seen.append(EchoServer())
        return Host(seen[-1], world, "echo")

    with Simulation(faults=Faults().crash("server", at=5.0, is_silent=True).restart("server", at=6.0)) as simulation:
        simulation.node("server", boot=boot)
        simulation.node("client")
        ask_from(simulation, 1)
        simulation.advance(10.0)
        assert ask_from(simulation, 2) == Echo(number=4)
        assert [role.num_seen for role in seen] == [1, 1]
        assert len(losses(simulation, "client")) == 1


def test_a_driver_dies_with_its_node() -> None:
    with build(Faults().crash("client", at=5.0), seconds=30.0) as simulation:
        ended: list[str] = []

        async def drive() -> None:
            try:
                await ask(simulation.world("client"), 1)
            finally:
                ended.append("ended")
                # A dead process cannot speak, whatever its code still tries.
                simulation.world("client").store.write("key", b"value")

        with pytest.raises(ProcessDied, match="client crashed at 5"):
            simulation.run(drive(), node="client")
        assert ended == ["ended"]
        assert simulation.world("client").store.read("key") is None


def kill_at(phase: str, kind: str) -> tuple[Simulation, list[object]]:
    """Ask three questions in a row; the server dies at that moment of the second, and is back a second later."""
    faults = Faults().crash("server", when=nth(kind, 2, phase), restart_after=1.0)
    simulation = build(faults, seconds=0.5)
    answers: list[object] = []
    for number in (1, 2, 3):
        try:
            answers.append(ask_from(simulation, number))
        except Unreachable as error:
            answers.append(error.reason)
            simulation.advance(2.0)
    return simulation, answers


@pytest.mark.parametrize("phase", ["deliver", "delivered"])
def test_a_kill_before_or_after_a_question_is_seen_loses_the_answer(phase: str) -> None:
    simulation, answers = kill_at(phase, "Probe")
    with simulation:
        assert answers == [Echo(number=2), "its process died", Echo(number=6)]
        seen = [event for event in simulation.trace.of("deliver", "server") if "Probe" in event.detail]
        assert len(seen) == (2 if phase == "deliver" else 3)


def test_a_kill_before_sending_loses_the_answer_and_after_sending_does_not() -> None:
    simulation, answers = kill_at("send", "Echo")
    with simulation:
        assert answers == [Echo(number=2), "its process died", Echo(number=6)]
    simulation, answers = kill_at("sent", "Echo")
    with simulation:
        # The answer was with the kernel; the link breaks behind it, when nobody waits any more, so that the third
        # question meets a server that is not back yet.
        assert answers[:2] == [Echo(number=2), Echo(number=4)]


def test_large_messages_of_a_process_that_dies_are_lost() -> None:
    topology = Topology(between=Link(latency_seconds=LATENCY, bytes_per_second=1e6))
    with Simulation(topology=topology, faults=Faults().crash("a", at=0.5)) as simulation:
        simulation.node("a", site="eu")
        simulation.node("x", site="us")
        with Mailbox(simulation.world("a"), "out") as out:
            out.send(Address(PeerId("x"), "in"), Probe(number=1, padding=bytes(2_000_000)))
            out.send(Address(PeerId("x"), "in"), Probe(number=2))

            async def receive() -> list[object]:
                got: list[object] = []
                with Mailbox(simulation.world("x"), "in") as inbox:
                    while (received := await inbox.receive(10.0)) is not None:
                        message = received[1]
                        got.append(message.number if isinstance(message, Probe) else message)
                return got

            assert simulation.run(receive()) == [2, PeerLost(PeerId("a"), "its process died")]


def test_slowness_is_charged_and_ends() -> None:
    with build(Faults().slow("server", factor=10.0, during=(5.0, 20.0)), seconds=1.0) as simulation:
        for start, seconds in [(0.0, 1.0), (6.0, 10.0), (21.0, 1.0)]:
            simulation.advance(start - simulation.now())
            ask_from(simulation, 1)
            assert simulation.now() - start == pytest.approx(seconds + 2 * LATENCY)


def test_sentences_and_their_mistakes() -> None:
    faults = Faults().crash("server-3", at=40).partition("eu", "us", during=(60, 90)).lose(0.03, during=(0, 9))
    assert str(faults) == (
        "server-3 crashes at 40 s; eu from us is cut off from 60 to 90 s; 3.0% of messages are lost from 0 to 9 s"
    )
    with pytest.raises(ValueError, match="at or when"):
        Faults().crash("server")
    with pytest.raises(ValueError, match="to a later one"):
        Faults().freeze("server", during=(5, 5))
    with pytest.raises(ValueError, match="two groups"):
        Faults().partition("eu", during=(1, 2))
    assert str(Faults.random(7, ["a", "b"], until=60)) == str(Faults.random(7, ["a", "b"], until=60))
    assert str(Faults.random(7, ["a", "b"], until=60)) != str(Faults.random(8, ["a", "b"], until=60))
