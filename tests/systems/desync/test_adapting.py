"""What runs adapt to: thin links get fewer bits, dear exchanges become rare, drifting replicas meet often."""

import dataclasses
from typing import Any

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.desync.adapting import Adaptation, link_values, seconds_for_exchange
from farflung.systems.desync.config import AUTO, DesyncConfig, RoundConfig, desloc, diloco, farflung
from farflung.systems.desync.forming import Member
from farflung.systems.desync.messages import Seat, SyncJoin
from farflung.systems.desync.plan import plan_parts, sections_of
from farflung.world.address import Address, PeerId
from tests.desyncs import Quadratic, SimulatedDesync

torch.set_num_threads(1)

SITES = {"w0": "a", "w1": "b", "w2": "c"}
NUM_VALUES = 60_000
FAT, THIN = 12.5e6, 20e3
DECAYS = {"first_moment": 0.9, "second_moment": 0.95}


def topology(thin: float = THIN) -> Topology:
    """Between a and c the link is thin."""
    fat = Link(latency_seconds=0.02, bytes_per_second=FAT)
    return (
        Topology()
        .link("a", "b", fat)
        .link("b", "c", fat)
        .link("a", "c", dataclasses.replace(fat, bytes_per_second=thin))
    )


def run(config: DesyncConfig, thin: float = THIN, **settings: Any) -> SimulatedDesync:
    patient = RoundConfig(deadline_seconds=60.0, ask_again_seconds=5.0)
    config = dataclasses.replace(config, rounds=patient)

    def make(name: str) -> Quadratic:
        return Quadratic(int(name[1:]), length=NUM_VALUES, learning_rate=0.02)

    desync = SimulatedDesync(config, tuple(SITES), SITES, topology=topology(thin), make_learner=make, **settings)
    with desync:
        desync.run(deadline=5000.0)
        ends = [desync.parameters(name) for name in SITES]
        assert all(torch.equal(ends[0], end) for end in ends)
    return desync


def final_loss(desync: SimulatedDesync) -> float:
    return sum(report.loss for report in desync.reports.values()) / len(desync.reports)


def test_a_thin_link_gets_fewer_bits_than_a_fat_one_and_the_loss_stays() -> None:
    config = diloco(3 * 96, 16)
    exact = run(config)
    adapted = run(dataclasses.replace(config, codec=AUTO))
    chosen = list(adapted.coordinator.decisions)
    thin = [one for one in chosen if "from w2/desync-worker to w0/desync-worker" in one]
    fat = [one for one in chosen if "from w0/desync-worker to w1/desync-worker" in one]
    assert thin[0].startswith("raw ") and "not measured yet" in thin[0]
    assert thin[-1].startswith("int2 ") and "MB/s measured)" in thin[-1] and "(0.02 MB/s" in thin[-1]
    assert fat[-1].startswith("raw ")
    notes = [event.detail for event in adapted.simulation.trace.of("note")]
    assert all(any(one in note for note in notes) for one in chosen)
    assert adapted.simulation.now() < 0.6 * exact.simulation.now()
    begun = Quadratic(0, length=NUM_VALUES).compute_gradients().loss
    assert final_loss(adapted) - final_loss(exact) < 0.01 * (begun - final_loss(exact))


def test_where_all_links_are_wide_nothing_is_lost() -> None:
    config = diloco(3 * 32, 16)
    exact, adapted = run(config, FAT), run(dataclasses.replace(config, codec=AUTO, site_codec=AUTO), FAT)
    assert torch.equal(exact.parameters("w0"), adapted.parameters("w0"))


def test_a_dear_exchange_becomes_rare_and_moments_follow_their_half_lives() -> None:
    config = desloc(3 * 256, 8, {"first_moment": 8, "second_moment": 8}, periods=AUTO, moment_decays=DECAYS)
    desync = run(config, 200e3)
    method = desync.coordinator.method
    assert method.parameters_every > 32
    assert all(every == method.parameters_every for every in method.moments_every.values()), "half-lives are short"
    assert "an exchange takes" in desync.coordinator.decisions[0]
    fixed = run(dataclasses.replace(config, periods="fixed"), 200e3)
    waited = [one.reports["w0"].seconds_waiting / one.reports["w0"].seconds for one in (desync, fixed)]
    assert waited[0] < 0.5 * waited[1]


