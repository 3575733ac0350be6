"""A measurer's copy of the journal: what it has heard, checked, and what that adds to its weights."""

from collections.abc import Sequence

from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.journal import CHECK_BYTES, Chain
from farflung.systems.onebyte.ledger import Ledger, is_revoked
from farflung.systems.onebyte.means import SharedMeans, bases_of
from farflung.systems.onebyte.packing import unpacked_record
from farflung.systems.onebyte.records import (
    Part,
    Participant,
    Record,
    Revocation,
    Round,
    Summed,
    decode_record,
    signed_parts,
)
from farflung.systems.onebyte.steps import Step, step_of


class HeldJournal:
    """Records in order, from the first on; nothing that does not follow from those before is taken."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.ledger = Ledger(header)
        self.num_records = 0
        self.rounds: list[Round | Summed] = []
        self._chain = Chain(header)
        self._numbers: dict[bytes, int] = {}
        self._means = SharedMeans(header) if header.shared_slots is not None else None

    @property
    def check(self) -> bytes:
        """The first bytes of the chain's hash."""
        return self._chain.hash[:CHECK_BYTES]

    def number_of(self, public_key: bytes) -> int | None:
        """Of a participant, if the journal names it."""
        return self._numbers.get(public_key)

    def take(self, content: bytes) -> list[Step]:
        """One more record, packed or as it stands in the journal; returns what it adds to the accumulators.

        Raises:
            ValueError: it cannot follow.
        """
        content = unpacked_record(content, self.ledger)
        record = decode_record(content)
        self.ledger.take(record, self._chain.hash)
        self._chain.extend(content)
        self.num_records += 1
        if isinstance(record, Participant):
            self._numbers[record.public_key] = len(self.ledger.participants) - 1
        if isinstance(record, Round | Summed):
            self.rounds.append(record)
        return self._steps(record) if self._means is None else self._changed_means(self._means, record)

    def _changed_means(self, means: SharedMeans, record: Record) -> list[Step]:
        match record:
            case Round() | Summed():
                bases = bases_of(record)
            case Revocation():
                revoked = self.parts_of(record.participant, self.rounds[record.first_round : record.end_round])
                bases = {part.base_round for part in revoked}
            case _:
                return []
        return means.follow(self.rounds, lambda *place: not self.ledger.is_revoked(*place), bases)

    def _steps(self, record: Record) -> list[Step]:
        match record:
            case Round():
                return [step_of(self.header, record, part) for part in record.parts]
            case Revocation():
                before = self.ledger.revocations[:-1]
                return [
                    step_of(self.header, earlier, part, sign=-1)
                    for earlier in self.rounds[record.first_round : record.end_round]
                    if isinstance(earlier, Round) and not is_revoked(before, record.participant, earlier.number)
                    for part in earlier.parts
                    if part.participant == record.participant
                ]
            case _:
                return []

    def parts_of(self, participant: int, records: Sequence[Round | Summed]) -> list[Part]:
        """What stands under a participant's name in some rounds; of a sum it took part in, all of it."""
        return [part for record in records for part in signed_parts(record) if part.participant == participant]
