"""Reinforcement learning with the rollouts and the trainer apart (ECHO): exact weights, bounded staleness."""
