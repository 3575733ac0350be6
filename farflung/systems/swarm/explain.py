"""Where the time of a session's steps goes, and what would make it faster (pure).

A step takes what its servers compute, what it waits in their queues, and the ways between them. Advice weighs changes
by the step's time with and without them: one more server for the blocks of a hop, or one server in the place of two
neighbours, which saves a way. Where most of the time is the way, guessing ahead comes first.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from farflung.systems.swarm.info import BlockRange, ServerInfo
from farflung.world.address import PeerId

STEPS_MAX = 32
DECODE_POSITIONS_MAX = 16
"""A step of more positions is part of a prompt."""
PEER_CHARACTERS = 8
WORTHWHILE = 1.1
"""Less of a speed-up is not worth a server."""
FAR_SHARE = 0.6
"""From this share of a step on the way, guessing ahead helps most."""


@dataclass(frozen=True, slots=True)
class HopTimes:
    """What one server took of a step."""

    peer: PeerId
    blocks: BlockRange
    compute_seconds: float
    queue_seconds: float


@dataclass(slots=True)
class StepTimes:
    """Where the seconds of a step went."""

    seconds: float = 0.0
    num_replaced: int = 0
    """Servers replaced during the step."""
    num_replayed: int = 0
    """Positions before the newest that servers were sent again."""
    num_positions: int = 0
    hops: dict[BlockRange, HopTimes] = field(default_factory=dict[BlockRange, HopTimes])

    @property
    def compute_seconds(self) -> float:
        """Sum over servers."""
        return sum(hop.compute_seconds for hop in self.hops.values())

    @property
    def queue_seconds(self) -> float:
        """Sum over servers."""
        return sum(hop.queue_seconds for hop in self.hops.values())

    def add(self, hop: HopTimes) -> None:
        """A server told what it took, of the step or of a piece of it."""
        before = self.hops.get(hop.blocks)
        if before is not None:
            computing = before.compute_seconds + hop.compute_seconds
            hop = replace(hop, compute_seconds=computing, queue_seconds=before.queue_seconds + hop.queue_seconds)
        self.hops[hop.blocks] = hop

    @property
    def is_complete(self) -> bool:
        """Whether all servers of an undisturbed chain have told their times."""
        ends = [0, *(blocks.last for blocks in sorted(self.hops))]
        return not self.num_replaced and [blocks.first for blocks in sorted(self.hops)] == ends[:-1] != []

    @property
    def chain(self) -> dict[BlockRange, PeerId]:
        """Who computed which blocks."""
        return {blocks: hop.peer for blocks, hop in self.hops.items()}


@dataclass(frozen=True, slots=True)
class RouteReport:
    """The chain that a session runs on, and the mean times of its newest steps."""

    hops: tuple[HopTimes, ...]
    seconds_per_step: float
    advice: str | None = None
    """What would make it faster, and how much."""

    @property
    def way_seconds(self) -> float:
        """Per step, of what the servers did not compute or queue."""
        busy = sum(hop.compute_seconds + hop.queue_seconds for hop in self.hops)
        return max(0.0, self.seconds_per_step - busy)

    def __str__(self) -> str:
        """One line of ASCII: peer[blocks] compute+queue, ..."""
        hops = ", ".join(
            f"{hop.peer[:PEER_CHARACTERS]}[{hop.blocks}] {_ms(hop.compute_seconds)}+{_ms(hop.queue_seconds)}ms"
            for hop in self.hops
        )
        advice = f"; {self.advice}" if self.advice else ""
        return f"{hops}; way {_ms(self.way_seconds)}ms; step {_ms(self.seconds_per_step)}ms{advice}"


class RecentSteps:
    """The newest steps of a session."""

    def __init__(self) -> None:
        self._steps: deque[StepTimes] = deque(maxlen=STEPS_MAX)

    def add(self, times: StepTimes) -> None:
        """One more; servers that report later are still counted."""
        self._steps.append(times)

    def report(self, servers: Mapping[PeerId, ServerInfo], *, is_guessing: bool = False) -> RouteReport | None:
        """The newest chain and its mean times over decode steps, or over steps of a prompt while there are no others;
        None before the first step. `servers`: all that serve the model."""
        whole = [step for step in self._steps if step.is_complete]
        decoding = [step for step in whole if step.num_positions <= DECODE_POSITIONS_MAX]
        steps = decoding or whole[-1:]
        if not steps:
            return None
        chain = steps[-1].chain
        steps = [step for step in steps if step.chain == chain]
        hops = tuple(_mean([step.hops[blocks] for step in steps]) for blocks in sorted(chain))
        report = RouteReport(hops, sum(step.seconds for step in steps) / len(steps))
        return replace(report, advice=advise(report, servers, is_guessing=is_guessing)) if decoding else report


def advise(report: RouteReport, servers: Mapping[PeerId, ServerInfo], *, is_guessing: bool = False) -> str | None:
    """The change that would make the step fastest, with its speed-up; None when nothing is worth it."""
    total = report.seconds_per_step
    changes = [*_one_more(report, servers), *_one_for_two(report, servers)]
    saved, sentence = max(changes, default=(0.0, ""))
    if not is_guessing and report.way_seconds > FAR_SHARE * total:
        return f"{report.way_seconds / total:.0%} of it is the way: guess ahead (--draft)"
    speed_up = total / max(total - saved, 1e-9)
    return f"{sentence}: {speed_up:.1f}x" if speed_up >= WORTHWHILE else None


def _one_more(report: RouteReport, servers: Mapping[PeerId, ServerInfo]) -> list[tuple[float, str]]:
    """Per hop, what one more server for its blocks would save, if it is as fast as the fastest: time to compute, and
    its share of those who wait."""
    changes: list[tuple[float, str]] = []
    for hop in report.hops:
        num_holders = max(1, sum(info.blocks.covers(hop.blocks) for info in servers.values()))
        computing = min(hop.compute_seconds, _fastest_seconds(hop.blocks.num_blocks, servers))
        saved = hop.compute_seconds - computing + hop.queue_seconds / (num_holders + 1)
        changes.append((saved, f"one more server on blocks {hop.blocks}"))
    return changes


def _one_for_two(report: RouteReport, servers: Mapping[PeerId, ServerInfo]) -> list[tuple[float, str]]:
    """Per pair of neighbours, what one server for the blocks of both would save, where a server can hold so many."""
    num_blocks_max = max((info.blocks.num_blocks for info in servers.values()), default=0)
    way = report.way_seconds / (len(report.hops) + 1)
    changes: list[tuple[float, str]] = []
    for before, after in pairwise(report.hops):
        blocks = BlockRange(before.blocks.first, after.blocks.last)
        if blocks.num_blocks <= num_blocks_max:
            now = before.compute_seconds + after.compute_seconds
            computing = min(now, _fastest_seconds(blocks.num_blocks, servers))
            saved = way + now - computing + min(before.queue_seconds, after.queue_seconds)
            changes.append((saved, f"one server for all of blocks {blocks}"))
    return changes


def _fastest_seconds(num_blocks: int, servers: Mapping[PeerId, ServerInfo]) -> float:
    """What so many blocks take on a server as fast as the fastest; endless when no speed is known."""
    fastest = max((info.blocks_per_second for info in servers.values()), default=0.0)
    return num_blocks / fastest if fastest else float("inf")


def _mean(hops: Sequence[HopTimes]) -> HopTimes:
    computing = sum(hop.compute_seconds for hop in hops) / len(hops)
    queueing = sum(hop.queue_seconds for hop in hops) / len(hops)
    return HopTimes(hops[-1].peer, hops[-1].blocks, computing, queueing)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"
