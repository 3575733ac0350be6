"""Effects on what survives a crash: in order, before what follows them, and a disk that fails stops the role."""

from collections.abc import Sequence

from farflung.sim.simulation import Simulation
from farflung.wire.message import Message
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Append, Delete, Drop, Effect, Load, Note, Save, Send
from farflung.world.host import Host
from farflung.world.mailbox import Mailbox
from farflung.world.role import Role

JOURNAL = "numbers"


class Keep(Message):
    """Write a number down and answer."""

    number: int


class Kept(Message):
    """It is written down."""

    number: int


class Keeping(Role):
    """Keeps numbers in a journal, and the newest one in the store."""

    def __init__(self) -> None:
        self.loaded: list[object] = []

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        assert isinstance(message, Keep)
        number = bytes([message.number])
        return [
            Append(JOURNAL, number),
            Save("newest", number),
            Load("newest", "newest"),
            Load("none", "none"),
            Send(source, Kept(number=message.number)),
        ]

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        self.loaded.append((job, result))
        return [Note(f"loaded {job}")]


def keep(simulation: Simulation, *numbers: int) -> list[object]:
    """Ask the role to keep numbers; returns the answers that come within a second."""

    async def ask() -> list[object]:
        answers: list[object] = []
        with Mailbox(simulation.world("client"), "client") as mailbox:
            for number in numbers:
                mailbox.send(Address(PeerId("server"), "keeping"), Keep(number=number))
            deadline = simulation.now() + 1.0
            while (received := await mailbox.receive(deadline)) is not None:
                answers.append(received[1])
        return answers

    return simulation.run(ask(), node="client")


def test_what_is_answered_is_durable_and_can_be_read_back() -> None:
    role = Keeping()
    with Simulation() as simulation:
        simulation.node("server", boot=lambda world: Host(role, world, "keeping"))
        simulation.node("client")
        assert keep(simulation, 1, 2) == [Kept(number=1), Kept(number=2)]
        simulation.crash("server", is_silent=True)
        simulation.restart("server")
        world = simulation.world("server")
        assert list(world.journal(JOURNAL).records()) == [b"\x01", b"\x02"]
        assert world.store.read("newest") == b"\x02"
    assert role.loaded == [("newest", b"\x01"), ("none", None), ("newest", b"\x02"), ("none", None)]


def test_records_and_values_can_be_forgotten() -> None:
    class Forgetting(Role):
        def start(self, now: float) -> Sequence[Effect]:
            numbers = [Append(JOURNAL, bytes([number])) for number in range(4)]
            return [*numbers, Drop(JOURNAL, 3), Save("a", b"1"), Save("b", b"2"), Delete("a"), Delete("never there")]

    with Simulation() as simulation:
        world = simulation.node("server", boot=lambda world: Host(Forgetting(), world, "forgetting"))
        assert list(world.journal(JOURNAL).records()) == [b"\x03"]
        assert world.store.keys() == ["b"]


def test_a_disk_that_fails_stops_the_role_before_it_answers() -> None:
    worlds: list[World] = []
    failures: list[OSError] = []

    def boot(world: World) -> Host:
        worlds.append(world)
        return Host(Keeping(), world, "keeping", failures.append)

    with Simulation() as simulation:
        simulation.node("server", boot=boot)
        simulation.node("client")
        assert keep(simulation, 1) == [Kept(number=1)]

        def full(key: str, value: bytes) -> None:
            raise OSError(28, "No space left on device")

        worlds[0].store.write = full
        assert [type(answer).__name__ for answer in keep(simulation, 2)] == []
        (note,) = [event for event in simulation.trace.of("note", "server") if "disk fails" in event.detail]
        assert "No space left on device" in note.detail
        assert [error.errno for error in failures] == [28]
        assert [type(answer).__name__ for answer in keep(simulation, 3)] == ["NoSuchActor"]
