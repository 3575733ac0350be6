"""One client's search for a route through many block servers: seconds of a core, and memory while it searches."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import dataclass
from random import Random

from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.route import Route, best_route
from farflung.world.address import PeerId

NUM_BLOCKS = 80
STRIDE = 13
"""From one server's first block to the next one's: few servers cover the model already."""
NUM_MEASURED = 50
"""Others to which a server has told its round-trip time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingCost:
    """What one search costs with so many servers."""

    num_nodes: int
    core_seconds: float
    peak_bytes: int
    num_hops: int


def servers(number: int) -> dict[PeerId, ServerInfo]:
    """Uneven servers: 4 to 20 of 80 blocks, lognormal speed, each of which has measured the way to some others."""
    random = Random("routing")
    peers = [PeerId(f"server-{index:05}") for index in range(number)]
    found: dict[PeerId, ServerInfo] = {}
    for index, peer in enumerate(peers):
        num_blocks = random.randint(4, 20)
        first = min(index * STRIDE % NUM_BLOCKS, NUM_BLOCKS - num_blocks)
        others = random.sample(peers, min(NUM_MEASURED, number))
        found[peer] = ServerInfo(
            model="model",
            model_name="model",
            blocks=BlockRange(first, first + num_blocks),
            state=ServerState.ONLINE,
            blocks_per_second=1000.0 * random.lognormvariate(0.0, 0.6),
            forward_tokens_per_second=10_000.0,
            cache_tokens_max=100_000,
            cache_tokens_left=random.randint(0, 100_000),
            queue_length=random.randint(0, 3),
            dtype="float32",
            round_trip_seconds={other: random.uniform(0.001, 0.2) for other in others},
            started_at=0.0,
            version="1",
        )
    return found


def measure(num_nodes: int) -> RoutingCost:
    """Search once for the time and once, slower, for the memory."""
    random = Random("client")
    known = servers(num_nodes)
    ways = {peer: random.uniform(0.001, 0.2) for peer in known}

    def search() -> Route:
        found = best_route(known, ways, 0, NUM_BLOCKS, tokens_needed=500, tokens_so_far=100)
        assert isinstance(found, Route)
        return found

    began = time.process_time()
    route = search()
    core_seconds = time.process_time() - began
    tracemalloc.start()
    search()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return RoutingCost(num_nodes=num_nodes, core_seconds=core_seconds, peak_bytes=peak_bytes, num_hops=len(route.hops))
