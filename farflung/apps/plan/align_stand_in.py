"""What samples, trains and judges in a simulation of alignment where nothing is to be learned."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors
from farflung.systems.alignment.rollouts import Group, Rollout, Task

LOG_PROBABILITY = -1.2345678
"""As long as others in a message."""
SPREAD = 0.02
"""Of weights, as models have it: what their exponents have in common is left out on the way."""

CHANGE = 1e-3
"""Of a weight, where all change."""
HALVINGS = 16
"""Of what is between a step that changes nothing and one that changes all."""


@dataclass(frozen=True, slots=True)
class Words:
    """Where tokens are drawn from: large numbers take more bytes in a message."""

    vocabulary_size: int

    def __call__(self, seed: int, num_tokens: int) -> tuple[int, ...]:
        """So many; the same for the same seed."""
        return tuple(Random(seed).choices(range(self.vocabulary_size), k=num_tokens))


@dataclass(frozen=True, slots=True)
class Prompts:
    """An `Environment` whose prompts are all as long."""

    num_tokens: int
    words: Words

    def prompt(self, number: int) -> tuple[int, ...]:
        """Tokens of a prompt."""
        return self.words(number, self.num_tokens)

    def reward(self, rollout: Rollout) -> float:
        """As an `Environment`; answers of a group differ."""
        return float(rollout.member % 2)

    def fault(self, rollout: Rollout) -> str | None:
        """Nobody else speaks in an answer."""
        return None


@dataclass(slots=True)
class _Answer:
    task: Task
    member: int
    versions: list[int]


class Sampling:
    """A `Policy` whose answers are as long as they may be."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._version = -1
        self._weights_hash = b""
        self._running: list[_Answer] = []

    def begin(self, task: Task) -> None:
        """As a policy does."""
        self._running += [_Answer(task, member, []) for member in task.members]

    def advance(self, num_tokens: int) -> Sequence[Rollout]:
        """As a policy does."""
        for one in self._running:
            num_left = one.task.num_tokens_max - len(one.versions)
            one.versions += [self._version] * min(num_tokens, num_left)
        ended = [one for one in self._running if len(one.versions) == one.task.num_tokens_max]
        self._running = [one for one in self._running if len(one.versions) < one.task.num_tokens_max]
        return [self._rollout(one) for one in ended]

    def _rollout(self, one: _Answer) -> Rollout:
        num_tokens = len(one.versions)
        return Rollout(
            prompt=one.task.prompt,
            member=one.member,
            prompt_tokens=one.task.prompt_tokens,
            answer_tokens=self._words(one.member, num_tokens),
            log_probabilities=(LOG_PROBABILITY,) * num_tokens,
            versions=tuple(one.versions),
            weights_hash=self._weights_hash,
            seed=one.task.seed,
            finish_reason="length",
        )

    def abandon(self, prompt: int) -> None:
        """As a policy does."""
        self._running = [one for one in self._running if one.task.prompt != prompt]

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        """As a policy does."""
        self._version, self._weights_hash = version, weights_hash

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """As a policy does."""
        return [0.0] * (len(tokens) - 1)


class Training:
    """A `Learner` whose steps are as long as it takes to change a share of its weights, or a little of all of them.

    As in training, a step is as long for small weights as for large ones, and most are lost in rounding: what changes
    are small weights, often by more than their last bit.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], changed_share: float, dtype: torch.dtype) -> None:
        self._random = torch.Generator().manual_seed(0)
        self._lengths = {name: math.prod(shape) for name, shape in shapes.items()}
        self._values = (SPREAD * self._draw()).to(dtype)
        self._step = CHANGE * SPREAD if changed_share == 1 else self._step_that_changes(changed_share)

    def _draw(self) -> torch.Tensor:
        return torch.randn(sum(self._lengths.values()), generator=self._random)

    def _moved(self, step: float, draws: torch.Tensor) -> torch.Tensor:
        return (self._values.float() + step * draws).to(self._values.dtype)

    def _step_that_changes(self, share: float) -> float:
        draws, low, high = self._draw(), 1e-6 * CHANGE * SPREAD, 1.0
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            is_less = float((self._moved(middle, draws) != self._values).float().mean()) < share
            low, high = (middle, high) if is_less else (low, middle)
        return high

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """As a learner does."""
        self._values = self._moved(self._step, self._draw())
        return {"drift": 0.0}

    def snapshot(self) -> Tensors:
        """As a learner does."""
        parts = torch.split(self._values.clone(), [*self._lengths.values()])
        return dict(zip(self._lengths, parts, strict=True))

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """As `Sampling.score`."""
        return [0.0] * (len(tokens) - 1)

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """As a learner does."""
        return self.snapshot(), {}

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        """As a learner does."""
        raise AssertionError("nobody dies in a plan")
