"""Whether an answer is what the weights that it names would have given: drawn again on the trusted side, all at once.

One forward over prompt and answer gives the logits of every place. A token is right if its recorded log-probability is
that of the named version, and if logits plus the noise of the stream that *we* name are largest there. So another
model, other weights, another seed (also the best of several), and invented log-probabilities are all seen. Nothing has
to be sent for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from farflung.learn.parameters import Tensors
from farflung.model.counter import noisy, stream_key
from farflung.systems.alignment.protocols import Environment
from farflung.systems.alignment.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far honest machines may be apart."""

    log_probability: float
    """Nats; the noisy logits of a token may fall short of the largest by twice this."""
    off_share_max: float
    """Share of an answer's tokens that may be further off than that."""


TOLERANCES = {
    torch.float32: Tolerance(1e-3, 0.0),
    torch.float16: Tolerance(0.03, 0.02),
    torch.bfloat16: Tolerance(0.2, 0.02),
}
"""By the dtype that is sampled with. Half precision rounds logits of about 20 by 0.01 (float16) and 0.06 (bfloat16)."""


class ReplayAuditor:
    """An `Auditor`: knows the run's seed and its prompts, and reads answers with the named weights."""

    def __init__(
        self,
        model: PreTrainedModel,
        environment: Environment,
        *,
        seed: int,
        stop_tokens: Sequence[int],
        num_tokens_max: int,
        tolerance: Tolerance | None = None,
    ) -> None:
        """`model` lends its architecture, and what it has beside the weights of a version (an adapter's base)."""
        self._model = model
        self._environment = environment
        self._seed = seed
        self._stop_tokens = frozenset(stop_tokens)
        self._num_tokens_max = num_tokens_max
        self._tolerance = tolerance or TOLERANCES[model.dtype]

    def check(self, rollout: Rollout, weights: Mapping[int, Tensors]) -> str | None:
        """Why this answer is a lie; None: it is what it says, as far as rounding lets us see.

        `weights` has every version that the answer names.
        """
        return self._check_form(rollout) or self._check_tokens(rollout, weights)

    def _check_form(self, rollout: Rollout) -> str | None:
        if rollout.seed != self._seed:
            return f"it was drawn with the seed {rollout.seed}, not with the run's"
        if rollout.prompt_tokens != self._environment.prompt(rollout.prompt):
            return f"it does not answer prompt {rollout.prompt} but another one"
        is_stop = rollout.answer_tokens[-1] in self._stop_tokens
        if rollout.finish_reason == "stop" and not is_stop:
            return "it says that it stopped, but no stop token ends it"
        if rollout.finish_reason == "length" and (is_stop or len(rollout.answer_tokens) < self._num_tokens_max):
            return "it ends before its limit, and without a stop token"
        return None

    def _check_tokens(self, rollout: Rollout, weights: Mapping[int, Tensors]) -> str | None:
        num_off = num_checked = 0
        worst = 0.0
        for version, places in _by_version(rollout):
            gaps, shortfalls = self._read(rollout, weights[version], places)
            # The largest of many noisy values may be another one where two are as close as rounding goes.
            off = torch.maximum(gaps, shortfalls / 2)
            num_off += int((~(off <= self._tolerance.log_probability)).sum())  # so that NaN is off, too
            num_checked += len(places)
            worst = max(worst, float(off.max()))
        if num_off <= self._tolerance.off_share_max * num_checked:
            return None
        return (
            f"{num_off} of {num_checked} tokens are not what version {rollout.versions[-1]} draws there "
            f"(off by up to {worst:.3g}, where {self._tolerance.log_probability:g} is rounding)"
        )

    @torch.no_grad()
    def _read(self, rollout: Rollout, weights: Tensors, places: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """For each of these places: how far off its log-probability is, and by how much another token was ahead."""
        text = torch.tensor([(*rollout.prompt_tokens, *rollout.answer_tokens)], device=self._model.device)
        inputs = {"input_ids": text[:, :-1], "use_cache": False, "logits_to_keep": len(rollout.answer_tokens)}
        logits_TV = torch.func.functional_call(self._model, weights, (), inputs).logits[0].float()
        chosen = logits_TV[list(places)]
        tokens = text[0, -len(rollout.answer_tokens) :][list(places)].unsqueeze(1)
        recorded = torch.tensor([rollout.log_probabilities[place] for place in places], device=text.device)
        gaps = (torch.log_softmax(chosen, dim=-1).gather(1, tokens)[:, 0] - recorded).abs()
        key = stream_key(self._seed, rollout.prompt, rollout.member)
        drawn = noisy(chosen, [key] * len(places), places)
        return gaps, drawn.max(dim=1).values - drawn.gather(1, tokens)[:, 0]


def _by_version(rollout: Rollout) -> Iterator[tuple[int, list[int]]]:
    """The places that the policy drew, by the version it had then."""
    heard = {place for first, last in rollout.observed for place in range(first, last)}
    for version in sorted(set(rollout.versions)):
        places = [place for place, used in enumerate(rollout.versions) if used == version and place not in heard]
        if places:
            yield version, places
