"""Messages and a role that the tests of the simulator send around."""

from farflung.wire.message import Message
from farflung.world.address import Address
from farflung.world.effects import Effect, Run, Send
from farflung.world.role import Role


class Probe(Message, frozen=True, kw_only=True):
    """Asks for `number` doubled; `padding` gives it a size."""

    number: int
    padding: bytes = b""


class Echo(Message, frozen=True, kw_only=True):
    """Answers a Probe."""

    number: int


class EchoServer(Role):
    """Doubles numbers, charging `seconds` for each."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.num_seen = 0

    def receive(self, source: Address, message: object, now: float) -> list[Effect]:
        if not isinstance(message, Probe):
            return []
        self.num_seen += 1
        return [Run(source, lambda number: number * 2, (message.number,), self.seconds)]

    def finished(self, job: object, result: object, now: float) -> list[Effect]:
        assert isinstance(job, Address) and isinstance(result, int)
        return [Send(job, Echo(number=result))]
