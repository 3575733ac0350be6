"""One run of one byte per gradient with faults, checked: `python -m tests.chaos.onebyte_scenario SEED [SHARED]`.

A sequencer, two standbys, a witness and four measurers. What sequencers tell is written down as it leaves them, so that
a fork shows even if nobody who heard it survives. SHARED: `trimmed` or `masked`, for participants with data of their
own.
"""

import sys
from dataclasses import dataclass, field
from random import Random

import numpy as np

from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from farflung.systems.onebyte.accumulator import Accumulators
from farflung.systems.onebyte.code import COEFFICIENT_MAX
from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.journal import JournalSection
from farflung.systems.onebyte.messages import ByteMasked, ByteNews
from farflung.systems.onebyte.records import Close, Round, Summed
from farflung.systems.onebyte.replay import steps_of
from farflung.systems.onebyte.sharing import SharedSlots
from tests.onebytes import Bowl, SimulatedOneByte, header_of

WORKERS = {"w0": 1.0, "w1": 1.4, "w2": 2.0, "w3": 3.0}
CANDIDATES = ("first", "second", "third")
SITES = {"first": "eu", "second": "us", "third": "asia", "w0": "eu", "w1": "us", "w2": "us", "w3": "asia"}
NUM_ROUNDS = 40
FAULTS_UNTIL = 12.0
SHARED = {
    "trimmed": SharedSlots(mean="trimmed", trim_percent=25),
    "masked": SharedSlots(is_masked=True, participants_min=3),
}
SECONDS_PER_SLOT = {"": 0.05, "trimmed": 0.03, "masked": 0.01}
DEADLINE = 240.0


@dataclass
class Story:
    """What became of a run."""

    trace_hash: str = ""
    seconds: float = 0.0
    num_faults: int = 0
    num_views: int = 0
    num_late: int = 0
    """Parts of rounds before the one that they stand in."""
    num_empty: int = 0
    """Rounds whose cohort fell apart."""
    breaches: list[str] = field(default_factory=list[str])
    """Sentences; none of them if all is well."""


@dataclass
class Witnessed:
    """What sequencers have told measurers."""

    checks: dict[int, bytes] = field(default_factory=dict[int, bytes])
    """Of the chain after so many records."""
    forks: list[str] = field(default_factory=list[str])
    masked: dict[tuple[str, int], bytes] = field(default_factory=dict[tuple[str, int], bytes])
    """What a participant has sent for a round, in whichever life."""

    def see(self, event: MessageEvent) -> None:
        """Every record that leaves a sequencer counts from then on."""
        if isinstance(event.message, ByteMasked) and event.phase == "sent":
            place = str(event.source), event.message.round_number
            if self.masked.setdefault(place, event.message.values) != event.message.values:
                self.forks.append(f"{place[0]} sends something else for round {place[1]} at {event.time:g} s")
        if isinstance(event.message, ByteNews) and event.phase == "sent" and event.message.records:
            number = event.message.first_record + len(event.message.records)
            if self.checks.setdefault(number, event.message.check) != event.message.check:
                self.forks.append(f"{event.source} tells other records before {number} at {event.time:g} s")


def private_bowl(name: str, header: Header) -> Bowl:
    """With data of its own, where slots are shared."""
    return Bowl(header) if header.shared_slots is None else Bowl(header, data=list(WORKERS).index(name))


