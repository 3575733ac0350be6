"""How far the policy is from those that sampled a batch, and when somebody should be told."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from farflung.systems.alignment.advantage import GroupAdvantages, SurvivorMeter
from farflung.systems.alignment.learning_config import AlarmConfig
from farflung.systems.alignment.losses import Batch, divergence
from farflung.systems.alignment.rollouts import Group

SUMS = ("num_tokens", "num_left_out", "loss", "_mismatch", "_weight", "_squared_weight", "_surprise")
"""What of an agreement is counted answer by answer."""


@dataclass
class Agreement:
    """Sums over the tokens of one step, from which its metrics follow."""

    version: int
    """Of the policy that is trained."""
    rewards: list[float] = field(default_factory=list[float])
    staleness: Counter[int] = field(default_factory=Counter[int])
    """Steps by which the weights that a token was sampled with are older -> number of tokens, all groups counted."""
    verdicts: Counter[str] = field(default_factory=Counter[str])
    num_tokens: float = 0.0
    num_left_out: float = 0.0
    loss: float = 0.0
    _mismatch: float = 0.0
    _weight: float = 0.0
    _squared_weight: float = 0.0
    _surprise: float = 0.0

    def count_group(self, group: Group, found: GroupAdvantages) -> None:
        """Count a group, also one that teaches nothing."""
        self.rewards += group.rewards
        self.verdicts[found.verdict] += 1
        for rollout in group.rollouts:
            self.staleness.update(self.version - version for version in rollout.versions)

    def add(self, batch: Batch, is_left_out: torch.Tensor, loss: float) -> None:
        """Count a part of the batch as it stood before the step."""
        policy = batch.policy.detach()
        ratio = torch.exp((policy - batch.sampler) * batch.mask) * batch.mask
        self.num_tokens += float(batch.mask.sum())
        self.num_left_out += float(is_left_out.sum())
        self.loss += loss
        self._mismatch += float((divergence(batch.sampler, policy) * batch.mask).sum())
        self._weight += float(ratio.sum())
        self._squared_weight += float(ratio.square().sum())
        self._surprise -= float((policy * batch.mask).sum())

    def add_others(self, over_ranks: Callable[[Sequence[float]], Sequence[float]]) -> None:
        """Count what other ranks have counted of the same step; `over_ranks` sums each value over all of them."""
        for name, value in zip(SUMS, over_ranks([getattr(self, name) for name in SUMS]), strict=True):
            setattr(self, name, value)

    @property
    def mismatch(self) -> float:
        """KL(mu, pi) in nats per token, estimated from the tokens (never negative)."""
        return self._mismatch / max(self.num_tokens, 1)

    @property
    def sample_size_share(self) -> float:
        """(sum r)^2 / (n sum r^2): what share of the tokens an equal sample drawn with pi would have; 1 on policy."""
        if not self._squared_weight:
            return 1.0
        return self._weight**2 / (self.num_tokens * self._squared_weight)

    @property
    def left_out_share(self) -> float:
        """Of the tokens, those whose gradient the loss took away."""
        return self.num_left_out / max(self.num_tokens, 1)

    def metrics(self) -> dict[str, float]:
        """By name; "staleness/K" is the share of tokens that are K steps old."""
        num_sampled = sum(self.staleness.values())
        mean_age = sum(age * count for age, count in self.staleness.items()) / max(num_sampled, 1)
        found = {
            "reward": math.fsum(self.rewards) / max(len(self.rewards), 1),
            "loss": self.loss,
            "mismatch": self.mismatch,
            "sample_size_share": self.sample_size_share,
            "left_out_share": self.left_out_share,
            "surprise": self._surprise / max(self.num_tokens, 1),
            "num_tokens": self.num_tokens,
            "num_groups": float(sum(self.verdicts.values())),
            "num_groups_equal": float(self.verdicts["equal rewards"]),
            "num_groups_alone": float(self.verdicts["alone"]),
            "staleness": mean_age,
            "staleness_max": float(max(self.staleness, default=0)),
        }
        return found | {f"staleness/{age}": count / num_sampled for age, count in sorted(self.staleness.items())}


def alarms(agreement: Agreement, gradient_norm: float, survivors: SurvivorMeter, config: AlarmConfig) -> list[str]:
    """What somebody should know about a step, a sentence each."""
    found: list[str] = []
    if not agreement.num_tokens:
        found.append(
            "no group of this step has answers of different worth, so nothing was learned: give easier or harder "
            "prompts, or more answers to each"
        )
    if agreement.mismatch > config.mismatch_max:
        found.append(
            f"samplers and policy differ by {agreement.mismatch:.3f} nats per token (above {config.mismatch_max:g}): "
            f"lower the staleness or the learning rate, and check that both compute the same"
        )
    if agreement.sample_size_share < config.sample_size_min:
        found.append(
            f"the batch is worth {agreement.sample_size_share:.0%} of its tokens (below {config.sample_size_min:.0%}): "
            f"lower the staleness or the learning rate"
        )
    if agreement.left_out_share > config.left_out_max:
        found.append(
            f"the loss left out {agreement.left_out_share:.0%} of the tokens (above {config.left_out_max:.0%})"
        )
    if not gradient_norm <= config.gradient_norm_max:
        found.append(f"the gradient's norm is {gradient_norm:.3g} (above {config.gradient_norm_max:g})")
    if survivors.length_ratio < config.length_ratio_min:
        found.append(
            f"answers of incomplete groups are {survivors.length_ratio:.2f} times as long as others: long ones are "
            f"lost, so give groups more time"
        )
    return found
