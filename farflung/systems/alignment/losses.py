"""Policy-gradient losses over recorded log-probabilities of the sampler: small functions of one batch, by name.

Shapes: N answers, T positions; masks are 1.0 where a token of the answer stands. In the formulas mu is what the sampler
recorded with the token, pi the policy that is trained, r = pi / mu their ratio and A the answer's advantage.

Every rule gives a loss per token and says which tokens it left out. How tokens become one number is a second choice
(`Averaging`), and its denominator counts all tokens of the batch, those left out too: else a batch of which most is
left out would take steps as large as a whole one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from farflung.systems.alignment.learning_config import LossConfig


@dataclass(frozen=True, slots=True)
class Batch:
    """What a loss looks at; all tensors float32 [N, T], and 0 where the mask is."""

    policy: torch.Tensor
    """log pi of each token, with a graph."""
    sampler: torch.Tensor
    """log mu, as recorded when the token was drawn."""
    advantages: torch.Tensor
    """A of the token's answer, the same at all its positions."""
    mask: torch.Tensor
    proximal: torch.Tensor | None = None
    """Log-probabilities of the policy that this step of training began with; None: the policy as it is now."""
    reference: torch.Tensor | None = None
    """Log-probabilities of the policy that training must stay near, if there is one."""

    @property
    def log_ratio(self) -> torch.Tensor:
        """log(pi / mu)."""
        return (self.policy - self.sampler) * self.mask

    @property
    def start(self) -> torch.Tensor:
        """log of the policy that the step began with, without a graph."""
        return self.policy.detach() if self.proximal is None else self.proximal


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """A loss per token, and the tokens whose gradient the rule has taken away."""

    values: torch.Tensor
    is_left_out: torch.Tensor


Rule = Callable[[Batch, LossConfig], TokenLosses]


def _clipped(ratio: torch.Tensor, batch: Batch, config: LossConfig) -> TokenLosses:
    """-min(r A, clip(r) A), the clip of PPO (arXiv 1707.06347, equation 7)."""
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    plain, other = ratio * batch.advantages, clipped * batch.advantages
    return TokenLosses(-torch.minimum(plain, other), other < plain)


def reinforce(batch: Batch, config: LossConfig) -> TokenLosses:
    """-A log pi as if the policy itself had drawn the tokens: no correction, for comparison only."""
    return TokenLosses(-batch.advantages * batch.policy, torch.zeros_like(batch.mask, dtype=torch.bool))


def clipped_ratio(batch: Batch, config: LossConfig) -> TokenLosses:
    """GRPO, Dr.GRPO and DAPO: PPO's clip against the sampler's own log-probabilities (arXiv 2402.03300, equation 3)."""
    return _clipped(batch.log_ratio.exp(), batch, config)


def gspo(batch: Batch, config: LossConfig) -> TokenLosses:
    """The clip applied to s = exp(mean log r) of each whole answer (arXiv 2507.18071, equations 5 to 7)."""
    lengths = batch.mask.sum(dim=1, keepdim=True).clamp(min=1)
    ratio = (batch.log_ratio.sum(dim=1, keepdim=True) / lengths).exp()
    return _clipped(ratio.expand_as(batch.mask), batch, config)


def cispo(batch: Batch, config: LossConfig) -> TokenLosses:
    """-min(r, cap) A log pi with a constant weight: no token loses its gradient (arXiv 2506.13585, equation 4)."""
    weight = batch.log_ratio.detach().exp().clamp(max=config.ratio_max)
    return TokenLosses(-weight * batch.advantages * batch.policy, torch.zeros_like(batch.mask, dtype=torch.bool))


def decoupled(batch: Batch, config: LossConfig) -> TokenLosses:
    """-w min(u A, clip(u) A), w = start / mu capped, u = pi / start (arXiv 2505.24298, equation 5).

    With one step per batch u is 1 and nothing holds the policy near the sampler's: `dppo` or a clip is safer then.
    """
    clipped = _clipped(((batch.policy - batch.start) * batch.mask).exp(), batch, config)
    weight = ((batch.start - batch.sampler) * batch.mask).exp().clamp(max=config.ratio_max)
    return TokenLosses(weight * clipped.values, clipped.is_left_out)


