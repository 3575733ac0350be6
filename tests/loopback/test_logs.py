"""Decisions of real processes as lines of JSON: asked for by an option, or by the file of a run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.fork_server import ForkServer
from tests.apps.runs import ONE_SERVER, write_run
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import Command

pytestmark = pytest.mark.loopback


def decisions(log: Path) -> list[dict[str, Any]]:
    """The objects in a log, which has other lines too: what a command tells its user."""
    *whole, _ = log.read_text().split("\n") if log.exists() else [""]
    return [json.loads(line) for line in whole if line.startswith('{"time"')]


def wait_decided(log: Path, role: str, words: str) -> dict[str, Any]:
    """The first decision of a role that has these words in it."""

    def found() -> list[dict[str, Any]]:
        return [one for one in decisions(log) if one["role"] == role and words in one["event"]]

    wait_until(found, f"{role} decides: {words}")
    return found()[0]


def test_an_option_of_every_command(folder: Path, forge: ForkServer, tmp_path: Path) -> None:
    log, arguments = tmp_path / "log", ["serve", str(folder), "--new-swarm", "--threads", "1"]
    server = forge.start(["--log-format", "json", *arguments], {"FARFLUNG_HOME": str(tmp_path / "home")}, log)
    told = wait_decided(log, "serve", "serving blocks 0:4")
    assert len(told["node"]) == 52 and told["fields"]["process"] == server.pid
    assert server.poll() is None
    numbers = [one["fields"]["number"] for one in decisions(log)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_key_of_a_run_for_all_its_processes(lead: Callable[..., Command], tmp_path: Path) -> None:
    path = write_run(tmp_path, algorithm=ONE_SERVER, tokens=10_000_000)
    options = ["regions=[{name='east', workers=1}]", "links=[]", "logging.decisions='json'"]
    command = lead(str(path), *(word for option in options for word in ("--set", option)))
    given = wait_decided(command.output, "lead", "takes the seat east-worker-0")
    log = command.folder / "seats" / "east-local-server-1.log"
    joined = wait_decided(log, "hierarchy", "east-worker-0 joins under lease 1")
    assert given["node"] != joined["node"] and given["fields"]["process"] != joined["fields"]["process"]
    command.send(signal.SIGKILL)  # nothing of it is to be saved
