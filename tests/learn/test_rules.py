"""Outer rules against hand-written numbers, in slices as in one piece, and with their state taken elsewhere."""

from collections.abc import Callable

import pytest
import torch

from farflung.learn.parameters import Tensors, copies, fingerprint, joined, parted
from farflung.learn.rules import DelayedNesterov, Descent, Nesterov, Rule, RuleState

RULES: list[Rule] = [
    Descent(learning_rate=0.5),
    Nesterov(learning_rate=0.7, momentum=0.9),
    DelayedNesterov(learning_rate=1.6, momentum=0.5, num_delay=4),
    DelayedNesterov(learning_rate=1.6, momentum=0.5, num_delay=4, correction=0.2),
]


def some(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {"weight": torch.randn(3, 4, generator=generator), "bias": torch.randn(6, generator=generator)}


def trained(rule: Rule, num_deltas: int) -> tuple[Tensors, RuleState]:
    parameters = some(0)
    state = rule.init(parameters)
    for number in range(num_deltas):
        rule.update(parameters, some(number + 1), state)
    return parameters, state


def test_delayed_nesterov_by_hand() -> None:
    # lr 1, beta 1/2, N 2 on p = 0 with deltas 2, 4, 8, 16; halves and sums are exact in binary.
    rule = DelayedNesterov(learning_rate=1.0, momentum=0.5, num_delay=2)
    parameters = {"p": torch.zeros(1)}
    state = rule.init(parameters)
    seen: list[tuple[float, ...]] = []
    for delta in (2.0, 4.0, 8.0, 16.0):
        rule.update(parameters, {"p": torch.tensor([delta])}, state)
        seen.append(tuple(float(t) for t in (parameters["p"], *(state.tensors[k]["p"] for k in state.tensors))))
    assert list(state.tensors) == ["upcoming"] and state.step == 4
    assert seen == [
        (-1.0, 1.0),  # p -= 2/2; u = 2/2
        (-4.5, 1.5),  # m = 1 + 4/2; p -= m/2 + 4/2; u = m/2
        (-8.5, 5.5),  # p -= 8/2; u = 1.5 + 8/2
        (-23.25, 6.75),  # m = 5.5 + 16/2; p -= m/2 + 16/2; u = m/2
    ]


def test_delayed_nesterov_with_correction_by_hand() -> None:
    # As above with c = 1/4: each delta applies c beta m, every second one (1 - cN + c) beta m = 3/4 beta m.
    rule = DelayedNesterov(learning_rate=1.0, momentum=0.5, num_delay=2, correction=0.25)
    parameters = {"p": torch.zeros(1)}
    state = rule.init(parameters)
    seen: list[float] = []
    for delta in (2.0, 4.0, 8.0, 16.0):
        rule.update(parameters, {"p": torch.tensor([delta])}, state)
        seen.append(float(parameters["p"]))
    assert seen == [-1.0, -1 - 1.125 - 2, -4.125 - 0.375 - 4, -8.5 - 5.0625 - 8]


@pytest.mark.parametrize("correction", [0.0, 0.1])
def test_delayed_nesterov_is_the_published_form_with_its_two_tensors(correction: float) -> None:
    rate, beta, num_delay = 1.6, 0.9, 4
    rule = DelayedNesterov(learning_rate=rate, momentum=beta, num_delay=num_delay, correction=correction)
    ours = {"p": torch.zeros(50, dtype=torch.float64)}
    state = rule.init(ours)
    theirs, momentum, accumulated = (torch.zeros(50, dtype=torch.float64) for _ in range(3))
    for number in range(1, 23):
        delta = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        rule.update(ours, {"p": delta}, state)
        accumulated = accumulated + delta
        share = correction
        if number % num_delay == 0:
            momentum = beta * momentum + accumulated / num_delay
            accumulated, share = torch.zeros(50, dtype=torch.float64), 1 - correction * num_delay + correction
        theirs = theirs - rate * (share * beta * momentum + delta / num_delay)
        torch.testing.assert_close(ours["p"], theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_goes_down_a_bowl(rule: Rule) -> None:
    parameters = some(0)
    state = rule.init(parameters)
    for _ in range(200):
        rule.update(parameters, {name: 0.1 * tensor for name, tensor in parameters.items()}, state)
    assert max(float(tensor.abs().max()) for tensor in parameters.values()) < 1e-2


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_state_by_name_continues_elsewhere_to_the_bit(rule: Rule) -> None:
    straight, straight_state = trained(rule, 7)
    parameters, state = trained(rule, 3)
    file = copies(joined(state.tensors))
    elsewhere = RuleState(step=state.step, tensors=parted(file))
    for number in range(3, 7):
        rule.update(parameters, some(number + 1), elsewhere)
    assert fingerprint(parameters) == fingerprint(straight)
    assert fingerprint(joined(elsewhere.tensors)) == fingerprint(joined(straight_state.tensors))
    assert elsewhere.step == straight_state.step == 7


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_an_update_in_slices_is_the_update(rule: Rule) -> None:
    whole, _ = trained(rule, 5)
    parameters = some(0)
    state = rule.init(parameters)
    cuts: list[Callable[[Tensors], Tensors]] = [
        lambda tensors: {"weight": tensors["weight"].view(-1)[:5]},
        lambda tensors: {"weight": tensors["weight"].view(-1)[5:], "bias": tensors["bias"][:2]},
        lambda tensors: {"bias": tensors["bias"][2:]},
    ]
    for number in range(5):
        delta = some(number + 1)
        for cut in cuts:
            part = RuleState(state.step, {name: cut(tensors) for name, tensors in state.tensors.items()})
            rule.update(cut(parameters), cut(delta), part)
        state.step += 1
    assert fingerprint(parameters) == fingerprint(whole)


def test_parameters_that_learn_are_changed_without_a_graph() -> None:
    parameters: Tensors = {"p": torch.nn.Parameter(torch.zeros(2))}
    for rule in RULES:
        rule.update(parameters, {"p": torch.ones(2)}, rule.init(parameters))
    assert parameters["p"].is_leaf and float(parameters["p"].detach()[0]) < 0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Descent(learning_rate=0.0), "above 0"),
        (lambda: Nesterov(learning_rate=0.7, momentum=1.0), "below 1"),
        (lambda: DelayedNesterov(learning_rate=1, momentum=0.9, num_delay=0), "at least 1"),
        (lambda: DelayedNesterov(learning_rate=1, momentum=0.9, num_delay=4, correction=0.3), "1 / num_delay"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], Rule], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        make()
