"""Members that die, come late, are slow or are refused: what each costs, and that nobody's state is half of two."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.desync.config import DesyncConfig, RoundConfig, ddp, desloc, diloco, farflung
from farflung.systems.desync.forming import Member, form_round
from farflung.systems.desync.messages import COORDINATOR, SyncJoin
from farflung.systems.desync.worker import Worker
from farflung.world.address import Address, PeerId
from farflung.world.errors import Refused
from tests.desyncs import LEADER, Quadratic, SimulatedDesync

torch.set_num_threads(1)

PATIENT = RoundConfig(deadline_seconds=5.0, ask_again_seconds=0.5, exchange_seconds_max=5.0)
JOIN = SyncJoin(
    run="", life=0, round=0, num_credited=0, first=0, fingerprint=b"", site="s", steps_per_second=1.0, num_values=1
)


def member(name: str, arrived_at: float | None, **settings: object) -> Member:
    own = Member(Address(PeerId(name), "worker"), "s", 1.0, JOIN, 0.0, 0.0, True, arrived_at)
    for field, value in settings.items():
        setattr(own, field, value)
    return own


def test_a_round_forms_when_all_are_there_or_at_the_deadline_with_a_reason() -> None:
    config = RoundConfig(quorum=2, deadline_seconds=10.0)
    waiting = form_round([member("a", 1.0), member("b", 2.0), member("c", None)], 3.0, config)
    assert waiting.members == () and waiting.reason == "waiting for c/worker" and waiting.wake_at == 11.0
    late = form_round([member("a", 1.0), member("b", 2.0), member("c", None)], 11.0, config)
    assert len(late.members) == 2 and "by the deadline, without c/worker" in late.reason
    assert form_round([member("a", 1.0), member("b", 2.0)], 3.0, config).reason == "all 2 have arrived"
    alone = form_round([member("a", 1.0), member("b", None)], 99.0, config)
    assert alone.members == () and alone.reason == "1 have arrived, the quorum is 2"
    given_up = form_round([member("a", 1.0), member("b", 2.0), member("c", None, is_awaited=False)], 3.0, config)
    assert len(given_up.members) == 2
    banned = form_round([member("a", 1.0), member("b", 2.0), member("c", 1.0, banned_until=9.0)], 3.0, config)
    assert len(banned.members) == 2


def run(config: DesyncConfig, faults: Faults | None = None, **settings: object) -> SimulatedDesync:
    workers = ("w0", "w1", "w2", "w3")
    return SimulatedDesync(config, workers, faults=faults or Faults(), **settings)  # pyright: ignore[reportArgumentType]


def equal(desync: SimulatedDesync) -> bool:
    ends = [desync.parameters(name) for name in desync.reports]
    return all(torch.equal(ends[0], end) for end in ends)


def test_a_dead_worker_costs_one_deadline() -> None:
    config = diloco(4 * 60, 6, rounds=PATIENT)
    with run(config) as desync:
        desync.run()
        calm = desync.simulation.now()
    with run(config, Faults().freeze("w3", during=(1.0, 500.0))) as desync:
        desync.run(names=("w0", "w1", "w2"), deadline=200)
        # Three do the budget of four: a third more rounds, and the silence of one is waited for once.
        assert desync.simulation.now() < calm * 4 / 3 + PATIENT.deadline_seconds + PATIENT.exchange_seconds_max + 4
        ends = [desync.parameters(name) for name in ("w0", "w1", "w2")]
        assert all(torch.equal(ends[0], end) for end in ends)
        assert desync.reports["w0"].num_members == 3


def test_a_newcomer_takes_parameters_moments_and_step_count() -> None:
    config = desloc(4 * 60, 6, {"first_moment": 6, "second_moment": 6}, rounds=PATIENT)
    with run(config) as desync:
        desync.simulation.advance(2.0)
        desync.add("w4")
        desync.run()
        assert equal(desync) and sorted(desync.reports) == ["w0", "w1", "w2", "w3", "w4"]
        newcomer, founder = desync.learners["w4"], desync.learners["w0"]
        assert desync.reports["w4"].num_states_taken >= 1
        # Bias correction: the newcomer counts the steps behind its moments, not its own.
        assert newcomer.num_steps > desync.reports["w4"].num_steps + 12
        assert abs(newcomer.num_steps - founder.num_steps) <= 6, "its donor may have been at either end of a round"
        for moment in ("first_moment", "second_moment"):
            for name, tensor in founder.moments[moment].items():
                assert torch.equal(tensor, newcomer.moments[moment][name])


@pytest.mark.parametrize("make", [lambda: ddp(8 * 40, rounds=PATIENT), lambda: desloc(8 * 40, 4, rounds=PATIENT)])
def test_doubling_the_workers_in_the_middle_stays_stable(make: Callable[[], DesyncConfig]) -> None:
    losses: list[float] = []
    config = make()
    with run(config, on_round=lambda name, report: losses.append(report.loss)) as desync:
        desync.simulation.advance(2.5)
        num_before = len(losses)
        for number in range(4, 8):
            desync.add(f"w{number}")
        desync.run()
        assert equal(desync) and len(desync.reports) == 8
        assert max(report.num_members for report in desync.reports.values()) == 8
    assert 0 < num_before < len(losses)
    assert max(losses[num_before:]) < max(losses[:num_before]), "no jump of the loss"


def test_a_coordinator_that_restarts_goes_on_where_it_was() -> None:
    config = diloco(4 * 60, 6, rounds=PATIENT)
    with run(config) as desync:
        desync.run()
        undisturbed = desync.parameters("w0")
    with run(config, Faults().crash(LEADER, at=2.0, restart_after=0.3)) as desync:
        desync.run(deadline=200)
        assert equal(desync) and desync.coordinator.num_credited == 240
        assert torch.equal(desync.parameters("w0"), undisturbed), "no step is lost or made twice"


def test_when_all_are_gone_the_run_goes_back_to_what_somebody_has() -> None:
    faults = Faults()
    for name in ("w0", "w1", "w2", "w3"):
        faults.crash(name, at=3.0, restart_after=1.0)
    with run(diloco(4 * 40, 5, rounds=PATIENT), faults) as desync:
        desync.simulation.advance(6.0)
        desync.run(deadline=300)
        assert equal(desync) and desync.coordinator.num_credited == 160
        assert any("back to round 0" in event.detail for event in desync.simulation.trace.of("note"))


def test_a_worker_with_other_settings_is_refused_in_a_sentence() -> None:
    with run(diloco(4 * 20, 5)) as desync:
        world = desync.simulation.node("stranger")
        other = dataclasses.replace(desync.config, parameters_every=7)
        worker = Worker(world, Quadratic(9), other, Address(PeerId(LEADER), COORDINATOR))
        with pytest.raises(Refused, match="other settings"):
            desync.simulation.run(worker.run(), node="stranger")
        desync.run()
        assert equal(desync)


def test_nobody_waits_for_the_slow_when_steps_follow_speeds() -> None:
    speeds = {"w0": 1.0, "w1": 0.25, "w2": 0.5, "w3": 0.9}
    waiting: dict[bool, float] = {}
    for is_scaled in (False, True):
        with run(diloco(4 * 64, 16, is_speed_scaled=is_scaled), speeds=speeds, is_speed_declared=False) as desync:
            reports = desync.run()
            assert equal(desync)
            waiting[is_scaled] = reports["w0"].seconds_waiting / reports["w0"].seconds
    assert waiting[True] < 0.5 * waiting[False]


@pytest.mark.parametrize("codec", ["int4", "int2"])
def test_free_running_workers_never_wait_on_thin_links(codec: str) -> None:
    sites = {"w0": "a", "w1": "a", "w2": "b", "w3": "c"}
    topology = Topology(between=Link(latency_seconds=0.05, bytes_per_second=2000))
    config = farflung(8 * 64, 2, codec=codec)
    with run(config, sites=sites, topology=topology, speeds={"w1": 0.1}) as desync:
        reports = desync.run()
        assert equal(desync)
        for name, report in reports.items():
            # Not counted as work: joining, a step that is not at its end when the report is made, and the last two
            # rounds, beside which further steps would be in vain.
            at_ends = 0.1 / desync.speeds.get(name, 1.0) + 0.3 + 2 * report.seconds / report.round
            assert report.seconds_waiting < at_ends < 0.25 * report.seconds


def test_who_comes_when_all_have_left_ends_without_the_result() -> None:
    with run(diloco(4 * 20, 5)) as desync:
        desync.run()
        assert all(report.has_result for report in desync.reports.values())
        desync.add("w4")
        desync.run(deadline=100)
        assert not desync.reports["w4"].has_result and desync.reports["w4"].num_steps == 0
