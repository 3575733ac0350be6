"""Rewards: a function of the user's that values texts, as an objective."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from farflung.systems.onebyte.objective import Batch, RewardLoss

Reward = Callable[[str, str, str], float]
"""(prompt, what the model answered, the example's label) -> how good that is."""


def load_reward(name: str) -> Reward:
    """The function that `module:function` names.

    Raises:
        ValueError: there is none.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"objective.reward: {name!r} cannot be loaded ({error}): give module:function, importable from the folder "
            f"that the run is started in"
        ) from None
    if not callable(function):
        raise ValueError(f"objective.reward: {name!r} is no function of (prompt, answer, label)")
    return cast(Reward, function)


@dataclass(frozen=True, slots=True)
class TextReward:
    """Minus the reward of what the model answers greedily to each prompt."""

    reward: Reward
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    """By the numbers that a batch has as `answers`."""
    num_tokens: int

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        labels = [self.labels[number] for number in batch["answers"].tolist()]

        def value(prompts: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
            pairs = zip(self._texts(prompts), self._texts(answers), labels, strict=True)
            return torch.tensor([float(self.reward(*each)) for each in pairs])

        return RewardLoss(value, self.num_tokens)(model, batch)

    def _texts(self, tokens: torch.Tensor) -> Sequence[str]:
        described: Any = self.tokenizer
        return described.batch_decode(tokens, skip_special_tokens=True)
