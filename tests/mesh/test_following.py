"""Members follow one rendezvous node at a time: little travels, what is missed is noticed, another takes over."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest

from farflung.mesh.book import Held
from farflung.mesh.config import MemberConfig, RendezvousConfig
from farflung.mesh.directory import Rendezvous
from farflung.sim import Faults, Link, Topology
from farflung.world.address import PeerId
from tests.mesh.swarm import Swarm, identity

MEETINGS = ("meet-0", "meet-1", "meet-2")
NODES = tuple(f"node-{number}" for number in range(6))
EVERYBODY = {*MEETINGS, *NODES}


def full(
    faults: Faults | None = None,
    *,
    topology: Topology | None = None,
    kinds: dict[str, type[Rendezvous]],
    member_config: MemberConfig | None = None,
) -> Swarm:
    config = member_config or MemberConfig()
    swarm = Swarm(seed=1, faults=faults, topology=topology, member_config=config)
    for name in MEETINGS:
        swarm.meet(name, kind=kinds.get(name, Rendezvous))
    for name in NODES:
        swarm.join(name)
    return swarm


def losses(swarm: Swarm, names: Iterable[str]) -> list[str]:
    """Names of living nodes that a view of `names` does without for a while, from now on."""
    lost: list[str] = []
    for name in names:
        swarm.members[name].watch(
            lambda peer, before, after: lost.append(before.topics["name"].decode()) if before and not after else None
        )
    return lost


def test_a_quiet_swarm_passes_on_no_records_and_everybody_hears_renewals_once() -> None:
    with full(kinds={}) as swarm:
        swarm.simulation.advance(20.0)
        before = {name: dict(swarm.simulation.traffic(name).num_messages) for name in NODES}
        lost = losses(swarm, EVERYBODY)
        swarm.simulation.advance(40.0)
        for name in NODES:
            traffic = swarm.simulation.traffic(name)
            heard = Counter[str]()
            for (peer, kind, is_sent), count in traffic.num_messages.items():
                if kind in ("Changes", "Announce"):
                    heard[f"{kind} {peer} {is_sent}"] = count - before[name].get((peer, kind, is_sent), 0)
            told = {key: count for key, count in heard.items() if count}
            assert len(told) == 1 and next(iter(told)).startswith("Changes"), "one tells it, and it announces nothing"
            # At most one part in each flush of renewals.
            assert next(iter(told.values())) <= 40.0 / RendezvousConfig().renewals_flush_seconds
            size = traffic.total(kind="Changes", sent=False)
            assert size < 60_000
        assert lost == [] and all(swarm.seen_by(name) == EVERYBODY for name in EVERYBODY)


@pytest.mark.parametrize("is_silent", [False, True])
@pytest.mark.parametrize("name", MEETINGS)
def test_nobody_is_forgotten_while_a_rendezvous_node_is_lost_and_news_go_on(name: str, is_silent: bool) -> None:
    with full(Faults().crash(name, at=33.0, is_silent=is_silent), kinds={}) as swarm:
        swarm.simulation.advance(30.0)
        living = EVERYBODY - {name}
        lost = losses(swarm, living)
        swarm.simulation.advance(15.0)
        swarm.publish("node-1", "swarm", b"news")
        swarm.simulation.advance(1.0)
        for other in sorted(living):
            assert swarm.members[other].topic("swarm") == {swarm.peer("node-1"): b"news"}, f"{other} follows nobody"
        swarm.simulation.advance(100.0)
        assert set(lost) == {name}
        assert all(swarm.seen_by(other) == living for other in living)


def test_a_member_goes_round_all_rendezvous_nodes() -> None:
    with full(kinds={}) as swarm:
        heard: dict[str, set[PeerId]] = {name: set() for name in NODES}
        for _ in range(4):
            before = {name: dict(swarm.simulation.traffic(name).num_messages) for name in NODES}
            swarm.simulation.advance(MemberConfig().follow_seconds)
            for name in NODES:
                for (peer, kind, is_sent), count in swarm.simulation.traffic(name).num_messages.items():
                    if kind == "Changes" and not is_sent and count > before[name].get((peer, kind, is_sent), 0):
                        heard[name].add(peer)
        assert all(len(peers) == len(MEETINGS) for peers in heard.values())


def test_among_many_the_dead_vanish_with_their_longer_leases_and_few_renew_often_again() -> None:
    """Nine nodes that are many for their budget: thirty seconds between renewals, leases of ninety."""
    faults = Faults()
    for number in range(1, 6):
        faults.crash(f"node-{number}", at=100.0, is_silent=True)
    with full(faults, kinds={}, member_config=MemberConfig(renewals_per_second_max=0.3)) as swarm:
        swarm.simulation.advance(99.0)
        assert {record.renew_seconds for record in swarm.members["node-0"].view.values()} == {30.0}
        swarm.simulation.advance(35.0)
        assert swarm.seen_by("node-0") == EVERYBODY
        swarm.simulation.advance(60.0)
        living = {*MEETINGS, "node-0"}
        assert all(swarm.seen_by(name) == living for name in living)
        swarm.simulation.advance(31.0)
        assert all(record.renew_seconds < 15.0 for record in swarm.members["node-0"].view.values())


class Withholding(Rendezvous):
    """Keeps one node back from all who follow it."""

    hidden: ClassVar[PeerId] = identity("node-0").peer

    def _parts(self, records: Iterable[Held], renewals: Iterable[Held], now: float) -> Iterable[Any]:
        def shown(all_held: Iterable[Held]) -> list[Held]:
            return [held for held in all_held if held.record.peer != self.hidden]

        return super()._parts(shown(records), shown(renewals), now)


def test_what_one_rendezvous_node_keeps_back_another_tells() -> None:
    with full(kinds={"meet-1": Withholding}) as swarm:
        swarm.simulation.advance(1.0)
        others = [name for name in NODES if name != "node-0"]
        deceived = [name for name in others if "node-0" not in swarm.seen_by(name)]
        assert 0 < len(deceived) < len(others)
        swarm.simulation.advance(MemberConfig().follow_seconds + 1.0)
        assert all("node-0" in swarm.seen_by(name) for name in deceived)


def test_lost_parts_are_noticed_and_asked_for_before_leases_end() -> None:
    link = Link(latency_seconds=0.01, loss=0.1)
    with full(topology=Topology(within=link, between=link), kinds={}) as swarm:
        swarm.simulation.advance(30.0)
        lost = losses(swarm, EVERYBODY)
        swarm.simulation.advance(600.0)
        assert all(swarm.seen_by(name) == EVERYBODY for name in EVERYBODY)
        assert lost == []
