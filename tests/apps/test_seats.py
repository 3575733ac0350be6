"""Who sits where: what the lead of a run tells those that ask."""

from pathlib import Path

import pytest

from farflung.apps.finetune.engine import OneByteEngine
from farflung.apps.finetune.run_file import FINETUNE
from farflung.apps.pretrain.engines import engine_of
from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.runs.history import History
from farflung.apps.runs.lead import Gathered, Lead
from farflung.apps.runs.messages import AskPeers, AskSeat, Peers, SeatEnded, SeatGiven, SeatReport, StopSeat
from farflung.apps.runs.seats import WORKER, worker_seats
from farflung.apps.runs.sites import RegionSettings, WorkerSettings
from farflung.runtime.store import FileStore
from farflung.systems.hierarchy.durable import PREFIX
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Send
from tests.apps.runs import HALOS, write_run


def test_the_lead_tells_who_sits_where_and_who_has_ended(tmp_path: Path) -> None:
    run = PRETRAIN.load(write_run(tmp_path, algorithm='name = "diloco"'))
    seats = engine_of(run).seats(run)
    told: list[tuple[str, str]] = []
    gathered = Gathered(seats, History(), lambda point: None, lambda seconds, seat, why: told.append((seat, why)))
    lead = Lead(gathered, job="pretrain", run="{}", materials="", version="1")

    def ask(peer: str, message: object) -> object:
        effects = lead.receive(Address(PeerId(peer), "seat"), message, 0.0)
        (sent,) = [effect for effect in effects if isinstance(effect, Send)]
        return sent.message

    for seat in seats:
        given = ask(f"p{seat.index}", AskSeat(version="1", seat=seat.index))
        assert isinstance(given, SeatGiven) and given.seat == seat
    known = ask("p1", AskPeers())
    assert isinstance(known, Peers)
    assert known == Peers(peers={str(seat.index): PeerId(f"p{seat.index}") for seat in seats})
    ask("p2", SeatEnded(seat=2, report=SeatReport(seat=2, decisions=("8 of 16 steps",))))
    assert ask("p1", AskPeers()) == Peers(peers=known.peers, ended=(2,)), "nobody must wait for it"
    assert told == [(seats[2].name, "8 of 16 steps")]
    assert isinstance(ask("p9", AskSeat(version="2")), Refusal)
    refused = ask("p9", AskSeat(version="1", seat=0))
    assert isinstance(refused, Refusal) and "already: leave out --seat, and another one is given" in refused.reason
    again = ask("p0", AskSeat(version="1", seat=0))
    assert isinstance(again, SeatGiven) and again.seat == seats[0], "who sits there comes back to it"


def test_a_joiner_whose_link_broke_for_a_moment_keeps_its_seat(tmp_path: Path) -> None:
    run = PRETRAIN.load(write_run(tmp_path))
    seats = engine_of(run).seats(run)
    lead = Lead(
        Gathered(seats, History(), lambda point: None, lambda *_: None), job="", run="", materials="", version="1"
    )

    def tell(peer: str, message: object) -> list[object]:
        effects = lead.receive(Address(PeerId(peer), "seat"), message, 0.0)
        return [effect.message for effect in effects if isinstance(effect, Send)]

    (given,) = tell("joiner", AskSeat(version="1"))
    assert isinstance(given, SeatGiven) and given.seat.is_remote
    index = given.seat.index
    lead.lost(PeerId("joiner"), "silence", 1.0)
    assert lead.holder(index) is None
    assert tell("joiner", SeatReport(seat=index, num_steps=7)) == []
    assert lead.holder(index) == PeerId("joiner")
    assert [point.num_steps for point in lead.gathered.history.newest()] == [7]
    lead.lost(PeerId("joiner"), "silence", 2.0)
    (given,) = tell("another", AskSeat(version="1", region=given.seat.region))
    assert isinstance(given, SeatGiven) and given.seat.index == index
    (answer,) = tell("joiner", SeatReport(seat=index, num_steps=8))
    assert isinstance(answer, StopSeat), "two must not sit on one seat"
    assert lead.holder(index) == PeerId("another")


