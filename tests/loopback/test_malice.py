"""A member with a client's ticket lies to real servers: each lie is answered, none costs, honest clients are safe."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from farflung.apps.wiring import Connection
from farflung.systems.swarm.messages import ACTOR
from farflung.world.address import Address
from farflung.world.mailbox import Mailbox
from tests.loopback.fleet import PATIENCE_SECONDS, Fleet, wait_until
from tests.loopback.test_kill import PROMPT, At
from tests.malice import SILENCE, Target, lies, sentence_of

pytestmark = pytest.mark.loopback

SILENCE_SECONDS = 0.2
NUM_LIES_MIN = 500
"""Of the flood, half of them while the honest client is at work."""
GROWTH_BYTES_MAX = 64 << 20


async def hear(mailbox: Mailbox, target: Target, deadline: float) -> str:
    """What the target says; that others were lost is nothing to the rogue."""
    while (received := await mailbox.receive(deadline)) is not None:
        if received[0].peer == target.peer:
            return sentence_of(received[1])
    return SILENCE


async def lie_and_hear(connection: Connection, target: Target) -> dict[str, str]:
    """Tell all lies, one after another; those that were not answered as they should be."""
    world = connection.node.world
    wrong: dict[str, str] = {}
    with Mailbox(world, "rogue") as mailbox:
        for number, (what, message, expected) in enumerate(lies(target, mailbox.address)):
            mailbox.clear()
            mailbox.send(Address(target.peer, ACTOR), message)
            deadline = world.clock.now() + (60.0 if expected else SILENCE_SECONDS)
            heard = await hear(mailbox, target, deadline)
            if not (expected in heard if expected else heard == SILENCE):
                wrong[f"{number} {what}"] = heard
    return wrong


@dataclass
class Flood:
    """All lies again and again, without waiting for answers."""

    num_sent: int = 0
    is_over: bool = False

    async def tell(self, connection: Connection, target: Target) -> None:
        """Until it is over."""
        with Mailbox(connection.node.world, "flood") as mailbox:
            while not self.is_over:
                for _, message, _ in lies(target, mailbox.address):
                    mailbox.send(Address(target.peer, ACTOR), message)
                    self.num_sent += 1
                mailbox.clear()
                await asyncio.sleep(0.02)


@pytest.fixture
def target(fleet: Fleet, folder: Path, model: Any) -> Target:
    """A server of the first half."""
    view = model._blocks.view
    return Target(next(s.peer for s in fleet.servers if s.blocks == "0:2"), view.model, view.hidden_size, 2)


def test_every_lie_is_refused_in_a_sentence_and_costs_nothing(fleet: Fleet, model: Any, target: Target) -> None:
    with Connection(fleet.ticket()) as rogue:
        wait_until(lambda: target.peer in rogue.node.member.view, "the rogue knows its target")
        assert rogue.bridge.run(lie_and_hear(rogue, target)) == {}
    assert fleet.of(target.peer).is_alive

    def is_all_free() -> bool:
        info = model._blocks.view.servers()[target.peer]
        return info.num_sessions == 0 and info.cache_tokens_left == info.cache_tokens_max

    wait_until(is_all_free, "nothing is held for the rogue")


def test_an_honest_client_says_the_same_words_during_a_flood_of_lies(
    fleet: Fleet, model: Any, whole: Any, target: Target
) -> None:
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    victims = {server.peer: psutil.Process(server.pid) for server in fleet.servers if server.blocks == "0:2"}
    model.generate(PROMPT, **options)
    memory_bytes = {peer: process.memory_info().rss for peer, process in victims.items()}
    with (
        Connection(fleet.ticket()) as rogue,
        Connection(fleet.ticket()) as other_rogue,
        ThreadPoolExecutor() as threads,
    ):
        flood = Flood()
        floods = [
            threads.submit(
                connection.bridge.run, flood.tell(connection, Target(peer, target.model, target.hidden_size, 2))
            )
            for connection, peer in zip((rogue, other_rogue), victims, strict=True)
        ]
        try:
            at = At({
                length: lambda num=num: wait_until(lambda: flood.num_sent >= num, "the flood is on")
                for length, num in ((10, NUM_LIES_MIN // 2), (30, NUM_LIES_MIN))
            })  # fmt: skip
            output = model.generate(PROMPT, logits_processor=[at], **options)
        finally:
            flood.is_over = True
        for each in floods:
            each.result(PATIENCE_SECONDS)
        assert torch.equal(output, whole.generate(PROMPT, **options))
    for peer, process in victims.items():
        assert fleet.of(peer).is_alive
        assert process.memory_info().rss - memory_bytes[peer] < GROWTH_BYTES_MAX
