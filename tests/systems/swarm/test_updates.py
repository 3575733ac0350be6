"""Other weights for a block server: from its owner alone, all parts at once, and no session outlives the old ones."""

from typing import Any

import pytest
import torch

from farflung.model.load import load_span
from farflung.model.span import Span
from farflung.systems.swarm.messages import Behind, Install, Installed, Output, SessionRefused
from farflung.wire.tensor import decode_tensor, encode_tensor
from farflung.world.address import PeerId
from tests.swarms import SmallModel
from tests.systems.swarm.steps import CLIENT, Bench, hidden, server, step

OWNER = CLIENT.peer
NAME = "0.mlp.down_proj.weight"


@pytest.fixture
def own(small: SmallModel) -> Span:
    """A span that this test may change."""
    return load_span(small.source, 0, 4)


def install(tensors: dict[str, torch.Tensor], *, part: int = 0, num_parts: int = 1) -> Install:
    wire = {name: encode_tensor(tensor) for name, tensor in tensors.items()}
    return Install(model="new", part=part, num_parts=num_parts, tensors=wire)


def answer_to(bench: Bench, message: Install) -> Any:
    (said,) = bench.receive(message)
    return said


def test_weights_come_in_parts_and_are_put_in_place_at_once(own: Span) -> None:
    bench = Bench(server(own, owner=OWNER))
    bench.apply(step(0, 1))
    before, other = own.weights()[NAME].clone(), "1.mlp.down_proj.weight"
    told = answer_to(bench, install({NAME: before + 1}, part=0, num_parts=2))
    assert told == Installed(model="new", part=0, reason="")
    assert torch.equal(own.weights()[NAME], before), "half of a version is none"
    bench.apply(step(1, 2))
    assert bench.receive(install({other: before + 2}, part=1, num_parts=2)) == []
    (told,) = bench.compute()
    assert told == Installed(model="new", part=1, reason="")
    assert torch.equal(own.weights()[NAME], before + 1) and torch.equal(own.weights()[other], before + 2)
    assert bench.receive(install({other: before + 2}, part=1, num_parts=2)) == [told], "asked again"
    (behind,) = bench.receive(step(2, 3, model="new"))
    assert isinstance(behind, Behind) and behind.applied == 0, "its cache was of the old weights"
    (refused,) = bench.receive(step(0, 3))
    assert isinstance(refused, SessionRefused) and "other weights" in refused.reason
    (output,) = bench.apply(step(0, 1, model="new"))
    assert isinstance(output, Output)
    expected = own.forward(hidden(seed=1), own.new_cache(0, 2), first=0, last=2)
    assert torch.equal(decode_tensor(output.hidden), expected)


@pytest.mark.parametrize(
    ("owner", "tensors", "reason"),
    [
        (None, {NAME: torch.zeros(1)}, "nobody but its owner"),
        (PeerId("somebody"), {NAME: torch.zeros(1)}, "nobody but its owner"),
        (OWNER, {NAME: torch.zeros(1)}, "is needed"),
        (OWNER, {"7.mlp.up_proj.weight": torch.zeros(1)}, "have no weights"),
    ],
)
def test_what_does_not_fit_or_comes_from_others_changes_nothing(
    own: Span, owner: PeerId | None, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    bench = Bench(server(own, owner=owner))
    bench.apply(step(0, 1))
    told = answer_to(bench, install(tensors))
    assert isinstance(told, Installed) and reason in told.reason
    (output,) = bench.apply(step(1, 2))
    assert isinstance(output, Output), "its sessions go on"
