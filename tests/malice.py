"""What a peer with a valid ticket may send to a block server out of ignorance or malice, and what it must hear.

What a *server* might do is another matter: wrong shapes and garbage are found out by its client, but wrong numbers of
the right shape cannot be told from right ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from farflung.systems.swarm.messages import (
    Backward,
    Behind,
    CloseSession,
    Forward,
    Hop,
    Output,
    PushFailed,
    Reorder,
    Step,
    Truncate,
    Working,
)
from farflung.wire.message import Message, NoSuchActor, Refusal
from farflung.wire.tensor import WireTensor, encode_tensor
from farflung.world.address import Address, PeerId

NOBODY = PeerId("nobody")
SILENCE = ""
"""Nothing is said to it: it is a note in the server's log."""


@dataclass(frozen=True)
class Target:
    """The server that is lied to; it holds blocks 0 to `last - 1` of the model."""

    peer: PeerId
    model: str
    hidden_size: int
    last: int


def lies(target: Target, own: Address) -> list[tuple[str, Message, str]]:
    """What is wrong, the message, and a part of the sentence that must come back."""
    return [*_steps(target, own), *_requests(target), *_strangers(target)]


def _steps(target: Target, own: Address) -> list[tuple[str, Message, str]]:
    size, one = target.hidden_size, torch.zeros(1, 1, target.hidden_size)
    route = (Hop(target.peer, 0, target.last),)
    whole = encode_tensor(one)

    def lie(**fields: Any) -> Step:
        known = {"session": "rogue", "model": target.model, "route": route, "client": own, "base": 0, "upto": 1}
        return Step(**{**known, "hidden": whole, "num_tokens_max": 64, **fields})

    nan = encode_tensor(torch.full((1, 1, size), float("nan")))
    return [
        ("fewer bytes than its shape", lie(hidden=WireTensor("float32", (1, 4, size), "raw", whole.data)), "bytes for"),
        (
            "a huge shape over few bytes",
            lie(hidden=WireTensor("float32", (8, 400, size), "raw", whole.data), num_tokens_max=3200),
            "bytes for",
        ),
        ("a type over other bytes", lie(hidden=WireTensor("float16", (1, 1, size), "raw", whole.data)), "bytes for"),
        ("no such type", lie(hidden=WireTensor("object", (1, 1, size), "raw", whole.data)), "floating-point"),
        ("whole numbers", lie(hidden=encode_tensor(one.long())), "floating-point"),
        ("a negative shape", lie(hidden=WireTensor("float32", (-1, -1, size), "raw", whole.data)), "a batch of -1"),
        ("ten thousand dimensions", lie(hidden=WireTensor("float32", (1,) * 10_000, "raw", whole.data)), "three-dim"),
        ("another width", lie(hidden=encode_tensor(torch.zeros(1, 1, size + 1))), "wide"),
        ("no such codec", lie(codec="pickle"), "codec must be"),
        ("not a number, in a codec without it", lie(hidden=nan, codec="int8"), "cannot hold infinite values or NaN"),
        ("a reorder of many rows", lie(edits=(Reorder((0,) * 100_000),)), "a reorder must"),
        ("a reorder of rows that are not there", lie(edits=(Reorder((7,)),)), "row 7 does not exist"),
        ("a cut to less than nothing", lie(edits=(Truncate(-5),)), "negative length"),
        ("a cut to more than there is", lie(edits=(Truncate(5),)), "cannot be cut to 5"),
        ("many edits", lie(edits=(Truncate(0),) * 1000), "at most"),
        ("all the cache there is", lie(num_tokens_max=1 << 62), "more than this server gives"),
        ("less cache than nothing", lie(num_tokens_max=-(1 << 62)), "at least one token"),
        ("a whole cache many times", lie(num_tokens_max=120_000), "are more than the"),
        ("masks of another shape", lie(attention_mask=encode_tensor(torch.ones(1, 9).long())), "attention mask must"),
        ("positions of another type", lie(position_ids=encode_tensor(torch.ones(1, 1))), "position ids must"),
        ("prompts of other blocks", lie(prompts=encode_tensor(torch.zeros(1, 2, size))), "deep prompts"),
        ("an endless route", lie(route=route * 5000), "hops"),
        ("a route without a peer", lie(route=()), "needs a route"),
        ("blocks that are elsewhere", lie(route=(Hop(target.peer, 90, 91),)), "holds blocks"),
        ("blocks backwards", lie(route=(Hop(target.peer, target.last, 0),)), "range of blocks"),
        ("other weights", lie(model="another"), "other weights"),
        ("time backwards", lie(base=9, upto=3), "older to a newer"),
        ("a push of a session that is not its own", lie(session="not mine", base=7, upto=8), Behind.__name__),
        ("a client name that no node takes", lie(client=Address(own.peer, "x" * 5000)), SILENCE),
        ("an endless session name", lie(session="x" * 100_000), SILENCE),
    ]


def _requests(target: Target) -> list[tuple[str, Message, str]]:
    size, one = target.hidden_size, torch.zeros(1, 1, target.hidden_size)
    whole = encode_tensor(one)
    known = {"request": "r", "model": target.model, "first": 0, "last": target.last, "hidden": whole}

    def lie(kind: Callable[..., Message], **fields: Any) -> Message:
        gradient = {"gradient": whole} if kind is Backward else {}
        return kind(**{**known, **gradient, **fields})

    return [
        ("blocks backwards", lie(Forward, first=target.last, last=0), "range of blocks"),
        ("more blocks than it has", lie(Forward, last=1000), "holds blocks"),
        ("another width", lie(Forward, hidden=encode_tensor(torch.zeros(1, 1, size + 1))), "wide"),
        ("no such codec", lie(Forward, codec="zip"), "codec must be"),
        ("fewer bytes", lie(Forward, hidden=WireTensor("float32", (1, 7, size), "raw", whole.data)), "bytes for"),
        (
            "a gradient of another shape",
            lie(Backward, gradient=encode_tensor(torch.zeros(2, 1, size))),
            "gradient must",
        ),
        ("prompts of other blocks", lie(Backward, prompts=encode_tensor(torch.zeros(90, 1, size))), "deep prompts"),
        ("an endless name", lie(Forward, request="x" * 1000), "name is too long"),
    ]


def _strangers(target: Target) -> list[tuple[str, Message, str]]:
    hidden = encode_tensor(torch.zeros(1, 1, target.hidden_size))
    answer = {"session": "rogue", "first": 0, "last": target.last, "upto": 1}
    return [
        ("an output", Output(**answer, base=0, hidden=hidden), SILENCE),
        ("an answer", Working(**answer), SILENCE),
        ("a failed push", PushFailed(session="rogue", next_peer=NOBODY, reason="none"), SILENCE),
        ("the end of a session that is not its own", CloseSession(session="not mine"), SILENCE),
        ("a message of no system", Refusal(reason="none"), SILENCE),
        ("nobody's absence", NoSuchActor(actor="swarm"), SILENCE),
    ]


def sentence_of(answer: object) -> str:
    """What a refusal says; of other answers, what they are."""
    return getattr(answer, "reason", type(answer).__name__)
