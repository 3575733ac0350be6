"""A seed replays: the same scenario in processes that hash differently leaves the same trace, to the last message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
SCENARIO = [sys.executable, "-m", "tests.chaos.swarm_scenario"]


def start(seed: int, hash_seed: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "TQDM_DISABLE": "1"}
    command = [*SCENARIO, str(seed)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE)


def result(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    return output.splitlines()[-1].split(" | ")


def test_two_processes_that_hash_differently_tell_the_same_story() -> None:
    one, two = start(3, "1"), start(3, "4242")
    first, second = result(one), result(two)
    assert first == second
    assert int(first[2]) > 3, "the faults must strike while it runs"
