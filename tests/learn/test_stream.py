"""The stream of samples: every sample once an epoch, no two shards on one, and any cursor goes on where it was."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farflung.learn.permutation import Permutation
from farflung.learn.stream import Shard, TokenStream, hold_out, num_samples, validation_batches

LENGTH = 4
"""Tokens of one sample in these tests, besides the one after."""


def row(num: int) -> np.ndarray:
    """Tokens that each say where they are: sample i begins with token i x LENGTH."""
    return np.arange(num * LENGTH + 1, dtype=np.uint32)


def stream(num: int, *shards: Shard, batch: int = 1, seed: str = "a") -> TokenStream:
    return TokenStream(row(num), LENGTH, batch, shards or Shard(0, 1), seed)


def draw(source: TokenStream, num_batches: int) -> list[int]:
    """The samples of the next batches, by index."""
    return [int(first) // LENGTH for _ in range(num_batches) for first in source.next_batch()[:, 0]]


@given(st.integers(1, 600), st.binary(min_size=1, max_size=64))
def test_a_permutation_is_a_bijection(length: int, key: bytes) -> None:
    order = Permutation(length, key)
    assert sorted(order(index) for index in range(length)) == list(range(length))


def test_a_permutation_of_a_trillion_takes_no_memory_and_no_time() -> None:
    order = Permutation(10**12, b"key")
    images = [order(index) for index in range(100)]
    assert len({*images}) == 100 and all(0 <= image < 10**12 for image in images)
    assert max(images) > 10**11 * 8 and min(images) < 10**11 * 2


def test_orders_look_shuffled() -> None:
    """Over many keys each place is taken by each value about equally often."""
    counts = Counter((place, Permutation(5, f"{key}".encode())(place)) for key in range(2000) for place in range(5))
    assert len(counts) == 25 and all(300 < count < 500 for count in counts.values())  # 400 +- 18


def test_a_batch_is_the_tokens_of_its_samples_and_the_one_after() -> None:
    batch = stream(10, batch=3).next_batch()
    assert batch.dtype == torch.int64 and batch.shape == (3, LENGTH + 1)
    assert torch.equal(batch, batch[:, :1] + torch.arange(LENGTH + 1))
    assert all(first % LENGTH == 0 for first in batch[:, 0].tolist())


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64])
def test_tokens_of_any_integer_type_or_a_tensor(dtype: type) -> None:
    expected = stream(10, batch=10).next_batch()
    assert torch.equal(TokenStream(row(10).astype(dtype), LENGTH, 10, Shard(0, 1), "a").next_batch(), expected)
    tensor = torch.from_numpy(row(10).astype(np.int64))
    assert torch.equal(TokenStream(tensor, LENGTH, 10, Shard(0, 1), "a").next_batch(), expected)


@given(st.integers(1, 80), st.integers(1, 8), st.integers(1, 3))
def test_each_epoch_deals_every_sample_to_one_shard(num: int, num_shards: int, num_epochs: int) -> None:
    num = max(num, num_shards)
    owners: dict[int, set[int]] = {}
    counts: Counter[int] = Counter()
    for index in range(num_shards):
        length = len(range(index, num, num_shards))
        samples = draw(stream(num, Shard(index, num_shards)), length * num_epochs)
        for epoch in range(num_epochs):
            assert len({*samples[epoch * length : (epoch + 1) * length]}) == length, "a sample twice in one epoch"
        counts.update(samples)
        for sample in samples:
            owners.setdefault(sample, set()).add(index)
    assert counts == dict.fromkeys(range(num), num_epochs)
    assert all(len(owner) == 1 for owner in owners.values())


def test_epochs_seeds_and_shards_have_orders_of_their_own() -> None:
    source = stream(64)
    first, second = draw(source, 64), draw(source, 64)
    assert first != second and sorted(first) == sorted(second)
    assert draw(stream(64), 64) == first
    assert draw(stream(64, seed="b"), 64) != first
    places = [[sample // 2 for sample in draw(stream(128, Shard(index, 2)), 64)] for index in (0, 1)]
    assert places[0] != places[1]


@given(st.integers(0, 60), st.integers(1, 5), st.sampled_from([(0,), (1, 2), (0, 1, 2)]))
def test_a_cursor_goes_on_where_it_was(num_before: int, batch: int, held: tuple[int, ...]) -> None:
    shards = tuple(Shard(index, 3) for index in held)
    source = stream(17, *shards, batch=batch)
    draw(source, num_before)
    cursor = source.cursor
    expected = [source.next_batch() for _ in range(9)]
    other = stream(17, Shard(0, 3), batch=batch)
    other.seek(cursor)
    assert other.shards == held and other.cursor == cursor and other.num_drawn == num_before * batch
    assert all(torch.equal(other.next_batch(), batch) for batch in expected)


def test_a_cursor_is_a_copy() -> None:
    source = stream(8)
    cursor = source.cursor
    draw(source, 3)
    assert cursor["shard_0"] == 0 and source.cursor["shard_0"] == 3


def test_a_shard_that_is_behind_catches_up() -> None:
    source = stream(40, Shard(0, 2), Shard(1, 2))
    source.seek({**source.cursor, "shard_0": 6, "shard_1": 2})
    assert [sample % 2 for sample in draw(source, 8)] == [1, 1, 1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "other",
    [
        TokenStream(row(11), LENGTH, 1, Shard(0, 2), "a"),
        TokenStream(row(10), LENGTH, 1, Shard(0, 2), "b"),
        TokenStream(row(10), LENGTH, 1, Shard(0, 3), "a"),
        TokenStream(row(20), 2 * LENGTH, 1, Shard(0, 2), "a"),
        TokenStream(row(10) + 1, LENGTH, 1, Shard(0, 2), "a"),
    ],
    ids=["more tokens", "seed", "shards", "length", "tokens"],
)
def test_a_cursor_of_another_run_is_refused(other: TokenStream) -> None:
    with pytest.raises(ValueError, match="resume with the settings"):
        stream(10, Shard(0, 2)).seek(other.cursor)
    other.seek(other.cursor)


@pytest.mark.parametrize("damage", [{"shard_2": 1}, {"shard_x": 1}, {"0": 1}, {"shard_0": -1}])
def test_a_damaged_cursor_is_refused(damage: dict[str, int]) -> None:
    source = stream(10, Shard(0, 2))
    with pytest.raises(ValueError, match="damaged"):
        source.seek({**source.cursor, **damage})


def test_too_few_tokens_and_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="0 sequences of 8"):
        TokenStream(row(2)[:8], 8, 1, Shard(0, 1), "a")
    with pytest.raises(ValueError, match="too few for 4 shards"):
        stream(3, Shard(0, 4))
    for shards, sentence in (
        ((), "at least one"),
        ((Shard(0, 2), Shard(0, 2)), "twice"),
        ((Shard(0, 2), Shard(0, 3)), "of one cut"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TokenStream(row(10), LENGTH, 1, shards, "a")
    with pytest.raises(ValueError, match="no shard 2"):
        Shard(2, 2)
    with pytest.raises(ValueError, match="at least 1"):
        stream(10, batch=0)
    with pytest.raises(ValueError, match="one row of integers"):
        TokenStream(row(4).astype(np.float32), LENGTH, 1, Shard(0, 1), "a")


def test_what_is_held_out_is_never_drawn_and_read_once_in_order() -> None:
    training, held = hold_out(row(20), LENGTH, 5)
    assert len(training) + len(held) == 20 * LENGTH + 2, "they share one token: a target of one, an input of the other"
    trained = {*draw(TokenStream(training, LENGTH, 1, Shard(0, 1), "a"), num_samples(training, LENGTH))}
    batches = list(validation_batches(held, LENGTH, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    validated = [int(first) // LENGTH for batch in batches for first in batch[:, 0]]
    assert validated == [15, 16, 17, 18, 19]
    assert trained == {*range(15)}
    with pytest.raises(ValueError, match="hold out fewer"):
        hold_out(row(5), LENGTH, 5)
