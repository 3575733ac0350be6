"""The `Generator` protocol (tokens in; tokens, log-probabilities and weights version out) and its thin decode loop.

`ModelGenerator` drives any transformers causal LM, whether its blocks are here or on other machines: only the cache
that `open_cache` hands out differs. Each step is one forward of the newest token, without what `generate` does around;
with a drafter, of guesses after it too, so that one forward may settle several tokens (speculative decoding).
"""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Steps
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from farflung.model.depth import DEPTH_MAX, DepthChooser
from farflung.model.drafts import Drafter
from farflung.model.sample import Sampling, log_probability, most_likely
from farflung.model.writer import Form, Writer

FinishReason = Literal["stop", "length"]
"""Why a row ended: a stop token or string, or its limit of tokens."""

SCORED_LOGITS_MAX = 1 << 26
"""Logits held at once while a prompt is scored; a longer prompt is forwarded in pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to continue and how."""

    prompt: tuple[int, ...]
    num_tokens_max: int
    """0 only scores the prompt."""
    sampling: Sampling = field(default_factory=Sampling)
    num_rows: int = 1
    """Independent answers to the same prompt."""
    seed: int = 0
    """Row r draws from its own stream, seeded with seed + r, so it is the same whatever the number of rows."""
    stop_tokens: tuple[int, ...] = ()
    num_alternatives: int = 0
    """How many of the most likely tokens to report at each position."""
    scores_prompt: bool = False
    form: Form | None = None
    """What each answer has to look like; it ends when nothing can follow."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("The prompt is empty: give at least one token.")
        if self.num_rows < 1 or self.num_tokens_max < 0:
            raise ValueError("Ask for at least one answer of zero or more tokens.")


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One position: its token, and what the model thought of it before it was chosen."""

    token: int
    log_probability: float | None
    """None at the first position of a prompt, which nothing precedes."""
    alternatives: tuple[tuple[int, float], ...] = ()
    """The most likely tokens of this position with their log-probabilities, best first."""


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One more token of one row."""

    row: int
    scored: ScoredToken
    weights_version: str
    finish_reason: FinishReason | None = None
    """Set on the last token of the row."""
    is_guessed: bool = False
    """Whether it had been guessed, so that it took no forward of its own."""


@dataclass(frozen=True, slots=True)
class PromptScores:
    """The prompt's own tokens, scored; comes before any generated token."""

    tokens: tuple[ScoredToken, ...]


IsLast = Callable[[int, int], bool]
"""is_last(row, token): whether this token ends its row (a stop string is complete, say)."""


def _never_last(row: int, token: int) -> bool:
    return False


class Generator(Protocol):
    """Whoever turns a prompt into tokens: a local model, a model on many machines, a rollout service."""

    @property
    def context_length_max(self) -> int:
        """Tokens of prompt and answer together."""
        ...

    def stream(
        self, request: GenerationRequest, is_last: IsLast = _never_last
    ) -> Iterator[PromptScores | GeneratedToken]:
        """Yield tokens as they are chosen. Closing the iterator between two tokens frees everything it holds."""
        ...


@dataclass(frozen=True, slots=True)
class Speculation:
    """Guessing ahead."""

    drafter: Drafter
    now: Callable[[], float]
    """Seconds, to see what pays."""


