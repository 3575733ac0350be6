"""What a session's steps spend their time on, and advice that follows from it."""

import pytest

from farflung.systems.swarm.explain import HopTimes, RecentSteps, RouteReport, StepTimes, advise
from farflung.systems.swarm.info import BlockRange
from farflung.world.address import PeerId
from tests.systems.swarm.routes import A, B, C, info


def step(seconds: float, *hops: HopTimes, num_positions: int = 1, num_replaced: int = 0) -> StepTimes:
    return StepTimes(seconds, num_replaced, 0, num_positions, {hop.blocks: hop for hop in hops})


def hop(peer: PeerId, first: int, last: int, compute: float, queue: float = 0.0) -> HopTimes:
    return HopTimes(peer, BlockRange(first, last), compute, queue)


def test_means_are_of_the_newest_chain_and_of_decode_steps() -> None:
    recent = RecentSteps()
    assert recent.report({}) is None
    recent.add(step(9.0, hop(A, 0, 4, 4.0), hop(B, 4, 8, 4.0), num_positions=500))
    prompt = recent.report({})
    assert prompt is not None and prompt.seconds_per_step == 9.0 and prompt.advice is None
    recent.add(step(5.0, hop(A, 0, 4, 0.1), hop(C, 4, 8, 0.1)))
    for seconds in (1.0, 3.0):
        recent.add(step(seconds, hop(A, 0, 4, seconds / 10, 0.2), hop(B, 4, 8, 0.1)))
    recent.add(step(70.0, hop(B, 4, 8, 0.1)))  # the others have not told theirs yet
    recent.add(step(80.0, hop(A, 0, 4, 9.0), hop(B, 4, 8, 9.0), num_replaced=1))
    report = recent.report({})
    assert report is not None and report.seconds_per_step == 2.0
    assert report.hops == (hop(A, 0, 4, pytest.approx(0.2), 0.2), hop(B, 4, 8, 0.1))  # pyright: ignore[reportArgumentType]
    assert report.way_seconds == pytest.approx(1.5)


def test_only_the_newest_steps_count() -> None:
    recent = RecentSteps()
    for number in range(100):
        recent.add(step(1.0 if number < 60 else 2.0, hop(A, 0, 8, 0.1)))
    report = recent.report({})
    assert report is not None and report.seconds_per_step == 2.0


def test_a_slow_hop_wants_one_more_server() -> None:
    # 8 blocks at 10 blocks a second take 0.8 s; on a server as fast as the fastest (1000) 0.008.
    report = RouteReport((hop(A, 0, 4, 0.1), hop(B, 4, 12, 0.8)), 1.0)
    servers = {A: info(0, 4), B: info(4, 12, blocks_per_second=10.0)}
    assert advise(report, servers) == "one more server on blocks 4:12: 4.8x"


def test_a_queue_is_shared_with_one_more() -> None:
    report = RouteReport((hop(A, 0, 4, 0.1), hop(B, 4, 8, 0.1, queue=0.7)), 1.0)
    servers = {A: info(0, 4, blocks_per_second=40.0), B: info(4, 8, blocks_per_second=40.0)}
    assert advise(report, servers) == "one more server on blocks 4:8: 1.5x"
    shared = servers | {C: info(0, 8, blocks_per_second=40.0)}
    assert advise(RouteReport(report.hops, 1.0), shared) == "one more server on blocks 4:8: 1.3x"


def test_a_way_is_saved_where_one_server_can_hold_what_two_do() -> None:
    report = RouteReport((hop(A, 0, 4, 0.1), hop(B, 4, 8, 0.1)), 0.5)
    servers = {A: info(0, 4, blocks_per_second=40.0), B: info(4, 8, blocks_per_second=40.0)}
    assert advise(report, servers) is None
    larger = servers | {C: info(0, 8, blocks_per_second=40.0)}
    assert advise(report, larger) == "one server for all of blocks 0:8: 1.2x"


def test_far_chains_are_told_to_guess_unless_they_do() -> None:
    report = RouteReport((hop(A, 0, 8, 0.1),), 1.0)
    servers = {A: info(0, 8, blocks_per_second=80.0)}
    assert advise(report, servers) == "90% of it is the way: guess ahead (--draft)"
    assert advise(report, servers, is_guessing=True) is None


def test_a_report_is_one_line_of_ascii() -> None:
    peer = PeerId("0123456789abcdef")
    report = RouteReport((hop(peer, 0, 16, 0.012, 0.003), hop(A, 16, 32, 0.02)), 0.09, "one more server: 1.8x")
    text = str(report)
    assert text == "01234567[0:16] 12+3ms, a[16:32] 20+0ms; way 55ms; step 90ms; one more server: 1.8x"
    assert text.isascii()
