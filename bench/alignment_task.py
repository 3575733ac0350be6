"""The task of the alignment benchmarks: two-digit sums by a small pretrained model, the same for every method."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from farflung.apps.align.addition import ANSWER_TOKENS, END_TOKEN
from farflung.apps.align.environments import EnvironmentConfig, open_environment
from farflung.learn.optimizer import OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, named_parameters
from farflung.model.generator import ModelGenerator
from farflung.systems.alignment.colocated import evaluate, install
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.environment import GameEnvironment, QuestionEnvironment
from farflung.systems.alignment.learner import LearnerConfig, PolicyLearner
from farflung.systems.alignment.losses import published
from farflung.systems.alignment.policy import SamplingPolicy

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, beta1=0.9, beta2=0.95, weight_decay=0.0, clip_norm=1.0)
PROMPTS_PER_STEP = 16
ANSWERS_PER_PROMPT = 8
ROWS_AT_ONCE = 64
EVALUATION_PROMPTS = 512
EVALUATION_SEED = 1_000_003
"""Its order of problems and its draws are of no run."""


@dataclass(frozen=True)
class SumsTask:
    """Policies and learners of one seed, all of the same pretrained model in `folder`."""

    folder: Path
    seed: int
    loss: str = "dppo"

    @functools.cached_property
    def environment(self) -> QuestionEnvironment | GameEnvironment:
        """The sums of this seed, in its order."""
        return open_environment(EnvironmentConfig(), AutoTokenizer.from_pretrained(self.folder), seed=self.seed)

    def model(self) -> PreTrainedModel:
        """Its own copy."""
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def policy(self, rows_at_once: int = ROWS_AT_ONCE) -> SamplingPolicy:
        """Of a rollout node, or of who samples and trains in one place."""
        model = self.model()
        assign = functools.partial(assign_, named_parameters(model))
        return SamplingPolicy(ModelGenerator(model), assign, stop_tokens=[END_TOKEN], rows_at_once=rows_at_once)

    def learner(self) -> PolicyLearner:
        """Of the trainer."""
        config = LearnerConfig(loss=published(self.loss, length_tokens=ANSWER_TOKENS), optimizer=OPTIMIZER)
        return PolicyLearner(self.model(), config, group_size=ANSWERS_PER_PROMPT)

    def accuracy(self, policy: SamplingPolicy, weights: Tensors, version: int) -> float:
        """Share of sampled answers that are right, one to each of many problems."""
        config = AlignmentConfig(num_steps=1, answers_per_prompt=1, num_tokens_max=ANSWER_TOKENS, seed=EVALUATION_SEED)
        tokenizer = AutoTokenizer.from_pretrained(self.folder)
        environment = open_environment(EnvironmentConfig(), tokenizer, seed=EVALUATION_SEED)
        install(policy, version, weights)
        return evaluate(policy, environment, range(EVALUATION_PROMPTS), config, version=version).passed_share
