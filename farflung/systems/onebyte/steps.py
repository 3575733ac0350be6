"""From committed rounds to integers: what each entry adds to the accumulators.

A step is c * direction, with c = (integer rate of the committed round) * (coefficient of the byte). Steps add up in any
order; a revoked one is added with the other sign.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from farflung.systems.onebyte.code import coefficients
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.records import Part, Round


@dataclass(frozen=True, slots=True)
class Step:
    """Entries of consecutive slots of one round."""

    base_round: int
    first_slot: int
    weights: np.ndarray
    """c of each slot, int64."""

    @property
    def slots(self) -> range:
        return range(self.first_slot, self.first_slot + len(self.weights))


def step_of(header: Header, record: Round, part: Part, *, sign: int = 1) -> Step:
    """What a part of a committed round adds; `sign` -1 takes it back."""
    coefficient = coefficients(part.codes, record.reference, header.coefficient_max).astype(np.int64)
    return Step(part.base_round, part.first_slot, coefficient * (sign * header.schedule.rate_of(record.number)))


def joined_steps(steps: Iterable[Step]) -> Iterator[Step]:
    """The same steps, in order of rounds and slots, with neighbours joined: fewer and larger ones."""
    ordered = sorted(steps, key=lambda step: (step.base_round, step.first_slot))
    run: list[Step] = []
    for step in ordered:
        if run and (step.base_round, step.first_slot) != (run[-1].base_round, run[-1].slots.stop):
            yield _joined(run)
            run = []
        run.append(step)
    if run:
        yield _joined(run)


def _joined(run: list[Step]) -> Step:
    return Step(run[0].base_round, run[0].first_slot, np.concatenate([step.weights for step in run]))


def movement_bound(steps: Iterable[Step]) -> int:
    """The sum of |c|: no element of an accumulator moves further, times the largest value of a direction."""
    return sum(int(np.abs(step.weights).sum()) for step in steps)


def bounded_batches(steps: Iterable[Step], bound: int) -> Iterator[list[Step]]:
    """The steps in batches whose |c| sum up to at most `bound`, unless one step alone has more."""
    batch: list[Step] = []
    total = 0
    for step in steps:
        size = movement_bound([step])
        if batch and total + size > bound:
            yield batch
            batch, total = [], 0
        batch.append(step)
        total += size
    if batch:
        yield batch
