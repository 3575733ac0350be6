"""The learning rules' claims as equalities: what each reduces to, on real gradients of a small language model.

The sites here are trainers in one process; what they send is what the rules get.
"""

import pytest
import torch

from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, copies, fingerprint
from farflung.learn.rules import DelayedNesterov, Descent, Nesterov, Rule, RuleState
from farflung.learn.trainer import Trainer
from tests.learn.models import Counting, end, llama_config, trainer_of
from tests.tensors import difference, mean, norm

RATE = 0.2
NUM_SITES = 3


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def sgd(momentum: float = 0.0) -> OptimizerConfig:
    return OptimizerConfig(name="sgd", learning_rate=RATE, momentum=momentum, weight_decay=0.0, clip_norm=None)


def sites(config: OptimizerConfig) -> list[Trainer]:
    """Trainers with one model and different data."""
    trainers = [trainer_of(llama_config(), config) for _ in range(NUM_SITES)]
    for number, trainer in enumerate(trainers):
        trainer.stream = Counting(seed=number)
    return trainers


def round_of(trainers: list[Trainer], start: Tensors, num_steps: int) -> Tensors:
    """Every site descends from `start`; their mean delta, start minus end."""
    for trainer in trainers:
        assign_(trainer.parameters, start)
        trainer.run(num_steps, end)
    return mean([difference(start, trainer.parameters) for trainer in trainers])


def outer(rule: Rule, config: OptimizerConfig, num_rounds: int, num_steps: int) -> Tensors:
    trainers = sites(config)
    parameters = copies(trainers[0].parameters)
    state = rule.init(parameters)
    for _ in range(num_rounds):
        rule.update(parameters, round_of(trainers, parameters, num_steps), state)
    return parameters


def data_parallel(optimizer: type[torch.optim.Optimizer], num_steps: int, **settings: float | bool) -> Tensors:
    """Synchronous data parallelism: one model, the mean of the sites' gradients, torch's optimizer."""
    trainers = sites(sgd())
    parameters: Tensors = {name: torch.nn.Parameter(tensor) for name, tensor in copies(trainers[0].parameters).items()}
    descending = optimizer(parameters.values(), **settings)  # pyright: ignore[reportArgumentType]
    for _ in range(num_steps):
        for trainer in trainers:
            assign_(trainer.parameters, parameters)
            trainer.model.zero_grad()
            trainer.compute_gradients()
        for name, gradient in mean([trainer.gradients for trainer in trainers]).items():
            parameters[name].grad = gradient
        descending.step()
    return parameters


def apart(a: Tensors, b: Tensors) -> float:
    """How far two sets are from each other, relative to how far the first is from where all began."""
    begun = trainer_of(llama_config(), sgd()).parameters
    return norm(difference(a, b)) / norm(difference(a, begun))


def test_local_sgd_of_one_step_is_data_parallel_sgd() -> None:
    local = outer(Descent(learning_rate=1.0), sgd(), num_rounds=8, num_steps=1)
    assert apart(local, data_parallel(torch.optim.SGD, 8, lr=RATE)) < 1e-5
    # Negative control: with two local steps it is another method.
    assert apart(outer(Descent(learning_rate=1.0), sgd(), num_rounds=4, num_steps=2), local) > 1e-3


def test_outer_nesterov_on_one_step_deltas_is_data_parallel_nesterov() -> None:
    local = outer(Nesterov(learning_rate=1.0, momentum=0.9), sgd(), num_rounds=8, num_steps=1)
    expected = data_parallel(torch.optim.SGD, 8, lr=RATE, momentum=0.9, nesterov=True)
    assert apart(local, expected) < 1e-5
    assert apart(local, data_parallel(torch.optim.SGD, 8, lr=RATE, momentum=0.9)) > 1e-2


