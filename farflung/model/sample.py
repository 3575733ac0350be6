"""Choosing the next token from a row of logits: pure functions of the logits, the settings and a random stream.

Shapes: V is the vocabulary. The order of the filters (temperature, top-k, top-p, min-p) is the one of `transformers`,
so that the same settings keep the same tokens.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose; the defaults draw from the model's own distribution."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = 0
    """Only the k most likely tokens; 0: all."""
    top_p: float = 1.0
    """Only the smallest set of most likely tokens whose probabilities sum to at least this."""
    min_p: float = 0.0
    """Only tokens at least this likely, relative to the most likely one."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens in prompt or answer."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens already in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it is already in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Token -> added to its logit."""

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (all tokens) or more")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        _require(0 < self.repetition_penalty < math.inf, "repetition_penalty", self.repetition_penalty, "above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(-2 <= value <= 2, name, value, "between -2 and 2")

    @property
    def changes_logits(self) -> bool:
        """Whether penalties or a bias apply before the choice."""
        has_penalty = self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        return has_penalty or bool(self.logit_bias)


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, not {value}.")


def choose(
    logits_V: torch.Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    *,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
) -> int:
    """The next token after `prompt` and `answer` (what was generated so far); draws from `generator` unless greedy."""
    if sampling.changes_logits:
        logits_V = _penalise(logits_V.float(), sampling, prompt, answer)
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    probabilities_V = torch.softmax(keep_likely(logits_V.float() / sampling.temperature, sampling), dim=-1)
    return int(torch.multinomial(probabilities_V, 1, generator=generator))


def keep_likely(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The logits with those that top-k, top-p and min-p rule out set to minus infinity; at least one is kept."""
    if 0 < sampling.top_k < logits_V.shape[-1]:
        smallest = torch.topk(logits_V, sampling.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < smallest, -math.inf)
    if sampling.top_p < 1:
        ascending_V, order_V = torch.sort(logits_V)
        is_ruled_out_V = torch.softmax(ascending_V, dim=-1).cumsum(dim=-1) <= 1 - sampling.top_p
        is_ruled_out_V[-1] = False
        logits_V = logits_V.masked_fill(is_ruled_out_V.scatter(0, order_V, is_ruled_out_V), -math.inf)
    if sampling.min_p > 0:
        probabilities_V = torch.softmax(logits_V, dim=-1)
        logits_V = logits_V.masked_fill(probabilities_V < sampling.min_p * probabilities_V.max(), -math.inf)
    return logits_V


def _penalise(logits_V: torch.Tensor, sampling: Sampling, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    penalised_V = logits_V.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *answer}), device=logits_V.device)
        scores = penalised_V[seen]
        divisor = torch.where(scores > 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
        penalised_V[seen] = scores / divisor
    if sampling.presence_penalty or sampling.frequency_penalty:
        for token, count in Counter(answer).items():
            penalised_V[token] -= sampling.presence_penalty + sampling.frequency_penalty * count
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < penalised_V.shape[-1]:
            raise ValueError(f"logit_bias names token {token}, but the vocabulary ends at {penalised_V.shape[-1] - 1}.")
        penalised_V[token] += bias
    return penalised_V


def log_probability(logits_V: torch.Tensor, token: int) -> float:
    """Natural logarithm of the model's own probability of `token`, before temperature, filters and penalties."""
    logits_V = logits_V.float()
    return float(logits_V[token] - torch.logsumexp(logits_V, dim=-1))


def most_likely(logits_V: torch.Tensor, num_tokens: int) -> tuple[tuple[int, float], ...]:
    """The `num_tokens` most likely tokens with their log-probabilities, best first."""
    if num_tokens == 0:
        return ()
    logits_V = logits_V.float()
    best = torch.topk(logits_V, min(num_tokens, logits_V.shape[-1]))
    values = best.values - torch.logsumexp(logits_V, dim=-1)
    return tuple(zip(best.indices.tolist(), values.tolist(), strict=True))
