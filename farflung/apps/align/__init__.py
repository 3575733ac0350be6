"""Reinforcement learning as a command: environments by name, models, processes."""