@pytest.mark.parametrize("algorithm", [HALOS, 'name = "diloco"', 'name = "farflung"'])
def test_a_run_that_kept_nothing_says_so(algorithm: str, tmp_path: Path) -> None:
    run = PRETRAIN.load(write_run(tmp_path, algorithm=algorithm))
    engine = engine_of(run)
    seats = tuple(engine.seats(run))
    homes = {seat.index: tmp_path / seat.name for seat in seats}
    assert not engine.prepare_resume(homes, seats)
    if algorithm == HALOS:
        FileStore(homes[0] / "store").write(f"{PREFIX}update/east-local-server/1/1/0", b"an update")
        assert engine.prepare_resume(homes, seats)


def test_a_worker_joins_from_elsewhere_where_others_of_its_region_are_started_here() -> None:
    east = RegionSettings(name="east", workers=(WorkerSettings(), WorkerSettings(is_remote=True)))
    west = RegionSettings(name="west", workers=2, is_remote=True)
    assert [seat.is_remote for seat in worker_seats((east, west), 1)] == [False, True, True, True]
    assert east.has_remote and not RegionSettings(name="north").has_remote


def placed(*servers: str, is_remote: bool = True) -> dict[str, object]:
    """A fine-tuning run whose second region has these servers."""
    far = {"name": "far", "workers": 1, "is_remote": is_remote, "servers": list(servers)}
    return {"regions": [{"name": "here", "workers": 1}, far]}


def test_a_standby_sits_where_a_region_names_it_and_nobody_else_can_be_it() -> None:
    seats = OneByteEngine().seats(FINETUNE.read(placed("standby", "witness")))
    assert [(seat.name, seat.is_remote) for seat in seats if seat.kind != WORKER] == [
        ("here-sequencer", False),
        ("far-standby", True),
        ("far-witness", True),
    ]
    lead = Lead(
        Gathered(seats, History(), lambda point: None, lambda *_: None), job="", run="", materials="", version="1"
    )

    def ask(peer: str) -> object:
        effects = lead.receive(Address(PeerId(peer), "seat"), AskSeat(version="1", seat=1), 0.0)
        return next(effect.message for effect in effects if isinstance(effect, Send))

    assert isinstance(ask("standby"), SeatGiven)
    lead.lost(PeerId("standby"), "silence", 1.0)
    assert lead.holder(1) == PeerId("standby"), "whoever comes new must still hear who it is"
    refused = ask("another")
    assert isinstance(refused, Refusal) and "must come back itself" in refused.reason
    assert isinstance(ask("standby"), SeatGiven)


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        (placed("sequencer"), "no server 'sequencer' that a region can name: it has standby and witness"),
        (placed("standby", "standby"), "there is one standby"),
        ({**placed("witness"), "method": {"has_standby": False}}, "its servers have their places"),
    ],
)
def test_servers_that_cannot_be_placed_are_refused(tables: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        FINETUNE.read(tables)


def test_what_a_seat_tells_last_is_not_counted_twice(tmp_path: Path) -> None:
    seats = engine_of(PRETRAIN.load(write_run(tmp_path))).seats(PRETRAIN.load(write_run(tmp_path)))
    told: list[str] = []
    gathered = Gathered(seats, History(), lambda point: None, lambda seconds, seat, why: told.append(why))
    lead = Lead(gathered, job="", run="", materials="", version="1")
    index = next(seat.index for seat in seats if seat.kind == WORKER)
    last = SeatReport(seat=index, num_steps=7, decisions=("its weights have the state 7",))
    for message in (AskSeat(version="1", seat=index), last, SeatEnded(seat=index, report=last)):
        lead.receive(Address(PeerId("worker"), "seat"), message, 0.0)
    assert told == ["its weights have the state 7"] and len(gathered.history.points) == 1
