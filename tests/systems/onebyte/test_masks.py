"""Secure aggregation: masks cancel in the sum and in nothing less, and a cohort that loses a member begins anew."""

import itertools
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from farflung.sim.faults import Faults, nth
from farflung.sim.station import MessageEvent
from farflung.systems.onebyte.code import coefficients, moved_reference
from farflung.systems.onebyte.edit import revoked, write_journal
from farflung.systems.onebyte.header import Header, header_hash
from farflung.systems.onebyte.journal import read_journal
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.masked_leading import MaskedLeading
from farflung.systems.onebyte.masked_measurements import MaskedMeasurements
from farflung.systems.onebyte.masks import COHORT_CHECK_BYTES, MaskKey, cohort_hash, unmasked_sum
from farflung.systems.onebyte.messages import ByteCohort, ByteMasked
from farflung.systems.onebyte.records import Part, Participant, Revocation, Round, Summed
from farflung.systems.onebyte.replay import steps_of
from farflung.systems.onebyte.seats import Seat
from farflung.systems.onebyte.sharing import SharedSlots
from farflung.world.effects import Send
from tests.onebytes import Bowl, SimulatedOneByte, header_of, identity_of
from tests.systems.onebyte.test_onebyte_runs import read_back
from tests.systems.onebyte.test_onebyte_runs import settings as run_settings

MASKED = SharedSlots(is_masked=True, participants_min=3)
NAMES = ("a", "b", "c", "d")
RUN = bytes(32)


def keys(count: int) -> list[MaskKey]:
    return [MaskKey(bytes([number + 1]) * 32, RUN, identity_of(NAMES[number])) for number in range(count)]


def sent_by(members: list[MaskKey], values: list[np.ndarray], round_number: int = 5) -> list[bytes]:
    cohort = cohort_hash([member.signed for member in members])
    everybody = [member.public_key for member in members]
    return [
        member.mask(mine, [key for key in everybody if key != member.public_key], cohort, round_number)
        for member, mine in zip(members, values, strict=True)
    ]


@examples(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(0, 1000))
def test_the_sum_equals_the_unmasked_one(count: int, seed: int) -> None:
    values = list(np.random.default_rng(seed).integers(-127, 128, (count, 40)))
    sums = np.frombuffer(unmasked_sum(sent_by(keys(count), values)), dtype="<i2")
    assert sums.tolist() == np.sum(values, 0).tolist()


def test_nothing_less_than_all_of_a_cohort_tells_anything() -> None:
    """Sums of any fewer look alike whether everybody measured 0 or 100: as random as the masks."""
    members, num_values = keys(4), 4000
    silent, loud = (sent_by(members, [np.full(num_values, value)] * 4) for value in (0, 100))
    for size in (1, 2, 3):
        for some in itertools.combinations(range(4), size):
            for sent in (silent, loud):
                total = np.frombuffer(unmasked_sum(sent[number] for number in some), dtype="<u2")
                counts = np.bincount(total >> 12, minlength=16)
                assert abs(counts - num_values / 16).max() < 6 * (num_values / 16) ** 0.5, "evenly spread"
    assert set(np.frombuffer(unmasked_sum(loud), dtype="<i2")) == {400}


def test_masks_of_other_rounds_and_cohorts_are_others() -> None:
    members, nothing = keys(3), [np.zeros(50)] * 3
    one = sent_by(members, nothing)[0]
    assert one not in (sent_by(members, nothing, 6)[0], sent_by(members[:2], nothing[:2])[0])


def test_the_reference_follows_the_mean_size() -> None:
    assert moved_reference(60, 38 * 5, 5) == 60 and moved_reference(60, 76 * 5, 5) == 68
    assert moved_reference(60, 19 * 5, 5) == 52 and moved_reference(60, 0, 5) == 28
    assert moved_reference(60, 1, 5) == 28 and moved_reference(125, 127 * 5, 5) == 127 and moved_reference(3, 0, 5) == 1


def question(header: Header, members: list[MaskKey], round_number: int = 0) -> ByteCohort:
    signed = tuple(member.signed for member in members)
    return ByteCohort(round_number=round_number, check=cohort_hash(signed)[:COHORT_CHECK_BYTES], members=signed)


