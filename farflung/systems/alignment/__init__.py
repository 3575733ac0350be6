"""Reinforcement learning with the rollouts and the trainer apart (ECHO): exact weights, bounded staleness."""

from farflung.systems.alignment.auditor import ReplayAuditor, Tolerance
from farflung.systems.alignment.colocated import evaluate, train_colocated
from farflung.systems.alignment.config import AlignmentConfig, PublishConfig, WeightsConfig
from farflung.systems.alignment.environment import EnvironmentFailed, GameEnvironment, QuestionEnvironment
from farflung.systems.alignment.learner import LearnerConfig, PolicyLearner
from farflung.systems.alignment.losses import LossConfig, published
from farflung.systems.alignment.messages import HUB_ACTOR, SEEDER_ACTOR, WORKER_ACTOR
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.alignment.protocols import Auditor, Environment, Learner, Policy
from farflung.systems.alignment.rollouts import Failure, Group, Rollout, Task, fault_of
from farflung.systems.alignment.trainer import NoBatch, StepReport, Trainer
from farflung.systems.alignment.worker import Worker

__all__ = [
    "HUB_ACTOR",
    "SEEDER_ACTOR",
    "WORKER_ACTOR",
    "AlignmentConfig",
    "Auditor",
    "Environment",
    "EnvironmentFailed",
    "Failure",
    "GameEnvironment",
    "Group",
    "Learner",
    "LearnerConfig",
    "LossConfig",
    "NoBatch",
    "Policy",
    "PolicyLearner",
    "PublishConfig",
    "QuestionEnvironment",
    "ReplayAuditor",
    "Rollout",
    "SamplingPolicy",
    "StepReport",
    "Task",
    "Tolerance",
    "Trainer",
    "WeightsConfig",
    "Worker",
    "evaluate",
    "fault_of",
    "published",
    "train_colocated",
]
