"""Mixed load: many sessions of several clients at once, each of another kind, under one of two adapters or none, and
what each says on one machine alone.

A session is a *script*: it yields what it wants of a machine (a step, a reorder, a truncation) and gets logits for it.
The same script runs over a swarm and over the whole model without any cache.
"""

import asyncio
import functools
import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from farflung.model.peft_files import save_adapter
from farflung.systems.swarm.adapters import NamedAdapter
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.info import ServerState
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.view import SwarmView
from farflung.world.doors import World
from tests.loras import lora, under_peft
from tests.swarms import CLIENT, SimulatedSwarm, SmallModel, tokens

SHARED_TOKENS = 70
KINDS = ("greedy", "drawn", "beams", "guesses")
NUM_CLIENTS = 3

FREE_SECONDS = 40.0
"""Of virtual time after which nobody holds anything, though servers that were cut off never heard that it is over."""

Reordering = tuple[int, ...]
Asked = torch.Tensor | Reordering | int
"""Token ids [batch, new] to append, rows to become, or a length to forget from."""
Word = tuple[list[int], torch.Tensor]
"""What is said at once, a token for each row, and the logits [rows, vocabulary] it comes from."""
Script = Generator[Asked, torch.Tensor, None]
"""Is sent the logits [batch, new, vocabulary] of what it appended."""


@dataclass(frozen=True)
class Plan:
    """What one session asks for."""

    kind: str
    prompt: tuple[int, ...]
    num_new: int
    gives_up_after: int | None
    """Tokens after which it closes its session without a word."""
    starts_at: float
    seed: int
    adapter: int = 0
    """0: none."""


def plans_of(small: SmallModel, seed: int, num_sessions: int, num_new_max: int = 12) -> list[Plan]:
    """Prompts of one to a hundred tokens; two of three begin with the same text."""
    stream = random.Random(seed)
    shared = tokens(small, 1, SHARED_TOKENS, seed=seed)[0].tolist()
    plans: list[Plan] = []
    for number in range(num_sessions):
        own = tokens(small, 1, stream.randint(1, 30), seed=1000 * seed + number)[0].tolist()
        prompt = tuple(shared[: stream.choice([0, 33, SHARED_TOKENS])] + own)
        num_new = stream.randint(4, num_new_max)
        gives_up = stream.randint(1, num_new) if number % 5 == 4 else None
        kind = KINDS[number % len(KINDS)]
        plans.append(Plan(kind, prompt, num_new, gives_up, stream.random() * 0.05, 1000 * seed + number, number % 3))
    return plans


def script_of(small: SmallModel, plan: Plan, said: list[Word]) -> Script:
    """What a plan asks, step by step; each step's tokens are appended to `said`."""
    match plan.kind:
        case "beams":
            return _beams(plan, said)
        case "guesses":
            return _guesses(plan, said, said_locally(small, _greedy_of(plan)))
        case _:
            return _one_by_one(plan, said)


def _greedy_of(plan: Plan) -> Plan:
    return Plan("greedy", plan.prompt, plan.num_new, None, 0.0, 0, plan.adapter)


def _one_by_one(plan: Plan, said: list[Word]) -> Script:
    """Greedy, or drawn with noise of the plan's own."""
    noise = torch.Generator().manual_seed(plan.seed)
    newest = torch.tensor([plan.prompt])
    while True:
        logits = (yield newest)[0, -1]
        luck = torch.empty_like(logits).exponential_(generator=noise).log() if plan.kind == "drawn" else 0.0
        newest = (logits / 0.9 - luck).argmax().view(1, 1)
        said.append(([int(newest)], logits[None]))


def _beams(plan: Plan, said: list[Word]) -> Script:
    """Rows that multiply, swap and vanish at random; row n goes on with its n-th best token."""
    stream = random.Random(plan.seed)
    newest, num_rows = torch.tensor([plan.prompt]), 1
    while True:
        logits = (yield newest)[:, -1]
        rows = tuple(stream.randrange(num_rows) for _ in range(stream.randint(1, 4)))
        if rows != tuple(range(num_rows)):
            yield rows
        num_rows = len(rows)
        best = logits.topk(num_rows).indices
        newest = torch.stack([best[row, rank] for rank, row in enumerate(rows)]).view(num_rows, 1)
        said.append((newest[:, 0].tolist(), logits[list(rows)]))


def _guesses(plan: Plan, said: list[Word], truth: list[Word]) -> Script:
    """Greedy, with guesses of which most are right; what was wrong is forgotten."""
    stream = random.Random(plan.seed)
    length, newest = 0, list(plan.prompt)
    while True:
        following = [token for (token,), _ in truth[len(said) : len(said) + stream.randint(0, 3)]]
        guesses = [token if stream.random() < 0.7 else (token + 1) % 100 for token in following]
        logits = yield torch.tensor([[*newest, *guesses]])
        length += len(newest) + len(guesses)
        chosen = logits[0, -len(guesses) - 1 :].argmax(-1).tolist()
        num_right = next((n for n, guess in enumerate(guesses) if guess != chosen[n]), len(guesses))
        sources = logits[0, -len(guesses) - 1 :]
        said += [([token], sources[n : n + 1]) for n, token in enumerate(chosen[: num_right + 1])]
        newest = chosen[num_right : num_right + 1]
        if num_right < len(guesses):
            length -= len(guesses) - num_right
            yield length


