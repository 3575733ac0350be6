"""The doctor, against a real swarm and real faults: each wrong thing is named in a line with what mends it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from farflung.apps.announced import TOPIC
from farflung.apps.doctor.callback import check_called_back
from farflung.apps.doctor.command import Patient, examine
from farflung.apps.doctor.finding import Finding, State
from farflung.apps.doctor.machine import check_devices, check_disk, check_home, check_memory, check_port
from farflung.apps.doctor.swarm import check_clocks, check_swarm, check_versions
from farflung.apps.doctor.way import check_clock_alone, check_ticket, check_way
from farflung.apps.fork_server import ForkServer
from farflung.apps.wiring import Connection, Place
from farflung.runtime.home import Home
from farflung.wire.certificate import TicketRole
from farflung.wire.identity import Identity
from farflung.wire.ticket import Meeting, SwarmAuthority, Ticket
from farflung.world.address import PeerId
from farflung.world.version import __version__
from tests.apps.processes import ROOT, free_port
from tests.apps.test_status import info
from tests.forge import run

pytestmark = pytest.mark.loopback
DAY = 86400.0


@pytest.fixture(scope="module")
def swarm() -> Iterator[Connection]:
    """A swarm of one real node that keeps the directory."""
    with Connection(None, Place(is_rendezvous=True), new_swarm="examined") as founder:
        yield founder


def ticket_of(swarm: Connection, *, seconds: float = 30 * DAY) -> Ticket:
    """One that the founder makes."""
    now = time.time()
    return swarm.node.node.ticket.invite(TicketRole.SERVER, now + seconds, now)


def only(found: list[Finding], subject: str) -> Finding:
    """The finding about a subject."""
    (one,) = [finding for finding in found if finding.subject == subject]
    return one


def assert_wrong(finding: Finding, says: str, mend: str) -> None:
    """It is wrong, for this reason, with this way out."""
    assert finding.state is State.WRONG, finding
    assert says in finding.says and mend in finding.mend, finding


def test_nothing_is_wrong_with_a_swarm_that_works(swarm: Connection, tmp_path: Path) -> None:
    found = list(examine(Patient(ticket=ticket_of(swarm).text(), home=tmp_path)))
    assert [one.subject for one in found if one.state is State.WRONG] == []
    subjects = {one.subject for one in found}
    assert subjects == {
        *["home", "disk", "memory", "port", "device", "ticket", "reach", "nat", "tls", "join", "clock", "version"]
    }
    assert "the swarm takes this node; 1 others" in only(found, "join").says
    assert "TLSv1.3" in only(found, "tls").says


def test_a_port_in_use(tmp_path: Path) -> None:
    assert check_port("127.0.0.1", 0).state is State.FINE
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert_wrong(check_port("127.0.0.1", port), f"127.0.0.1:{port}", f"ss -ltnp 'sport = :{port}'")
    assert check_port("127.0.0.1", port).state is State.FINE
    assert_wrong(check_port("198.51.100.1", 0), "cannot listen on 198.51.100.1", "--port 0")


def test_a_home_in_which_a_node_lives(tmp_path: Path) -> None:
    assert check_home(tmp_path / "none").state is State.FINE
    with Home(tmp_path):
        finding = check_home(tmp_path)
        assert finding.state is State.NOTE and "another node lives in" in finding.says
    assert check_home(tmp_path).state is State.FINE


@pytest.mark.skipif(os.name != "posix" or shutil.which("unshare") is None, reason="mounts a small disk of its own")
def test_a_full_disk(tmp_path: Path) -> None:
    program = (
        "import json, sys; from dataclasses import asdict; from pathlib import Path\n"
        "from farflung.apps.doctor.machine import check_disk\n"
        f"print(json.dumps(asdict(check_disk(Path({str(tmp_path)!r}) / 'home', 0))))"
    )
    script = f'mount -t tmpfs -o size=1300k none {tmp_path} && head -c 600000 /dev/zero > {tmp_path}/much && exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    finding = Finding(**json.loads(done.stdout))
    assert finding.state == State.WRONG, done.stderr
    assert "No space left" in finding.says and f"du -sh {tmp_path}" in finding.mend


def test_too_little_disk_and_memory_for_what_is_wanted(tmp_path: Path) -> None:
    assert check_disk(tmp_path, 1).state is State.FINE and check_memory(1).state is State.FINE
    assert_wrong(check_disk(tmp_path, 1 << 60), "left", "make room there")
    assert_wrong(check_memory(1 << 60), "of memory are free", "ps -eo pid,rss")


def test_every_device_computes() -> None:
    found = list(check_devices())
    assert found[0].says.startswith("cpu computes") and all(one.state is State.FINE for one in found)


def test_tickets_that_are_none_have_ended_or_end_soon(swarm: Connection) -> None:
    now = time.time()
    ticket = ticket_of(swarm, seconds=3600)
    assert check_ticket(ticket.text(), now)[0].state is State.NOTE
    assert check_ticket(ticket_of(swarm).text(), now)[0].state is State.FINE
    assert_wrong(check_ticket(ticket.text(), now + 3601)[0], "this ticket expired", "farflung invite --role")
    assert_wrong(check_ticket("farflung1AAAA", now)[0], "damaged", "farflung invite --role")


def test_a_clock_behind_the_ticket(swarm: Connection) -> None:
    ticket = ticket_of(swarm)
    assert check_clock_alone(ticket, time.time()) is None
    finding = check_clock_alone(ticket, time.time() - 600)
    assert finding is not None
    assert_wrong(finding, "it is behind", "timedatectl set-ntp true")


def test_nobody_where_the_ticket_says(swarm: Connection) -> None:
    meeting = Meeting(swarm.node.peer, (f"127.0.0.1:{free_port()}", "no.such.host.invalid:1"))
    here, elsewhere = check_way(ticket_of(swarm).meeting_at([meeting]), time.time())
    assert_wrong(here, "does not answer", "serve there with --host 0.0.0.0 --advertise")
    assert_wrong(elsewhere, "no.such.host.invalid:1 does not answer", "a firewall lets its port through")


def test_one_place_that_is_well_is_enough(swarm: Connection) -> None:
    ticket = ticket_of(swarm)
    gone = Meeting(swarm.node.peer, (f"127.0.0.1:{free_port()}", *ticket.meetings[0].endpoints))
    first, *others = check_way(ticket.meeting_at([gone]), time.time())
    assert first.state is State.NOTE and first.says.endswith("another place of the swarm is well")
    assert only(others, "tls").state is State.FINE


def test_another_node_or_another_swarm_where_the_ticket_says(swarm: Connection) -> None:
    now = time.time()
    ticket = ticket_of(swarm)
    (meeting,) = ticket.meetings
    other_peer = ticket.meeting_at([Meeting(Identity.generate().peer, meeting.endpoints)])
    assert_wrong(only(list(check_way(other_peer, now)), "tls"), "is not the one that the ticket names", "invite")
    other_swarm = SwarmAuthority.found("examined", now).ticket(ticket.meetings, now + DAY, now)
    assert_wrong(only(list(check_way(other_swarm, now)), "tls"), "is not the one that the ticket names", "invite")


def test_something_else_listens_where_the_ticket_says(swarm: Connection) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        mute.settimeout(120)
        meeting = Meeting(swarm.node.peer, (f"127.0.0.1:{mute.getsockname()[1]}",))
        steps = check_way(ticket_of(swarm).meeting_at([meeting]), time.time())

        def answer() -> None:
            with mute.accept()[0] as caller:
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        listening = threading.Thread(target=answer)
        listening.start()
        found = list(steps)
        listening.join()
    assert_wrong(only(found, "tls"), "does not speak TLS", "ss -ltnp")


def test_the_swarm_can_call_back(swarm: Connection, tmp_path: Path) -> None:
    port = free_port()
    patient = Patient(ticket=ticket_of(swarm).text(), port=port, advertise=[f"127.0.0.1:{port}"], home=tmp_path)
    assert f"can call this machine at 127.0.0.1:{port}" in only(list(examine(patient)), "calls").says


@pytest.mark.slow
def test_the_swarm_cannot_call_back_where_nobody_listens(swarm: Connection) -> None:
    other = free_port()
    place = Place(port=free_port(), advertise=[f"127.0.0.1:{other}"])
    finding = check_called_back(ticket_of(swarm).text(), place)
    assert_wrong(finding, f"nobody of the swarm could call this machine at 127.0.0.1:{other}", "--dial-only")


def test_a_swarm_that_refuses(swarm: Connection) -> None:
    now = time.time()
    stranger = SwarmAuthority.found("examined", now).ticket(ticket_of(swarm).meetings, now + DAY, now)
    (finding,) = check_swarm(stranger.text())
    assert_wrong(finding, "cannot be joined", "farflung status")


def test_another_version_in_the_swarm(swarm: Connection) -> None:
    def announce(version: str) -> None:
        content = msgspec.structs.replace(info(0, 2), version=version).to_bytes()

        async def publish() -> None:
            swarm.node.publish(TOPIC, content)

        swarm.bridge.run(publish())

    announce("0.0.9")
    deadline = time.monotonic() + 60
    while (finding := only(list(check_swarm(ticket_of(swarm).text())), "version")).state is not State.WRONG:
        assert time.monotonic() < deadline, finding
    assert_wrong(finding, f"this is farflung {__version__}", f"pip install 'farflung=={__version__}'")
    assert f"{swarm.node.peer[:8]} runs 0.0.9" in finding.says
    assert check_versions({PeerId("x"): __version__}).state is State.FINE
    assert_wrong(check_versions({PeerId("x"): "10.0.0"}), "x runs 10.0.0", "farflung==10.0.0")


def test_clocks_that_disagree(swarm: Connection) -> None:
    assert only(list(check_swarm(ticket_of(swarm).text())), "clock").state is State.FINE
    assert check_clocks({}).state is State.NOTE
    one, two, three = (PeerId(name) for name in ("one", "two", "three"))
    assert_wrong(check_clocks({one: 0.1, two: -40.0, three: 0.2}), "clock of two is 40.0 s behind", "there: sudo")
    assert_wrong(check_clocks({one: 61.0, two: 60.0}), "clock of one is 61.0 s ahead", "here: sudo")


def test_the_command_ends_with_1_if_anything_is_wrong(swarm: Connection, forge: ForkServer, tmp_path: Path) -> None:
    doctor = partial(run, forge, tmp_path, "doctor", "--join", ticket_of(swarm).text())
    good = doctor("--json")
    assert good.status == int(any(one["state"] == "wrong" for one in json.loads(good.text)))
    port = swarm.node.node.endpoints[0].rpartition(":")[2]
    bad = doctor("--port", port)
    assert bad.status == 1 and "wrong port" in bad.text
    assert "-> --port 0 takes any that is free" in bad.text
