"""Trees of parameter servers under random crashes, power losses, partitions, loss and duplication: nothing is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from farflung.sim.faults import Faults
from tests.chaos import hierarchy_scenario

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
NUM_SEEDS_QUICK = 24
NUM_SEEDS = 320


def test_an_undisturbed_tree_passes_the_same_checks() -> None:
    _, version, num_faults = hierarchy_scenario.run(1, Faults())
    assert version > 150 and num_faults == 7, "only the boots"


@pytest.mark.parametrize("seed", range(NUM_SEEDS_QUICK))
def test_no_update_is_lost_or_applied_twice(seed: int) -> None:
    hierarchy_scenario.run(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(NUM_SEEDS_QUICK, NUM_SEEDS))
def test_no_update_is_lost_or_applied_twice_under_many_seeds(seed: int) -> None:
    hierarchy_scenario.run(seed)


def test_two_processes_that_hash_differently_tell_the_same_story() -> None:
    command = [sys.executable, "-m", "tests.chaos.hierarchy_scenario", "3"]
    outputs: list[str] = []
    for hash_seed in ("1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, check=True)
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1] and int(outputs[0].split(" | ")[2]) > 10
