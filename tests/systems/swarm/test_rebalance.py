"""Agreement on moves: servers with late and different views neither collide, nor flap, nor uncover a block."""

from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from bench.placement import uneven_servers
from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.systems.swarm.placement import (
    Holder,
    PlacementConfig,
    choose_blocks,
    holders,
    merit,
    num_holders,
    plan_moves,
)
from farflung.systems.swarm.rebalance import Action, Decision, Rebalancer, decide
from farflung.world.address import PeerId

CONFIG = PlacementConfig(quiet_seconds=20.0, settle_seconds=5.0, silence_seconds=30.0)
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def info(first: int, last: int, blocks_per_second: float = 1.0, **changes: Any) -> ServerInfo:
    settings: dict[str, Any] = {"state": ServerState.ONLINE} | changes
    return ServerInfo(
        model="m",
        model_name="m",
        blocks=BlockRange(first, last),
        blocks_per_second=blocks_per_second,
        forward_tokens_per_second=1.0,
        cache_tokens_max=1,
        cache_tokens_left=1,
        dtype="float32",
        started_at=0.0,
        version="1",
        **settings,
    )


def holder(peer: PeerId, first: int, last: int, **changes: Any) -> Holder:
    return replace(Holder(peer=peer, blocks=BlockRange(first, last), throughput=1.0), **changes)


def ask(peer: PeerId, *swarm: Holder, is_settled: bool = True, is_quiet: bool = True, **given: Any) -> Decision:
    return decide(peer, swarm, 8, is_settled=is_settled, is_quiet=is_quiet, config=CONFIG, **given)


# ---- one decision


def test_server_claims_then_goes_when_its_claim_has_settled() -> None:
    gap = (holder(A, 0, 4), holder(B, 0, 4))
    first = ask(A, *gap, is_settled=False)
    assert (first.action, first.target) == (Action.CLAIM, BlockRange(4, 8))
    claimed = (replace(gap[0], moving_to=first.target), gap[1])
    assert ask(A, *claimed, is_settled=False).action is Action.CLAIM
    assert ask(A, *claimed, is_settled=True).action is Action.GO
    assert ask(B, *claimed).action is Action.STAY


def test_of_two_claims_for_one_gap_exactly_one_goes_on() -> None:
    claimed = (holder(A, 0, 4, moving_to=BlockRange(4, 8)), holder(B, 0, 4, moving_to=BlockRange(4, 8)))
    decisions = {peer: ask(peer, *claimed) for peer in (A, B)}
    assert sorted(decision.action.value for decision in decisions.values()) == ["claim", "stay"]
    waiting = next(decision for decision in decisions.values() if decision.action is Action.CLAIM)
    assert waiting.waiting_for == (B if decisions[A] is waiting else A,)


def test_claims_of_a_plan_that_is_no_more_are_withdrawn() -> None:
    claimed = (holder(A, 0, 4, moving_to=BlockRange(4, 8)), holder(B, 0, 4), holder(C, 4, 8))
    assert ask(A, *claimed).action is Action.STAY


def test_nobody_plans_while_somebody_moves() -> None:
    swarm = (holder(A, 0, 4, moving_to=BlockRange(4, 8), is_moving=True), holder(B, 0, 4), holder(C, 0, 4))
    decision = ask(B, *swarm, holder(PeerId("d"), 0, 4))
    assert (decision.action, decision.reason) == (Action.STAY, "a is on the move")


def test_missing_block_is_planned_for_although_somebody_moves_or_came_lately() -> None:
    swarm = (holder(A, 0, 2, moving_to=BlockRange(2, 4), is_moving=True), holder(B, 0, 4), holder(C, 0, 4))
    actions = [ask(peer, *swarm, is_settled=False, is_quiet=False).action for peer in (B, C)]
    assert sorted(action.value for action in actions) == ["claim", "stay"]


def test_balance_waits_until_nobody_came_or_went() -> None:
    swarm = (holder(A, 0, 8), holder(B, 0, 4), holder(C, 0, 4))
    assert {ask(peer, *swarm, is_quiet=False).reason for peer in (A, B, C)} == {"servers came or went lately"}
    assert Action.CLAIM in {ask(peer, *swarm, is_settled=False).action for peer in (A, B, C)}


