"""The server's device: many sessions in one computation, prompts in chunks, and room for those who need it."""

from collections.abc import Sized
from typing import cast

import pytest
import torch

from farflung.model.pages import PAGE_TOKENS
from farflung.model.span import Span
from farflung.systems.swarm.engine import Engine
from farflung.systems.swarm.messages import Behind, CloseSession, Output, SessionRefused, Step, Working
from farflung.systems.swarm.sessions import IDLE_SECONDS
from farflung.wire.tensor import decode_tensor, encode_tensor
from farflung.world.address import Address, PeerId
from tests.systems.swarm.steps import SERVER, Bench, Hop, hidden, server, step

WHOLE = (Hop(SERVER, 0, 4),)


def client(name: str) -> Address:
    return Address(PeerId(name), f"session-{name}")


def num_together(bench: Bench) -> int:
    """Sessions in the computation that runs."""
    (run,) = bench.running
    return len(cast(Sized, run.arguments[0]))


def outputs(messages: list[object]) -> dict[str, torch.Tensor]:
    """Session -> hidden states of its output."""
    return {message.session: decode_tensor(message.hidden) for message in messages if isinstance(message, Output)}


def long_step(base: int, upto: int, num_positions: int, name: str, seed: int = 0, **fields: object) -> Step:
    """A step of so many positions through all blocks."""
    text = encode_tensor(hidden(1, num_positions, seed))
    known = {"hidden": text, "session": name, "route": WHOLE, "client": client(name), "num_tokens_max": 256}
    return step(base, upto, **{**known, **fields})


def test_steps_that_wait_are_computed_together_and_each_as_if_alone(span: Span) -> None:
    bench = Bench(server(span))
    names = ["one", "two", "three", "four"]
    bench.receive(long_step(0, 1, 3, "first"))
    for number, name in enumerate(names):
        bench.receive(long_step(0, 1, 2 + number, name, seed=number))
    bench.compute()
    assert num_together(bench) == 4
    said = outputs(bench.compute())
    for number, name in enumerate(names):
        expected = span.forward(hidden(1, 2 + number, number), span.new_cache())
        torch.testing.assert_close(said[name], expected, atol=1e-5, rtol=1e-5)
    assert not bench.running


@pytest.mark.parametrize("order", [("bad", "good"), ("good", "bad")])
def test_a_batch_that_fails_is_computed_one_by_one_and_only_the_culprit_is_closed(
    span: Span, order: tuple[str, str]
) -> None:
    bench = Bench(server(span))
    bench.receive(long_step(0, 1, 3, "first"))
    nan = encode_tensor(torch.full((1, 2, 32), float("nan")))
    steps = {
        "bad": long_step(0, 1, 2, "bad", hidden=nan, codec="int8"),
        "good": long_step(0, 1, 2, "good", seed=5),
    }
    for name in order:
        bench.receive(steps[name])
    bench.compute()
    said: list[object] = []
    while bench.running:
        said += bench.compute()
    (refusal,) = [message for message in said if isinstance(message, SessionRefused)]
    assert refusal.session == "bad" and "NaN" in refusal.reason
    expected = span.forward(hidden(1, 2, 5), span.new_cache())
    torch.testing.assert_close(outputs(said)["good"], expected, atol=1e-5, rtol=1e-5)


def test_a_prompt_in_chunks_lets_decode_steps_through_and_says_what_it_would_at_once(span: Span) -> None:
    bench = Bench(server(span, batch_seconds_max=0.1))  # 25 tokens
    bench.apply(long_step(0, 1, 2, "quick"))
    prompt = long_step(0, 1, 90, "long", seed=4)
    bench.receive(prompt)
    said: list[object] = []
    num_batches = 0
    for number in range(1, 20):
        said += bench.receive(long_step(number, number + 1, 1, "quick", seed=number))
        assert isinstance(bench.receive(prompt)[0], Working) or "long" in outputs(said)
        said += bench.compute()
        num_batches += 1
        if "long" in outputs(said):
            break
    while bench.running:
        bench.compute()
    assert 4 <= num_batches <= 8
    assert sum(isinstance(message, Output) and message.session == "quick" for message in said) >= num_batches - 2
    expected = span.forward(hidden(1, 90, 4), span.new_cache())
    torch.testing.assert_close(outputs(said)["long"], expected, atol=1e-4, rtol=1e-5)


def test_a_known_prompt_is_answered_from_what_was_computed_for_another_client(span: Span) -> None:
    bench = Bench(server(span, cache_tokens_max=10_000, batch_seconds_max=10.0))
    text = hidden(1, 3 * PAGE_TOKENS + 2)
    (first,) = bench.apply(long_step(0, 1, 0, "one", hidden=encode_tensor(text)))
    bench.receive(CloseSession(session="one"), source=client("one"))
    other = torch.cat([text, hidden(1, 1, seed=7)], dim=1)
    bench.receive(long_step(0, 1, 0, "two", hidden=encode_tensor(other)))
    (second,) = bench.compute()
    assert isinstance(first, Output) and isinstance(second, Output)
    whole = decode_tensor(first.hidden)[:, : 3 * PAGE_TOKENS]
    assert decode_tensor(second.hidden)[:, : 3 * PAGE_TOKENS].equal(whole), "a next server knows its prefix by these"
    expected = span.forward(other, span.new_cache())
    torch.testing.assert_close(decode_tensor(second.hidden), expected, atol=1e-4, rtol=1e-5)


