"""Environments by name: a user's functions, reasoning-gym's tasks, Gymnasium's games, environments in verifiers' style.

Functions are named `package.module:function` or `path/to/file.py:function`. All of them run beside the trainer, games
also on rollout nodes, for there somebody has to answer; what they are worth is told by the trainer's copy alone.
"""

import asyncio
import functools
import importlib
import importlib.util
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from farflung.apps.align.addition import NUM_PROBLEMS, addition_problem, addition_reward
from farflung.apps.align.environment_config import EnvironmentConfig, Kind
from farflung.systems.alignment.environment import (
    GameEnvironment,
    Problem,
    Problems,
    QuestionEnvironment,
    Turn,
    Wording,
)

ENDLESS_PROBLEMS = 1_000_000
"""Problems of a generator that has no end: so many are numbered."""


def open_environment(
    config: EnvironmentConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> QuestionEnvironment | GameEnvironment:
    """The environment of a configuration; `seed` is the run's and decides the order of problems.

    Raises:
        ValueError: there is none of that kind or name, or its library is not installed.
    """
    wording = Wording(tokenizer, system=config.system)
    match config.kind:
        case "addition":
            problems = Problems(addition_problem, NUM_PROBLEMS, seed)
            return QuestionEnvironment("addition_reward", problems, addition_reward, wording)
        case "function":
            return _of_functions(config, wording, seed)
        case "reasoning_gym":
            return _of_reasoning_gym(config, wording, seed)
        case "gymnasium":
            return _of_gymnasium(config, wording, seed)
        case "verifiers":
            return _of_verifiers(config, wording, seed)
    raise ValueError(f"unknown kind of environment {config.kind!r}; there are {', '.join(get_args(Kind))}")


def named_function(name: str) -> Callable[..., Any]:
    """What `module:function` or `path/file.py:function` names.

    Raises:
        ValueError: there is no such module, file or function, or it cannot be loaded.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise ValueError(f"{name!r} names no function: write module:function or path/file.py:function")
    try:
        module = _module_of_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:
        raise ValueError(f"{place} cannot be loaded ({type(error).__name__}: {error})") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise ValueError(f"there is no function {attribute!r} in {place}")
    return function


def _module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"farflung_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _library(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"this environment needs {name}, which is not here: pip install 'farflung[{extra}]'"
        ) from error


def _of_functions(config: EnvironmentConfig, wording: Wording, seed: int) -> QuestionEnvironment:
    if not config.problems or not config.reward:
        raise ValueError("an environment of functions needs problems and reward")
    reward = named_function(config.reward)
    if ":" in config.problems and not Path(config.problems).is_file():
        problems = Problems(named_function(config.problems), ENDLESS_PROBLEMS, seed)
    else:
        rows = _read_lines(Path(config.problems))
        problems = Problems(rows.__getitem__, len(rows), seed)
    return QuestionEnvironment(config.reward, problems, reward, wording)


def _read_lines(path: Path) -> list[Problem]:
    """JSON lines, each an object with a "prompt"."""
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        rows: list[Any] = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON lines ({error})") from error
    wrong = next(
        (number for number, row in enumerate(rows, 1) if not (isinstance(row, dict) and "prompt" in row)), None
    )
    if wrong is not None or not rows:
        where = f"line {wrong} of {path} is" if wrong is not None else f"{path} has"
        raise ValueError(f'{where} no object with a "prompt": give one on each line')
    return rows


def _of_reasoning_gym(config: EnvironmentConfig, wording: Wording, seed: int) -> QuestionEnvironment:
    library = _library("reasoning_gym", "environments")
    try:
        data = library.create_dataset(config.name, size=config.size, seed=config.seed, **config.options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"reasoning-gym makes no task {config.name!r} with these options ({error})") from error

    def problem(index: int) -> Problem:
        entry = data[index]
        return {**entry, "prompt": entry["question"]}

    def reward(answer: str, problem: Problem) -> float:
        return data.score_answer(answer.strip(), dict(problem))

    return QuestionEnvironment(f"reasoning-gym's {config.name}", Problems(problem, config.size, seed), reward, wording)


@dataclass
class GymnasiumGame:
    """One episode of a Gymnasium environment, told in words."""

    environment: Any
    seed: int
    parse: Callable[[str], Any]
    show: Callable[[Any], str]

    def __post_init__(self) -> None:
        observation, _ = self.environment.reset(seed=self.seed)
        self.opening = self.show(observation)

    def act(self, said: str) -> Turn:
        """Take the action that was said."""
        observation, reward, is_ended, is_cut, _ = self.environment.step(self.parse(said))
        return Turn(self.show(observation), float(reward), bool(is_ended or is_cut))


def _of_gymnasium(config: EnvironmentConfig, wording: Wording, seed: int) -> GameEnvironment:
    library = _library("gymnasium", "environments")
    if ":" in config.name:
        make = functools.partial(named_function(config.name), **config.options)
    else:
        make = functools.partial(library.make, config.name, **config.options)
    try:
        environment = make()
    except library.error.Error as error:
        raise ValueError(f"Gymnasium makes no environment {config.name!r} ({error})") from error
    parse = named_function(config.parse) if config.parse else functools.partial(_discrete, environment)
    show = named_function(config.show) if config.show else str

    def begin(number: int) -> GymnasiumGame:
        return GymnasiumGame(environment, (config.seed << 32) + (seed << 16) + number, parse, show)

    return GameEnvironment(config.name, begin, wording, num_turns_max=config.turns_max)


def _discrete(environment: Any, said: str) -> int:
    """The action of that number; text that is none is taken as the first one."""
    number = said.strip()
    num_actions = int(environment.action_space.n)
    return int(number) if number.isdecimal() and int(number) < num_actions else 0


def _of_verifiers(config: EnvironmentConfig, wording: Wording, seed: int) -> QuestionEnvironment:
    """An object with `dataset` (rows with prompt or question, answer, info) and `rubric` (functions and weights)."""
    loaded = named_function(config.name)(**config.options)
    rows, rubric = getattr(loaded, "dataset", None), getattr(loaded, "rubric", None)
    if rows is None or rubric is None:
        raise ValueError(f"{config.name} returned {type(loaded).__name__}, which has no dataset and rubric")
    functions: Sequence[Callable[..., Any]] = _first(rubric, "funcs", "reward_funcs")
    weights: Sequence[float] = _first(rubric, "weights", "reward_weights") or [1.0] * len(functions)

    def problem(index: int) -> Problem:
        row = rows[index]
        said = row.get("prompt", row.get("question"))
        text = said if isinstance(said, str) else "\n".join(message["content"] for message in said)
        return {**row, "messages": said, "prompt": text}

    def reward(answer: str, problem: Problem) -> float:
        completion = [{"role": "assistant", "content": answer}]
        known = {**problem, "prompt": problem["messages"], "completion": completion, "state": {}, "task": config.name}
        known |= {"parser": getattr(rubric, "parser", None), "info": problem.get("info", {})}
        return sum(w * _asked(function, known) for function, w in zip(functions, weights, strict=True))

    return QuestionEnvironment(config.name, Problems(problem, len(rows), seed), reward, wording)


def _first(thing: Any, *names: str) -> Any:
    """The first of these attributes that there is; called if it is a method."""
    found = next((getattr(thing, name) for name in names if hasattr(thing, name)), [])
    return found() if callable(found) else found


def _asked(function: Callable[..., Any], known: Mapping[str, Any]) -> float:
    """A reward function is given what its signature asks for; it may be asynchronous."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    wanted = known if takes_all else {each.name: known[each.name] for each in parameters if each.name in known}
    value = function(**wanted)
    return asyncio.run(_awaited(value)) if inspect.isawaitable(value) else value


async def _awaited(value: Awaitable[float]) -> float:
    return await value
