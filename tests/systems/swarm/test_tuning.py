"""Gradients through the swarm while servers die: at every request of every server they are those of one machine."""

import functools
from typing import Any

import pytest
import torch

from farflung.sim.faults import Faults, nth
from farflung.systems.swarm.view import NoRoute
from tests.swarms import SimulatedSwarm, SmallModel, tokens

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}
SPLIT = {"a1": (0, 2), "x1": (0, 1), "x2": (1, 2), "y1": (0, 1), "b1": (2, 4), "b2": (2, 4)}
"""Here the only replacement of a1 is a pair, so that inputs inside its span must be recomputed."""
KINDS = {"Forward": "ForwardDone", "Backward": "BackwardDone"}


def gradients(model: Any, prompts_LPH: torch.Tensor | None, embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of a sum over the logits, by the embeddings and, if there are any, by the deep prompts."""
    inputs = embeddings.clone().requires_grad_()
    wanted = [inputs]
    if prompts_LPH is not None:
        prompts = prompts_LPH.clone().requires_grad_()
        model.set_deep_prompts(prompts)
        wanted.append(prompts)
    return torch.autograd.grad(model(inputs_embeds=inputs).logits.logsumexp(-1).sum(), wanted)


@functools.cache
def embeddings_of(small: SmallModel) -> torch.Tensor:
    return small.whole.get_input_embeddings()(tokens(small, 2, 5)).detach()


@functools.cache
def prompts_of(small: SmallModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(small.num_blocks, 3, small.source.hidden_size, generator=generator)


@functools.cache
def undisturbed(small: SmallModel) -> tuple[torch.Tensor, ...]:
    """By embeddings and prompts, through one server that nothing happens to."""
    with SimulatedSwarm(small, {"only": (0, 4)}) as swarm:
        return gradients(swarm.model, prompts_of(small), embeddings_of(small))


def check(small: SmallModel, servers: dict[str, tuple[int, int]], faults: Faults) -> SimulatedSwarm:
    with SimulatedSwarm(small, servers, faults=faults) as swarm:
        found = gradients(swarm.model, prompts_of(small), embeddings_of(small))
        assert swarm.simulation.now() < 60.0
    for one, other in zip(found, undisturbed(small), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    return swarm


def test_without_faults_they_are_those_of_one_machine(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        (ours,) = gradients(swarm.model, None, embeddings_of(small))
    (theirs,) = gradients(small.whole, None, embeddings_of(small))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    check(small, SERVERS, Faults())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", ["a1", "b1"])
def test_a_server_dies_at_a_request(small: SmallModel, kind: str, victim: str) -> None:
    """Before it has seen the request, before its answer has left, and after."""
    moments = (
        nth(kind, 1, "deliver", target=victim),
        nth(KINDS[kind], 1, "send", source=victim),
        nth(KINDS[kind], 1, "sent", source=victim),
    )
    for moment in moments:
        swarm = check(small, SERVERS, Faults().crash(victim, when=moment))
        assert not swarm.simulation.is_alive(victim)


@pytest.mark.parametrize("kind", KINDS)
def test_the_replacement_is_split_over_two_servers(small: SmallModel, kind: str) -> None:
    swarm = check(small, SPLIT, Faults().crash("a1", when=nth(kind, 1, "deliver", target="a1")))
    assert not swarm.simulation.is_alive("a1")


@pytest.mark.parametrize("second", ["x1", "y1", "x2"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replacement_dies_too(small: SmallModel, second: str, kind: str) -> None:
    """While it recomputes inputs inside the span of the first, or while it is asked for gradients."""
    faults = Faults().crash("a1", when=nth("Backward", 1, "deliver", target="a1"))
    faults.crash(second, when=nth(kind, 1, "deliver", target=second))
    if second == "x2":
        check(small, {**SPLIT, "y2": (1, 2)}, faults)
    else:
        check(small, SPLIT, faults)


def test_a_server_restarts_between_forward_and_backward(small: SmallModel) -> None:
    """It keeps nothing between the two, so nothing is lost."""
    for name in ("a1", "b1"):
        faults = Faults().crash(name, when=nth("ForwardDone", 1, "sent", source=name), restart_after=0.001)
        check(small, {"a1": (0, 2), "b1": (2, 4)}, faults)


def test_blocks_that_nobody_holds_are_named(small: SmallModel) -> None:
    with SimulatedSwarm(small, {"a1": (0, 2)}) as swarm, pytest.raises(NoRoute, match="blocks 2:4"):
        gradients(swarm.model, None, embeddings_of(small))


def test_a_batch_that_the_model_cannot_take_is_the_users_fault(small: SmallModel) -> None:
    too_long = torch.zeros(1, 513, small.source.hidden_size)
    with SimulatedSwarm(small, SERVERS) as swarm, pytest.raises(ValueError, match="513 positions"):
        gradients(swarm.model, None, too_long)
