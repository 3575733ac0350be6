"""Eight clients at once through three servers that are 100 ms apart: how much of what the servers can do is used.

    python -m bench.far_pipeline [--quick] [--text FILE] [--json FILE]

In virtual time: clients' sessions, servers, protocol and bytes are the code that ships, texts are continued for real by
a small model of characters (that of `bench.speculation`), and a stage is charged the seconds of a stage of
BLOOM-176B on three A100 (PETALS, Table 3: 1.71 steps/s nearby, 254 tokens/s in large forwards). Links carry 100 Mbit/s
of its hidden states. What the servers can do is a step of all eight in the seconds of three stages and no way between;
what distance leaves of it is the same with the way. Only who guesses ahead can have more than that. A long prompt is in
three places at once if it travels in pieces: its first token is timed whole and in pieces.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from bench.report import Report, bench_arguments
from bench.speculation import HELD_OUT_SHARE, LARGE, PROMPT_TOKENS, models_for, tokens_of
from farflung.model.depth import DepthChooser
from farflung.model.drafts import Drafter, DraftModel, PromptLookup
from farflung.model.load import load_span
from farflung.model.sample import Sampling, choose
from farflung.model.source import ModelSource
from farflung.sim.simulation import Simulation
from farflung.sim.topology import Link, Topology
from farflung.systems.swarm.checks import Limits
from farflung.systems.swarm.config import ServerConfig, SessionConfig
from farflung.systems.swarm.info import ServerInfo
from farflung.systems.swarm.messages import ACTOR
from farflung.systems.swarm.server import Server
from farflung.systems.swarm.session import Session
from farflung.systems.swarm.view import SwarmView
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.host import Host

NUM_STAGES = 3
NUM_CLIENTS = 8
STAGE_SECONDS = 1 / 1.71 / NUM_STAGES
"""One step through one stage of BLOOM-176B."""
TOKENS_PER_SECOND = 254.0
"""Through one stage, many at once."""
CLIENT_SECONDS = 0.01
"""Embeddings, head and choice of a token."""
DRAFT_SECONDS = 0.005
"""One guess by a model of a few hundred million parameters."""
DILATION = 14336 * 2 / (LARGE.hidden_size * 4)
"""Bytes of one hidden state of BLOOM-176B over those of the small model."""
NEAR_SECONDS, FAR_SECONDS = 0.0005, 0.05
"""One way."""
UNTIMELY = "near, servers wait for nobody"
SHARE_MIN = 0.8
PIECES_GAIN_MIN = 1.5
LONG_PROMPT_TOKENS = 2048
DRAWN = Sampling(temperature=0.8)


@dataclass(eq=False)
class Texts:
    """The model in two halves: blocks for servers, the rest for clients."""

    path: Path
    source: ModelSource = field(init=False)
    whole: Any = field(init=False)
    spans: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.source = ModelSource.open(str(self.path))
        self.whole = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        cuts = [self.source.num_blocks * stage // NUM_STAGES for stage in range(NUM_STAGES + 1)]
        self.spans = [load_span(self.source, *cuts[stage : stage + 2]) for stage in range(NUM_STAGES)]

    def embed(self, tokens: Sequence[int], start: int) -> torch.Tensor:
        """[1, tokens, hidden size]"""
        body = self.whole.transformer
        return (body.wte(torch.tensor(tokens)) + body.wpe(torch.arange(start, start + len(tokens)))).unsqueeze(0)

    def logits(self, hidden_1TH: torch.Tensor) -> torch.Tensor:
        """[tokens, vocabulary]"""
        return self.whole.lm_head(self.whole.transformer.ln_f(hidden_1TH[0]))


class Swarm:
    """Three servers and some clients, every two of them one link apart."""

    def __init__(self, texts: Texts, one_way_seconds: float, *, piece_positions: int = 256, waits: bool = True) -> None:
        link = Link(latency_seconds=one_way_seconds, bytes_per_second=100e6 / 8 / DILATION)
        self.texts, self._waits = texts, waits
        self._config = SessionConfig(piece_positions=piece_positions)
        self.simulation = Simulation(seed=0, topology=Topology(within=link, between=link), keep_trace=False)
        self._roles: dict[str, Server] = {}
        for stage in range(NUM_STAGES):
            self.simulation.node(f"stage-{stage}", boot=functools.partial(self._boot, stage))
        self._clients = [self.simulation.node(f"client-{number}") for number in range(NUM_CLIENTS)]

    def _boot(self, stage: int, world: World) -> Host:
        source, span = self.texts.source, self.texts.spans[stage]
        num_blocks = span.last - span.first
        config = ServerConfig(
            model=source.fingerprint,
            model_name=source.name,
            limits=Limits(hidden_size=source.hidden_size, context_length_max=2 * LONG_PROMPT_TOKENS),
            cache_tokens_max=1_000_000,
            blocks_per_second=num_blocks / STAGE_SECONDS,
            forward_tokens_per_second=num_blocks * TOKENS_PER_SECOND,
            version="bench",
            started_at=0.0,
            linger_seconds_max=0.05 if self._waits else 0.0,
        )
        role = self._roles[f"stage-{stage}"] = Server(config, span)
        return Host(role, world, ACTOR)

    def session(self, number: int, num_tokens_max: int) -> Session:
        """One of a client."""
        source, world = self.texts.source, self._clients[number]
        view = SwarmView(world, source.fingerprint, source.num_blocks, source.hidden_size, self._announced)
        return Session(world, view, self._config, num_tokens_max=num_tokens_max)

    def _announced(self) -> dict[PeerId, ServerInfo]:
        return {PeerId(name): role.info({}) for name, role in self._roles.items()}


async def answer(
    swarm: Swarm, number: int, prompt: Sequence[int], num_new: int, drafter: Drafter | None
) -> tuple[list[int], float]:
    """What one client draws, with guesses or one by one, and tokens a second after the first: the loop of
    `ModelGenerator`, without threads."""
    session, texts, said = swarm.session(number, len(prompt) + num_new), swarm.texts, list[int]()
    stream, chooser = torch.Generator().manual_seed(number), DepthChooser()
    draft = drafter.open(prompt, DRAWN) if drafter is not None else None
    new, guesses, first_at = list(prompt), list[int](), 0.0
    while True:
        began_at = swarm.simulation.now()
        hidden = await session.step(texts.embed(new, session.length))
        await asyncio.sleep(CLIENT_SECONDS)
        logits_TV = texts.logits(hidden)[-len(guesses) - 1 :]
        num_right = 0
        for guess, logits_V in zip([*guesses, None], logits_TV, strict=True):
            said.append(choose(logits_V, DRAWN, stream, prompt=prompt, answer=said))
            if said[-1] != guess or len(said) == num_new:
                break
            num_right += 1
        first_at = first_at or swarm.simulation.now()
        if len(said) >= num_new:
            session.close()
            return said, (num_new - 1) / (swarm.simulation.now() - first_at)
        session.truncate(session.length - len(guesses) + num_right)
        if len(new) < len(prompt):
            chooser.settled(len(guesses), num_right, swarm.simulation.now() - began_at)
        if draft is not None:
            guesses = draft.guess(said, chooser.depth(num_new - len(said) - 1), stream)
            if not isinstance(drafter, PromptLookup):
                await asyncio.sleep(DRAFT_SECONDS * len(guesses))
                chooser.guessed(len(guesses), DRAFT_SECONDS)
        new = [said[-1], *guesses]


@dataclass(frozen=True)
class Measured:
    """One arm."""

    tokens_per_second: float
    """Of all clients, after their first ones."""
    busy_share: float
    """Of the servers' time, computing; the mean over servers."""
    said: list[list[int]]