def full_bench(span: Span) -> Bench:
    """Two sessions of a page each fill a cache of two pages."""
    bench = Bench(server(span, cache_tokens_max=2 * PAGE_TOKENS))
    for name in ("old", "young"):
        assert outputs(bench.apply(long_step(0, 1, PAGE_TOKENS - 1, name, num_tokens_max=2 * PAGE_TOKENS)))
    return bench


def test_the_younger_gives_way_replays_and_waits_until_there_is_room(span: Span) -> None:
    bench = full_bench(span)
    limit = 2 * PAGE_TOKENS
    bench.apply(long_step(1, 2, 2, "old", seed=1, num_tokens_max=limit))
    assert bench.role.num_sessions == 1, "there was no page left for it"
    (retried,) = bench.compute()
    assert isinstance(retried, Output) and retried.session == "old"
    (told,) = bench.receive(long_step(1, 2, 1, "young", seed=2, num_tokens_max=limit))
    assert isinstance(told, Behind) and told.applied == 0
    replay = long_step(0, 2, PAGE_TOKENS, "young", seed=3, num_tokens_max=limit)
    assert bench.apply(replay) == [] and bench.running == [], "it does not drive out the older one"
    assert isinstance(bench.receive(replay)[0], Working)
    bench.receive(CloseSession(session="old"), source=client("old"))
    bench.now = 1.0
    bench.take(bench.role.wake(bench.now))
    said = outputs(bench.compute())
    expected = span.forward(hidden(1, PAGE_TOKENS, 3), span.new_cache())
    torch.testing.assert_close(said["young"], expected, atol=1e-5, rtol=1e-5)


def test_a_session_that_is_not_used_gives_way_to_a_younger_one(span: Span) -> None:
    bench = full_bench(span)
    bench.now = IDLE_SECONDS + 1.0
    bench.apply(long_step(1, 2, 2, "young", seed=1, num_tokens_max=2 * PAGE_TOKENS))
    assert "young" in outputs(bench.compute())
    assert isinstance(bench.receive(long_step(1, 2, 1, "old"))[0], Behind)


def test_a_client_that_holds_most_gives_way_first(span: Span) -> None:
    bench = Bench(server(span, cache_tokens_max=3 * PAGE_TOKENS))
    greedy = Address(PeerId("greedy"), "sessions")
    for number in range(3):
        bench.apply(long_step(0, 1, PAGE_TOKENS, f"g{number}", number + 1, client=greedy, num_tokens_max=64))
    bench.apply(long_step(0, 1, 4, "modest", seed=8, num_tokens_max=64))
    assert "modest" in outputs(bench.compute())
    assert isinstance(bench.receive(long_step(1, 2, 1, "g2", client=greedy))[0], Behind)
    assert bench.role.num_sessions == 3


def test_a_session_that_finds_no_room_though_nobody_else_is_there_is_refused(span: Span) -> None:
    bench = Bench(server(span, cache_tokens_max=PAGE_TOKENS))
    rows = encode_tensor(hidden(2, 16))
    (refusal,) = bench.apply(long_step(0, 1, 16, "one", hidden=rows, num_tokens_max=32))
    assert isinstance(refusal, SessionRefused) and refusal.reason == "the cache has no room for 16 positions"
    assert bench.role.num_sessions == 0


def test_waiting_steps_of_who_gives_way_are_told_to_replay(span: Span) -> None:
    bench = full_bench(span)
    bench.receive(long_step(1, 2, 2, "old", seed=1, num_tokens_max=2 * PAGE_TOKENS))
    bench.receive(long_step(1, 2, 1, "young", seed=2, num_tokens_max=2 * PAGE_TOKENS))
    said = bench.compute()
    assert [(message.session, message.applied) for message in said if isinstance(message, Behind)] == [("young", 0)]


@pytest.mark.parametrize("num_sessions_max", [1, 2])
def test_sessions_computed_together_are_at_most_so_many(span: Span, num_sessions_max: int) -> None:
    bench = Bench(server(span, batch_sessions_max=num_sessions_max))
    for name in ("one", "two", "three"):
        bench.receive(long_step(0, 1, 2, name))
    sizes: list[int] = []
    while bench.running:
        sizes.append(num_together(bench))
        bench.compute()
    assert sizes == ([1, 1, 1] if num_sessions_max == 1 else [1, 2])


def test_the_device_waits_a_moment_for_the_sessions_of_the_last_batch(span: Span) -> None:
    bench = Bench(server(span))
    engine = bench.role._engine
    assert isinstance(engine, Engine)
    bench.receive(long_step(0, 1, 1, "zero"))
    for name in ("one", "two"):
        bench.receive(long_step(0, 1, 1, name))
    bench.receive(CloseSession(session="zero"), source=client("zero"))
    for _ in range(2):
        bench.now += 0.02
        bench.compute()
    bench.now += 0.001
    bench.receive(long_step(1, 2, 1, "one"))
    assert bench.running == [], "two was computed with it and comes back at once"
    bench.receive(long_step(1, 2, 1, "two"))
    assert num_together(bench) == 2
    bench.now += 0.02
    bench.compute()
    bench.receive(long_step(2, 3, 1, "one"))
    bench.now += 0.02
    bench.take(bench.role.wake(bench.now))
    assert num_together(bench) == 1, "nobody is waited for long"
