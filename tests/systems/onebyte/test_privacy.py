"""Differential privacy: noise that is exact, sums that no example moves far, and a budget that is never overdrawn."""

import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.systems.onebyte.discrete_noise import discrete_gaussian
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.objective import NextTokenLoss
from farflung.systems.onebyte.privacy import Accountant, Budget, BudgetSpent, noise_for
from farflung.systems.onebyte.private_learner import GRID, PrivateLearner
from farflung.systems.onebyte.sharing import Privacy, SharedSlots
from tests.onebyte_journals import header_for, tiny_model
from tests.onebytes import Bowl, SimulatedOneByte, header_of
from tests.systems.onebyte.test_onebyte_runs import read_back
from tests.systems.onebyte.test_onebyte_runs import settings as run_settings
from tests.systems.onebyte.test_shared_runs import replayed


def draws(seed: int) -> random.Random:
    return random.Random(seed)


@pytest.mark.parametrize("sigma", [Fraction(1, 2), Fraction(3), Fraction(17, 2)])
def test_noise_has_the_frequencies_of_the_discrete_gaussian(sigma: Fraction) -> None:
    num_drawn, stream = 6000, draws(1)
    found = [discrete_gaussian(sigma, stream.randrange) for _ in range(num_drawn)]
    weights = {value: math.exp(-(value**2) / (2 * float(sigma) ** 2)) for value in range(-80, 81)}
    total = sum(weights.values())
    for value in range(-3, 4):
        expected = weights[value] / total
        allowed = 5 * math.sqrt(expected * (1 - expected) / num_drawn)
        assert abs(found.count(value) / num_drawn - expected) < allowed, value
    spread = sum(value**2 for value in found) / num_drawn
    variance = sum(value**2 * weight for value, weight in weights.items()) / total
    assert abs(spread - variance) < 5 * variance * math.sqrt(2 / num_drawn)


def test_the_accountant_gives_the_known_epsilon_of_a_gaussian_mechanism() -> None:
    """Without sampling the divergence of order a is a / (2 z^2): the best of all orders can be computed."""
    accountant = Accountant(noise_multiplier=4.0, sample_rate=1.0, num_slots=1, delta=1e-5)
    # The conversion of Balle et al. (arXiv 1905.09870), minimised over all orders on a fine grid.
    best = min(
        order / (2 * 16) + math.log1p(-1 / order) - (math.log(1e-5) + math.log(order)) / (order - 1)
        for order in (1 + step / 1000 for step in range(1, 200_000))
    )
    assert best <= accountant.epsilon(1) < 1.01 * best
    assert accountant.epsilon(0) == 0.0 and accountant.epsilon(2) > accountant.epsilon(1)


def test_many_slots_of_a_batch_cost_as_much_as_many_full_rounds() -> None:
    one = Accountant(noise_multiplier=3.0, sample_rate=1.0, num_slots=1, delta=1e-5)
    many = Accountant(noise_multiplier=3.0, sample_rate=1.0, num_slots=16, delta=1e-5)
    assert many.epsilon(1) == pytest.approx(one.epsilon(16), rel=1e-6)
    # With one batch for all of them, sampling helps less than with a batch for each.
    sampled = {"noise_multiplier": 30.0, "sample_rate": 0.02, "delta": 1e-5}
    together, apart = Accountant(num_slots=16, **sampled), Accountant(num_slots=1, **sampled)
    assert together.epsilon(10) > 0.99 * apart.epsilon(160)


def test_noise_is_found_for_a_budget_and_pays_for_exactly_its_rounds() -> None:
    needs = {"sample_rate": 0.1, "num_slots": 8, "delta": 1e-4}
    noise = noise_for(epsilon_max=2.0, num_rounds=50, **needs)
    accountant = Accountant(noise_multiplier=noise, **needs)
    assert 1.98 < accountant.epsilon(50) <= 2.0 and 50 <= accountant.num_rounds_within(2.0) <= 51


