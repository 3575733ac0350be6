"""Whole runs in the simulator: machines that come, go, lie and are replaced, and what the journal says afterwards."""

from collections.abc import Sequence
from io import BytesIO

import pytest

from farflung.sim.faults import Faults
from farflung.sim.topology import Link, Topology
from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import JournalSection, JournalWriter, read_journal
from farflung.systems.onebyte.records import Revocation, Round, Seal, Vouch
from farflung.systems.onebyte.replay import steps_of
from farflung.systems.onebyte.steps import Step
from farflung.systems.onebyte.worker import Learner
from farflung.world.address import PeerId
from farflung.world.errors import Refused
from tests.onebytes import RUN_SITE, Bowl, Liar, SimulatedOneByte, header_of

QUICK = RoundsConfig(
    num_rounds=16,
    entries_per_message=4,
    slots_per_lease_min=2,
    audit_share=0.0,
    reissue_seconds=1.0,
    rounds_per_seal=5,
    seal_seconds_max=2.0,
    ask_again_seconds=0.5,
    silence_seconds=2.0,
    beat_seconds=0.25,
    absence_seconds=1.0,
)


def settings(**changes: object) -> RoundsConfig:
    return RoundsConfig(**{name: getattr(QUICK, name) for name in QUICK.__slots__} | changes)  # pyright: ignore


def entries(run: SimulatedOneByte) -> list[list[tuple[int, int, int]]]:
    """Of each round: base round, slot, byte."""
    return [
        sorted(
            (part.base_round, slot, code)
            for part in record.parts
            for slot, code in enumerate(part.codes, start=part.first_slot)
        )
        for record in run.sequencer.records
        if isinstance(record, Round)
    ]


def read_back(run: SimulatedOneByte) -> JournalSection:
    """The run's journal as a file, written and checked."""
    file = BytesIO()
    writer = JournalWriter(file, run.header)
    for record in run.sequencer.records:
        writer.add(record)
    file.seek(0)
    return read_journal(file, name="run.flj")[0]


def test_one_two_and_four_machines_write_the_same_rounds() -> None:
    told: list[object] = []
    for names in (["a"], ["a", "b"], ["a", "b", "c", "d"]):
        with SimulatedOneByte(QUICK, {name: 1.0 + number for number, name in enumerate(names)}) as run:
            run.run(deadline=200)
            assert sum(report.num_counted for report in run.reports.values()) == 16 * 16
            told.append((entries(run), set(run.digests().values())))
            assert [learner.loss < 0.3 for learner in run.learners.values()] == [True] * len(names)  # pyright: ignore
    assert told[0] == told[1] == told[2]


def test_the_journal_is_a_file_that_every_signature_covers() -> None:
    with SimulatedOneByte(QUICK, {"a": 1.0, "b": 1.5}) as run:
        run.run(deadline=200)
        section = read_back(run)
        seals = [record for record in section.records if isinstance(record, Seal)]
        assert section.ledger.is_closed and len(seals) >= 6
        assert not any(isinstance(record, Vouch) for record in section.records)
        replayed = Bowl(run.header)
        replayed.add(steps_of(section))
        assert {replayed.digest()} == set(run.digests().values())


def test_a_newcomer_gets_the_same_weights_from_the_journal_alone() -> None:
    with SimulatedOneByte(settings(num_rounds=30, catch_up_bytes=100), {"a": 1.0}, seconds_per_slot=0.02) as run:
        run.simulation.advance(3.0)
        assert run.running["a"].report().num_rounds > 6
        run.add_worker("late")
        run.run(deadline=200)
        assert run.reports["late"].num_counted > 50
        assert len(set(run.digests().values())) == 1


def test_a_killed_measurers_slots_go_to_others_and_the_sequencer_vouches_for_what_it_sent() -> None:
    faults = Faults().crash("b", at=1.5)
    with SimulatedOneByte(QUICK, {"a": 1.0, "b": 1.0}, faults=faults, seconds_per_slot=0.05) as run:
        run.run(deadline=200, names=["a"])
        section = read_back(run)
        vouched = [record.participant for record in section.records if isinstance(record, Vouch)]
        assert {section.ledger.participants[number].name for number in vouched} == {"b"}
        assert all(len(each) == 16 for each in entries(run)) and section.ledger.is_closed


