"""Objectives over a head of the client's own on the last token's hidden state: classes, scores, preferences."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from farflung.systems.onebyte.objective import Batch, Judgement


class HeadLoss(Protocol):
    """An objective that needs a head."""

    @property
    def num_values(self) -> int:
        """That the head reads."""
        ...

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        """As `onebyte.objective.Objective`; `model` is a `TunedModel`."""
        ...


@dataclass(frozen=True, slots=True)
class ClassLoss:
    """The cross-entropy of each row's class, `answers` [B], among all."""

    classes: tuple[str, ...]
    """Their labels, by number."""

    @property
    def num_values(self) -> int:
        return len(self.classes)

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        return functional.cross_entropy(model.read_last(batch), batch["answers"], reduction="none")

    @torch.no_grad()
    def judge(self, model: Any, batch: Batch) -> Judgement:
        """A row is right if its class has the highest value."""
        values, answers = model.read_last(batch), batch["answers"]
        losses = functional.cross_entropy(values, answers, reduction="none")
        return Judgement(losses, int((values.argmax(-1) == answers).sum()), len(answers))


@dataclass(frozen=True, slots=True)
class ScoreLoss:
    """The squared error of each row's score, which should be `targets` [B]."""

    @property
    def num_values(self) -> int:
        return 1

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        return (model.read_last(batch)[:, 0] - batch["targets"]).square()


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """Of a better and a worse text, the negative log-probability that the better one wins (Bradley and Terry).

    A batch has the better texts and, after them, as many worse ones.
    """

    @property
    def num_values(self) -> int:
        return 1

    def __call__(self, model: Any, batch: Batch) -> torch.Tensor:
        return -functional.logsigmoid(self._margins(model, batch))

    @torch.no_grad()
    def judge(self, model: Any, batch: Batch) -> Judgement:
        """A pair is right if the better text has the higher value."""
        margins = self._margins(model, batch)
        return Judgement(-functional.logsigmoid(margins), int((margins > 0).sum()), len(margins))

    def _margins(self, model: Any, batch: Batch) -> torch.Tensor:
        better, worse = model.read_last(batch)[:, 0].chunk(2)
        return better - worse
