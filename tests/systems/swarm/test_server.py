"""The block server as a state machine: every message in every state gets the answer the protocol says."""

import pytest
import torch

from farflung.model.span import Span
from farflung.systems.swarm.info import ServerState
from farflung.systems.swarm.messages import (
    Attach,
    Behind,
    CloseSession,
    Forward,
    Hop,
    Output,
    PushFailed,
    Reorder,
    RequestRefused,
    SessionRefused,
    Step,
    Truncate,
    Working,
)
from farflung.wire.message import NoSuchActor
from farflung.wire.tensor import decode_tensor, encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.errors import PeerMisbehaved
from tests.swarms import SmallModel
from tests.systems.swarm.steps import CLIENT, MODEL, NEXT, NEXT_ACTOR, SERVER, Bench, hidden, server, step, wire


@pytest.fixture
def bench(span: Span) -> Bench:
    return Bench(server(span))


def test_a_step_is_computed_once_and_its_duplicates_are_answered(bench: Bench, span: Span) -> None:
    first = step(0, 1)
    assert bench.receive(first) == []
    (working,) = bench.receive(first)
    assert isinstance(working, Working) and working.upto == 1
    (output,) = bench.compute()
    assert isinstance(output, Output) and (output.first, output.last, output.base, output.upto) == (0, 2, 0, 1)
    expected = span.forward(hidden(seed=1), span.new_cache(0, 2), first=0, last=2)
    assert torch.equal(decode_tensor(output.hidden), expected)
    assert bench.receive(first) == [output]
    assert bench.running == [], "a duplicate must not be computed again"


def test_a_step_ahead_of_the_session_is_told_where_it_stands(bench: Bench) -> None:
    (behind,) = bench.receive(step(4, 5))
    assert isinstance(behind, Behind) and (behind.upto, behind.applied) == (5, 0)
    bench.apply(step(0, 1))
    (behind,) = bench.receive(step(4, 5))
    assert isinstance(behind, Behind) and behind.applied == 1


