"""Standbys on the server: computed when nobody else waits, silent, first to give way."""

from typing import Any, cast

import pytest
import torch

from farflung.model.pages import PAGE_TOKENS
from farflung.model.span import Span
from farflung.systems.swarm.batching import Batch
from farflung.systems.swarm.engine import STANDBY_PAUSE_SECONDS
from farflung.systems.swarm.messages import Behind, CloseSession, Output, StandingBy, Step, Truncate
from farflung.wire.tensor import decode_tensor, encode_tensor
from farflung.world.effects import Send
from tests.systems.swarm.steps import Bench, hidden, server, step

NUM_TOKENS = 200


def following(base: int, upto: int, num_positions: int, seed: int = 0, **fields: Any) -> Step:
    """A step of a standby."""
    text = encode_tensor(hidden(1, num_positions, seed))
    return step(base, upto, **{"hidden": text, "num_tokens_max": NUM_TOKENS, "is_background": True, **fields})


def own(base: int, upto: int, num_positions: int, seed: int = 0, name: str = "own", **fields: Any) -> Step:
    """A step of a session that is computed here."""
    text = encode_tensor(hidden(1, num_positions, seed))
    return step(base, upto, **{"hidden": text, "num_tokens_max": NUM_TOKENS, "session": name, **fields})


def sessions_of(bench: Bench) -> list[str]:
    """Whose steps run now."""
    (run,) = bench.running
    return [part.job.step.session for part in cast(Batch, run.job).parts]


def drained(bench: Bench) -> list[object]:
    """What is sent until nothing runs."""
    said: list[object] = []
    while bench.running:
        said += bench.compute()
    return said


def test_a_standby_answers_with_its_step_alone_and_goes_on_as_if_it_had_computed_all(span: Span) -> None:
    bench = Bench(server(span))
    text = hidden(1, 12, seed=3)
    (answer,) = bench.apply(following(0, 3, 0, hidden=encode_tensor(text[:, :8])))
    assert isinstance(answer, StandingBy) and answer.upto == 3
    bench.apply(following(3, 5, 0, hidden=encode_tensor(text[:, 8:11])))
    (output,) = bench.apply(own(5, 6, 0, name="one", hidden=encode_tensor(text[:, 11:])))
    assert isinstance(output, Output)
    expected = span.forward(text, span.new_cache(0, 2), first=0, last=2)[:, 11:]
    torch.testing.assert_close(decode_tensor(output.hidden), expected, atol=1e-5, rtol=1e-5)


def test_what_was_taken_back_meanwhile_is_forgotten(span: Span) -> None:
    bench = Bench(server(span))
    text = hidden(1, 10, seed=4)
    bench.apply(following(0, 3, 0, hidden=encode_tensor(text[:, :8])))
    bench.apply(following(3, 7, 0, hidden=encode_tensor(text[:, 8:9]), edits=(Truncate(5),)))
    (output,) = bench.apply(own(7, 8, 0, name="one", hidden=encode_tensor(text[:, 9:])))
    kept = torch.cat([text[:, :5], text[:, 8:]], dim=1)
    expected = span.forward(kept, span.new_cache(0, 2), first=0, last=2)[:, -1:]
    torch.testing.assert_close(decode_tensor(output.hidden), expected, atol=1e-5, rtol=1e-5)


def test_whoever_waits_comes_before_standbys_which_have_a_small_turn_all_the_same(span: Span) -> None:
    bench = Bench(server(span, standby_seconds_max=0.1))  # 50 tokens
    bench.receive(own(0, 1, 3))
    bench.receive(following(0, 1, 120))
    bench.receive(own(0, 1, 3, name="other"))
    assert sessions_of(bench) == ["own"]
    bench.compute()
    first_turn = sessions_of(bench)
    assert first_turn == ["one"], "it has waited for ever so far"
    bench.compute()
    assert sessions_of(bench) == ["other"]
    bench.receive(own(1, 2, 1, seed=5))
    bench.compute()
    assert sessions_of(bench) == ["own"]
    bench.now = STANDBY_PAUSE_SECONDS + 0.1
    bench.receive(own(1, 2, 1, name="other", seed=6))
    bench.compute()
    assert sessions_of(bench) == ["one"], "its next turn, before others"
    assert bench.role.info({}).queue_length == 1, "nobody need count what gives way"
    bench.compute()
    bench.now += 0.01  # the other one of two that take turns does not come back
    bench.take(bench.role.wake(bench.now))
    assert sessions_of(bench) == ["other"]
    said = drained(bench)
    while not said or not isinstance(said[-1], StandingBy):
        bench.now += STANDBY_PAUSE_SECONDS
        bench.take(bench.role.wake(bench.now))
        said += drained(bench)
    assert sum(isinstance(message, StandingBy) for message in said) == 1


