"""A small policy that samples and learns sums, without any pretraining: for tests of what happens, not of how well."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from farflung.apps.align.addition import END_TOKEN, VOCABULARY, addition_tokenizer
from farflung.apps.align.environment_config import EnvironmentConfig
from farflung.apps.align.environments import open_environment
from farflung.learn.optimizer_config import OptimizerConfig
from farflung.learn.parameters import Tensors, assign_, copies, named_parameters
from farflung.model.generator import ModelGenerator
from farflung.systems.alignment.colocated import install, sample
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.learner import PolicyLearner
from farflung.systems.alignment.learning_config import LearnerConfig, LossConfig
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.alignment.rollouts import Group

ANSWER_TOKENS = 4
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, beta1=0.9, beta2=0.95, weight_decay=0.0)


def small_model(seed: int = 0, *, initializer_range: float = 0.3) -> GPT2LMHeadModel:
    """Random weights, with opinions strong enough that another model's differ."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(VOCABULARY),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=40,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=initializer_range,
        bos_token_id=None,
        eos_token_id=END_TOKEN,
    )
    return GPT2LMHeadModel(config).eval()


def sampling_policy(model: Any, **settings: Any) -> SamplingPolicy:
    """A policy of this model, which `install` changes."""
    generator = ModelGenerator(model)
    return SamplingPolicy(
        generator, functools.partial(assign_, named_parameters(model)), stop_tokens=[END_TOKEN], **settings
    )


@dataclass
class Place:
    """Everything of a co-located run with a small model."""

    config: AlignmentConfig
    policy: SamplingPolicy
    learner: PolicyLearner

    @classmethod
    def make(
        cls,
        *,
        prepare: Callable[[Any], Any] = lambda model: model,
        loss: LossConfig | None = None,
        num_steps: int = 4,
        rows_at_once: int = 1,
    ) -> "Place":
        """A sampler and a learner that begin alike; `prepare` may wrap their models."""
        config = AlignmentConfig(
            num_steps=num_steps,
            prompts_per_step=3,
            answers_per_prompt=4,
            num_tokens_max=ANSWER_TOKENS,
            staleness_max=0,
            seed=5,
        )
        settings = LearnerConfig(loss=loss or LossConfig(), optimizer=OPTIMIZER)
        learner = PolicyLearner(prepare(small_model()), settings, group_size=4)
        policy = sampling_policy(prepare(small_model()), rows_at_once=rows_at_once)
        return cls(config, policy, learner)

    @functools.cached_property
    def environment(self) -> Any:
        """Worth is the share of even digits, so that groups differ in it also without any skill."""
        return Evens(open_environment(EnvironmentConfig(), addition_tokenizer(), seed=self.config.seed))

    def groups(self, *, version: int = 0, weights: Tensors | None = None, first_prompt: int = 0) -> list[Group]:
        """A step's groups, sampled with these weights (the learner's, by default)."""
        install(self.policy, version, copies(weights) if weights is not None else self.learner.snapshot())
        prompts = range(first_prompt, first_prompt + self.config.prompts_per_step)
        return sample(self.policy, self.environment, prompts, self.config)


@dataclass
class Evens:
    """Prompts of another environment, and another worth."""

    inner: Any

    def prompt(self, number: int) -> tuple[int, ...]:
        """As the other's."""
        return self.inner.prompt(number)

    def reward(self, rollout: Any) -> float:
        """The share of even digits."""
        return sum(token in (0, 2, 4, 6, 8) for token in rollout.answer_tokens) / ANSWER_TOKENS

    def fault(self, rollout: Any) -> str | None:
        """As the other's."""
        return self.inner.fault(rollout)
