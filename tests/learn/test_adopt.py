"""ADOPT as anyone's torch optimizer: it converges where its paper says Adam does not, and keeps torch's customs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from farflung.learn.adopt import Adopt
from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import fingerprint


def weights(seed: int = 0) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(seed)))


def gradient(step: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1000 + step))


def walk(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, first: int, end: int) -> None:
    for step in range(first, end):
        parameter.grad = gradient(step)
        optimizer.step()


def where_it_ends(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> float:
    """The paper's example, k = 5: slopes of k^2 with probability 1/k and else -k, in [-1, 1]; the mean slope is 1.

    Twenty values at once; their mean.
    """
    k, generator = 5, torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(20))
    optimizer = make([parameter])
    for draws in torch.rand(2000, 20, generator=generator):
        parameter.grad = torch.where(draws < 1 / k, float(k**2), float(-k))
        optimizer.step()
        with torch.no_grad():
            parameter.clamp_(-1, 1)
    return parameter.mean().item()


def test_it_finds_the_minimum_where_adam_runs_to_the_maximum() -> None:
    betas = (0.0, 0.1)
    adopt = where_it_ends(lambda parameters: Adopt(parameters, lr=0.005, betas=betas, clip_exponent=None))
    adam = where_it_ends(lambda parameters: torch.optim.Adam(parameters, lr=0.005, betas=betas))
    assert adopt < -0.8 and adam > 0.8


def test_state_made_in_the_first_step_is_that_made_in_advance() -> None:
    alone, named = weights(), weights()
    config = OptimizerConfig(name="adopt", learning_rate=0.01, clip_norm=None)
    optimizer = NamedOptimizer({"w": named}, config)
    adopt = Adopt([alone], lr=0.01, betas=(config.beta1, config.beta2), eps=config.epsilon, weight_decay=0.1)
    walk(alone, adopt, 0, 4)
    for step in range(4):
        named.grad = gradient(step)
        optimizer.step(1.0)
    assert fingerprint({"w": alone}) == fingerprint({"w": named})


def test_a_state_dict_goes_on_elsewhere() -> None:
    straight, parameter = weights(), weights()
    walk(straight, Adopt([straight]), 0, 6)
    first = Adopt([parameter])
    walk(parameter, first, 0, 3)
    second = Adopt([parameter], lr=0.5)
    second.load_state_dict(first.state_dict())
    walk(parameter, second, 3, 6)
    assert torch.equal(parameter, straight)


def test_a_closure_is_asked_with_gradients_and_its_loss_returned() -> None:
    parameter = weights()
    optimizer = Adopt([parameter])

    def closure() -> float:
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss.item()

    losses = [optimizer.step(closure) for _ in range(30)]
    assert losses[0] == losses[1], "the first step only measures"
    assert losses[-1] is not None and losses[1] is not None and losses[-1] < losses[1]


def test_the_clip_tames_values_whose_first_gradient_was_nothing() -> None:
    def leap(clip_exponent: float | None) -> float:
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = Adopt([parameter], lr=0.01, clip_exponent=clip_exponent)
        for slope in (0.0, 1.0):
            parameter.grad = torch.tensor([slope])
            optimizer.step()
        return abs(parameter.item())

    assert leap(0.25) == pytest.approx(0.01 * 0.1)
    assert leap(None) == pytest.approx(0.01 * 0.1 / 1e-6)


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"eps": 0.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        Adopt([weights()], **settings)
