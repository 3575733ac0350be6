"""A measurer's copy of the journal adds up to what a reader of the file gets."""

import pytest

from farflung.systems.onebyte.header import TensorShape
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.records import Revocation, encode_record
from farflung.systems.onebyte.replay import steps_of
from farflung.systems.onebyte.sharing import SharedSlots
from tests.onebyte_journals import bare_header, invented_journal
from tests.onebytes import Bowl


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_two_revocations_have_in_common_is_taken_back_once(is_shared: bool) -> None:
    changes = {"shared": SharedSlots()} if is_shared else {}
    header = bare_header(TensorShape("w", (4, 5)), **changes)
    section = invented_journal(header, is_closed=False).section
    held, follower = HeldJournal(header), Bowl(header)
    revocations = [Revocation(1, 0, 4, "once"), Revocation(1, 2, 6, "twice"), Revocation(1, 0, 6, "and again")]
    for record in [*section.records, *revocations]:
        follower.add(held.take(encode_record(record)))
    for revocation in revocations:
        section.ledger.take(revocation, b"")
    reader = Bowl(header)
    reader.add(steps_of(section))
    assert follower.digest() == reader.digest()
