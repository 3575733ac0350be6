"""Link arithmetic against closed formulas: latency, shared bandwidth, order under jitter, loss and duplication."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.sim import Faults, Link, Simulation, Topology
from farflung.sim.bandwidth import fair_rates
from farflung.sim.topology import Pipe
from farflung.wire.message import encode
from farflung.world.address import Address, PeerId
from farflung.world.mailbox import Mailbox
from tests.sim.messages import Probe

MEGABYTE = 1_000_000


def probe(num_bytes: int, number: int = 0) -> Probe:
    """A message whose frame from "out" to "in" has exactly `num_bytes`."""
    padding = num_bytes - 100
    for _ in range(2):
        padding += num_bytes - len(encode("out", "in", Probe(number=number, padding=bytes(padding))))
    message = Probe(number=number, padding=bytes(padding))
    assert len(encode("out", "in", message)) == num_bytes
    return message


def arrivals(
    simulation: Simulation, sends: list[tuple[float, str, str, Probe]], *, until: float = 1000.0
) -> list[tuple[str, int, float]]:
    """(receiver, number, time) of every message that arrives by `until`, given (time, sender, receiver, message)."""
    log: list[tuple[str, int, float]] = []

    async def send(mailbox: Mailbox, at: float, target: str, message: Probe) -> None:
        await asyncio.sleep(at)
        mailbox.send(Address(PeerId(target), "in"), message)

    async def receive(name: str) -> None:
        with Mailbox(simulation.world(name), "in") as mailbox:
            while (received := await mailbox.receive(until)) is not None:
                if isinstance(received[1], Probe):
                    log.append((name, received[1].number, simulation.now()))

    async def everything() -> None:
        receivers = [asyncio.create_task(receive(name)) for name in dict.fromkeys(target for _, _, target, _ in sends)]
        mailboxes = {name: Mailbox(simulation.world(name), "out") for name in dict.fromkeys(s for _, s, _, _ in sends)}
        for at, source, target, message in sends:
            await_send = send(mailboxes[source], at, target, message)
            receivers.append(asyncio.create_task(await_send))
        await asyncio.gather(*receivers)

    simulation.run(everything())
    return log


def two_sites(link: Link, *, seed: int = 0, faults: Faults | None = None) -> Simulation:
    simulation = Simulation(seed=seed, topology=Topology().link("eu", "us", link), faults=faults)
    for name, site in [("a", "eu"), ("b", "eu"), ("x", "us"), ("y", "us")]:
        simulation.node(name, site=site)
    return simulation


def test_one_message_takes_latency_and_size_over_bandwidth() -> None:
    with two_sites(Link(latency_seconds=0.05, bytes_per_second=MEGABYTE)) as simulation:
        log = arrivals(simulation, [(1.0, "a", "x", probe(MEGABYTE // 2))])
    assert log == [("x", 0, pytest.approx(1.0 + 0.5 + 0.05, abs=1e-9))]


def test_two_messages_share_the_link_between_their_sites() -> None:
    """Both of S bytes from time 0: each gets half the bandwidth, both end at 2 S / B."""
    with two_sites(Link(latency_seconds=0.05, bytes_per_second=MEGABYTE)) as simulation:
        log = arrivals(simulation, [(0.0, "a", "x", probe(MEGABYTE)), (0.0, "b", "y", probe(MEGABYTE))])
    assert [time for _, _, time in log] == pytest.approx([2.05, 2.05], abs=1e-6)


def test_a_later_message_slows_an_earlier_one_only_while_both_are_there() -> None:
    """S=1 MB at 0 and s=0.25 MB at 0.5: the small one ends at 1.0, the large one at (1 + 0.25) MB / B."""
    with two_sites(Link(bytes_per_second=MEGABYTE)) as simulation:
        log = arrivals(simulation, [(0.0, "a", "x", probe(MEGABYTE)), (0.5, "b", "y", probe(MEGABYTE // 4))])
    assert [(name, time) for name, _, time in log] == [
        ("y", pytest.approx(1.0, abs=1e-6)),
        ("x", pytest.approx(1.25, abs=1e-6)),
    ]


def test_directions_do_not_share() -> None:
    with two_sites(Link(bytes_per_second=MEGABYTE)) as simulation:
        log = arrivals(simulation, [(0.0, "a", "x", probe(MEGABYTE)), (0.0, "x", "a", probe(MEGABYTE))])
    assert [time for _, _, time in log] == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_narrow_uplink_leaves_the_rest_of_the_link_to_others() -> None:
    """Max-min: a is held to 0.2 MB/s by its own uplink, so that b gets the other 0.8 of the shared link."""
    simulation = Simulation(topology=Topology().link("eu", "us", Link(bytes_per_second=MEGABYTE)))
    simulation.node("a", site="eu", uplink_bytes_per_second=0.2 * MEGABYTE)
    simulation.node("b", site="eu")
    simulation.node("x", site="us")
    with simulation:
        sends = [(0.0, "a", "x", probe(MEGABYTE, 1)), (0.0, "b", "x", probe(800_000, 2))]
        log = arrivals(simulation, sends)
    assert log == [("x", 2, pytest.approx(1.0, abs=1e-6)), ("x", 1, pytest.approx(5.0, abs=1e-6))]


def test_messages_of_one_lane_follow_each_other_and_urgent_ones_overtake_bulk() -> None:
    """Two of 2 MB on the bulk lane and, from 0.5 s on, one of 0.5 MB that shares the link with the first of them."""
    with two_sites(Link(bytes_per_second=MEGABYTE)) as simulation:
        sends = [
            (0.0, "a", "x", probe(2 * MEGABYTE, 1)),
            (0.0, "a", "x", probe(2 * MEGABYTE, 2)),
            (0.5, "a", "x", probe(MEGABYTE // 2, 3)),
        ]
        log = arrivals(simulation, sends)
    assert [number for _, number, _ in log] == [3, 1, 2]
    assert [time for _, _, time in log] == pytest.approx([1.5, 2.5, 4.5], abs=1e-6)


def test_jitter_and_loss_keep_the_order_of_what_arrives() -> None:
    link = Link(latency_seconds=0.01, jitter_seconds=0.5, loss=0.2)
    with two_sites(link, seed=5) as simulation:
        log = arrivals(simulation, [(0.01 * n, "a", "x", probe(200, n)) for n in range(500)])
    numbers = [number for _, number, _ in log]
    assert numbers == sorted(numbers)
    assert 350 < len(numbers) < 450  # 400 expected, standard deviation 9
    assert len({round(time, 6) for _, _, time in log}) > 50


def test_duplication_delivers_twice_and_loss_of_a_fault_ends_with_it() -> None:
    with two_sites(Link(duplication=0.5), faults=Faults().lose(0.99, during=(10, 20))) as simulation:
        sends = [(float(n), "a", "x", probe(200, n)) for n in range(30)]
        numbers = [number for _, number, _ in arrivals(simulation, sends)]
    assert set(range(9)) <= set(numbers) and set(range(21, 30)) <= set(numbers)
    assert len(set(numbers) & set(range(10, 20))) <= 2
    assert len(numbers) > len(set(numbers))


def test_traffic_is_counted_in_bytes_of_frames_on_both_ends() -> None:
    with two_sites(Link(loss=0.3), seed=2) as simulation:
        log = arrivals(simulation, [(0.0, "a", "x", probe(1000, n)) for n in range(100)])
        assert simulation.traffic("a").total(peer=PeerId("x"), kind="Probe", sent=True) == 100 * 1000
        assert simulation.traffic("x").total(peer=PeerId("a"), kind="Probe", sent=False) == len(log) * 1000 < 100_000
        assert simulation.traffic("b").total() == 0


def test_what_stands_for_something_larger_takes_its_time_and_counts_as_much() -> None:
    """A thousand bytes that stand for a megabyte; of another kind they are a thousand."""
    topology = Topology().link("eu", "us", Link(bytes_per_second=MEGABYTE))
    for kind, num_bytes in (("Probe", MEGABYTE), ("Other", 1000)):
        size_of = {kind: MEGABYTE // 1000}
        simulation = Simulation(topology=topology, size_of=lambda one, num, of=size_of: num * of.get(one, 1))
        simulation.node("a", site="eu")
        simulation.node("x", site="us")
        with simulation:
            log = arrivals(simulation, [(0.0, "a", "x", probe(1000))])
            assert simulation.traffic("a").total(sent=True) == simulation.traffic("x").total(sent=False) == num_bytes
        assert log == [("x", 0, pytest.approx(num_bytes / MEGABYTE, abs=1e-6))]


def test_the_door_tells_round_trip_and_bandwidth_of_open_links_only() -> None:
    topology = Topology().link("eu", "us", Link(latency_seconds=0.03, bytes_per_second=MEGABYTE))
    topology.link("us", "eu", Link(latency_seconds=0.05), back=Link(latency_seconds=0.03, bytes_per_second=MEGABYTE))
    with Simulation(topology=topology) as simulation:
        simulation.node("a", site="eu")
        simulation.node("x", site="us")
        network = simulation.world("a").network
        assert network.round_trip_seconds(PeerId("x")) is None
        arrivals(simulation, [(0.0, "a", "x", probe(MEGABYTE))])
        assert network.round_trip_seconds(PeerId("x")) == pytest.approx(0.08)
        assert network.bytes_per_second(PeerId("x")) == pytest.approx(MEGABYTE)
        assert simulation.world("x").network.bytes_per_second(PeerId("a")) is None


def test_a_link_between_two_nodes_goes_before_that_of_their_sites() -> None:
    topology = Topology().link("eu", "us", Link(latency_seconds=0.05)).link("a", "x", Link(latency_seconds=0.3))
    with Simulation(topology=topology) as simulation:
        for name, site in [("a", "eu"), ("b", "eu"), ("x", "us")]:
            simulation.node(name, site=site)
        log = arrivals(simulation, [(0.0, "a", "x", probe(200, 1)), (0.0, "b", "x", probe(200, 2))])
    assert log == [("x", 2, pytest.approx(0.05)), ("x", 1, pytest.approx(0.3))]


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=1, max_size=8),
)
def test_fair_rates_fill_pipes_and_nobody_could_have_more_without_taking_from_a_poorer(
    capacities: list[int], crossings: list[list[int]]
) -> None:
    """The definition of max-min fairness: every transfer crosses a full pipe in which nobody has more than it."""
    ways = {
        number: [Pipe(pipe % len(capacities), float(capacities[pipe % len(capacities)])) for pipe in crossing]
        for number, crossing in enumerate(crossings)
    }
    rates = fair_rates(ways)
    load = dict.fromkeys(range(len(capacities)), 0.0)
    for number, way in ways.items():
        for key in {pipe.key for pipe in way}:
            assert isinstance(key, int)
            load[key] += rates[number]
    assert all(load[key] <= capacities[key] * (1 + 1e-9) for key in load)
    for way in ways.values():
        bottlenecks = [
            pipe for pipe in way if isinstance(pipe.key, int) and load[pipe.key] >= pipe.bytes_per_second * (1 - 1e-9)
        ]
        own = rates[next(n for n, w in ways.items() if w is way)]
        assert any(all(rates[n] <= own * (1 + 1e-9) for n, w in ways.items() if pipe in w) for pipe in bottlenecks)


def test_impossible_links_are_refused() -> None:
    for options in ({"latency_seconds": -1.0}, {"bytes_per_second": 0.0}, {"loss": 1.0}, {"duplication": -0.1}):
        with pytest.raises(ValueError, match="link"):
            Link(**options)
