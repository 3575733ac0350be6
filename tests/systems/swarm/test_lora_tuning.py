"""LoRA through the swarm: losses, gradients and the tuned adapter are those of peft on one machine, whoever dies."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from farflung.model.adapters import LoraAdapter
from farflung.model.peft_files import load_adapter, save_adapter
from farflung.sim.faults import Faults, nth
from farflung.systems.swarm.config import SessionConfig
from tests.loras import lora, under_peft
from tests.swarms import SimulatedSwarm, SmallModel, tokens

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}
SPLIT = {"a1": (0, 2), "x1": (0, 1), "x2": (1, 2), "y1": (0, 1), "b1": (2, 4), "b2": (2, 4)}
KINDS = {"Forward": "ForwardDone", "Backward": "BackwardDone", "HandAdapter": "AdapterHanded"}
SimulatedWithMicroBatches = functools.partial(
    SimulatedSwarm, config=SessionConfig(ask_again_seconds=0.5, micro_batch_tokens_max=12)
)
"""Of so few tokens that a batch of 5 rows travels in 3 of them."""


def loss_of(model: Any, small: SmallModel) -> torch.Tensor:
    batch = tokens(small, 5, 6)
    return model(input_ids=batch, labels=batch).loss


def tuned(model: Any, small: SmallModel, parameters: list[torch.Tensor], num_steps: int) -> list[float]:
    """The losses of some steps of Adam."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses: list[float] = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = loss_of(model, small)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@functools.cache
def undisturbed(small: SmallModel) -> tuple[list[float], list[torch.Tensor]]:
    """Losses and factors of a tune through one server that nothing happens to."""
    with SimulatedWithMicroBatches(small, {"only": (0, 4)}) as swarm:
        adapter = lora(small.source)
        swarm.model.set_lora(adapter)
        losses = tuned(swarm.model, small, list(adapter.parameters()), 3)
    return losses, [parameter.detach() for parameter in adapter.parameters()]


def check(small: SmallModel, servers: dict[str, tuple[int, int]], faults: Faults) -> SimulatedSwarm:
    with SimulatedWithMicroBatches(small, servers, faults=faults) as swarm:
        adapter = lora(small.source)
        swarm.model.set_lora(adapter)
        losses = tuned(swarm.model, small, list(adapter.parameters()), 3)
        assert swarm.simulation.now() < 90.0
    expected, factors = undisturbed(small)
    assert losses == pytest.approx(expected, rel=1e-5)
    for one, other in zip(adapter.parameters(), factors, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-4, atol=1e-5)
    return swarm


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"], ["down_proj"]])
def test_a_tune_is_that_of_peft_and_loads_in_peft(small: SmallModel, targets: Any, tmp_path: Path) -> None:
    adapter = lora(small.source, targets=targets)
    save_adapter(adapter, tmp_path / "before")
    theirs = under_peft(small.whole, tmp_path / "before", is_trainable=True)
    trained = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    with SimulatedWithMicroBatches(small, SERVERS) as swarm:
        swarm.model.set_lora(adapter)
        loss, expected = loss_of(swarm.model, small), loss_of(theirs, small)
        loss.backward()
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        of_peft = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.requires_grad}
        for block, layer in adapter.places:
            for letter, parameter in zip("AB", adapter.factors_of(block, layer), strict=True):
                name = f"base_model.model.{adapter.layers.path}.{block}.{layer}.lora_{letter}.default.weight"
                torch.testing.assert_close(parameter.grad, of_peft.pop(name), rtol=1e-5, atol=1e-5)
        assert not of_peft
        ours = tuned(swarm.model, small, list(adapter.parameters()), 5)
        assert ours == pytest.approx(tuned(theirs, small, trained, 5), rel=1e-4)
        assert ours[-1] < ours[0]
        save_adapter(adapter, tmp_path / "after")
        again = under_peft(small.whole, tmp_path / "after")
        prompt = tokens(small, 1, 8, seed=3)
        with torch.no_grad():
            torch.testing.assert_close(swarm.model(prompt).logits, again(prompt).logits, rtol=1e-4, atol=1e-4)
            expected_tokens = again.generate(prompt, max_new_tokens=12, do_sample=False)
        assert torch.equal(swarm.model.generate(prompt, max_new_tokens=12, do_sample=False), expected_tokens)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("victim", ["a1", "b1"])
def test_a_server_dies_at_a_message(small: SmallModel, kind: str, victim: str) -> None:
    """Before it has seen it, before its answer has left, and after; the second one, so that some work is done."""
    moments = (
        nth(kind, 2, "deliver", target=victim),
        nth(KINDS[kind], 2, "send", source=victim),
        nth(KINDS[kind], 2, "sent", source=victim),
    )
    for moment in moments:
        swarm = check(small, SERVERS, Faults().crash(victim, when=moment))
        assert not swarm.simulation.is_alive(victim)


@pytest.mark.parametrize("kind", KINDS)
def test_the_replacement_is_split_over_two_servers(small: SmallModel, kind: str) -> None:
    swarm = check(small, SPLIT, Faults().crash("a1", when=nth(kind, 1, "deliver", target="a1")))
    assert not swarm.simulation.is_alive("a1")


def test_a_server_that_lost_the_adapter_is_given_it_again(small: SmallModel) -> None:
    faults = Faults().crash("a1", when=nth("ForwardDone", 1, "sent", source="a1"), restart_after=0.001)
    check(small, {"a1": (0, 2), "b1": (2, 4)}, faults)


def test_deep_prompts_and_lora_are_tuned_together(small: SmallModel) -> None:
    prompts = torch.full((small.num_blocks, 2, small.source.hidden_size), 0.1)
    found: list[list[torch.Tensor]] = []
    for servers in ({"only": (0, 4)}, SERVERS):
        adapter, own = lora(small.source), prompts.clone().requires_grad_()
        with SimulatedWithMicroBatches(small, servers) as swarm:
            swarm.model.set_lora(adapter)
            swarm.model.set_deep_prompts(own)
            found.append(list(torch.autograd.grad(loss_of(swarm.model, small), [own, *adapter.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert one.abs().max() > 0


def test_a_frozen_adapter_lets_gradients_of_inputs_through(small: SmallModel, tmp_path: Path) -> None:
    adapter = lora(small.source)
    save_adapter(adapter, tmp_path)
    embeddings = small.whole.get_input_embeddings()(tokens(small, 1, 4)).detach()
    gradients: list[torch.Tensor] = []
    with SimulatedWithMicroBatches(small, SERVERS) as swarm:
        swarm.model.set_lora(load_adapter(tmp_path, small.source).requires_grad_(False))
        for model in (swarm.model, under_peft(copy.deepcopy(small.whole), tmp_path)):
            inputs = embeddings.clone().requires_grad_()
            gradients += torch.autograd.grad(model(inputs_embeds=inputs).logits.logsumexp(-1).sum(), inputs)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


def test_an_adapter_of_too_high_a_rank_is_the_users_fault(small: SmallModel) -> None:
    with SimulatedWithMicroBatches(small, SERVERS) as swarm, pytest.raises(ValueError, match="rank is 1 to 256"):
        swarm.model.set_lora(LoraAdapter.new(small.source, rank=257, targets=["q_proj"]))
        loss_of(swarm.model, small)
