"""One run of reinforcement learning with faults, checked: `python -m tests.chaos.alignment_scenario SEED`.

A trainer and four workers, one of which lies in some seeds: it samples with the first weights that it got and labels
the answers with the newest. What was trained on is looked at from outside, batch by batch, over all of its lives.
"""

import sys
from dataclasses import dataclass, field
from random import Random

from farflung.learn.parameters import Tensors, fingerprint
from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig, WeightsConfig
from farflung.systems.alignment.leases import Key
from farflung.systems.alignment.messages import AlignDone, AlignTaken
from farflung.systems.alignment.rollouts import Rollout
from farflung.world.errors import Refused
from tests.alignments import TRAINER, SimulatedAlignment
from tests.tables import StaleLiar, TableAuditor

WORKERS = {"w0": 1.0, "w1": 1.5, "w2": 2.5, "w3": 5.0}
SITES = {TRAINER: "eu", "w0": "eu", "w1": "us", "w2": "us", "w3": "asia"}
NUM_STEPS, PROMPTS, ANSWERS = 14, 3, 3
FAULTS_UNTIL = 25.0
DEADLINE = 900.0
LIAR = "w1"


@dataclass
class Story:
    """What became of a run."""

    trace_hash: str = ""
    seconds: float = 0.0
    num_faults: int = 0
    num_lives: int = 0
    """Of the trainer."""
    num_stale: int = 0
    is_liar_caught: bool = False
    breaches: list[str] = field(default_factory=list[str])
    """Sentences; none of them if all is well."""


@dataclass
class Witnessed:
    """What the hub has said that it has taken."""

    taken: dict[Key, list[Rollout]] = field(default_factory=dict[Key, list[Rollout]])
    """In order; more than one where an earlier one had become too old."""
    _sent: dict[tuple[str, int], AlignDone] = field(default_factory=dict[tuple[str, int], AlignDone])

    def see(self, event: MessageEvent) -> None:
        """Answers count as taken when the hub's word leaves it."""
        message = event.message
        if isinstance(message, AlignDone) and event.phase == "sent":
            self._sent[event.source, message.batch] = message
        if isinstance(message, AlignTaken) and event.phase == "sent":
            refused = {(prompt, member) for prompt, member, _ in message.refused}
            for rollout in self._sent[event.target, message.batch].rollouts:
                if rollout.key not in refused:
                    self.taken.setdefault(rollout.key, []).append(rollout)


def has_liar(seed: int) -> bool:
    return seed % 4 == 3