def test_a_budget_is_kept_before_it_is_spent_and_never_overdrawn() -> None:
    accountant = Accountant(noise_multiplier=3.0, sample_rate=0.5, num_slots=2, delta=1e-4)
    kept: list[int] = []
    budget = Budget(accountant, 3.0, keep=kept.append)
    with pytest.raises(BudgetSpent, match="is spent"):
        while True:
            budget.spend()
    assert kept == list(range(1, accountant.num_rounds_within(3.0) + 1)) and budget.epsilon <= 3.0
    later = Budget(accountant, 3.0, num_rounds=kept[-1])
    assert later.epsilon == budget.epsilon
    with pytest.raises(BudgetSpent):
        later.spend()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"clip": 0.0, "noise_multiplier": 1.0}, "clip is 0"),
        ({"clip": 1.0, "noise_multiplier": 0.0}, "noise_multiplier is 0"),
    ],
)
def test_privacy_that_cannot_be_is_refused(fields: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Privacy(**fields)


def test_accounts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="smaller batch"):
        Accountant(noise_multiplier=1.0, sample_rate=1.5, num_slots=1, delta=1e-5)
    with pytest.raises(ValueError, match="probability"):
        Accountant(noise_multiplier=1.0, sample_rate=0.5, num_slots=1, delta=0.0)
    with pytest.raises(ValueError, match="allow a larger"):
        noise_for(epsilon_max=1e-9, delta=1e-9, sample_rate=1.0, num_slots=64, num_rounds=1000)


def private_learner(
    clip: float, noise: float, batch_size: int, seed: int = 3, epsilon_max: float = 1e9
) -> PrivateLearner:
    model = tiny_model()
    shared = SharedSlots(privacy=Privacy(clip=clip, noise_multiplier=noise))
    header = header_for(model, ["attention"], shared=shared)
    examples = {"input_ids": torch.randint(0, 97, (6, 10), generator=torch.Generator().manual_seed(0))}
    accountant = Accountant(
        noise_multiplier=noise, sample_rate=min(1.0, batch_size / 6), num_slots=header.num_slots, delta=1e-3
    )
    budget = Budget(accountant, epsilon_max)
    return PrivateLearner(header, model, NextTokenLoss(), examples, batch_size, budget, draws(seed).randrange)


