"""All-reduce among members: the mean, the same bits everywhere, as few bytes as can be, and nothing lost to codecs."""

from dataclasses import replace

import pytest
import torch

from farflung.systems.desync.config import DesyncConfig, desloc
from farflung.systems.desync.exchange import Exchange, Handed, Section
from farflung.systems.desync.messages import Seat
from farflung.systems.desync.plan import order_seats, plan_parts, sections_of
from farflung.systems.desync.routes import best_ring, owner_shares
from farflung.wire.tensor import encode_tensor
from farflung.world.address import Address, PeerId
from farflung.world.errors import PeerMisbehaved

LENGTH = 1000
SITES = "aabbbc"
GBITS = [[100, 0.537, 0.935, 0.202], [0.537, 100, 0.386, 0.117], [0.935, 0.386, 100, 0.127], [0.202, 0.117, 0.127, 100]]


def seats(sites: str = SITES, weights: list[float] | None = None) -> tuple[Seat, ...]:
    weights = weights or [1.0] * len(sites)
    return tuple(
        Seat(Address(PeerId(f"w{number}"), "desync-worker"), site, weight)
        for number, (site, weight) in enumerate(zip(sites, weights, strict=True))
    )


def config(topology: str, codec: str, **settings: object) -> DesyncConfig:
    return DesyncConfig(num_worker_steps=1, topology=topology, codec=codec, **settings)  # pyright: ignore[reportArgumentType]


class Group:
    """Members that exchange without a network: messages are delivered one at a time, newest first if told so."""

    def __init__(self, setting: DesyncConfig, members: tuple[Seat, ...], is_newest_first: bool = False) -> None:
        self._setting = setting
        self._seats = order_seats(members, setting)
        self._is_newest_first = is_newest_first
        self.num_bytes: dict[tuple[int, int], int] = {}
        self.residuals = [torch.zeros(LENGTH if setting.keeps_residual else 0) for _ in members]

    def average(self, values: list[torch.Tensor]) -> list[torch.Tensor]:
        feedback = self._setting.feedback_decay if self._setting.keeps_residual else 0.0
        sections = [Section("parameters", 0, LENGTH, self._setting.codec, self._setting.site_codec, feedback)]
        parts = plan_parts(self._seats, sections, self._setting)
        members = [
            Exchange(self._seats, number, sections, parts, value, residual)
            for number, (value, residual) in enumerate(zip(values, self.residuals, strict=True))
        ]
        under_way = [(number, one) for number, member in enumerate(members) for one in member.start()]
        while under_way:
            source, handed = under_way.pop(-1 if self._is_newest_first else 0)
            self._count(source, handed)
            answer = members[handed.seat].receive(source, handed.index, handed.is_mean, handed.tensor)
            assert members[handed.seat].receive(source, handed.index, handed.is_mean, handed.tensor) == []
            under_way += [(handed.seat, one) for one in answer]
        assert all(member.is_done and not member.missing() for member in members)
        self.residuals = [member.residual for member in members]
        return [member.mean for member in members]

    def _count(self, source: int, handed: Handed) -> None:
        key = (source, handed.seat)
        self.num_bytes[key] = self.num_bytes.get(key, 0) + len(handed.tensor.data)

    @property
    def sites(self) -> list[str]:
        return [seat.site for seat in self._seats]


