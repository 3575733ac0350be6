"""What samples, trains and judges in a simulation of alignment where nothing is to be learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors
from farflung.systems.alignment.rollouts import Group, Rollout, Task

TOKEN = 20_000
LOG_PROBABILITY = -1.2345678
"""As long as others in a message."""
SPREAD = 0.02
"""Of weights, as models have it: what their exponents have in common is left out on the way."""

CHANGE = 1e-3
"""Of a weight, where all change."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """An `Environment` whose prompts are all as long."""

    num_tokens: int

    def prompt(self, number: int) -> tuple[int, ...]:
        """Tokens of a prompt."""
        return (TOKEN,) * self.num_tokens

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

    def __init__(self) -> None:
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
            answer_tokens=(TOKEN,) * num_tokens,
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
    """A `Learner` whose every step changes a share of its weights by their last bit, or all of them by a little."""

    def __init__(self, num_values: int, changed_share: float, dtype: torch.dtype) -> None:
        self._random = torch.Generator().manual_seed(0)
        self._values = (SPREAD * torch.randn(num_values, generator=self._random)).to(dtype)
        self._changed_share = changed_share

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """As a learner does."""
        if self._changed_share == 1:
            self._values += CHANGE * SPREAD * torch.randn(len(self._values), generator=self._random)
        else:
            draws = torch.rand(len(self._values), generator=self._random)
            self._values.view(torch.int16).add_((draws < self._changed_share).to(torch.int16))
        return {"drift": 0.0}

    def snapshot(self) -> Tensors:
        """As a learner does."""
        return {"values": self._values.clone()}

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """As `Sampling.score`."""
        return [0.0] * (len(tokens) - 1)

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """As a learner does."""
        return self.snapshot(), {}

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        """As a learner does."""
        raise AssertionError("nobody dies in a plan")
