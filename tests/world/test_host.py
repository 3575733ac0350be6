"""A host carries out every effect of a role, in order, and nothing once it is stopped."""

import asyncio
from collections.abc import Sequence

import pytest

from farflung.sim import Simulation
from farflung.wire.message import Message
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact, Failed, World
from farflung.world.effects import Effect, Introduce, Note, Run, Send, WakeAt
from farflung.world.errors import PeerMisbehaved, Unreachable
from farflung.world.host import Host
from farflung.world.mailbox import MESSAGES_WAITING_MAX, Mailbox, PeerLost, call
from farflung.world.role import Role


class Order(Message, frozen=True, kw_only=True):
    """What a Scripted role is told to do."""

    what: str


class Done(Message, frozen=True, kw_only=True):
    """A Scripted role's answer."""

    what: str


class Scripted(Role):
    """Does what messages say and logs every event with its time."""

    def __init__(self) -> None:
        self.log: list[tuple[object, ...]] = []

    def start(self, now: float) -> Sequence[Effect]:
        self.log.append(("start", now))
        return [Note("started")]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        if not isinstance(message, Order):
            return ()
        self.log.append((message.what, now))
        match message.what:
            case "compute":
                return [Run("job", pow, (2, 10), 3.0), Send(source, Done(what="computing"))]
            case "fail":
                return [Run("bad", int, ("x",), 1.0)]
            case "sleep":
                return [WakeAt(now + 2.0), WakeAt(now + 2.0), WakeAt(now + 1.0)]
            case "lie":
                raise PeerMisbehaved(source.peer, "it told a lie")
            case _:
                return [Send(source, Done(what=message.what))]

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        self.log.append((job, result, now))
        return ()

    def wake(self, now: float) -> Sequence[Effect]:
        self.log.append(("wake", now))
        return ()

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        self.log.append(("lost", peer, now))
        return [Note(f"lost {peer}")]


class Scene:
    """A scripted role on "server", and a client."""

    def __init__(self) -> None:
        self.role = Scripted()
        self.simulation = Simulation()
        self.hosts: list[Host] = []
        self.simulation.node("server", boot=lambda world: self.hosts.append(Host(self.role, world, "scripted")))
        self.client: World = self.simulation.node("client")

    def __enter__(self) -> "Scene":
        return self

    def __exit__(self, *exception: object) -> None:
        self.simulation.close()

    def order(self, *orders: str) -> None:
        async def send() -> None:
            with Mailbox(self.client, "orders") as mailbox:
                for what in orders:
                    mailbox.send(Address(PeerId("server"), "scripted"), Order(what=what))

        self.simulation.run(send(), node="client")

    def notes(self) -> list[str]:
        return [event.detail for event in self.simulation.trace.of("note", "server")]


def test_computations_come_back_as_events_and_failures_as_values() -> None:
    with Scene() as scene:
        scene.order("compute", "fail")
        scene.simulation.advance(10.0)
        assert scene.role.log[0] == ("start", 0.0)
        job, result, time = scene.role.log[3]
        assert (job, result, time) == ("job", 1024, pytest.approx(3.0, abs=0.01))
        job, result, time = scene.role.log[4]
        assert job == "bad" and isinstance(result, Failed) and isinstance(result.error, ValueError)
        assert time == pytest.approx(4.0, abs=0.01)


def test_wakes_come_once_per_moment_and_at_it() -> None:
    with Scene() as scene:
        scene.order("sleep")
        scene.simulation.advance(10.0)
        asked_at = scene.role.log[1][1]
        assert isinstance(asked_at, float)
        assert scene.role.log[2:] == [("wake", asked_at + 1.0), ("wake", asked_at + 2.0)]


def test_a_peer_that_misbehaves_is_named_and_others_are_served() -> None:
    with Scene() as scene:
        scene.order("lie", "answer")
        scene.simulation.advance(1.0)
        assert scene.notes() == ["scripted: started", "scripted: client broke the protocol: it told a lie"]
        assert [entry[0] for entry in scene.role.log] == ["start", "lie", "answer"]


def test_a_lost_peer_is_an_event() -> None:
    with Scene() as scene:
        scene.order("answer")
        scene.simulation.advance(1.0)
        scene.simulation.crash("client")
        scene.simulation.advance(1.0)
        assert scene.role.log[-1][:2] == ("lost", "client")
        assert scene.notes()[-1] == "scripted: lost client"


def test_a_stopped_host_hears_and_does_nothing() -> None:
    with Scene() as scene:
        scene.order("sleep", "compute")
        scene.simulation.advance(0.5)
        scene.hosts[0].stop()
        seen = len(scene.role.log)
        scene.order("answer")
        scene.simulation.advance(20.0)
        scene.hosts[0].deliver(Address(PeerId("client"), "x"), Order(what="answer"))
        scene.hosts[0].lost(PeerId("client"), "gone")
        assert len(scene.role.log) == seen


