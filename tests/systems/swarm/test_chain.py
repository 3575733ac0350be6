"""The chain's book-keeping, and what a session makes of each message that reaches it."""

import pytest
import torch

from farflung.systems.swarm.answers import MISBEHAVIOUR_BAN_SECONDS, Answers
from farflung.systems.swarm.chain import Chain
from farflung.systems.swarm.messages import Behind, Hop, Output, PushFailed, SessionRefused, Truncate, Working
from farflung.wire.message import NoSuchActor
from farflung.wire.tensor import WireTensor, encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.errors import Refused
from farflung.world.mailbox import PeerLost

A, B, C, D = (PeerId(name) for name in "abcd")
HOPS = (Hop(A, 0, 2), Hop(B, 2, 3), Hop(A, 3, 4))
SIZE = 8


def test_a_chain_is_cut_where_a_server_cannot_push() -> None:
    chain = Chain(HOPS)
    first, second, third = chain.links
    assert chain.segments(is_push_wanted=True) == [[first, second, third]]
    assert chain.segments(is_push_wanted=False) == [[first], [second], [third]]
    second.can_push = False
    assert chain.segments(is_push_wanted=True) == [[first, second], [third]]


def test_a_lost_link_makes_room_for_several() -> None:
    chain = Chain(HOPS)
    chain.links[0].can_push = False
    fresh = chain.replace(chain.links[1], [Hop(C, 2, 3)])
    assert str(chain) == "a[0:2] -> c[2:3] -> a[3:4]" and chain.links[1:2] == fresh
    assert chain.links[0].can_push, "it may reach the new server"
    chain.replace(chain.links[0], [Hop(C, 0, 1), Hop(D, 1, 2)])
    assert chain.boundaries() == [0, 1, 2, 3]
    assert chain.before(chain.links[1]) is chain.links[0]


def test_links_are_found_by_server_and_range() -> None:
    chain = Chain(HOPS)
    assert chain.find(A, 3, 4) is chain.links[2]
    assert chain.find(B, 0, 2) is None and chain.find(C, 0, 2) is None
    assert chain.on(A) == [chain.links[0], chain.links[2]]


@pytest.fixture
def answers() -> Answers:
    """Three links over four blocks; step 1 gave 2 rows 3 positions, step 2 is under way with one more."""
    made = Answers(4, SIZE)
    made.chain = Chain(HOPS)
    for number, num_positions in ((1, 3), (2, 1)):
        ids = torch.zeros(2, num_positions, dtype=torch.int64)
        made.history.append((), ids, ids)
        made.expect(range(number, number + 1))
    return made


def output(first: int, last: int, upto: int, *shape: int, base: int = 1, value: float = 0.0) -> Output:
    hidden = encode_tensor(torch.full((*shape, SIZE), value))
    return Output(session="s", first=first, last=last, base=base, upto=upto, hidden=hidden, compute_seconds=0.5)


def from_server(peer: PeerId) -> Address:
    return Address(peer, "swarm")


def test_the_last_output_is_the_result_and_others_are_history(answers: Answers) -> None:
    answers.take(from_server(A), output(0, 2, 2, 2, 1))
    first, _, third = answers.chain.links
    assert answers.has_output(first) and not answers.is_done and first.applied == 2
    answers.take(from_server(A), output(3, 4, 2, 2, 1, value=7.0))
    assert answers.has_output(third) and answers.is_done
    assert torch.equal(answers.final, torch.full((2, 1, SIZE), 7.0))
    assert answers.times.compute_seconds == 1.0


def test_a_whole_output_counts_by_its_newest_positions(answers: Answers) -> None:
    whole = torch.arange(2 * 4 * SIZE, dtype=torch.float32).view(2, 4, SIZE)
    message = Output(session="s", first=3, last=4, base=0, upto=2, hidden=encode_tensor(whole))
    answers.take(from_server(A), message)
    assert answers.is_done and torch.equal(answers.final, whole[:, -1:])
    answers.take(from_server(B), output(2, 3, 2, 2, 4, base=0))
    assert answers.has_whole_output(answers.chain.links[1])


def test_outputs_of_earlier_steps_complete_the_history_only(answers: Answers) -> None:
    first = answers.chain.links[0]
    answers.take(from_server(A), output(0, 2, 2, 2, 1))
    assert answers.has_output(first) and not answers.has_whole_output(first)
    answers.take(from_server(A), output(0, 2, 1, 2, 3, base=0))
    assert answers.has_whole_output(first)
    answers.take(from_server(A), output(3, 4, 1, 2, 3))
    assert not answers.is_done, "what an earlier step gave is not this step's result"
    assert answers.times.compute_seconds == 0.5