def test_plain_descent_with_rate_one_averages_the_sites() -> None:
    trainers = sites(OptimizerConfig(learning_rate=0.01))
    start = copies(trainers[0].parameters)
    average = copies(start)
    Descent(learning_rate=1.0).update(average, round_of(trainers, start, 4), RuleState())
    for name, tensor in mean([trainer.parameters for trainer in trainers]).items():
        torch.testing.assert_close(average[name], tensor, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("correction", [0.0, 0.4, 1.0])
def test_delayed_nesterov_with_a_delay_of_one_is_nesterov_to_the_bit(correction: float) -> None:
    # Both: m = beta m + d; p -= lr (d + beta m), for every correction c, as 1 - cN + c is 1.
    delayed = DelayedNesterov(learning_rate=0.7, momentum=0.9, num_delay=1, correction=correction)
    config = OptimizerConfig(learning_rate=0.01)
    assert fingerprint(outer(delayed, config, 6, 2)) == fingerprint(outer(Nesterov(), config, 6, 2))
    longer = DelayedNesterov(learning_rate=0.7, momentum=0.9, num_delay=2)
    assert apart(outer(longer, config, 6, 2), outer(Nesterov(), config, 6, 2)) > 1e-2


def deltas(num: int) -> list[Tensors]:
    """Deltas of one real trainer, all from the same start."""
    trainer = trainer_of(llama_config(), OptimizerConfig(learning_rate=0.01))
    start = copies(trainer.parameters)
    return [round_of([trainer], start, 2) for _ in range(num)]


def after(rule: Rule, given: list[Tensors]) -> tuple[Tensors, RuleState]:
    parameters = copies(trainer_of(llama_config(), sgd()).parameters)
    state = rule.init(parameters)
    for delta in given:
        rule.update(parameters, delta, state)
    return parameters, state


@pytest.mark.parametrize("num_delay", [2, 4])
def test_a_window_of_delayed_nesterov_ends_where_nesterov_on_its_mean_does(num_delay: int) -> None:
    arrivals = deltas(3 * num_delay)
    windows = [mean(arrivals[first : first + num_delay]) for first in range(0, len(arrivals), num_delay)]
    delayed, state = after(DelayedNesterov(learning_rate=0.7, momentum=0.9, num_delay=num_delay), arrivals)
    expected, nesterov_state = after(Nesterov(learning_rate=0.7, momentum=0.9), windows)
    assert apart(delayed, expected) < 1e-5
    # What the next window begins with is beta times the momentum of the last.
    decayed = {name: 0.9 * tensor for name, tensor in nesterov_state.tensors["momentum"].items()}
    assert norm(difference(state.tensors["upcoming"], decayed)) < 1e-5 * norm(decayed)
    # In the middle of a window they differ: an arrival has moved the parameters, the momentum has not.
    early, _ = after(DelayedNesterov(learning_rate=0.7, momentum=0.9, num_delay=num_delay), arrivals[:-1])
    assert apart(early, expected) > 1e-3


def test_correction_hands_out_the_momentum_in_equal_parts() -> None:
    # With c = 1/N and a momentum that no longer changes, each of the N deltas applies an N-th of beta m.
    num_delay, beta, rate = 4, 0.9, 0.7
    rule = DelayedNesterov(learning_rate=rate, momentum=beta, num_delay=num_delay, correction=1 / num_delay)
    arrivals = deltas(num_delay)
    parameters, state = after(rule, arrivals)
    momentum = copies(state.tensors["momentum"])
    before = copies(parameters)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()}
    for number in range(1, num_delay):
        rule.update(parameters, nothing, state)
        moved = difference(before, parameters)
        for name, tensor in moved.items():
            torch.testing.assert_close(tensor, number * rate * beta / num_delay * momentum[name], atol=1e-6, rtol=1e-3)


def test_rates_as_published_scripts_give_them() -> None:
    # They pass lr = eta N: an arrival moves p by eta d, and every N-th one by eta N beta m more (HALoS 1.1).
    eta, beta, num_delay = 0.2, 0.9, 4
    rule = DelayedNesterov(learning_rate=eta * num_delay, momentum=beta, num_delay=num_delay)
    given = deltas(num_delay)
    parameters = copies(trainer_of(llama_config(), sgd()).parameters)
    state = rule.init(parameters)
    for number, delta in enumerate(given):
        before = copies(parameters)
        rule.update(parameters, delta, state)
        moved = difference(before, parameters)
        # After the turn the state holds beta m.
        leap = eta * num_delay if number == num_delay - 1 else 0.0
        for name, tensor in moved.items():
            expected = eta * delta[name] + leap * state.tensors["upcoming"][name]
            torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-3)
