"""Measurers that lie: the example tuned while a share of them tells every slope reversed, as large as can be.

The real sequencer and measurers talk in the simulator, with the real rule: a scale that is the median of all entries,
lies among them; clipping; random re-measurement by another node; bans that subtract what was contributed. Beside it the
plain mean of floats, which has none of it. Honest replicas hold the same weights, so that one model measures for all.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.onebyte_example import SEQUENCER, Example
from bench.report import Report, bench_arguments
from farflung.sim.simulation import Simulation
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.directions import draw_directions
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.measure import Measurer
from farflung.systems.onebyte.messages import ACTOR
from farflung.systems.onebyte.records import Revocation
from farflung.systems.onebyte.sequencer import Sequencer
from farflung.systems.onebyte.steps import Step
from farflung.systems.onebyte.worker import Worker
from farflung.wire.identity import Identity
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.errors import Refused
from farflung.world.host import Host

NUM_MACHINES = 17
NUM_HOSTILE = (0, 1, 4, 7)
"""0, 6, 24 and 41 percent of them."""
NUM_SLOTS = 68
RATE = 4e-2
BATCH_SIZE = 64
AUDIT_SHARE = 0.1
LIE_SIGMAS = 1000
"""How much larger than true ones the lies are in floats; a byte can tell the largest only."""
DEADLINE_SECONDS = 100_000.0


class Replica:
    """The weights that all honest machines hold, and what they measure there: each round's slots at once."""

    def __init__(self, example: Example, header: Header) -> None:
        self.model = example.copy_of_model()
        batches = example.task.batches(BATCH_SIZE, "attacks")
        self._learner = ModelLearner(header, self.model, example.task.objective, batches, is_exact=True)
        self._measured: dict[int, bytes] = {}
        self.num_moves = 0

    def move(self, number: int, steps: Sequence[Step]) -> None:
        """Somebody's journal has grown for the `number`th time; the first who tells moves the weights."""
        if number == self.num_moves:
            self._learner.add(steps)
            self.num_moves += 1

    def measure(self, num_moves: int, round_number: int, slots: range) -> bytes:
        """At the weights after so many moves."""
        if num_moves not in self._measured:
            assert num_moves == self.num_moves, "who measures has heard all that anybody has"
            self._measured = {num_moves: self._learner.measure(round_number, 0, NUM_SLOTS)}
        return self._measured[num_moves][slots.start : slots.stop]

    def digest(self) -> bytes:
        """Of the weights."""
        return self._learner.digest()

    def refresh(self) -> None:
        """Bring the model up to date."""
        self._learner.refresh()


class Follower:
    """One machine's learner: honest, or a liar that reverses all it measures and calls it as large as can be."""

    def __init__(self, replica: Replica, *, is_hostile: bool) -> None:
        self._replica = replica
        self._is_hostile = is_hostile
        self._num_moves = 0

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        codes = self._replica.measure(self._num_moves, round_number, range(first_slot, first_slot + num_slots))
        return bytes(code ^ 128 | 127 for code in codes) if self._is_hostile else codes

    def add(self, steps: Sequence[Step]) -> None:
        self._replica.move(self._num_moves, steps)
        self._num_moves += 1

    def digest(self) -> bytes:
        return hashlib.blake2b(f"{self._num_moves}".encode()).digest()[:32]


@dataclass(frozen=True)
class Outcome:
    """One run."""

    accuracy: float
    num_banned: int
    """Of the hostile."""
    num_honest_banned: int
    banned_by: int | None
    """The round before which the last of the hostile was banned."""


