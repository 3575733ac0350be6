"""What differential privacy costs: the example tuned by two participants with data of their own, at several budgets.

The records are those of a run, the noise and its account too; only the network is left out.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

from bench.onebyte_example import Example
from bench.report import Report, bench_arguments
from farflung.systems.onebyte.learner import ModelLearner
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.means import SharedMeans
from farflung.systems.onebyte.objective import Batch
from farflung.systems.onebyte.privacy import Accountant, Budget, noise_for
from farflung.systems.onebyte.private_learner import PrivateLearner
from farflung.systems.onebyte.records import Part, Participant, Round
from farflung.systems.onebyte.sharing import Privacy, SharedSlots
from farflung.wire.identity import Identity

NUM_PARTICIPANTS = 2
NUM_SLOTS = 8
BATCH_SIZE = 64
RATE = 1.4e-2
CLIP = 0.3
"""Nine in ten examples' losses differ by less, as public examples of the kind show."""
DELTA = 1e-5
BUDGETS = (None, 6.0, 2.0)
LOST_POINTS_MAX = {6.0: 2.0, 2.0: 4.0}
"""Of accuracy."""


@dataclass(frozen=True)
class Tuned:
    """One run."""

    accuracy: float
    epsilon: float | None
    noise_multiplier: float


def tune(example: Example, epsilon_max: float | None, num_rounds: int, seed: int) -> Tuned:
    """Rounds of shared slots, to their end; every participant adds noise for `epsilon_max`."""
    rows = example.task.train
    shards = [rows.batch(list(range(first, len(rows), NUM_PARTICIPANTS))) for first in range(NUM_PARTICIPANTS)]
    rate = BATCH_SIZE * NUM_PARTICIPANTS / len(rows)
    needs = {"sample_rate": rate, "num_slots": NUM_SLOTS, "delta": DELTA}
    noise = 0.0 if epsilon_max is None else noise_for(epsilon_max=epsilon_max, num_rounds=num_rounds, **needs)
    privacy = None if epsilon_max is None else Privacy(clip=CLIP, noise_multiplier=noise)
    header = example.header(num_slots=NUM_SLOTS, rate=RATE, seed=seed, shared=SharedSlots(privacy=privacy))
    objective, learners = example.task.objective, list[ModelLearner]()
    models = [example.copy_of_model() for _ in shards]
    for number, (model, shard) in enumerate(zip(models, shards, strict=True)):
        if epsilon_max is None:
            learners.append(ModelLearner(header, model, objective, _batches(shard, f"{seed} {number}")))
            continue
        budget = Budget(Accountant(noise_multiplier=noise, **needs), epsilon_max)
        draw = random.Random(f"{seed} {number}").randrange  # a benchmark is to repeat itself
        learners.append(PrivateLearner(header, model, objective, shard, BATCH_SIZE, budget, draw))
    ledger, means, rounds = Ledger(header), SharedMeans(header), list[Round]()
    for number in range(NUM_PARTICIPANTS):
        ledger.take(Participant(Identity(bytes([number]) * 32).public_key, f"{number}"), b"")
    for number in range(num_rounds):
        codes = [learner.measure(number, 0, NUM_SLOTS) for learner in learners]
        parts = tuple(Part(each, number, 0, content) for each, content in enumerate(codes))
        rounds.append(Round(number, ledger.reference_for(b"".join(codes)), parts))
        ledger.take(rounds[-1], b"")
        steps = means.follow(rounds, lambda *place: True, [number])
        for learner in learners:
            learner.add(steps)
    learners[0].refresh()
    spent = learners[0].epsilon if isinstance(learners[0], PrivateLearner) else None
    return Tuned(example.accuracy(models[0]), spent, noise)


def _batches(shard: Batch, seed: str):  # noqa: ANN202  the batch of a round
    num_examples = len(next(iter(shard.values())))

    def batch(round_number: int) -> Batch:
        chosen = random.Random(f"{seed} {round_number}").sample(range(num_examples), BATCH_SIZE)
        return {name: rows[chosen] for name, rows in shard.items()}

    return batch


def main() -> int:
    arguments = bench_arguments(__doc__ or "").parse_args()
    num_rounds, seeds = (30, (0,)) if arguments.quick else (160, (0, 1))
    example = Example.load()
    settings = {"participants": NUM_PARTICIPANTS, "slots": NUM_SLOTS, "rounds": num_rounds, "seeds": len(seeds)}
    report = Report("onebyte_privacy", {**settings, "clip": CLIP, "delta": DELTA})
    before = example.accuracy(example.model)
    found = {budget: [tune(example, budget, num_rounds, seed) for seed in seeds] for budget in BUDGETS}
    means = {budget: sum(each.accuracy for each in runs) / len(runs) for budget, runs in found.items()}
    rows = [
        [
            "none" if budget is None else f"{budget:g}",
            f"{means[budget]:.1f}",
            "-" if runs[0].epsilon is None else f"{runs[0].epsilon:.3f}",
            f"{runs[0].noise_multiplier:.2f}",
        ]
        for budget, runs in found.items()
    ]
    report.table(f"Accuracy in percent ({before:.1f} before)", ("epsilon", "accuracy", "spent", "noise"), rows)
    for budget, points in LOST_POINTS_MAX.items():
        lost = means[None] - means[budget]
        report.claim(f"points lost at epsilon {budget:g}", f"at most {points:g}", f"{lost:.1f}", lost <= points)
        spent = max(each.epsilon or 0.0 for each in found[budget])
        report.claim(f"epsilon spent of {budget:g}", f"at most {budget:g}", f"{spent:.3f}", spent <= budget)
    gained = means[None] - before
    report.claim("points gained without noise", "at least 5", f"{gained:.1f}", gained >= 5)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
