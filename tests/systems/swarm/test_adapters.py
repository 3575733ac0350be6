"""A block server's adapters: checked before memory is taken, kept within a budget, never mixed up."""

from typing import Any

import msgspec
import torch

from farflung.model.pages import PAGE_TOKENS
from farflung.model.span import Span
from farflung.systems.swarm.adapters import NamedAdapter, name_of
from farflung.systems.swarm.messages import (
    AdapterHanded,
    CloseSession,
    Forward,
    ForwardDone,
    HandAdapter,
    Hop,
    Output,
    RequestRefused,
    SessionRefused,
)
from farflung.wire.tensor import WireTensor, decode_tensor, encode_tensor
from farflung.world.address import Address, PeerId
from tests.loras import lora
from tests.swarms import SmallModel
from tests.systems.swarm.steps import CLIENT, MODEL, SERVER, Bench, hidden, server, step, wire

OTHER = Address(PeerId("other"), "session-2")
KEY = "1.mlp.up_proj"


def named(small: SmallModel, seed: int = 1, **settings: Any) -> NamedAdapter:
    return NamedAdapter.of(lora(small.source, seed, **settings).requires_grad_(False))


def part_of(adapter: NamedAdapter, first: int = 0, last: int = 2) -> HandAdapter:
    (part,) = adapter.parts(first, last)
    return part


def num_bytes(adapter: NamedAdapter, first: int = 0, last: int = 2) -> int:
    return sum(1024 + sum(each.bytes for each in adapter.additions[block].values()) for block in range(first, last))


def hand(bench: Bench, adapter: NamedAdapter, first: int = 0, last: int = 2, source: Address = CLIENT) -> AdapterHanded:
    sent = bench.receive(part_of(adapter, first, last), source)
    (said,) = sent or bench.compute()
    assert isinstance(said, AdapterHanded)
    return said


def knows(bench: Bench, adapter: NamedAdapter) -> bool:
    """Whether a new session with it could begin."""
    asking = step(0, 1, session=f"asking for {adapter.name}", adapter=adapter.name)
    said = bench.apply(asking)
    bench.receive(CloseSession(session=asking.session))
    return isinstance(said[0], Output)


def test_a_step_of_an_unknown_adapter_asks_for_it_and_then_goes_through(small: SmallModel, span: Span) -> None:
    bench, adapter = Bench(server(span)), named(small)
    (refused,) = bench.receive(step(0, 1, adapter=adapter.name))
    assert isinstance(refused, SessionRefused) and refused.wants_adapter and not refused.is_fault_of_client
    assert hand(bench, adapter).reason == ""
    assert hand(bench, adapter).reason == "", "asked again"
    (output,) = bench.apply(step(0, 1, adapter=adapter.name))
    assert isinstance(output, Output)
    expected = span.forward(hidden(seed=1), span.new_cache(0, 2), first=0, last=2, additions=adapter.additions)
    assert torch.equal(decode_tensor(output.hidden), expected)
    (behind,) = bench.receive(step(1, 2))  # the next step without it is no continuation
    assert not isinstance(behind, Output)


def test_a_request_of_an_unknown_adapter_asks_for_it(small: SmallModel, span: Span) -> None:
    bench, adapter = Bench(server(span)), named(small)
    request = Forward(
        request="one", model=MODEL, first=0, last=2, hidden=encode_tensor(hidden(2, 3)), adapter=adapter.name
    )
    (refused,) = bench.receive(request)
    assert isinstance(refused, RequestRefused) and refused.wants_adapter
    hand(bench, adapter, 0, 1)
    (refused,) = bench.receive(request)
    assert isinstance(refused, RequestRefused), "half of it is not enough"
    hand(bench, adapter, 1, 2)
    bench.receive(request)
    (done,) = bench.compute()
    assert isinstance(done, ForwardDone)
    expected = span.forward(hidden(2, 3), None, first=0, last=2, additions=adapter.additions)
    assert torch.equal(decode_tensor(done.hidden), expected)


def changed(part: HandAdapter, **fields: WireTensor) -> HandAdapter:
    return msgspec.structs.replace(part, factors={**part.factors, **fields})