def tune(example: Example, num_hostile: int, num_rounds: int, audit_share: float) -> Outcome:
    """A run of the real sequencer and measurers."""
    header = example.header(num_slots=NUM_SLOTS, rate=RATE)
    config = RoundsConfig(
        num_rounds=num_rounds,
        entries_per_message=NUM_SLOTS,
        slots_per_lease_min=4,
        audit_share=audit_share,
        ask_again_seconds=2.0,
        seal_seconds_max=2.0,
    )
    group, replica = Group(candidates=(PeerId("first"),)), Replica(example, header)
    sequencers: list[Sequencer] = []
    tasks: list[asyncio.Task[object]] = []
    hostile = {f"machine-{number}" for number in range(num_hostile)}

    def boot_sequencer(world: World) -> None:
        sequencers.append(Sequencer.open(world, header, config, group, SEQUENCER))
        Host(sequencers[0], world, ACTOR)

    def boot_machine(world: World) -> None:
        name = str(world.network.peer)
        identity = Identity(hashlib.sha256(name.encode()).digest())
        learner = Follower(replica, is_hostile=name in hostile)
        worker = Worker(world, header, config, group, identity, learner, name=name, seconds_per_slot=0.01)

        async def work() -> None:
            try:
                await worker.run()
            except Refused:
                assert name in hostile or num_hostile, "nobody is banned where all are honest"

        tasks.append(asyncio.get_running_loop().create_task(work()))

    with Simulation(keep_trace=False) as simulation:
        simulation.node("first", boot=boot_sequencer)
        for number in range(NUM_MACHINES):
            simulation.node(f"machine-{number}", boot=boot_machine)

        async def wait() -> None:
            await asyncio.gather(*tasks)

        simulation.run(wait(), deadline=DEADLINE_SECONDS)
        ledger, records = sequencers[0].ledger, sequencers[0].records
    assert ledger is not None and ledger.is_closed
    banned = [ledger.participants[record.participant].name for record in records if isinstance(record, Revocation)]
    ends = [
        record.end_round
        for record in records
        if isinstance(record, Revocation) and ledger.participants[record.participant].name in hostile
    ]
    replica.refresh()
    num_banned = len(hostile.intersection(banned))
    return Outcome(example.accuracy(replica.model), num_banned, len(banned) - num_banned, max(ends, default=None))


def tune_by_floats(example: Example, num_hostile: int, num_rounds: int) -> float:
    """The plain mean: every machine's floats count as they are. Accuracy; what no number can save is chance."""
    header, model = example.header(num_slots=NUM_SLOTS, rate=RATE), example.copy_of_model()
    measurer, batches = Measurer(header, model, example.task.objective), example.task.batches(BATCH_SIZE, "attacks")
    lies = torch.arange(NUM_SLOTS) % NUM_MACHINES < num_hostile
    parameters = dict(model.named_parameters())
    for number in range(num_rounds):
        slopes = torch.tensor(measurer.project_gradient(batches(number), number, range(NUM_SLOTS)))
        # In units of the honest median, so that the rate means what it means in the journal.
        slopes = slopes / slopes.abs().median()
        slopes = torch.where(lies, -LIE_SIGMAS * slopes.sign(), slopes)
        with torch.no_grad():
            for tensor in header.tensors:
                drawn = draw_directions(header, tensor, number, 0, NUM_SLOTS)
                mean = (drawn.entries(tensor.shape) * slopes.view(-1, *[1] * len(tensor.shape))).mean(0)
                parameters[tensor.name].sub_(RATE * mean.float())
    return example.accuracy(model)


def main() -> int:
    arguments = bench_arguments(__doc__ or "").parse_args()
    num_rounds = 40 if arguments.quick else 160
    example = Example.load()
    settings = {"machines": NUM_MACHINES, "slots": NUM_SLOTS, "rounds": num_rounds, "audit share": AUDIT_SHARE}
    report = Report("onebyte_attacks", settings)
    before = example.accuracy(example.model)
    floats = {count: tune_by_floats(example, count, num_rounds) for count in NUM_HOSTILE[:2]}
    bytes_alone = {count: tune(example, count, num_rounds, 0.0) for count in NUM_HOSTILE}
    defended = {count: tune(example, count, num_rounds, AUDIT_SHARE) for count in NUM_HOSTILE}
    rows = [
        [
            f"{count / NUM_MACHINES:.0%}",
            f"{floats[count]:.1f}" if count in floats else "-",
            f"{bytes_alone[count].accuracy:.1f}",
            f"{defended[count].accuracy:.1f}",
            f"{defended[count].num_banned} of {count}",
            f"{defended[count].num_honest_banned}",
            f"{defended[count].banned_by}",
        ]
        for count in NUM_HOSTILE
    ]
    columns = ("hostile", "mean of floats", "bytes, clipped", "re-measured, banned", "banned", "honest", "by round")
    report.table(f"Accuracy in percent ({before:.1f} before)", columns, rows)
    calm = defended[0].accuracy
    failed = floats[NUM_HOSTILE[1]]
    report.claim(
        "the plain mean of floats, 6 % hostile", f"fails: below {before:.1f}", f"{failed:.1f}", failed < before
    )
    for count in NUM_HOSTILE[1:]:
        lost, share = calm - defended[count].accuracy, f"{count / NUM_MACHINES:.0%}"
        report.claim(f"points lost with the defence, {share} hostile", "at most 4", f"{lost:.1f}", lost <= 4)
        found = defended[count].num_banned
        report.claim(f"liars banned, {share} hostile", f"all {count}", f"{found}", found == count)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