def test_a_session_that_is_about_to_be_back_is_not_kept_waiting(span: Span) -> None:
    bench = Bench(server(span))
    bench.apply(own(0, 1, 3))
    bench.now = 0.01
    bench.apply(following(0, 1, 10))  # its turn, so that the next is not due
    bench.apply(own(1, 2, 1, seed=1))
    assert bench.receive(following(1, 2, 10, seed=2)) == [] and not bench.running
    bench.now += 0.1
    bench.take(bench.role.wake(bench.now))
    assert sessions_of(bench) == ["one"], "it did not come"


def test_a_standby_that_is_needed_waits_like_others(span: Span) -> None:
    bench = Bench(server(span))
    bench.apply(following(0, 1, 5))
    bench.receive(own(0, 1, 40))
    bench.receive(following(1, 2, 4, seed=1))
    bench.receive(own(0, 1, 40, name="late"))
    bench.receive(own(2, 3, 1, name="one", seed=2))
    left = bench.num_tokens_left
    said = drained(bench)
    assert [message.session for message in said if isinstance(message, Output)].count("one") == 1
    assert left == 1000 - 3 * NUM_TOKENS // 2, "it is promised what it may need from now on"
    bench.receive(CloseSession(session="one"))
    bench.receive(CloseSession(session="own"))
    bench.receive(CloseSession(session="late"))
    assert bench.num_tokens_left == 1000 and bench.role.num_sessions == 0


def test_standbys_give_way_first_and_to_them_nobody_does(span: Span) -> None:
    bench = Bench(server(span, cache_tokens_max=2 * PAGE_TOKENS))  # of four blocks: four pages of these two
    limit: dict[str, Any] = {"num_tokens_max": 3 * PAGE_TOKENS}
    bench.apply(following(0, 1, 2 * PAGE_TOKENS, **limit))
    assert bench.num_tokens_left == 2 * PAGE_TOKENS, "nothing is promised to it"
    bench.apply(own(0, 1, 2 * PAGE_TOKENS, seed=1, **limit))
    bench.apply(own(1, 2, 1, seed=2, **limit))
    assert "own" in {message.session for message in drained(bench) if isinstance(message, Output)}
    bench.now = 0.1  # nobody is expected back any more
    bench.take(bench.role.wake(bench.now))
    drained(bench)
    assert bench.role.num_sessions == 1
    (told,) = bench.receive(following(1, 2, 1, **limit))
    assert isinstance(told, Behind) and told.applied == 0
    bench.now = 100.0
    bench.receive(following(0, 2, 2 * PAGE_TOKENS, seed=3, **limit))
    drained(bench)
    assert bench.role.num_sessions == 1, "there was no room for it, and it is gone again"
    assert isinstance(bench.sent[-1][1], Behind)


def test_a_duplicate_of_a_standbys_step_is_told_how_far_it_is(span: Span) -> None:
    bench = Bench(server(span))
    first = following(0, 2, 5)
    bench.apply(first)
    (again,) = bench.receive(first)
    assert isinstance(again, StandingBy) and again.upto == 2
    (behind,) = bench.receive(following(1, 4, 5))
    assert isinstance(behind, Behind) and behind.applied == 2


def test_a_client_is_asked_whether_it_still_wants_what_it_does_not_use(span: Span) -> None:
    bench = Bench(server(span, ask_seconds=20.0))
    bench.apply(own(0, 1, 3))
    asked: list[float] = []
    for second in range(0, 60, 5):
        effects = bench.role.wake(float(second))
        asked += [second for effect in effects if isinstance(effect, Send) and isinstance(effect.message, StandingBy)]
    assert asked == pytest.approx([20, 40])
