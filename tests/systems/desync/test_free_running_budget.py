"""A run whose rounds run freely keeps to its budget, however slow the rounds are and whoever is away."""

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.desync.config import RoundConfig, farflung
from farflung.systems.desync.forming import Standing, assign, plan_round
from tests.desyncs import LEADER, SimulatedDesync

torch.set_num_threads(1)

BUDGET = 400
WORKERS = ("w0", "w1", "w2", "w3")
SITES = {"w0": "a", "w1": "a", "w2": "b", "w3": "b"}
PATIENT = RoundConfig(deadline_seconds=10.0, ask_again_seconds=5.0, exchange_seconds_max=60.0)


def steps_of_a_run(latency_seconds: float, faults: Faults) -> list[int]:
    """Local steps of each worker."""
    link = Link(latency_seconds=latency_seconds, bytes_per_second=1e6)
    topology = Topology().link("a", "b", link)
    config = farflung(BUDGET, 2, rounds=PATIENT)
    with SimulatedDesync(config, WORKERS, SITES, {"w3": 0.5}, topology=topology, faults=faults) as desync:
        desync.run(deadline=600)
        assert desync.coordinator.num_credited >= BUDGET
        ends = [desync.parameters(name) for name in WORKERS]
        assert all(torch.equal(ends[0], end) for end in ends)
        return [desync.reports[name].num_steps for name in WORKERS]


def test_slow_rounds_do_not_train_on_beyond_the_budget() -> None:
    # A round takes several seconds, in which all workers together make many steps.
    assert BUDGET <= sum(steps_of_a_run(1.5, Faults())) <= 1.2 * BUDGET


def test_workers_do_not_train_on_while_the_coordinator_is_away() -> None:
    num_steps = steps_of_a_run(0.05, Faults().freeze(LEADER, during=(2.0, 60.0)))
    assert BUDGET <= sum(num_steps) <= 1.5 * BUDGET


@pytest.mark.parametrize(
    ("speeds", "own", "num_steps"),
    [
        ((0.0,), 0.0, 10),  # the first of four that come back to a run that was stopped
        ((0.0, 0.0, 0.0, 0.0), 0.0, 10),
        ((2.0, 0.0), 2.0, 10),  # who is not known yet is thought to be like the others
        ((3.0, 1.0, 0.0, 0.0), 3.0, 15),
        ((3.0, 1.0, 2.0, 2.0), 1.0, 5),
        ((1.0,) * 8, 1.0, 5),  # others have joined
    ],
)
def test_members_share_what_is_left_before_their_speeds_are_known(
    speeds: tuple[float, ...], own: float, num_steps: int
) -> None:
    config = farflung(BUDGET, 2)
    standing = Standing(round=5, num_credited=200, num_credited_last=40, num_members_last=4, speeds=speeds)
    assignment = assign(plan_round(5, 200, speeds, config, 40), standing, own, config)
    assert assignment.num_steps == num_steps
    assert assignment.progress_last - assignment.progress_first == pytest.approx(40 / BUDGET)
