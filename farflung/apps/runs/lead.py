"""The lead of a run: gives out seats, says who sits where, and gathers what the seats report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from farflung.apps.runs.history import History, Point
from farflung.apps.runs.messages import (
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
from farflung.apps.runs.seats import WORKER, Seat
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect, Note, Send
from farflung.world.role import Role


@dataclass(slots=True)
class Tally:
    """Counts of one seat over the lives of its process: those of lives that ended, and the newest of this one."""

    before: dict[str, int] = field(default_factory=dict[str, int])
    now: dict[str, int] = field(default_factory=dict[str, int])

    def begin_life(self) -> None:
        """The process is a new one and counts from zero."""
        for name, count in self.now.items():
            self.before[name] = self.before.get(name, 0) + count
        self.now = {}

    def total(self) -> dict[str, int]:
        """Over all lives."""
        names = dict.fromkeys([*self.before, *self.now])
        return {name: self.before.get(name, 0) + self.now.get(name, 0) for name in names}


class Gathered:
    """What the seats of a run have told, as the history that logs, bars and plots show. Knows no network."""

    def __init__(
        self,
        seats: Sequence[Seat],
        history: History,
        on_point: Callable[[Point], None],
        on_decision: Callable[[float, str, str], None],
    ) -> None:
        """`on_decision(seconds, seat, sentence)`: a seat has chosen something by measurements."""
        self.seats = list(seats)
        self.history = history
        self._on_point = on_point
        self._on_decision = on_decision
        self._began_at = history.seconds
        self._bytes_before = dict(history.link_bytes)
        self._sent: dict[int, Tally] = {}
        self._counts: dict[int, Tally] = {}
        self._staleness: dict[str, float] = {}
        self.counters: dict[str, dict[str, int]] = {}
        """What each seat has counted over all its lives, by seat and name; seats without any are left out."""
        for point in history.newest():
            known = [seat for seat in self.seats if seat.name == point.seat]
            if known:
                counts = {"steps": point.num_steps, "tokens": point.num_tokens}
                self._counts[known[0].index] = Tally(before=counts)

    def begin_life(self, seat: int) -> None:
        """A process (again) took the seat."""
        for tallies in (self._sent, self._counts):
            tallies.setdefault(seat, Tally()).begin_life()

    def has_reported(self, seat: int) -> bool:
        """Whether anything has come from the newest process on that seat."""
        return seat in self._counts and bool(self._counts[seat].now)

    def add(self, report: SeatReport, seconds: float, region_of: Callable[[str], str | None]) -> None:
        """Take a report that came `seconds` after this session began; `region_of` tells where a peer is."""
        seat = self.seats[report.seat]
        regions: dict[str, int] = {}
        for peer, num_bytes in report.sent.items():
            region = region_of(peer)
            if region is not None:
                regions[region] = regions.get(region, 0) + num_bytes
        self._sent.setdefault(seat.index, Tally()).now = regions
        counts = self._counts.setdefault(seat.index, Tally())
        counts.now = {"steps": report.num_steps, "tokens": report.num_tokens}
        self.history.link_bytes = self.link_bytes()
        for sentence in report.decisions:
            self._on_decision(self._began_at + seconds, seat.name, sentence)
        if report.counters:
            self.counters[seat.name] = report.counters
        if report.staleness is not None:
            self._staleness[seat.region] = report.staleness
        if seat.kind != WORKER and not report.values:
            return
        point = Point(
            seconds=self._began_at + seconds,
            seat=seat.name,
            region=seat.region,
            num_steps=counts.total()["steps"],
            num_tokens=counts.total()["tokens"],
            loss=report.loss,
            staleness=self._staleness.get(seat.region),
            values=report.values,
            waiting_seconds=report.waiting_seconds,
        )
        self.history.append(point)
        self._on_point(point)

    def link_bytes(self) -> dict[tuple[str, str], int]:
        """Bytes by (region that sent, region that received), earlier sessions included."""
        summed = dict(self._bytes_before)
        for index, tally in sorted(self._sent.items()):
            for region, num_bytes in tally.total().items():
                key = (self.seats[index].region, region)
                summed[key] = summed.get(key, 0) + num_bytes
        return summed


class Lead(Role):
    """Seats are held by peers; a seat whose process died is taken again by the next one that asks for it."""

    def __init__(
        self,
        gathered: Gathered,
        *,
        job: str,
        run: str,
        materials: str,
        version: str,
        charter: Callable[[Seat], bytes] = lambda _: b"",
    ) -> None:
        """`job`, `run`, `materials` and `charter` as in `SeatGiven`."""
        self.gathered = gathered
        self._job = job
        self._run = run
        self._materials = materials
        self._version = version
        self._charter = charter
        self._holders: dict[int, PeerId] = {}
        self._away: dict[int, PeerId] = {}
        """Who held seats of joiners whose link broke: they have them again when they are heard of, if still free."""
        self._num_planned = sum(seat.kind == WORKER for seat in gathered.seats)
        self._began_at: float | None = None
        self._newest: dict[int, SeatReport] = {}
        self.ended: dict[int, PeerId] = {}
        """Seats whose part is done."""

    @property
    def seats(self) -> list[Seat]:
        """All seats, those of later joiners last."""
        return self.gathered.seats

    @property
    def is_over(self) -> bool:
        """Whether every worker that sits has done its part, and at least one has."""
        sitting = [index for index in self._holders if self.seats[index].kind == WORKER]
        return bool(sitting) and all(index in self.ended for index in sitting)

    def holder(self, index: int) -> PeerId | None:
        """Who sits there."""
        return self._holders.get(index)

    def stop(self, indices: Sequence[int], reason: str) -> list[Effect]:
        """Tell these seats to save and leave; perform these effects with this role's host."""
        peers = [self._holders[index] for index in indices if index in self._holders]
        return [Send(Address(peer, SEAT_ACTOR), StopSeat(reason=reason)) for peer in peers]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        match message:
            case AskSeat():
                return self._give(source, message)
            case AskPeers():
                peers = {str(index): self._holders[index] for index in sorted(self._holders)}
                return [Send(source, Peers(peers=peers, ended=tuple(sorted(self.ended))))]
            case SeatReport():
                return self._report(source, message, now)
            case SeatEnded(seat=index, report=report):
                self._come_back(source.peer, index)
                if self._holders.get(index) == source.peer:
                    if self._newest.get(index) != report:  # else it has come already, as any other report
                        self._report(source, report, now)
                    self.ended[index] = source.peer
                return [Send(source, Noted())]
            case _:
                pass
        return ()

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        lost = [index for index, holder in self._holders.items() if holder == peer]
        for index in lost:
            is_free = self.seats[index].is_remote and self.seats[index].kind == WORKER
            if is_free and index not in self.ended:
                self._away[index] = self._holders.pop(index)  # free for the next who joins
        return [Note(f"{self.seats[index].name} is lost: {reason}") for index in lost]

    def _come_back(self, peer: PeerId, index: int) -> None:
        if self._away.get(index) == peer:
            del self._away[index]
            self._holders.setdefault(index, peer)

    def _report(self, source: Address, report: SeatReport, now: float) -> Sequence[Effect]:
        self._come_back(source.peer, report.seat)
        holder = self._holders.get(report.seat)
        if holder != source.peer:
            reason = "its seat was given to another machine while it was out of reach"
            return [] if holder is None else [Send(source, StopSeat(reason=reason))]
        if self._began_at is None:
            self._began_at = now
        self._newest[report.seat] = report
        self.gathered.add(report, now - self._began_at, self._region_of)
        return []

    def _region_of(self, peer: str) -> str | None:
        return next((self.seats[index].region for index, holder in self._holders.items() if holder == peer), None)

    def _give(self, source: Address, asked: AskSeat) -> Sequence[Effect]:
        refusal = self._why_not(source.peer, asked)
        if refusal is not None:
            return [Send(source, Refusal(reason=refusal))]
        seat = self._choose(source.peer, asked)
        # A question asked twice by the same process begins two lives; the first has counted nothing by then.
        self.gathered.begin_life(seat.index)
        self._holders[seat.index] = source.peer
        self.ended.pop(seat.index, None)
        given = SeatGiven(
            seat=seat,
            seats=tuple(self.seats),
            job=self._job,
            run=self._run,
            materials=self._materials,
            charter=self._charter(seat),
        )
        return [Send(source, given), Note(f"{source.peer} takes the seat {seat.name}")]

    def _why_not(self, peer: PeerId, asked: AskSeat) -> str | None:
        if asked.version != self._version:
            return (
                f"this run is led by farflung {self._version}, and you have {asked.version}: install the same version"
            )
        if asked.seat is not None and not 0 <= asked.seat < len(self.seats):
            return f"this run has no seat {asked.seat}"
        if asked.seat is not None and self._is_anothers(asked.seat, peer):
            name = self.seats[asked.seat].name
            return f"{name} is what another machine keeps on its disk: it must come back itself, with its --home"
        if asked.seat is not None and self._holders.get(asked.seat, peer) != peer:
            return f"somebody sits on {self.seats[asked.seat].name} already: leave out --seat, and another one is given"
        regions = list(dict.fromkeys(seat.region for seat in self.seats))
        if asked.region is not None and asked.region not in regions:
            return f"this run has no region {asked.region!r}: it has {', '.join(regions)}"
        return None

    def _is_anothers(self, index: int, peer: PeerId) -> bool:
        """Whether a server that joined from elsewhere sits there, as whom nobody else can be."""
        seat = self.seats[index]
        return seat.is_remote and seat.kind != WORKER and self._holders.get(index, peer) != peer

    def _choose(self, peer: PeerId, asked: AskSeat) -> Seat:
        if asked.seat is not None:
            return self.seats[asked.seat]
        for index, holder in self._holders.items():
            if holder == peer:
                return self.seats[index]
        wanted = [seat for seat in self.seats if asked.region in (None, seat.region) and seat.kind == WORKER]
        for seat in wanted:
            if seat.is_remote and seat.index not in self._holders:
                return seat
        sitting: dict[str, int] = {seat.region: 0 for seat in wanted}
        for seat in wanted:
            sitting[seat.region] += 1
        region = min(sitting, key=lambda name: (sitting[name], name))
        seat = Seat(
            index=len(self.seats), kind=WORKER, region=region, number=self._number_of_joiner(region), is_remote=True
        )
        self.seats.append(seat)
        return seat

    def _number_of_joiner(self, region: str) -> int:
        """That of the first shard of the data that is kept for this region's joiners and not taken; see `data`."""
        workers = [seat for seat in self.seats if seat.kind == WORKER]
        regions = list(dict.fromkeys(seat.region for seat in workers[: self._num_planned]))
        joined = sum(seat.region == region for seat in workers[self._num_planned :])
        return self._num_planned + joined * len(regions) + regions.index(region)
