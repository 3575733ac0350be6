"""The overlap rule: what one more worker, or one more step of staleness, would gain, from what was measured.

A step cannot come faster than the trainer makes it (T), nor than all workers together sample a batch (R answers at the
sum of mu_i per second), nor than S + 1 batches under way at once come around, each of which is sampled, trained on and
told to the workers once (ECHO-2 calls the last part the broadcast):

    seconds per step = max(T, R / sum mu_i, (T + broadcast + R / sum mu_i) / (S + 1))
"""

from dataclasses import dataclass, replace
from itertools import product

GAIN_MIN = 0.1
"""Less than that is not worth advice."""
MORE_WORKERS_MAX, MORE_STALENESS_MAX = 4, 2


@dataclass(frozen=True, slots=True)
class Measured:
    """A run as it went."""

    step_seconds: float
    """T: of one optimizer step."""
    sync_seconds: float
    """From a step's end until workers sample with it."""
    answers_per_step: int
    """R."""
    answers_per_second: tuple[float, ...]
    """mu_i: of each worker while it samples."""
    staleness_max: int

    @property
    def seconds_per_step(self) -> float:
        """What the rule expects."""
        sampling = self.answers_per_step / sum(self.answers_per_second)
        around = (self.step_seconds + self.sync_seconds + sampling) / (self.staleness_max + 1)
        return max(self.step_seconds, sampling, around)


@dataclass(frozen=True, slots=True)
class Advice:
    """A change, and how many times as many steps per hour are expected from it."""

    num_more_workers: int
    staleness_max: int
    speedup: float

    def sentence(self, now: Measured) -> str:
        """For a person."""
        steps = [f"add {self.num_more_workers} worker{'s' * (self.num_more_workers > 1)}"] * bool(self.num_more_workers)
        if self.staleness_max != now.staleness_max:
            steps.append(f"set sync.staleness_max = {self.staleness_max}")
        return f"{' and '.join(steps)}: expected {self.speedup - 1:+.0%} steps per hour"


def advise(measured: Measured) -> list[Advice]:
    """Changes that gain something, best first; of those that gain the same, only the smallest."""
    usual = sum(measured.answers_per_second) / len(measured.answers_per_second)
    found: list[Advice] = []
    for workers, staleness in product(range(MORE_WORKERS_MAX + 1), range(MORE_STALENESS_MAX + 1)):
        then = replace(
            measured,
            answers_per_second=(*measured.answers_per_second, *[usual] * workers),
            staleness_max=measured.staleness_max + staleness,
        )
        speedup = measured.seconds_per_step / then.seconds_per_step
        is_more = all(speedup > one.speedup * (1 + GAIN_MIN / 2) for one in found if _is_within(one, workers, then))
        if speedup >= 1 + GAIN_MIN and is_more:
            found.append(Advice(workers, then.staleness_max, speedup))
    return sorted(found, key=lambda one: -one.speedup)


def _is_within(one: Advice, workers: int, then: Measured) -> bool:
    return one.num_more_workers <= workers and one.staleness_max <= then.staleness_max
