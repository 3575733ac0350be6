"""`farflung status`: who serves which blocks, how fast, how busy, and which blocks lack servers."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from farflung.apps.announced import AnnouncedServers
from farflung.apps.wiring import Connection
from farflung.systems.swarm.accounting import Work
from farflung.systems.swarm.info import ServerInfo, ServerState
from farflung.world.address import PeerId

BAR_WIDTH_MAX = 100
SHORT_PEER = 8


def show_status(ticket: str, *, as_json: bool) -> None:
    """Join as a client, and print what the directory says.

    Raises:
        ValueError: a bad ticket.
        FarflungError: nobody of the swarm answers.
    """
    with Connection(ticket) as connection:
        announced = AnnouncedServers(connection.node.member)

        async def look() -> tuple[str, dict[PeerId, ServerInfo]]:
            return connection.node.node.ticket.swarm, dict(announced())

        swarm, servers = connection.bridge.run(look())
    models = {info.model: info.model_name for info in servers.values()}
    if as_json:
        print(json.dumps(summary(swarm, servers), indent=2))
        return
    console = Console()
    console.print(f"swarm {swarm}: {_count(len(servers), 'server')}, {_count(len(models), 'model')}")
    for fingerprint in sorted(models):
        _show_model(console, {peer: info for peer, info in servers.items() if info.model == fingerprint})


def coverage(servers: Sequence[ServerInfo]) -> list[int]:
    """How many servers that take sessions hold each block of one model, as far as its servers know how many it has."""
    counts = [0] * max((max(info.blocks.last, info.num_model_blocks) for info in servers), default=0)
    for info in servers:
        if info.state is ServerState.ONLINE:
            for block in range(*info.blocks):
                counts[block] += 1
    return counts


def summary(swarm: str, servers: Mapping[PeerId, ServerInfo]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "swarm": swarm,
        "servers": [
            {
                "peer": peer,
                "model": info.model_name,
                "fingerprint": info.model,
                "blocks": list(info.blocks),
                "state": info.state.value,
                "moving_to": list(info.moving_to) if info.moving_to is not None else None,
                "blocks_per_second": info.blocks_per_second,
                "queue_length": info.queue_length,
                "num_sessions": info.num_sessions,
                "cache_tokens_left": info.cache_tokens_left,
                "cache_tokens_max": info.cache_tokens_max,
                "dtype": info.dtype,
                "work": {
                    kind: {"seconds": spent.seconds, "num_tokens": spent.num_tokens}
                    for kind, spent in info.work.kinds()
                },
                "version": info.version,
            }
            for peer, info in servers.items()
        ],
    }


def _show_model(console: Console, servers: Mapping[PeerId, ServerInfo]) -> None:
    infos = list(servers.values())
    counts = coverage(infos)
    table = Table("server", "blocks", "state", "blocks/s", "queue", "sessions", "cache left", "dtype", "up", box=SIMPLE)
    table.title = f"{infos[0].model_name} ({infos[0].model[:SHORT_PEER]})"
    for peer, info in sorted(servers.items(), key=lambda one: (one[1].blocks, one[0])):
        state = info.state.value + (f" to {info.moving_to}" if info.moving_to is not None else "")
        table.add_row(
            peer[:SHORT_PEER],
            str(info.blocks),
            state,
            f"{info.blocks_per_second:.0f}",
            str(info.queue_length),
            str(info.num_sessions),
            f"{info.cache_tokens_left / info.cache_tokens_max:.0%} of {info.cache_tokens_max}",
            info.dtype,
            age(time.time() - info.started_at),
        )
    console.print(table)
    console.print(Text("servers per block: "), bar(counts))
    work = sum((info.work for info in infos), Work())
    if str(work):
        console.print(Text(f"devices used for: {work}"))
    missing = [block for block, count in enumerate(counts) if count == 0]
    if missing:
        console.print(Text(f"no server for {_count(len(missing), 'block')}: {ranges(missing)}", style="red"))


def bar(counts: Sequence[int]) -> Text:
    """One digit per block (the least of several, when there are more blocks than places): red 0, yellow 1, green 2+."""
    num_each = -(-len(counts) // BAR_WIDTH_MAX) or 1
    text = Text()
    for first in range(0, len(counts), num_each):
        count = min(counts[first : first + num_each])
        text.append(str(min(count, 9)), style="red" if count == 0 else "yellow" if count == 1 else "green")
    return text


def ranges(blocks: Sequence[int]) -> str:
    """Sorted blocks as ranges: 0:2, 5:6."""
    found: list[tuple[int, int]] = []
    for block in blocks:
        if found and found[-1][1] == block:
            found[-1] = (found[-1][0], block + 1)
        else:
            found.append((block, block + 1))
    return ", ".join(f"{first}:{last}" for first, last in found)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def age(seconds: float) -> str:
    seconds = max(0.0, seconds)
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"
