"""A worker that is stopped leaves nothing behind: its steps are in a round first, unless there is no coordinator."""

import asyncio

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.desync.config import DesyncConfig, RoundConfig, desloc, farflung
from tests.desyncs import LEADER, SimulatedDesync

torch.set_num_threads(1)

BUDGET = 4000
WORKERS = ("w0", "w1", "w2")
SITES = {"w0": "a", "w1": "a", "w2": "b"}
PATIENT = RoundConfig(deadline_seconds=60.0, ask_again_seconds=30.0)
OVERLAPPED = {"is_overlapped": True, "moment_decays": {"first_moment": 0.9, "second_moment": 0.95}}
CONFIGS = {
    "blocking": desloc(BUDGET, 8, rounds=PATIENT),
    "overlapped": desloc(BUDGET, 8, rounds=PATIENT, **OVERLAPPED),
    "free-running": farflung(BUDGET, 2, rounds=PATIENT),
}


def stopped(config: DesyncConfig, faults: Faults) -> tuple[SimulatedDesync, float]:
    """A run whose workers are stopped after eight seconds, and how long they took to leave."""
    topology = Topology().link("a", "b", Link(latency_seconds=0.4, bytes_per_second=1e6))
    with SimulatedDesync(config, WORKERS, SITES, {"w2": 0.6}, topology=topology, faults=faults) as desync:
        simulation = desync.simulation
        ended_at: list[float] = []

        async def stop() -> None:
            await asyncio.sleep(8.0)
            for name in WORKERS:
                desync.running[name].stop()
            while len(desync.reports) < len(WORKERS):  # noqa: ASYNC110 - in virtual time
                await asyncio.sleep(0.1)
            ended_at.append(simulation.now())

        simulation.run(stop(), deadline=200.0)
        return desync, ended_at[0] - 8.0


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_all_steps_are_in_a_round(config: DesyncConfig) -> None:
    desync, seconds = stopped(config, Faults())
    num_steps = sum(report.num_steps for report in desync.reports.values())
    assert 0 < desync.coordinator.num_credited == num_steps < BUDGET
    assert seconds < 10.0
    assert not any(report.has_result for report in desync.reports.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_without_a_coordinator_workers_leave_at_once(config: DesyncConfig) -> None:
    desync, seconds = stopped(config, Faults().crash(LEADER, at=6.0))
    assert seconds < 3.0
    rounds = [desync.running[name].replica.round for name in WORKERS]
    assert min(rounds) > 0 and max(rounds) - min(rounds) <= 1
