"""Mistakes end with one sentence and status 2; help loads nothing heavy."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from farflung.apps import cli
from farflung.apps.fork_server import ForkServer
from farflung.wire.identity import Identity
from farflung.wire.revocation import number_text
from farflung.wire.ticket import Meeting, SwarmAuthority, Ticket
from farflung.world.errors import Unreachable
from tests.apps.processes import ROOT, free_port
from tests.forge import Ended, run

pytestmark = pytest.mark.loopback


@pytest.fixture
def farflung(forge: ForkServer, tmp_path: Path) -> Callable[..., Ended]:
    """Runs a command to its end, with these arguments and variables."""
    return partial(run, forge, tmp_path)


def sentence_of(ended: Ended) -> str:
    """The one sentence of a mistake, beside which nothing is written."""
    assert ended.status == 2, ended.text
    (line,) = ended.text.strip().splitlines()
    assert line.startswith("farflung: ")
    return line


def ticket_to(endpoint: str, *, seconds: float = 3600.0) -> Ticket:
    """A genuine ticket of a swarm that nobody runs."""
    now = time.time()
    meeting = Meeting(Identity.generate().peer, (endpoint,))
    return SwarmAuthority.found("elsewhere", now - 7200).ticket([meeting], now + seconds, now - 7200)


HELP_OF_ALL = """
import sys
import typer
from farflung.apps import cli

def commands(command, path):
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, [*path, name])

for path in commands(typer.main.get_command(cli.app), []):
    assert cli.app([*path, "--help"], prog_name="farflung", standalone_mode=False) == 0
print(*sys.modules, sep=chr(10), file=sys.stderr)
"""
HEAVY = {"torch", "transformers", "grpc", "fastapi", "numpy", "msgspec", "cryptography", "psutil", "nicegui"}
"""What --help has no time for; see bench/help.py for how long it takes."""


def test_help_of_no_command_loads_what_is_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    for command in ("serve", "invite", "api", "generate", "chat", "status", "demo", "verify", "schema"):
        assert f" {command} " in done.stdout
    loaded = set(done.stderr.split())
    assert "rich" in loaded and "farflung.apps.cli" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "/no/such/model", "--new-swarm"], "there is no folder '/no/such/model'"),
        (["serve", "TINY"], "give --join TICKET"),
        (["serve", "TINY", "--new-swarm", "--blocks", "0:9"], "outside the model, which has blocks 0:4"),
        (["serve", "TINY", "--new-swarm", "--blocks", "three"], "is not a block range"),
        (["serve", "TINY", "--new-swarm", "--blocks", "0:2", "--num-blocks", "2"], "not both"),
        (["serve", "TINY", "--new-swarm", "--device", "abacus"], "cannot be used here"),
        (["serve", "TINY", "--new-swarm", "--dtype", "int3"], "--dtype must be auto or one of"),
        (["serve", "TINY", "--join", "nonsense"], "this is not a ticket"),
        (["status"], "a ticket is needed"),
        (["status", "--join", "farflung1AAAA"], "this ticket is damaged"),
        (["invite"], "there is no admin's ticket"),
        (["revoke", "0" * 40], "there is no admin's ticket"),
        (["generate", "TINY", "--join", "TICKET", "--prompt", "x", "--max-tokens", "0"], "--max-tokens"),
        (["api", "--threads", "0", "--join", "TICKET"], "--threads must be at least 1"),
        (["demo", "--train-seconds", "0"], "--train-seconds"),
        (["serve", "TINY", "--new-swarm", "--metrics", "here"], "--metrics takes a port or host:port"),
        (["pretrain", "--metrics", "99999"], "--metrics takes a port or host:port"),
        (["dance"], "No such command 'dance'"),
        (["serve"], "Missing argument"),
    ],
)
def test_mistakes_end_with_one_sentence_and_status_2(
    farflung: Callable[..., Ended], tiny_folder: Path, arguments: list[str], sentence: str
) -> None:
    meant = {"TINY": str(tiny_folder), "TICKET": ticket_to("127.0.0.1:1").text()}
    done = farflung(*(meant.get(argument, argument) for argument in arguments))
    assert sentence in sentence_of(done)


def test_a_port_in_use_is_named(farflung: Callable[..., Ended], tiny_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ticket = ticket_to("127.0.0.1:1").text()
        assert f":{port}" in sentence_of(farflung("serve", str(tiny_folder), "--new-swarm", "--port", port))
        assert f":{port}" in sentence_of(farflung("api", str(tiny_folder), "--join", ticket, "--port", port))


def test_an_expired_ticket_says_when_it_ended(farflung: Callable[..., Ended]) -> None:
    expired = ticket_to("127.0.0.1:1", seconds=-60).text()
    assert "this ticket expired" in sentence_of(farflung("status", FARFLUNG_TICKET=expired))


def test_a_swarm_that_does_not_answer_is_named_with_its_place(farflung: Callable[..., Ended]) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    sentence = sentence_of(farflung("status", "--join", ticket_to(endpoint).text()))
    assert f"swarm 'elsewhere' cannot be joined at {endpoint}" in sentence


def test_invite_makes_narrower_tickets_and_refuses_wider_ones(farflung: Callable[..., Ended]) -> None:
    admin = ticket_to("127.0.0.1:1").text()
    done = farflung("invite", "--role", "server", "--expires", "30m", "--join", admin)
    assert done.status == 0, done.text
    text, how_to_withdraw = done.text.splitlines()
    invited = Ticket.parse(text, time.time())
    assert how_to_withdraw == f"to withdraw it: farflung revoke {number_text(invited.serial)}"
    assert invited.role == "server"
    assert invited.expires_at - time.time() == pytest.approx(1800, abs=60)
    assert "cannot make further tickets" in sentence_of(farflung("invite", "--join", text))
    assert "cannot outlive" in sentence_of(farflung("invite", "--expires", "7d", "--join", admin))
    assert "is no duration" in sentence_of(farflung("invite", "--expires", "soon", "--join", admin))
    assert "--role must be one of" in sentence_of(farflung("invite", "--role", "king", "--join", admin))


def test_what_fails_by_itself_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object, **__: object) -> None:
        raise Unreachable(Identity.generate().peer, "the lead is gone")

    monkeypatch.setattr(cli, "app", lose)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 1
