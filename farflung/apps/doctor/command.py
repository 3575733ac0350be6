"""`farflung doctor`: all checks, line by line."""

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from farflung.apps.doctor.callback import check_called_back
from farflung.apps.doctor.finding import Finding, State, note
from farflung.apps.doctor.machine import check_devices, check_disk, check_home, check_memory, check_port
from farflung.apps.doctor.swarm import check_swarm
from farflung.apps.doctor.way import can_be_joined, check_clock_alone, check_ticket, check_way
from farflung.apps.tickets import TICKET_VARIABLE, read_ticket, ticket_path
from farflung.apps.wiring import Place
from farflung.runtime.home import default_home

STYLES = {State.FINE: "green", State.NOTE: "yellow", State.WRONG: "bold red"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Patient:
    """What is looked at."""

    ticket: str | None = None
    """None: that of the environment, or the one that a founder has at home, if there is one."""
    host: str = "127.0.0.1"
    port: int = 0
    advertise: Sequence[str] = ()
    """host:port pairs under which others are to reach this machine; whether they do is tried."""
    home: Path | None = None
    disk_bytes_min: int = 1 << 30
    memory_bytes_min: int = 1 << 30


def examine(patient: Patient) -> Iterator[Finding]:
    """Each check in turn, real and on real things; what cannot be looked at for want of something is left out."""
    home = (patient.home or default_home()).expanduser()
    yield check_home(home)
    yield check_disk(home, patient.disk_bytes_min)
    yield check_memory(patient.memory_bytes_min)
    yield check_port(patient.host, patient.port)
    yield from check_devices()
    text = patient.ticket or os.environ.get(TICKET_VARIABLE) or read_ticket(ticket_path(patient.home))
    if text is None:
        yield note("ticket", "there is none, so that no swarm is looked at", "farflung doctor --join TICKET")
        return
    finding, ticket = check_ticket(text, time.time())
    yield finding
    if ticket is None:
        return
    is_behind = check_clock_alone(ticket, time.time())
    if is_behind is not None:
        yield is_behind
    on_the_way = list(check_way(ticket, time.time()))
    yield from on_the_way
    if can_be_joined(on_the_way):
        yield from check_swarm(text)
        if patient.advertise:
            place = Place(host=patient.host, port=patient.port, advertise=patient.advertise)
            yield check_called_back(text, place)


def report(patient: Patient, *, as_json: bool) -> int:
    """Print what is found; 1 if something is wrong, else 0."""
    console, found = Console(soft_wrap=True, highlight=False), []
    for finding in examine(patient):
        found.append(finding)
        if not as_json:
            console.print(f"[{STYLES[finding.state]}]{finding.state:5}[/] {finding.subject:7} ", end="")
            console.print(finding.says, markup=False)
            if finding.mend:
                console.print(f"              -> {finding.mend}", markup=False)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=2))
    return int(any(finding.state is State.WRONG for finding in found))
