"""Runs with private data: everybody measures all slots, means move the weights, and anyone can be left out."""

from io import BytesIO

import numpy as np
import pytest

from farflung.sim.faults import Faults
from farflung.systems.onebyte.code import coefficients
from farflung.systems.onebyte.edit import merged, revoked, write_journal
from farflung.systems.onebyte.header import Header, encode_header
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.journal import JournalSection, JournalWriter, read_journal
from farflung.systems.onebyte.means import mean_weights
from farflung.systems.onebyte.records import Part, Round, encode_record
from farflung.systems.onebyte.replay import steps_of
from farflung.systems.onebyte.sharing import SharedSlots
from farflung.systems.onebyte.steps import Step
from tests.onebytes import Bowl, SimulatedOneByte, header_of
from tests.systems.onebyte.test_onebyte_runs import QUICK, read_back, settings

TRIMMED = SharedSlots(mean="trimmed", trim_percent=25)
NAMES = ("a", "b", "c", "d")
WORKERS = {name: 1.0 + number for number, name in enumerate(NAMES)}


def private(name: str, header: Header) -> Bowl:
    """Everybody's data are its own."""
    return Bowl(header, data=NAMES.index(name))


def shared_run(shared: SharedSlots = TRIMMED, **changes: object) -> SimulatedOneByte:
    header = header_of(shared=shared)
    fields = {"config": QUICK, "workers": WORKERS, "learner": private, **changes}
    return SimulatedOneByte(header=header, **fields)


def replayed(section: JournalSection) -> bytes:
    bowl = Bowl(section.header)
    bowl.add(steps_of(section))
    return bowl.digest()


def test_everybody_measures_every_slot_and_all_end_with_the_weights_of_the_journal() -> None:
    with shared_run() as run:
        run.run(deadline=400)
        section = read_back(run)
        assert [report.num_counted for report in run.reports.values()] == [16 * 16] * 4
        assert section.ledger.num_entries == 4 * 16 * 16 and not section.ledger.num_vouched
        assert set(run.digests().values()) == {replayed(section)}
        # The bowl that is their middle is found: no single one could be.
        middle = np.mean([bowl._target.numpy() for bowl in run.learners.values()], 0) * 2.0**-24  # pyright: ignore
        found = -run.learners["a"].accumulators.sums["x"].numpy() * 2.0**-24  # pyright: ignore
        assert np.linalg.norm(found - middle) < 0.7 * np.linalg.norm(middle)