class ModelGenerator:
    """A `Generator` over a causal LM of transformers.

    `open_cache(num_tokens)` opens a cache for that many tokens of all rows together; leaving it must free it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        open_cache: Callable[[int], AbstractContextManager[Cache]] | None = None,
        weights_version: Callable[[], str] = lambda: "",
        speculation: Speculation | None = None,
    ) -> None:
        """`speculation` speeds up requests for one row; what is said does not change."""
        self._model = model
        self._speculation = speculation
        self.open_cache = open_cache or (lambda num_tokens: nullcontext(DynamicCache(config=model.config)))
        self._weights_version = weights_version

    @property
    def device(self) -> torch.device:
        """Where tokens are wanted and logits come out."""
        return self._model.device

    @property
    def context_length_max(self) -> int:
        return int(self._model.config.get_text_config().max_position_embeddings)

    def stream(
        self, request: GenerationRequest, is_last: IsLast = _never_last
    ) -> Iterator[PromptScores | GeneratedToken]:
        """Prefill, then one forward per token.

        Raises:
            ValueError: prompt and answer do not fit the context.
        """
        num_tokens = len(request.prompt) + request.num_tokens_max
        if num_tokens > self.context_length_max:
            raise ValueError(
                f"The prompt has {len(request.prompt)} tokens and {request.num_tokens_max} are to follow, but the "
                f"model takes at most {self.context_length_max} together: shorten the prompt or ask for fewer tokens."
            )
        with self.open_cache(num_tokens * request.num_rows) as cache:
            scores: list[ScoredToken] = []
            speculation = self._speculation if request.num_rows == 1 and cache.is_croppable else None
            if speculation is not None:
                cache.activate_past_recording()  # else windows forget what a wrong guess has pushed out of them
            logits_NV = self._prefill(request, cache, scores)
            if request.scores_prompt:
                yield PromptScores(tuple(scores))
            if request.num_tokens_max > 0:
                if speculation is None:
                    yield from self._decode(request, cache, logits_NV, is_last)
                else:
                    yield from self._decode_ahead(request, cache, logits_NV, is_last, speculation)

    def _prefill(self, request: GenerationRequest, cache: Cache, scores: list[ScoredToken]) -> torch.Tensor:
        """Forward the prompt for all N rows, fill `scores` if asked; the last position's logits (N, V)."""
        prompt_NT = torch.tensor([request.prompt] * request.num_rows, device=self._model.device)
        if not request.scores_prompt:
            return self.forward(prompt_NT, cache)[:, -1]
        scores.append(ScoredToken(request.prompt[0], None))
        num_logits_each = request.num_rows * self._model.config.get_text_config().vocab_size
        logits_NTV = torch.empty(0)
        for piece_NT in prompt_NT.split(max(1, SCORED_LOGITS_MAX // num_logits_each), dim=1):
            logits_NTV = self.forward(piece_NT, cache, num_logits=piece_NT.shape[1])
            following = request.prompt[len(scores) : len(scores) + piece_NT.shape[1]]
            for logits_V, token in zip(logits_NTV[0], following, strict=False):
                scores.append(_score(logits_V, token, request.num_alternatives))
        return logits_NTV[:, -1]

    def _decode(
        self, request: GenerationRequest, cache: Cache, logits_NV: torch.Tensor, is_last: IsLast
    ) -> Iterator[GeneratedToken]:
        device = self._model.device
        writers = [Writer(request, row, device) for row in range(request.num_rows)]
        running = list(range(request.num_rows))
        while True:
            for row in list(running):
                generated = self._draw(request, row, writers[row], logits_NV[row], is_last)
                if generated.finish_reason is not None:
                    running.remove(row)
                yield generated
            if not running:
                return
            # Rows that ended keep their place in the batch; what they compute is not looked at.
            newest_N1 = torch.tensor([[writer.answer[-1]] for writer in writers], device=device)
            logits_NV = self.forward(newest_N1, cache)[:, -1]

    def _decode_ahead(
        self,
        request: GenerationRequest,
        cache: Cache,
        logits_TV: torch.Tensor,
        is_last: IsLast,
        speculation: Speculation,
    ) -> Iterator[GeneratedToken]:
        """As `_decode` for one row. `logits_TV` are of the newest token and of the guesses after it."""
        writer = Writer(request, 0, self._model.device)
        draft = speculation.drafter.open(request.prompt, request.sampling)
        chooser = DepthChooser()
        guesses, is_forced = [], False
        forward_seconds = 0.0
        while True:
            num_right = yield from self._settle(request, logits_TV, guesses, writer, is_last)
            if num_right is None:
                return
            if num_right < len(guesses):
                cache.crop(num_right - len(guesses))
            if len(writer.answer) > 1 and not is_forced:
                chooser.settled(len(guesses), num_right, forward_seconds)
            began_at = speculation.now()
            num_left = request.num_tokens_max - len(writer.answer) - 1
            guesses = list(writer.forced()[: min(num_left, DEPTH_MAX)])
            is_forced = bool(guesses)
            if not is_forced:
                guesses = draft.guess(writer.answer, chooser.depth(num_left), writer.stream)
            guessed_at = speculation.now()
            chooser.guessed(len(guesses), guessed_at - began_at)
            newest_1T = torch.tensor([[writer.answer[-1], *guesses]], device=self._model.device)
            logits_TV = self.forward(newest_1T, cache, num_logits=len(guesses) + 1)[0]
            forward_seconds = speculation.now() - guessed_at

    def _settle(
        self,
        request: GenerationRequest,
        logits_TV: torch.Tensor,
        guesses: Sequence[int],
        writer: Writer,
        is_last: IsLast,
    ) -> Steps[GeneratedToken, None, int | None]:
        """Draw the tokens that follow the answer until a guess was wrong or there are none left; how many were right,
        or None: the answer is complete."""
        num_right = 0
        for guess, logits_V in zip([*guesses, None], logits_TV, strict=True):
            generated = self._draw(request, 0, writer, logits_V, is_last)
            is_right = generated.scored.token == guess
            yield replace(generated, is_guessed=is_right)
            if generated.finish_reason is not None:
                return None
            if not is_right:
                break
            num_right += 1
        return num_right

    def _draw(
        self, request: GenerationRequest, row: int, writer: Writer, logits_V: torch.Tensor, is_last: IsLast
    ) -> GeneratedToken:
        token = writer.draw(logits_V)
        is_stop = is_last(row, token) or writer.is_complete
        finish_reason = _finish_reason(request, len(writer.answer), token, is_stop=is_stop)
        scored = _score(logits_V, token, request.num_alternatives)
        return GeneratedToken(row, scored, self._weights_version(), finish_reason)

    def forward(self, tokens_NT: torch.Tensor, cache: Cache, *, num_logits: int = 1) -> torch.Tensor:
        """Logits (N, `num_logits`, V) of the last positions of tokens that follow those in the cache."""
        # Inference mode belongs to the thread: it must not be left on while the caller holds a yielded token.
        with torch.inference_mode():
            return self._model(
                input_ids=tokens_NT, past_key_values=cache, use_cache=True, logits_to_keep=num_logits
            ).logits


def _score(logits_V: torch.Tensor, token: int, num_alternatives: int) -> ScoredToken:
    return ScoredToken(token, log_probability(logits_V, token), most_likely(logits_V, num_alternatives))


def _finish_reason(request: GenerationRequest, num_tokens: int, token: int, *, is_stop: bool) -> FinishReason | None:
    if is_stop or token in request.stop_tokens:
        return "stop"
    return "length" if num_tokens == request.num_tokens_max else None


def stop_tokens_of(model: PreTrainedModel) -> tuple[int, ...]:
    """The tokens with which the model says that it is done, as its generation config lists them."""
    config = model.generation_config
    tokens = config.eos_token_id if config is not None else None
    if tokens is None:
        return ()
    listed: Sequence[int] = [tokens] if isinstance(tokens, int) else tokens
    return tuple(listed)
