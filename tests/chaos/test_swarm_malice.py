"""A peer that lies to the servers: each lie is answered in a sentence, costs nothing, and disturbs nobody."""

import asyncio

import pytest
import torch

from farflung.systems.swarm.messages import ACTOR, Hop, Output, PushFailed, Step
from farflung.wire.tensor import encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.mailbox import Mailbox
from tests.chaos.swarm_modes import MODES, same
from tests.malice import NOBODY, SILENCE, Target, lies, sentence_of
from tests.swarms import SimulatedSwarm, SmallModel, tokens

pytestmark = pytest.mark.chaos

SERVERS = {"a": (0, 2), "b": (2, 4)}
CACHE_TOKENS_MAX = 4000


def target(small: SmallModel) -> Target:
    return Target(PeerId("a"), small.source.fingerprint, small.source.hidden_size, 2)


async def answer_to(world: World, mailbox: Mailbox, message: object) -> object:
    """What comes back within a virtual second; None for silence."""
    mailbox.clear()
    mailbox.send(Address(PeerId("a"), ACTOR), message)
    received = await mailbox.receive(world.clock.now() + 1.0)
    return received[1] if received is not None else None


def test_every_lie_is_refused_in_a_sentence_and_costs_nothing(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS, cache_tokens_max=CACHE_TOKENS_MAX) as swarm:
        rogue = swarm.simulation.node("rogue")

        async def lie_and_hear() -> dict[str, str]:
            wrong: dict[str, str] = {}
            with Mailbox(rogue, "rogue") as mailbox:
                for number, (what, message, expected) in enumerate(lies(target(small), mailbox.address)):
                    answer = await answer_to(rogue, mailbox, message)
                    heard = sentence_of(answer) if answer is not None else SILENCE
                    if not (expected in heard if expected else heard == SILENCE):
                        wrong[f"{number} {what}"] = heard
            return wrong

        assert swarm.simulation.run(lie_and_hear(), node="rogue") == {}
        info = swarm.roles["a"].info({})
        assert info.num_sessions == 0 and info.cache_tokens_left == CACHE_TOKENS_MAX and info.queue_length == 0


def test_a_concurrent_session_says_the_same_words(small: SmallModel) -> None:
    """All lies, again and again, to the very servers that work for an honest client."""
    num_sent = 0
    with SimulatedSwarm(small, SERVERS, cache_tokens_max=CACHE_TOKENS_MAX) as swarm:
        rogue = swarm.simulation.node("rogue")

        async def lie_for_ever() -> None:
            nonlocal num_sent
            with Mailbox(rogue, "rogue") as mailbox:
                while True:
                    for _, message, _ in lies(target(small), mailbox.address):
                        mailbox.send(Address(PeerId("a"), ACTOR), message)
                        num_sent += 1
                        await asyncio.sleep(0.0003)
                    mailbox.clear()

        async def begin() -> asyncio.Task[None]:
            return asyncio.create_task(lie_for_ever())

        task = swarm.simulation.run(begin(), node="rogue")
        for mode in ("decode", "beam", "rollback"):
            prompt = tokens(small, 1, 6)
            assert same(MODES[mode](swarm.model, prompt), MODES[mode](small.whole, prompt)), mode
        task.cancel()
        assert num_sent > 200
        assert not any("a" in event.node and event.what == "boot" for event in swarm.simulation.trace.events)


def test_routes_to_nobody_are_told_and_forgotten(small: SmallModel) -> None:
    with SimulatedSwarm(small, SERVERS) as swarm:
        rogue = swarm.simulation.node("rogue")

        async def push_to_nobody() -> list[object]:
            with Mailbox(rogue, "rogue") as mailbox:
                message = Step(
                    session="rogue",
                    model=small.source.fingerprint,
                    route=(Hop(PeerId("a"), 0, 2), Hop(NOBODY, 2, 4)),
                    client=mailbox.address,
                    base=0,
                    upto=1,
                    hidden=encode_tensor(torch.zeros(1, 1, small.source.hidden_size)),
                    num_tokens_max=10,
                )
                mailbox.send(Address(PeerId("a"), ACTOR), message)
                heard = [await mailbox.receive(rogue.clock.now() + 10.0) for _ in range(2)]
                return [received[1] for received in heard if received is not None]

        output, failed = swarm.simulation.run(push_to_nobody(), node="rogue")
        assert isinstance(output, Output)
        assert isinstance(failed, PushFailed) and failed.next_peer == NOBODY
        swarm.simulation.crash("rogue")
        swarm.simulation.advance(20.0)
        assert swarm.roles["a"].num_sessions == 0


def test_whoever_floods_waits_behind_whoever_does_not(small: SmallModel) -> None:
    """A thousand steps of one client delay another's by one batch each at most, and take half of its places."""
    with SimulatedSwarm(small, SERVERS, batch_sessions_max=2) as swarm:
        rogue = swarm.simulation.node("rogue")
        prompt = tokens(small, 1, 6)
        expected = MODES["decode"](swarm.model, prompt)
        started_at = swarm.simulation.now()
        MODES["decode"](swarm.model, prompt)
        alone_seconds = swarm.simulation.now() - started_at

        async def flood() -> None:
            mailbox = Mailbox(rogue, "rogue")  # left open: what nobody waits for any more would be freed
            for number in range(1000):
                message = Step(
                    session=f"rogue-{number}",
                    model=small.source.fingerprint,
                    route=(Hop(PeerId("a"), 0, 2),),
                    client=mailbox.address,
                    base=0,
                    upto=1,
                    hidden=encode_tensor(torch.zeros(1, 1, small.source.hidden_size)),
                    num_tokens_max=1,
                )
                mailbox.send(Address(PeerId("a"), ACTOR), message)

        swarm.simulation.run(flood(), node="rogue")
        started_at = swarm.simulation.now()
        assert torch.equal(MODES["decode"](swarm.model, prompt), expected)
        flooded_seconds = swarm.simulation.now() - started_at
        assert swarm.roles["a"].info({}).queue_length > 250, "the flood must last longer than the answer"
        assert flooded_seconds < 3 * alone_seconds