def test_the_trimmed_mean_leaves_out_both_ends_and_needs_no_order() -> None:
    header = header_of(num_slots=3, shared=SharedSlots(mean="trimmed", trim_percent=25, participants_min=2))
    codes = {0: bytes([60, 60, 60]), 1: bytes([64, 60, 188]), 2: bytes([127, 60]), 3: bytes([188, 60])}
    parts = [Part(number, 5, 0, each) for number, each in codes.items()]
    values = {number: coefficients(each, 60).tolist() for number, each in codes.items()}
    assert [values[number][0] for number in range(4)] == [32, 45, 127, -32]
    rate = header.schedule.rate
    # Four of the first: 45 and 32 are left. Two of the third: a quarter of them is nobody, and they cancel.
    expected = [(rate * (32 + 45) + 1) // 2, rate * 32, 0]
    assert mean_weights(header, 5, 60, parts).tolist() == expected
    assert mean_weights(header, 5, 60, reversed(parts)).tolist() == expected
    assert mean_weights(header, 5, 60, parts[:1]).tolist() == [0, 0, 0], "fewer than two are none"


def test_late_entries_change_the_mean_to_what_it_would_have_been() -> None:
    """A quorum of three quarters closes rounds before the slowest has measured: it is late in most rounds."""
    with shared_run(config=settings(quorum=0.75)) as run:
        run.run(deadline=400)
        section = read_back(run)
        late = [part for record in section.rounds for part in record.parts if part.base_round < record.number]
        assert len(late) > 5
        assert set(run.digests().values()) == {replayed(section)}
        at_once = Bowl(run.header)
        journal = HeldJournal(run.header)
        for content in run.sequencer.replica.log.contents:
            journal.take(content)
        for record in journal.rounds:
            parts = [part for each in journal.rounds for part in each.parts if part.base_round == record.number]
            weights = mean_weights(run.header, record.number, record.reference, parts)
            at_once.add([Step(record.number, 0, weights)])
        assert at_once.digest() == replayed(section)


def test_without_a_participant_the_journal_is_what_it_would_have_been_without_it() -> None:
    with shared_run(config=settings(quorum=0.75)) as run:
        run.run(deadline=400)
        section = read_back(run)
    with_all = replayed(section)
    without = revoked([section], "b")
    file = BytesIO()
    write_journal(file, without)
    file.seek(0)
    read_again = read_journal(file, name="without.flj")
    number = [each.name for each in section.ledger.participants].index("b")
    alone = [
        Round(record.number, record.reference, tuple(part for part in record.parts if part.participant != number))
        for record in section.rounds
    ]
    bowl, expected = Bowl(section.header), replayed(read_again[0])
    for base in range(len(alone)):
        parts = [part for record in alone for part in record.parts if part.base_round == base]
        weights = mean_weights(section.header, base, alone[base].reference, parts)
        bowl.add([Step(base, 0, weights)])
    assert bowl.digest() == expected != with_all
    # A machine that holds the journal follows a revocation step by step to the same weights.
    held, follower = HeldJournal(section.header), Bowl(section.header)
    for record in read_again[0].records:
        follower.add(held.take(encode_record(record)))
    assert follower.digest() == expected


def test_a_participant_that_dies_does_not_stop_the_others_and_comes_back() -> None:
    faults = Faults().crash("b", at=1.5, restart_after=3.0)
    with shared_run(
        config=settings(round_seconds_max=1.0, quorum=0.75), faults=faults, workers=dict.fromkeys(NAMES, 1.0)
    ) as run:
        run.run(deadline=400)
        section = read_back(run)
        assert section.ledger.is_closed and set(run.digests().values()) == {replayed(section)}
        assert section.ledger.num_entries > 3 * 16 * 16


def test_rounds_wait_for_the_participants_that_the_header_asks_for() -> None:
    shared = SharedSlots(participants_min=3)
    with shared_run(shared, workers={"a": 1.0, "b": 1.0}, config=settings(round_seconds_max=1.0)) as run:
        run.simulation.advance(20.0)
        assert run.sequencer.ledger is not None and run.sequencer.ledger.num_rounds == 0
        run.add_worker("c")
        run.run(deadline=400)
        rounds = read_back(run).rounds
        assert all(len({part.participant for part in record.parts}) == 3 for record in rounds)


def test_branches_are_merged_and_what_both_begin_with_counts_once() -> None:
    with shared_run() as run:
        run.run(deadline=400)
        section = read_back(run)
    middle = next(place for place, record in enumerate(section.records) if getattr(record, "number", 0) == 8)
    file = BytesIO()
    writer = JournalWriter(file, section.header)
    for record in section.records[: middle + 1]:
        writer.add(record)
    file.seek(0)
    branch = read_journal(file, name="branch.flj", is_unfinished_allowed=True)
    both = merged(branch, [section])
    assert both[1].num_rounds_skipped == 9
    bowl = Bowl(section.header)
    bowl.add([step for each in both for step in steps_of(each)])
    assert bowl.digest() == replayed(section)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mean": "trimmed", "trim_percent": 50}, "1 to 49 percent"),
        ({"participants_min": 0}, "at least 1"),
        ({"mean": "trimmed", "is_masked": True, "participants_min": 3}, "no masks"),
        ({"is_masked": True, "participants_min": 2}, "each would know"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SharedSlots(**fields)  # pyright: ignore[reportArgumentType]


def test_a_header_without_shared_slots_has_the_bytes_that_it_always_had() -> None:
    assert b"shared" not in encode_header(header_of())
    assert b"shared" in encode_header(header_of(shared=TRIMMED))
