"""Environments by name, real libraries included: the same prompts everywhere, and answers judged by us alone."""

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from farflung.apps.align.addition import addition_tokenizer
from farflung.apps.align.environment_config import EnvironmentConfig
from farflung.apps.align.environments import named_function, open_environment
from farflung.learn.tokenizer import byte_tokenizer
from farflung.systems.alignment.environment import EnvironmentFailed, turns_of
from farflung.systems.alignment.rollouts import Rollout, Task
from tests.policies import sampling_policy, small_model

USERS_FILE = '''
    """A user's own environment."""
    import gymnasium

    def problem(number):
        return {"prompt": f"{number % 10}+1=", "answer": str(number % 10 + 1)}

    def reward(answer, problem):
        return float(answer == problem["answer"])

    def raises(answer, problem):
        return 1 / 0

    def gives_nothing(answer, problem):
        return None

    class Countdown(gymnasium.Env):
        """Say the number that is shown, until it is 0."""
        action_space = gymnasium.spaces.Discrete(10)
        observation_space = gymnasium.spaces.Discrete(10)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            self.left = int(self.np_random.integers(1, 4))
            return self.left, {}

        def step(self, action):
            reward = float(action == self.left)
            self.left -= 1
            return self.left, reward, self.left == 0, False, {}

    class Rubric:
        parser = None

        def __init__(self):
            self.funcs, self.weights = [right, short], [1.0, 0.5]

    async def right(completion, answer):
        return float(completion[-1]["content"] == answer)

    def short(completion, **everything):
        return float(len(completion[-1]["content"]) < 3)

    class Loaded:
        rubric = Rubric()

        def __init__(self, size):
            message = {"role": "user", "content": "2+2="}
            self.dataset = [{"prompt": [message], "answer": "4"}] * size

    def load_environment(size):
        return Loaded(size)
'''


@pytest.fixture
def users_file(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(USERS_FILE))
    return str(path)


def rollout(prompt: int, prompt_tokens: tuple[int, ...], answer: tuple[int, ...], **more: Any) -> Rollout:
    settings: dict[str, Any] = {"member": 0, "versions": (0,) * len(answer), "weights_hash": b"", "seed": 0}
    settings |= {"log_probabilities": (0.0,) * len(answer), "finish_reason": "stop", **more}
    return Rollout(prompt=prompt, prompt_tokens=prompt_tokens, answer_tokens=answer, **settings)


def said(environment: Any, number: int, text: str, tokenizer: Any) -> float:
    """What an environment thinks of an answer in words."""
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False))
    return environment.reward(rollout(number, environment.prompt(number), tokens))


def test_sums_come_in_an_order_of_the_runs_own_and_all_of_them_come() -> None:
    tokenizer: Any = addition_tokenizer()
    first, other = (open_environment(EnvironmentConfig(), tokenizer, seed=seed) for seed in (0, 1))
    prompts = [first.prompt(number) for number in range(50)]
    assert prompts == [first.prompt(number) for number in range(50)] != [other.prompt(number) for number in range(50)]
    text = tokenizer.decode(prompts[0])
    total = sum(int(part) for part in text.removesuffix("=").split("+"))
    assert said(first, 0, f"{total:03}"[::-1] + "<end>", tokenizer) == 1
    assert said(first, 0, f"{total + 1:03}"[::-1], tokenizer) == 0
    assert first.fault(rollout(0, prompts[0], (1, 2), observed=((0, 1),))) is not None


def test_a_users_functions_of_a_file_and_problems_of_json_lines(users_file: str, tmp_path: Path) -> None:
    tokenizer: Any = byte_tokenizer()
    config = EnvironmentConfig(kind="function", problems=f"{users_file}:problem", reward=f"{users_file}:reward")
    environment = open_environment(config, tokenizer, seed=0)
    number = int(tokenizer.decode(environment.prompt(3))[0])
    assert said(environment, 3, str(number + 1), tokenizer) == 1
    lines = tmp_path / "problems.jsonl"
    lines.write_text("\n".join(json.dumps({"prompt": text, "answer": text}) for text in ("a", "b", "c")))
    of_lines = EnvironmentConfig(kind="function", problems=str(lines), reward=f"{users_file}:reward")
    environment = open_environment(of_lines, tokenizer, seed=0)
    epochs = [
        {tokenizer.decode(environment.prompt(3 * epoch + place)).strip() for place in range(3)} for epoch in range(3)
    ]
    assert epochs == [{"a", "b", "c"}] * 3


def test_a_reward_that_raises_or_is_no_number_is_named(users_file: str) -> None:
    tokenizer: Any = byte_tokenizer()
    for function, word in (("raises", "raised ZeroDivisionError"), ("gives_nothing", "gave None")):
        config = EnvironmentConfig(kind="function", problems=f"{users_file}:problem", reward=f"{users_file}:{function}")
        with pytest.raises(EnvironmentFailed, match=rf"mine\.py:{function} {word} on prompt 4"):
            said(open_environment(config, tokenizer, seed=0), 4, "x", tokenizer)