def test_no_example_moves_a_sum_further_than_the_clip() -> None:
    learner = private_learner(clip=1e-3, noise=1.0, batch_size=6)
    differences = learner._measurer.differences(learner._examples, 0, range(12))
    clipped = learner._clipped(differences)
    assert differences.abs().max() > 2e-3 and clipped.abs().max() == GRID
    strange = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.5e-3])
    assert learner._clipped(strange).tolist() == [0, GRID, -GRID, GRID // 2]


def test_with_a_wide_clip_and_little_noise_the_slopes_are_those_without_privacy() -> None:
    learner = private_learner(clip=100.0, noise=0.01, batch_size=6)
    exact = learner._measurer.measure(learner._examples, 0, range(12))
    sums = learner._clipped(learner._measurer.differences(learner._examples, 0, range(12))).sum(1)
    assert (sums.double() * 100.0 / GRID / 6 / (2 * 1e-2)).tolist() == pytest.approx(exact, abs=0.5)


def test_what_was_told_once_is_told_again_and_a_round_is_spent_once() -> None:
    learner = private_learner(clip=0.1, noise=2.0, batch_size=3)
    first, rest = learner.measure(0, 0, 5), learner.measure(0, 5, 7)
    assert learner.measure(0, 0, 12) == first + rest and learner.budget.num_rounds == 1
    before = learner.epsilon
    learner.measure(1, 0, 12)
    assert learner.budget.num_rounds == 2 and learner.epsilon > before > 0


def test_another_draw_tells_other_bytes() -> None:
    one, other = (private_learner(clip=0.1, noise=2.0, batch_size=3, seed=seed).measure(0, 0, 12) for seed in (1, 2))
    assert one != other


def test_a_learner_without_privacy_or_data_is_refused() -> None:
    with pytest.raises(ValueError, match="choose a smaller one"):
        private_learner(clip=0.1, noise=2.0, batch_size=7)
    model, budget = tiny_model(), private_learner(clip=0.1, noise=2.0, batch_size=2).budget
    examples = {"input_ids": torch.zeros(2, 5, dtype=torch.long)}
    with pytest.raises(ValueError, match="adds no noise"):
        header = header_for(model, ["attention"], shared=SharedSlots())
        PrivateLearner(header, model, NextTokenLoss(), examples, 1, budget, draws(0).randrange)


class CountingBowl(Bowl):
    """Spends a budget as a private learner does."""

    budget: Budget

    @property
    def epsilon(self) -> float:
        return self.budget.epsilon

    def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
        if first_slot == 0:
            self.budget.spend()
        return super().measure(round_number, first_slot, num_slots)


def counting(num_rounds: Mapping[str, int]) -> Callable[[str, Header], CountingBowl]:
    """Learners that may measure so many rounds, by name."""

    def make(name: str, header: Header) -> CountingBowl:
        bowl = CountingBowl(header)
        accountant = Accountant(noise_multiplier=20.0, sample_rate=0.5, num_slots=16, delta=1e-4)
        bowl.budget = Budget(accountant, accountant.epsilon(num_rounds[name]))
        return bowl

    return make


def spending_run(
    rounds: Mapping[str, int], shared: SharedSlots, faults: Faults | None = None, **changes: object
) -> SimulatedOneByte:
    """A run of participants that may measure so many rounds, by name."""
    header = header_of(shared=shared)
    config = run_settings(**changes)
    workers, learner = dict.fromkeys(rounds, 1.0), counting(rounds)
    return SimulatedOneByte(config, workers, header=header, learner=learner, faults=faults or Faults())


def test_a_run_ends_before_its_budgets_are_exceeded_and_shows_what_is_spent() -> None:
    with spending_run({"a": 5, "b": 5}, SharedSlots()) as run:
        assert set(run.run(deadline=400)) == {"a", "b"}
        for name, told in run.reports.items():
            assert told.is_over and "is spent: 5 rounds" in told.reason and told.num_counted == 5 * 16
            assert told.epsilon is not None and told.epsilon == pytest.approx(run.learners[name].epsilon)  # pyright: ignore
        ledger = run.sequencer.ledger
        assert ledger is not None and (ledger.num_rounds, ledger.is_closed, ledger.num_vouched) == (5, True, 0)
        assert {*run.digests().values()} == {replayed(read_back(run))}


def test_who_has_spent_its_budget_follows_the_others_to_the_end() -> None:
    with spending_run({"a": 3, "b": 99, "c": 99}, SharedSlots(participants_min=2), num_rounds=9) as run:
        run.run(deadline=400)
        counted = {name: told.num_counted for name, told in run.reports.items()}
        assert counted == {"a": 3 * 16, "b": 9 * 16, "c": 9 * 16}
        assert "is spent: 3 rounds" in run.reports["a"].reason and not run.reports["b"].reason
        assert {*run.digests().values()} == {replayed(read_back(run))}


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_run_with_too_few_left_ends_rather_than_wait(is_masked: bool) -> None:
    shared = SharedSlots(participants_min=3, is_masked=is_masked)
    with spending_run({"a": 4, "b": 99, "c": 99}, shared, num_rounds=20, seal_seconds_max=5.0) as run:
        run.run(deadline=400)
        ledger = run.sequencer.ledger
        assert ledger is not None and ledger.is_closed and ledger.num_full_rounds == 4
        assert all(told.is_over for told in run.reports.values())
        assert {*run.digests().values()} == {replayed(read_back(run))}
        noted = [event.detail for event in run.simulation.trace.of("note") if "privacy budgets" in event.detail]
        assert len(noted) == 1 and "2 are left of the 3 that a round needs" in noted[0]


def test_who_is_gone_is_waited_for_only_so_long() -> None:
    """b crashes for good and a has spent its budget: nobody will ever measure again."""
    faults = Faults().crash("b", at=0.2)
    with spending_run({"a": 3, "b": 99}, SharedSlots(), faults, num_rounds=20, round_seconds_max=5.0) as run:
        questions: list[float] = []
        run.simulation.watch(lambda event: questions.append(event.time) if event.kind == "ByteReady" else None)
        run.run(deadline=400, names=["a"])
        assert run.reports["a"].is_over and "is spent" in run.reports["a"].reason
        assert len(questions) < 400, "who measures no more asks with pauses, not as fast as answers come"
