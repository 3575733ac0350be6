"""Sampling and training in one place, one after the other: what rollouts elsewhere are compared with.

Prompts, members and seeds are numbered as in a run with rollout nodes, so a Sequential run must give the same tokens
and the same weights, to the bit, where arithmetic does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from farflung.learn.parameters import Tensors, fingerprint
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.protocols import Environment, Learner, Policy
from farflung.systems.alignment.rollouts import Failure, Group, Rollout, Task

TOKENS_PER_TURN = 1 << 20
"""Nobody waits for anything else here: answers are sampled to their ends."""


def sample(policy: Policy, environment: Environment, prompts: Sequence[int], config: AlignmentConfig) -> list[Group]:
    """Groups of answers to these prompts with the weights that the policy holds, judged.

    Raises:
        ValueError: a prompt cannot be sampled.
    """
    members = tuple(range(config.answers_per_prompt))
    for number in prompts:
        tokens = environment.prompt(number)
        policy.begin(Task(number, members, tokens, config.seed, config.num_tokens_max))
    answers: dict[int, list[Rollout]] = {number: [] for number in prompts}
    while finished := policy.advance(TOKENS_PER_TURN):
        for each in finished:
            if isinstance(each, Failure):
                raise ValueError(each.reason)
            answers[each.prompt].append(each)
    return [
        Group(number, tuple(found), tuple(environment.reward(rollout) for rollout in found))
        for number, found in answers.items()
    ]


def install(policy: Policy, version: int, tensors: Tensors) -> None:
    """Give a policy the weights of a version."""
    policy.install(version, fingerprint(tensors), tensors)


@dataclass(frozen=True, slots=True)
class Step:
    """What one step of a co-located run came to."""

    number: int
    groups: Sequence[Group]
    metrics: Mapping[str, float]


def train_colocated(
    policy: Policy,
    learner: Learner,
    environment: Environment,
    config: AlignmentConfig,
    *,
    first_step: int = 0,
    told: Callable[[Step], object] = lambda step: None,
) -> None:
    """Make the steps of a run from `first_step` on, telling each."""
    for number in range(first_step, config.num_steps):
        install(policy, number, learner.snapshot())
        prompts = range(number * config.prompts_per_step, (number + 1) * config.prompts_per_step)
        groups = sample(policy, environment, prompts, config)
        told(Step(number, groups, learner.step(groups)))


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good the policy of one version is."""

    version: int
    num_answers: int
    reward: float
    """Mean."""
    passed_share: float
    """Share of the answers that reach `passing_reward`."""


def evaluate(
    policy: Policy,
    environment: Environment,
    prompts: Sequence[int],
    config: AlignmentConfig,
    *,
    version: int,
    passing_reward: float = 1.0,
) -> Evaluation:
    """Sample answers to prompts of their own and judge them, all with the weights of `version`.

    Raises:
        ValueError: the policy holds other weights, or took others in between.
    """
    groups = sample(policy, environment, prompts, config)
    for group in groups:
        for rollout in group.rollouts:
            if set(rollout.versions) != {version}:
                raise ValueError(
                    f"version {version} was to be evaluated, and prompt {group.prompt} was answered by version(s) "
                    f"{sorted(set(rollout.versions))}: install {version} and let nobody change it meanwhile"
                )
    rewards = [reward for group in groups for reward in group.rewards]
    num_passed = sum(reward >= passing_reward for reward in rewards)
    return Evaluation(version, len(rewards), sum(rewards) / len(rewards), num_passed / len(rewards))
