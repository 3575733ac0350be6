"""A run whose rounds run freely keeps to its budget, however slow the rounds are and whoever is away."""

import torch

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.desync.config import RoundConfig, farflung
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
