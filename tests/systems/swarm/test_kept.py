"""Forward passes that wait for their gradients: used once, within bounds, and with the same bits as recomputed ones."""

from collections import Counter
from typing import Any

import pytest
import torch

from farflung.model.span import Span
from farflung.systems.swarm import stateless
from farflung.systems.swarm.config import SessionConfig
from farflung.systems.swarm.kept import KeptPass, KeptPasses, counting_saved_bytes
from farflung.systems.swarm.messages import Backward, Forward
from farflung.wire.tensor import encode_tensor
from farflung.world.address import PeerId
from tests.loras import lora
from tests.swarms import SimulatedSwarm, SmallModel, tokens

CLIENT, OTHER = PeerId("client"), PeerId("other")
PASS = KeptPass(torch.zeros(1), torch.zeros(1), None, None, num_bytes=10)


def forward(name: str, **fields: Any) -> Forward:
    hidden = encode_tensor(torch.zeros(1, 2, 32))
    return Forward(
        **{"request": name, "model": "m", "first": 0, "last": 2, "hidden": hidden, "is_kept": True, **fields}
    )


def backward(name: str, **fields: Any) -> Backward:
    hidden = encode_tensor(torch.zeros(1, 2, 32))
    common = {"request": "b", "model": "m", "first": 0, "last": 2, "hidden": hidden, "gradient": hidden}
    return Backward(**{**common, "forward": name, **fields})


def test_a_pass_is_given_once_to_who_asked_for_it() -> None:
    kept = KeptPasses(100, 60.0)
    kept.add(CLIENT, forward("one"), PASS, now=0.0)
    for other in (
        backward("two"),
        backward("one", model="n"),
        backward("one", last=1),
        backward("one", adapter="a"),
        backward("one", wants_factors_gradient=True),
        backward("one", hidden=encode_tensor(torch.zeros(1, 3, 32))),
    ):
        assert kept.take(CLIENT, other) is None
    assert kept.take(OTHER, backward("one")) is None
    assert kept.take(CLIENT, backward("one")) is PASS
    assert kept.take(CLIENT, backward("one")) is None and kept.num_bytes == 0


def test_the_oldest_make_room_and_what_nobody_asks_for_goes() -> None:
    kept = KeptPasses(25, 60.0)
    for number, name in enumerate(("one", "two", "three")):
        kept.add(CLIENT, forward(name), PASS, now=float(number))
    assert (len(kept), kept.num_bytes) == (2, 20)
    assert kept.take(CLIENT, backward("one")) is None and kept.take(CLIENT, backward("two")) is PASS
    kept.add(CLIENT, forward("three"), PASS, now=3.0)
    assert (len(kept), kept.num_bytes) == (1, 10), "a name counts once"
    kept.drop_old(63.0)
    assert len(kept) == 1
    kept.drop_old(63.5)
    assert (len(kept), kept.num_bytes) == (0, 0)
    KeptPasses(9, 60.0).add(CLIENT, forward("large"), PASS, now=0.0)
    small = KeptPasses(9, 60.0)
    small.add(CLIENT, forward("large"), PASS, now=0.0)
    assert len(small) == 0


def test_what_is_saved_is_counted_without_the_weights(span: Span) -> None:
    def saved(num_rows: int) -> int:
        with counting_saved_bytes(span) as found:
            span.forward_train(torch.zeros(num_rows, 4, 32).requires_grad_(), first=0, last=2)
        return sum(found.values())

    weights = sum(weight.nbytes for layer in span.layers[:2] for weight in layer.parameters())
    assert saved(1) > 0 and saved(4) == pytest.approx(4 * saved(1), rel=0.1)
    assert saved(1) < weights


def gradients(small: SmallModel, kept_bytes_max: int) -> tuple[list[torch.Tensor], Counter[str], int, float]:
    """By an adapter and by deep prompts; how often spans were computed with gradients; what is left on the servers, and
    for how long they were charged."""
    passes: Counter[str] = Counter()
    config = SessionConfig(ask_again_seconds=0.5, micro_batch_tokens_max=12)
    servers = {"a": (0, 2), "b": (2, 4)}
    with SimulatedSwarm(small, servers, config=config, kept_bytes_max=kept_bytes_max) as swarm:
        plain = stateless._run
        with pytest.MonkeyPatch.context() as patch:

            def counted(span: Span, request: Any, *arguments: Any) -> KeptPass:
                passes[type(request).__name__] += 1
                return plain(span, request, *arguments)

            patch.setattr(stateless, "_run", counted)
            adapter = lora(small.source)
            swarm.model.set_lora(adapter)
            generator = torch.Generator().manual_seed(2)
            prompts = torch.rand(small.num_blocks, 3, small.source.hidden_size, generator=generator).requires_grad_()
            swarm.model.set_deep_prompts(prompts)
            batch = tokens(small, 5, 6)
            swarm.model(input_ids=batch, labels=batch).loss.backward()
        left = sum(len(role._engine.kept) for role in swarm.roles.values())
        devices: list[Any] = [swarm.simulation.world(name).compute for name in servers]
        found = [prompts.grad, *(parameter.grad for parameter in adapter.parameters())]
    assert all(one is not None for one in found)
    return [one for one in found if one is not None], passes, left, sum(device.busy_seconds for device in devices)


def test_kept_passes_spare_the_second_forward_and_give_the_same_bits(small: SmallModel) -> None:
    kept, passes, left, seconds = gradients(small, 1 << 29)
    assert passes == {"Forward": 6} and left == 0, "three micro-batches, two spans, none computed twice or left behind"
    forgotten, passes, left, longer_seconds = gradients(small, 0)
    assert passes == {"Forward": 6, "Backward": 6} and left == 0
    assert all(torch.equal(one, other) for one, other in zip(kept, forgotten, strict=True))
    assert longer_seconds == pytest.approx(1.5 * seconds), "forth, and back; or forth, forth again, and back"


def test_nothing_is_kept_where_no_gradient_is_wanted(small: SmallModel) -> None:
    with SimulatedSwarm(small, {"a": (0, 4)}) as swarm:
        swarm.model.set_lora(lora(small.source))
        with torch.no_grad():
            swarm.model(tokens(small, 2, 6))
        assert len(swarm.roles["a"]._engine.kept) == 0