def test_server_stuck_on_its_way_is_not_waited_for() -> None:
    swarm = (holder(A, 0, 8, moving_to=BlockRange(0, 8), is_moving=True), holder(B, 0, 4), holder(C, 0, 4))
    assert {ask(peer, *swarm).action for peer in (B, C)} == {Action.STAY}
    assert Action.CLAIM in {ask(peer, *swarm, is_settled=False, stuck=(A,)).action for peer in (B, C)}


def test_claimant_leaves_its_blocks_only_while_another_serves_them() -> None:
    """Servers that still load count for the balance, but not as a replacement."""
    swarm = (
        holder(A, 0, 4, moving_to=BlockRange(4, 8)),
        holder(B, 0, 4, is_serving=False, is_movable=False),
        holder(C, 0, 4, moving_to=BlockRange(4, 8), is_moving=True),
    )
    loading = holder(PeerId("d"), 0, 4, is_serving=False, is_movable=False)
    waits = ask(A, *swarm, loading)
    assert (waits.action, waits.target) == (Action.CLAIM, BlockRange(4, 8))
    assert waits.reason == "some of its blocks have no other server until another has moved"
    assert ask(A, *swarm, replace(loading, is_serving=True)).action is Action.GO


def test_claimants_leave_one_after_another_where_they_serve_alone_together() -> None:
    claims = {"moving_to": BlockRange(4, 8)}
    swarm = (
        holder(A, 0, 4, **claims),
        holder(B, 0, 4, **claims),
        holder(C, 0, 4, moving_to=BlockRange(4, 8), is_moving=True),
        *(holder(PeerId(f"d{index}"), 0, 4, is_serving=False, is_movable=False) for index in range(4)),
    )
    assert [ask(peer, *swarm).action for peer in (A, B)] == [Action.GO, Action.CLAIM]


def test_claim_of_a_server_that_ignores_plans_holds_nobody_up() -> None:
    swarm = (holder(A, 0, 4, moving_to=BlockRange(4, 8)), holder(B, 0, 4, moving_to=BlockRange(2, 6)), holder(C, 0, 4))
    assert ask(A, *swarm).action is not Action.GO
    assert ask(A, *swarm, unmovable=(B, C)).action is Action.GO


# ---- the memory around it


def test_silent_servers_are_planned_around() -> None:
    servers = {A: info(0, 4), B: info(0, 4), C: info(0, 4)}
    rebalancers = {peer: Rebalancer(peer, 12, CONFIG) for peer in (A, B, C)}
    mute = None
    for second in range(0, 200, 2):
        for peer, rebalancer in rebalancers.items():
            decision = rebalancer.check(servers, float(second))
            if decision.action is Action.CLAIM and mute is None:
                mute = peer
            if peer == mute:
                continue
            if decision.action is Action.GO:
                assert second >= CONFIG.silence_seconds
                assert mute in (A, B, C)
                return
            servers[peer] = msgspec.structs.replace(servers[peer], moving_to=decision.target)
    pytest.fail("a silent server blocks all others for ever")


def test_own_move_and_leaving_need_no_decision() -> None:
    moving = info(0, 4, state=ServerState.DRAINING, moving_to=BlockRange(4, 8))
    for own in (moving, info(0, 4, state=ServerState.DRAINING)):
        assert Rebalancer(A, 8, CONFIG).check({A: own, B: info(0, 4)}, 0.0).action is Action.STAY


# ---- many servers, late views


