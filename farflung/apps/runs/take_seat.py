"""`farflung join`: takes a seat in a run that is led elsewhere, and sits it through."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from farflung.apps.metrics.exporter import exporting
from farflung.apps.metrics.node import NodeCollector, on_running_loop
from farflung.apps.metrics.run import SeatCollector
from farflung.apps.processes import end_at_once
from farflung.apps.runs.asking import CALL_AGAIN_SECONDS, Answer, RunStopped, ask_lead
from farflung.apps.runs.engine import Engine
from farflung.apps.runs.job import job_of
from farflung.apps.runs.messages import (
    LEAD_ACTOR,
    SEAT_ACTOR,
    AskPeers,
    AskSeat,
    Noted,
    Peers,
    SeatEnded,
    SeatGiven,
    SeatReport,
    StopSeat,
)
from farflung.apps.runs.part import Part, Sitting, sit
from farflung.apps.runs.run import Run
from farflung.apps.runs.seats import NUM_RANKS_VARIABLE
from farflung.apps.wiring import Place, SwarmNode, join
from farflung.runtime.home import default_home
from farflung.runtime.store import DISK_FULL
from farflung.wire.message import Message
from farflung.world.address import Address, PeerId
from farflung.world.errors import Unreachable
from farflung.world.mailbox import Mailbox, PeerLost
from farflung.world.nursery import open_nursery
from farflung.world.version import __version__

if TYPE_CHECKING:
    from farflung.apps.runs.group import Group

ASK_SECONDS = 0.2
"""How often others are looked for."""
LISTEN_SECONDS = 3600.0
LEAD_SECONDS_MAX = 60.0
"""How long a lead that does not answer is asked again."""
STOPPED_SECONDS_MAX = 10.0
"""The same of a seat that the lead has asked to leave."""
AWAY_SECONDS_MAX = 20.0
"""How long a seat goes on when its link to the lead has broken; those of the lead's machine end with the lead."""


def take_seat(
    ticket: str,
    place: Place,
    *,
    seat: int | None,
    region: str | None,
    result: Path | None,
    num_ranks: int = 1,
    own_data: Path | None = None,
    metrics: str | None = None,
) -> None:
    """Take part until the run is over, the lead says stop, or a signal comes.

    `num_ranks`: processes that are this worker together; those of a `torchrun` group are one by themselves.
    `own_data`: a file that is learned from here, and that nobody else sees. `metrics`: where Prometheus may ask.

    Raises:
        ValueError: a bad ticket, other data or another model than the lead's, ranks that cannot share a batch.
        FarflungError: nobody answers, or the lead refuses.
        CommandFailed: a rank is gone.
    """
    wish = AskSeat(version=__version__, seat=seat, region=region)
    with _group(num_ranks, place) as group:
        if group is not None:
            end_at_once()
        if group is not None and group.rank:
            group.follow()
        else:
            asyncio.run(_take_seat(ticket, place, wish, _Means(result, group, own_data, metrics)))


@contextlib.contextmanager
def _group(num_ranks: int, place: Place) -> Iterator["Group | None"]:
    """See `open_group`; one process alone does without torch's part of it."""
    if num_ranks == 1 and int(os.environ.get(NUM_RANKS_VARIABLE, "1")) == 1:
        yield None
        return
    from farflung.apps.runs.group import open_group

    with open_group(num_ranks, (place.home or default_home()) / "ranks") as group:
        yield group


async def _take_seat(ticket: str, place: Place, wish: AskSeat, means: "_Means") -> None:
    task = asyncio.current_task()
    assert task is not None
    is_terminated = False

    def terminate() -> None:
        nonlocal is_terminated
        if not is_terminated:  # a lead of several threads that is killed ends its children once for each of them
            is_terminated = True
            task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    node = await join(place, ticket=ticket)
    try:
        await node.wait_joined()
        await _Seat(node, means).sit(wish)
    except RunStopped as stopped:
        print(f"stops: {stopped}", flush=True)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        folder = node.node.home.folder
        raise ValueError(f"{folder} takes no more ({error.strerror}): make room there, then join again") from None
    except asyncio.CancelledError:
        if not is_terminated:
            raise
    finally:
        await node.close()


@dataclass(frozen=True, slots=True)
class _Means:
    """What a process brings to its seat."""

    result: Path | None
    group: "Group | None"
    own_data: Path | None
    metrics: str | None


