"""A rollout node's model: samples the answers of many tasks at once, each from its own counter-based stream.

Tokens depend on (seed, prompt, member) and on the weights alone, so a task may be sampled anywhere and again. Tasks
are batched by length of text up to `rows_at_once`; with 1 every answer is a batch of its own and its log-probabilities
are the same to the last bit whatever else is under way.

New weights come in between two tokens. What is under way then goes on: its texts are read anew with the new weights, so
that every token is what *its* version says of *all* tokens before it, and can be checked (`auditor.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from farflung.learn.parameters import Tensors
from farflung.model.counter import stream_key
from farflung.model.generator import ModelGenerator
from farflung.model.rows import Rows
from farflung.systems.alignment.rollouts import Failure, FinishReason, Rollout, Task

ROWS_AT_ONCE = 64


class Replies(Protocol):
    """The other side of a conversation, if there is one."""

    def reply(self, number: int, answer_tokens: Sequence[int], observed: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """What the environment says after the policy's turn; nothing: the conversation is over.

        Args:
            number: of the prompt.
            answer_tokens: all that followed the prompt, the environment's own words among them.
            observed: where those stand, as in `Rollout`.
        """
        ...


@dataclass(eq=False)
class _Answer:
    """One answer under way."""

    task: Task
    member: int
    tokens: list[int] = field(default_factory=list[int])
    log_probabilities: list[float] = field(default_factory=list[float])
    versions: list[int] = field(default_factory=list[int])
    observed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def text(self) -> tuple[int, ...]:
        return (*self.task.prompt_tokens, *self.tokens)

    @property
    def num_left(self) -> int:
        return self.task.num_tokens_max - len(self.tokens)

    def hear(self, reply: tuple[int, ...]) -> None:
        """Take what the environment said into the text."""
        self.observed.append((len(self.tokens), len(self.tokens) + len(reply)))
        self.tokens += reply
        self.log_probabilities += [0.0] * len(reply)
        self.versions += [self.versions[-1]] * len(reply)

    def finished(self, weights_hash: bytes, reason: FinishReason) -> Rollout:
        task = self.task
        return Rollout(
            prompt=task.prompt,
            member=self.member,
            prompt_tokens=task.prompt_tokens,
            answer_tokens=tuple(self.tokens),
            log_probabilities=tuple(self.log_probabilities),
            versions=tuple(self.versions),
            weights_hash=weights_hash,
            seed=task.seed,
            finish_reason=reason,
            observed=tuple(self.observed),
        )


@dataclass(eq=False)
class _Batch:
    """Answers that are decoded together; those that have ended keep their row, and nobody looks at it."""

    rows: Rows
    answers: list[_Answer]
    running: list[int]


class SamplingPolicy:
    """A `Policy` over any model that `ModelGenerator` drives."""

    def __init__(
        self,
        generator: ModelGenerator,
        assign: Callable[[Tensors], None],
        *,
        stop_tokens: Sequence[int],
        environment: Replies | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
    ) -> None:
        """Sample with `generator`; `assign` writes a version's tensors into its model, wherever that is.

        Args:
            stop_tokens: each ends the policy's turn.
            environment: answers the policy's turns; None: the first turn is the whole answer.
        """
        if rows_at_once < 1:
            raise ValueError(f"rows_at_once must be at least 1, not {rows_at_once}")
        if not stop_tokens:
            raise ValueError("the model names no token that ends an answer: set eos_token_id in its generation config")
        self.version = -1
        self._weights_hash = b""
        self._generator = generator
        self._assign = assign
        self._stop_tokens = frozenset(stop_tokens)
        self._environment = environment
        self._rows_at_once = rows_at_once
        self._waiting: list[_Answer] = []
        """Those whose text has to be read: new ones, and those that an environment has replied to."""
        self._batches: list[_Batch] = []
        self._failures: list[Failure] = []

    def begin(self, task: Task) -> None:
        """Take a task; one that does not fit the model's context fails in the next `advance`."""
        num_tokens = len(task.prompt_tokens) + task.num_tokens_max
        if not task.prompt_tokens or num_tokens > self._generator.context_length_max:
            reason = (
                f"prompt {task.prompt} has {len(task.prompt_tokens)} tokens and {task.num_tokens_max} may follow, but "
                f"the model takes 1 to {self._generator.context_length_max} together"
            )
            self._failures.append(Failure(prompt=task.prompt, members=task.members, reason=reason))
        else:
            self._waiting += [_Answer(task, member) for member in task.members]

    def advance(self, num_tokens: int) -> Sequence[Rollout | Failure]:
        """Draw up to `num_tokens` for each answer under way; the ended ones, by prompt and member."""
        assert self.version >= 0, "weights are installed before anything is sampled"
        failures, self._failures = self._failures, []
        ended: list[Rollout] = []
        for _ in range(num_tokens):
            self._form_batches()
            if not self._batches:
                break
            for batch in self._batches:
                ended += self._draw(batch)
            self._batches = [batch for batch in self._batches if batch.running]
        ended.sort(key=lambda rollout: rollout.key)
        return [*failures, *ended]

    def abandon(self, prompt: int) -> None:
        """Forget the answers to this prompt."""
        self._waiting = [answer for answer in self._waiting if answer.task.prompt != prompt]
        for batch in self._batches:
            batch.running = [row for row in batch.running if batch.answers[row].task.prompt != prompt]
            if not batch.running:
                batch.rows.close()
        self._batches = [batch for batch in self._batches if batch.running]

    def install(self, version: int, weights_hash: bytes, tensors: Tensors) -> None:
        """Go on with other weights; texts under way are read anew with them."""
        begun: list[_Answer] = []
        for batch in self._batches:
            batch.rows.close()
            begun += [batch.answers[row] for row in batch.running]
        self._assign(tensors)
        self.version, self._weights_hash = version, weights_hash
        self._waiting = begun + self._waiting
        self._batches = []

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """Log-probabilities of all tokens but the first."""
        return token_scores(self._generator, tokens)

    def _form_batches(self) -> None:
        """Put together whose texts have the same length, in the order in which they came."""
        by_length: dict[int, list[_Answer]] = {}
        for answer in self._waiting:
            by_length.setdefault(len(answer.text), []).append(answer)
        self._waiting = []
        for alike in by_length.values():
            for start in range(0, len(alike), self._rows_at_once):
                answers = alike[start : start + self._rows_at_once]
                self._batches.append(_Batch(self._rows(answers), answers, list(range(len(answers)))))

    def _rows(self, answers: list[_Answer]) -> Rows:
        return Rows(
            self._generator,
            [answer.text for answer in answers],
            [stream_key(answer.task.seed, answer.task.prompt, answer.member) for answer in answers],
            [len(answer.tokens) for answer in answers],
            max(answer.num_left for answer in answers),
        )

    def _draw(self, batch: _Batch) -> Iterator[Rollout]:
        tokens, log_probabilities = batch.rows.draw()
        still: list[int] = []
        for row in batch.running:
            answer = batch.answers[row]
            answer.tokens.append(tokens[row])
            answer.log_probabilities.append(log_probabilities[row])
            answer.versions.append(self.version)
            is_stop = tokens[row] in self._stop_tokens
            if is_stop and self._hears(answer):
                self._waiting.append(answer)
            elif is_stop or not answer.num_left:
                yield answer.finished(self._weights_hash, "stop" if is_stop else "length")
            else:
                still.append(row)
        batch.running = still
        if not still:
            batch.rows.close()

    def _hears(self, answer: _Answer) -> bool:
        """Whether the environment goes on with the conversation, and there is room for that."""
        if self._environment is None:
            return False
        reply = self._environment.reply(answer.task.prompt, tuple(answer.tokens), tuple(answer.observed))
        if not reply or len(reply) >= answer.num_left:
            return False
        answer.hear(reply)
        return True


def token_scores(generator: ModelGenerator, tokens: Sequence[int]) -> list[float]:
    """Log-probabilities of all tokens but the first, each after those before it."""
    text = torch.tensor([tokens], dtype=torch.long, device=generator.device)
    with generator.open_cache(len(tokens)) as cache:
        logits_TV = generator.forward(text, cache, num_logits=len(tokens))[0, :-1].float()
    values = torch.log_softmax(logits_TV, dim=-1).gather(1, text[0, 1:, None])
    return values[:, 0].tolist()
