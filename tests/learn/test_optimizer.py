"""Named optimizers against hand-written references; their moments are there at once, live, and can move elsewhere."""

import math
from typing import Any

import pytest
import torch

from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.optimizer_config import OptimizerConfig, OptimizerName
from farflung.learn.parameters import Tensors, assign_, copies, fingerprint, joined, named_parameters
from tests.learn.models import llama_config, model_of

NAMES: list[OptimizerName] = ["adamw", "adam", "sgd", "muon", "adopt"]
SHAPES = {"embed.weight": (7, 4), "layers.0.weight": (4, 4), "layers.0.bias": (4,)}


def parameters_of(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def gradients_of(step: int) -> Tensors:
    generator = torch.Generator().manual_seed(1000 + step)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def walk(optimizer: NamedOptimizer, first: int, end: int, factor: float = 1.0) -> None:
    for step in range(first, end):
        for name, gradient in gradients_of(step).items():
            optimizer.parameters[name].grad = gradient
        optimizer.step(factor)


def config_of(name: OptimizerName, **changes: float | None) -> OptimizerConfig:
    return OptimizerConfig(name=name, **{"learning_rate": 0.05, **changes})


def reference(name: str, config: OptimizerConfig, num_steps: int, factor: float) -> dict[str, torch.Tensor]:
    """The published equations, value by value in float64."""
    rate, beta1, beta2, epsilon = config.learning_rate * factor, config.beta1, config.beta2, config.epsilon
    x = {path: tensor.detach().double() for path, tensor in parameters_of().items()}
    m = {path: torch.zeros_like(tensor) for path, tensor in x.items()}
    v = {path: torch.zeros_like(tensor) for path, tensor in x.items()}
    for step in range(num_steps):
        gradients = {path: tensor.double() for path, tensor in gradients_of(step).items()}
        length = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        shrink = 1.0 if config.clip_norm is None else min(1.0, config.clip_norm / length)
        for path, g in gradients.items():
            g = g * shrink
            decay = config.weight_decay if g.ndim >= 2 else 0.0
            if name in ("adam", "sgd"):
                g = g + decay * x[path]
            if name in ("adamw", "adopt") and not (name == "adopt" and step == 0):
                x[path] = x[path] - rate * decay * x[path]
            if name == "sgd":
                m[path] = config.momentum * m[path] + g
                x[path] = x[path] - rate * m[path]
            elif name == "adopt":
                if step:
                    quotient = g / torch.maximum(v[path].sqrt(), torch.tensor(epsilon))
                    m[path] = beta1 * m[path] + (1 - beta1) * quotient.clamp(-(step**0.25), step**0.25)
                    x[path] = x[path] - rate * m[path]
                v[path] = beta2 * v[path] + (1 - beta2) * g * g if step else g * g
            else:
                m[path] = beta1 * m[path] + (1 - beta1) * g
                v[path] = beta2 * v[path] + (1 - beta2) * g * g
                corrected = m[path] / (1 - beta1 ** (step + 1))
                root = (v[path] / (1 - beta2 ** (step + 1))).sqrt()
                x[path] = x[path] - rate * corrected / (root + epsilon)
    return x


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "adopt"])
@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_equals_the_published_equations(name: OptimizerName, clip_norm: float | None) -> None:
    config = config_of(name, clip_norm=clip_norm)
    optimizer = NamedOptimizer(parameters_of(), config)
    walk(optimizer, 0, 6, factor=0.5)
    for path, expected in reference(name, config, 6, 0.5).items():
        torch.testing.assert_close(optimizer.parameters[path].detach().double(), expected, atol=2e-6, rtol=2e-6)


def test_clipping_shortens_only_long_gradients() -> None:
    for clip_norm in (1e6, None):
        optimizer = NamedOptimizer(parameters_of(), config_of("sgd", clip_norm=clip_norm))
        walk(optimizer, 0, 3)
        assert fingerprint(optimizer.parameters) == fingerprint(unclipped())
    optimizer = NamedOptimizer(parameters_of(), config_of("sgd", clip_norm=0.5))
    walk(optimizer, 0, 3)
    assert fingerprint(optimizer.parameters) != fingerprint(unclipped())


def unclipped() -> Tensors:
    optimizer = NamedOptimizer(parameters_of(), config_of("sgd", clip_norm=None))
    walk(optimizer, 0, 3)
    return optimizer.parameters


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_zeros_at_once_and_stay_the_same_tensors(name: OptimizerName) -> None:
    optimizer = NamedOptimizer(parameters_of(), config_of(name))
    before = {group: dict(moment) for group, moment in optimizer.moments.items()}
    assert list(before["first_moment"]) == list(SHAPES)
    assert not any(tensor.any() for moment in before.values() for tensor in moment.values())
    walk(optimizer, 0, 3)
    for group, moment in before.items():
        for path, tensor in moment.items():
            assert optimizer.moments[group][path] is tensor
            assert tensor.any(), f"{group} of {path} takes part"


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("adamw", list(SHAPES)),
        ("adam", list(SHAPES)),
        ("adopt", list(SHAPES)),
        ("sgd", None),
        ("muon", ["embed.weight", "layers.0.bias"]),
    ],
)
def test_each_has_the_moments_it_has(name: OptimizerName, second: list[str] | None) -> None:
    moments = NamedOptimizer(parameters_of(), config_of(name)).moments
    assert (list(moments["second_moment"]) if "second_moment" in moments else None) == second
    assert not NamedOptimizer(parameters_of(), config_of("sgd", momentum=0.0)).moments


