"""Large messages in parts, without a network: cut, overtaken, put together, limited."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.runtime.bulk import NUM_INCOMPLETE_MAX, BulkInbox, BulkOutbox
from farflung.runtime.outbox import Outbox, Overflow
from farflung.wire.control import PART_BYTES_MAX, MalformedFrame, Part, decode_control

SIZES = st.sampled_from([1, 7, 1000, PART_BYTES_MAX - 1, PART_BYTES_MAX, PART_BYTES_MAX + 1, 2 * PART_BYTES_MAX + 5])


def outbox(num_bytes_max: int = 1 << 30) -> tuple[BulkOutbox, list[tuple[str, int]]]:
    counted: list[tuple[str, int]] = []
    clock = iter(range(10**6))
    return BulkOutbox(num_bytes_max, lambda: float(next(clock)), lambda *entry: counted.append(entry)), counted


async def parts_of(box: BulkOutbox) -> list[bytes]:
    taken: list[bytes] = []
    while box.num_bytes:
        taken.append(await box.take())
    return taken


def part(data: bytes) -> Part:
    frame = decode_control(data)
    assert isinstance(frame, Part)
    return frame


@given(st.lists(st.lists(SIZES, min_size=1, max_size=4), min_size=1, max_size=4), st.integers(0, 1000))
@settings(max_examples=30)
def test_messages_in_pieces_arrive_whole_in_whatever_order_their_parts_do(messages: list[list[int]], seed: int) -> None:
    stream = random.Random(seed)
    pieces = [[stream.randbytes(size) for size in sizes] for sizes in messages]
    box, counted = outbox()
    for number, one in enumerate(pieces):
        box.put([one[0], *map(memoryview, one[1:])], f"kind {number}")
    parts = asyncio.run(parts_of(box))
    assert [kind for kind, _ in counted] == [f"kind {number}" for number in range(len(pieces))]
    assert sum(num_bytes for _, num_bytes in counted) == sum(map(len, parts))
    stream.shuffle(parts)
    inbox, arrived = BulkInbox(1 << 30), dict[int, bytes]()
    for data in parts:
        for number, whole, _ in inbox.add(part(data), len(data)):
            arrived[number] = bytes(whole)
    assert list(arrived.items()) == [(number, b"".join(one)) for number, one in enumerate(pieces)], "in order"
    assert inbox.is_idle
    assert not box.is_idle
    for number in arrived:
        box.arrived(number, 0.0)
    assert box.is_idle
    assert box.bytes_per_second is not None


async def test_what_was_sent_does_not_change_with_its_memory() -> None:
    box, _ = outbox()
    memory = bytearray(3 * PART_BYTES_MAX)
    box.put([memoryview(memory)], "kind")
    memory[:] = b"x" * len(memory)
    assert all(not any(part(data).data) for data in await parts_of(box))


async def test_what_cannot_change_is_not_copied_before_its_turn() -> None:
    class Telling(bytes):
        alive = True

        def __del__(self) -> None:
            Telling.alive = False

    box, _ = outbox()
    box.put([memoryview(Telling(2 * PART_BYTES_MAX))], "kind")
    await box.take()
    assert Telling.alive, "the second part was cut with the first"
    assert box.num_bytes == PART_BYTES_MAX
    await box.take()
    assert not Telling.alive, "the message is held although all of it was taken"
    assert box.num_bytes == 0


async def test_waiting_lanes_are_woken_and_share() -> None:
    box, _ = outbox()
    lanes = [asyncio.create_task(box.take()) for _ in range(3)]
    await asyncio.sleep(0)
    box.put([bytes(3 * PART_BYTES_MAX)], "kind")
    taken = await asyncio.gather(*lanes)
    assert sorted(part(data).offset for data in taken) == [0, PART_BYTES_MAX, 2 * PART_BYTES_MAX]


async def test_limits_of_what_waits() -> None:
    box, _ = outbox(3 * PART_BYTES_MAX)
    box.put([bytes(2 * PART_BYTES_MAX)], "kind")
    with pytest.raises(Overflow):
        box.put([bytes(PART_BYTES_MAX + 1)], "kind")
    with pytest.raises(Overflow):
        box.put_frame(bytes(PART_BYTES_MAX + 1))
    await box.take()
    box.put_frame(b"passing")
    assert await box.take() == b"passing"
    small = Outbox(10)
    small.put(b"12345678")
    with pytest.raises(Overflow, match="8 bytes already wait"):
        small.put(b"123")
    assert await small.take() == b"12345678"
    small.put(b"1234567890")


def test_parts_that_no_honest_peer_sends_are_refused() -> None:
    def one(message: int = 0, offset: int = 0, total: int = 2 * PART_BYTES_MAX, size: int = PART_BYTES_MAX) -> Part:
        return Part(message=message, offset=offset, num_bytes_total=total, data=memoryview(bytes(size)))

    inbox = BulkInbox(8 * PART_BYTES_MAX)
    inbox.add(one(), 1)
    for wrong in (
        one(),
        one(offset=1),
        one(offset=2 * PART_BYTES_MAX),
        one(offset=PART_BYTES_MAX, size=5),
        one(offset=PART_BYTES_MAX, total=3 * PART_BYTES_MAX),
        one(message=1, total=0, size=0),
        one(message=1, total=1 << 40),
        one(message=1, total=7 * PART_BYTES_MAX),
        one(message=-NUM_INCOMPLETE_MAX),
        one(message=10 * NUM_INCOMPLETE_MAX),
    ):
        with pytest.raises(MalformedFrame):
            inbox.add(wrong, 1)
    assert inbox.add(one(offset=PART_BYTES_MAX), 1) != []
    for late in (one(), one(message=-1)):
        with pytest.raises(MalformedFrame):
            inbox.add(late, 1)
    with pytest.raises(MalformedFrame, match="not under way"):
        outbox()[0].arrived(0, 0.0)
