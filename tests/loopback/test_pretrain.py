"""Pretraining with real processes: it learns, survives kill -9 of workers and servers, is interrupted, resumed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from farflung.apps.runs.history import read_history
from farflung.wire.ticket import Ticket
from tests.apps.runs import HALOS, write_run
from tests.loopback.fleet import ROOT
from tests.loopback.pretraining import LEARNT_LOSS, Command, summary, wait_trained

pytestmark = pytest.mark.loopback

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
    algorithm: str, victims: list[str], tmp_path: Path, commands: list[Command]
) -> None:
    path = write_run(tmp_path, algorithm=algorithm, tokens=200_000)
    command = Command(tmp_path, str(path))
    commands.append(command)
    wait_trained(command, 20_000)
    for victim in victims:
        before = command.num_tokens
        command.seat(victim).send_signal(signal.SIGKILL)
        wait_trained(command, before + 20_000)
    assert command.wait() == 0, command.output.read_text()
    text = command.output.read_text().replace("\n", " ")
    for victim in victims:
        assert f"{victim} ended with status -9 and is started again" in text
    assert summary(tmp_path)["validation_loss"] < LEARNT_LOSS
    assert not [line for line in text.splitlines() if "Traceback" in line]


@pytest.mark.parametrize("algorithm", [HALOS, FARFLUNG], ids=["halos", "farflung"])
def test_an_interrupted_run_goes_on_where_it_was(algorithm: str, tmp_path: Path, commands: list[Command]) -> None:
    path = write_run(tmp_path, algorithm=algorithm, tokens=150_000)
    first = Command(tmp_path, str(path))
    commands.append(first)
    wait_trained(first, 30_000)
    children = psutil.Process(first.process.pid).children(recursive=True)
    first.process.send_signal(signal.SIGINT)
    assert first.wait() == 130, first.output.read_text()
    assert "Go on with: farflung pretrain" in first.output.read_text()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    before = first.num_tokens
    assert 30_000 <= before < 150_000
    second = Command(tmp_path, str(first.folder / "run.toml"), "--resume")
    commands.append(second)
    assert second.wait() == 0, second.output.read_text()
    result = summary(tmp_path)
    assert result["validation_loss"] < LEARNT_LOSS
    # Without what the first part had done, it would take the whole budget again.
    assert result["num_tokens"] - before < 150_000 - 0.5 * before + 40_000
    history = read_history(first.folder / "log.jsonl")
    times = [point.seconds for point in history.points]
    assert times == sorted(times)


def test_a_worker_of_another_machine_joins(tmp_path: Path, commands: list[Command]) -> None:
    path = write_run(tmp_path, algorithm=HALOS, tokens=400_000)
    command = Command(tmp_path, str(path), "--set", "training.joiners_max=1")
    commands.append(command)
    wait_trained(command, 20_000)
    ticket = (tmp_path / "run" / "ticket").read_text().strip()
    joining = subprocess.Popen(
        [sys.executable, "-m", "farflung", "join", ticket, "--region", "west", "--home", str(tmp_path / "elsewhere")],
        cwd=ROOT,
        env={**os.environ, "FARFLUNG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert command.wait() == 0, command.output.read_text()
        output, _ = joining.communicate(timeout=60)
    finally:
        joining.kill()
        joining.wait()
    assert "takes the seat west-worker-5" in output
    steps = {point.seat: point.num_steps for point in read_history(tmp_path / "run" / "log.jsonl").newest()}
    assert steps["west-worker-5"] > 0 and len(steps) == 5


def test_a_killed_lead_leaves_no_process(tmp_path: Path, commands: list[Command]) -> None:
    command = Command(tmp_path, str(write_run(tmp_path, tokens=10_000_000)))
    commands.append(command)
    wait_trained(command, 1_000)
    children = psutil.Process(command.process.pid).children(recursive=True)
    assert len(children) == 7
    command.process.kill()
    command.process.wait()
    began_at = time.monotonic()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive, f"{len(alive)} processes live {time.monotonic() - began_at:.0f} s after their lead"


def test_a_run_whose_lead_was_killed_is_found_at_the_same_place_again(tmp_path: Path, commands: list[Command]) -> None:
    first = Command(tmp_path, str(write_run(tmp_path, tokens=10_000_000)))
    commands.append(first)
    wait_trained(first, 1_000)
    before = Ticket.parse((first.folder / "ticket").read_text().strip(), time.time()).meetings
    first.process.kill()
    first.process.wait()
    trained = first.num_tokens
    second = Command(tmp_path, str(first.folder / "run.toml"), "--resume")
    commands.append(second)
    wait_trained(second, trained + 1_000)
    after = Ticket.parse((first.folder / "ticket").read_text().strip(), time.time()).meetings
    assert [meeting.endpoints for meeting in after] == [meeting.endpoints for meeting in before]
