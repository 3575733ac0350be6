"""Who sits where: what the lead of a run tells those that ask."""

from pathlib import Path

from farflung.apps.pretrain.engines import engine_of
from farflung.apps.pretrain.run_file import load_run_file
from farflung.apps.runs.history import History
from farflung.apps.runs.lead import Gathered, Lead
from farflung.apps.runs.messages import AskPeers, AskSeat, Peers, SeatEnded, SeatGiven, SeatReport
from farflung.wire.message import Refusal
from farflung.world.address import Address, PeerId
from farflung.world.effects import Send
from tests.apps.runs import write_run


def test_the_lead_tells_who_sits_where_and_who_has_ended(tmp_path: Path) -> None:
    run = load_run_file(write_run(tmp_path, algorithm='name = "diloco"'))
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
