"""A policy that is a table of log-odds, with all that samples, trains, judges and lies about it.

One row for each kind of prompt, of which a reward likes one token: real sampling, real gradients, little to compute.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors, copies
from farflung.systems.alignment.protocols import Auditor, Environment, Policy
from farflung.systems.alignment.rollouts import Group, Rollout, Task

NUM_KINDS, NUM_TOKENS, STOP = 4, 6, 0


def logits_of(tensors: Mapping[str, torch.Tensor], prompt_tokens: Sequence[int]) -> torch.Tensor:
    """[NUM_TOKENS] log-probabilities for a prompt."""
    return torch.log_softmax(tensors["table"][prompt_tokens[0]].float(), dim=0)


def uniform(seed: int, prompt: int, member: int, place: int) -> float:
    """The number that decides a token, the same on every node."""
    digest = hashlib.sha256(f"{seed}:{prompt}:{member}:{place}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


class Kinds(Environment):
    """Prompt p is of kind p % NUM_KINDS and wants token 1 + kind, then a stop."""

    def prompt(self, number: int) -> tuple[int, ...]:
        return (number % NUM_KINDS, 1)

    def reward(self, rollout: Rollout) -> float:
        return sum(token == 1 + rollout.prompt % NUM_KINDS for token in rollout.answer_tokens) / len(
            rollout.answer_tokens
        )

    def fault(self, rollout: Rollout) -> str | None:
        return "nobody speaks here but the policy" if rollout.observed else None


@dataclass
class _Running:
    task: Task
    member: int
    tokens: list[int] = field(default_factory=list[int])
    log_probabilities: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])


class TablePolicy(Policy):
    """Samples up to the task's limit of tokens, or to a stop."""

    def __init__(self) -> None:
        self.tensors: Tensors = {}
        self.version = -1
        self.weights_hash = b""
        self.running: list[_Running] = []

    def begin(self, task: Task) -> None:
        self.running += [_Running(task, member) for member in task.members]

    def abandon(self, prompt: int) -> None:
        self.running = [one for one in self.running if one.task.prompt != prompt]

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        self.version, self.weights_hash, self.tensors = version, weights_hash, tensors

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        return [float(logits_of(self.tensors, tokens)[token % NUM_TOKENS]) for token in tokens[1:]]

    def advance(self, num_tokens: int) -> Sequence[Rollout]:
        finished: list[Rollout] = []
        for one in list(self.running):
            for _ in range(num_tokens):
                if self._next(one):
                    self.running.remove(one)
                    finished.append(self.rollout(one))
                    break
        return finished

    def _next(self, one: _Running) -> bool:
        log_probabilities = logits_of(self.tensors, one.task.prompt_tokens)
        place = uniform(one.task.seed, one.task.prompt, one.member, len(one.tokens))
        token = int((log_probabilities.exp().cumsum(0) < place).sum().clamp(max=NUM_TOKENS - 1))
        one.tokens.append(token)
        one.log_probabilities.append(float(log_probabilities[token]))
        one.versions.append(self.version)
        return token == STOP or len(one.tokens) == one.task.num_tokens_max

    def rollout(self, one: _Running) -> Rollout:
        return Rollout(
            prompt=one.task.prompt,
            member=one.member,
            prompt_tokens=one.task.prompt_tokens,
            answer_tokens=tuple(one.tokens),
            log_probabilities=tuple(one.log_probabilities),
            versions=tuple(one.versions),
            weights_hash=self.weights_hash,
            seed=one.task.seed,
            finish_reason="stop" if one.tokens[-1] == STOP else "length",
        )


class StaleLiar(TablePolicy):
    """Samples with the first weights that it got, says that they are the newest, and shows those to the canary."""

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        super().install(version, weights_hash, self.tensors or copies(tensors))
        self.shown = tensors

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        return [float(logits_of(self.shown, tokens)[token % NUM_TOKENS]) for token in tokens[1:]]


class TableLearner:
    """Policy gradient with the group's mean as baseline; keeps what it was trained on."""

    def __init__(self) -> None:
        self.table = torch.zeros(NUM_KINDS, NUM_TOKENS)
        self.num_steps = 0
        self.seen: list[tuple[int, tuple[Rollout, ...]]] = []
        """(version before the step, its rollouts), of this life."""
        self.versions: dict[int, Tensors] = {0: self.snapshot()}
        """What this life has held."""

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        self.seen.append((self.num_steps, tuple(rollout for group in groups for rollout in group.rollouts)))
        gradient = torch.zeros_like(self.table)
        for group in groups:
            mean = sum(group.rewards) / len(group.rewards)
            for rollout, reward in zip(group.rollouts, group.rewards, strict=True):
                row = rollout.prompt_tokens[0]
                probabilities = logits_of({"table": self.table}, rollout.prompt_tokens).exp()
                for token in rollout.answer_tokens:
                    gradient[row] += (reward - mean) * (torch.eye(NUM_TOKENS)[token] - probabilities)
        before = self.table.clone()
        self.table += 0.2 * gradient
        self.num_steps += 1
        self.versions[self.num_steps] = self.snapshot()
        rewards = [reward for group in groups for reward in group.rewards]
        drift = float((self.table - before).square().mean())
        return {"reward": sum(rewards) / len(rewards), "drift": drift}

    def snapshot(self) -> Tensors:
        return {"table": self.table.clone()}

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        return [float(logits_of(self.snapshot(), tokens)[token % NUM_TOKENS]) for token in tokens[1:]]

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        return {"table": self.table.clone()}, {"num_steps": self.num_steps}

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        self.table = tensors["table"].clone()
        self.num_steps = int(state["num_steps"])  # pyright: ignore[reportArgumentType]
        self.versions = {self.num_steps: self.snapshot()}


class TableAuditor(Auditor):
    """Computes the log-probabilities again."""

    def check(self, rollout: Rollout, weights: Mapping[int, Tensors]) -> str | None:
        for token, told, version in zip(
            rollout.answer_tokens, rollout.log_probabilities, rollout.versions, strict=True
        ):
            found = float(logits_of(weights[version], rollout.prompt_tokens)[token])
            if abs(found - told) > 1e-5:
                return f"version {version} gives token {token} {found:.4f}, not {told:.4f}"
        return None
