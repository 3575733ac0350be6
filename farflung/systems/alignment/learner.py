"""The trainer's model: one optimizer step from groups of answers, over the log-probabilities that samplers recorded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from farflung.learn.checkpoint import Json, require_fit
from farflung.learn.optimizer import NamedOptimizer, OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, copies, joined, named_parameters
from farflung.systems.alignment.advantage import SurvivorMeter, group_advantages
from farflung.systems.alignment.losses import Batch, LossConfig, Totals, divergence, policy_loss
from farflung.systems.alignment.metrics import Agreement, AlarmConfig, alarms
from farflung.systems.alignment.rollouts import Group, Rollout

PARAMETERS = "parameters"
REFERENCE = "reference"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """How a step is made."""

    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(learning_rate=1e-6, weight_decay=0.0))
    passes: int = 1
    """Optimizer steps on each batch; with more than one, the policy at its start is the proximal one."""
    tokens_at_once: int = 16_384
    """Of prompt and answer, padding included: how much of a batch is computed at a time."""
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        if self.passes < 1 or self.tokens_at_once < 1:
            raise ValueError("passes and tokens_at_once must be at least 1")


@dataclass(frozen=True, slots=True)
class _Answer:
    """A rollout that is trained on."""

    rollout: Rollout
    advantage: float

    @property
    def text(self) -> tuple[int, ...]:
        return (*self.rollout.prompt_tokens, *self.rollout.answer_tokens)


class PolicyLearner:
    """A `Learner`: any causal language model of transformers, whole or with an adapter of peft."""

    def __init__(
        self,
        model: PreTrainedModel,
        config: LearnerConfig,
        *,
        group_size: int,
        sampling_dtype: torch.dtype | None = None,
    ) -> None:
        """Train the parameters of `model` that take gradients.

        Args:
            group_size: answers asked for to each prompt.
            sampling_dtype: of what rollout nodes install; None: that of the parameters.
        """
        # Dropout would make the policy that is trained another one than that which is sampled.
        self.model = model.eval()
        self.config = config
        self.optimizer = NamedOptimizer(named_parameters(model), config.optimizer)
        self.survivors = SurvivorMeter()
        self.alarms: list[str] = []
        """Of the newest step, a sentence each."""
        self._group_size = group_size
        self._sampling_dtype = sampling_dtype
        self._num_steps = 0
        self._reference = copies(self.optimizer.parameters) if config.loss.reference_weight > 0 else {}

    @property
    def version(self) -> int:
        """Steps made."""
        return self._num_steps

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """One step (or `passes` of them) on these groups; the same groups in this order give the same weights.

        Groups that teach nothing are left out of the loss and of what it is divided by. Where nothing is left, the
        weights stay as they are and the step counts.
        """
        agreement = Agreement(version=self._num_steps)
        answers = self._answers(groups, agreement)
        norm = drift = 0.0
        if answers:
            start = self._accumulate(answers, None, agreement)
            norm = self.optimizer.step(1.0)
            for _ in range(1, self.config.passes):
                self._accumulate(answers, start, None)
                norm = self.optimizer.step(1.0)
            drift = self._drift(answers, start[0])
        self._num_steps += 1
        self.alarms = alarms(agreement, norm, self.survivors, self.config.alarms)
        metrics = agreement.metrics() | {"gradient_norm": norm, "drift": drift}
        return metrics | {"survivor_length_ratio": self.survivors.length_ratio}

    def snapshot(self) -> Tensors:
        """Copies of what is trained, in the dtype that rollout nodes sample with."""
        found = copies(self.optimizer.parameters)
        return {name: tensor.to(self._sampling_dtype or tensor.dtype) for name, tensor in found.items()}

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of all tokens but the first, computed as rollout nodes do."""
        text = torch.tensor([tokens], device=self.model.device)
        values = log_probabilities(self.model, self.snapshot(), text)
        return values[0].tolist()

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """Parameters, moments, the reference if there is one, and counts. Live: write them before the next step."""
        moments, values = self.optimizer.state()
        tensors = joined({PARAMETERS: self.optimizer.parameters, REFERENCE: self._reference}) | moments
        survivors = cast(Json, self.survivors.state())
        return tensors, {"optimizer": values, "num_steps": self._num_steps, "survivors": survivors}

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is of another model, optimizer or loss; nothing is changed then.
        """
        values = cast(dict[str, Any], dict(state))
        own = joined({PARAMETERS: self.optimizer.parameters, REFERENCE: self._reference})
        saved = {path: tensor for path, tensor in tensors.items() if path.split("/")[0] in (PARAMETERS, REFERENCE)}
        moments = {path: tensor for path, tensor in tensors.items() if path not in saved}
        require_fit(saved, own, "the saved policy")
        self.optimizer.check(moments, values["optimizer"])
        self.optimizer.load(moments, values["optimizer"])
        assign_(own, saved)
        self._num_steps = values["num_steps"]
        self.survivors.load(values["survivors"])

    def _answers(self, groups: Sequence[Group], agreement: Agreement) -> list[_Answer]:
        """What is trained on, in order."""
        answers: list[_Answer] = []
        for group in groups:
            self.survivors.add([len(rollout.answer_tokens) for rollout in group.rollouts], self._group_size)
            found = group_advantages(group.rewards, is_scaled=self.config.loss.is_scaled)
            agreement.count_group(group, found)
            if found.is_used:
                answers += map(_Answer, group.rollouts, found.values)
        return answers

    def _accumulate(
        self, answers: Sequence[_Answer], start: list[torch.Tensor] | None, agreement: Agreement | None
    ) -> list[torch.Tensor]:
        """Leave the gradient of the whole batch in the parameters; returns the policy's log-probabilities by part.

        `start` are those of the policy that this batch's first pass began with; None: this is the first pass.
        """
        totals = Totals(sum(float(_mask(answer.rollout).sum()) for answer in answers), len(answers))
        found: list[torch.Tensor] = []
        for number, part in enumerate(self._parts(answers)):
            batch = self._batch(part, start[number] if start is not None else None)
            loss, is_left_out = policy_loss(batch, self.config.loss, totals)
            loss.backward()
            found.append(batch.policy.detach())
            if agreement is not None:
                agreement.add(batch, is_left_out, float(loss.detach()))
        return found

    def _batch(self, part: Sequence[_Answer], proximal: torch.Tensor | None) -> Batch:
        text, mask, sampler, advantages = self._rows(part)
        reference = None
        if self.config.loss.reference_weight > 0:
            reference = log_probabilities(self.model, self._reference, text) * mask
        policy = token_log_probabilities(self.model(input_ids=text, use_cache=False).logits, text) * mask
        return Batch(policy, sampler, advantages, mask, proximal, reference)

    def _rows(self, part: Sequence[_Answer]) -> tuple[torch.Tensor, ...]:
        """Texts int64 [N, T], padded at the end; mask, mu and A for all tokens but the first, float32 [N, T - 1]."""
        length = max(len(answer.text) for answer in part)
        device = self.model.device
        text = torch.zeros(len(part), length, dtype=torch.long)
        mask, sampler, advantages = (torch.zeros(len(part), length - 1) for _ in range(3))
        for row, answer in enumerate(part):
            rollout = answer.rollout
            first = len(rollout.prompt_tokens) - 1
            last = first + len(rollout.answer_tokens)
            text[row, : last + 1] = torch.tensor(answer.text)
            mask[row, first:last] = _mask(rollout)
            sampler[row, first:last] = torch.tensor(rollout.log_probabilities, dtype=torch.float32)
            advantages[row] = answer.advantage
        sampler, advantages = sampler * mask, advantages * mask
        return text.to(device), mask.to(device), sampler.to(device), advantages.to(device)

    def _parts(self, answers: Sequence[_Answer]) -> Iterator[Sequence[_Answer]]:
        """Consecutive answers that are computed together."""
        part: list[_Answer] = []
        longest = 0
        for answer in answers:
            longest = max(longest, len(answer.text))
            if part and longest * (len(part) + 1) > self.config.tokens_at_once:
                yield part
                part, longest = [], len(answer.text)
            part.append(answer)
        if part:
            yield part

    def _drift(self, answers: Sequence[_Answer], before: torch.Tensor) -> float:
        """KL to the policy before the step, nats per token, over the first part of the batch it was made on."""
        text, mask, _, _ = self._rows(next(self._parts(answers)))
        after = log_probabilities(self.model, self.optimizer.parameters, text) * mask
        drift = float(divergence(before, after).sum() / mask.sum())
        return drift if math.isfinite(drift) else math.inf


def _mask(rollout: Rollout) -> torch.Tensor:
    """1.0 where the policy spoke, 0.0 where the environment did."""
    mask = torch.ones(len(rollout.answer_tokens))
    for first, last in rollout.observed:
        mask[first:last] = 0
    return mask


def token_log_probabilities(logits_NTV: torch.Tensor, text_NT: torch.Tensor) -> torch.Tensor:
    """Of all tokens but the first, float32 [N, T - 1]."""
    values = torch.log_softmax(logits_NTV[:, :-1].float(), dim=-1)
    return values.gather(2, text_NT[:, 1:, None])[:, :, 0]


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, weights: Tensors, text_NT: torch.Tensor) -> torch.Tensor:
    """The same of the model with `weights` in place of its own of those names."""
    output: Any = torch.func.functional_call(model, weights, (), {"input_ids": text_NT, "use_cache": False})
    return token_log_probabilities(output.logits, text_NT)
