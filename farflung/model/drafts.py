"""Who guesses the next tokens of an answer: what followed the same words before, or a small model on this machine.

A guess is right when it is the token that the model itself draws there. So guesses are drawn with the very noise that
the answer's stream will use at their places: the better the draft's distribution, the more of them are right (Daliri
and others, 2024), and what is said is the same with any drafter and without one.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model.sample import Sampling, choose

MATCHED_TOKENS_MAX = 4
MATCHED_TOKENS_MIN = 2
"""Shorter matches are chance."""


class Draft(Protocol):
    """The guesses for one answer."""

    def guess(self, answer: Sequence[int], num_tokens: int, stream: torch.Generator) -> list[int]:
        """Up to so many tokens that may follow prompt and `answer`, which only ever grows; `stream` is where the
        answer's own is, and stays there."""
        ...


class Drafter(Protocol):
    """Opens a draft for every answer; usable from many threads."""

    def open(self, prompt: Sequence[int], sampling: Sampling) -> Draft:
        """A draft for an answer to `prompt`."""
        ...


class PromptLookup:
    """Guesses that what followed the newest few tokens before follows them again (Saxena, 2023)."""

    def open(self, prompt: Sequence[int], sampling: Sampling) -> Draft:
        """How tokens are drawn does not matter."""
        return _LookupDraft(prompt)


class _LookupDraft:
    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._num_prompt = len(prompt)
        self._follows: dict[tuple[int, ...], int] = {}
        """A few tokens -> the place after where they were last."""
        self._newest: dict[tuple[int, ...], int] = {}
        """The same, of those that end the text."""
        self._extend(prompt)

    def guess(self, answer: Sequence[int], num_tokens: int, stream: torch.Generator) -> list[int]:
        self._extend(answer[len(self._tokens) - self._num_prompt :])
        for length in range(MATCHED_TOKENS_MAX, MATCHED_TOKENS_MIN - 1, -1):
            place = self._follows.get(tuple(self._tokens[-length:]))
            if place is not None:
                return self._copied(place, num_tokens)
        return []

    def _copied(self, place: int, num_tokens: int) -> list[int]:
        """The tokens from `place` on; past the end the guesses themselves go on, as in a loop."""
        text = list(self._tokens[place : place + num_tokens])
        period = len(self._tokens) - place
        while len(text) < num_tokens:
            text.append(text[len(text) - period])
        return text

    def _extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self._follows.update(self._newest)
            self._tokens.append(token)
            end = len(self._tokens)
            lengths = range(MATCHED_TOKENS_MIN, min(MATCHED_TOKENS_MAX, end) + 1)
            self._newest = {tuple(self._tokens[-length:]): end for length in lengths}


class DraftModel:
    """Guesses by a small model with the same vocabulary."""

    def __init__(self, model: PreTrainedModel, vocabulary_size: int) -> None:
        """`vocabulary_size`: logits of the large model."""
        self.model = model
        self.vocabulary_size = vocabulary_size

    def open(self, prompt: Sequence[int], sampling: Sampling) -> Draft:
        """Guesses are drawn by the same `sampling`."""
        return _ModelDraft(self, prompt, sampling)

    @property
    def num_embeddings(self) -> int:
        """Different tokens that it can read."""
        embeddings: Any = self.model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    @property
    def context_length_max(self) -> int:
        """Tokens that it can read one after another."""
        return int(self.model.config.get_text_config().max_position_embeddings)


class _ModelDraft:
    def __init__(self, drafter: DraftModel, prompt: Sequence[int], sampling: Sampling) -> None:
        self._drafter = drafter
        self._prompt = list(prompt)
        self._sampling = sampling
        self._cache: Cache = DynamicCache()  # of full attention in all layers, so that any token can be taken back
        self._held: list[int] = []
        """The tokens in the cache."""

    @torch.inference_mode()
    def guess(self, answer: Sequence[int], num_tokens: int, stream: torch.Generator) -> list[int]:
        text = [*self._prompt, *answer]
        if len(text) + num_tokens > self._drafter.context_length_max or max(text) >= self._drafter.num_embeddings:
            return []  # more than it can read
        noise = torch.Generator(stream.device)
        noise.set_state(stream.get_state())
        guesses: list[int] = []
        self._keep(_num_common(self._held, text[:-1]))
        while len(guesses) < num_tokens:
            logits_V = self._read([*text, *guesses][len(self._held) :])
            told = [*answer, *guesses]
            guesses.append(choose(logits_V, self._sampling, noise, prompt=self._prompt, answer=told))
        return guesses

    def _keep(self, num_tokens: int) -> None:
        if num_tokens < len(self._held):
            self._cache.crop(num_tokens - len(self._held))
            del self._held[num_tokens:]

    def _read(self, tokens: list[int]) -> torch.Tensor:
        """Logits of the token after these, as many as the large model has."""
        model = self._drafter.model
        ids = torch.tensor([tokens], device=model.device)
        output = model(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._held += tokens
        logits_V = output.logits[0, -1]
        missing = self._drafter.vocabulary_size - logits_V.shape[0]
        return torch.nn.functional.pad(logits_V.float(), (0, missing), value=float("-inf"))


def _num_common(held: Sequence[int], text: Sequence[int]) -> int:
    """Tokens with which both begin."""
    for number, (own, other) in enumerate(zip(held, text, strict=False)):
        if own != other:
            return number
    return min(len(held), len(text))
