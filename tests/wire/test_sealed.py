"""Sealed sessions: two peers agree through a relay that can neither read, alter, repeat nor reorder."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.wire.identity import Identity
from farflung.wire.sealed import (
    BULK,
    CREDIT,
    ORDERED,
    REPLAY_WINDOW,
    BadSeal,
    Greeting,
    SealedFrame,
    SealedSession,
    decode_body,
    encode_body,
)

ALICE, BOB, EVE = (Identity(bytes([number]) * 32) for number in (1, 2, 3))
SWARM, SESSION = bytes(32), bytes(16)


def agreed(swarm_bob: bytes = SWARM) -> tuple[SealedSession, SealedSession]:
    """Both ends of a session, each having checked the other's greeting."""
    hello, welcome = Greeting(ALICE, SWARM, SESSION, BOB.peer), Greeting(BOB, swarm_bob, SESSION, ALICE.peer)
    first = hello.sign(b"", (1, 1))
    welcome.check(ALICE.public_key, hello.ephemeral_key, b"", (1, 1), first)
    second = welcome.sign(hello.ephemeral_key, (1,))
    hello.check(BOB.public_key, welcome.ephemeral_key, hello.ephemeral_key, (1,), second)
    return (
        hello.agree(welcome.ephemeral_key, (first, second), is_dialler=True),
        welcome.agree(hello.ephemeral_key, (first, second), is_dialler=False),
    )


@given(
    st.lists(st.tuples(st.sampled_from([ORDERED, BULK, CREDIT]), st.booleans(), st.binary(max_size=50)), max_size=20)
)
def test_what_one_seals_the_other_opens(frames: list[tuple[int, bool, bytes]]) -> None:
    alice, bob = agreed()
    for lane, is_from_alice, content in frames:
        sender, receiver = (alice, bob) if is_from_alice else (bob, alice)
        sealed = decode_body(encode_body(sender.seal(lane, content)))
        assert content not in bytes(sealed.sealed) or len(content) < 4
        assert receiver.open(sealed) == content


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_every_altered_bit_is_noticed(position: int, flip: int) -> None:
    alice, bob = agreed()
    frame = alice.seal(ORDERED, b"attack at dawn")
    altered = bytearray(frame.sealed)
    altered[position % len(altered)] ^= flip
    with pytest.raises(BadSeal, match="altered"):
        bob.open(msgspec.structs.replace(frame, sealed=memoryview(altered)))
    assert bob.open(frame) == b"attack at dawn", "a forged frame must not use up the genuine one's place"


@pytest.mark.parametrize("lane", [ORDERED, BULK, CREDIT])
def test_repeated_and_misdirected_frames_are_noticed(lane: int) -> None:
    alice, bob = agreed()
    frame = alice.seal(lane, b"once")
    bob.open(frame)
    with pytest.raises(BadSeal, match="repeated"):
        bob.open(frame)
    with pytest.raises(BadSeal):
        alice.open(alice.seal(lane, b"to myself"))
    other_lane = BULK if lane != BULK else ORDERED
    with pytest.raises(BadSeal):
        bob.open(msgspec.structs.replace(alice.seal(lane, b"x"), lane=other_lane, sequence=0))
    for wrong in ({"lane": 9}, {"sequence": -1}, {"sequence": 1 << 63}):
        with pytest.raises(BadSeal):
            bob.open(msgspec.structs.replace(alice.seal(lane, b"x"), **wrong))


def test_ordered_frames_cannot_be_left_out_or_swapped_and_bulk_frames_may_overtake() -> None:
    alice, bob = agreed()
    first, second = alice.seal(ORDERED, b"1"), alice.seal(ORDERED, b"2")
    with pytest.raises(BadSeal, match="reordered"):
        bob.open(second)
    assert (bob.open(first), bob.open(second)) == (b"1", b"2")
    frames = [alice.seal(BULK, bytes([number % 256])) for number in range(REPLAY_WINDOW + 1)]
    with pytest.raises(BadSeal, match="reordered"):
        bob.open(frames[REPLAY_WINDOW])
    for frame in reversed(frames[:REPLAY_WINDOW]):
        bob.open(frame)
    bob.open(frames[REPLAY_WINDOW])
    for frame in frames:
        with pytest.raises(BadSeal):
            bob.open(frame)


def test_sessions_have_keys_of_their_own() -> None:
    (alice, _), (_, bob) = agreed(), agreed()
    with pytest.raises(BadSeal):
        bob.open(alice.seal(ORDERED, b"x"))


def test_greetings_of_others_for_others_and_of_other_swarms_are_refused() -> None:
    hello = Greeting(ALICE, SWARM, SESSION, BOB.peer)
    signature = hello.sign(b"", (1, 1))
    bob = Greeting(BOB, SWARM, SESSION, ALICE.peer)
    bob.check(ALICE.public_key, hello.ephemeral_key, b"", (1, 1), signature)
    for wrong in (
        (EVE.public_key, hello.ephemeral_key, b"", (1, 1), signature),
        (ALICE.public_key, bytes(32), b"", (1, 1), signature),
        (ALICE.public_key, hello.ephemeral_key, b"x", (1, 1), signature),
        (ALICE.public_key, hello.ephemeral_key, b"", (1, 2), signature),
        (ALICE.public_key, hello.ephemeral_key, b"", (1, 1), bytes(64)),
    ):
        with pytest.raises(BadSeal, match="not signed by the peer"):
            bob.check(*wrong)
    for other in (
        Greeting(BOB, bytes([1]) * 32, SESSION, ALICE.peer),
        Greeting(BOB, SWARM, bytes([1]) * 16, ALICE.peer),
        Greeting(EVE, SWARM, SESSION, ALICE.peer),
    ):
        with pytest.raises(BadSeal):
            other.check(ALICE.public_key, hello.ephemeral_key, b"", (1, 1), signature)
    with pytest.raises(BadSeal, match="agreed"):
        hello.agree(bytes(32), (signature, signature), is_dialler=True)


@given(st.binary(max_size=200))
def test_noise_is_no_body(noise: bytes) -> None:
    try:
        body = decode_body(noise)
    except BadSeal:
        return
    assert isinstance(body, SealedFrame), "only by a miracle"
