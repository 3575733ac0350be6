"""Announcements: ranges read from users, and records from peers that may lie."""

import msgspec
import pytest

from farflung.systems.swarm.info import BlockRange, ServerInfo, ServerState
from farflung.world.address import PeerId
from farflung.world.errors import PeerMisbehaved

LIAR = PeerId("liar")


def info() -> ServerInfo:
    return ServerInfo(
        model="fingerprint",
        model_name="tiny",
        blocks=BlockRange(2, 6),
        state=ServerState.ONLINE,
        blocks_per_second=100.0,
        forward_tokens_per_second=1000.0,
        cache_tokens_max=4096,
        cache_tokens_left=1024,
        dtype="float32",
        round_trip_seconds={PeerId("other"): 0.02},
        started_at=1.0,
        moving_to=BlockRange(0, 4),
        version="1",
    )


def test_range_counts_contains_and_overlaps() -> None:
    blocks = BlockRange(2, 6)
    assert blocks.num_blocks == 4
    assert [block for block in range(8) if blocks.contains(block)] == [2, 3, 4, 5]
    assert blocks.overlap(BlockRange(4, 9)) == 2
    assert blocks.overlap(BlockRange(6, 9)) == 0
    assert blocks.covers(BlockRange(3, 6))
    assert not blocks.covers(BlockRange(3, 7))


def test_range_is_read_as_it_is_printed() -> None:
    assert BlockRange.parse(str(BlockRange(2, 6)), 8) == BlockRange(2, 6)
    assert BlockRange.parse(" 0:8 ", 8) == BlockRange(0, 8)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("3", "write A:B, for example 0:8"),
        ("a:b", "write A:B"),
        ("-1:3", "write A:B"),
        ("1:2:3", "write A:B"),
        ("4:4", "is empty"),
        ("5:4", "is empty"),
        ("0:9", "blocks 0:8"),
    ],
)
def test_wrong_range_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        BlockRange.parse(text, 8)


def test_announcement_survives_its_bytes() -> None:
    assert ServerInfo.from_bytes(info().to_bytes(), LIAR) == info()


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": [6, 2]},
        {"blocks": [-1, 2]},
        {"moving_to": [3, 3]},
        {"blocks_per_second": 0.0},
        {"blocks_per_second": float("nan")},
        {"forward_tokens_per_second": float("inf")},
        {"cache_tokens_left": 5000},
        {"cache_tokens_left": -1},
        {"queue_length": -1},
        {"job_seconds": float("inf")},
        {"leave_probability_per_second": -0.1},
        {"round_trip_seconds": {"other": float("nan")}},
        {"state": "sleeping"},
        {"unheard_of": 1},
    ],
)
def test_impossible_announcement_names_its_peer(change: dict[str, object]) -> None:
    data = msgspec.msgpack.encode({**msgspec.to_builtins(info()), **change})
    with pytest.raises(PeerMisbehaved) as caught:
        ServerInfo.from_bytes(data, LIAR)
    assert caught.value.peer == LIAR


def test_garbage_is_misbehaviour() -> None:
    with pytest.raises(PeerMisbehaved):
        ServerInfo.from_bytes(b"\xc1 garbage", LIAR)


def test_a_model_of_fewer_blocks_than_are_served_is_refused() -> None:
    with pytest.raises(ValueError, match="blocks 2:6 of a model of 4 blocks"):
        msgspec.structs.replace(info(), num_model_blocks=4)
