"""One run with faults and what must hold of it, told as its trace: `python -m tests.chaos.desync_scenario "late" 3`."""

import sys
from dataclasses import dataclass, field

import torch

from farflung.sim.faults import Faults
from farflung.systems.desync.config import DesyncConfig, RoundConfig, ddp, desloc, diloco, farflung
from farflung.systems.desync.progress import WorkerReport
from tests.desyncs import LEADER, Reader, SimulatedDesync

WORKERS = ("w0", "w1", "w2", "w3")
SITES = {"w0": "asia", "w1": "europe", "w2": "europe", "w3": "america"}
SPEEDS = {"w1": 0.7, "w3": 0.4}
NUM_STEPS = 100
NUM_SHARDS = 6
FAULTS_UNTIL = 4.0
VIRTUAL_SECONDS_MAX = 400.0
MOMENTS = {"first_moment": 8, "second_moment": 12}
DECAYS = {"first_moment": 0.9, "second_moment": 0.95}
ROUNDS = RoundConfig(
    deadline_seconds=3.0,
    ask_again_seconds=0.3,
    exchange_seconds_max=3.0,
    ban_seconds=1.0,
    lease_seconds=1.5,
    num_members_at_start=4,
)


def policies() -> dict[str, DesyncConfig]:
    """Every kind of round."""
    late = {"is_overlapped": True, "moment_decays": DECAYS}
    budget = len(WORKERS) * NUM_STEPS
    return {
        "desloc": desloc(budget, 4, MOMENTS, rounds=ROUNDS),
        "scaled": diloco(budget, 5, codec="int4", is_speed_scaled=True, topology="two-level", rounds=ROUNDS),
        "late": desloc(budget, 4, MOMENTS, codec="int8", weights="steps", rounds=ROUNDS, **late),
        "farflung": farflung(budget, 2, codec="int2", round_seconds_min=0.2, rounds=ROUNDS),
        "ddp": ddp(budget // 4, rounds=ROUNDS),
        "adaptive": desloc(budget, 4, MOMENTS, codec="auto", periods="drift", moment_decays=DECAYS, rounds=ROUNDS),
    }


@dataclass
class Story:
    """What became of a run."""

    trace_hash: str = ""
    seconds: float = 0.0
    num_faults: int = 0
    num_given_up: int = 0
    num_states_taken: int = 0
    num_moves: int = 0
    """Of data, from workers that were gone to others."""
    breaches: list[str] = field(default_factory=list[str])
    """Sentences; none of them if all is well."""


def run(policy: str, seed: int, *, loss: float = 0.03) -> Story:
    """A run of four workers at three sites under this seed's faults."""
    faults = Faults.random(seed, [*WORKERS, LEADER], until=FAULTS_UNTIL, loss=loss, sites=sorted(set(SITES.values())))
    faults.duplicate(0.02, during=(0.0, FAULTS_UNTIL))
    return tell(policies()[policy], seed, faults)


def tell(config: DesyncConfig, seed: int, faults: Faults) -> Story:
    """Run, and compare what every member has after each exchange, and what all have at the end."""
    story = Story()
    after: dict[int, bytes] = {}
    rounds: dict[tuple[int, int], None] = {}

    def on_round(name: str, report: WorkerReport) -> None:
        exchange = report.exchanges[report.round - 1]
        agreed = desync.running[name].replica.agreed
        values = agreed if not config.averages_gradients else desync.parameters(name)
        bits = values.numpy().tobytes()
        if after.setdefault(exchange, bits) != bits:
            story.breaches.append(f"{name} has something else after exchange {exchange}")
        rounds[report.round, exchange] = None

    def make(name: str) -> Reader:
        return Reader(int(name[1:]), NUM_SHARDS, length=200, learning_rate=0.01)

    with SimulatedDesync(
        config, WORKERS, SITES, SPEEDS, 0.05, seed, faults, make_learner=make, on_round=on_round
    ) as desync:
        desync.run(deadline=VIRTUAL_SECONDS_MAX, names=WORKERS)
        trace = desync.simulation.trace
        story.trace_hash, story.seconds = trace.trace_hash, desync.simulation.now()
        story.num_faults = sum(1 for _ in trace.of("fault")) + sum(1 for _ in trace.of("loss"))
        story.num_given_up = sum("is given up" in event.detail for event in trace.of("note"))
        story.num_states_taken = sum("took the state" in event.detail for event in trace.of("note"))
        story.breaches += breaches(desync, config)
        if not any("back to round" in event.detail for event in trace.of("note")):
            numbers = [number for number, _ in rounds]
            story.breaches += [f"round {one} was committed twice" for one in set(numbers) if numbers.count(one) > 1]
            num_drawn, num_credited = desync.coordinator.num_drawn, desync.coordinator.num_credited
            if num_drawn != num_credited:
                story.breaches.append(f"{num_credited} steps count, on {num_drawn} different samples")
        story.num_moves = sum("are dealt to others" in event.detail for event in trace.of("note"))
    return story


def breaches(desync: SimulatedDesync, config: DesyncConfig) -> list[str]:
    """What is wrong at the end."""
    found: list[str] = []
    if sorted(desync.reports) != sorted(WORKERS):
        found.append(f"only {sorted(desync.reports)} came to the end")
    ends = {name: desync.parameters(name) for name in desync.reports}
    first = next(iter(ends.values()))
    found += [f"{name} ends with other parameters" for name, end in ends.items() if not torch.equal(end, first)]
    if desync.coordinator.num_credited < config.num_worker_steps:
        found.append(f"{desync.coordinator.num_credited} steps are too few")
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    story = run(sys.argv[1], int(sys.argv[2]))
    sys.stdout.write(f"{story.trace_hash} | {story.num_faults} | {story.breaches}\n")
