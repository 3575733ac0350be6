"""The fair queue: turns among clients, order within each."""

from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.swarm.queue import FairQueue
from farflung.world.address import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def test_clients_take_turns_and_keep_their_order() -> None:
    queue: FairQueue[str] = FairQueue(10)
    for job in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(PeerId(job[0]), job)
    assert [queue.pop() for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", None]


def test_a_newcomer_waits_for_one_round_at_most() -> None:
    queue: FairQueue[str] = FairQueue(1000)
    for number in range(100):
        queue.push(A, f"a{number}")
        queue.push(B, f"b{number}")
    queue.pop()
    queue.push(C, "c")
    assert "c" in [queue.pop() for _ in range(3)]


@given(st.lists(st.one_of(st.sampled_from([A, B, C]), st.none()), max_size=60))
def test_nothing_is_lost_and_nobody_has_two_turns_while_another_waits_for_one(moves: list[PeerId | None]) -> None:
    """None takes a job; a peer gives one."""
    queue: FairQueue[tuple[PeerId, int]] = FairQueue(60)
    waiting: dict[PeerId, list[int]] = {A: [], B: [], C: []}
    served_meanwhile: dict[PeerId, set[PeerId]] = {A: set(), B: set(), C: set()}
    for number, client in enumerate(moves):
        if client is not None:
            if not waiting[client]:
                served_meanwhile[client] = set()
            queue.push(client, (client, number))
            waiting[client].append(number)
        elif (job := queue.pop()) is not None:
            peer, given = job
            assert waiting[peer].pop(0) == given
            served_meanwhile[peer] = set()
            for other in (A, B, C):
                if other != peer and waiting[other]:
                    assert peer not in served_meanwhile[other]
                    served_meanwhile[other].add(peer)
        else:
            assert not any(waiting.values())
        assert len(queue) == sum(map(len, waiting.values()))
    assert queue.is_full == (len(queue) == 60)
