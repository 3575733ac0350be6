"""The ends of a file transfer as processes of their own, for tests that kill them.

    python -m tests.runtime.transferring give HOME TICKET_FILE PORT FILE       founds a swarm, writes its ticket
    python -m tests.runtime.transferring take HOME TICKET_FILE PORT FILE       PORT: where the giver is reached

The giver prints its port, the taker "DONE TOTAL" after each chunk and "whole" at the end.
"""

import asyncio
import contextlib
import sys
from pathlib import Path

from farflung.runtime.giver import Giver
from farflung.runtime.node import open_node
from farflung.runtime.taker import take
from farflung.world.address import Address
from farflung.world.doors import Contact


async def give(home: Path, ticket_file: Path, port: int, path: Path) -> None:
    node = await open_node(new_swarm="transfer", home=home, port=port)
    giver = Giver(node.world, "files", {"weights": path})
    with contextlib.suppress(FileExistsError), open(ticket_file, "x") as file:  # noqa: ASYNC230 (nothing else runs yet)
        file.write(node.ticket.text())
    tell(node.endpoints[0].rsplit(":", 1)[1])
    await asyncio.to_thread(sys.stdin.read)
    giver.close()
    await node.close()


async def fetch(home: Path, ticket_file: Path, port: int, path: Path) -> None:
    text = await asyncio.to_thread(ticket_file.read_text)
    node = await open_node(ticket=text, home=home, is_dial_only=True)
    giver = node.ticket.meetings[0].peer
    node.network.introduce(giver, Contact(endpoints=(f"127.0.0.1:{port}",)))
    await take(node.world, Address(giver, "files"), "weights", path, progress=tell)
    tell("whole")
    await node.close()


def tell(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    ends = {"give": give, "take": fetch}
    asyncio.run(ends[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