class Swarm:
    """Servers that check at their own times and see each other's announcements late, each with its own delay."""

    NUM_BLOCKS = 40
    LOAD_SECONDS = 25.0

    def __init__(self, number: int, seed: int, *, delay_seconds_max: float, is_hasty: bool = False) -> None:
        self.random = Random(f"{seed}:swarm")
        self.is_hasty = is_hasty
        self.now = 0.0
        self.history: dict[PeerId, list[tuple[float, ServerInfo]]] = {}
        self.arrivals: dict[PeerId, float] = {}
        self.num_moves = 0
        self.uncovered_seconds = 0
        self.was_covered = False
        for peer, size, throughput in uneven_servers(number, seed):
            size = max(2, size // 2)
            first = self.random.randint(0, self.NUM_BLOCKS - size)
            self.history[peer] = [(-1000.0, info(first, first + size, float(f"{throughput:.1e}")))]
        self.rebalancers = {peer: Rebalancer(peer, self.NUM_BLOCKS, CONFIG) for peer in self.history}
        self.delays = {(a, b): self.random.uniform(0, delay_seconds_max) for a in self.history for b in self.history}
        self.due = {peer: self.random.uniform(0, 3.0) for peer in self.history}

    def seen(self, viewer: PeerId, now: float) -> dict[PeerId, ServerInfo]:
        """What `viewer` knows: others as they were some seconds ago."""
        return {
            peer: next(
                found
                for at, found in reversed(states)
                if at <= now - (0.0 if peer == viewer else self.delays[viewer, peer])
            )
            for peer, states in self.history.items()
        }

    def now_true(self) -> Mapping[PeerId, ServerInfo]:
        return {peer: states[-1][1] for peer, states in self.history.items()}

    def announce(self, peer: PeerId, **changes: Any) -> None:
        old = self.history[peer][-1][1]
        fresh = msgspec.structs.replace(old, **changes)
        if fresh != old:
            self.history[peer].append((self.now, fresh))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.5
            for peer, at in list(self.arrivals.items()):
                if at <= self.now:
                    del self.arrivals[peer]
                    target = self.history[peer][-1][1].moving_to
                    self.announce(peer, blocks=target, moving_to=None, state=ServerState.ONLINE)
            for peer, due in self.due.items():
                if due <= self.now and peer not in self.arrivals:
                    self.due[peer] = self.now + 3.0
                    self.act(peer)
            self.check_coverage()

    def act(self, peer: PeerId) -> None:
        decision = self.rebalancers[peer].check(self.seen(peer, self.now), self.now)
        self.announce(peer, moving_to=decision.target)
        if decision.action is Action.GO or (self.is_hasty and decision.action is Action.CLAIM):
            self.announce(peer, state=ServerState.DRAINING)
            self.arrivals[peer] = self.now + self.LOAD_SECONDS * self.random.uniform(0.5, 1.5)
            self.num_moves += 1

    def check_coverage(self) -> None:
        serving = [one for one in holders(self.now_true(), self.NUM_BLOCKS) if one.is_serving]
        is_covered = bool(num_holders(serving, self.NUM_BLOCKS).all())
        self.uncovered_seconds += self.was_covered and not is_covered
        self.was_covered |= is_covered

    def holders(self) -> tuple[Holder, ...]:
        return holders(self.now_true(), self.NUM_BLOCKS)


@pytest.mark.parametrize("seed", range(3))
def test_servers_with_late_views_agree_balance_and_come_to_rest(seed: int) -> None:
    swarm = Swarm(16, seed, delay_seconds_max=2.0)
    before = merit(swarm.holders(), swarm.NUM_BLOCKS)
    swarm.run(400)
    after = merit(swarm.holders(), swarm.NUM_BLOCKS)
    assert not swarm.arrivals
    assert all(one.moving_to is None for one in swarm.holders())
    assert after >= max(before, 0.6)
    assert swarm.uncovered_seconds == 0
    assert swarm.num_moves <= 2 * 16
    resting, num_moves = swarm.now_true(), swarm.num_moves
    swarm.run(100)
    assert (swarm.now_true(), swarm.num_moves) == (resting, num_moves)


def test_joined_agreement_is_worth_as_much_as_one_perfect_view() -> None:
    swarm = Swarm(16, 1, delay_seconds_max=2.0)
    planned = swarm.holders()
    while moves := plan_moves(planned, swarm.NUM_BLOCKS, CONFIG).moves:
        targets = {move.peer: move.target for move in moves}
        planned = tuple(replace(one, blocks=targets.get(one.peer, one.blocks)) for one in planned)
    swarm.run(400)
    assert merit(swarm.holders(), swarm.NUM_BLOCKS) >= 0.9 * merit(planned, swarm.NUM_BLOCKS)


def test_without_agreement_late_views_do_collide() -> None:
    """The check that the tests above can fail: servers that go as soon as they plan to."""
    assert any(hasty_uncovered_seconds(seed) > 0 for seed in range(6))


def hasty_uncovered_seconds(seed: int) -> int:
    hasty = Swarm(16, seed, delay_seconds_max=2.0, is_hasty=True)
    hasty.run(200)
    return hasty.uncovered_seconds


def test_joiner_uses_the_first_gap_also_beside_claims() -> None:
    claimed = holder(A, 0, 4, moving_to=BlockRange(4, 8))
    assert choose_blocks([claimed], 8, 4, 1.0)[0] == BlockRange(0, 4)