def test_slots_of_a_machine_that_is_gone_are_given_away_at_once() -> None:
    """To those who have done their own, or when they have: not with the next beat, which is far away here."""
    faults = Faults().crash("b", at=1.5)
    never = dict.fromkeys(("beat_seconds", "reissue_seconds", "ask_again_seconds", "ask_again_seconds_max"), 500.0)
    config = settings(absence_seconds=2000.0, silence_seconds=2000.0, **never)
    with SimulatedOneByte(config, {"a": 1.0, "b": 9.0, "c": 1.0}, faults=faults, seconds_per_slot=0.05) as run:
        run.run(deadline=200, names=["a", "c"])
        assert all(len(each) == 16 for each in entries(run))


def test_a_restarted_measurer_does_not_sign_what_its_earlier_life_measured() -> None:
    faults = Faults().crash("b", at=1.5).restart("b", at=1.7)
    with SimulatedOneByte(QUICK, {"a": 1.0, "b": 1.0}, faults=faults, seconds_per_slot=0.05) as run:
        run.run(deadline=200)
        section = read_back(run)
        assert [record.participant for record in section.records if isinstance(record, Vouch)] != []
        assert len(set(run.digests().values())) == 1


def test_late_entries_count_in_a_later_round_with_their_own_directions() -> None:
    config = settings(quorum=0.5, num_rounds=20)
    with SimulatedOneByte(config, {"a": 1.0, "b": 1.0, "slow": 2.5}) as run:
        run.run(deadline=200)
        rounds = [record for record in run.sequencer.records if isinstance(record, Round)]
        lateness = {record.number - part.base_round for record in rounds for part in record.parts}
        assert max(lateness) in range(1, run.header.staleness_rounds_max + 1)
        assert len(set(run.digests().values())) == 1 and read_back(run).ledger.is_closed


def test_a_round_closes_at_its_deadline_with_what_is_there() -> None:
    config = settings(round_seconds_max=1.0, reissue_seconds=50.0, num_rounds=4)
    with SimulatedOneByte(config, {"a": 1.0, "stuck": 5_000.0}, seconds_per_slot=0.05) as run:
        run.run(deadline=200, names=["a"])
        assert [len(each) for each in entries(run)] == [16, 8, 8, 8]


@pytest.mark.parametrize("candidates", [("first", "second"), ("first", "second", "third")])
def test_a_standby_takes_over_for_good(candidates: tuple[str, ...]) -> None:
    faults = Faults().crash("first", at=2.0, is_silent=True)
    with SimulatedOneByte(
        QUICK, {"a": 1.0, "b": 1.5}, candidates=candidates, faults=faults, seconds_per_slot=0.03
    ) as run:
        run.run(deadline=200)
        assert run.sequencer.replica.view.sequencer != "first"
        assert all(len(each) == 16 for each in entries(run)) and read_back(run).ledger.is_closed


@pytest.mark.parametrize(
    ("num_rounds", "seconds_per_slot"), [(20, 0.05), (120, 0.002)], ids=["slow rounds", "quick rounds"]
)
def test_a_standby_is_admitted_however_far_it_is(num_rounds: int, seconds_per_slot: float) -> None:
    """Its way there and back takes longer than a beat, and than a round."""
    topology = Topology()
    topology.link(RUN_SITE, "far", Link(latency_seconds=0.4, bytes_per_second=6250.0))
    with SimulatedOneByte(
        settings(num_rounds=num_rounds),
        {"a": 1.0},
        candidates=("first", "second"),
        topology=topology,
        sites={"second": "far"},
        seconds_per_slot=seconds_per_slot,
    ) as run:
        run.run(deadline=200)
        assert run.sequencer.replica.view.standbys == ("second",)


def test_views_do_not_change_for_ever_where_machines_stand_still_for_longer_than_patience() -> None:
    """Sequencer and standby are frozen in turns, again and again, and a round takes longer than either is awake."""
    faults = Faults()
    for number in range(40):
        for name, first in (("first", 1.0 + 4 * number), ("second", 3.0 + 4 * number)):
            faults.freeze(name, during=(first, first + 1.5))
    with SimulatedOneByte(
        settings(num_rounds=8), {"a": 1.0}, candidates=("first", "second"), faults=faults, seconds_per_slot=0.4
    ) as run:
        run.run(deadline=200)
        assert run.sequencer.replica.view.epoch < 12


def test_a_sequencer_goes_on_without_a_standby_that_is_gone() -> None:
    faults = Faults().crash("second", at=2.0, is_silent=True)
    with SimulatedOneByte(
        QUICK, {"a": 1.0}, candidates=("first", "second"), faults=faults, seconds_per_slot=0.03
    ) as run:
        run.run(deadline=200)
        assert run.sequencer.replica.view.sequencer == "first" and run.sequencer.replica.view.standbys == ()