def two_sided(batch: Batch, config: LossConfig) -> TokenLosses:
    """PPO's clip with ratios of bad answers capped as well (arXiv 2505.07291, equation 2; delta is `ratio_max`)."""
    ratio = batch.log_ratio.exp()
    capped = _clipped(ratio.clamp(max=config.ratio_max), batch, config)
    is_capped = (ratio > config.ratio_max) & (batch.advantages < 0)
    return TokenLosses(capped.values, capped.is_left_out | is_capped)


def truncated(batch: Batch, config: LossConfig) -> TokenLosses:
    """-min(w, C) (pi / start) A, w = start / mu: truncated importance sampling, token by token."""
    ratio = ((batch.policy - batch.start) * batch.mask).exp()
    weight = ((batch.start - batch.sampler) * batch.mask).exp().clamp(max=config.ratio_max)
    return TokenLosses(-weight * ratio * batch.advantages, torch.zeros_like(batch.mask, dtype=torch.bool))


def masked(batch: Batch, config: LossConfig) -> TokenLosses:
    """The same with tokens left out whose w lies outside [`ratio_min`, `ratio_max`], instead of a cap."""
    ratio = ((batch.policy - batch.start) * batch.mask).exp()
    weight = ((batch.start - batch.sampler) * batch.mask).exp()
    is_outside = (weight < config.ratio_min) | (weight > config.ratio_max)
    return TokenLosses(-weight * ratio * batch.advantages * ~is_outside, is_outside)


def dppo(batch: Batch, config: LossConfig) -> TokenLosses:
    """-r A + c log(r)^2, without tokens whose probability has moved too far already (arXiv 2602.04879).

    Too far is measured in probability, not as a ratio: a rare token may double without any harm, and a common one that
    moves by a tenth has changed what the policy does.
    """
    moved = (batch.policy.detach().exp() - batch.sampler.exp()) * batch.mask
    is_far = torch.where(batch.advantages > 0, moved, -moved) > config.probability_moved_max
    gain = batch.log_ratio.exp() * batch.advantages * ~is_far
    return TokenLosses(config.squared_log_ratio_weight * batch.log_ratio.square() - gain, is_far)


LOSSES: dict[str, Rule] = {
    "dppo": dppo,
    "grpo": clipped_ratio,
    "dr_grpo": clipped_ratio,
    "dapo": clipped_ratio,
    "gspo": gspo,
    "cispo": cispo,
    "decoupled": decoupled,
    "two_sided": two_sided,
    "truncated": truncated,
    "masked": masked,
    "reinforce": reinforce,
}


@dataclass(frozen=True, slots=True)
class Totals:
    """Over what a batch is averaged, so that parts of it can be computed one after another."""

    num_tokens: float
    num_answers: int


def policy_loss(batch: Batch, config: LossConfig, totals: Totals) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of (a part of) a batch, to be added to that of the others, and which tokens were left out, bool [N, T].

    `totals` are those of the whole batch, before any token was left out.
    """
    losses = LOSSES[config.name](batch, config)
    values = losses.values
    if config.reference_weight > 0:
        assert batch.reference is not None, "a reference is needed to stay near it"
        values = values + config.reference_weight * divergence(batch.policy, batch.reference)
    values = values * batch.mask
    if config.averaging == "token":
        loss = values.sum() / max(totals.num_tokens, 1)
    elif config.averaging == "sequence":
        lengths = batch.mask.sum(dim=1).clamp(min=1)
        loss = (values.sum(dim=1) / lengths).sum() / max(totals.num_answers, 1)
    else:
        loss = values.sum() / max(totals.num_answers * config.length_tokens, 1)
    return loss, losses.is_left_out & (batch.mask > 0)


def divergence(policy: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(policy, other) per token, estimated as q - log q - 1 with q = other / policy: never negative, little noise."""
    log_ratio = other - policy
    return log_ratio.exp() - log_ratio - 1
