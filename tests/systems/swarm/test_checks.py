"""What a server demands of a request: every refusal, each with its sentence, and the largest that is still taken."""

from typing import Any

import pytest
import torch

from farflung.systems.swarm.checks import NUM_EDITS_MAX, NUM_HOPS_MAX, check_request, check_step, follow
from farflung.systems.swarm.messages import Backward, Forward, Hop, Reorder, Truncate
from farflung.wire.tensor import CODECS, WireTensor
from farflung.world.address import PeerId
from tests.systems.swarm.steps import LIMITS, MODEL, SERVER, step, wire

ONE = (Hop(SERVER, 0, 2),)
LYING = WireTensor("float32", (-1, -1, -32), "raw", memoryview(b""))

STEPS: list[tuple[str, dict[str, Any]]] = [
    ("a step needs a route and must lead from an older to a newer state", {"route": ()}),
    ("a step needs a route and must lead from an older to a newer state", {"base": 3, "upto": 3}),
    ("a step needs a route and must lead from an older to a newer state", {"base": -1}),
    ("a step takes at most 512 hops and 64 edits", {"route": ONE * (NUM_HOPS_MAX + 1)}),
    ("a step takes at most 512 hops and 64 edits", {"edits": (Truncate(0),) * (NUM_EDITS_MAX + 1)}),
    ("a hop needs a peer and a range of blocks that is not empty", {"route": (Hop(SERVER, 2, 2),)}),
    ("a hop needs a peer and a range of blocks that is not empty", {"route": (Hop(SERVER, -1, 2),)}),
    ("a hop needs a peer and a range of blocks that is not empty", {"route": (*ONE, Hop(PeerId("x" * 101), 2, 4))}),
    ("hidden states must be three-dimensional and floating-point, not int64 (1, 1, 32)",
     {"hidden": wire(1, 1, 32, dtype=torch.int64)}),
    ("hidden states must be three-dimensional and floating-point, not float32 (32,)", {"hidden": wire(32)}),
    ("hidden states are 31 wide but this model's are 32", {"hidden": wire(1, 1, 31)}),
    ("hidden states are -32 wide but this model's are 32", {"hidden": LYING}),
    ("a batch of 257 rows; this server takes 1 to 256", {"hidden": wire(257, 1, 32)}),
    ("a batch of 0 rows; this server takes 1 to 256", {"hidden": wire(0, 1, 32)}),
    ("513 positions; the model's context is 512", {"hidden": wire(1, 513, 32)}),
    ("0 positions; the model's context is 512", {"hidden": wire(1, 0, 32)}),
    ("a cache cannot be cut to a negative length", {"edits": (Truncate(-1),)}),
    ("a reorder must name 1 to 256 rows that exist", {"edits": (Reorder(()),)}),
    ("a reorder must name 1 to 256 rows that exist", {"edits": (Reorder((0,) * 257),)}),
    ("a reorder must name 1 to 256 rows that exist", {"edits": (Reorder((-1,)),)}),
    ("a reorder must name 1 to 256 rows that exist", {"edits": (Reorder((1 << 40,)),)}),
    ("the position ids must be int64 of shape (1, 1), not int64 (1, 2)",
     {"position_ids": wire(1, 2, dtype=torch.int64)}),
    ("the attention mask must be int64 of shape (1, 1), not float32 (1, 1)", {"attention_mask": wire(1, 1)}),
    (f"the codec must be one of {', '.join(CODECS)}, not 'zip'", {"codec": "zip"}),
    ("deep prompts of float32 (4, 3, 16) do not fit these blocks", {"prompts": wire(4, 3, 16)}),
    ("deep prompts of float32 (1, 3, 32) do not fit these blocks", {"prompts": wire(1, 3, 32)}),
    ("deep prompts of float32 (4, 1025, 32) do not fit these blocks", {"prompts": wire(4, 1025, 32)}),
    ("deep prompts of int64 (4, 3, 32) do not fit these blocks", {"prompts": wire(4, 3, 32, dtype=torch.int64)}),
    ("deep prompts of float32 (3, 32) do not fit these blocks", {"prompts": wire(3, 32)}),
    ("a session needs cache for at least one token", {"num_tokens_max": 0}),
    ("a session needs cache for at least one token", {"num_tokens_max": -(1 << 62)}),
    ("131073 cache tokens are more than this server gives any session", {"num_tokens_max": 512 * 256 + 1}),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "fields"), STEPS)
def test_steps_that_cannot_be_right(sentence: str, fields: dict[str, Any]) -> None:
    assert check_step(step(**{"base": 0, "upto": 1, **fields}), LIMITS) == sentence


