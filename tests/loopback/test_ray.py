"""Seats as actors of a real Ray on this machine: they train, are started again when killed, and leave nothing."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from farflung.apps.cli import main
from farflung.apps.runs import launchers
from farflung.apps.runs.ray_actors import gpus_each
from tests.apps.runs import ONE_SERVER, write_run
from tests.loopback.fleet import ROOT, wait_until
from tests.loopback.pretraining import LEARNT_LOSS, SECONDS_MAX, Command, num_steps, summary, wait_trained

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'farflung[ray]'"
)
SITES = ["--set", "regions=[{name='east', workers=2}]", "--set", "links=[]"]


def actor(command: Command, seat: str) -> psutil.Process | None:
    """The process of the actor that sits there now, if it lives: the one that writes the seat's log."""
    log = command.folder / "seats" / f"{seat}-1.log"
    for process in psutil.Process(command.process.pid).children(recursive=True):
        try:
            if Path(f"/proc/{process.pid}/fd/1").readlink() == log:
                return process
        except OSError:  # it has just ended
            continue
    return None


def strange_addresses(command: Command) -> list[object]:
    """Where the processes of a run listen or are connected to beyond this machine."""
    processes = psutil.Process(command.process.pid).children(recursive=True)
    connections = [connection for process in processes for connection in process.net_connections()]
    ends = [(one, end) for one in connections for end in (one.laddr, one.raddr) if end]
    return [one for one, end in ends if not end.ip.endswith("127.0.0.1")]


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
def test_actors_are_started_again_and_go_on(tmp_path: Path, commands: list[Command]) -> None:
    path = write_run(tmp_path, algorithm=ONE_SERVER, tokens=100_000)
    command = Command(tmp_path, str(path), "--engine", "ray", *SITES)
    commands.append(command)
    wait_trained(command, 5_000)
    everybody = psutil.Process(command.process.pid).children(recursive=True)
    assert any(process.name() == "raylet" for process in everybody)
    assert not strange_addresses(command)
    for seat in ("east-local-server", "east-worker-1"):
        victim = actor(command, seat)
        assert victim is not None
        victim.send_signal(signal.SIGKILL)
        wait_until(lambda seat=seat, victim=victim: actor(command, seat) not in (None, victim), "again", SECONDS_MAX)
    assert command.wait() == 0, command.output.read_text()
    assert summary(tmp_path)["validation_loss"] < LEARNT_LOSS
    for seat in ("east-local-server", "east-worker-1"):
        assert (command.folder / "seats" / f"{seat}-1.log").read_text().count(f"takes the seat {seat}") == 2
        assert not (command.folder / "seats" / f"{seat}-2.log").exists(), "Ray started it again, not the lead"
    _, alive = psutil.wait_procs(everybody, timeout=60)
    assert not alive


@needs_ray
@pytest.mark.loopback
@pytest.mark.slow
def test_a_joiner_may_be_an_actor_and_a_killed_lead_leaves_none(tmp_path: Path, commands: list[Command]) -> None:
    path = write_run(tmp_path, algorithm=ONE_SERVER, tokens=100_000_000)
    sites = ["--set", "regions=[{name='east', workers=1}]", "--set", "links=[]", "--set", "training.joiners_max=1"]
    command = Command(tmp_path, str(path), "--engine", "ray", *sites)
    commands.append(command)
    wait_trained(command, 1_000)
    ticket = (tmp_path / "run" / "ticket").read_text().strip()
    home = tmp_path / "elsewhere"
    words = ["join", ticket, "--engine", "ray", "--home", str(home)]
    environment = {**os.environ, "FARFLUNG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    joining = subprocess.Popen([sys.executable, "-m", "farflung", *words], cwd=ROOT, env=environment)
    try:
        wait_until(lambda: "east-worker-1" in num_steps(command), "the joiner has made steps", SECONDS_MAX)
        everybody = psutil.Process(command.process.pid).children(recursive=True)
        everybody += psutil.Process(joining.pid).children(recursive=True)
        command.send(signal.SIGKILL)
        assert joining.wait(120) == 2, "the lead is gone"
    finally:
        joining.terminate()
        joining.wait(120)
    assert "the lead is gone" in (home / "logs" / "seat.log").read_text()
    _, alive = psutil.wait_procs(everybody, timeout=120)  # seats at once, agents of Ray's within a minute
    assert not alive


def test_where_ray_is_missing_a_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launchers.importlib.util, "find_spec", lambda name: None)
    for command in ("pretrain", "join"):
        with pytest.raises(SystemExit, match="2"):
            main([command, "--engine", "ray", *(["--show"] if command == "pretrain" else [])])
    sentence = "farflung: --engine ray needs Ray, which is not installed here: pip install 'farflung[ray]'\n"
    assert capsys.readouterr().err == 2 * sentence


def test_an_unknown_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["pretrain", "--engine", "raj"])
    assert "unknown engine 'raj' in [--engine]: did you mean 'ray'?" in capsys.readouterr().err


def test_accelerators_are_shared_fairly() -> None:
    assert gpus_each(0.0, 4, 1) == 0.0
    assert gpus_each(8.0, 4, 1) == 1.0
    assert gpus_each(8.0, 8, 4) == 4.0
    assert gpus_each(1.0, 4, 1) == 0.25
    assert gpus_each(3.0, 8, 4) == 1.0, "Ray gives parts of one accelerator, or whole ones"
    assert gpus_each(2.0, 3, 1) == 0.5, "Ray would find no place for a third that asks for two thirds of one"
    assert gpus_each(8.0, 4, 0) == 0.0, "servers need none"
