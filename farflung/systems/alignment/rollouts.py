"""What travels between rollout nodes and the trainer: tasks to sample, and rollouts with where each token came from."""

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "failed"]
"""Why an answer ended: a stop token, its limit of tokens, or an environment that ended it early."""


class Task(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Answers to sample to one prompt."""

    prompt: int
    """Its number: the same prompt for everybody who knows the run's environment and seed."""
    members: tuple[int, ...]
    """Which of the group's answers; each has a seed of its own."""
    prompt_tokens: tuple[int, ...]
    seed: int
    """Of the run: member m of prompt p draws from a stream that (seed, p, m) names, whoever samples it."""
    num_tokens_max: int
    """Of an answer, with what an environment says in it."""


class Rollout(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One answer as it was sampled. What is listed per token has the length of `answer_tokens`."""

    prompt: int
    member: int
    prompt_tokens: tuple[int, ...]
    answer_tokens: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """The sampler's own, natural logarithm at temperature 1; 0 where the environment spoke."""
    versions: tuple[int, ...]
    """Of the weights that each token was sampled with."""
    weights_hash: bytes
    """Content hash of the weights of the last version among them."""
    seed: int
    finish_reason: FinishReason
    observed: tuple[tuple[int, int], ...] = ()
    """[first, end) places of `answer_tokens` that the environment said and nobody sampled (turns of others)."""

    @property
    def version_min(self) -> int:
        """The oldest weights that any token came from."""
        return min(self.versions)

    @property
    def key(self) -> tuple[int, int]:
        """(prompt, member): what names this answer in a run."""
        return self.prompt, self.member


class Failure(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A task that a node could not sample; others are asked for it."""

    prompt: int
    members: tuple[int, ...]
    reason: str
    """One sentence for a person."""


class Group(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answers to one prompt that are trained on together, with what each was worth."""

    prompt: int
    rollouts: tuple[Rollout, ...]
    """By member; fewer than were asked for where some are lost for good."""
    rewards: tuple[float, ...]
    """Computed on the trusted side, one for each rollout."""


def fault_of(rollout: Rollout, *, num_tokens_max: int) -> str | None:
    """What makes this no rollout at all, if anything."""
    num_tokens = len(rollout.answer_tokens)
    if not 0 < num_tokens <= num_tokens_max:
        return f"an answer of {num_tokens} tokens, where 1 to {num_tokens_max} were asked for"
    if not num_tokens == len(rollout.log_probabilities) == len(rollout.versions):
        return "its tokens, log-probabilities and versions differ in number"
    if not all(-float("inf") < value <= 0.0 for value in rollout.log_probabilities):
        return "a log-probability that is none"
    if min(rollout.versions) < 0 or sorted(rollout.versions) != list(rollout.versions):
        return "versions that do not grow from token to token"
    ends = [0, *(place for span in rollout.observed for place in span), num_tokens]
    return "spans of an environment that are in no order" if sorted(ends) != ends else None
