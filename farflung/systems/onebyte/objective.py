"""What is measured: a number for each sequence of a batch that is to become small.

An objective takes a model and a batch (tensors by name, the first axis of each counts sequences) and returns one value
per sequence, float32 [sequences]. It may compute anything as long as sequences stay in their rows.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn
from torch.nn import functional

Batch = Mapping[str, torch.Tensor]
IGNORED = -100
"""A label that is not predicted, as in transformers."""


class Objective(Protocol):
    """What a run makes small."""

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """One value per sequence, float32 [sequences]."""
        ...


class Judgement(NamedTuple):
    """A batch measured, and how many guesses in it are right, of how many."""

    losses: torch.Tensor
    num_right: int
    num_judged: int


@runtime_checkable
class Judging(Protocol):
    """An objective that knows right from wrong."""

    def judge(self, model: nn.Module, batch: Batch) -> Judgement:
        """In one forward."""
        ...


INPUTS = ("input_ids", "attention_mask", "position_ids")
"""What a model is given of a batch."""


def _inputs(batch: Batch, names: Sequence[str] = INPUTS) -> dict[str, Any]:
    return {name: batch[name] for name in names if name in batch}


@dataclass(frozen=True, slots=True)
class NextTokenLoss:
    """The mean cross-entropy of a sequence's next tokens: `labels` [sequences, length] are those of `input_ids`, or
    -100 where nothing is to be learned (prompts, padding); without them all tokens count."""

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._losses(*self._predicted(model, batch))

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judgement:
        """A learned token is right if it is the likeliest where it stands."""
        logits, targets = self._predicted(model, batch)
        num_right = int((logits.argmax(-1) == targets).sum())
        return Judgement(self._losses(logits, targets), num_right, int((targets != IGNORED).sum()))

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = functional.cross_entropy(
            logits.flatten(0, 1).float(), targets.reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        count = (targets != IGNORED).sum(1).clamp(min=1)
        return losses.view(targets.shape).sum(1) / count

    def _predicted(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(**_inputs(batch), use_cache=False).logits
        return logits[:, :-1], batch.get("labels", batch["input_ids"])[:, 1:]


@dataclass(frozen=True, slots=True)
class LabelWordLoss:
    """The cross-entropy of the right label among the labels' words, after a prompt.

    `answers` [sequences] number the right labels. Prompts are padded on the left, with `attention_mask`, so that the
    last token is the last of each.
    """

    words: tuple[int, ...]
    """The one token of each label."""

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(self._scores(model, batch), batch["answers"], reduction="none")

    @torch.no_grad()
    def judge(self, model: nn.Module, batch: Batch) -> Judgement:
        """A sequence is right if its label's word has the highest score."""
        scores, answers = self._scores(model, batch), batch["answers"]
        losses = functional.cross_entropy(scores, answers, reduction="none")
        return Judgement(losses, int((scores.argmax(-1) == answers).sum()), len(answers))

    def _scores(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = model(**_inputs(batch), use_cache=False, logits_to_keep=1).logits[:, -1]
        return logits[:, list(self.words)].float()


def label_words(encode: Callable[[str], list[int]], words: list[str]) -> LabelWordLoss:
    """The objective for these label words; `encode` gives the tokens of a text.

    Raises:
        ValueError: a word is several tokens, or two words are the same.
    """
    tokens = [encode(word) for word in words]
    for word, found in zip(words, tokens, strict=True):
        if len(found) != 1:
            raise ValueError(
                f"the label word {word!r} is {len(found)} tokens for this tokenizer: choose a word that is one token "
                f"(often with a space before it)"
            )
    if len({found[0] for found in tokens}) < max(len(words), 2):
        raise ValueError("label words must be at least two different ones: choose another word for each label")
    return LabelWordLoss(tuple(found[0] for found in tokens))


@dataclass(frozen=True, slots=True)
class RewardLoss:
    """Minus the reward of what the model answers greedily: reinforcement learning over one byte per measurement."""

    reward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """(prompts [sequences, length], answers [sequences, tokens]) -> rewards [sequences]."""
    num_tokens: int
    """Length of an answer."""

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        inputs = _inputs(batch, ("input_ids", "attention_mask"))  # generating finds the positions itself
        whole = model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=self.num_tokens)
        length = batch["input_ids"].shape[1]
        return -self.reward(whole[:, :length], whole[:, length:]).float()
