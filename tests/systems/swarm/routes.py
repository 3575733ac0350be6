"""Servers and questions for tests of routes."""

from collections.abc import Mapping
from typing import Any

from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.route import Route, best_route
from farflung.systems.swarm.route_costs import RouteConfig
from farflung.world.address import PeerId

CONFIG = RouteConfig()
A, B, C, D = (PeerId(name) for name in "abcd")
ROOMY = 10**6


def info(first: int, last: int, **changes: Any) -> ServerInfo:
    settings: dict[str, Any] = {
        "state": ServerState.ONLINE,
        "blocks_per_second": 1000.0,
        "forward_tokens_per_second": 10_000.0,
        "cache_tokens_left": ROOMY,
    } | changes
    return ServerInfo(
        model="m",
        model_name="m",
        blocks=BlockRange(first, last),
        cache_tokens_max=ROOMY,
        dtype="float32",
        started_at=0.0,
        version="1",
        **settings,
    )


def find(
    servers: Mapping[PeerId, ServerInfo], client: Mapping[PeerId, float] | None = None, last: int = 8, **changes: Any
) -> Route:
    settings: dict[str, Any] = {"tokens_needed": 100, "config": CONFIG} | changes
    found = best_route(servers, dict.fromkeys(servers, 0.01) if client is None else client, 0, last, **settings)
    assert isinstance(found, Route)
    assert len(found.reasons) == len(found.hops)
    assert all(found.reasons)
    return found