def test_an_old_step_whose_output_is_gone_is_told_where_it_stands(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.apply(step(number - 1, number))
    (behind,) = bench.receive(step(1, 2))
    assert isinstance(behind, Behind) and (behind.upto, behind.applied) == (2, 3)


def test_a_fresh_start_replaces_what_is_there_and_its_duplicate_does_not(bench: Bench) -> None:
    bench.apply(step(0, 1))
    bench.apply(step(1, 2))
    rebuilt = step(0, 3, hidden=encode_tensor(hidden(1, 3)))
    (output,) = bench.apply(rebuilt)
    assert isinstance(output, Output) and output.base == 0 and output.hidden.shape == (1, 3, 32)
    assert bench.receive(rebuilt) == [output] and not bench.running
    assert bench.role.num_sessions == 1


def test_outputs_are_pushed_to_the_next_server_before_the_client_gets_its_copy(bench: Bench) -> None:
    bench.apply(step(0, 1, route=(Hop(SERVER, 0, 2), Hop(NEXT, 2, 4))))
    (to_next, pushed), (to_client, output) = bench.sent
    assert to_next == NEXT_ACTOR and to_client == CLIENT
    assert isinstance(pushed, Step) and pushed.route == (Hop(NEXT, 2, 4),) and pushed.hidden == output.hidden
    assert (pushed.base, pushed.upto, pushed.client) == (0, 1, CLIENT)


@pytest.mark.parametrize("how", ["lost", "not there"])
def test_a_push_that_fails_is_told_to_the_client(bench: Bench, how: str) -> None:
    bench.apply(step(0, 1, route=(Hop(SERVER, 0, 2), Hop(NEXT, 2, 4))))
    bench.apply(step(0, 1, session="two", client=Address(PeerId("other"), "session-2")))
    bench.sent.clear()
    if how == "lost":
        bench.take(bench.role.lost(NEXT, "it died", 1.0))
    else:
        bench.receive(NoSuchActor(actor=NEXT_ACTOR.actor), source=NEXT_ACTOR)
    ((to, failed),) = bench.sent
    assert to == CLIENT and isinstance(failed, PushFailed) and (failed.session, failed.next_peer) == ("one", NEXT)


def test_a_push_of_a_session_that_is_closed_is_nobodys_concern(bench: Bench) -> None:
    bench.apply(step(0, 1, route=(Hop(SERVER, 0, 2), Hop(NEXT, 2, 4))))
    bench.receive(CloseSession(session="one"))
    assert list(bench.role.lost(NEXT, "it died", 1.0)) == []


def test_more_may_be_promised_than_there_is_but_nobody_gets_what_cannot_be_held(span: Span) -> None:
    bench = Bench(server(span, cache_tokens_max=100))
    bench.apply(step(0, 1, num_tokens_max=150))  # on 2 of 4 blocks: 75 tokens
    assert bench.num_tokens_left == 25
    assert isinstance(bench.apply(step(0, 1, session="two", num_tokens_max=200))[0], Output)
    assert bench.num_tokens_left == 0
    (refusal,) = bench.receive(step(0, 1, session="three", num_tokens_max=201))
    assert isinstance(refusal, SessionRefused) and not refusal.is_fault_of_client
    assert refusal.reason == "201 tokens are more than the 100 of its cache" and refusal.retry_after_seconds > 0
    assert bench.role.num_sessions == 2


def test_a_session_that_cannot_grow_is_refused_and_freed(span: Span) -> None:
    bench = Bench(server(span, cache_tokens_max=100))
    bench.apply(step(0, 1, num_tokens_max=10))
    bench.apply(step(1, 2, num_tokens_max=60))
    assert bench.num_tokens_left == 70
    (refusal,) = bench.receive(step(2, 3, num_tokens_max=500))
    assert isinstance(refusal, SessionRefused) and refusal.reason == "the cache cannot grow to 500 tokens"
    assert bench.num_tokens_left == 100 and bench.role.num_sessions == 0


def test_a_full_queue_refuses_without_setting_anything_aside(span: Span) -> None:
    bench = Bench(server(span, num_jobs_max=1))
    bench.receive(step(0, 1))
    bench.receive(step(0, 1, session="two"))
    before = bench.num_tokens_left
    (refusal,) = bench.receive(step(0, 1, session="three"))
    assert isinstance(refusal, SessionRefused) and refusal.retry_after_seconds > 0
    assert refusal.reason == "1 steps are waiting here already"
    assert bench.num_tokens_left == before and bench.role.num_sessions == 2
    (refused,) = bench.receive(Forward(request="r", model=MODEL, first=0, last=2, hidden=wire(1, 1, 32)))
    assert isinstance(refused, RequestRefused) and refused.retry_after_seconds > 0


def test_other_weights_and_other_blocks_are_refused(bench: Bench) -> None:
    (refusal,) = bench.receive(step(0, 1, model="another"))
    assert refusal.reason == "this server holds small with other weights"
    (refusal,) = bench.receive(step(0, 1, route=(Hop(SERVER, 3, 5),)))
    assert refusal.reason == "this server holds blocks 0:4, not 3:5"
    assert not refusal.is_fault_of_client, "another server may hold them"


def test_a_draining_server_finishes_its_sessions_and_takes_no_new_ones(bench: Bench) -> None:
    bench.apply(step(0, 1))
    bench.role.state = ServerState.DRAINING
    assert isinstance(bench.apply(step(1, 2))[0], Output)
    (refusal,) = bench.receive(step(0, 1, session="two"))
    assert refusal.reason == "this server is draining and takes no new sessions"


def test_sessions_on_the_blocks_that_were_left_go_on(bench: Bench, small: SmallModel) -> None:
    bench.apply(step(0, 1))
    bench.take(bench.role.replace_span(small.span(1, 4), 1.0))
    (output,) = bench.apply(step(1, 2))
    assert isinstance(output, Output)
    old = small.span(0, 4)
    cache = old.new_cache(0, 2)
    for number in (1, 2):
        expected = old.forward(hidden(seed=number), cache, first=0, last=2)
    assert torch.equal(decode_tensor(output.hidden), expected)
    (refusal,) = bench.receive(step(0, 1, session="two"))
    assert refusal.reason == "this server holds blocks 1:4, not 0:2"
    assert isinstance(bench.apply(step(0, 1, session="three", route=(Hop(SERVER, 1, 3),)))[0], Output)
    assert bench.role.forget_left_spans() == 1 and bench.role.num_sessions == 1
    assert isinstance(bench.receive(step(2, 3))[0], Behind)


def test_orphans_are_freed_after_their_grace_however_often_the_loss_is_told(bench: Bench) -> None:
    bench.apply(step(0, 1))
    for now in (1.0, 5.0, 9.0):
        bench.role.lost(CLIENT.peer, "gone", now)
        bench.role.wake(now + 0.5)
        assert bench.role.num_sessions == 1
    bench.role.wake(11.0)
    assert bench.role.num_sessions == 0 and bench.num_tokens_left == 1000


def test_a_client_that_comes_back_keeps_its_session(bench: Bench) -> None:
    bench.apply(step(0, 1))
    bench.role.lost(CLIENT.peer, "gone", 1.0)
    bench.receive(Attach(session="one"))
    bench.role.wake(100.0)
    assert bench.role.num_sessions == 1


def test_a_client_whose_actor_is_gone_is_freed_at_once(bench: Bench) -> None:
    bench.apply(step(0, 1))
    bench.apply(step(0, 1, session="two", client=Address(CLIENT.peer, "session-2")))
    bench.receive(NoSuchActor(actor=CLIENT.actor), source=CLIENT)
    assert bench.role.num_sessions == 1


def test_idle_sessions_are_freed(span: Span) -> None:
    bench = Bench(server(span, idle_seconds_max=60.0))
    bench.apply(step(0, 1))
    bench.now = 50.0
    bench.apply(step(1, 2))
    bench.role.wake(100.0)
    assert bench.role.num_sessions == 1
    bench.role.wake(111.0)
    assert bench.role.num_sessions == 0 and bench.num_tokens_left == 1000


@pytest.mark.parametrize("when", ["waiting", "running", "done"])
def test_a_closed_session_is_freed_at_any_moment(bench: Bench, when: str) -> None:
    bench.receive(step(0, 1, session="other"))
    bench.receive(step(0, 1))
    for _ in range({"waiting": 0, "running": 1, "done": 2}[when]):
        bench.compute()
    bench.receive(CloseSession(session="one"))
    assert bench.num_tokens_left == 1000 - 64 // 2
    while bench.running:
        assert all(message.session == "other" for message in bench.compute())
    assert isinstance(bench.receive(step(1, 2))[0], Behind)


def test_nobody_but_its_client_closes_a_session(bench: Bench) -> None:
    bench.apply(step(0, 1))
    bench.receive(CloseSession(session="one"), source=Address(PeerId("another"), CLIENT.actor))
    assert bench.role.num_sessions == 1


def test_a_failing_computation_closes_only_its_own_session(bench: Bench) -> None:
    bench.apply(step(0, 1))
    bench.receive(step(0, 1, session="two"))
    bench.receive(step(1, 2))
    (refusal,) = bench.compute(error=MemoryError("no memory left"))
    assert isinstance(refusal, SessionRefused) and refusal.session == "two"
    assert refusal.reason == "the computation failed: no memory left" and not refusal.is_fault_of_client
    assert isinstance(bench.compute()[0], Output)
    assert bench.role.num_sessions == 1 and bench.num_tokens_left == 1000 - 32


def test_values_that_the_codec_cannot_hold_are_refused_and_the_queue_goes_on(bench: Bench) -> None:
    too_large = encode_tensor(torch.full((1, 1, 32), float("nan")))
    bench.receive(step(0, 1, hidden=too_large, codec="int8"))
    bench.receive(step(0, 1, session="two"))
    (refusal,) = bench.compute()
    assert isinstance(refusal, SessionRefused) and "cannot hold infinite values or NaN" in refusal.reason
    (output,) = bench.compute()
    assert isinstance(output, Output) and output.session == "two"


def test_a_step_that_does_not_fit_its_session_is_the_clients_fault_and_frees_it(bench: Bench) -> None:
    bench.apply(step(0, 1))
    (refusal,) = bench.receive(step(1, 2, edits=(Truncate(7),)))
    assert refusal.is_fault_of_client and refusal.reason == "a cache of 1 positions cannot be cut to 7"
    assert bench.role.num_sessions == 0 and bench.num_tokens_left == 1000


def test_edits_change_the_cache_as_they_say(bench: Bench, span: Span) -> None:
    rows = hidden(2, 3, seed=9)
    bench.apply(step(0, 1, hidden=encode_tensor(rows)))
    edits = (Reorder((1, 0, 1)), Truncate(2))
    (output,) = bench.apply(step(1, 2, edits=edits, hidden=encode_tensor(hidden(3, 1, seed=2))))
    whole = torch.cat([rows[[1, 0, 1], :2], hidden(3, 1, seed=2)], dim=1)
    expected = span.forward(whole, span.new_cache(0, 2), first=0, last=2)[:, -1:]
    torch.testing.assert_close(decode_tensor(output.hidden), expected, atol=1e-5, rtol=1e-5)


def test_a_masked_session_cut_to_nothing_goes_on_with_another_batch(bench: Bench) -> None:
    mask = encode_tensor(torch.tensor([[0, 1, 1], [1, 1, 1]]))
    bench.apply(step(0, 1, hidden=encode_tensor(hidden(2, 3)), attention_mask=mask))
    (output,) = bench.apply(step(1, 2, edits=(Truncate(0),), hidden=encode_tensor(hidden(1, 2))))
    assert isinstance(output, Output), output


def test_steps_of_a_session_are_taken_while_earlier_ones_wait(bench: Bench) -> None:
    for number in (1, 2, 3):
        bench.receive(step(number - 1, number))
    assert [bench.compute()[0].upto for _ in range(3)] == [1, 2, 3]


def test_a_step_that_cannot_be_answered_is_named_as_misbehaviour(bench: Bench) -> None:
    for fields in ({"client": Address(NEXT, "x" * 201)}, {"client": Address(NEXT, "")}, {"session": "x" * 101}):
        with pytest.raises(PeerMisbehaved, match="names no client that could be answered"):
            bench.receive(step(0, 1, **fields))


def test_messages_of_other_systems_are_named_as_misbehaviour(bench: Bench) -> None:
    with pytest.raises(PeerMisbehaved, match="a block server does not take Working messages"):
        bench.receive(Working(session="one", first=0, last=2, upto=1))