def measurer(header: Header, number: int) -> tuple[MaskedMeasurements, list[MaskKey]]:
    run = header_hash(header)
    everybody = [MaskKey(bytes([each + 1]) * 32, run, identity_of(NAMES[each])) for each in range(4)]
    return MaskedMeasurements(header, 16, everybody[number]), everybody


def test_nobody_sends_twice_for_a_round_but_the_same() -> None:
    header = header_of(shared=MASKED)
    mine, everybody = measurer(header, 0)
    ledger = Ledger(header)
    assert mine.ask_for(question(header, everybody), ledger) == [] and mine.next() == range(16)
    (sent,) = mine.done(0, range(16), bytes([120] * 16), ledger)
    assert mine.ask_for(question(header, everybody), ledger) == [sent]
    # Another cohort for the same round, without one of them: the difference would tell what that one measured.
    assert mine.ask_for(question(header, everybody[:3]), ledger) == [] and mine.next() is None


def test_cohorts_that_must_not_be_are_refused() -> None:
    header = header_of(shared=MASKED)
    mine, everybody = measurer(header, 0)
    ledger = Ledger(header)
    twice = question(header, [*everybody[:2], everybody[1]])
    forged = everybody[3].signed
    fields = {"public_key": everybody[2].signed.public_key, "content": forged.content, "signature": forged.signature}
    altered = (*question(header, everybody[:2]).members, type(forged)(**fields))
    false = ByteCohort(round_number=0, check=cohort_hash(altered)[:COHORT_CHECK_BYTES], members=altered)
    for wrong in (question(header, everybody[:2]), twice, question(header, everybody[1:]), false):
        with pytest.raises(ValueError, match=r"cohort|signature"):
            mine.ask_for(wrong, ledger)
    assert mine.ask_for(ByteCohort(round_number=0, check=b"unknown!", members=()), ledger) is None


def private(name: str, header: Header) -> Bowl:
    return Bowl(header, data=NAMES.index(name))


def masked_run(
    faults: Faults | None = None, learner: Callable[[str, Header], Bowl] = private, **changes: object
) -> SimulatedOneByte:
    return SimulatedOneByte(
        run_settings(**changes),
        {name: 1.0 + number / 4 for number, name in enumerate(NAMES)},
        header=header_of(shared=MASKED),
        learner=learner,
        faults=Faults() if faults is None else faults,
    )


def test_a_masked_run_moves_all_alike_and_nobody_tells_an_entry() -> None:
    with masked_run() as run:
        told: list[MessageEvent] = []
        run.simulation.watch(told.append)
        run.run(deadline=400)
        section = read_back(run)
        sums = [record for record in section.records if isinstance(record, Summed)]
        assert len(sums) == 16 and all(len(record.cohort) == 4 for record in sums[1:])
        assert not any(record.codes for record in section.records if isinstance(record, Round))
        bowl = Bowl(run.header)
        bowl.add(steps_of(section))
        assert set(run.digests().values()) == {bowl.digest()}
        assert {report.num_counted for report in run.reports.values()} <= {16 * 16, 15 * 16}
        kinds = {event.kind for event in told if event.source in NAMES}
        assert "ByteMasked" in kinds and "ByteEntries" not in kinds
        assert not section.ledger.num_vouched and section.ledger.num_entries >= 15 * 4 * 16
        losses = [learner.loss for learner in run.learners.values()]  # pyright: ignore[reportAttributeAccessIssue]
        assert sum(losses) < 0.85 * sum(Bowl(run.header, data=number).loss for number in range(4))


