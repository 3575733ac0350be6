"""A learner that is put to the test as it learns: prompts that are not trained on, answered by exactly one version."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from farflung.learn.checkpoint import Json
from farflung.learn.parameters import Tensors
from farflung.systems.alignment.colocated import evaluate, install
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.learner import PolicyLearner
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.alignment.protocols import Environment
from farflung.systems.alignment.rollouts import Group

if TYPE_CHECKING:
    from farflung.apps.align.group_learner import GroupLearner

EVALUATED_REWARD, EVALUATED_PASS_RATE, EVALUATED_VERSION = (
    "evaluated_reward",
    "evaluated_pass_rate",
    "evaluated_version",
)
"""What it adds to the metrics of a step; they stay those of the last evaluation until the next one."""


class EvaluatedLearner:
    """A `Learner` around another one; it samples beside it, on the same compute door."""

    def __init__(
        self,
        learner: "PolicyLearner | GroupLearner",
        policy: SamplingPolicy,
        environment: Environment,
        config: AlignmentConfig,
        prompts: Sequence[int],
        *,
        steps_per_evaluation: int,
        passing_reward: float,
    ) -> None:
        self._learner = learner
        self._policy = policy
        self._environment = environment
        self._config = config
        self._prompts = prompts
        self._steps_per_evaluation = steps_per_evaluation
        self._passing_reward = passing_reward
        self._found: dict[str, float] = {}

    @property
    def version(self) -> int:
        """Steps made."""
        return self._learner.version

    @property
    def alarms(self) -> list[str]:
        """Of the newest step."""
        return self._learner.alarms

    def step(self, groups: Sequence[Group]) -> Mapping[str, float]:
        """As the other's, and an evaluation of what came out if one is due."""
        metrics = self._learner.step(groups)
        version = self._learner.version
        if version % self._steps_per_evaluation == 0:
            self._evaluate(version, self._learner.snapshot())
        return {**metrics, **self._found}

    def snapshot(self) -> Tensors:
        """As the other's, as all that follows."""
        return self._learner.snapshot()

    def score(self, tokens: Sequence[int]) -> Sequence[float]:
        """See `Learner`."""
        return self._learner.score(tokens)

    def state(self) -> tuple[Tensors, dict[str, Json]]:
        """See `Learner`."""
        return self._learner.state()

    def restore(self, tensors: Tensors, state: Mapping[str, Json]) -> None:
        """See `Learner`."""
        self._learner.restore(tensors, state)

    def _evaluate(self, version: int, tensors: Tensors) -> None:
        install(self._policy, version, tensors)
        found = evaluate(
            self._policy,
            self._environment,
            self._prompts,
            self._config,
            version=version,
            passing_reward=self._passing_reward,
        )
        self._found = {
            EVALUATED_REWARD: found.reward,
            EVALUATED_PASS_RATE: found.passed_share,
            EVALUATED_VERSION: float(found.version),
        }
