"""The policy of batches: fair to clients, decode before prompts, prompts in chunks, and nobody starves."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.model.span import Span
from farflung.systems.swarm.batching import REQUEST_SECONDS_MAX, Batch, BatchQueue
from farflung.systems.swarm.jobs import RequestJob, StepJob
from farflung.systems.swarm.messages import Forward
from farflung.systems.swarm.sessions import ServerSession
from farflung.world.address import Address, PeerId
from tests.swarms import SmallModel
from tests.systems.swarm.steps import MODEL, step, wire

BUDGET = 64


@dataclass
class Sessions:
    """Sessions of a span by name, "a1" being the first of client a."""

    span: Span
    known: dict[str, ServerSession] = field(default_factory=dict[str, ServerSession])

    def job(self, name: str, num_positions: int, **fields: Any) -> StepJob:
        """A step of so many positions."""
        if name not in self.known:
            cache = self.span.new_cache(0, 2)
            client = Address(PeerId(name[0]), f"session-{name}")
            self.known[name] = ServerSession((name, 0, 2), client, self.span, 64, cache)
        return StepJob(self.known[name], step(0, 1, hidden=wire(1, num_positions, 32), **fields), 0.0)


@pytest.fixture
def sessions(span: Span) -> Sessions:
    return Sessions(span)


def queue_of(*jobs: StepJob | RequestJob, num_sessions_max: int = 32) -> BatchQueue:
    queue = BatchQueue(1000, num_sessions_max)
    for job in jobs:
        queue.push(job)
    return queue


def shares(chosen: object) -> dict[str, int]:
    """Session -> positions computed."""
    assert isinstance(chosen, Batch)
    return {part.job.session.key[0]: part.num_positions for part in chosen.parts}


def request(span: Span, at: float) -> RequestJob:
    message = Forward(request="r", model=MODEL, first=0, last=2, hidden=wire(1, 5, 32))
    return RequestJob(Address(PeerId("t"), "tuner"), message, span, at)


def test_every_decode_step_comes_before_any_prompt_and_a_prompt_gets_the_rest(sessions: Sessions) -> None:
    queue = queue_of(sessions.job("a1", 500), sessions.job("b1", 1), sessions.job("c1", 3))
    assert shares(queue.form(0.0, BUDGET)) == {"b1": 1, "c1": 3, "a1": BUDGET - 4}
    assert len(queue) == 0


def test_a_prompt_goes_on_in_chunks_though_decode_steps_would_fill_every_batch(sessions: Sessions) -> None:
    queue, prompt = BatchQueue(1000, 1000), sessions.job("p1", 40)
    queue.push(prompt)
    chunks: list[int] = []
    while prompt.num_positions_left:
        for number in range(BUDGET):
            queue.push(sessions.job(f"d{number}", 1))
        done = shares(queue.form(0.0, BUDGET))
        assert len(done) > BUDGET // 2, "decode steps do not wait for the prompt"
        chunks.append(done["p1"])
        prompt.num_done += done["p1"]
        if prompt.num_positions_left:
            queue.put_back(prompt)
    assert chunks == [16, 16, 8]


def test_a_batch_has_one_step_of_a_session_in_their_order(sessions: Sessions) -> None:
    first, second = sessions.job("a1", 1), sessions.job("a1", 1)
    queue = queue_of(first, second)
    for expected in (first, second):
        batch = queue.form(0.0, BUDGET)
        assert isinstance(batch, Batch) and [part.job for part in batch.parts] == [expected]


def test_clients_share_by_tokens_however_many_sessions_they_have(sessions: Sessions) -> None:
    queue = queue_of(*(sessions.job(f"a{number}", 1) for number in range(20)), num_sessions_max=4)
    assert set(shares(queue.form(0.0, BUDGET))) == {"a0", "a1", "a2", "a3"}
    for number in range(3):
        queue.push(sessions.job(f"b{number}", 1))
    taken = [name for _ in range(2) for name in shares(queue.form(0.0, BUDGET))]
    assert {"b0", "b1", "b2"} <= set(taken), "a newcomer does not wait for all that another has in line"


def test_who_pauses_gets_no_arrears(sessions: Sessions) -> None:
    queue = queue_of(sessions.job("b1", 1))
    queue.form(0.0, BUDGET)
    for number in range(100):
        queue.push(sessions.job(f"a{number}", 1))
        queue.form(0.0, BUDGET)
    for number in range(8):
        queue.push(sessions.job(f"a{number}", 1))
        queue.push(sessions.job(f"b{number}", 1))
    queue.num_sessions_max = 8
    assert {name[0] for name in shares(queue.form(0.0, BUDGET))} == {"a", "b"}


def test_sessions_that_cannot_be_batched_are_computed_alone_and_whole(sessions: Sessions) -> None:
    queue = queue_of(sessions.job("a1", 500), sessions.job("b1", 1))
    sessions.known["a1"].is_plain = False
    chosen = [shares(queue.form(0.0, BUDGET)) for _ in range(2)]
    assert {"a1": 500} in chosen and {"b1": 1} in chosen


def test_requests_give_way_to_sessions_until_they_have_waited_long(sessions: Sessions) -> None:
    waiting = request(sessions.span, at=0.0)
    queue = queue_of(waiting, sessions.job("a1", 1), sessions.job("a1", 1))
    assert shares(queue.form(1.0, BUDGET)) == {"a1": 1}
    assert queue.form(REQUEST_SECONDS_MAX, BUDGET) is waiting
    queue.push(request(sessions.span, at=5.0))
    assert shares(queue.form(5.0, BUDGET)) == {"a1": 1}
    assert isinstance(queue.form(5.0, BUDGET), RequestJob)


def test_closed_sessions_and_those_without_room_are_passed_over(sessions: Sessions) -> None:
    closed, waiting = sessions.job("a1", 1), sessions.job("b1", 1)
    queue = queue_of(closed, waiting, sessions.job("c1", 1))
    sessions.known["a1"].is_closed = True
    waiting.waits_until = 1.0
    assert shares(queue.form(0.5, BUDGET)) == {"c1": 1}
    assert queue.form(0.5, BUDGET) is None and len(queue) == 1 and queue.ready_at() == 1.0
    assert shares(queue.form(1.0, BUDGET)) == {"b1": 1}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(1, 200)), max_size=40))
def test_nothing_is_lost_and_everything_is_served(small: SmallModel, moves: list[tuple[str, int, int]]) -> None:
    sessions, queue = Sessions(small.span(0, 4)), BatchQueue(1000, 4)
    left: dict[StepJob, int] = {}
    served: dict[str, list[StepJob]] = {}
    order: dict[str, list[StepJob]] = {}
    for client, number, num_positions in moves:
        job = sessions.job(f"{client}{number}", num_positions)
        queue.push(job)
        left[job] = num_positions
        order.setdefault(job.session.key[0], []).append(job)
    while any(left.values()):
        batch = queue.form(0.0, BUDGET)
        assert isinstance(batch, Batch) and 1 <= len(batch.parts) <= 4
        assert batch.num_tokens <= BUDGET + BUDGET // 4 or len(batch.parts) == 1
        for part in batch.parts:
            left[part.job] -= part.num_positions
            part.job.num_done += part.num_positions
            if part.job.num_positions_left:
                queue.put_back(part.job)
            else:
                served.setdefault(part.job.session.key[0], []).append(part.job)
    assert served == order and len(queue) == 0
