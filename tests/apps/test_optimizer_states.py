"""States of any torch optimizer by name, made to exist without a step; and what misuse is told."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Muon, Optimizer

import farflung
from farflung.apps.low_communication.meeting import NobodyThere
from farflung.apps.low_communication.policy import DesLoc, DiLoCo, LocalAdam
from farflung.apps.low_communication.states import OptimizerStates, digest_of, plain_name
from farflung.learn.adopt import Adopt


def small_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))


def steps(model: nn.Module, optimizers: list[Optimizer], num_steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        model(torch.randn(5, 4, generator=generator)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


MAKERS: list[tuple[Callable[[nn.Module], list[Optimizer]], list[str]]] = [
    (lambda model: [SGD(model.parameters(), lr=0.1)], []),
    (lambda model: [SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)], ["first_moment"]),
    (lambda model: [AdamW(model.parameters(), lr=0.1, weight_decay=0.3)], ["first_moment", "second_moment"]),
    (
        lambda model: [Adam(model.parameters(), lr=torch.tensor(0.1), amsgrad=True)],
        ["first_moment", "max_exp_avg_sq", "second_moment"],
    ),
    (lambda model: [Adopt(model.parameters(), lr=0.1)], ["first_moment", "second_moment"]),
    (
        lambda model: [
            Muon([one for one in model.parameters() if one.ndim == 2], lr=0.1),
            AdamW([one for one in model.parameters() if one.ndim == 1], lr=0.1),
        ],
        ["first_moment", "second_moment"],
    ),
]


@pytest.mark.parametrize(("make", "names"), MAKERS)
def test_states_exist_as_zeros_and_change_nothing(
    make: Callable[[nn.Module], list[Optimizer]], names: list[str]
) -> None:
    plain, watched = small_model(), small_model()
    expected = steps(plain, make(plain), 3)
    optimizers = make(watched)
    states = OptimizerStates(watched, optimizers)
    moments = states.moments
    assert list(moments) == names
    assert all(not tensor.any() for tensors in moments.values() for tensor in tensors.values())
    assert states.num_steps == 0
    for own, wanted in zip(steps(watched, optimizers, 3), expected, strict=True):
        assert torch.equal(own, wanted)
    assert all(tensor.any() for tensors in states.moments.values() for tensor in tensors.values())


def test_the_count_of_steps_is_what_bias_correction_counts() -> None:
    model = small_model()
    optimizer = AdamW(model.parameters())
    states = OptimizerStates(model, [optimizer])
    states.set_num_steps(7)
    steps(model, [optimizer], 1)
    assert states.num_steps == 8
    assert OptimizerStates(model, [optimizer]).num_steps == 8, "a loaded optimizer keeps its states"


def test_sites_that_wrap_differently_have_the_same_names() -> None:
    assert plain_name("module._orig_mod.layers.0.weight") == "layers.0.weight"
    model = small_model()
    compiled = nn.Module()
    compiled.add_module("_orig_mod", model)
    digests = [digest_of(OptimizerStates(one, [SGD(one.parameters(), lr=0.1)])) for one in (model, compiled)]
    assert digests[0] == digests[1]
    assert digest_of(OptimizerStates(model, [AdamW(model.parameters())])) != digests[0]


def test_periods_by_kind_of_moment() -> None:
    moments = ("first_moment", "max_exp_avg_sq", "second_moment")
    assert DesLoc(parameters_every=4).moments_every(moments) == dict(zip(moments, (12, 24, 24), strict=True))
    own = DesLoc(parameters_every=4, first_moment_every=5, periods={"max_exp_avg_sq": 9})
    assert own.moments_every(moments) == dict(zip(moments, (5, 9, 24), strict=True))
    assert LocalAdam(parameters_every=4).moments_every(moments) == dict.fromkeys(moments, 4)
    assert DiLoCo().moments_every(moments) == {}


def test_misuse_is_told_in_a_sentence() -> None:
    model, other = small_model(), small_model()
    with pytest.raises(ValueError, match=r"parameter of shape \(3, 4\) that is not the model's: make the optimizer"):
        farflung.LowCommunication(model, AdamW(other.parameters()))
    with pytest.raises(ValueError, match="never average a moment more often than the parameters"):
        DesLoc(parameters_every=8, first_moment_every=4)
    with pytest.raises(ValueError, match="average_before is gradient or update"):
        DesLoc(average_before="step")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="a founder needs no ticket, but a host"):
        farflung.LowCommunication(model, AdamW(model.parameters()), new_swarm="lab")
    frozen = small_model().requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter that takes a gradient"):
        farflung.LowCommunication(frozen, SGD(frozen.parameters(), lr=0.1))
    with (
        pytest.raises(ValueError, match="ticket"),
        farflung.LowCommunication(model, AdamW(model.parameters()), swarm="nonsense"),
    ):
        pass


def test_who_finds_nobody_is_told_how_many_are_missing() -> None:
    model = small_model()
    tickets: list[str] = []
    alone = farflung.LowCommunication(
        model,
        SGD(model.parameters(), lr=0.1),
        new_swarm="lab",
        host="127.0.0.1",
        wait_seconds_max=1.0,
        on_ticket=tickets.append,
    )
    with pytest.raises(NobodyThere, match="after 1 s 1 of at least 2 sites train run 'training'"), alone:
        pass
    assert len(tickets) == 1
    steps(model, [SGD(model.parameters(), lr=0.1)], 1)  # no hook is left behind
