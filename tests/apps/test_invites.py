"""What is kept of tickets that were made here: numbers, never tickets; and where tickets meet that are made now."""

from pathlib import Path

import pytest

from farflung.apps.invites import INVITES_FOLDER, keep, kept
from farflung.apps.meetings import MEETINGS_MAX, meetings_now
from farflung.mesh.records import Record
from farflung.runtime.home import VARIABLE
from farflung.wire.certificate import TicketRole
from farflung.wire.ticket import Meeting, SwarmAuthority, Ticket
from farflung.world.address import PeerId
from farflung.world.doors import Contact

NOW = 1_800_000_000.0
DAY = 86400.0
FOUNDER = SwarmAuthority.found("home", NOW).ticket((), NOW + 100 * DAY, NOW)
OTHER = SwarmAuthority.found("home", NOW).ticket((), NOW + 100 * DAY, NOW)


def made(parent: Ticket, at: float, days: float) -> Ticket:
    ticket = parent.invite(TicketRole.SERVER, at + days * DAY, at)
    keep(ticket, at)
    return ticket


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def test_those_to_a_swarm_are_told_until_they_end(home: Path) -> None:
    assert kept(FOUNDER.swarm_id, NOW) == []
    short, long = made(FOUNDER, NOW, 1), made(FOUNDER, NOW + 5, 9)
    made(OTHER, NOW, 9)
    told = kept(FOUNDER.swarm_id, NOW + 10)
    assert [invite.permission.serial for invite in told] == [long.serial, short.serial]
    assert (told[0].role, told[0].depth, told[0].made_at) == (TicketRole.SERVER, 2, NOW + 5)
    assert told[0].expires_at == long.expires_at
    assert [invite.permission.serial for invite in kept(FOUNDER.swarm_id, NOW + 2 * DAY)] == [long.serial]
    assert len(list((home / INVITES_FOLDER).iterdir())) == 2
    secret = long.text()[40:80]
    assert not any(secret in path.read_text() for path in (home / INVITES_FOLDER).iterdir())


def test_a_damaged_file_is_named(home: Path) -> None:
    made(FOUNDER, NOW, 1)
    (path,) = (home / INVITES_FOLDER).iterdir()
    path.write_text("{")
    with pytest.raises(ValueError, match=rf"{path} is damaged: remove it"):
        kept(FOUNDER.swarm_id, NOW)


def test_a_home_that_cannot_be_written_to_costs_no_ticket(home: Path) -> None:
    home.parent.joinpath("home").write_text("a file is no folder")
    made(FOUNDER, NOW, 1)
    with pytest.raises(ValueError, match="cannot be read"):
        kept(FOUNDER.swarm_id, NOW)


def record(peer: str, *endpoints: str, is_rendezvous: bool = True) -> Record:
    return Record(
        peer=PeerId(peer),
        sequence=1,
        issued_at=NOW,
        lease_seconds=30.0,
        role=TicketRole.SERVER,
        contact=Contact(endpoints=endpoints),
        is_rendezvous=is_rendezvous,
    )


def test_a_ticket_meets_at_its_first_then_at_who_is_there_now() -> None:
    first, gone = Meeting(PeerId("f"), ("f:1",)), Meeting(PeerId("g"), ("g:1",))
    records = [record("b", "b:1"), record("f", "f:2"), record("c", "c:1", is_rendezvous=False), record("d")]
    view = {one.peer: one for one in records}
    assert meetings_now(first, view, [gone]) == [first, Meeting(PeerId("b"), ("b:1",)), gone]
    many = {PeerId(f"p{index}"): record(f"p{index}", "p:1") for index in range(20)}
    assert len(meetings_now(first, many, [gone])) == MEETINGS_MAX
