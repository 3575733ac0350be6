"""Many sessions at once, of all lengths, with shared prefixes, cancels and deaths: each says what it would alone."""

import asyncio
import functools
import random
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from farflung.sim.faults import Faults, nth
from farflung.systems.swarm.session import Session
from farflung.world.errors import FarflungError
from tests.swarms import CLIENT, SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos

SERVERS = {"a1": (0, 2), "a2": (0, 2), "b1": (2, 4), "b2": (2, 4)}
SHARED_TOKENS = 70
CACHE_TOKENS = 800
"""Far less than all sessions together need, so that some give way and replay."""


@dataclass(frozen=True)
class Plan:
    """What one client asks for."""

    prompt: tuple[int, ...]
    num_new: int
    gives_up_after: int | None
    """Tokens after which it closes its session without a word."""
    starts_at: float


def plans_of(small: SmallModel, seed: int, num_sessions: int) -> list[Plan]:
    """Prompts of one to a hundred tokens; every other one begins with the same text."""
    stream = random.Random(seed)
    shared = tokens(small, 1, SHARED_TOKENS, seed=seed)[0].tolist()
    plans: list[Plan] = []
    for number in range(num_sessions):
        own = tokens(small, 1, stream.randint(1, 30), seed=1000 * seed + number)[0].tolist()
        prompt = tuple(shared[: stream.choice([0, 33, SHARED_TOKENS])] + own)
        num_new = stream.randint(2, 10)
        gives_up = stream.randint(1, num_new) if number % 5 == 4 else None
        plans.append(Plan(prompt, num_new, gives_up, stream.random() * 0.05))
    return plans


@functools.cache
def said_locally(small: SmallModel, prompt: tuple[int, ...], num_new: int) -> list[int]:
    """The whole model's greedy words."""
    output = small.whole.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=num_new, min_new_tokens=num_new, pad_token_id=0
    )
    return output[0, len(prompt) :].tolist()


async def follow(swarm: SimulatedSwarm, plan: Plan) -> list[int]:
    """What a session says, token by token, as `generate` would ask for it."""
    await asyncio.sleep(plan.starts_at)
    num_tokens = len(plan.prompt) + plan.num_new
    session = Session(swarm.world, swarm.view, swarm.config, num_tokens_max=num_tokens)
    ends, said, newest = swarm.small.whole, [], list(plan.prompt)
    try:
        while len(said) < plan.num_new and len(said) != plan.gives_up_after:
            hidden = await session.step(ends.get_input_embeddings()(torch.tensor([newest])))
            newest = [int(ends.lm_head(ends.model.norm(hidden[:, -1]))[0].argmax())]
            said += newest
    finally:
        session.close()
    return said


def run_all(small: SmallModel, plans: list[Plan], faults: Faults) -> tuple[list[list[int]], SimulatedSwarm]:
    """All plans at the same time."""

    async def together(swarm: SimulatedSwarm) -> list[list[int]]:
        tasks: list[asyncio.Task[list[int]]] = []
        for plan in plans:
            coroutine: Coroutine[Any, Any, list[int]] = follow(swarm, plan)
            tasks.append(asyncio.get_running_loop().create_task(coroutine))
        said = [await task for task in tasks]
        await asyncio.sleep(1.0)  # of virtual time: the last sessions are being closed
        return said

    with SimulatedSwarm(small, SERVERS, faults=faults, cache_tokens_max=CACHE_TOKENS) as swarm, torch.inference_mode():
        return swarm.simulation.run(together(swarm), node=CLIENT), swarm


def check(small: SmallModel, plans: list[Plan], said: list[list[int]]) -> None:
    for plan, words in zip(plans, said, strict=True):
        expected = said_locally(small, plan.prompt, plan.num_new)
        assert words == expected[: plan.gives_up_after], plan


def test_many_sessions_say_what_each_would_alone(small: SmallModel) -> None:
    plans = plans_of(small, seed=1, num_sessions=32)
    said, swarm = run_all(small, plans, Faults())
    check(small, plans, said)
    notes = [str(event) for event in swarm.simulation.trace.of("note")]
    assert any("gives way" in note for note in notes), "the cache was to be too small"
    for role in swarm.roles.values():
        assert role.num_sessions == 0 and role.info({}).cache_tokens_left == CACHE_TOKENS


@pytest.mark.parametrize("phase", [("Step", "deliver", "target"), ("Output", "sent", "source")])
@pytest.mark.parametrize("victim", ["a1", "b1"])
def test_a_server_killed_among_many_sessions_changes_nothing(
    small: SmallModel, victim: str, phase: tuple[str, str, str]
) -> None:
    plans = plans_of(small, seed=2, num_sessions=8)
    kind, moment, side = phase
    faults = Faults().crash(victim, when=nth(kind, 25, moment, **{side: victim}))
    said, swarm = run_all(small, plans, faults)
    assert not swarm.simulation.is_alive(victim)
    check(small, plans, said)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_many_sessions_under_random_faults(small: SmallModel, seed: int) -> None:
    plans = plans_of(small, seed=seed + 10, num_sessions=32)
    faults = Faults.random(seed, sorted(SERVERS), until=3.0, num_faults=5, loss=0.03, sites=["site"])
    try:
        said, _ = run_all(small, plans, faults)
    except FarflungError as error:  # all holders of a block may be gone at once
        pytest.fail(f"a session gave up: {error}")
    check(small, plans, said)
