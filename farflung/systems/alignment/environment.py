"""Problems and what answers to them are worth: plain functions of a number, so that a run's place in them is a number.

Two kinds: one answer to one prompt (`QuestionEnvironment`), and conversations (`GameEnvironment`), where the other side
speaks after each turn. Both are played again from the answer's tokens on the trusted side; what a rollout node says
about worth is never asked. Text is made tokens once: what the policy drew stays the tokens that it drew.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from farflung.learn.permutation import Permutation
from farflung.systems.alignment.rollouts import Rollout

Problem = Mapping[str, Any]
"""Whatever a reward function needs, and "prompt": the text that the policy sees."""
RewardFunction = Callable[[str, Problem], float]
"""reward(answer, problem)."""
PROMPTS_KEPT = 4096
"""Each is looked at once for every answer to it."""

SAID = "(said)"
"""Stands for the policy's turn where a chat template is asked what follows one."""


class EnvironmentFailed(ValueError):
    """A user's function raised, or gave what is no reward: named, with the problem that it failed on."""


def call_named(what: str, number: int, function: Callable[[], Any]) -> Any:
    """What the user's `function` returns.

    Raises:
        EnvironmentFailed: whatever it raised, with its name and the problem's number.
    """
    try:
        return function()
    except EnvironmentFailed:
        raise
    except Exception as error:
        raise EnvironmentFailed(f"{what} raised {type(error).__name__} on prompt {number}: {error}") from error


def checked_reward(what: str, number: int, value: Any) -> float:
    """A reward that is a finite number.

    Raises:
        EnvironmentFailed: it is not.
    """
    try:
        reward = float(value)
    except (TypeError, ValueError) as error:
        raise EnvironmentFailed(f"{what} gave {value!r} on prompt {number}, which is no number") from error
    if not math.isfinite(reward):
        raise EnvironmentFailed(f"{what} gave {reward} on prompt {number}: rewards must be finite")
    return reward


class Wording:
    """From texts to tokens and back, with the chat template of a tokenizer that has one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system: str = "") -> None:
        self._tokenizer: Any = tokenizer
        self._is_chat = bool(getattr(tokenizer, "chat_template", None))
        self._opening = [{"role": "system", "content": system}] if system else []
        if system and not self._is_chat:
            raise ValueError("a system prompt needs a tokenizer with a chat template: put its text into the prompts")

    def prompt(self, text: str) -> tuple[int, ...]:
        """What the policy sees first."""
        if not self._is_chat:
            return tuple(self._tokenizer.encode(text))
        return self._tokens(self._shown([*self._opening, {"role": "user", "content": text}]))

    def reply(self, text: str) -> tuple[int, ...]:
        """What is added to a conversation after the policy's turn, up to where the policy goes on."""
        if not self._is_chat:
            return self._tokens(text)
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": SAID}]
        shown = self._shown([*turns, {"role": "user", "content": text}])
        # The policy has drawn what ends its turn itself, so only what the template adds behind that is new.
        _, _, rest = shown.partition(SAID)
        return self._tokens(rest.removeprefix(self._tokenizer.eos_token or ""))

    def text(self, tokens: Sequence[int]) -> str:
        """What the policy said, without special tokens."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _shown(self, messages: list[dict[str, str]]) -> str:
        return self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))


@dataclass(frozen=True)
class Problems:
    """Numbered problems in an order of a run's own; after the last one they come again in another order."""

    get: Callable[[int], Problem]
    num_problems: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_problems < 1:
            raise ValueError("an environment needs at least one problem")

    def index(self, number: int) -> int:
        """Of the problem that the run's prompt `number` shows."""
        return _index(number, self.num_problems, self.seed)

    def __call__(self, number: int) -> Problem:
        return call_named("the environment's problems", number, lambda: self.get(self.index(number)))


@functools.lru_cache(PROMPTS_KEPT)
def _index(number: int, num_problems: int, seed: int) -> int:
    epoch, place = divmod(number, num_problems)
    key = hashlib.blake2b(f"{seed}:{epoch}:problems".encode(), digest_size=32).digest()
    return Permutation(num_problems, key)(place)