def decode(swarm: Swarm, prompts: Sequence[Sequence[int]], num_new: int, drafter: Drafter | None) -> Measured:
    """All clients at the same time."""

    async def together() -> list[tuple[list[int], float]]:
        tasks = [
            asyncio.get_running_loop().create_task(answer(swarm, number, prompt, num_new, drafter))
            for number, prompt in enumerate(prompts)
        ]
        return [await task for task in tasks]

    with swarm.simulation as simulation, torch.inference_mode():
        answers = simulation.run(together(), node="client-0")
        seconds = simulation.now()
        devices: list[Any] = [simulation.world(f"stage-{stage}").compute for stage in range(NUM_STAGES)]
        busy = [device.busy_seconds / seconds for device in devices]
    return Measured(sum(rate for _, rate in answers), statistics.mean(busy), [said for said, _ in answers])


def first_token_seconds(texts: Texts, one_way_seconds: float, piece_positions: int) -> float:
    """A long prompt of one client, until its last position is through."""
    swarm = Swarm(texts, one_way_seconds, piece_positions=piece_positions)
    hidden = torch.randn(1, LONG_PROMPT_TOKENS, texts.source.hidden_size, generator=torch.Generator().manual_seed(0))
    with swarm.simulation as simulation, torch.inference_mode():
        simulation.run(swarm.session(0, LONG_PROMPT_TOKENS).step(hidden), node="client-0")
        return simulation.now()


