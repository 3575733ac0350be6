"""Reach: measurements are smoothed and age, travel in records, and fill gaps for pairs that nobody measured."""

import math

import pytest

from farflung.mesh.reach import PEERS_PUBLISHED_MAX, TOPIC, ReachConfig, ReachMap, ReachTable, published
from farflung.mesh.records import Record
from farflung.mesh.surveyor import Surveyor, SurveyorConfig
from farflung.sim import Link, Topology
from farflung.wire.certificate import TicketRole
from farflung.world.address import PeerId
from farflung.world.doors import World
from farflung.world.effects import Send
from farflung.world.host import Host
from tests.mesh.swarm import Swarm

A, B, C, D = map(PeerId, "abcd")


def record(peer: PeerId, site: str, table: bytes | None = None) -> Record:
    topics = {} if table is None else {TOPIC: table}
    return Record(
        peer=peer, sequence=1, issued_at=0.0, lease_seconds=30.0, role=TicketRole.SERVER, site=site, topics=topics
    )


def table(now: float = 0.0, **seconds: float) -> bytes:
    measured = ReachTable()
    for peer, value in seconds.items():
        measured.observe(PeerId(peer), now, round_trip_seconds=value)
    return measured.to_bytes(now)


def test_the_average_follows_its_formula_and_forgets_what_is_stale() -> None:
    measured = ReachTable(ReachConfig(weight_newest=0.25, age_seconds_max=100.0))
    measured.observe(A, 0.0, round_trip_seconds=0.1)
    measured.observe(A, 50.0, round_trip_seconds=0.2)
    assert measured.distance(A, 60.0).round_trip_seconds == pytest.approx(0.75 * 0.1 + 0.25 * 0.2)
    assert measured.distance(A, 151.0).round_trip_seconds is None
    measured.observe(A, 200.0, round_trip_seconds=0.4, bytes_per_second=1e6)
    assert measured.distance(A, 200.0).round_trip_seconds == 0.4
    assert measured.distance(A, 200.0).bytes_per_second == 1e6
    measured.forget(A)
    assert measured.distance(A, 200.0).round_trip_seconds is None


def test_a_table_travels_rounded_bounded_and_in_one_form() -> None:
    assert published(record(A, "eu", table(b=0.1234, c=0.04))) == {
        "b": published(record(A, "eu", table(b=0.12)))[B],
        "c": published(record(A, "eu", table(c=0.04)))[C],
    }
    assert table(b=0.1201, c=0.04) == table(c=0.04, b=0.1199)
    many = table(**{f"peer{number:03}": 0.1 for number in range(PEERS_PUBLISHED_MAX + 10)})
    assert len(published(record(A, "eu", many))) == PEERS_PUBLISHED_MAX


def test_noise_makes_no_news_and_a_way_that_has_changed_does() -> None:
    measured = ReachTable()
    for peer, seconds in ((A, 0.0004), (B, 0.08), (C, 0.08)):
        measured.observe(peer, 0.0, round_trip_seconds=seconds, bytes_per_second=1e6)
    before = measured.to_bytes(1.0)
    for number in range(60):
        now, share = float(number), (0.9, 1.1, 1.0)[number % 3]
        for peer, seconds in ((A, 0.0009), (B, 0.08 * share), (C, 0.08)):
            measured.observe(peer, now, round_trip_seconds=seconds, bytes_per_second=1e6 * share)
        assert measured.to_bytes(now) == before
    for number in range(60, 90):
        measured.observe(B, float(number), round_trip_seconds=0.12)
    told = published(record(A, "eu", measured.to_bytes(90.0)))[B].round_trip_seconds
    assert told is not None and abs(told - 0.12) <= 0.012
    assert measured.distance(B, 90.0).round_trip_seconds == pytest.approx(0.12, rel=0.001)


