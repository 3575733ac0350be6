"""Weights on their way: exact in every codec, over chains of any length, and refused when anything is damaged."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from farflung.learn.parameters import Tensors, copies, fingerprint
from farflung.systems.alignment.codecs import Encoded, decode_words, encode_words, words_of
from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, Version, pack_version, unpack_version, version_of
from farflung.wire.tensor import MalformedTensor

CONFIG = WeightsConfig(chunk_bytes=2000, values_per_piece=1 << 10)


def weights(seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        "b.wide": torch.randn(50, 70, generator=generator).bfloat16(),
        "a.norm": torch.ones(9, dtype=torch.bfloat16),
        "c.float": torch.randn(11, 3, generator=generator),
        "d.step": torch.tensor(4, dtype=torch.int64),
    }


def nudged(tensors: Tensors, share: float, seed: int) -> Tensors:
    """Some values of each tensor moved by the smallest step that their dtype has."""
    generator = torch.Generator().manual_seed(seed)
    moved = copies(tensors)
    for tensor in moved.values():
        words = words_of(tensor)
        words[torch.rand(len(words), generator=generator).numpy() < share] ^= words.dtype.type(1)
    return moved


def sent(new: Version, base: Version) -> tuple[Version, int]:
    packed = pack_version(new, base, CONFIG, None)
    return unpack_version(packed.manifest, base, packed.chunks.__getitem__), packed.manifest.num_bytes


def test_fifty_deltas_rebuild_the_same_bits() -> None:
    held, _ = sent(version_of(0, weights()), NOTHING)
    newest = weights()
    for number in range(1, 51):
        newest = nudged(newest, (0.5, 0.02, 0.001)[number % 3], number)
        held, _ = sent(version_of(number, newest), held)
        assert held.weights_hash == fingerprint(newest)
    assert all(torch.equal(held.tensors[name], newest[name]) for name in newest)


def test_a_change_that_is_taken_back_gives_the_same_bytes_again() -> None:
    before, after = weights(), nudged(weights(), 0.02, 1)
    there = pack_version(version_of(1, after), version_of(0, before), CONFIG, None)
    back, _ = sent(version_of(2, before), version_of(1, after))
    again = pack_version(version_of(3, after), back, CONFIG, None)
    assert there.chunks == again.chunks and there.manifest.chunks == again.manifest.chunks


def test_few_changes_are_few_bytes_and_no_change_is_none() -> None:
    base = version_of(0, weights())
    _, anchor_bytes = sent(base, NOTHING)
    _, delta_bytes = sent(version_of(1, nudged(weights(), 0.01, 1)), base)
    assert delta_bytes < anchor_bytes / 12
    assert sent(version_of(2, weights()), base)[1] == 0


@pytest.mark.parametrize(
    ("share", "is_small", "codecs"),
    [(0.0, True, {None}), (0.01, True, {"bits"}), (0.01, False, {"sparse", "bits"}), (0.9, True, {"xor"})],
)
def test_the_smallest_codec_is_taken(share: float, is_small: bool, codecs: set[str | None]) -> None:
    random = np.random.default_rng(5)
    old = random.integers(0, 1 << 16, 20_000, dtype=np.uint16)
    is_changed = random.random(len(old)) < share
    change = 1 if is_small else random.integers(1, 1 << 16, len(old), dtype=np.uint16)
    new = np.where(is_changed, old ^ change, old).astype(np.uint16)
    encoded = encode_words(new, old)
    assert (encoded and encoded.codec) in codecs


def test_values_that_look_random_travel_raw() -> None:
    noise = np.random.default_rng(5).integers(0, 1 << 16, 20_000, dtype=np.uint16)
    encoded = encode_words(noise, None)
    assert encoded is not None and encoded.codec == "raw"


@settings(max_examples=60, deadline=None)
@given(
    old=st.lists(st.integers(0, 65535), min_size=1, max_size=700),
    places=st.lists(st.integers(0, 699), max_size=40),
    value=st.integers(0, 65535),
)
def test_any_change_comes_back_exactly_in_any_codec(old: list[int], places: list[int], value: int) -> None:
    before = np.array(old, np.uint16)
    after = before.copy()
    after[[place % len(old) for place in places]] = value
    encoded = encode_words(after, before)
    words = before.copy()
    if encoded is not None:
        decode_words(encoded, words)
    assert (words == after).all()


@settings(max_examples=60, deadline=None)
@given(codec=st.sampled_from(["raw", "planes", "xor", "sparse", "bits", "none"]), data=st.binary(max_size=60))
def test_bytes_that_no_encoder_wrote_are_refused(codec: str, data: bytes) -> None:
    with pytest.raises(MalformedTensor):
        decode_words(Encoded(codec, data), np.zeros(100, np.uint16))


def test_a_delta_on_other_weights_is_refused() -> None:
    packed = pack_version(version_of(1, nudged(weights(), 0.1, 1)), version_of(0, weights()), CONFIG, None)
    with pytest.raises(MalformedTensor, match="needs version 0"):
        unpack_version(packed.manifest, NOTHING, packed.chunks.__getitem__)
    with pytest.raises(MalformedTensor, match="needs version 0"):
        unpack_version(packed.manifest, version_of(0, weights(3)), packed.chunks.__getitem__)


def test_a_version_that_lacks_a_part_is_never_taken_for_whole() -> None:
    packed = pack_version(version_of(0, weights()), NOTHING, CONFIG, None)
    partial = msgspec.structs.replace(packed.manifest, chunks=packed.manifest.chunks[:-1])
    with pytest.raises(MalformedTensor, match="another hash"):
        unpack_version(partial, NOTHING, packed.chunks.__getitem__)
    digest = packed.manifest.chunks[0].digest
    damaged = {**packed.chunks, digest: packed.chunks[digest][:-1] + b"\0"}
    with pytest.raises(MalformedTensor, match="is damaged"):
        unpack_version(packed.manifest, NOTHING, damaged.__getitem__)


@pytest.mark.parametrize("layout", [b"", msgspec.msgpack.encode([("x", "float32", (1 << 41,))])])
def test_a_layout_that_nobody_can_hold_takes_no_memory(layout: bytes) -> None:
    packed = pack_version(version_of(0, weights()), NOTHING, CONFIG, None)
    with pytest.raises(MalformedTensor):
        unpack_version(msgspec.structs.replace(packed.manifest, layout=layout), NOTHING, packed.chunks.__getitem__)