def test_outputs_of_steps_that_were_never_asked_for_and_of_strangers_are_ignored(answers: Answers) -> None:
    for source, message in (
        (A, output(0, 2, 3, 2, 1)),
        (A, output(0, 2, 0, 2, 1)),
        (C, output(0, 2, 2, 2, 1)),
        (A, output(2, 3, 2, 2, 1)),
    ):
        answers.take(from_server(source), message)
    assert not any(answers.has_output(link) for link in answers.chain.links)
    assert all(link.trouble is None for link in answers.chain.links)


@pytest.mark.parametrize(
    "hidden",
    [
        encode_tensor(torch.zeros(2, 2, SIZE)),
        encode_tensor(torch.zeros(1, 1, SIZE)),
        encode_tensor(torch.zeros(2, 1, SIZE + 1)),
        encode_tensor(torch.zeros(2, 1, SIZE, dtype=torch.int64)),
        WireTensor("float32", (2, 1, SIZE), "raw", memoryview(b"short")),
        WireTensor("float32", (2, 1, SIZE), "zip", memoryview(b"")),
        WireTensor("object", (2, 1, SIZE), "raw", memoryview(b"")),
        WireTensor("float32", (1,) * 10_000, "raw", memoryview(b"")),
    ],
)
def test_a_server_that_sends_what_cannot_be_is_left_for_long(answers: Answers, hidden: WireTensor) -> None:
    """Numbers that are wrong, in the right shape, cannot be told from right ones."""
    message = Output(session="s", first=0, last=2, base=1, upto=2, hidden=hidden)
    answers.take(from_server(A), message)
    link = answers.chain.links[0]
    assert (link.trouble or "").startswith("it misbehaved: ") and len(link.trouble or "") < 300
    assert link.ban_seconds == MISBEHAVIOUR_BAN_SECONDS
    assert not answers.has_output(link)


def test_a_server_that_is_behind_or_at_work_says_so_of_the_step_under_way(answers: Answers) -> None:
    first = answers.chain.links[0]
    answers.take(from_server(A), Behind(session="s", first=0, last=2, upto=1, applied=0))
    assert not first.is_behind
    answers.take(from_server(A), Behind(session="s", first=0, last=2, upto=2, applied=0))
    assert first.is_behind and not first.is_working
    answers.take(from_server(A), Working(session="s", first=0, last=2, upto=2))
    assert first.is_working and not first.is_behind


def test_refusals_mark_the_link_or_end_the_session(answers: Answers) -> None:
    refusal = SessionRefused(session="s", first=2, last=3, upto=2, reason="it is full", retry_after_seconds=2.0)
    answers.take(from_server(B), refusal)
    assert (answers.chain.links[1].trouble, answers.chain.links[1].ban_seconds) == ("it is full", 2.0)
    late = SessionRefused(session="s", first=0, last=2, upto=1, reason="long ago", is_fault_of_client=True)
    answers.take(from_server(A), late)
    wrong = SessionRefused(session="s", first=0, last=2, upto=2, reason="a wrong shape", is_fault_of_client=True)
    answers.take(from_server(C), wrong)
    with pytest.raises(Refused, match="a refused: a wrong shape"):
        answers.take(from_server(A), wrong)


def test_losses_mark_every_link_on_that_server(answers: Answers) -> None:
    answers.take(Address(A, ""), PeerLost(A, "it died"))
    assert [link.trouble for link in answers.chain.links] == ["it died", None, "it died"]
    answers.take(from_server(B), NoSuchActor(actor="swarm"))
    assert answers.chain.links[1].trouble == "it serves no blocks any more"


def test_a_failed_push_cuts_the_chain_there(answers: Answers) -> None:
    answers.take(from_server(B), PushFailed(session="s", next_peer=C, reason="who is that"))
    assert all(link.can_push for link in answers.chain.links)
    answers.take(from_server(A), PushFailed(session="s", next_peer=B, reason="no way"))
    assert [link.can_push for link in answers.chain.links] == [False, True, True]


def test_the_length_after_edits_is_what_outputs_are_measured_by(answers: Answers) -> None:
    ids = torch.zeros(2, 2, dtype=torch.int64)
    answers.history.append((Truncate(1),), ids, ids)
    answers.expect(range(3, 4))
    answers.take(from_server(A), output(0, 2, 3, 2, 3, base=0))
    assert answers.chain.links[0].trouble is None
    answers.take(from_server(B), output(2, 3, 3, 2, 6, base=0))
    assert answers.chain.links[1].trouble is not None
