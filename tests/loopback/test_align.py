"""Alignment with real processes: it learns, whoever is killed, cut off or lies; nothing is lost, nothing is too old."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.apps.aligned import write_align_run
from tests.loopback.aligning import check_complete, wait_stepped
from tests.loopback.fleet import ROOT, wait_until
from tests.loopback.pretraining import SECONDS_MAX, Command, summary

pytestmark = pytest.mark.loopback

NUM_STEPS = 24
CUT_SECONDS = 30.0


@pytest.mark.timeout(600)
def test_the_pass_rate_of_a_short_run_rises(tmp_path: Path, commands: list[Command]) -> None:
    command = Command(tmp_path, str(write_align_run(tmp_path, 10)), kind="align")
    commands.append(command)
    assert command.wait() == 0, command.output.read_text()
    found = summary(tmp_path)
    assert found["pass_rate"] > found["pass_rate_before"] + 0.1
    check_complete(tmp_path, 10)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_learns_though_a_worker_and_the_trainer_are_killed(tmp_path: Path, commands: list[Command]) -> None:
    command = Command(tmp_path, str(write_align_run(tmp_path, NUM_STEPS)), kind="align")
    commands.append(command)
    wait_stepped(command, 3)
    command.seat("here-worker-0").send_signal(signal.SIGKILL)
    wait_stepped(command, 6)
    command.seat("here-trainer").send_signal(signal.SIGKILL)
    assert command.wait() == 0, command.output.read_text()
    for victim in ("here-worker-0", "here-trainer"):
        assert f"{victim} ended with status -9 and is started again" in command.text
    found = summary(tmp_path)
    assert found["reward"] > found["reward_before"] + 0.2
    check_complete(tmp_path, NUM_STEPS)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_over_two_block_servers_survives_one_of_them(tmp_path: Path, commands: list[Command]) -> None:
    settings = ["--set", "rollout.stages=2", "--set", "regions=[{name='here', workers=1}]"]
    command = Command(tmp_path, str(write_align_run(tmp_path, 8)), *settings, kind="align")
    commands.append(command)
    wait_stepped(command, 2)
    command.seat("here-stage-0-1").send_signal(signal.SIGKILL)
    assert command.wait() == 0, command.output.read_text()
    assert "here-stage-0-1 ended with status -9 and is started again" in command.text
    assert summary(tmp_path)["reward"] > summary(tmp_path)["reward_before"]
    check_complete(tmp_path, 8)


FAR = """
[sync]
audit_share = 0.1

[[regions]]
name = "here"
workers = 2

[[regions]]
name = "far"
workers = 1

[[links]]
between = ["here", "far"]
bandwidth_mbit = 20
latency_ms = 20
"""


def gateways_of(command: Command) -> psutil.Process:
    """The process that all links between regions pass through."""
    children = psutil.Process(command.process.pid).children()
    return next(child for child in children if "farflung.apps.runs.gateways" in child.cmdline())


def start_liar(command: Command, folder: Path) -> subprocess.Popen[bytes]:
    """Joins as one more worker."""
    ticket, home = (command.folder / "ticket").read_text().strip(), folder / "liar"
    with (folder / "liar.txt").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.loopback.lying_worker", ticket, str(home)],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_workers_and_the_trainer_die_a_link_is_cut_and_a_liar_joins(tmp_path: Path, commands: list[Command]) -> None:
    path = write_align_run(tmp_path, 60)
    path.write_text(path.read_text().replace("[model]", "is_shaped = true\n\n[model]", 1) + FAR)
    command = Command(tmp_path, str(path), kind="align")
    commands.append(command)
    wait_stepped(command, 2)
    liar = start_liar(command, tmp_path)
    try:
        command.seat("here-worker-0").send_signal(signal.SIGKILL)
        wait_stepped(command, 6)
        command.seat("here-trainer").send_signal(signal.SIGKILL)
        wait_stepped(command, 12)
        link = gateways_of(command)
        link.suspend()
        cut_at = time.monotonic()
        wait_stepped(command, 20)
        command.seat("here-worker-1").send_signal(signal.SIGKILL)
        wait_until(lambda: time.monotonic() > cut_at + CUT_SECONDS, "the link was cut for long", SECONDS_MAX)
        link.resume()
        wait_stepped(command, 26)
        command.seat("here-trainer").send_signal(signal.SIGKILL)
        assert command.wait() == 0, command.output.read_text()
        assert liar.wait(SECONDS_MAX) == 1
    finally:
        liar.kill()
        liar.wait()
    assert "is banned from this run" in (tmp_path / "liar.txt").read_text()
    assert "found out after" in (command.folder / "log.jsonl").read_text()
    trainer = check_complete(tmp_path, 60)
    assert trainer["banned"] == 1
    found = summary(tmp_path)
    assert found["reward"] > found["reward_before"] + 0.2
