"""Mistakes that show only beside a running swarm: one sentence, status 2, and nobody else is disturbed."""

from pathlib import Path

import pytest

from tests.loopback.fleet import Fleet, Program, wait_until

pytestmark = pytest.mark.loopback


def sentence_of(program: Program) -> str:
    """The one line that it ends with, in a status of 2."""
    wait_until(lambda: not program.is_alive, "it ends")
    assert program.status == 2, program.text
    (line,) = program.text.splitlines()
    return line


def test_a_prompt_longer_than_the_context(fleet: Fleet, folder: Path) -> None:
    prompt = "def main(arguments): " * 1000
    program = fleet.start("generate", str(folder), "--join", fleet.ticket(), "--prompt", prompt)
    sentence = sentence_of(program)
    assert sentence.startswith("farflung: the prompt has ") and sentence.endswith("shorten the prompt")
    assert "at most 2048" in sentence


def test_a_home_in_use(fleet: Fleet, folder: Path) -> None:
    home = fleet.servers[0].home
    program = fleet.start("serve", str(folder), "--blocks", "0:2", "--join", fleet.admin_ticket, home=home)
    assert sentence_of(program).startswith(f"farflung: another node lives in {home}; set FARFLUNG_HOME")
    assert fleet.servers[0].is_alive


def test_a_clients_ticket_invites_nobody(fleet: Fleet) -> None:
    program = fleet.start("invite", "--role", "server", "--join", fleet.ticket())
    assert "cannot make further tickets" in sentence_of(program)


def test_a_model_that_does_not_exist(fleet: Fleet, folder: Path) -> None:
    program = fleet.start("api", str(folder), "no-such-model", "--join", fleet.ticket(), "--port", "0")
    assert "no-such-model" in sentence_of(program)