def make(seed: int, faults: Faults) -> SimulatedAlignment:
    """Seeds differ in their bound of staleness, in how they publish, and in whether somebody lies."""
    bound = (0, 1, 2, 4)[seed % 5 % 4]
    steps_per_version = 1 + (seed // 5 % 2) * min(1, bound)
    config = AlignmentConfig(
        num_steps=NUM_STEPS,
        prompts_per_step=PROMPTS,
        answers_per_prompt=ANSWERS,
        num_tokens_max=4,
        staleness_max=bound,
        seed=seed,
        lease_seconds=6.0,
        ask_again_seconds=0.5,
        silence_seconds=1.5,
        group_seconds_max=30.0,
        wait_seconds_max=300.0,
        audit_share=1.0 if has_liar(seed) else 0.0,
        steps_per_checkpoint=4,
        publish=PublishConfig(steps_per_version=steps_per_version, drift_budget=(0.0, 1.0)[seed // 7 % 2]),
        weights=WeightsConfig(chunk_bytes=40, values_per_piece=64, chunk_seconds_max=2.0, fetch_seconds_max=12.0),
    )
    return SimulatedAlignment(
        config,
        WORKERS,
        policies={LIAR: StaleLiar} if has_liar(seed) else {},
        auditor=TableAuditor() if has_liar(seed) else None,
        sites=SITES,
        seconds_per_token=0.05,
        seconds_per_step=0.3,
        num_answers_max=4,
        seed=seed,
        faults=faults,
    )


MOMENTS = (
    (TRAINER, "AlignDone", "deliver"),
    (TRAINER, "AlignTaken", "send"),
    (TRAINER, "AlignTaken", "sent"),
    (TRAINER, "AlignNews", "send"),
    (TRAINER, "AlignNews", "sent"),
    (TRAINER, "AlignChunk", "sent"),
    ("w0", "AlignDone", "sent"),
    ("w0", "AlignTaken", "deliver"),
    ("w2", "AlignChunk", "deliver"),
    ("w2", "AlignPath", "delivered"),
    ("w2", "AlignChunkAsk", "sent"),
)
"""When a crash matters most: (who dies, message, phase of its life)."""


def random_faults(seed: int) -> Faults:
    """Loss and duplicates, and by seed: much of everything; crashes at the worst of moments; links cut for long."""
    random = Random(f"{seed}:moments")
    nodes, sites = [*WORKERS, TRAINER, TRAINER], sorted(set(SITES.values()))
    faults = Faults.random(seed, nodes, until=FAULTS_UNTIL, num_faults=(8, 3, 2)[seed % 3], loss=0.03, sites=sites)
    if seed % 3 == 1:
        for _ in range(5):
            node, kind, phase = random.choice(MOMENTS)
            is_receiver = phase.startswith("deliver")
            source, target = (None, node) if is_receiver else (node, None)
            when = nth(kind, random.randint(1, 25), phase, source=source, target=target)
            faults.crash(node, when=when, restart_after=random.choice([0.1, 1.0, 4.0]))
    if seed % 3 == 2:
        first = random.uniform(0.5, FAULTS_UNTIL - 12.0)
        faults.partition([TRAINER, "w0"], ["us", "asia"], during=(first, first + random.uniform(5.0, 12.0)))
    return faults.duplicate(0.05, during=(0, FAULTS_UNTIL))


def run(seed: int, faults: Faults | None = None) -> Story:
    """Let it run to its end and check everything."""
    story, witnessed = Story(), Witnessed()
    with make(seed, random_faults(seed) if faults is None else faults) as simulated:
        simulated.simulation.watch(witnessed.see)
        try:
            simulated.run(deadline=DEADLINE)
        except Exception as error:  # noqa: BLE001  a run that does not end is what is looked for
            story.breaches.append(f"it does not end: {type(error).__name__}")
        trace = simulated.simulation.trace
        story.trace_hash, story.seconds = trace.trace_hash, simulated.simulation.now()
        story.num_faults = sum(1 for _ in trace.of("fault")) + sum(1 for _ in trace.of("loss"))
        story.num_lives = len(simulated.trainers)
        ledger = simulated.trainer.ledger.state
        story.num_stale, story.is_liar_caught = ledger.num_stale, LIAR in ledger.banned
        story.breaches += breaches(simulated, witnessed, seed)
    return story


def breaches(simulated: SimulatedAlignment, witnessed: Witnessed, seed: int) -> list[str]:
    """What is wrong at the end."""
    refused = {name for name, error in simulated.errors.items() if isinstance(error, Refused)}
    found = [f"{name}: {error!r}" for name, error in simulated.errors.items() if name not in refused]
    if set(simulated.trainer.ledger.state.banned) - ({LIAR} if has_liar(seed) else set()):
        found.append(f"honest workers are banned: {simulated.trainer.ledger.state.banned}")
    history = steps_of(simulated)
    keys = [rollout.key for version in sorted(history) for rollout in history[version]]
    if len(set(keys)) != len(keys):
        found.append("an answer counts twice")
    expected = {(prompt, member) for prompt in range(NUM_STEPS * PROMPTS) for member in range(ANSWERS)}
    if set(keys) != expected:
        found.append(f"{len(expected - set(keys))} answers are lost")
    found += [
        f"step {version} was trained on an answer of version {rollout.version_min}"
        for version, rollouts in history.items()
        for rollout in rollouts
        if version - rollout.version_min > simulated.config.staleness_max
    ]
    return [*found, *lies(simulated, history), *forks(simulated), *lost(simulated, witnessed, history)]


def steps_of(simulated: SimulatedAlignment) -> dict[int, tuple[Rollout, ...]]:
    """What each step was trained on, by the version before it, in its last making."""
    return {version: rollouts for learner in simulated.learners for version, rollouts in learner.seen}


def lies(simulated: SimulatedAlignment, history: dict[int, tuple[Rollout, ...]]) -> list[str]:
    """Answers that were trained on and are not what the versions that they name give."""
    weights: dict[int, Tensors] = {}
    for learner in simulated.learners:
        weights.update(learner.versions)
    check = TableAuditor().check
    return [
        f"step {version} was trained on a lie: {reason}"
        for version, rollouts in history.items()
        for rollout in rollouts
        if (reason := check(rollout, weights)) is not None
    ]


def forks(simulated: SimulatedAlignment) -> list[str]:
    """Versions that a life of the trainer made again, otherwise than they had been published."""
    found: list[str] = []
    for trainer, learner in zip(simulated.trainers, simulated.learners, strict=True):
        for version, tensors in learner.versions.items():
            published = trainer.chain.hash_of(version)
            if published is not None and published != fingerprint(tensors):
                found.append(f"version {version} came out in two ways")
    return found


def lost(simulated: SimulatedAlignment, witnessed: Witnessed, history: dict[int, tuple[Rollout, ...]]) -> list[str]:
    """Answers that were taken, and young enough when their turn came, and yet others were trained on."""
    found: list[str] = []
    for version, rollouts in history.items() if not simulated.trainer.ledger.state.banned else ():
        for rollout in rollouts:
            taken = witnessed.taken.get(rollout.key, [])
            young = [one for one in taken if version - one.version_min <= simulated.config.staleness_max]
            if len(young) > 1:
                found.append(f"answer {rollout.key} was taken, and sampled once more")
            if any(one != rollout for one in young):
                found.append(f"answer {rollout.key} was taken, and another one trained on")
    return found


if __name__ == "__main__":
    story = run(int(sys.argv[1]))
    sys.stdout.write(f"{story.trace_hash} | {story.num_faults} | {story.num_lives} | {story.breaches}\n")
