"""A server that moves to other blocks when the swarm is better off for it: its sessions go on while it loads.

claim -> agreement -> DRAINING, load the new blocks -> offer them -> the old ones stay until their sessions end
"""

import asyncio
from collections.abc import Callable, Mapping

from farflung.model.source import ModelSource
from farflung.model.span import Span
from farflung.runtime.memory import return_freed_memory
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.placement import PlacementConfig
from farflung.systems.swarm.rebalance import Action, Rebalancer
from farflung.systems.swarm.server import Server
from farflung.world.address import PeerId
from farflung.world.host import Host

DRAIN_SECONDS = 60.0
"""How long sessions may go on using the blocks that were left; then their clients replay elsewhere."""


class Mover:
    """Asks the placement policy for one server, and does what it says."""

    def __init__(
        self,
        peer: PeerId,
        source: ModelSource,
        server: Server,
        load: Callable[[BlockRange], Span],
        tell: Callable[[str], None],
    ) -> None:
        self._model = source.fingerprint
        self._rebalancer = Rebalancer(peer, source.num_blocks, PlacementConfig())
        self._server = server
        self._load = load
        self._tell = tell
        self._draining: asyncio.Task[None] | None = None

    def decide(self, servers: Mapping[PeerId, ServerInfo], now: float) -> bool:
        """Bring the claim up to date; True if it is time to go (then announce, and `move`)."""
        same = {peer: info for peer, info in servers.items() if info.model == self._model}
        decision = self._rebalancer.check(same, now)
        if decision.action is Action.STAY:
            self._server.moving_to = None
            return False
        self._server.moving_to = decision.target
        if decision.action is Action.CLAIM or self._is_draining:
            return False
        assert decision.target is not None
        self._server.state = ServerState.DRAINING
        self._tell(f"moves from blocks {self._server.blocks} to {decision.target}: {decision.reason}")
        return True

    @property
    def _is_draining(self) -> bool:
        return self._draining is not None and not self._draining.done()

    async def move(self, host: Host, now: Callable[[], float]) -> None:
        """Load the claimed blocks and offer them; sessions on the old ones go on meanwhile, and some time after."""
        target = self._server.moving_to
        assert target is not None
        span = await asyncio.to_thread(self._load, target)
        host.perform(self._server.replace_span(span, now()))
        self._server.state = ServerState.ONLINE
        self._server.moving_to = None
        self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        await asyncio.sleep(DRAIN_SECONDS)
        num_closed = self._server.forget_left_spans()
        await asyncio.to_thread(return_freed_memory)
        if num_closed:
            self._tell(f"dropped {num_closed} sessions that outlasted the move; their clients replay elsewhere")