def random_values(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(LENGTH, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("topology", ["ring", "two-level", "star"])
@pytest.mark.parametrize("sites", ["a", "aa", "ab", "aab", SITES, "abcd"])
@pytest.mark.parametrize("is_newest_first", [False, True])
def test_everyone_gets_the_mean_to_the_same_bit(topology: str, sites: str, is_newest_first: bool) -> None:
    values = random_values(len(sites))
    means = Group(config(topology, "raw"), seats(sites), is_newest_first).average(values)
    assert all(torch.equal(means[0], other) for other in means)
    assert torch.allclose(means[0], torch.stack(values).mean(0), atol=1e-6)


@pytest.mark.parametrize("codec", ["fp16", "int8", "int4", "int2"])
@pytest.mark.parametrize("topology", ["ring", "two-level", "star"])
def test_lossy_means_are_the_same_to_the_bit_and_lossy(topology: str, codec: str) -> None:
    values = random_values(len(SITES))
    means = Group(config(topology, codec), seats()).average(values)
    assert all(torch.equal(means[0], other) for other in means)
    error = float((means[0] - torch.stack(values).mean(0)).norm() / means[0].norm())
    assert 1e-5 < error < {"fp16": 1e-2, "int8": 0.05, "int4": 0.5, "int2": 1.5}[codec]


@pytest.mark.parametrize("codec", ["int4", "int2"])
@pytest.mark.parametrize("topology", ["ring", "star"])
def test_what_codecs_leave_out_comes_later(topology: str, codec: str) -> None:
    """Sent + residuals = input: summed over rounds, what was applied and what is kept are the true means."""
    group = Group(config(topology, codec), seats())
    applied, true = torch.zeros(LENGTH), torch.zeros(LENGTH)
    for number in range(30):
        values = random_values(len(SITES), seed=number)
        applied += group.average(values)[0]
        true += torch.stack(values).mean(0)
    kept = torch.stack(group.residuals).sum(0)
    assert torch.allclose(applied + kept, true, atol=1e-4)
    assert float(kept.norm()) > 1e-2, "something must have been left out"
    without = Group(config(topology, codec, feedback_decay=0.0), seats())
    lost = sum(
        (without.average(random_values(len(SITES), seed=number))[0] for number in range(30)), torch.zeros(LENGTH)
    )
    assert float((lost - true).norm()) > 1.5 * float((applied - true).norm())


def test_weights_are_those_of_the_seats() -> None:
    values = random_values(3)
    means = Group(config("two-level", "raw"), seats("aab", [1.0, 2.0, 5.0])).average(values)
    assert torch.allclose(means[0], (values[0] + 2 * values[1] + 5 * values[2]) / 8, atol=1e-6)


def test_a_ring_carries_the_least_that_an_all_reduce_can() -> None:
    group = Group(config("ring", "raw"), seats("aaaa"))
    group.average(random_values(4))
    assert len(group.num_bytes) == 4
    assert all(0.9 < sent / (2 * 3 / 4 * 4 * LENGTH) < 1.1 for sent in group.num_bytes.values())


def test_two_levels_send_less_between_sites_than_a_ring() -> None:
    between: dict[str, int] = {}
    for topology in ("ring", "two-level"):
        group = Group(config(topology, "raw"), seats("aaaabbbbccccdddd"))
        group.average(random_values(16))
        pairs = {pair: sent for pair, sent in group.num_bytes.items() if group.sites[pair[0]] != group.sites[pair[1]]}
        links: dict[tuple[str, str], int] = {}
        for (one, other), sent in pairs.items():
            link = (group.sites[one], group.sites[other])
            links[link] = links.get(link, 0) + sent
        assert len(links) == 4
        between[topology] = max(links.values())
    assert between["two-level"] / between["ring"] == pytest.approx(1.5 / 1.875, rel=0.1)


def test_the_best_ring_and_the_owners_of_the_published_cluster() -> None:
    def bytes_per_second(one: str, other: str) -> float:
        return GBITS[int(one)][int(other)] * 1e9 / 8

    ring = best_ring("0123", bytes_per_second)
    weakest = min(bytes_per_second(one, other) for one, other in zip(ring, [*ring[1:], ring[0]], strict=True))
    assert weakest * 8 / 1e9 == pytest.approx(0.127)
    shares = owner_shares("0123", bytes_per_second)
    assert sum(shares) == pytest.approx(1) and shares[3] == 0
    loads = [
        (shares[one] + shares[other]) / GBITS[one][other] for one in range(4) for other in range(4) if one != other
    ]
    assert max(loads) == pytest.approx(1 / (0.117 + 0.127 + 0.202), rel=0.01), "the optimum"


def test_many_sites_get_a_good_ring_too() -> None:
    sites = [f"s{number:02}" for number in range(12)]

    def bytes_per_second(one: str, other: str) -> float:
        return 10.0 if abs(int(one[1:]) - int(other[1:])) in (1, 11) else 1.0

    assert sorted(best_ring(sites[::-1], bytes_per_second)) == sites
    ring = best_ring(sites[::-1], bytes_per_second)
    assert min(bytes_per_second(one, other) for one, other in zip(ring, [*ring[1:], ring[0]], strict=True)) == 10.0


def test_lies_are_named() -> None:
    members = seats("abc")
    setting = config("ring", "raw")
    sections = [Section("parameters", 0, LENGTH, "raw", "raw")]
    parts = plan_parts(members, sections, setting)
    one = Exchange(members, 0, sections, parts, torch.zeros(LENGTH), torch.zeros(0))
    one.start()
    index = next(number for number, part in enumerate(parts) if part.tree.up.get(2) == 0)
    with pytest.raises(PeerMisbehaved, match="not for me"):
        one.receive(1, 99, False, encode_tensor(torch.zeros(3)))
    with pytest.raises(PeerMisbehaved, match="wrong member"):
        one.receive(1, index, False, encode_tensor(torch.zeros(3)))
    with pytest.raises(PeerMisbehaved, match="for part"):
        one.receive(2, index, False, encode_tensor(torch.zeros(3)))
    with pytest.raises(PeerMisbehaved, match="another's task"):
        one.receive(1, index, True, encode_tensor(torch.zeros(3)))


def test_second_moments_travel_in_codecs_that_keep_their_proportions() -> None:
    lengths = {"first_moment": 64, "second_moment": 64}
    setting = replace(desloc(8, 1), moment_codec="int4")
    sections = sections_of(lengths, tuple(lengths), setting)
    assert [section.codec for section in sections] == ["int4", "log4"]
    with pytest.raises(ValueError, match="moment_codec 'log4' is unknown"):
        replace(setting, moment_codec="log4")
