"""When this server moves: a claim, agreement of all that the plan names, then the move.

    every server, now and then:   everybody's announcements -> the same plan
    a server that the plan moves: announces its claim (`moving_to`) and keeps serving
    claims stand a while, and are exactly the plan:  the claimants leave (DRAINING), in an order that uncovers no block
    somebody is on the move:      nobody makes new claims

Servers that saw different announcements made claims of different plans; as soon as they see each other's claims, the
plan is computed anew by all and the claims that are not in it are withdrawn, before anything was loaded. Invariant: a
move begins only towards a placement better than the present one by `PlacementConfig.gain_min`, so moves come to an end.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from farflung.systems.swarm.info import BlockRange, ServerInfo
from farflung.systems.swarm.placement import (
    Holder,
    PlacementConfig,
    Reason,
    holders,
    is_better,
    mask,
    num_holders,
    plan_moves,
)
from farflung.world.address import PeerId


class Action(enum.Enum):
    """What a server is to do about its placement now."""

    STAY = "stay"
    """Keep the blocks; withdraw a claim if there is one."""
    CLAIM = "claim"
    """Announce `target` in `moving_to`, or leave that announcement as it is, and go on serving."""
    GO = "go"
    """Announce DRAINING with `moving_to`, finish or hand over the sessions, load `target`, then announce it ONLINE."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, where to, and why."""

    action: Action
    reason: Reason
    target: BlockRange | None = None
    waiting_for: tuple[PeerId, ...] = ()
    """Servers whose claims are missing (or must be withdrawn) before this one may go."""


def decide(
    peer: PeerId,
    swarm: Sequence[Holder],
    num_blocks: int,
    *,
    is_settled: bool,
    is_quiet: bool,
    config: PlacementConfig,
    unmovable: Collection[PeerId] = (),
    stuck: Collection[PeerId] = (),
) -> Decision:
    """Should `peer` move now? Pure: the same announcements give the same answer everywhere.

    `is_settled` says whether its own claim has stood for `config.settle_seconds`, `is_quiet` that nobody came or
    went for `config.quiet_seconds`; `unmovable` are servers that ignored a plan, `stuck` those that have been on the
    move for too long to wait for.
    """
    claims = {one.peer: one.moving_to for one in swarm if one.moving_to is not None and not one.is_moving}
    travellers = [one.peer for one in swarm if one.is_moving and one.peer not in stuck]
    claimed = [replace(one, blocks=claims.get(one.peer, one.blocks)) for one in swarm]
    if travellers and num_holders(claimed, num_blocks).all():
        if peer in claims and is_better(claimed, swarm, num_blocks):
            return _go_in_turn(peer, claims, swarm, num_blocks, Reason("the plan it agreed to is under way"))
        return Decision(Action.STAY, Reason(f"{travellers[0][:12]} is on the move"))
    if not is_quiet and num_holders(swarm, num_blocks).all():
        return Decision(Action.STAY, Reason("servers came or went lately"))
    plan = plan_moves(swarm, num_blocks, config, unmovable)
    target = plan.target(peer)
    if target is None:
        return Decision(Action.STAY, plan.reason)
    wanted = {move.peer: move.target for move in plan.moves}
    waiting_for = tuple(
        one
        for one in sorted(wanted.keys() | claims.keys())
        if wanted.get(one) != claims.get(one) and one not in unmovable
    )
    if waiting_for or not is_settled:
        return Decision(Action.CLAIM, plan.reason, target, waiting_for)
    return _go_in_turn(peer, claims, swarm, num_blocks, plan.reason)


def _go_in_turn(
    peer: PeerId, claims: Mapping[PeerId, BlockRange], swarm: Sequence[Holder], num_blocks: int, reason: Reason
) -> Decision:
    """Go if no block loses its only server by it, also when all claimants before this one in order leave too.

    While some block has no server even counting those that load, no chain works and all may leave at once.
    """
    if not num_holders(swarm, num_blocks).all():
        return Decision(Action.GO, reason, claims[peer])
    serving_B = num_holders([one for one in swarm if one.is_serving and not one.is_moving], num_blocks)
    blocks = {one.peer: one.blocks for one in swarm}
    for claimant in sorted(claims):
        leaving_B = mask(blocks[claimant], num_blocks)
        if (serving_B[leaving_B > 0] > 1).all():
            if claimant == peer:
                return Decision(Action.GO, reason, claims[peer])
            serving_B -= leaving_B
    others = Reason("some of its blocks have no other server until another has moved")
    return Decision(Action.CLAIM, others, claims[peer])


class Rebalancer:
    """`decide` with the little memory it needs: since when claims stand, who ignores plans, who is stuck on the way.

    Ask `check` every few seconds, and more often than `settle_seconds` while it answers CLAIM.
    """

    def __init__(self, peer: PeerId, num_blocks: int, config: PlacementConfig) -> None:
        self._peer = peer
        self._num_blocks = num_blocks
        self._config = config
        self._claim: tuple[BlockRange, float] | None = None
        self._silent_until: dict[PeerId, float] = {}
        self._travels: dict[PeerId, tuple[BlockRange, float]] = {}
        self._peers: tuple[tuple[PeerId, ...], float] | None = None

    def check(self, servers: Mapping[PeerId, ServerInfo], now: float) -> Decision:
        """What to do now, given the announcements of all servers of the model (this one's included).

        `now` is in seconds on a clock that never jumps.
        """
        swarm = holders(servers, self._num_blocks)
        own = next((one for one in swarm if one.peer == self._peer), None)
        if own is None or own.is_moving:
            return Decision(Action.STAY, Reason("it is on the move itself, or leaves"))
        self._note_travels(swarm, now)
        stuck = [one for one, (_, since) in self._travels.items() if now - since >= self._config.move_seconds_max]
        self._silent_until = {one: until for one, until in self._silent_until.items() if now < until}
        claimed_seconds = self._claimed_seconds(own, now)
        decision = decide(
            self._peer,
            swarm,
            self._num_blocks,
            is_settled=claimed_seconds >= self._config.settle_seconds,
            is_quiet=self._quiet_seconds(swarm, now) >= self._config.quiet_seconds,
            config=self._config,
            unmovable=self._silent_until,
            stuck=stuck,
        )
        if decision.waiting_for and claimed_seconds >= self._config.silence_seconds:
            until = now + 10 * self._config.silence_seconds
            self._silent_until.update(dict.fromkeys(decision.waiting_for, until))
            self._claim = None
            return self.check(servers, now)
        return decision

    def _claimed_seconds(self, own: Holder, now: float) -> float:
        """How long the claim that this server announces has stood unchanged."""
        if own.moving_to is None:
            self._claim = None
            return 0.0
        if self._claim is None or self._claim[0] != own.moving_to:
            self._claim = (own.moving_to, now)
        return now - self._claim[1]

    def _quiet_seconds(self, swarm: Sequence[Holder], now: float) -> float:
        """How long the servers have been the same."""
        peers = tuple(one.peer for one in swarm)
        if self._peers is None or self._peers[0] != peers:
            self._peers = (peers, now)
        return now - self._peers[1]

    def _note_travels(self, swarm: Sequence[Holder], now: float) -> None:
        places = {one.peer: one.place for one in swarm if one.is_moving}
        known = self._travels
        self._travels = {
            peer: known[peer] if peer in known and known[peer][0] == place else (place, now)
            for peer, place in places.items()
        }