def test_the_largest_step_is_taken() -> None:
    largest = step(
        0,
        1 << 60,
        route=tuple(Hop(SERVER, number, number + 1) for number in range(NUM_HOPS_MAX)),
        hidden=wire(256, 512, 32, dtype=torch.float16),
        edits=(Reorder(tuple(range(256))), *(Truncate(0),) * (NUM_EDITS_MAX - 1)),
        position_ids=wire(256, 512, dtype=torch.int64),
        attention_mask=wire(256, 512, dtype=torch.int64),
        prompts=wire(NUM_HOPS_MAX, 1, 32),
        num_tokens_max=512 * 256,
        codec="int8",
    )
    assert check_step(largest, LIMITS) is None


def test_sentences_stay_short_whatever_is_sent() -> None:
    lies: list[dict[str, Any]] = [
        {"hidden": WireTensor("x" * 100_000, (1,) * 100_000, "raw", memoryview(b""))},
        {"position_ids": WireTensor("x" * 100_000, (1,) * 100_000, "raw", memoryview(b""))},
        {"prompts": WireTensor("x" * 100_000, (1,) * 100_000, "raw", memoryview(b""))},
        {"codec": "x" * 100_000},
    ]
    for fields in lies:
        assert 10 < len(check_step(step(0, 1, **fields), LIMITS) or "") < 200


@pytest.mark.parametrize(
    ("sentence", "fields"),
    [
        ("a cache of 5 positions cannot be cut to 6", {"edits": (Truncate(6),)}),
        ("a cache of 2 positions cannot be cut to 3", {"edits": (Truncate(2), Truncate(3))}),
        ("row 2 does not exist in a batch of 2", {"edits": (Reorder((0, 2)),)}),
        ("row 1 does not exist in a batch of 1", {"edits": (Reorder((0,)), Reorder((1,)))}),
        ("3 rows do not continue a session of 2", {"hidden": wire(3, 1, 32)}),
        ("513 positions are over the model's context of 512", {"hidden": wire(2, 508, 32), "num_tokens_max": 9999}),
        ("2 rows of 6 positions are over the 11 tokens asked for", {"num_tokens_max": 11}),
    ],
)
def test_steps_that_do_not_fit_the_session(sentence: str, fields: dict[str, Any]) -> None:
    """The session holds 2 rows of 5 positions."""
    assert follow(step(1, 2, **{"hidden": wire(2, 1, 32), **fields}), 5, 2, LIMITS) == sentence


def test_steps_that_fit_say_what_the_session_is_afterwards() -> None:
    edits = (Reorder((1, 1, 0)), Truncate(3))
    assert follow(step(1, 2, hidden=wire(3, 2, 32), edits=edits), 5, 2, LIMITS) == (5, 3)
    emptied = step(1, 2, hidden=wire(7, 2, 32), edits=(Truncate(0),))
    assert follow(emptied, 5, 2, LIMITS) == (2, 7)


REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("the request's name is too long", {"request": "x" * 101}),
    ("a request needs a range of blocks that is not empty", {"first": 2, "last": 0}),
    ("a request needs a range of blocks that is not empty", {"first": -1}),
    ("hidden states are 16 wide but this model's are 32", {"hidden": wire(1, 2, 16)}),
    (f"the codec must be one of {', '.join(CODECS)}, not ''", {"codec": ""}),
    ("deep prompts of float32 (3, 1, 32) do not fit these blocks", {"prompts": wire(3, 1, 32)}),
    ("the attention mask must be int64 of shape (1, 2), not int64 (1, 1)",
     {"attention_mask": wire(1, 1, dtype=torch.int64)}),
]  # fmt: skip


@pytest.mark.parametrize("kind", [Forward, Backward])
@pytest.mark.parametrize(("sentence", "fields"), REQUESTS)
def test_requests_that_cannot_be_right(kind: type[Any], sentence: str, fields: dict[str, Any]) -> None:
    known = {"request": "r", "model": MODEL, "first": 0, "last": 2, "hidden": wire(1, 2, 32)}
    gradient = {"gradient": wire(1, 2, 32)} if kind is Backward else {}
    assert check_request(kind(**{**known, **gradient}), LIMITS) is None
    assert check_request(kind(**{**known, **gradient, **fields}), LIMITS) == sentence


@pytest.mark.parametrize("gradient", [wire(1, 3, 32), wire(1, 2, 32, dtype=torch.int64)])
def test_gradients_must_be_those_of_the_output(gradient: WireTensor) -> None:
    backward = Backward(request="r", model=MODEL, first=0, last=2, hidden=wire(1, 2, 32), gradient=gradient)
    assert (check_request(backward, LIMITS) or "").startswith("the gradient must be floating-point of shape (1, 2, 32)")
