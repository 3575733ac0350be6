"""Trees of parameter servers under random crashes, power losses, partitions, loss and duplication: nothing is lost."""

import pytest

from farflung.sim.faults import Faults
from tests.chaos import hierarchy_scenario
from tests.chaos.stories import told_twice

pytestmark = pytest.mark.chaos

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
    one, two = told_twice("tests.chaos.hierarchy_scenario", "3")
    assert one == two and int(one.split(" | ")[2]) > 10
