"""The tasks of the alignment benchmarks, each by a small pretrained model: two-digit sums, and a game of several turns.

Every method is given the same model, the same problems in the same order, and the same optimizer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from bench import alignment_lake
from farflung.apps.align import addition
from farflung.apps.align.environment_config import EnvironmentConfig
from farflung.apps.align.environments import open_environment
from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, named_parameters
from farflung.model.generator import ModelGenerator
from farflung.runtime.home import default_home
from farflung.systems.alignment.colocated import evaluate, install
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.environment import GameEnvironment, QuestionEnvironment
from farflung.systems.alignment.learner import PolicyLearner
from farflung.systems.alignment.learning_config import LearnerConfig, published
from farflung.systems.alignment.policy import SamplingPolicy

OPTIMIZER = OptimizerConfig(learning_rate=5e-4, beta1=0.9, beta2=0.95, weight_decay=0.0, clip_norm=1.0)
PROMPTS_PER_STEP = 16
ANSWERS_PER_PROMPT = 8
ROWS_AT_ONCE = 64
EVALUATION_PROMPTS = 512
EVALUATION_SEED = 1_000_003
"""Its order of problems and its draws are of no run."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be learned, and where the model that begins comes from."""

    environment: EnvironmentConfig
    answer_tokens: int
    """At most, of one answer."""
    model: Callable[[Path], Path]
    """Of the folder for models: that of the pretrained one, made unless it is there."""


SUBJECTS: Mapping[str, Subject] = {
    "sums": Subject(EnvironmentConfig(), addition.ANSWER_TOKENS, addition.addition_model),
    "lake": Subject(alignment_lake.ENVIRONMENT, alignment_lake.ANSWER_TOKENS, alignment_lake.lake_model),
}


def model_folder(subject: str) -> Path:
    """Of the pretrained model; trains it unless it is there already."""
    return SUBJECTS[subject].model(default_home() / "models")


@dataclass(frozen=True)
class Task:
    """Policies and learners of one seed, all of the same pretrained model in `folder`."""

    folder: Path
    seed: int
    subject: str = "sums"
    loss: str = "dppo"

    @property
    def answer_tokens(self) -> int:
        """At most, of one answer."""
        return SUBJECTS[self.subject].answer_tokens

    @functools.cached_property
    def environment(self) -> QuestionEnvironment | GameEnvironment:
        """The problems of this seed, in its order."""
        return self._opened(self.seed)

    def _opened(self, seed: int) -> QuestionEnvironment | GameEnvironment:
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        return open_environment(SUBJECTS[self.subject].environment, tokenizer, seed=seed)

    def model(self) -> PreTrainedModel:
        """Its own copy."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def policy(self, rows_at_once: int = ROWS_AT_ONCE) -> SamplingPolicy:
        """Of a rollout node, or of who samples and trains in one place."""
        return self._policy(self.environment, rows_at_once)

    def _policy(self, environment: QuestionEnvironment | GameEnvironment, rows_at_once: int) -> SamplingPolicy:
        model = self.model()
        return SamplingPolicy(
            ModelGenerator(model),
            functools.partial(assign_, named_parameters(model)),
            stop_tokens=[int(model.generation_config.eos_token_id)],
            environment=environment if isinstance(environment, GameEnvironment) else None,
            rows_at_once=rows_at_once,
        )

    def learner(self) -> PolicyLearner:
        """Of the trainer."""
        config = LearnerConfig(loss=published(self.loss, length_tokens=self.answer_tokens), optimizer=OPTIMIZER)
        return PolicyLearner(self.model(), config, group_size=ANSWERS_PER_PROMPT)

    def judge(self) -> Callable[[Tensors, int], float]:
        """Of weights and their version: the share of sampled answers that pass, one to each of many problems."""
        config = AlignmentConfig(
            num_steps=1, answers_per_prompt=1, num_tokens_max=self.answer_tokens, seed=EVALUATION_SEED
        )
        environment = self._opened(EVALUATION_SEED)
        policy = self._policy(environment, EVALUATION_PROMPTS)

        def share(weights: Tensors, version: int) -> float:
            install(policy, version, weights)
            return evaluate(policy, environment, range(EVALUATION_PROMPTS), config, version=version).passed_share

        return share