def misfits(part: HandAdapter) -> list[tuple[str, HandAdapter]]:
    a, b = f"{KEY}.lora_A", f"{KEY}.lora_B"
    replace = msgspec.structs.replace
    without = {key: factor for key, factor in part.factors.items() if key != a}
    empty = tuple(b"" for _ in range(5000))
    return [
        ("hash of its blocks' digests", replace(part, adapter="0" * 64)),
        ("hash of its blocks' digests", replace(part, digests=part.digests[:-1])),
        ("hash of its blocks' digests", replace(part, digests=empty, adapter=name_of(empty))),
        ("a range of blocks that is not empty", replace(part, first=1, last=1)),
        ("a range of blocks that is not empty", replace(part, first=3, last=9)),
        ("a range of blocks that is not empty", replace(part, first=-1, last=1)),
        ("no linear layer for '2.mlp.up_proj.lora_A'", changed(part, **{"2.mlp.up_proj.lora_A": part.factors[a]})),
        ("no linear layer for '1.mlp.act.lora_A'", changed(part, **{"1.mlp.act.lora_A": part.factors[a]})),
        ("no linear layer for 'x.lora_A'", changed(part, **{"x.lora_A": part.factors[a]})),
        ("no linear layer for '1.mlp.up_proj.lora_C'", changed(part, **{f"{KEY}.lora_C": part.factors[a]})),
        ("lacks the other factor", replace(part, factors=without)),
        ("raw floating-point matrices", changed(part, **{a: wire(4, 32, dtype=torch.int64)})),
        ("raw floating-point matrices", changed(part, **{a: encode_tensor(torch.zeros(4, 32), "fp16")})),
        ("rank is 1 to 256", changed(part, **{a: wire(257, 32), b: wire(48, 257)})),
        ("rank is 1 to 256", changed(part, **{a: wire(0, 32), b: wire(48, 0)})),
        ("rank is 1 to 256", changed(part, **{a: wire(4)})),
        ("factors of shapes (4, 31) and (48, 4)", changed(part, **{a: wire(4, 31)})),
        ("factors of shapes (4, 32) and (48, 3)", changed(part, **{b: wire(48, 3)})),
    ]


def test_a_part_that_cannot_be_right_is_refused_before_it_is_read(small: SmallModel, span: Span) -> None:
    bench = Bench(server(span))
    for sentence, part in misfits(part_of(named(small))):
        (said,) = bench.receive(part)
        assert isinstance(said, AdapterHanded) and sentence in said.reason and said.is_fault_of_client, sentence
        assert not bench.running


def test_factors_that_are_not_those_of_the_name_are_refused(small: SmallModel, span: Span) -> None:
    bench, adapter = Bench(server(span)), named(small)
    part = part_of(adapter)
    a = f"{KEY}.lora_A"
    bad = decode_tensor(part.factors[a]) + 1e-6
    short = WireTensor("float32", (4, 32), "raw", memoryview(b"1234"))
    for factor, sentence in ((encode_tensor(bad), "block 1 are not those"), (short, "4 bytes for shape")):
        bench.receive(changed(part, **{a: factor}))
        (said,) = bench.compute()
        assert isinstance(said, AdapterHanded) and sentence in said.reason and said.is_fault_of_client
    assert not knows(bench, adapter)
    assert hand(bench, adapter).reason == ""
    assert knows(bench, adapter)


def test_blocks_that_are_elsewhere_are_no_fault_of_the_client(small: SmallModel) -> None:
    bench, adapter = Bench(server(small.span(2, 4))), named(small)
    (said,) = bench.receive(part_of(adapter))
    assert isinstance(said, AdapterHanded) and "this server holds blocks 2:4" in said.reason
    assert not said.is_fault_of_client


def test_what_was_used_longest_ago_gives_way_but_not_what_is_in_use(small: SmallModel, span: Span) -> None:
    adapters = [named(small, seed) for seed in range(4)]
    bench = Bench(server(span, adapter_bytes_max=2 * num_bytes(adapters[0]) + 100))
    for adapter in adapters[:2]:
        assert hand(bench, adapter).reason == ""
    assert knows(bench, adapters[0])  # used just now
    assert hand(bench, adapters[2]).reason == ""
    assert not knows(bench, adapters[1])
    bench.apply(step(0, 1, session="two", adapter=adapters[2].name))
    bench.apply(step(0, 1, session="one", adapter=adapters[0].name))
    refused = hand(bench, adapters[3])
    assert "over the" in refused.reason and not refused.is_fault_of_client, "both are in use"
    for session, adapter in (("one", adapters[0]), ("two", adapters[2])):
        (output,) = bench.apply(step(1, 2, session=session, adapter=adapter.name))
        assert isinstance(output, Output)


