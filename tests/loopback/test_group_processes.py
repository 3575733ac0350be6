"""Workers that are groups of real processes: started by the lead and killed, and joined from elsewhere by torchrun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.apps.runs import HALOS, write_run
from tests.loopback.fleet import ROOT
from tests.loopback.pretraining import (
    LEARNT_LOSS,
    SECONDS_MAX,
    UNENDING,
    Command,
    interrupt,
    num_steps,
    summary,
    wait_learnt,
    wait_reports,
    wait_steps,
    wait_told,
    wait_trained,
    with_budget,
)

pytestmark = pytest.mark.loopback

FARFLUNG = 'name = "farflung"\n[algorithm.rounds]\nask_again_seconds = 1.0'
SITES = [
    "regions=[{name='east', workers=1, ranks_per_worker=2}, {name='west', workers=1, parallelism='fsdp'}]",
    "links=[]",
    "training.joiners_max=1",
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "farflung", "join"]


@pytest.mark.slow
def test_rounds_among_groups_are_stopped_and_resumed(tmp_path: Path, commands: list[Command]) -> None:
    groups = ", ".join(f"{{name='{name}', ranks_per_worker=2, parallelism='fsdp'}}" for name in ("east", "west"))
    path = write_run(tmp_path, algorithm=FARFLUNG, tokens=UNENDING)
    first = Command(tmp_path, str(path), "--set", f"regions=[{groups}]", "--set", "links=[]")
    commands.append(first)
    wait_trained(first, 10_000)
    children = psutil.Process(first.process.pid).children(recursive=True)
    interrupt(first)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
    second = Command(tmp_path, with_budget(first, "tokens", UNENDING, first.num_tokens + 50_000), "--resume")
    commands.append(second)
    assert second.wait() == 0, second.output.read_text()
    assert summary(tmp_path)["validation_loss"] < LEARNT_LOSS


@pytest.mark.slow
def test_groups_train_though_a_rank_is_killed_and_torchrun_joins(tmp_path: Path, commands: list[Command]) -> None:
    path = write_run(tmp_path, algorithm=HALOS, tokens=UNENDING)
    command = Command(tmp_path, str(path), *(word for one in SITES for word in ("--set", one)))
    commands.append(command)
    wait_trained(command, 2_000)
    ticket = (tmp_path / "run" / "ticket").read_text().strip()
    environment = {**os.environ, "FARFLUNG_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    elsewhere = [sys.executable, *TORCHRUN, ticket, "--region", "west", "--home", str(tmp_path / "elsewhere")]
    joining = subprocess.Popen(elsewhere, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        wait_steps(command, "east-worker-0")
        (other_rank,) = command.seat("east-worker-0").children()
        other_rank.send_signal(signal.SIGKILL)
        wait_told(command, "east-worker-0 ended with status 1 and is started again")
        wait_steps(command, "west-worker-3")
        wait_reports(command, "east-worker-0", 2)
        wait_learnt(command)
        interrupt(command)
        output, _ = joining.communicate(timeout=SECONDS_MAX)
    finally:
        left = [one for one in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(one.info["cmdline"] or [])]
        joining.terminate()
        joining.wait(120)
    assert joining.returncode == 0 and "takes the seat west-worker-3" in output
    assert set(num_steps(command)) == {"east-worker-0", "west-worker-1", "west-worker-3"}
    _, alive = psutil.wait_procs(left, timeout=60)
    assert not alive