class _Seat:
    """One process's way through a run."""

    def __init__(self, node: SwarmNode, means: _Means) -> None:
        self._node = node
        self._result = means.result
        self._group = means.group
        self._own_data = means.own_data
        self._metrics = means.metrics
        self._lead = Address(node.node.ticket.meetings[0].peer, LEAD_ACTOR)
        self._is_stopped = False

    async def sit(self, wish: AskSeat) -> None:
        with Mailbox(self._node.world, SEAT_ACTOR) as mailbox:
            given = await self._ask(mailbox, wish, SeatGiven)
            print(f"takes the seat {given.seat.name}", flush=True)
            # Loading torch takes seconds, in which the node must go on showing that it is there.
            job = await asyncio.to_thread(job_of, given.job)
            run: Run = job.form.read(json.loads(given.run))
            run.logging.start()
            engine = await asyncio.to_thread(job.engine, run)
            materials = await asyncio.to_thread(job.gather_for, run, given.seat, self._group, self._own_data)
            if materials is not None and materials.fingerprint != given.materials:
                raise ValueError(
                    "the data or the model here are not those of the lead: check that the files of [data] and [model] "
                    "are the same, and that both machines have the same versions of Python and farflung"
                )
            sitting = await self._sitting(mailbox, given, run, engine)
            part = engine.part(sitting, materials)
            try:
                await self._work(mailbox, part, given, run)
                found = part.result() if given.seat in engine.result_seats(given.seats) else None
                if self._result is not None and found is not None:
                    await asyncio.to_thread(job.keep, self._result, found)
            finally:
                part.close()

    async def _sitting(self, mailbox: Mailbox, given: SeatGiven, run: Run, engine: Engine[Any, Any]) -> Sitting[Any]:
        while True:
            known = await self._ask(mailbox, AskPeers(), Peers)
            peers = {int(index): peer for index, peer in known.peers.items()}
            # A seat that is taken again near the run's end does not wait for those that have come to theirs.
            needed = [index for index in engine.needs(given.seat, given.seats) if index not in known.ended]
            if all(index in peers and self._is_reachable(peers[index]) for index in needed):
                return Sitting(
                    world=self._node.world,
                    run=run,
                    seat=given.seat,
                    seats=given.seats,
                    peers=peers,
                    folder=self._node.node.home.folder,
                    charter=given.charter,
                )
            await asyncio.sleep(ASK_SECONDS)

    def _is_reachable(self, peer: PeerId) -> bool:
        return peer == self._node.peer or peer in self._node.member.view

    async def _ask(
        self, mailbox: Mailbox, question: Message, kind: type[Answer], seconds_max: float = LEAD_SECONDS_MAX
    ) -> Answer:
        return await ask_lead(self._node.world.clock, mailbox, self._lead, question, kind, seconds_max)

    async def _work(self, mailbox: Mailbox, part: Part, given: SeatGiven, run: Run) -> None:
        last = SeatReport(seat=given.seat.index)
        collector = SeatCollector(run, given.seat)

        def tell(report: SeatReport) -> None:
            nonlocal last
            last = report
            collector.take(report)
            mailbox.send(self._lead, report)

        own = NodeCollector(self._node, on_running_loop())
        with exporting(self._metrics, [own, collector], print):
            await self._sit_through(mailbox, part, tell, run)
        await self._tell_end(mailbox, SeatEnded(seat=given.seat.index, report=last))

    async def _sit_through(self, mailbox: Mailbox, part: Part, tell: Callable[[SeatReport], None], run: Run) -> None:
        async with open_nursery() as nursery:
            listening = nursery.start(self._listen(mailbox, part), name="listening")
            watching = nursery.start(self._watch_group(), name="watching the group")
            await sit(part, tell, run.logging.every_seconds)
            listening.cancel()
            watching.cancel()

    async def _listen(self, mailbox: Mailbox, part: Part) -> None:
        """Until cancelled: stop the part when the lead says so, and call a lead that is out of reach for a while.

        Raises:
            Unreachable: it does not come back.
        """
        clock, away_since, reason = self._node.world.clock, None, ""
        while True:
            seconds = LISTEN_SECONDS if away_since is None else CALL_AGAIN_SECONDS
            match await mailbox.receive(clock.now() + seconds):
                case (source, StopSeat(reason=why)) if source.peer == self._lead.peer:
                    print(f"stops: {why}", flush=True)
                    self._is_stopped = True
                    part.stop()
                    return  # whatever becomes of the lead now
                case (source, PeerLost(reason=reason)) if source.peer == self._lead.peer:
                    away_since = clock.now() if away_since is None else away_since
                case (source, _) if source.peer == self._lead.peer:
                    away_since = None
                case None if away_since is not None:
                    mailbox.send(self._lead, AskPeers())
                case _:
                    pass
            if away_since is not None and clock.now() > away_since + AWAY_SECONDS_MAX:
                raise Unreachable(self._lead.peer, f"the lead is gone ({reason})")

    async def _watch_group(self) -> None:
        while self._group is not None:
            self._group.check()
            await asyncio.sleep(ASK_SECONDS)

    async def _tell_end(self, mailbox: Mailbox, ended: SeatEnded) -> None:
        with contextlib.suppress(Unreachable):
            await self._ask(mailbox, ended, Noted, STOPPED_SECONDS_MAX if self._is_stopped else LEAD_SECONDS_MAX)
