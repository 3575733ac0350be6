"""A node as a process of its own, for tests: it answers questions, tells what happens to it, and obeys orders.

    python -m tests.runtime.echo HOME TICKET_FILE [--found] [--dial-only]

One JSON object a line, both ways. Out: {"ready": peer, "endpoints": [...]}, {"got": number, "num_bytes": n, "peer": p},
{"answer": number, "num_bytes": n, "peer": p}, {"lost": peer, "reason": text}, {"linked": peer, "is_linked": bool}. In:
{"ask": peer, "number": n, "num_bytes": n, "num_bytes_back": n}, {"introduce": peer, "endpoints": [...],
"relays": [...]}, {"link": peer}. The end of the input ends the node.
"""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from farflung.runtime.node import RealNode, open_node
from farflung.wire.message import Message
from farflung.world.address import Address, PeerId
from farflung.world.doors import Contact

ACTOR = "echo"


class RuntimeQuestion(Message):
    """Answered with `num_bytes_back` bytes."""

    number: int
    data: bytes = b""
    num_bytes_back: int = 0


class RuntimeAnswer(Message):
    """To a RuntimeQuestion."""

    number: int
    data: bytes


class Echo:
    """An actor that answers questions, and records what it sees."""

    def __init__(self, node: RealNode) -> None:
        self._node = node
        self.seen: list[dict[str, object]] = []
        node.network.listen(ACTOR, self)

    def ask(self, peer: PeerId, number: int, num_bytes: int = 0, num_bytes_back: int = 0) -> None:
        """Send a question."""
        question = RuntimeQuestion(number=number, data=bytes(num_bytes), num_bytes_back=num_bytes_back)
        self._node.network.send(ACTOR, Address(peer, ACTOR), question)

    def record(self, **what: Any) -> None:
        """Something happened."""
        self.seen.append(what)

    def deliver(self, source: Address, message: object) -> None:
        match message:
            case RuntimeQuestion(number=number, data=data, num_bytes_back=num_bytes_back):
                self.record(got=number, num_bytes=len(data), peer=source.peer)
                answer = RuntimeAnswer(number=number, data=bytes(num_bytes_back))
                self._node.network.send(ACTOR, source, answer)
            case RuntimeAnswer(number=number, data=data):
                self.record(answer=number, num_bytes=len(data), peer=source.peer)
            case other:
                self.record(other=type(other).__name__, peer=source.peer)

    def lost(self, peer: PeerId, reason: str) -> None:
        self.record(lost=peer, reason=reason)

    def answers(self) -> list[object]:
        """Numbers of the answers so far, in order."""
        return [entry["answer"] for entry in self.seen if "answer" in entry]

    def losses(self) -> list[tuple[object, str]]:
        """(peer, reason) of the losses so far."""
        return [(entry["lost"], str(entry["reason"])) for entry in self.seen if "lost" in entry]


class TellingEcho(Echo):
    """Writes what it records."""

    def record(self, **what: Any) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


async def obey(node: RealNode, echo: Echo, order: dict[str, object]) -> None:
    """One order."""
    match order:
        case {"ask": str(peer), "number": int(number), "num_bytes": int(there), "num_bytes_back": int(back)}:
            echo.ask(PeerId(peer), number, there, back)
        case {"introduce": str(peer), "endpoints": list(endpoints), "relays": list(relays)}:
            contact = Contact(endpoints=tuple(map(str, endpoints)), relays=tuple(PeerId(str(r)) for r in relays))
            node.network.introduce(PeerId(peer), contact)
        case {"link": str(peer)}:
            echo.record(linked=peer, is_linked=await node.network.linked(PeerId(peer), 60.0))
        case _:
            raise AssertionError(f"an unknown order: {order}")


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("ticket_file", type=Path)
    parser.add_argument("--found", action="store_true")
    parser.add_argument("--dial-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.found:
        node = await open_node(new_swarm="test", home=arguments.home)
        arguments.ticket_file.write_text(node.ticket.text())
    else:
        ticket = arguments.ticket_file.read_text()
        node = await open_node(ticket=ticket, home=arguments.home, is_dial_only=arguments.dial_only)
    echo = TellingEcho(node)
    echo.record(ready=node.identity.peer, endpoints=node.endpoints)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await obey(node, echo, json.loads(line))
    await node.close()


if __name__ == "__main__":
    asyncio.run(main())
