"""Differential privacy of single examples: what noise costs and pays for, counted by a published accountant.

A round is one sampled Gaussian mechanism: each example is in the batch with probability q, independently; it changes
each of the P sums that a participant tells by at most C, and so their vector by at most sqrt(P) C; noise of standard
deviation z C on each is a noise multiplier of z / sqrt(P) on the vector. Rounds are added up as Renyi divergences
(Opacus' accountant; Mironov, Talwar and Zhang, arXiv 1908.10530). Neighbours: data sets with and without one example.

Noise is discrete, on a grid of C / 2^16. Its divergence from the continuous kind that the accountant knows is of the
order of exp(-2 pi^2 sigma^2) for sigma in steps of the grid (arXiv 2004.00010), which is nothing that can be counted.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

ORDERS = (*(1 + step / 10 for step in range(1, 100)), *range(11, 64), *(1 << power for power in range(6, 13)))
"""Of the Renyi divergences among which the accountant chooses."""
NOISE_MIN, NOISE_MAX = 1e-2, 1e6
NUM_HALVINGS = 40
ROUNDS_MAX = 1 << 30


class BudgetSpent(Exception):
    """A participant may measure no further round; the sentence says why."""


class Accountant:
    """Of one participant: what its rounds add up to."""

    def __init__(self, *, noise_multiplier: float, sample_rate: float, num_slots: int, delta: float) -> None:
        """`noise_multiplier`: z. `sample_rate`: q. `num_slots`: P. `delta`: with which probability epsilon may fail.

        Raises:
            ValueError: a setting that cannot be, or no accountant is installed.
        """
        if not 0 < sample_rate <= 1:
            raise ValueError(f"a batch of {sample_rate:g} times the data cannot be drawn: choose a smaller batch")
        if not 0 < delta < 1:
            raise ValueError(f"delta is {delta:g}; it is a probability, well below one over the number of examples")
        self._rdp = _published()
        self._delta = delta
        noise = noise_multiplier / math.sqrt(num_slots)
        self._divergences = self._rdp.compute_rdp(q=sample_rate, noise_multiplier=noise, steps=1, orders=ORDERS)

    def epsilon(self, num_rounds: int) -> float:
        """After so many rounds all that the participant has told is (epsilon, delta)-differentially private."""
        if num_rounds == 0:
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the best order is at an end of them: then epsilon is a little too large
            found, _ = self._rdp.get_privacy_spent(orders=ORDERS, rdp=self._divergences * num_rounds, delta=self._delta)
        return max(0.0, float(found))

    def num_rounds_within(self, epsilon_max: float) -> int:
        """The most rounds that a budget pays for."""
        few, many = 0, 1
        while many < ROUNDS_MAX and self.epsilon(many) <= epsilon_max:
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            few, many = (middle, many) if self.epsilon(middle) <= epsilon_max else (few, middle)
        return few


def noise_for(*, epsilon_max: float, delta: float, sample_rate: float, num_slots: int, num_rounds: int) -> float:
    """The smallest noise multiplier z with which a budget pays for so many rounds.

    Raises:
        ValueError: no noise is enough, or a setting cannot be.
    """

    def is_enough(noise: float) -> bool:
        accountant = Accountant(noise_multiplier=noise, sample_rate=sample_rate, num_slots=num_slots, delta=delta)
        return accountant.epsilon(num_rounds) <= epsilon_max

    if not is_enough(NOISE_MAX):
        raise ValueError(f"no noise makes {num_rounds} rounds private to epsilon {epsilon_max:g}: allow a larger one")
    low, high = NOISE_MIN, NOISE_MAX
    for _ in range(NUM_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
        if high < low * 1.001:
            break
    return high


class Budget:
    """What a participant has spent, and that it never spends more than it has.

    A round is kept before it is measured: a machine that crashes, and measures it again, has spent it twice.
    """

    def __init__(
        self,
        accountant: Accountant,
        epsilon_max: float,
        *,
        num_rounds: int = 0,
        keep: Callable[[int], object] = lambda num_rounds: None,
    ) -> None:
        """`num_rounds`: spent in earlier lives. `keep`: makes the number of rounds durable."""
        self.num_rounds = num_rounds
        self.epsilon_max = epsilon_max
        self._accountant = accountant
        self._keep = keep

    @property
    def epsilon(self) -> float:
        """Spent so far."""
        return self._accountant.epsilon(self.num_rounds)

    def spend(self) -> None:
        """One more round.

        Raises:
            BudgetSpent: it would be more than there is.
        """
        if self._accountant.epsilon(self.num_rounds + 1) > self.epsilon_max:
            raise BudgetSpent(
                f"the privacy budget of epsilon {self.epsilon_max:g} is spent: {self.num_rounds} rounds cost "
                f"{self.epsilon:.3f}, and another would be too many"
            )
        self._keep(self.num_rounds + 1)
        self.num_rounds += 1


def _published() -> Any:
    try:
        from opacus.accountants.analysis import rdp
    except ImportError:
        raise ValueError(
            "differential privacy is counted by Opacus, which is not installed: pip install 'farflung[privacy]'"
        ) from None
    return rdp