def test_without_the_witness_nobody_replaces_anybody_and_the_run_waits() -> None:
    faults = Faults().crash("witness", at=1.0).crash("first", at=2.0).restart("witness", at=20.0)
    with SimulatedOneByte(
        QUICK, {"a": 1.0}, candidates=("first", "second"), faults=faults, seconds_per_slot=0.03
    ) as run:
        run.simulation.advance(19.0)
        rounds_then = run.running["a"].report().num_rounds
        assert run.sequencers["second"].leading is None and rounds_then < QUICK.num_rounds
        run.run(deadline=200)
        assert run.sequencer is run.sequencers["second"]


def one_liar(kind: type[Bowl]) -> dict[str, type[Bowl]]:
    return {"a": Bowl, "b": Bowl, "c": Bowl, "liar": kind}


def lying_run(audit_share: float) -> SimulatedOneByte:
    def learner(name: str, header: Header) -> Learner:
        return one_liar(Liar)[name](header)

    config = settings(num_rounds=24, audit_share=audit_share, disagreements_max=12)
    names = dict.fromkeys(one_liar(Liar), 1.0)
    return SimulatedOneByte(config, names, header=header_of(num_slots=32), learner=learner)


def test_a_liar_is_refuted_banned_and_subtracted() -> None:
    with lying_run(audit_share=0.15) as run:
        run.run(deadline=300)
        assert isinstance(run.errors["liar"], Refused) and "refuted" in str(run.errors["liar"])
        section = read_back(run)
        (revocation,) = [record for record in section.records if isinstance(record, Revocation)]
        assert section.ledger.participants[revocation.participant].name == "liar"
        honest = Bowl(run.header)
        honest.add(steps_of(section))
        assert {run.learners[name].digest() for name in "abc"} == {honest.digest()}
        assert sorted(run.reports) == ["a", "b", "c"]


def test_without_audits_the_liar_stays() -> None:
    with lying_run(audit_share=0.0) as run:
        run.run(deadline=300)
        assert run.errors == {} and run.reports["liar"].num_counted > 50


def test_honest_machines_are_never_banned_by_audits() -> None:
    with SimulatedOneByte(settings(audit_share=0.3), {"a": 1.0, "b": 1.3, "c": 2.0}) as run:
        run.run(deadline=200)
        assert run.errors == {}
        assert sum(report.num_measured for report in run.reports.values()) > 16 * 16 * 1.15


class Drifter(Bowl):
    """Adds a little too much."""

    def add(self, steps: Sequence[Step]) -> None:
        super().add(steps)
        self.accumulators.sums["x"][0, 0] += 1


def test_a_machine_whose_weights_drift_is_refused_even_if_it_speaks_first() -> None:
    def learner(name: str, header: Header) -> Learner:
        return Drifter(header) if name == "drifter" else Bowl(header)

    names = {"drifter": 0.5, "a": 1.0, "b": 1.0}
    with SimulatedOneByte(QUICK, names, learner=learner) as run:
        run.run(deadline=200)
        assert list(run.errors) == ["drifter"] and "not those of the others" in str(run.errors["drifter"])
        assert sorted(run.reports) == ["a", "b"]


def test_a_measurer_of_another_run_is_refused() -> None:
    with SimulatedOneByte(QUICK, {"a": 1.0}) as run:
        run.header = header_of(rate=0.05)
        run.add_worker("other")
        run.run(deadline=200)
        assert "another run" in str(run.errors["other"])


def test_a_standby_needs_a_witness() -> None:
    with pytest.raises(ValueError, match="witness"):
        Group(candidates=(PeerId("a"), PeerId("b")))


def test_shares_that_take_long_are_not_measured_twice_once_speeds_are_known() -> None:
    """A share takes eight times as long as slots are left with whoever's speed is not known."""
    config = settings(num_rounds=12, entries_per_message=8, silence_seconds=20.0, absence_seconds=20.0)
    with SimulatedOneByte(config, {"a": 1.0, "b": 1.0}, seconds_per_slot=1.0) as run:
        run.run()
        num_measured = sum(learner.num_measured for learner in run.learners.values())  # pyright: ignore
        assert 12 * 16 <= num_measured <= (12 + 2) * 16, "the first rounds alone are measured twice"
