"""How fast processes of this machine train a policy and sample from it: at the same time, or by turns, as in the run.

async         trainer ────────────    sequential    trainer ──────              colocated    one   ────── ──────
              workers ────────────                  workers       ──────
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from farflung.apps.align.materials import Materials
from farflung.apps.align.run_file import ALIGN
from farflung.apps.pilot.comparison import mean
from farflung.apps.pilot.side_by_side import measured
from farflung.systems.alignment.chain import Chain, Published
from farflung.systems.alignment.colocated import install, sample
from farflung.systems.alignment.config import AlignmentConfig
from farflung.systems.alignment.deltas import NOTHING, Version, pack_version, version_of
from farflung.systems.alignment.installing import renew
from farflung.systems.alignment.messages import Canary
from farflung.systems.alignment.pace import TOKENS_PER_SLICE
from farflung.systems.alignment.policy import SamplingPolicy
from farflung.systems.alignment.rollouts import Task

TURN_SECONDS_MAX = 120.0
"""Others wait for so long and not much longer."""
NUDGE = 1e-6
"""Of weights that are installed anew."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a trainer has found; seconds are means."""

    step_seconds: float
    pack_seconds: float
    """From a step's end to its version."""
    changed_shares: tuple[float, ...]
    """Of the weights, by each step from the first on."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a rollout worker has found; seconds are means."""

    num_rows: int
    """Answers that were decoded together."""
    first_seconds: float
    """Until all have their first token;"""
    answer_seconds: float
    """until all are whole."""
    install_seconds: float
    """Of a version whose chunks are here."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Of the processes of a run."""

    trained: Trained
    sampled: tuple[Sampled, ...]
    """By worker."""


def speeds_of(tables: dict[str, Any], seconds: float) -> Speeds:
    """Measure the seats of a run file for so long.

    Raises:
        ValueError: a mistake in the file, or a process that could not be measured.
    """
    run = ALIGN.read(tables)
    Materials.gather(run).check()
    if run.sync.mode == "colocated":
        ((trained, sampled),) = measured(_both, tables, 1, seconds, does="alignment")
        return Speeds(trained, (sampled,))
    trained, *sampled = measured(_seat, tables, 1 + run.num_workers, seconds, does="alignment")
    return Speeds(trained, tuple(sampled))


def _both(tables: dict[str, Any], number: int, ready: Callable[[], object], seconds: float) -> tuple[Trained, Sampled]:
    materials = _gathered(tables)
    return _train(materials, ready, seconds / 2), _sample(materials, ready, seconds / 2)


def _seat(tables: dict[str, Any], number: int, ready: Callable[[], object], seconds: float) -> Trained | Sampled:
    materials = _gathered(tables)
    if materials.run.sync.mode == "async":
        return _sample(materials, ready, seconds) if number else _train(materials, ready, seconds)
    own_seconds = min(seconds / 2, TURN_SECONDS_MAX)
    if number:
        ready()  # the trainer begins
        return _sample(materials, ready, own_seconds)
    trained = _train(materials, ready, own_seconds)
    ready()  # the workers begin
    return trained


def _train(materials: Materials, ready: Callable[[], object], seconds: float) -> Trained:
    config, environment = materials.run.conversation, materials.environment()
    learner, policy = materials.learner(), materials.policy()
    chain, base = Chain(config, Published()), version_of(0, learner.snapshot())
    chain.add(chain.pack(base, NOTHING, None))
    steps, packs, shares = list[float](), list[float](), list[float]()
    ready()
    ends_at = time.perf_counter() + seconds
    while not steps or time.perf_counter() < ends_at:
        # Answers of the policy itself: others would change more of its weights.
        number = len(steps) * config.prompts_per_step
        install(policy, len(steps), learner.snapshot())
        groups = sample(policy, environment, range(number, number + config.prompts_per_step), config)
        began_at = time.perf_counter()
        learner.step(groups)
        stepped_at = time.perf_counter()
        new, tokens = version_of(len(steps) + 1, learner.snapshot()), environment.prompt(0)
        chain.add(chain.pack(new, base, Canary(tokens, tuple(learner.score(tokens)))))
        packs.append(time.perf_counter() - stepped_at)
        steps.append(stepped_at - began_at)
        shares.append(changed_share(new, base))
        base = new
    return Trained(mean(steps), mean(packs), tuple(shares))


def _sample(materials: Materials, ready: Callable[[], object], seconds: float) -> Sampled:
    policy, config, environment = materials.policy(), materials.run.conversation, materials.environment()
    held = version_of(0, materials.first_weights())
    policy.install(held.number, held.weights_hash, held.tensors)
    num_rows = -(-config.prompts_per_step * config.answers_per_prompt // materials.run.num_workers)
    firsts, wholes, installs = list[float](), list[float](), list[float]()
    ready()
    ends_at = time.perf_counter() + seconds
    while not wholes or time.perf_counter() < ends_at:
        for begun in range(0, num_rows, config.answers_per_prompt):
            members = tuple(range(min(config.answers_per_prompt, num_rows - begun)))
            prompt = len(wholes) * num_rows + begun
            policy.begin(Task(prompt, members, environment.prompt(prompt), config.seed, config.num_tokens_max))
        began_at = time.perf_counter()
        num_ended = len(policy.advance(1))
        firsts.append(time.perf_counter() - began_at)
        while num_ended < num_rows:
            num_ended += len(policy.advance(TOKENS_PER_SLICE))
        wholes.append(time.perf_counter() - began_at)
        installs.append(_install_seconds(policy, held, config, environment.prompt(0)))
    return Sampled(num_rows, mean(firsts), mean(wholes), mean(installs))


def _gathered(tables: dict[str, Any]) -> Materials:
    run = ALIGN.read(tables)
    torch.set_num_threads(run.num_threads)
    return Materials.gather(run)


def changed_share(new: Version, old: Version) -> float:
    """Of the weights, those that differ."""
    num_changed = sum(int((tensor != old.tensors[name]).sum()) for name, tensor in new.tensors.items())
    return num_changed / sum(tensor.numel() for tensor in new.tensors.values())


def _install_seconds(policy: SamplingPolicy, held: Version, config: AlignmentConfig, tokens: Sequence[int]) -> float:
    moved = {name: tensor + NUDGE * torch.randn_like(tensor) for name, tensor in held.tensors.items()}
    new = version_of(1, moved)
    policy.install(new.number, new.weights_hash, new.tensors)
    canary = Canary(tuple(tokens), tuple(policy.score(tokens)))
    packed = pack_version(new, held, config.weights, canary)
    policy.install(held.number, held.weights_hash, held.tensors)
    began_at = time.perf_counter()
    renew(policy, (packed.manifest,), held, packed.chunks.__getitem__, config.weights.canary_tolerance)
    return time.perf_counter() - began_at