def test_introductions_reach_the_network() -> None:
    class Introducing(Role):
        def start(self, now: float) -> Sequence[Effect]:
            return [Introduce(PeerId("server"), Contact(endpoints=("server:1",)))]

    with Simulation(must_introduce=True) as simulation:
        simulation.node("server", boot=lambda world: Host(Scripted(), world, "scripted"))
        world = simulation.node("client", boot=lambda world: Host(Introducing(), world, "introducing"))
        with Mailbox(world, "asking") as mailbox:
            question = call(mailbox, Address(PeerId("server"), "scripted"), Order(what="hello"), 5.0)
            assert simulation.run(question, node="client") == Done(what="hello")


# Mailboxes and calls


def test_a_mailbox_gives_messages_in_order_and_none_after_the_deadline() -> None:
    with Scene() as scene, Mailbox(scene.client, "asking") as mailbox:
        server = Address(PeerId("server"), "scripted")

        async def main() -> list[object]:
            for what in ("one", "two"):
                mailbox.send(server, Order(what=what))
            first, second = await mailbox.receive(5.0), await mailbox.receive(5.0)
            third = await mailbox.receive(5.0)
            assert scene.simulation.now() == 5.0
            return [first, second, third, await mailbox.receive(4.0)]

        assert scene.simulation.run(main(), node="client") == [
            (server, Done(what="one")),
            (server, Done(what="two")),
            None,
            None,
        ]
        assert mailbox.address == Address(PeerId("client"), "asking")


def test_a_broken_link_stands_in_the_mailbox() -> None:
    with Scene() as scene, Mailbox(scene.client, "asking") as mailbox:
        mailbox.send(Address(PeerId("server"), "scripted"), Order(what="compute"))
        scene.simulation.advance(1.0)
        scene.simulation.crash("server")
        scene.simulation.advance(1.0)

        async def main() -> list[object]:
            return [await mailbox.receive(9.0), await mailbox.receive(9.0)]

        answer, lost = scene.simulation.run(main(), node="client")
        assert answer == (Address(PeerId("server"), "scripted"), Done(what="computing"))
        assert lost == (Address(PeerId("server"), ""), PeerLost(PeerId("server"), "its process died"))


def test_a_call_ends_with_an_answer_a_loss_or_its_deadline() -> None:
    with Scene() as scene, Mailbox(scene.client, "asking") as mailbox:
        server = Address(PeerId("server"), "scripted")
        ask = scene.simulation.run
        assert ask(call(mailbox, server, Order(what="a"), 1.0), node="client") == Done(what="a")
        with pytest.raises(Unreachable, match="no answer before the deadline"):
            ask(call(mailbox, server, Order(what="sleep"), 2.0), node="client")
        assert scene.simulation.now() == 2.0
        scene.simulation.crash("server")
        with pytest.raises(Unreachable, match="died"):
            ask(call(mailbox, server, Order(what="b"), 9.0), node="client")


def test_a_call_does_not_take_an_older_message_or_loss_for_its_answer() -> None:
    with Scene() as scene, Mailbox(scene.client, "asking") as mailbox:
        server = Address(PeerId("server"), "scripted")
        mailbox.send(server, Order(what="old"))
        scene.simulation.advance(1.0)
        mailbox.lost(PeerId("server"), "long ago")
        question = call(mailbox, server, Order(what="new"), 9.0)
        assert scene.simulation.run(question, node="client") == Done(what="new")


def test_a_call_that_is_cancelled_leaves_its_mailbox_usable() -> None:
    with Scene() as scene, Mailbox(scene.client, "asking") as mailbox:
        server = Address(PeerId("server"), "scripted")

        async def main() -> object:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await call(mailbox, server, Order(what="sleep"), 100.0)
            return await call(mailbox, server, Order(what="a"), 100.0)

        assert scene.simulation.run(main(), node="client") == Done(what="a")


def test_a_flooded_mailbox_keeps_the_oldest_and_says_so() -> None:
    with Scene() as scene, Mailbox(scene.client, "asking") as mailbox:
        for number in range(MESSAGES_WAITING_MAX + 5):
            mailbox.deliver(Address(PeerId("server"), "scripted"), Done(what=str(number)))
        mailbox.lost(PeerId("server"), "gone")
        notes = list(scene.simulation.trace.of("note", "client"))
        assert len(notes) == 5 and "dropped a message of server/scripted" in notes[0].detail

        async def drain() -> list[object]:
            return [message for _ in range(MESSAGES_WAITING_MAX + 1) if (message := await mailbox.receive(0.0))]

        messages = scene.simulation.run(drain(), node="client")
        assert len(messages) == MESSAGES_WAITING_MAX + 1


def test_a_closed_mailbox_hears_nothing_and_frees_its_name() -> None:
    with Scene() as scene:
        server = Address(PeerId("server"), "scripted")
        with Mailbox(scene.client, "asking") as mailbox:
            mailbox.send(server, Order(what="a"))
        scene.simulation.advance(1.0)
        (nobody,) = scene.simulation.trace.of("nobody", "client")
        assert "-> asking Done" in nobody.detail
        (told,) = [event for event in scene.simulation.trace.of("deliver", "server") if "NoSuchActor" in event.detail]
        assert "client/asking -> scripted" in told.detail
        with Mailbox(scene.client, "asking"):
            pass