def make(seed: int, faults: Faults, kind: str = "") -> SimulatedOneByte:
    """Seeds differ in how rounds close and in how many candidates there are."""
    config = RoundsConfig(
        num_rounds=NUM_ROUNDS,
        quorum=(1.0, 0.75)[seed // 6 % 2],
        round_seconds_max=1.5,
        entries_per_message=4,
        slots_per_lease_min=2,
        reissue_seconds=0.8,
        audit_share=0.1,
        rounds_per_seal=6,
        seal_seconds_max=2.0,
        ask_again_seconds=0.4,
        ask_again_seconds_max=1.5,
        silence_seconds=2.0,
        beat_seconds=0.25,
        absence_seconds=1.2,
        catch_up_bytes=600,
    )
    return SimulatedOneByte(
        config,
        WORKERS,
        header=header_of(num_slots=16, staleness_rounds_max=3, shared=SHARED.get(kind)),
        candidates=candidates_of(seed),
        sites=SITES,
        learner=private_bowl,
        seconds_per_slot=SECONDS_PER_SLOT[kind],
        seed=seed,
        faults=faults,
    )


MOMENTS = (
    ("ByteNews", "sent"),
    ("ByteCopy", "send"),
    ("ByteCopy", "delivered"),
    ("ByteCopied", "sent"),
    ("BytePropose", "sent"),
    ("ByteViewIs", "deliver"),
)
"""When a crash of a candidate matters most: (message, phase of its life)."""


def candidates_of(seed: int) -> tuple[str, ...]:
    """A standby, or two."""
    return CANDIDATES[: 2 + seed // 3 % 2]


def random_faults(seed: int) -> Faults:
    """Loss and duplicates, and by seed: much of everything; crashes at the worst of moments; a run cut in two."""
    candidates, random = candidates_of(seed), Random(f"{seed}:moments")
    nodes, sites = [*WORKERS, *candidates, *candidates, "witness"], sorted(set(SITES.values()))
    num_faults = (9, 2, 1)[seed % 3]
    faults = Faults.random(seed, nodes, until=FAULTS_UNTIL, num_faults=num_faults, loss=0.03, sites=sites)
    if seed % 3 == 1:
        for _ in range(6):
            _crash_at_a_message(faults, random, candidates)
    if seed % 3 == 2:
        one, other = random.sample(candidates, 2)
        first = random.uniform(1.0, FAULTS_UNTIL - 6.0)
        groups = [one, "w0", "w2"], [other, "w1", "w3"]  # the witness and a third candidate hear both
        faults.partition(*groups, during=(first, first + random.uniform(3.0, 6.0)))
    return faults.duplicate(0.05, during=(0, FAULTS_UNTIL))


def _crash_at_a_message(faults: Faults, random: Random, candidates: tuple[str, ...]) -> None:
    kind, phase = random.choice(MOMENTS)
    node, number = random.choice(candidates), random.randint(1, 30)
    is_receiver = phase.startswith("deliver")
    when = nth(kind, number, phase, target=node if is_receiver else None, source=None if is_receiver else node)
    faults.crash(node, when=when, restart_after=random.choice([0.1, 0.6, 3.0]))


def run(seed: int, faults: Faults | None = None, kind: str = "") -> Story:
    """Let it run to its end and check everything; `kind`: one of `SHARED`."""
    story, witnessed = Story(), Witnessed()
    with make(seed, random_faults(seed) if faults is None else faults, kind) as simulated:
        simulated.simulation.watch(witnessed.see)
        simulated.run(deadline=DEADLINE)
        simulated.simulation.advance(5.0)
        trace = simulated.simulation.trace
        story.trace_hash, story.seconds = trace.trace_hash, simulated.simulation.now()
        story.num_faults = sum(1 for _ in trace.of("fault")) + sum(1 for _ in trace.of("loss"))
        story.num_views = simulated.sequencer.replica.view.epoch
        story.breaches = [*witnessed.forks, *breaches(simulated, witnessed, seed, story)]
    return story


def breaches(simulated: SimulatedOneByte, witnessed: Witnessed, seed: int, story: Story) -> list[str]:
    """What is wrong at the end."""
    found = [f"{name}: {error}" for name, error in simulated.errors.items()]
    found += [f"{name} did not come to the end" for name in WORKERS if name not in simulated.reports]
    replica = simulated.sequencer.replica
    contents = replica.log.contents[: replica.num_committed]
    log = replica.log
    lost = [n for n, check in witnessed.checks.items() if n > len(contents) or log.check_after(n) != check]
    if lost:
        found.append(f"records {lost} were told and are lost")
    journal = HeldJournal(simulated.header)
    steps = [step for content in contents for step in journal.take(content)]
    records, is_shared = simulated.sequencer.records, simulated.header.shared_slots is not None
    rounds = [record for record in records if isinstance(record, Round | Summed)]
    slots = [
        (part.participant if is_shared else None, part.base_round, part.first_slot + place)
        for record in rounds
        for part in record.parts
        for place in range(len(part.codes))
    ]
    if len(set(slots)) != len(slots):
        found.append("a slot counts twice")
    num_full = sum(isinstance(record, Summed) or bool(record.parts) for record in rounds)
    if num_full != NUM_ROUNDS or not isinstance(records[-1], Close):
        found.append(f"the journal has {num_full} rounds and no end")
    story.num_empty = len(rounds) - num_full
    found += [
        f"round {record.number} is more than its cohort can have measured"
        for record in rounds
        if isinstance(record, Summed)
        and np.abs(record.coefficients.astype(int)).max() > COEFFICIENT_MAX * len(record.cohort)
    ]
    story.num_late = sum(part.base_round < record.number for record in rounds for part in record.parts)
    Random(seed).shuffle(steps)
    joiner, reader = Accumulators(simulated.header), Accumulators(simulated.header)
    joiner.add(steps)
    reader.add(steps_of(JournalSection(simulated.header, journal.ledger, records)))
    digests = {"who reads the whole journal": reader.digest(), **simulated.digests()}
    found += [f"{name} has other weights" for name, digest in digests.items() if digest != joiner.digest()]
    return found


if __name__ == "__main__":
    story = run(int(sys.argv[1]), kind=sys.argv[2] if len(sys.argv) > 2 else "")
    sys.stdout.write(f"{story.trace_hash} | {story.num_faults} | {story.num_views} | {story.breaches}\n")