def test_what_the_journal_holds_is_the_sum_of_what_was_measured() -> None:
    """The sequencer's sums against what the members measured, which only a test can see."""
    measured: dict[tuple[str, int], bytes] = {}

    class Watched(Bowl):
        name = ""

        def measure(self, round_number: int, first_slot: int, num_slots: int) -> bytes:
            codes = super().measure(round_number, first_slot, num_slots)
            before = measured.get((self.name, round_number), bytes(16))
            measured[self.name, round_number] = before[:first_slot] + codes + before[first_slot + num_slots :]
            return codes

    def watched(name: str, header: Header) -> Bowl:
        learner = Watched(header, data=NAMES.index(name))
        learner.name = name
        return learner

    with masked_run(learner=watched) as run:
        received: list[ByteMasked] = []

        def receive(event: MessageEvent) -> None:
            if isinstance(event.message, ByteMasked):
                received.append(event.message)

        run.simulation.watch(receive)
        run.run(deadline=400)
        section = read_back(run)
    names = [each.name for each in section.ledger.participants]
    for record in section.records:
        if isinstance(record, Summed):
            entries = [coefficients(measured[names[each], record.number], record.reference) for each in record.cohort]
            assert record.coefficients.tolist() == np.sum(entries, 0).tolist()
            # What the sequencer was sent is none of the entries.
            for message in received:
                if message.round_number == record.number:
                    values = np.frombuffer(message.values, dtype="<i2")[:-1].tolist()
                    assert values not in [entry.tolist() for entry in entries]


def test_a_cohort_that_loses_a_member_repeats_the_round_along_other_directions() -> None:
    faults = Faults().crash("d", when=nth("ByteCohort", 2, "delivered", target="d"))
    with masked_run(faults, round_seconds_max=5.0) as run:
        run.run(deadline=400, names=["a", "b", "c"])
        section = read_back(run)
        empty = [record for record in section.records if isinstance(record, Round)]
        sums = [record for record in section.records if isinstance(record, Summed)]
        assert empty and not any(record.parts for record in empty) and len(sums) == 16
        assert {record.number for record in empty}.isdisjoint(record.number for record in sums)
        bowl = Bowl(run.header)
        bowl.add(steps_of(section))
        assert {run.learners[name].digest() for name in "abc"} == {bowl.digest()}


def test_nobody_can_be_taken_from_a_sum() -> None:
    with masked_run(num_rounds=4) as run:
        run.run(deadline=400)
        section = read_back(run)
    with pytest.raises(ValueError, match="cannot be revoked: this run tells only sums"):
        revoked([section], "b")
    with pytest.raises(ValueError, match="sums alone"):
        section.ledger.take(Revocation(1, 0, 2, ""), section.chain)
    file = BytesIO()
    write_journal(file, [section])
    file.seek(0)
    assert read_journal(file, name="again.flj")[0].chain == section.chain


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (Round(0, 127, (Part(0, 0, 0, b"x"),)), "must not tell"),
        (Summed(0, 127, (0, 1, 2), bytes(30)), "cannot be"),
        (Summed(0, 127, (1, 0, 2), bytes(34)), "cannot be"),
        (Summed(0, 127, (0, 1), bytes(34)), "fewer than 3"),
        (Summed(0, 60, (0, 1, 2), bytes(34)), "reference"),
        (Summed(1, 127, (0, 1, 2), bytes(34)), "stands where"),
    ],
)
def test_a_sum_that_cannot_be_is_refused(record: Round | Summed, sentence: str) -> None:
    ledger = Ledger(header_of(shared=MASKED))
    for name in NAMES:
        ledger.take(Participant(identity_of(name).public_key, name), b"")
    with pytest.raises(ValueError, match=sentence):
        ledger.take(record, b"")


def test_a_life_that_is_asked_in_the_place_of_an_earlier_one_joins_again(monkeypatch: pytest.MonkeyPatch) -> None:
    question, num_asked = MaskedLeading._question, 0

    def ask_the_earlier_life(self: MaskedLeading, seat: Seat, *, is_known: bool) -> Send:
        nonlocal num_asked
        num_asked += seat.name == "b"
        sent = question(self, seat, is_known=is_known)
        if seat.name != "b" or num_asked > 1:
            return sent
        return Send(sent.destination, ByteCohort(round_number=1, check=b"cohort b", members=(keys(2)[1].signed,)))

    monkeypatch.setattr(MaskedLeading, "_question", ask_the_earlier_life)
    with masked_run(round_seconds_max=5.0, num_rounds=3) as run:
        run.run(deadline=400)
        assert num_asked > 1 and not run.errors and len({*run.digests().values()}) == 1
