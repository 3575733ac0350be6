"""Answers of a given form (JSON by a schema, tool calls), kept to it by llguidance (`pip install 'farflung[guided]'`).

The head of the model is here, so a form costs the swarm nothing: before each token is drawn, those that would break it
are ruled out. Guesses are checked by the same draws, so guessing ahead changes nothing; and what the form leaves no
choice about is guessed for free.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from farflung.apps.http.errors import ApiError
from farflung.model.writer import Form, Guide

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

SPACES_MAX = 40
"""Between two parts of JSON; without a limit a model may get lost in them."""
JSON_OPTIONS = {"whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{0,{SPACES_MAX}}}"}

Schema = dict[str, Any]


class Forms:
    """Makes forms for one model."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_tokens = list(stop_tokens)
        self._vocabulary: LLTokenizer | None = None

    def of_schema(self, schema: Schema) -> Form:
        """JSON that a schema describes. Takes a second or so the first time.

        Raises:
            ApiError: 400 for a schema that is none or that cannot be kept to, and when llguidance is not installed.
        """
        return self.of_grammar(f"start: {json_rule(schema)}\n", "response_format")

    def of_grammar(self, grammar: str, param: str) -> Form:
        """What a grammar in llguidance's Lark describes; `param` is the field of the request that it comes from.

        Raises:
            ApiError: 400, as `of_schema`.
        """
        vocabulary = self._learnt_vocabulary(param)
        from llguidance import LLMatcher

        is_wrong, reasons = LLMatcher.validate_grammar_with_warnings(grammar, vocabulary)
        if is_wrong:
            reason = reasons[0].rpartition("failed to compile JSON schema: ")[2].partition("\n 1 |")[0]
            raise ApiError(400, f"The answer cannot be kept to this schema: {' '.join(reason.split())}", param=param)
        return _GrammarForm(vocabulary, grammar)

    def _learnt_vocabulary(self, param: str) -> "LLTokenizer":
        if self._vocabulary is None:
            try:
                from llguidance.hf import from_tokenizer
            except ImportError:
                sentence = (
                    "Answers of a given form need llguidance beside the interface: pip install 'farflung[guided]'."
                )
                raise ApiError(400, sentence, param=param) from None
            try:
                self._vocabulary = from_tokenizer(self._tokenizer, eos_token=self._stop_tokens or None)  # pyright: ignore[reportArgumentType]
            except ValueError as error:
                raise ApiError(400, f"The tokenizer of this model allows no forms: {error}", param=param) from None
        return self._vocabulary


def json_rule(schema: Schema) -> str:
    """JSON by a schema as a part of a grammar."""
    return f"%json {json.dumps(schema | {'x-guidance': JSON_OPTIONS})}"


class _GrammarForm:
    def __init__(self, vocabulary: "LLTokenizer", grammar: str) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(vocabulary, grammar)

    def open(self) -> Guide:
        return _GrammarGuide(self._matcher.deep_copy())


class _GrammarGuide:
    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def allow(self, logits_V: torch.Tensor) -> torch.Tensor:
        """
        Raises:
            ValueError: the form has become more complex than llguidance computes.
        """
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise ValueError(f"The form of the answer is too complex: {self._matcher.get_error()}")
        bits = np.unpackbits(np.frombuffer(mask, dtype=np.uint8), bitorder="little")[: len(logits_V)]
        is_ruled_out_V = torch.ones(len(logits_V), dtype=torch.bool)
        is_ruled_out_V[: len(bits)] = torch.from_numpy(bits == 0)
        return logits_V.masked_fill(is_ruled_out_V.to(logits_V.device), -torch.inf)

    def forced(self) -> Sequence[int]:
        return self._matcher.compute_ff_tokens()

    def take(self, token: int) -> None:
        self._matcher.consume_token(token)