def test_of_many_peers_a_node_always_asks_the_same_few_and_others_ask_other_ones() -> None:
    peers = [PeerId(f"peer-{number:03}") for number in range(100)]
    view = {peer: record(peer, "eu") for peer in peers}
    config = SurveyorConfig(num_peers_max=10, probes_per_period=4)
    asked: dict[PeerId, set[PeerId]] = {}
    for own in peers:
        role = Surveyor(own, view, lambda table: None, bytes_per_second=lambda peer: None, config=config)
        effects = [effect for period in range(12) for effect in role.wake(10.0 * period)]
        asked[own] = {effect.destination.peer for effect in effects if isinstance(effect, Send)}
        assert len(asked[own]) == 10 and own not in asked[own]
    assert len(set.union(*asked.values())) == 100, "everybody is asked by somebody"
    assert len({frozenset(chosen) for chosen in asked.values()}) > 90
    first = Surveyor(peers[0], view, lambda table: None, bytes_per_second=lambda peer: None, config=config)
    gone = sorted(asked[peers[0]])[0]
    del view[gone]
    effects = [effect for period in range(12) for effect in first.wake(10.0 * period)]
    now_asked = {effect.destination.peer for effect in effects if isinstance(effect, Send)}
    assert len(now_asked & asked[peers[0]]) == 9 and len(now_asked) == 10, "one that is gone is replaced by one other"


@pytest.mark.parametrize("garbage", [b"", b"\xff", b"\x81\xa1b\x92\xcb\xff\xf0\x00\x00\x00\x00\x00\x00\xc0"])
def test_a_table_that_lies_or_cannot_be_read_is_none(garbage: bytes) -> None:
    """The last one claims a round trip of minus infinity."""
    assert published(record(A, "eu", garbage)) == {}


def test_a_pair_is_measured_by_either_or_like_its_sites_or_guessed() -> None:
    view = {
        A: record(A, "eu", table(c=0.09)),
        B: record(B, "eu"),
        C: record(C, "us"),
        D: record(D, ""),
    }
    reach = ReachMap(view)
    config = ReachConfig()
    assert reach.round_trip_seconds(A, C) == reach.round_trip_seconds(C, A) == 0.09
    assert reach.round_trip_seconds(B, C) == 0.09
    assert reach.round_trip_seconds(A, B) == config.round_trip_seconds_within
    assert reach.round_trip_seconds(A, D) == reach.round_trip_seconds(D, D) == config.round_trip_seconds_between
    assert reach.bytes_per_second(A, B) == config.bytes_per_second_within
    assert reach.bytes_per_second(A, C) == config.bytes_per_second_between


def test_surveyors_measure_every_pair_and_third_parties_learn_of_it() -> None:
    """With links of known latency, the published table has the round trips, for pairs that no other message crossed."""
    topology = Topology(within=Link(latency_seconds=0.002), between=Link(latency_seconds=0.04))
    with Swarm(topology=topology, rendezvous=("meet",)) as swarm:
        swarm.meet("meet", site="eu")
        for name, site in [("a", "eu"), ("b", "eu"), ("c", "us"), ("d", "asia")]:
            swarm.join(name, site=site)
        for name in "abcd":
            survey(swarm, name)
        swarm.simulation.advance(30.0)
        reach = ReachMap(swarm.members["d"].view)
        peers = {name: swarm.peer(name) for name in "abcd"}
        assert reach.round_trip_seconds(peers["a"], peers["b"]) == pytest.approx(0.004)
        assert reach.round_trip_seconds(peers["a"], peers["c"]) == pytest.approx(0.08)
        tables = {name: published(swarm.members["d"].view[peers[name]]) for name in "abcd"}
        for name in "abcd":
            assert set(tables[name]) == {swarm.peer(other) for other in [*"abcd", "meet"] if other != name} - (
                {swarm.peer("meet")}
            )


def survey(swarm: Swarm, name: str) -> None:
    world: World = swarm.simulation.world(name)
    member = swarm.members[name]

    def publish(content: bytes) -> None:
        swarm.hosts[name].perform(member.publish(TOPIC, content, world.clock.now()))

    async def start() -> None:
        config = SurveyorConfig(period_seconds=5.0, probes_per_period=2)
        role = Surveyor(
            member.peer,
            member.view,
            publish,
            bytes_per_second=world.network.bytes_per_second,
            is_wanted=lambda record: not record.is_rendezvous,
            config=config,
        )
        Host(role, world, "reach")

    swarm.simulation.run(start(), node=name)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        ReachConfig(weight_newest=0.0)
    with pytest.raises(ValueError, match="surveyor"):
        SurveyorConfig(probes_per_period=0)
    with pytest.raises(AssertionError):
        ReachTable().observe(A, 0.0, round_trip_seconds=math.inf)