class QuestionEnvironment:
    """An `Environment` of one prompt and one answer, judged by a function."""

    def __init__(self, name: str, problems: Problems, reward: RewardFunction, wording: Wording) -> None:
        """`name` is what the reward function is called by in messages."""
        self._name = name
        self._problems = problems
        self._reward = reward
        self._wording = wording
        self._prompt = functools.lru_cache(PROMPTS_KEPT)(self._tokens_of)

    def prompt(self, number: int) -> tuple[int, ...]:
        """Tokens of a problem's prompt."""
        return self._prompt(number)

    def _tokens_of(self, number: int) -> tuple[int, ...]:
        problem = self._problems(number)
        if "prompt" not in problem:
            raise EnvironmentFailed(f'problem {number} has no "prompt" but only {", ".join(problem)}')
        return self._wording.prompt(str(problem["prompt"]))

    def reward(self, rollout: Rollout) -> float:
        """What the function says of the answer's text."""
        answer = self._wording.text(rollout.answer_tokens)
        problem = self._problems(rollout.prompt)
        value = call_named(self._name, rollout.prompt, lambda: self._reward(answer, problem))
        return checked_reward(self._name, rollout.prompt, value)

    def fault(self, rollout: Rollout) -> str | None:
        """Nobody else speaks in an answer."""
        return "the environment says nothing in answers, and here it does" if rollout.observed else None


@dataclass(frozen=True, slots=True)
class Turn:
    """What became of something the policy did."""

    reply: str
    reward: float
    is_over: bool


class Game(Protocol):
    """One conversation, played from its beginning."""

    @property
    def opening(self) -> str:
        """What the policy sees first."""
        ...

    def act(self, said: str) -> Turn:
        """Let the policy act."""
        ...


class GameEnvironment:
    """An `Environment` of several turns; the worth of an answer is the sum over its turns.

    Nothing is kept between turns: a game is begun again and played up to where it is, so it may stop on one machine and
    go on elsewhere. Games must be the same each time they are begun with the same number.
    """

    def __init__(self, name: str, begin: Callable[[int], Game], wording: Wording, *, num_turns_max: int) -> None:
        if num_turns_max < 1:
            raise ValueError(f"a game needs at least 1 turn, not {num_turns_max}")
        self._name = name
        self._begin = begin
        self._wording = wording
        self._num_turns_max = num_turns_max
        self._prompt = functools.lru_cache(PROMPTS_KEPT)(self._tokens_of)

    def prompt(self, number: int) -> tuple[int, ...]:
        """Tokens of a game's opening."""
        return self._prompt(number)

    def _tokens_of(self, number: int) -> tuple[int, ...]:
        return self._wording.prompt(self._new(number).opening)

    def reply(self, number: int, answer_tokens: Sequence[int], observed: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """What the game says to the policy's newest turn; nothing: it is over."""
        turns = self._play(number, turns_of(answer_tokens, observed))
        if turns[-1].is_over or len(turns) >= self._num_turns_max:
            return ()
        return self._wording.reply(turns[-1].reply)

    def reward(self, rollout: Rollout) -> float:
        """The sum of what its turns were worth, played again here."""
        said = turns_of(rollout.answer_tokens, rollout.observed)
        value = math.fsum(turn.reward for turn in self._play(rollout.prompt, said))
        return checked_reward(self._name, rollout.prompt, value)

    def fault(self, rollout: Rollout) -> str | None:
        """Whether the answer puts words into the game's mouth."""
        for number, (first, last) in enumerate(rollout.observed):
            told = self.reply(rollout.prompt, rollout.answer_tokens[:first], rollout.observed[:number])
            if told != rollout.answer_tokens[first:last]:
                return f"what the environment is to have said in turn {number + 1} is not what it says"
        return None

    def _new(self, number: int) -> Game:
        return call_named(self._name, number, lambda: self._begin(number))

    def _play(self, number: int, said: Sequence[Sequence[int]]) -> list[Turn]:
        """Play up to the end of the turns, or of the game."""
        game = self._new(number)
        turns: list[Turn] = []
        for tokens in said:
            text = self._wording.text(tokens)
            turns.append(call_named(self._name, number, lambda text=text: game.act(text)))
            if turns[-1].is_over:
                break
        return turns


def turns_of(answer_tokens: Sequence[int], observed: Sequence[tuple[int, int]]) -> list[Sequence[int]]:
    """What the policy said in each of its turns."""
    starts = [0, *(last for _, last in observed)]
    ends = [*(first for first, _ in observed), len(answer_tokens)]
    return [answer_tokens[start:end] for start, end in zip(starts, ends, strict=True) if end > start]