def test_replicas_that_drift_apart_meet_more_often() -> None:
    config = diloco(3 * 128, 16, outer=None, periods="drift", moment_decays=DECAYS)
    near = run(dataclasses.replace(config, drift_max=1e-4), FAT, step_seconds=2.0)
    far = run(dataclasses.replace(config, drift_max=0.5), FAT, step_seconds=2.0)
    assert near.coordinator.method.parameters_every < 16 < far.coordinator.method.parameters_every
    assert "apart after 16 steps" in near.coordinator.decisions[0]


def test_a_coordinator_that_restarts_keeps_the_periods() -> None:
    config = diloco(3 * 128, 16, periods="drift", drift_max=50.0)
    faults = Faults().crash("leader", at=4.0, restart_after=0.1)
    with SimulatedDesync(config, tuple(SITES), SITES, topology=topology(FAT), faults=faults) as desync:
        desync.simulation.advance(3.9)
        before, first = desync.coordinator, desync.coordinator.method.parameters_every
        desync.simulation.advance(0.3)
        assert desync.coordinator is not before and first > 16
        assert desync.coordinator.method.parameters_every == first and not desync.coordinator.decisions
        desync.run(deadline=1000.0)


def test_steps_that_follow_speeds_are_told() -> None:
    config = diloco(3 * 64, 16, is_speed_scaled=True)
    desync = run(config, FAT, speeds={"w1": 0.5}, is_speed_declared=False)
    (told,) = desync.coordinator.decisions
    assert told == "8 of 16 steps for w1/desync-worker: it makes 5 steps/s, the fastest 10"


def seats(*names: str) -> list[Seat]:
    return [Seat(Address(PeerId(name), "worker"), SITES[name], 1.0) for name in names]


def member(name: str, **rates: float) -> Member:
    join = SyncJoin(
        run="", life=0, round=0, num_credited=0, first=0, fingerprint=b"", site="", steps_per_second=1.0, num_values=0
    )
    measured = {PeerId(peer): rate for peer, rate in rates.items()}
    return Member(Address(PeerId(name), "worker"), SITES[name], 10.0, join, 0.0, 0.0, True, bytes_per_second=measured)


def test_every_link_of_a_ring_carries_sums_and_means() -> None:
    config = diloco(100, 16)
    sections = sections_of({"parameters": 6 * 64}, ["parameters"], config)
    values = link_values(plan_parts(seats("w0", "w1", "w2"), sections, config))
    assert values == dict.fromkeys([(0, 1), (1, 2), (2, 0)], 4 * 128)


def test_codecs_are_chosen_anew_only_where_they_change() -> None:
    adaptation = Adaptation(diloco(100, 16, codec=AUTO, bytes_per_second={("b", "c"): 3e5}))
    present = seats("w0", "w1", "w2")
    members = [member("w0", w1=1e9), member("w1"), member("w2", w0=1e4)]
    codecs, sentences = adaptation.choose_codecs(present, ("parameters",), members, NUM_VALUES)
    assert [(one.source, one.target, one.codec) for one in codecs] == [(0, 1, "raw"), (1, 2, "int4"), (2, 0, "int2")]
    assert len(sentences) == 3 and "as the settings say" in sentences[1]
    again, silence = adaptation.choose_codecs(present, ("parameters",), members, NUM_VALUES)
    assert again == codecs and silence == []


@pytest.mark.parametrize(
    ("config", "seconds"),
    [
        (diloco(100, 20), 0.1 * 20 / 10),
        (diloco(100, 20, is_overlapped=True), 20 / 10),
        (farflung(100, round_seconds_min=3.0), 3.0),
        (farflung(100), 0.8),
    ],
)
def test_what_an_exchange_may_take_follows_from_how_it_is_waited_for(config: DesyncConfig, seconds: float) -> None:
    assert seconds_for_exchange(config, 10.0) == pytest.approx(seconds)
    assert seconds_for_exchange(config, 0.0) == float("inf")
