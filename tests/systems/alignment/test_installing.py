"""A node has the old weights or the new ones, whole: never a part of them, and never others than it says."""

import hashlib

import pytest
import torch

from farflung.systems.alignment.config import WeightsConfig
from farflung.systems.alignment.deltas import NOTHING, Packed, Version, pack_version, version_of
from farflung.systems.alignment.fetching import Fetching
from farflung.systems.alignment.installing import CanaryDisagrees, renew
from farflung.systems.alignment.messages import Canary
from farflung.wire.tensor import MalformedTensor
from farflung.world.address import PeerId
from tests.tables import NUM_KINDS, NUM_TOKENS, TableLearner, TablePolicy

CONFIG = WeightsConfig(chunk_bytes=1, values_per_piece=64, chunks_at_once=3, chunk_seconds_max=10.0)
HUB, ONE, OTHER = PeerId("hub"), PeerId("one"), PeerId("other")


class Deaf(TablePolicy):
    """Takes only the first weights that it gets, as a node whose update is lost on its way."""

    def install(self, version: int, weights_hash: bytes, tensors: dict[str, torch.Tensor]) -> None:
        if not self.tensors:
            super().install(version, weights_hash, tensors)


def version(number: int, values: torch.Tensor) -> tuple[Version, Canary]:
    """Weights, and a text with what they think of it."""
    learner = TableLearner()
    learner.table = values
    return version_of(number, learner.snapshot()), Canary((1, 2, 3), tuple(learner.score((1, 2, 3))))


def two_versions() -> tuple[Version, Packed, Packed]:
    first, canary = version(0, torch.zeros(NUM_KINDS, NUM_TOKENS))
    second, its_canary = version(1, torch.randn(NUM_KINDS, NUM_TOKENS, generator=torch.Generator().manual_seed(0)))
    return first, pack_version(first, NOTHING, CONFIG, canary), pack_version(second, first, CONFIG, its_canary)


def test_weights_are_swapped_and_the_canary_agrees() -> None:
    _, anchor, delta = two_versions()
    policy = TablePolicy()
    held = renew(policy, [anchor.manifest], NOTHING, anchor.chunks.__getitem__, 1e-6)
    held = renew(policy, [delta.manifest], held, delta.chunks.__getitem__, 1e-6)
    assert (policy.version, policy.weights_hash) == (1, held.weights_hash) == (held.number, delta.manifest.weights_hash)


def test_a_policy_that_did_not_take_the_new_weights_is_found_and_keeps_its_version() -> None:
    first, anchor, delta = two_versions()
    policy = Deaf()
    renew(policy, [anchor.manifest], NOTHING, anchor.chunks.__getitem__, 1e-6)
    with pytest.raises(CanaryDisagrees, match="version 1 gives the canary other log-probabilities"):
        renew(policy, [delta.manifest], first, delta.chunks.__getitem__, 1e-6)
    assert policy.version == 0


def test_what_does_not_come_out_right_never_reaches_the_policy() -> None:
    first, anchor, delta = two_versions()
    policy = TablePolicy()
    renew(policy, [anchor.manifest], NOTHING, anchor.chunks.__getitem__, 1e-6)
    with pytest.raises(MalformedTensor):
        renew(policy, [delta.manifest], first, lambda digest: b"", 1e-6)
    assert policy.version == 0 and torch.equal(policy.tensors["table"], first.tensors["table"])


def fetching(packed: Packed, has: set[bytes], holders: list[PeerId]) -> Fetching:
    return Fetching([packed.manifest], HUB, holders, has.__contains__, CONFIG, 0.0, "me")


def wide() -> Packed:
    """An anchor of several chunks."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"t{number}": torch.randn(64, generator=generator) for number in range(5)}
    return pack_version(version_of(0, tensors), NOTHING, CONFIG, None)


def test_chunks_that_are_here_are_not_fetched_again() -> None:
    packed = wide()
    first, *others = packed.chunks
    fetch = fetching(packed, {first}, [])
    asked: list[bytes] = []
    while not fetch.is_done:
        for peer, digest in fetch.asks(0.0):
            asked.append(digest)
            assert fetch.take(peer, digest, packed.chunks[digest], 0.0)
    assert sorted(asked) == sorted(others)


def test_sources_share_the_work_and_those_that_fail_are_not_asked_again() -> None:
    packed = wide()
    fetch = fetching(packed, set(), [ONE, OTHER])
    asks = fetch.asks(0.0)
    assert [peer for peer, _ in asks] == [ONE, OTHER, HUB]
    assert not fetch.take(ONE, asks[0][1], b"damaged", 1.0), "what is damaged is not kept"
    assert fetch.take(HUB, asks[2][1], packed.chunks[asks[2][1]], 1.0)
    again = fetch.asks(10.0)  # the other one has been silent for too long
    assert {peer for peer, _ in again} == {HUB} and len(again) == 3
    for _, digest in again:
        fetch.take(HUB, digest, packed.chunks[digest], 10.0)
    (last,) = fetch.asks(11.0)
    assert not fetch.take(HUB, hashlib.sha256(b"never asked for").digest(), b"never asked for", 11.0)
    assert fetch.take(HUB, last[1], packed.chunks[last[1]], 11.0) and fetch.is_done


def test_over_a_thin_link_what_keeps_coming_is_waited_for() -> None:
    packed = wide()
    fetch, asked, now = fetching(packed, set(), [ONE]), list[tuple[PeerId, bytes]](), 0.0
    while not fetch.is_done:
        asked += fetch.asks(now)
        now += 9.0  # each source gives one chunk a time, the third 27 s after it was asked for
        for peer in (ONE, HUB):
            for ask in [ask for ask in asked if ask[0] == peer][:1]:
                assert fetch.take(*ask, packed.chunks[ask[1]], now)
                asked.remove(ask)
        assert fetch.why_given_up(now + 599.0) is None
    assert not asked, "nothing was asked for twice"
    assert fetch.num_bytes_from_peers > 0


def test_a_fetch_that_cannot_end_says_why() -> None:
    fetch = fetching(wide(), set(), [])
    (_, digest), *_ = fetch.asks(0.0)
    assert fetch.why_given_up(1.0) is None
    assert "nothing of version 0 has come for 600 s, and 5 chunks lack" in str(fetch.why_given_up(600.0))
    fetch.take(HUB, digest, b"", 1.0)
    assert "the hub has dropped chunks" in str(fetch.why_given_up(1.0))