@pytest.mark.parametrize("task", ["knights_knaves", "countdown", "basic_arithmetic"])
def test_tasks_of_reasoning_gym(task: str) -> None:
    tokenizer: Any = byte_tokenizer()
    environment = open_environment(EnvironmentConfig(kind="reasoning_gym", name=task, size=20), tokenizer, seed=0)
    entry = environment._problems(7)  # pyright: ignore[reportAttributeAccessIssue]
    assert entry["prompt"] in tokenizer.decode(environment.prompt(7))
    right = entry["answer"] if entry["answer"] is not None else entry["metadata"]["expression"]
    assert said(environment, 7, str(right), tokenizer) == 1
    assert said(environment, 7, "who knows", tokenizer) < 0.2


def test_a_game_is_played_by_policy_and_environment_and_judged_again_from_its_tokens(users_file: str) -> None:
    tokenizer: Any = addition_tokenizer()
    config = EnvironmentConfig(kind="gymnasium", name=f"{users_file}:Countdown", turns_max=3)
    environment = open_environment(config, tokenizer, seed=0)
    policy = sampling_policy(small_model(), environment=environment, rows_at_once=512)
    policy.install(0, b"", dict(small_model().named_parameters()))
    for number in range(6):
        policy.begin(Task(number, (0, 1, 2, 3), environment.prompt(number), 5, 30))
    played = [each for each in policy.advance(1 << 20) if isinstance(each, Rollout)]
    assert len(played) == 24 and max(len(each.observed) for each in played) == 2
    for each in played:
        assert environment.fault(each) is None
        turns = [
            tokenizer.decode(tokens, skip_special_tokens=True) for tokens in turns_of(each.answer_tokens, each.observed)
        ]
        shown = [tokenizer.decode(each.prompt_tokens)]
        shown += [tokenizer.decode(each.answer_tokens[first:last]) for first, last in each.observed]
        acted = [int(turn) if turn.isdecimal() and int(turn) < 10 else 0 for turn in turns]
        assert environment.reward(each) == sum(action == int(left) for action, left in zip(acted, shown, strict=True))
    talked = next(each for each in played if each.observed)
    first, last = talked.observed[0]
    lie = (*talked.answer_tokens[:first], 9, *talked.answer_tokens[last:])
    assert "turn 1" in (
        environment.fault(rollout(talked.prompt, talked.prompt_tokens, lie, observed=talked.observed)) or ""
    )


def test_an_environment_of_gymnasium_itself() -> None:
    tokenizer: Any = byte_tokenizer()
    config = EnvironmentConfig(kind="gymnasium", name="FrozenLake-v1", options={"is_slippery": False})
    environment = open_environment(config, tokenizer, seed=0)
    prompt = environment.prompt(0)
    assert tokenizer.decode(prompt).strip() == "0"
    tokens = tuple(tokenizer.encode("1", add_special_tokens=False))
    reply = environment.reply(0, tokens, ())  # pyright: ignore[reportAttributeAccessIssue]
    assert tokenizer.decode(reply).strip() == "4"  # one row down
    assert environment.reward(rollout(0, prompt, tokens)) == 0


def test_an_environment_in_verifiers_style_with_asynchronous_rewards_and_weights(users_file: str) -> None:
    tokenizer: Any = byte_tokenizer()
    config = EnvironmentConfig(kind="verifiers", name=f"{users_file}:load_environment", options={"size": 3})
    environment = open_environment(config, tokenizer, seed=0)
    assert tokenizer.decode(environment.prompt(2)).strip() == "2+2="
    assert [said(environment, 0, text, tokenizer) for text in ("4", "5", "four")] == [1.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"kind": "chess"}, "unknown kind of environment 'chess'"),
        ({"kind": "function"}, "needs problems and reward"),
        ({"kind": "function", "problems": "no/file.jsonl", "reward": "json:loads"}, "cannot be read as JSON lines"),
        ({"kind": "reasoning_gym", "name": "no_such_task"}, "makes no task 'no_such_task'"),
        ({"kind": "gymnasium", "name": "NoSuchGame-v9"}, "makes no environment 'NoSuchGame-v9'"),
        ({"kind": "verifiers", "name": "json:JSONDecoder"}, "no dataset and rubric"),
        ({"system": "Be brief."}, "chat template"),
    ],
)
def test_what_there_is_not_is_said_in_a_sentence(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        open_environment(EnvironmentConfig(**settings), addition_tokenizer(), seed=0)
    for name, what in (
        ("nothing", "names no function"),
        ("json:nothing", "no function 'nothing'"),
        ("a.py:b", "no file"),
    ):
        with pytest.raises(ValueError, match=what):
            named_function(name)
