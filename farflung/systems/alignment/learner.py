"""The trainer's model: one optimizer step from groups of answers, over the log-probabilities that samplers recorded."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from farflung.learn.checkpoint import Json, require_fit
from farflung.learn.optimizer import NamedOptimizer
from farflung.learn.parameters import Tensors, copies, joined, named_parameters
from farflung.learn.redistribute import Site
from farflung.systems.alignment.advantage import SurvivorMeter, group_advantages
from farflung.systems.alignment.learning_config import LearnerConfig
from farflung.systems.alignment.losses import Batch, Totals, divergence, policy_loss
from farflung.systems.alignment.metrics import Agreement, alarms
from farflung.systems.alignment.ranks import Ranks, deal
from farflung.systems.alignment.rollouts import Group, Rollout

PARAMETERS = "parameters"
REFERENCE = "reference"


@dataclass(frozen=True, slots=True)
class _Answer:
    """A rollout that is trained on."""

    rollout: Rollout
    advantage: float
    is_counted: bool = True
    """False: computed for company alone, since ranks that hold a model in shards compute together or not at all."""

    @property
    def text(self) -> tuple[int, ...]:
        return (*self.rollout.prompt_tokens, *self.rollout.answer_tokens)

    @property
    def mask(self) -> torch.Tensor:
        """1.0 where the policy spoke, 0.0 where the environment did."""
        mask = torch.full((len(self.rollout.answer_tokens),), float(self.is_counted))
        for first, last in self.rollout.observed:
            mask[first:last] = 0
        return mask


_Part = Sequence[_Answer]
"""Answers that are computed together."""


class PolicyLearner:
    """A `Learner`: any causal language model of transformers, whole or with an adapter of peft.

    With several ranks all of them make one and call its methods together; what these give is the same on all, but for
    whole tensors of a model that is cut in shards, which the first rank alone gets.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        config: LearnerConfig,
        *,
        group_size: int,
        sampling_dtype: torch.dtype | None = None,
        site: Site | None = None,
    ) -> None:
        """Train the parameters of `model` that take gradients.

        Args:
            group_size: answers asked for to each prompt.
            sampling_dtype: of what rollout nodes install; None: that of the parameters.
            site: the ranks that are this trainer together, each with the same model, whole or cut by FSDP2; None: this
                process alone.

        Raises:
            ValueError: a model in shards is to be held near a reference, or sampled from in another dtype.
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
        self._ranks = Ranks(site, self.optimizer.parameters)
        if self._ranks.is_sharded and (config.loss.reference_weight > 0 or sampling_dtype is not None):
            raise ValueError("a reference and a dtype to sample with need the whole model on every rank: do not cut it")
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
            totals = Totals(sum(float(answer.mask.sum()) for answer in answers), len(answers))
            parts = self._own_parts(answers)
            start = self._accumulate(parts, totals, None, agreement)
            agreement.add_others(self._ranks.sum)
            norm = self.optimizer.step(1.0)
            for _ in range(1, self.config.passes):
                self._accumulate(parts, totals, start, None)
                norm = self.optimizer.step(1.0)
            drift = self._drift(parts[0], start[0])
        self._num_steps += 1
        self.alarms = alarms(agreement, norm, self.survivors, self.config.alarms)
        metrics = agreement.metrics() | {"gradient_norm": norm, "drift": drift}
        return metrics | {"survivor_length_ratio": self.survivors.length_ratio}

    def snapshot(self) -> Tensors:
        """Copies of what is trained, in the dtype that rollout nodes sample with."""
        found = copies(self._ranks.whole(self.optimizer.parameters))
        return {name: tensor.to(self._sampling_dtype or tensor.dtype) for name, tensor in found.items()}

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Log-probabilities of all tokens but the first, computed as rollout nodes do."""
        text = torch.tensor([tokens], device=self.model.device)
        weights = None if self._ranks.is_sharded else self.snapshot()
        return log_probabilities(self.model, weights, text)[0].tolist()

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """Parameters, moments, the reference if there is one, and counts. Live: write them before the next step."""
        survivors = cast(Json, self.survivors.state())
        state: dict[str, Json] = {"optimizer": self.optimizer.state().values, "num_steps": self._num_steps}
        return self._ranks.whole(self._tensors()), state | {"survivors": survivors}

    def check(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Json]) -> None:
        """Say whether a saved state can be restored here.

        Raises:
            ValueError: it is of another model, optimizer or loss.
        """
        own = (PARAMETERS, REFERENCE)
        saved = {path: tensor for path, tensor in tensors.items() if path.split("/")[0] in own}
        expected = {path: tensor for path, tensor in self._tensors().items() if path.split("/")[0] in own}
        require_fit(saved, expected, "the saved policy")
        moments = {path: tensor for path, tensor in tensors.items() if path not in saved}
        self.optimizer.check(moments, cast(Any, state["optimizer"]))

    def restore(self, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Json]) -> None:
        """Go on from a saved state; of several ranks the first one alone needs its tensors.

        Raises:
            ValueError: as `check`; nothing is changed then.
        """
        if not self._ranks.rank:
            self.check(tensors, state)
        values = cast(dict[str, Any], dict(state))
        self._ranks.assign_(self._tensors(), tensors)
        self.optimizer.num_steps = values["optimizer"]["num_steps"]
        self._num_steps = values["num_steps"]
        self.survivors.load(values["survivors"])

    def _tensors(self) -> Tensors:
        """All that is saved, live."""
        policy = joined({PARAMETERS: self.optimizer.parameters, REFERENCE: self._reference})
        return policy | joined(self.optimizer.moments)

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

    def _own_parts(self, answers: Sequence[_Answer]) -> list[_Part]:
        """This rank's share, in as many parts as that of every other rank, and at least one."""
        dealt = deal([len(answer.text) for answer in answers], self._ranks.num_ranks)
        parts = [list(self._parts([answers[place] for place in places])) for places in dealt]
        own, num_parts = parts[self._ranks.rank], max(map(len, parts))
        idle = replace(min(answers, key=lambda answer: len(answer.text)), is_counted=False)
        return own + [[idle]] * (num_parts - len(own))

    def _accumulate(
        self, parts: Sequence[_Part], totals: Totals, start: list[torch.Tensor] | None, agreement: Agreement | None
    ) -> list[torch.Tensor]:
        """Leave the gradient of the whole batch in the parameters; returns the policy's log-probabilities by part.

        `parts` are this rank's, and `totals` the whole batch's. `start` are those log-probabilities of the policy that
        this batch's first pass began with; None: this is the first pass.
        """
        found: list[torch.Tensor] = []
        for number, part in enumerate(parts):
            batch = self._batch(part, start[number] if start is not None else None)
            loss, is_left_out = policy_loss(batch, self.config.loss, totals)
            self._ranks.add_gradient(loss)
            found.append(batch.policy.detach())
            if agreement is not None:
                agreement.add(batch, is_left_out, float(loss.detach()))
        self.optimizer.complete_gradients()
        self._ranks.add_up_gradients()
        return found

    def _batch(self, part: _Part, proximal: torch.Tensor | None) -> Batch:
        text, mask, sampler, advantages = self._rows(part)
        reference = None
        if self.config.loss.reference_weight > 0:
            reference = log_probabilities(self.model, self._reference, text) * mask
        policy = token_log_probabilities(self.model(input_ids=text, use_cache=False).logits, text) * mask
        return Batch(policy, sampler, advantages, mask, proximal, reference)

    def _rows(self, part: _Part) -> tuple[torch.Tensor, ...]:
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
            mask[row, first:last] = answer.mask
            sampler[row, first:last] = torch.tensor(rollout.log_probabilities, dtype=torch.float32)
            advantages[row] = answer.advantage
        sampler, advantages = sampler * mask, advantages * mask
        return text.to(device), mask.to(device), sampler.to(device), advantages.to(device)

    def _parts(self, answers: Sequence[_Answer]) -> Iterator[_Part]:
        """Consecutive answers."""
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

    def _drift(self, part: _Part, before: torch.Tensor) -> float:
        """KL to the policy before the step, nats per token, over the first part that each rank made it on."""
        text, mask, _, _ = self._rows(part)
        after = log_probabilities(self.model, None, text) * mask
        total, num_tokens = self._ranks.sum([float(divergence(before, after).sum()), float(mask.sum())])
        drift = total / max(num_tokens, 1)
        return drift if math.isfinite(drift) else math.inf


def token_log_probabilities(logits_NTV: torch.Tensor, text_NT: torch.Tensor) -> torch.Tensor:
    """Of all tokens but the first, float32 [N, T - 1]."""
    values = torch.log_softmax(logits_NTV[:, :-1].float(), dim=-1)
    return values.gather(2, text_NT[:, 1:, None])[:, :, 0]


@torch.no_grad()
def log_probabilities(model: torch.nn.Module, weights: Tensors | None, text_NT: torch.Tensor) -> torch.Tensor:
    """The same of the model with `weights` in place of its own of those names; None: with its own."""
    if weights is not None:
        output: Any = torch.func.functional_call(model, weights, (), {"input_ids": text_NT, "use_cache": False})
    else:
        output = model(input_ids=text_NT, use_cache=False)
        if isinstance(model, FSDPModule):
            model.reshard()  # which otherwise a backward pass does: until then new weights would not be seen
    return token_log_probabilities(output.logits, text_NT)
