"""Reinforcement learning with the rollouts and the trainer apart (ECHO): exact weights, bounded staleness."""

from farflung.systems.alignment.config import AlignmentConfig, PublishConfig, WeightsConfig
from farflung.systems.alignment.messages import HUB_ACTOR, SEEDER_ACTOR, WORKER_ACTOR
from farflung.systems.alignment.protocols import Auditor, Environment, Learner, Policy
from farflung.systems.alignment.rollouts import Failure, Group, Rollout, Task, fault_of

__all__ = [
    "HUB_ACTOR",
    "SEEDER_ACTOR",
    "WORKER_ACTOR",
    "AlignmentConfig",
    "Auditor",
    "Environment",
    "Failure",
    "Group",
    "Learner",
    "Policy",
    "PublishConfig",
    "Rollout",
    "Task",
    "WeightsConfig",
    "fault_of",
]
