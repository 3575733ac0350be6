"""A worker of two processes learns what one process learns from the same batches, with DDP and with FSDP2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farflung.apps.pretrain.run_file import PRETRAIN
from farflung.apps.processes import ChildFailed, Supervisor
from farflung.apps.runs.group import meet, watched
from tests.apps.runs import write_run

pytestmark = pytest.mark.loopback

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("parallelism", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_a_group_learns_what_one_process_learns(parallelism: str, tmp_path: Path) -> None:
    overrides = [f"regions=[{{name='east', ranks_per_worker=2, parallelism='{parallelism}'}}]", "links=[]"]
    command = [sys.executable, "-m", "tests.apps.group_of_two", str(write_run(tmp_path)), str(tmp_path), *overrides]
    environment = {**os.environ, "FARFLUNG_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=400)
    distances = json.loads((tmp_path / "distances.json").read_text())
    assert distances.keys() == {"scalars", "middle", "end", "first_moment", "second_moment"}
    assert max(distances.values()) < 1e-5, distances
    assert max(distances.values()) > 0, "sums of two halves are grouped otherwise, so this compares nothing"


def test_a_rank_that_dies_before_the_group_meets_ends_the_others(tmp_path: Path) -> None:
    with Supervisor(tmp_path) as supervisor:
        supervisor.start("rank-1", [sys.executable, "-c", "raise SystemExit('no memory')"], {})
        with pytest.raises(ChildFailed, match=r"rank-1 ended with status 1:\nno memory"):
            watched(supervisor, lambda: meet(str(tmp_path / "store"), 0, 2))


def test_ranks_that_cannot_share_a_batch_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    with pytest.raises(ValueError, match="batch_size = 4 cannot be shared equally by 3 ranks: choose a multiple of 3"):
        PRETRAIN.load(path, ["regions=[{name='east', ranks_per_worker=3}]", "links=[]"])
    with pytest.raises(ValueError, match="'east' needs at least one rank per worker"):
        PRETRAIN.load(path, ["regions=[{name='east', ranks_per_worker=0}]", "links=[]"])
    with pytest.raises(ValueError, match=r"unknown value 'fdsp' in .*: did you mean 'fsdp'"):
        PRETRAIN.load(path, ["regions=[{name='east', parallelism='fdsp'}]", "links=[]"])
