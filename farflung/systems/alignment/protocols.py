"""What the loops ask of those who compute: a policy that samples, a learner that trains, an environment that judges.

All of these run on the compute door, one call at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors
from farflung.systems.alignment.rollouts import Failure, Group, Rollout, Task


class Policy(Protocol):
    """The model of a rollout node. Weights change only between two calls of `advance`, so between decode steps."""

    def begin(self, task: Task) -> None:
        """Take a task among those that are being sampled; nothing is computed yet."""
        ...

    def advance(self, num_tokens: int) -> Sequence[Rollout | Failure]:
        """Sample at least one token and about `num_tokens` for each answer under way.

        Returns those that came to their end, and a failure for each task that cannot be sampled here; both are
        forgotten, and the others go on.
        """
        ...

    def abandon(self, prompt: int) -> None:
        """Forget what is under way for a prompt; somebody else has it."""
        ...

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        """Take these weights, whole; the tokens that follow carry this version. `tensors` must not be changed."""
        ...

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """Log-probabilities of all tokens but the first, each after those before it, with the present weights."""
        ...


class Learner(Protocol):
    """The model of the trainer, with its optimizer. Its version is the number of steps that it has made."""

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """One optimizer step; the same groups in the same order from the same state give the same weights.

        Of the metrics, "drift" (how far the policy moved, as KL to the policy before) decides when it is published
        if that is adaptive.
        """
        ...

    def snapshot(self) -> Tensors:
        """What rollout nodes install: all weights in the dtype that they sample with, or an adapter's alone. A copy."""
        ...

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """As `Policy.score`, with the weights of `snapshot`."""
        ...

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """Weights, moments and random streams: all that `restore` needs to go on as if nothing had happened."""
        ...

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        """Take what `state` gave."""
        ...


class Environment(Protocol):
    """Where prompts come from and what answers are worth, on the trusted side."""

    def prompt(self, number: int) -> tuple[int, ...]:
        """Tokens of the prompt of this number; always the same."""
        ...

    def reward(self, rollout: Rollout) -> float:
        """What an answer is worth, from its tokens alone."""
        ...

    def fault(self, rollout: Rollout) -> str | None:
        """What an answer puts into the environment's mouth that it does not say (see `observed`); None: nothing."""
        ...


class Auditor(Protocol):
    """Checks on the trusted side whether a rollout is what the named weights sample."""

    def check(self, rollout: Rollout, weights: Mapping[int, Tensors]) -> str | None:
        """Why this was not sampled from the versions that it names, which are in `weights`; None: it fits."""
        ...
