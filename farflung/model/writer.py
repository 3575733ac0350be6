"""Draws the tokens of one answer, within what a guide allows."""

from collections.abc import Sequence
from typing import Protocol

import torch

from farflung.model.sample import Sampling, choose


class Guide(Protocol):
    """Keeps one answer to a form, such as a JSON schema, whatever the model would say."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing can follow."""
        ...

    def allow(self, logits_V: torch.Tensor) -> torch.Tensor:
        """The logits with those of tokens that would break the form set to minus infinity."""
        ...

    def forced(self) -> Sequence[int]:
        """The tokens that the form leaves no choice about, spelled as the model would most likely spell them."""
        ...

    def take(self, token: int) -> None:
        """The answer goes on with this token, which was allowed."""
        ...


class Form(Protocol):
    """What answers have to look like; usable from many threads."""

    def open(self) -> Guide:
        """A guide for one answer."""
        ...


class Wish(Protocol):
    """What is asked of all answers to a prompt."""

    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def sampling(self) -> Sampling: ...
    @property
    def seed(self) -> int: ...
    @property
    def form(self) -> Form | None: ...


class Writer:
    """One answer as it grows."""

    def __init__(self, wish: Wish, row: int, device: torch.device) -> None:
        """The answer number `row`, which draws from a stream of its own."""
        self.answer: list[int] = []
        self.stream = torch.Generator(device).manual_seed(wish.seed + row)
        self._wish = wish
        self._guide = wish.form.open() if wish.form is not None else None

    @property
    def is_complete(self) -> bool:
        """Whether the form of the answer is complete, so that nothing can follow."""
        return self._guide is not None and self._guide.is_complete

    def forced(self) -> Sequence[int]:
        """Tokens that the form most likely brings next."""
        return self._guide.forced() if self._guide is not None else ()

    def draw(self, logits_V: torch.Tensor) -> int:
        """The next token, which is part of the answer from now on."""
        if self._guide is not None:
            logits_V = self._guide.allow(logits_V)
        token = choose(logits_V, self._wish.sampling, self.stream, prompt=self._wish.prompt, answer=self.answer)
        self.answer.append(token)
        if self._guide is not None:
            self._guide.take(token)
        return token
