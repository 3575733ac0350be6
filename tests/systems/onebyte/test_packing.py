"""Entries in seven bits: nothing that matters is lost, and rounds come out as they stand in the journal."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farflung.systems.onebyte.code import coefficients, median_code
from farflung.systems.onebyte.journal import Chain
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.packing import bounded, pack, packed_record, unpack, unpacked_record
from farflung.systems.onebyte.records import Part, Participant, Round, encode_record
from tests.onebytes import header_of, identity_of

REFERENCES = st.integers(0, 127)


@given(st.binary(max_size=300), REFERENCES)
def test_bounded_entries_read_back(codes: bytes, reference: int) -> None:
    sent = bytes(0 if code & 127 == 0 else code for code in bounded(codes, reference)) if reference else codes
    assert unpack(pack(sent, reference), reference) == sent
    assert bounded(sent, reference) == sent


@given(st.binary(max_size=100), st.integers(1, 127))
def test_bounding_changes_no_step_by_more_than_a_unit(codes: bytes, reference: int) -> None:
    before, after = coefficients(codes, reference), coefficients(bounded(codes, reference), reference)
    assert np.abs(before - after).max(initial=0) <= 1
    assert (np.sign(after) == np.sign(before))[before != 0].all()


def test_a_sudden_change_of_scale_is_followed_within_rounds() -> None:
    reference, found = 100, []
    for _ in range(3):
        entries = bounded(bytes([5, 6, 7]), reference)
        reference = median_code(entries) or reference
        found.append(reference)
    assert found == [54, 8, 6]


@given(st.binary(max_size=200), st.integers(1, 127))
def test_any_bytes_are_some_entries(data: bytes, reference: int) -> None:
    entries = unpack(data, reference)
    assert bounded(entries, reference) == entries


def test_128_entries_are_112_bytes() -> None:
    assert len(pack(bytes([60]) * 128, 60)) == 112


def records() -> tuple[Ledger, list[bytes]]:
    """A run of two rounds and what it is after them."""
    header = header_of(num_slots=16)
    ledger, chain, contents = Ledger(header), Chain(header), list[bytes]()
    first = bytes(range(60, 76))
    rounds = [Round(0, 67, (Part(0, 0, 0, first),)), Round(1, 67, (Part(0, 1, 0, first[::-1]),))]
    for record in (Participant(identity_of("a").public_key, "a"), *rounds):
        contents.append(encode_record(record))
        ledger.take(record, chain.hash)
        chain.extend(contents[-1])
    return ledger, contents


def test_rounds_travel_packed_and_come_out_as_they_were() -> None:
    ledger, contents = records()
    packed = [packed_record(content, ledger) for content in contents]
    assert packed[:2] == contents[:2] and len(packed[2]) < len(contents[2])
    assert [unpacked_record(content, ledger) for content in packed] == contents


def test_a_round_that_is_packed_for_an_unknown_reference_is_refused() -> None:
    ledger, contents = records()
    packed = packed_record(contents[2], ledger)
    with pytest.raises(ValueError, match="not known here"):
        unpacked_record(packed, Ledger(ledger.header))
    with pytest.raises(ValueError, match="no record"):
        unpacked_record(packed[:-3], ledger)
