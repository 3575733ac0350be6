"""Data as the coordinator deals them: never two workers on one sample, nothing unread, nothing read again in vain."""

from collections.abc import Callable, Mapping

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.systems.desync.config import DesyncConfig, RoundConfig, diloco, farflung
from farflung.world.errors import Refused
from tests.desyncs import Reader, SimulatedDesync

torch.set_num_threads(1)

NUM_SHARDS = 6
WORKERS = ("w0", "w1", "w2", "w3")
PATIENT = RoundConfig(deadline_seconds=5.0, ask_again_seconds=0.5, lease_seconds=3.0, num_members_at_start=4)
METHODS: dict[str, Callable[[], DesyncConfig]] = {
    "blocking": lambda: diloco(4 * 60, 5, rounds=PATIENT),
    "free-running": lambda: farflung(4 * 60, 2, round_seconds_min=0.3, rounds=PATIENT),
}
each_method = pytest.mark.parametrize("method", METHODS)


def run(
    method: str, faults: Faults | None = None, orders: Mapping[str, int] | None = None, num_shards: int = NUM_SHARDS
) -> SimulatedDesync:
    def make(name: str) -> Reader:
        return Reader(int(name[1:]), num_shards, (orders or {}).get(name, 1), learning_rate=0.01)

    return SimulatedDesync(METHODS[method](), WORKERS, make_learner=make, faults=faults or Faults())


def drawn_by_all(desync: SimulatedDesync, order: int = 1) -> dict[int, int]:
    return desync.coordinator.ledgers[order].drawn


@each_method
def test_every_shard_is_read_and_every_credited_step_had_a_sample_of_its_own(method: str) -> None:
    with run(method) as desync:
        desync.run()
        assert desync.coordinator.num_drawn == desync.coordinator.num_credited
        assert sorted(drawn_by_all(desync)) == list(range(NUM_SHARDS)) and min(drawn_by_all(desync).values()) > 10
        read = [sample for name in WORKERS for sample in desync.learners[name].read]
        assert len(set(read)) == len(read), "two workers read the same sample"


@each_method
def test_a_newcomer_gets_shards_that_nobody_else_reads_any_more(method: str) -> None:
    with run(method) as desync:
        desync.simulation.advance(2.0)
        before = {name: set(desync.learners[name].samples.drawn) for name in WORKERS}
        desync.add("w4")
        desync.run()
        newcomer = set(desync.learners["w4"].samples.drawn)
        (shard,) = newcomer
        (former,) = [name for name in WORKERS if shard in before[name]]
        assert all(shard not in desync.learners[name].samples.drawn for name in WORKERS)
        own, others = ({place for of, place in desync.learners[one].read if of == shard} for one in ("w4", former))
        assert own and min(own) > max(others), "it goes on where the former holder stopped"
        assert desync.coordinator.num_drawn == desync.coordinator.num_credited


@each_method
def test_the_data_of_the_dead_go_to_others_after_a_lease_and_go_on_where_they_counted(method: str) -> None:
    with run(method, Faults().crash("w3", at=2.0)) as desync:
        desync.simulation.advance(2.5)
        left = set(desync.learners["w3"].samples.drawn)
        counted = {shard: drawn_by_all(desync).get(shard, 0) for shard in left}
        desync.simulation.advance(2.0)
        assert all(not left & set(desync.learners[name].samples.drawn) for name in WORKERS[:3]), "its lease still runs"
        desync.run(names=WORKERS[:3])
        assert left <= {shard for name in WORKERS[:3] for shard in desync.learners[name].samples.drawn}
        again = {sample for name in WORKERS[:3] for sample in desync.learners[name].read if sample[0] in left}
        for shard in left:
            places = sorted(place for of, place in again if of == shard)
            assert places == list(range(counted[shard], counted[shard] + len(places)))
        assert desync.coordinator.num_drawn == desync.coordinator.num_credited


@each_method
def test_whoever_comes_back_within_its_lease_goes_on_with_its_data(method: str) -> None:
    with run(method, Faults().crash("w3", at=2.0, restart_after=0.5)) as desync:
        desync.simulation.advance(1.9)
        before = set(desync.learners["w3"].samples.drawn)
        desync.run()
        assert set(desync.learners["w3"].samples.drawn) == before
        assert desync.coordinator.num_drawn == desync.coordinator.num_credited


def test_a_coordinator_that_restarts_knows_who_reads_what() -> None:
    with run("blocking", Faults().crash("leader", at=2.0, restart_after=0.3)) as desync:
        desync.simulation.advance(1.9)
        before = dict(desync.coordinator.ledgers[1].holders)
        desync.run()
        assert desync.coordinator.ledgers[1].holders == before
        assert desync.coordinator.num_drawn == desync.coordinator.num_credited


def test_sites_with_data_of_their_own_share_them_among_themselves() -> None:
    with run("blocking", orders={"w0": 1, "w1": 1, "w2": 2, "w3": 2}) as desync:
        desync.run()
        for order, names in ((1, WORKERS[:2]), (2, WORKERS[2:])):
            held = sorted(shard for name in names for shard in desync.learners[name].samples.drawn)
            assert held == list(range(NUM_SHARDS)) and len(drawn_by_all(desync, order)) == NUM_SHARDS


def test_more_workers_than_shards_are_refused_in_a_sentence() -> None:
    with run("blocking", num_shards=4) as desync:
        desync.simulation.advance(1.0)
        desync.add("w4")
        with pytest.raises(Refused, match="all 4 shards of the data are read: begin a run with more shards"):
            desync.run()