def measure_decoding(report: Report, texts: Texts, small: Path, prompts: list[list[int]], num_new: int) -> None:
    """The same clients near and far, with and without guesses."""
    draft_model = DraftModel(AutoModelForCausalLM.from_pretrained(small).eval(), texts.whole.config.vocab_size)
    arms: dict[str, tuple[float, Drafter | None]] = {
        UNTIMELY: (NEAR_SECONDS, None),
        "near, one by one": (NEAR_SECONDS, None),
        "far, one by one": (FAR_SECONDS, None),
        "far, guesses by lookup": (FAR_SECONDS, PromptLookup()),
        "far, guesses by a small model": (FAR_SECONDS, draft_model),
    }
    measured = {
        name: decode(Swarm(texts, seconds, waits=name != UNTIMELY), prompts, num_new, drafter)
        for name, (seconds, drafter) in arms.items()
    }
    can_do, far_can_do = most_tokens_per_second(0.0), most_tokens_per_second(FAR_SECONDS)
    rows = [
        (name, one.tokens_per_second, one.tokens_per_second / can_do, one.busy_share) for name, one in measured.items()
    ]
    report.table("eight clients, drawing", ("arm", "tokens/s", "of what servers can", "servers compute"), rows)
    judged = {"near, one by one": can_do, "far, one by one": far_can_do, "far, guesses by a small model": can_do}
    for name, most in judged.items():
        share = measured[name].tokens_per_second / most
        of_what = "what distance leaves" if most is far_can_do else "what the servers can do"
        report.claim(f"{name}: tokens/s as a share of {of_what}", f">= {SHARE_MIN}", f"{share:.2f}", share >= SHARE_MIN)
    gain = measured["near, one by one"].tokens_per_second / measured[UNTIMELY].tokens_per_second
    report.claim("near: tokens/s over servers that wait for nobody", "> 1x", f"{gain:.2f}x", gain > 1)
    first, *others = measured.values()
    is_same = all(one.said == first.said for one in others)
    report.claim("all arms say the same", "yes", "yes" if is_same else "no", is_same)


def most_tokens_per_second(one_way_seconds: float) -> float:
    """Of all clients one by one, if every step took all of them along."""
    return NUM_CLIENTS / (NUM_STAGES * STAGE_SECONDS + (NUM_STAGES + 1) * one_way_seconds + CLIENT_SECONDS)


def measure_prompt(report: Report, texts: Texts) -> None:
    """A long prompt, whole and in pieces."""
    rows: list[tuple[object, ...]] = []
    for name, seconds in (("near", NEAR_SECONDS), ("far", FAR_SECONDS)):
        in_pieces = first_token_seconds(texts, seconds, 256)
        whole = first_token_seconds(texts, seconds, LONG_PROMPT_TOKENS)
        gain = whole / in_pieces
        rows.append((name, whole, in_pieces, gain))
        text = f"{name}: first token of {LONG_PROMPT_TOKENS:,} tokens, in pieces over whole"
        report.claim(text, f">= {PIECES_GAIN_MIN}x", f"{gain:.2f}x", gain >= PIECES_GAIN_MIN)
    report.table("first token of a long prompt", ("servers", "whole, s", "in pieces, s", "faster"), rows)


def main(arguments_given: Sequence[str] | None = None) -> int:
    """Train the small models if need be, measure, print and judge."""
    parser = bench_arguments(__doc__ or "")
    parser.add_argument("--text", type=Path, metavar="FILE", help="train and continue this text")
    arguments = parser.parse_args(arguments_given)
    torch.set_num_threads(1)
    tokens_T = tokens_of(arguments.text)
    large, small = models_for(tokens_T)
    num_new = 32 if arguments.quick else 120
    held_out_T = tokens_T[int(len(tokens_T) * (1 - HELD_OUT_SHARE)) :]
    stride = len(held_out_T) // NUM_CLIENTS
    prompts = [held_out_T[at * stride : at * stride + PROMPT_TOKENS].tolist() for at in range(NUM_CLIENTS)]
    settings = {"clients": NUM_CLIENTS, "servers": NUM_STAGES, "tokens": num_new, "round_trip_seconds": 2 * FAR_SECONDS}
    report = Report("far_pipeline", settings)
    texts = Texts(large)
    measure_decoding(report, texts, small, prompts, num_new)
    measure_prompt(report, texts)
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
