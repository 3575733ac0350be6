"""Runs of a small policy in one place and Sequential with rollout nodes, and what of them must be equal to the bit."""

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import peft
import torch
from transformers import GPT2LMHeadModel

from farflung.learn.parameters import fingerprint
from farflung.sim.simulation import Simulation
from farflung.systems.alignment.colocated import train_colocated
from farflung.systems.alignment.learner import PolicyLearner
from farflung.systems.alignment.protocols import Policy
from farflung.systems.alignment.rollouts import Group
from farflung.systems.alignment.trainer import Trainer
from farflung.systems.alignment.worker import Worker
from farflung.world.address import PeerId
from farflung.world.doors import World
from tests.policies import Place

TRAINER = "trainer"
Sampled = list[tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]]


def with_adapter(model: GPT2LMHeadModel) -> Any:
    """A LoRA adapter of rank 4 in all attention projections; its first values are the same each time."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config)


def whole(model: GPT2LMHeadModel) -> Any:
    """All weights are trained."""
    return model


class Recorded:
    """A learner that keeps the answers that it was given."""

    def __init__(self, learner: PolicyLearner) -> None:
        self._learner = learner
        self.sampled: Sampled = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """As the learner's."""
        for rollout in (rollout for group in groups for rollout in group.rollouts):
            self.sampled.append((rollout.answer_tokens, rollout.log_probabilities, rollout.versions))
        return self._learner.step(groups)

    @property
    def weights(self) -> bytes:
        """Fingerprint."""
        return fingerprint(self._learner.snapshot())


def place_of(prepare: Callable[[Any], Any], num_steps: int) -> tuple[Place, Any]:
    place = Place.make(prepare=prepare, num_steps=num_steps)
    return place, Recorded(place.learner)


@functools.cache
def in_one_place(prepare: Callable[[Any], Any], num_steps: int) -> Recorded:
    place, learner = place_of(prepare, num_steps)
    before = learner.weights
    train_colocated(place.policy, learner, place.environment, place.config)
    assert learner.weights != before
    return learner


def sequential(
    prepare: Callable[[Any], Any],
    num_workers: int,
    num_steps: int,
    make_policy: Callable[[], Policy] | None = None,
) -> Recorded:
    """Trainer and workers in the simulator, weights in hashed chunks of deltas; `make_policy`: other samplers."""
    place, learner = place_of(prepare, num_steps)
    environment: Any = place.environment
    running: list[asyncio.Task[Any]] = []

    def start(work: Any) -> None:
        running.append(asyncio.get_running_loop().create_task(work))

    def boot_trainer(world: World) -> None:
        start(Trainer(world, place.config, learner, environment, run=b"run").run())

    def boot_worker(world: World) -> None:
        policy = make_policy() if make_policy is not None else Place.make(prepare=prepare).policy
        name = str(world.network.peer)
        start(Worker(world, place.config, policy, name=name, hub=PeerId(TRAINER), run=b"run").run())

    async def wait() -> None:
        await asyncio.gather(*running)

    with Simulation(seed=1) as simulation:
        simulation.node(TRAINER, boot=boot_trainer)
        for number in range(num_workers):
            simulation.node(f"worker-{number}", boot=boot_worker)
        simulation.run(wait())
    return learner


def assert_same(found: Recorded, expected: Recorded) -> None:
    assert [tokens for tokens, _, _ in found.sampled] == [tokens for tokens, _, _ in expected.sampled]
    assert found.sampled == expected.sampled
    assert len({tokens for tokens, _, _ in found.sampled}) > 10, "answers that are all alike would prove little"
    assert found.weights == expected.weights