@pytest.mark.parametrize("name", NAMES)
def test_five_steps_saved_loaded_and_five_more_are_ten(name: OptimizerName) -> None:
    straight = NamedOptimizer(parameters_of(), config_of(name))
    walk(straight, 0, 10)
    first = NamedOptimizer(parameters_of(), config_of(name))
    walk(first, 0, 5)
    tensors, values = first.state()
    tensors, parameters = copies(tensors), copies(first.parameters)
    walk(first, 5, 6)  # what was copied does not move on
    second = NamedOptimizer(parameters_of(seed=1), config_of(name))
    assign_(second.parameters, parameters)
    second.load(tensors, values)
    walk(second, 5, 10)
    assert fingerprint(second.parameters) == fingerprint(straight.parameters)
    assert fingerprint(joined(second.moments)) == fingerprint(joined(straight.moments))
    assert second.num_steps == straight.num_steps == 10


@pytest.mark.parametrize("name", ["adamw", "adam", "adopt", "muon"])
def test_the_count_of_steps_matters_and_is_part_of_the_state(name: OptimizerName) -> None:
    straight = NamedOptimizer(parameters_of(), config_of(name))
    walk(straight, 0, 6)
    forgetful = NamedOptimizer(parameters_of(), config_of(name))
    walk(forgetful, 0, 5)
    forgetful.num_steps = 0
    walk(forgetful, 5, 6)
    assert fingerprint(forgetful.parameters) != fingerprint(straight.parameters)


def test_a_joiner_with_the_others_moments_and_count_takes_their_step() -> None:
    others = NamedOptimizer(parameters_of(), config_of("adamw"))
    walk(others, 0, 5)
    joiner = NamedOptimizer(parameters_of(), config_of("adamw"))
    assign_(joiner.parameters, others.parameters)
    for group, moment in others.moments.items():
        assign_(joiner.moments[group], moment)
    joiner.num_steps = others.num_steps
    for optimizer in (others, joiner):
        walk(optimizer, 5, 6)
    assert fingerprint(joiner.parameters) == fingerprint(others.parameters)


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_that_is_not_finite_changes_nothing(name: OptimizerName) -> None:
    optimizer = NamedOptimizer(parameters_of(), config_of(name))
    walk(optimizer, 0, 2)
    before = fingerprint(optimizer.parameters), fingerprint(joined(optimizer.moments))
    optimizer.complete_gradients()
    optimizer.gradients["layers.0.bias"][1] = math.nan
    assert math.isnan(optimizer.step(1.0))
    assert (fingerprint(optimizer.parameters), fingerprint(joined(optimizer.moments))) == before
    assert optimizer.num_steps == 2
    assert not optimizer.gradients


def test_a_parameter_that_the_loss_does_not_reach_counts_as_zero_gradient() -> None:
    missing, zero = (NamedOptimizer(parameters_of(), config_of("adamw")) for _ in range(2))
    for step in range(3):
        for optimizer in (missing, zero):
            for path, gradient in gradients_of(step).items():
                optimizer.parameters[path].grad = gradient
        missing.parameters["embed.weight"].grad = None
        assert "embed.weight" not in missing.gradients
        zero.gradients["embed.weight"].zero_()
        missing.step(1.0)
        zero.step(1.0)
    assert fingerprint(missing.parameters) == fingerprint(zero.parameters)


def test_muon_takes_hidden_matrices_of_a_real_model_and_adamw_the_rest() -> None:
    parameters = named_parameters(model_of(llama_config()))
    second = set(NamedOptimizer(parameters, config_of("muon")).moments["second_moment"])
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= second
    assert not any(path.endswith(("proj.weight", "embed.weight")) for path in second)
    assert len(parameters) - len(second) == 2 * 7


def test_muons_step_is_orthogonal_and_of_adams_size() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(32, 48))
    config = config_of("muon", weight_decay=0.0, clip_norm=None)
    optimizer = NamedOptimizer({"layers.0.weight": weight}, config)
    weight.grad = torch.randn(32, 48, generator=generator)
    optimizer.step(1.0)
    singular = torch.linalg.svdvals(weight.detach()) / (0.2 * math.sqrt(48) * config.learning_rate)
    assert float(singular.min()) > 0.5 and float(singular.max()) < 1.3  # of the gradient itself: from 0.2 to 1.8


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"name": "adamv"}, "there are adamw, adam, sgd, muon, adopt"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"beta2": 1.0}, "below 1"),
        ({"clip_norm": 0.0}, "leave it out"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        OptimizerConfig(**settings)


def test_what_cannot_be_optimized_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        NamedOptimizer({}, config_of("adamw"))
    with pytest.raises(ValueError, match="choose adamw"):
        NamedOptimizer({"embed.weight": torch.nn.Parameter(torch.zeros(3, 3))}, config_of("muon"))


def test_a_state_of_something_else_is_refused_and_overwrites_nothing() -> None:
    tensors, values = NamedOptimizer(parameters_of(), config_of("adamw")).state()
    target = NamedOptimizer(parameters_of(), config_of("adamw"))
    walk(target, 0, 1)
    before = fingerprint(joined(target.moments))
    missing = {path: tensor for path, tensor in tensors.items() if path != "first_moment/embed.weight"}
    other = {**tensors, "second_moment/layers.0.bias": torch.ones(5)}
    for wrong, what in ((missing, "is missing"), (other, r"\[5\]"), ({**tensors, "x/y": torch.ones(1)}, "not known")):
        with pytest.raises(ValueError, match=what):
            target.load(wrong, values)
    with pytest.raises(ValueError, match="of optimizer adam, not of adamw"):
        target.load(tensors, {**values, "name": "adam"})
    assert fingerprint(joined(target.moments)) == before
