"""Pretraining with real processes: it learns, survives kill -9 of workers and servers, is interrupted, resumed."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from farflung.apps.fork_server import ForkServer
from farflung.apps.runs.history import read_history
from farflung.apps.runs.local import STOP_SECONDS
from farflung.wire.ticket import Ticket
from tests.apps.runs import HALOS, ONE_SERVER, write_run
from tests.loopback.fleet import wait_until
from tests.loopback.pretraining import (
    LEARNT_LOSS,
    SECONDS_MAX,
    UNENDING,
    Command,
    interrupt,
    num_steps,
    summary,
    tracebacks,
    wait_learnt,
    wait_steps,
    wait_told,
    wait_trained,
    with_budget,
)

pytestmark = pytest.mark.loopback

OVERSHOOT = 10_000
"""Tokens that workers may train on beyond the budget, as they were at it when it was used up."""
MORE = 50_000
"""Tokens of the second part."""
DISK_BYTES = 60_000
"""No file is longer: room for a log, but not for a model of 18,168 values."""
TWO_SEATS = ["--set", "regions=[{name='east', workers=1}]", "--set", "links=[]"]
FARFLUNG = 'name = "farflung"\n[algorithm.rounds]\nask_again_seconds = 1.0'


@pytest.mark.parametrize(
    ("algorithm", "victims"),
    [
        (HALOS, ["west-local-server", "west-worker-2"]),
        (FARFLUNG, ["east-coordinator", "west-worker-3"]),
    ],
    ids=["halos", "farflung"],
)
def test_a_run_learns_though_its_processes_are_killed(
    algorithm: str, victims: list[str], tmp_path: Path, lead: Callable[..., Command]
) -> None:
    command = lead(str(write_run(tmp_path, algorithm=algorithm, tokens=UNENDING)))
    wait_trained(command, 10_000)
    for victim in victims:
        command.seat(victim).send_signal(signal.SIGKILL)
        wait_told(command, f"{victim} ended with status -9 and is started again")
        wait_trained(command, command.num_tokens + 10_000)
    wait_learnt(command)
    interrupt(command)
    assert "Traceback" not in command.text


@pytest.mark.parametrize("algorithm", [HALOS, FARFLUNG], ids=["halos", "farflung"])
def test_an_interrupted_run_goes_on_where_it_was(algorithm: str, tmp_path: Path, lead: Callable[..., Command]) -> None:
    first = lead(str(write_run(tmp_path, algorithm=algorithm, tokens=UNENDING)))
    wait_trained(first, 25_000)
    children = psutil.Process(first.process.pid).children(recursive=True)
    interrupt(first)
    assert "Go on with: farflung pretrain" in first.output.read_text()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not tracebacks(first)
    before = first.num_tokens
    second = lead(with_budget(first, "tokens", UNENDING, before + MORE), "--resume")
    assert second.wait() == 0, second.output.read_text()
    assert "begins anew" not in second.text
    result = summary(tmp_path)
    assert result["validation_loss"] < LEARNT_LOSS
    # Without what the first part had done, it would take the whole budget again.
    assert before < result["num_tokens"] < before + MORE + 0.5 * before + OVERSHOOT
    history = read_history(first.folder / "log.jsonl")
    times = [point.seconds for point in history.points]
    assert times == sorted(times)


def test_a_second_interrupt_ends_a_stop_at_once(tmp_path: Path, lead: Callable[..., Command]) -> None:
    command = lead(str(write_run(tmp_path, algorithm=ONE_SERVER, tokens=UNENDING)), *TWO_SEATS)
    wait_trained(command, 1_000)
    children = psutil.Process(command.process.pid).children(recursive=True)
    command.seat("east-worker-0").send_signal(signal.SIGSTOP)  # it never hears that it should leave
    command.send(signal.SIGINT)
    wait_until(lambda: "Ctrl-C again ends them at once" in command.text, "the lead has heard the first", SECONDS_MAX)
    began_at = time.monotonic()
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.text
    assert time.monotonic() - began_at < STOP_SECONDS, "it has waited for the worker all the same"
    assert "Stopped at once; what was saved before is kept. Go on with: farflung pretrain" in command.text
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set")
def test_a_full_disk_of_a_seat_ends_the_run_with_a_way_out(tmp_path: Path, lead: Callable[..., Command]) -> None:
    command = lead(str(write_run(tmp_path, algorithm=ONE_SERVER, tokens=UNENDING)), *TWO_SEATS)
    limited: set[int] = set()

    def has_ended() -> bool:
        with contextlib.suppress(AssertionError, psutil.NoSuchProcess):  # between two lives of the seat
            process = command.seat("east-local-server")
            if process.pid not in limited:
                process.rlimit(psutil.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))
                limited.add(process.pid)
        return command.process.poll() is not None

    wait_until(has_ended, "the run ends", SECONDS_MAX)
    assert command.wait() == 1 and len(limited) >= 3, command.text
    assert "east-local-server cannot go on" in command.text
    assert "takes no more (File too large): make room there, then" in command.text
    assert not tracebacks(command)


def test_a_worker_of_another_machine_joins(tmp_path: Path, lead: Callable[..., Command], forge: ForkServer) -> None:
    path = write_run(tmp_path, algorithm=HALOS, tokens=UNENDING)
    command = lead(str(path), "--set", "training.joiners_max=1")
    wait_trained(command, 1_000)
    ticket = (tmp_path / "run" / "ticket").read_text().strip()
    log = tmp_path / "joining.log"
    arguments = ["join", ticket, "--region", "west", "--home", str(tmp_path / "elsewhere")]
    joining = forge.start(arguments, {"FARFLUNG_CACHE": str(tmp_path / "cache")}, log)
    wait_steps(command, "west-worker-5")
    interrupt(command)
    assert joining.wait(SECONDS_MAX) == 0, log.read_text()
    assert "takes the seat west-worker-5" in log.read_text()
    assert "stops: its owner has stopped it" in log.read_text()
    assert len(num_steps(command)) == 5


def test_a_killed_lead_leaves_no_process(tmp_path: Path, lead: Callable[..., Command]) -> None:
    command = lead(str(write_run(tmp_path, tokens=UNENDING)))
    wait_trained(command, 1_000)
    lead_process = psutil.Process(command.process.pid)
    wait_until(lambda: len(lead_process.children(recursive=True)) == 8, "seven seats and what has forked them")
    children = lead_process.children(recursive=True)
    command.send(signal.SIGKILL)
    command.process.wait()
    began_at = time.monotonic()
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not tracebacks(command)
    assert not alive, f"{len(alive)} processes live {time.monotonic() - began_at:.0f} s after their lead"


def test_a_run_whose_lead_was_killed_is_found_at_the_same_place_again(
    tmp_path: Path, lead: Callable[..., Command]
) -> None:
    first = lead(str(write_run(tmp_path, tokens=UNENDING)))
    wait_trained(first, 1_000)
    before = Ticket.parse((first.folder / "ticket").read_text().strip(), time.time()).meetings
    first.send(signal.SIGKILL)
    first.process.wait()
    trained = first.num_tokens
    second = lead(str(first.folder / "run.toml"), "--resume")
    wait_trained(second, trained + 1_000)
    after = Ticket.parse((first.folder / "ticket").read_text().strip(), time.time()).meetings
    assert [meeting.endpoints for meeting in after] == [meeting.endpoints for meeting in before]
