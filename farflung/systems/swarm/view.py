"""What a client knows of the swarm that serves its model: servers, which of them to avoid, and how to get a route."""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec

from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.messages import Hop
from farflung.systems.swarm.route import MissingBlocks, Route, best_route
from farflung.world.address import PeerId
from farflung.world.doors import Random, World
from farflung.world.errors import FarflungError
from farflung.world.mailbox import Mailbox

LOOK_AGAIN_SECONDS = 0.25
BAN_GROWTH = 2.0
RETRIES_PER_BAN = 15.0
"""A server that alone holds some blocks is tried again after this part of its ban: 1 s of 15."""
BAN_SECONDS_MAX = 240.0


class NoRoute(FarflungError):
    """No reachable server holds some of the model's blocks."""


@dataclass(slots=True)
class _Ban:
    since: float
    seconds: float
    reason: str

    @property
    def until(self) -> float:
        return self.since + self.seconds

    @property
    def retry_at(self) -> float:
        """From when on it is tried again if nobody else holds its blocks."""
        return self.since + self.seconds / RETRIES_PER_BAN


@dataclass(slots=True)
class SwarmView:
    """The servers of one model, as one client sees them; shared by its sessions."""

    world: World
    model: str
    """Fingerprint of the weights."""
    num_blocks: int
    hidden_size: int
    announced: Callable[[], Mapping[PeerId, ServerInfo]]
    """The swarm directory's records as of now."""
    bytes_per_hidden_value: int = 4
    on_wait: Callable[[str, float], None] = lambda sentence, seconds_left: None
    """Told once per look while a session waits for missing blocks."""
    _bans: dict[PeerId, _Ban] = field(default_factory=dict[PeerId, _Ban])
    _lone: set[BlockRange] = field(default_factory=set[BlockRange])
    """Blocks of which it was said that they have no second holder."""
    _under_way: Counter[PeerId] = field(default_factory=Counter[PeerId])
    _names: Random = field(init=False)

    def __post_init__(self) -> None:
        self._names = self.world.random(f"names for model {self.model}")

    @contextmanager
    def under_way(self, hops: Sequence[Hop]) -> Generator[None]:
        """Within the block a request of this client is on its way through these servers: others wait behind it."""
        peers = [hop.peer for hop in hops]
        self._under_way.update(peers)
        try:
            yield
        finally:
            self._under_way.subtract(peers)

    def new_name(self) -> str:
        """A name that nobody guesses, for a session or a request."""
        return f"{self._names.getrandbits(128):032x}"

    def servers(self) -> dict[PeerId, ServerInfo]:
        """Servers of this very model that take sessions, in order of their ids."""
        found = self.announced()
        return {
            peer: found[peer]
            for peer in sorted(found)
            if found[peer].model == self.model and found[peer].state is ServerState.ONLINE
        }

    def ban(self, peer: PeerId, reason: str, seconds: float) -> None:
        """Avoid a server for a while; longer each time it fails again."""
        now = self.world.clock.now()
        previous = self._bans.get(peer)
        if previous is not None and now < previous.until + previous.seconds:
            seconds = min(BAN_SECONDS_MAX, max(seconds, BAN_GROWTH * previous.seconds))
        self._bans[peer] = _Ban(now, seconds, reason)

    def forgive(self, peer: PeerId) -> None:
        """What a server failed with is over."""
        self._bans.pop(peer, None)

    def banned(self, *, is_last_resort: bool = False) -> set[PeerId]:
        """Servers to avoid now; as a last resort, only those that failed a moment ago."""
        now = self.world.clock.now()
        return {peer for peer, ban in self._bans.items() if now < (ban.retry_at if is_last_resort else ban.until)}

    def is_usable(self, peer: PeerId) -> bool:
        """Whether a server takes sessions, as far as is known, and is not to be avoided."""
        return peer in self.servers() and peer not in self.banned()

    def route(
        self, first: int, last: int, *, num_tokens: int, num_positions: int = 0, is_hop_per_block: bool = False
    ) -> Route | MissingBlocks:
        """The fastest chain for blocks [first, last); servers that failed lately only where nobody else holds them."""
        for is_last_resort in (False, True):
            banned = self.banned(is_last_resort=is_last_resort)
            route = self._route(banned, first, last, num_tokens, num_positions, is_hop_per_block)
            if isinstance(route, Route):
                break
        return route

    def _route(
        self,
        banned: AbstractSet[PeerId],
        first: int,
        last: int,
        num_tokens: int,
        num_positions: int,
        is_hop_per_block: bool,
    ) -> Route | MissingBlocks:
        servers = {
            peer: msgspec.structs.replace(info, queue_length=info.queue_length + self._under_way[peer])
            for peer, info in self.servers().items()
            if peer not in banned
        }
        times = {peer: self.world.network.round_trip_seconds(peer) for peer in servers}
        return best_route(
            servers,
            {peer: seconds for peer, seconds in times.items() if seconds is not None},
            first,
            last,
            tokens_needed=num_tokens,
            tokens_so_far=num_positions,
            is_hop_per_block=is_hop_per_block,
        )

    def find_standby(
        self, first: int, last: int, *, without: AbstractSet[PeerId], num_tokens: int, num_positions: int
    ) -> PeerId | None:
        """The server that would best take over blocks [first, last) as a whole; None, said once, if there is none."""
        blocks = BlockRange(first, last)
        others = {peer: info for peer, info in self.servers().items() if info.blocks.covers(blocks)}
        avoided = self.banned() | without | (self.servers().keys() - others.keys())
        route = self._route(avoided, first, last, num_tokens, num_positions, is_hop_per_block=False)
        if isinstance(route, Route):
            return route.hops[0].peer
        if len(others) < 2 and blocks not in self._lone:
            self._lone.add(blocks)
            self.world.note("standby", f"blocks {blocks} have no second holder: nobody stands by for them")
        return None

    async def find_hops(
        self,
        mailbox: Mailbox,
        first: int,
        last: int,
        *,
        num_tokens: int,
        num_positions: int,
        is_hop_per_block: bool,
        wait_seconds_max: float,
    ) -> tuple[Hop, ...]:
        """A chain for blocks [first, last); waits for servers to come (back) if some block has none.

        Messages that reach `mailbox` while it waits are about servers given up; they are dropped.

        Raises:
            NoRoute: some blocks had no reachable server for `wait_seconds_max`; the sentence names them.
        """
        give_up_at = self.world.clock.now() + wait_seconds_max
        while True:
            route = self.route(
                first, last, num_tokens=num_tokens, num_positions=num_positions, is_hop_per_block=is_hop_per_block
            )
            if isinstance(route, Route):
                return tuple(Hop(hop.peer, hop.first, hop.last) for hop in route.hops)
            now = self.world.clock.now()
            if now >= give_up_at:
                raise NoRoute(f"{route} {self._reasons()}".strip())
            self.on_wait(str(route), give_up_at - now)
            while await mailbox.receive(min(give_up_at, now + LOOK_AGAIN_SECONDS)) is not None:
                pass

    def _reasons(self) -> str:
        banned = [f"{peer[:12]} ({self._bans[peer].reason})" for peer in sorted(self.banned())]
        return f"Servers that failed lately: {', '.join(banned)}." if banned else ""
