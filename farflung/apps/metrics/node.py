"""What a member of a swarm tells Prometheus: itself, its ways to others, its bytes, and the blocks that it serves."""

import asyncio
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from farflung.apps.announced import AnnouncedServers
from farflung.apps.metrics.families import counter, gauge
from farflung.apps.status import coverage
from farflung.apps.wiring import SwarmNode
from farflung.systems.swarm.info import ServerInfo, ServerState
from farflung.world.version import __version__

OnLoop = Callable[[Callable[[], list[Metric]]], list[Metric]]
"""Calls a function on the loop on which a node lives, from another thread."""
LOOP_SECONDS_MAX = 5.0


def on_running_loop() -> OnLoop:
    """Calls functions on the loop that runs here now."""
    loop = asyncio.get_running_loop()

    def call(function: Callable[[], list[Metric]]) -> list[Metric]:
        async def on_loop() -> list[Metric]:
            return function()

        return asyncio.run_coroutine_threadsafe(on_loop(), loop).result(LOOP_SECONDS_MAX)

    return call


class NodeCollector(Collector):
    """Reads a node at the time of asking."""

    def __init__(self, node: SwarmNode, on_loop: OnLoop) -> None:
        self._node = node
        self._on_loop = on_loop
        self._announced = AnnouncedServers(node.member)

    def collect(self) -> Iterable[Metric]:
        return self._on_loop(lambda: [*self._itself(), *self._ways(), self._bytes(), *self._served(), self._coverage()])

    def _itself(self) -> Iterator[Metric]:
        node = self._node.node
        info = {"peer": node.identity.peer, "swarm": node.ticket.swarm, "role": node.role, "version": __version__}
        yield gauge("farflung_node_info", "This node; the value is 1", list(info), [(list(info.values()), 1)])
        size = len(self._node.member.view)
        yield gauge("farflung_nodes", "Nodes of the swarm that this one sees, itself among them", [], [([], size)])

    def _ways(self) -> Iterator[Metric]:
        now = self._node.world.clock.now()
        others = [peer for peer in sorted(self._node.member.view) if peer != self._node.peer]
        table = self._node.surveyor.table
        round_trips = [([peer], table.distance(peer, now).round_trip_seconds) for peer in others]
        measured = [(labels, seconds) for labels, seconds in round_trips if seconds is not None]
        yield gauge("farflung_round_trip_seconds", "Round trip to another node, smoothed", ["peer"], measured)
        ahead = [([peer], seconds) for peer, seconds in self._node.member.clocks_ahead_seconds().items()]
        yield gauge("farflung_clock_ahead_seconds", "How far another node's clock is ahead", ["peer"], ahead)

    def _bytes(self) -> Metric:
        counts = sorted(self._node.world.traffic.num_bytes.items())
        values = [([peer, kind, "sent" if sent else "received"], number) for (peer, kind, sent), number in counts]
        what = "Bytes on the wire by peer, kind and direction"
        return counter("farflung_wire_bytes", what, ["peer", "kind", "direction"], values)

    def _served(self) -> Iterator[Metric]:
        info = self._announced().get(self._node.peer)
        if info is None:
            return
        for name, what, value in _server_values(info):
            yield gauge(f"farflung_server_{name}", what, ["model"], [([info.model_name], value)])
        work = [([info.model_name, kind], spent) for kind, spent in info.work.kinds()]
        seconds = [(labels, spent.seconds) for labels, spent in work]
        yield counter("farflung_server_work_seconds", "Time of its device, by use", ["model", "work"], seconds)
        tokens = [(labels, float(spent.num_tokens)) for labels, spent in work]
        yield counter("farflung_server_work_tokens", "Tokens that it computed, by use", ["model", "work"], tokens)

    def _coverage(self) -> Metric:
        infos = list(self._announced().values())
        models = sorted({info.model_name for info in infos})
        counts = [
            ([model, str(block)], count)
            for model in models
            for block, count in enumerate(coverage([info for info in infos if info.model_name == model]))
        ]
        what = "Servers that take sessions, of each block, as this node sees them"
        return gauge("farflung_block_servers", what, ["model", "block"], counts)


def _server_values(info: ServerInfo) -> Iterator[tuple[str, str, float]]:
    yield "online", "1 while it takes sessions", info.state is ServerState.ONLINE
    yield "blocks", "Blocks that it holds", info.blocks.num_blocks
    yield "blocks_per_second", "Blocks computed per second when decoding, as measured", info.blocks_per_second
    yield "queue_length", "Jobs that wait for its device", info.queue_length
    yield "sessions", "Sessions that it holds", info.num_sessions
    yield "cache_tokens_left", "Tokens of its cache that no session has been promised", info.cache_tokens_left
    yield "cache_tokens_max", "Tokens of its cache", info.cache_tokens_max