def _is_done(plan: Plan, said: Sequence[object]) -> bool:
    return len(said) >= (plan.num_new if plan.gives_up_after is None else plan.gives_up_after)


@functools.cache
def adapter_of(small: SmallModel, number: int) -> NamedAdapter | None:
    """What the servers are given."""
    return NamedAdapter.of(lora(small.source, number).requires_grad_(False)) if number else None


@functools.cache
def whole_under(small: SmallModel, number: int) -> Any:
    """The model on one machine, with the adapter that peft has merged into its weights."""
    if not number:
        return small.whole
    with TemporaryDirectory() as folder:
        save_adapter(lora(small.source, number), Path(folder))
        return under_peft(small.whole, Path(folder)).merge_and_unload()


@functools.cache
def said_locally(small: SmallModel, plan: Plan) -> list[Word]:
    """What a plan's session says on the whole model here, forgetting by computing everything anew."""
    said: list[Word] = []
    script = script_of(small, plan, said)
    asked, held = next(script), torch.zeros(1, 0, dtype=torch.int64)
    with torch.inference_mode():
        while not _is_done(plan, said):
            answer: Any = None
            if isinstance(asked, torch.Tensor):
                held = torch.cat([held, asked], dim=1)
                answer = whole_under(small, plan.adapter)(input_ids=held, use_cache=False).logits[:, -asked.shape[1] :]
            elif isinstance(asked, int):
                held = held[:, :asked]
            else:
                held = held[list(asked)]
            asked = script.send(answer)
    return said


async def follow(small: SmallModel, world: World, view: SwarmView, config: SessionConfig, plan: Plan) -> list[Word]:
    """What a plan's session says over the swarm."""
    await asyncio.sleep(plan.starts_at)
    num_rows = 4 if plan.kind == "beams" else 1
    num_tokens, adapter = num_rows * (len(plan.prompt) + plan.num_new + 4), adapter_of(small, plan.adapter)
    session = Session(world, view, config, num_tokens_max=num_tokens, adapter=adapter)
    ends, said = small.whole, list[Word]()
    script = script_of(small, plan, said)
    asked = next(script)
    try:
        while not _is_done(plan, said):
            answer: Any = None
            if isinstance(asked, torch.Tensor):
                answer = ends.lm_head(ends.model.norm(await session.step(ends.get_input_embeddings()(asked))))
            elif isinstance(asked, int):
                session.truncate(asked)
            else:
                session.reorder(asked)
            asked = script.send(answer)
    finally:
        session.close()
    return said


@dataclass
class Load:
    """All plans at the same time, over several clients; `swarm` is over once it has run."""

    small: SmallModel
    plans: Sequence[Plan]
    swarm: SimulatedSwarm

    def run(self) -> list[list[Word]]:
        """What each session said."""
        with self.swarm as swarm, torch.inference_mode():
            tasks: list[asyncio.Task[list[Word]]] = [None] * len(self.plans)  # pyright: ignore[reportAssignmentType]
            for client in range(NUM_CLIENTS):
                name = CLIENT if client == 0 else f"{CLIENT}-{client}"
                world = swarm.world if client == 0 else swarm.simulation.node(name)
                numbers = range(client, len(self.plans), NUM_CLIENTS)
                swarm.simulation.run(self._begin(world, numbers, tasks), node=name)
            return swarm.simulation.run(_finish(tasks), node=CLIENT)

    async def _begin(self, world: World, numbers: range, tasks: list[asyncio.Task[list[Word]]]) -> None:
        source = self.small.source
        view = SwarmView(world, source.fingerprint, source.num_blocks, source.hidden_size, self.swarm.announced)
        for number in numbers:
            work = follow(self.small, world, view, self.swarm.config, self.plans[number])
            tasks[number] = asyncio.get_running_loop().create_task(work)

    def wrong(self, said: Sequence[list[Word]]) -> list[Plan]:
        """Plans whose sessions did not say what they would alone."""
        return [plan for plan, words in zip(self.plans, said, strict=True) if not _is_said(self.small, plan, words)]


def _is_said(small: SmallModel, plan: Plan, words: Sequence[Word]) -> bool:
    """Tokens are equal exactly, logits within float32 rounding."""
    num_words = plan.num_new if plan.gives_up_after is None else plan.gives_up_after
    expected = said_locally(small, plan)
    return all(
        own == others and torch.allclose(logits, other_logits, atol=1e-4)
        for (own, logits), (others, other_logits) in zip(words[:num_words], expected[:num_words], strict=True)
    )


async def _finish(tasks: Sequence[asyncio.Task[list[Word]]]) -> list[list[Word]]:
    said = [await task for task in tasks]
    await asyncio.sleep(FREE_SECONDS)
    return said


def move(swarm: SimulatedSwarm, name: str, blocks: tuple[int, int], at: float) -> None:
    """A server offers other blocks soon after `at`, and half a second later drops the sessions of those it left."""

    def drain() -> None:
        swarm.roles[name].state = ServerState.DRAINING

    def arrive() -> None:
        swarm.roles[name].replace_span(swarm.small.span(*blocks), swarm.simulation.now())
        swarm.roles[name].state = ServerState.ONLINE

    swarm.simulation.at(at, drain)
    swarm.simulation.at(at + 0.05, arrive)
    swarm.simulation.at(at + 0.5, lambda: (swarm.roles[name].forget_left_spans(), None)[1])