def test_more_than_the_budget_is_refused_before_it_is_read(small: SmallModel, span: Span) -> None:
    adapter = named(small)
    bench = Bench(server(span, adapter_bytes_max=num_bytes(adapter) - 1))
    (said,) = bench.receive(part_of(adapter))
    assert isinstance(said, AdapterHanded) and "over the" in said.reason and not bench.running


def test_adapters_without_factors_take_room_too(small: SmallModel, span: Span) -> None:
    """Else names alone could fill the memory."""
    bench = Bench(server(span, adapter_bytes_max=10 * 1024))
    for number in range(50):
        digests = (bytes([number]),) * 4
        part = HandAdapter(adapter=name_of(digests), digests=digests, first=0, last=2, factors={})
        bench.receive(part)
    assert len(bench.running) <= 5


def test_of_an_adapter_in_training_two_versions_are_kept(small: SmallModel, span: Span) -> None:
    bench, lasting = Bench(server(span)), named(small, 9)
    assert hand(bench, lasting).reason == ""
    versions = [NamedAdapter.of(lora(small.source, seed)) for seed in range(4)]
    assert all(version.is_passing for version in versions)
    theirs = NamedAdapter.of(lora(small.source, 20))
    assert hand(bench, theirs, source=OTHER).reason == ""
    for version in versions:
        assert hand(bench, version).reason == ""
    assert [knows(bench, version) for version in versions] == [False, False, True, True]
    assert knows(bench, lasting) and knows(bench, theirs)


def test_prefixes_are_shared_under_one_adapter_only(small: SmallModel, span: Span) -> None:
    adapters = [named(small, seed, targets=["v_proj"]) for seed in (1, 2)]
    bench = Bench(server(span))
    for adapter in adapters:
        hand(bench, adapter)
    text = hidden(1, PAGE_TOKENS + 3)
    for number, additions in enumerate([None, adapters[0], adapters[1], adapters[0], None]):
        name = additions.name if additions is not None else ""
        (output,) = bench.apply(
            step(0, 1, session=f"{number}", hidden=encode_tensor(text), num_tokens_max=200, adapter=name)
        )
        assert isinstance(output, Output)
        added = additions.additions if additions is not None else None
        expected = span.forward(text, span.new_cache(0, 2), first=0, last=2, additions=added)
        torch.testing.assert_close(decode_tensor(output.hidden), expected, rtol=0, atol=1e-5)


def test_steps_of_many_adapters_are_computed_in_one_batch(small: SmallModel, span: Span) -> None:
    adapters: list[NamedAdapter | None] = [named(small, 1), None, named(small, 2), None, named(small, 1)]
    bench = Bench(server(span))
    for adapter in adapters[:3:2]:
        assert adapter is not None
        hand(bench, adapter)
    names = [adapter.name if adapter is not None else "" for adapter in adapters]
    texts = [hidden(1, 4, seed=number) for number in range(5)]
    for number, name in enumerate(names):
        bench.receive(step(0, 1, session=f"{number}", adapter=name, hidden=encode_tensor(texts[number])))
    outputs: dict[str, Output] = {}
    num_batches = 0
    while bench.running:
        num_batches += 1
        outputs |= {said.session: said for said in bench.compute() if isinstance(said, Output)}
    assert num_batches == 2, "the first alone, and those that came meanwhile together"
    for number, adapter in enumerate(adapters):
        added = adapter.additions if adapter is not None else None
        expected = span.forward(texts[number], span.new_cache(0, 2), first=0, last=2, additions=added)
        torch.testing.assert_close(decode_tensor(outputs[f"{number}"].hidden), expected, rtol=0, atol=1e-5)


def test_a_pushed_step_names_its_adapter(small: SmallModel, span: Span) -> None:
    bench, adapter = Bench(server(span)), named(small)
    hand(bench, adapter)
    route = (Hop(SERVER, 0, 2), Hop(PeerId("next"), 2, 4))
    onward, _ = bench.apply(step(0, 1, adapter=adapter.name, route=route))
    assert onward.adapter == adapter.name
