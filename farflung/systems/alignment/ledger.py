"""Which answers are wanted, who samples them, which are here, which were trained on: the one account of a run.

    prompt numbers   │ closed ........ │ open: at most (S + 1) B │ not yet
                       trained on, or    wanted, leased or here
                       given up

A prompt is closed once. An open one is asked for until its group is trained on, so none is lost; answers are named by
(prompt, member), so none counts twice. Staleness is bounded by refusing answers that are too old when they arrive and
by dropping those that are when a batch is made; both are asked for again. Since only (S + 1) B prompts are open, and
the r-th of them is given only to who holds version v + r // B - S or newer, this seldom happens.
"""

from collections.abc import Sequence

import msgspec

from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.leases import Key, Leases
from farflung.systems.alignment.rollouts import Rollout


class Answer(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A rollout that is here, and who sampled it."""

    worker: str
    rollout: Rollout


class LedgerState(msgspec.Struct, forbid_unknown_fields=True):
    """What survives a crash."""

    version: int = 0
    """Steps made: the version that the next batch is trained from."""
    first_open: int = 0
    """All prompts before it are closed."""
    closed: list[int] = []
    """Of those from `first_open` on, in order."""
    answers: list[Answer] = []
    failures: dict[int, int] = {}
    """By prompt."""
    given_up: list[int] = []
    banned: dict[str, str] = {}
    """Name of a worker -> why."""
    num_stale: int = 0
    """Answers that were of no use any more."""
    num_trained: int = 0
    """Answers that were trained on."""
    staleness: dict[int, int] = {}
    """Answers that were trained on, by how many steps their oldest token was old."""


class Ledger:
    """The account and who decides from it. Everything is by prompt and member in order, so equal runs are equal."""

    def __init__(self, config: AlignmentConfig, state: LedgerState) -> None:
        self._config = config
        self.state = state
        self._closed = set(state.closed)
        self.answers: dict[int, dict[int, Answer]] = {}
        for answer in state.answers:
            self.keep(answer)
        self.leases = Leases(config)
        self._begun_at: dict[int, float] = {}

    def saved(self) -> LedgerState:
        """The state with everything in it."""
        answers = [
            self.answers[prompt][member] for prompt in sorted(self.answers) for member in sorted(self.answers[prompt])
        ]
        return msgspec.structs.replace(self.state, closed=sorted(self._closed), answers=answers)

    # What is wanted

    @property
    def is_over(self) -> bool:
        return self.state.version >= self._config.num_steps

    def is_closed(self, prompt: int) -> bool:
        return prompt < self.state.first_open or prompt in self._closed

    def open_prompts(self) -> list[int]:
        """In order of their numbers; those of the batch that is trained on are among them until it is done."""
        steps_left = self._config.num_steps - self.state.version
        num_open = min(self._config.staleness_max + 1, steps_left) * self._config.prompts_per_step
        found: list[int] = []
        prompt = self.state.first_open
        while len(found) < num_open:
            if prompt not in self._closed:
                found.append(prompt)
            prompt += 1
        return found

    def version_needed(self, rank: int) -> int:
        """The oldest weights that the open prompt of this rank may be sampled with and still be young when its turn
        comes."""
        return max(0, self.state.version + rank // self._config.prompts_per_step - self._config.staleness_max)

    @property
    def version_min(self) -> int:
        """Older tokens are not trained on any more."""
        return max(0, self.state.version - self._config.staleness_max)

    def renew(self, worker: str, running: Sequence[Key], now: float) -> list[Key]:
        """A worker says all that it is at: what of it is not wanted any more."""
        wanted = [key for key in running if self.is_wanted(key)]
        self.leases.renew(worker, wanted, now)
        return [key for key in running if key not in wanted]

    def is_wanted(self, key: Key) -> bool:
        prompt, member = key
        return not self.is_closed(prompt) and member not in self.answers.get(prompt, {})

    # Leases

    def give(self, worker: str, version: int, num_answers: int, now: float) -> tuple[list[Key], str]:
        """At most so many answers for a worker that holds this version, now under lease; and why no more."""
        found: list[Key] = []
        prompts = self.open_prompts()
        is_too_old = False
        for rank, prompt in enumerate(prompts):
            if version < self.version_needed(rank):
                is_too_old = True
                break
            found += [key for key in self._missing(prompt) if self.leases.is_free(key)]
            if len(found) >= num_answers:
                break
        found = found[:num_answers]
        reason = (
            f"version {version} is too old for what is next" if is_too_old else "all that is wanted is being sampled"
        )
        if not found and num_answers and not is_too_old:
            missing = [key for prompt in prompts for key in self._missing(prompt)]
            found = [key for key in missing if self.leases.is_late(key, worker, now)][:num_answers]
        for key in found:
            self.leases.begin(worker, key, now)
            self._begun_at.setdefault(key[0], now)
        return found, "" if len(found) == num_answers else reason

    def num_free(self) -> int:
        """Answers that are wanted and that nobody is at."""
        return sum(self.leases.is_free(key) for prompt in self.open_prompts() for key in self._missing(prompt))

    def _missing(self, prompt: int) -> list[Key]:
        here = self.answers.get(prompt, {})
        return [(prompt, member) for member in range(self._config.answers_per_prompt) if member not in here]

    # Answers

    def is_stale(self, rollout: Rollout) -> bool:
        return rollout.version_min < self.version_min

    def arrived(self, answer: Answer, now: float) -> None:
        """A new answer that is young enough: its leases are over."""
        self.leases.end(answer.rollout.key, answer.worker, now)
        self.keep(answer)

    def keep(self, answer: Answer) -> None:
        """Have an answer, in place of any other for the same member."""
        self.answers.setdefault(answer.rollout.prompt, {})[answer.rollout.member] = answer

    def sweep(self) -> list[Key]:
        """Drop the answers that have become too old; they are wanted again."""
        stale = [
            answer.rollout.key
            for prompt in sorted(self.answers)
            for _, answer in sorted(self.answers[prompt].items())
            if self.is_stale(answer.rollout)
        ]
        self.state.num_stale += len(stale)
        self._drop(stale)
        return stale

    def drop_of(self, worker: str) -> list[Key]:
        """Drop what a banned worker sampled and nobody has trained on."""
        keys = [
            (prompt, member)
            for prompt in sorted(self.answers)
            for member, answer in sorted(self.answers[prompt].items())
            if answer.worker == worker
        ]
        self._drop(keys)
        return keys

    def _drop(self, keys: Sequence[Key]) -> None:
        for prompt, member in keys:
            del self.answers[prompt][member]
            if not self.answers[prompt]:
                del self.answers[prompt]

    def failed(self, prompt: int) -> bool:
        """One more node could not sample a prompt; whether that is one too many."""
        self.state.failures[prompt] = self.state.failures.get(prompt, 0) + 1
        return self.state.failures[prompt] >= self._config.failures_max

    # Batches

    def batch(self, now: float) -> list[int] | None:
        """Prompts to train on next, in order of their numbers, oldest weights first chosen; None: too few are here."""
        self.sweep()
        ready = [prompt for prompt in self.open_prompts() if self._is_ready(prompt, now)]
        if len(ready) < self._config.prompts_per_step or self.is_over:
            return None
        oldest_first = sorted(ready, key=lambda prompt: (self._version_min_of(prompt), prompt))
        return sorted(oldest_first[: self._config.prompts_per_step])

    def _is_ready(self, prompt: int, now: float) -> bool:
        num_here = len(self.answers.get(prompt, {}))
        if num_here == self._config.answers_per_prompt:
            return True
        is_enough = 0 < self._config.answers_per_prompt_min <= num_here
        return is_enough and now - self._begun_at.get(prompt, now) >= self._config.group_seconds_max

    def _version_min_of(self, prompt: int) -> int:
        return min(answer.rollout.version_min for answer in self.answers[prompt].values())

    def group(self, prompt: int) -> tuple[Answer, ...]:
        """What is here of a prompt, by member."""
        return tuple(answer for _, answer in sorted(self.answers.get(prompt, {}).items()))

    def stepped(self, prompts: Sequence[int], version: int) -> None:
        """A step was made from these groups: they are closed, and the version is this."""
        assert version == self.state.version + 1, f"step {version} after {self.state.version}"
        for prompt in prompts:
            for answer in self.group(prompt):
                lag = self.state.version - answer.rollout.version_min
                self.state.staleness[lag] = self.state.staleness.get(lag, 0) + 1
                self.state.num_trained += 1
            self.close(prompt)
        self.state.version = version

    def give_up(self, prompt: int) -> None:
        """A prompt that nobody can sample or judge is closed without having been trained on."""
        self.state.given_up.append(prompt)
        self.close(prompt)

    def close(self, prompt: int) -> None:
        """Nobody is to be asked for it again."""
        self._closed.add(prompt)
        self.answers.pop(prompt, None)
        self.state.failures.pop(prompt, None)
        self._begun_at.pop(prompt, None)
        for member in range(self._config.answers_per_prompt):
            self.leases.forget((prompt, member))
        while self.state.first_open in self._closed:
            self._closed.remove(self.state.first_open)
            self.state.first_open += 1
