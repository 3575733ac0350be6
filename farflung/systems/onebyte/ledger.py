"""What a journal must hold to: each record is checked against all before it, by readers and by whoever writes one.

Invariants: rounds are numbered without gaps; a slot of a round is measured once, or once by each if slots are shared;
an entry is at most a few rounds late; references are the medians they should be; what is sealed was signed by its
participant; a closed journal has no unsigned entries, and its sequencer signed all of it.
"""

from collections.abc import Iterable

from farflung.systems.onebyte.code import CODE_MAX, median_code, moved_reference
from farflung.systems.onebyte.header import Header, header_hash
from farflung.systems.onebyte.records import (
    CLOSE_PURPOSE,
    SEAL_PURPOSE,
    VOUCH_PURPOSE,
    Close,
    Contribution,
    Part,
    Participant,
    Record,
    Revocation,
    Round,
    Seal,
    Summed,
    Vouch,
)
from farflung.wire.identity import BadSignature, Identity, Signed, peer_id
from farflung.world.address import PeerId

NAME_LENGTH_MAX = 200
PARTICIPANTS_MAX = 1 << 20


class Ledger:
    """The state of a journal after the records so far."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.participants: list[Participant] = []
        self.num_rounds = 0
        self.num_full_rounds = 0
        """Rounds that hold anything; those of cohorts that fell apart do not."""
        self.num_entries = 0
        self.revocations: list[Revocation] = []
        self.is_closed = False
        self.num_vouched = 0
        """Entries that rest on the sequencer's word, as their participants left without signing them."""
        self._hash = header_hash(header)
        self._unsigned: dict[int, list[tuple[int, Part]]] = {}
        # By participant: its parts that nobody has signed for, with their committed rounds.
        # Masked entries are coded before anybody knows their size: from the largest reference it comes down to them.
        self._median: int | None = CODE_MAX if header.is_masked else None
        self._measured: dict[int, set[tuple[int | None, int]]] = {}
        # By round: who measured which slot; it matters only if slots are shared.
        self._references: dict[int, int] = {0: self._median or 0}

    def take(self, record: Record, chain: bytes) -> None:
        """One more record; `chain` is the hash of everything before it (32 bytes).

        Raises:
            ValueError: it cannot follow what is there, in words that go on after a place.
        """
        if self.is_closed and not isinstance(record, Revocation):
            raise ValueError("it stands behind the end of its run")
        match record:
            case Participant():
                self._take_participant(record)
            case Round():
                self._take_round(record)
            case Summed():
                self._take_sum(record)
            case Seal():
                self._take_seal(record)
            case Vouch():
                self._take_vouch(record)
            case Revocation():
                self._take_revocation(record)
            case Close():
                self._take_close(record, chain)
            case _:
                raise ValueError("it belongs between journals")

    def reference_for(self, codes: bytes) -> int:
        """The reference of a next round with these entries."""
        own = median_code(codes)
        return self._median if self._median is not None else own if own is not None else 0

    def seal(self, participant: int, identity: Identity) -> Seal:
        """The participant's signature under what it has contributed since its last seal."""
        digest = self._unsigned_digest(participant, self.num_rounds)
        return Seal(participant, self.num_rounds, identity.sign(SEAL_PURPOSE, digest).signature)

    def vouch(self, participant: int, identity: Identity) -> Vouch:
        """The sequencer's signature under what a participant that is gone has not signed."""
        digest = self._unsigned_digest(participant, self.num_rounds)
        return Vouch(participant, self.num_rounds, identity.sign(VOUCH_PURPOSE, digest).signature)

    def close(self, identity: Identity, chain: bytes) -> Close:
        """The sequencer's signature under the whole journal."""
        totals = _totals(self.num_rounds, self.num_entries)
        return Close(self.num_rounds, self.num_entries, identity.sign(CLOSE_PURPOSE, totals + chain).signature)

    def unsigned(self) -> list[int]:
        """Participants with entries that they have not signed yet."""
        return sorted(self._unsigned)

    def num_unsigned(self, participant: int) -> int:
        """How many entries of a participant nobody has signed for."""
        parts = [part for _, part in self._unsigned.get(participant, ())]
        return len(parts) * self.header.num_slots if self.header.is_masked else sum(len(part.codes) for part in parts)

    def unsigned_since(self, participant: int) -> int | None:
        """The first committed round with entries of a participant that nobody has signed for."""
        parts = self._unsigned.get(participant)
        return parts[0][0] if parts else None

    def measured(self, base_round: int, participant: int | None = None) -> frozenset[int]:
        """Slots of a round that the journal holds; known as long as late entries of that round may come.

        `participant`: shared slots: whose entries.
        """
        owner = self._owner(participant)
        return frozenset(slot for each, slot in self._measured.get(base_round, ()) if each == owner)

    def measured_by_each(self, base_round: int) -> list[tuple[str, int]]:
        """Shared slots: key and slot of each entry of a round."""
        entries = sorted((owner, slot) for owner, slot in self._measured.get(base_round, ()) if owner is not None)
        return [(self.participants[owner].public_key.hex(), slot) for owner, slot in entries]

    def _owner(self, participant: int | None) -> int | None:
        return participant if self.header.shared_slots is not None else None

    def reference_of(self, base_round: int) -> int | None:
        """The reference that was known when a round began, 0 before there was any; None for rounds that are over for
        good, or have not begun."""
        return self._references.get(base_round)

    def peer_of(self, participant: int) -> PeerId:
        """The participant's peer id."""
        return peer_id(self.participants[participant].public_key)

    def is_revoked(self, participant: int, committed_round: int) -> bool:
        """Whether what a participant contributed in a committed round counts no more."""
        return is_revoked(self.revocations, participant, committed_round)

    def _take_participant(self, record: Participant) -> None:
        if len(record.public_key) != 32 or len(record.name) > NAME_LENGTH_MAX or not record.name.isprintable():
            raise ValueError("its participant has no proper key or name")
        if len(self.participants) >= PARTICIPANTS_MAX:
            raise ValueError(f"it names more than {PARTICIPANTS_MAX} participants")
        if any(each.public_key == record.public_key for each in self.participants):
            raise ValueError("it names a participant that is there already")
        self.participants.append(record)

    def _require_next(self, record: Round | Summed) -> None:
        if record.number != self.num_rounds:
            raise ValueError(f"round {record.number} stands where round {self.num_rounds} must")
        if record.reference != self.reference_for(record.codes):
            raise ValueError(
                f"round {record.number} says that its reference is {record.reference}, and it is "
                f"{self.reference_for(record.codes)}"
            )

    def _take_round(self, record: Round) -> None:
        self._require_next(record)
        if self.header.is_masked and record.parts:
            raise ValueError(f"round {record.number} tells entries that this run must not tell")
        for part in record.parts:
            self._take_part(record.number, part)
        self.num_full_rounds += bool(record.parts)
        median = median_code(record.codes)
        self._end_round(record.number, self._median if median is None else median)

    def _take_sum(self, record: Summed) -> None:
        self._require_next(record)
        shared, num_bytes = self.header.shared_slots, 2 * (self.header.num_slots + 1)
        if shared is None or not self.header.is_masked:
            raise ValueError(f"round {record.number} is a sum, and entries of this run are told one by one")
        if len(record.sums) != num_bytes or sorted({*record.cohort}) != list(record.cohort):
            raise ValueError(f"round {record.number} is a sum that cannot be")
        if len(record.cohort) < shared.participants_min:
            raise ValueError(f"round {record.number} is the sum of fewer than {shared.participants_min} participants")
        for member in record.cohort:
            self._require_participant(member)
            self._unsigned.setdefault(member, []).append((record.number, record.part_of(member)))
        self.num_full_rounds += 1
        self.num_entries += len(record.cohort) * self.header.num_slots
        self._end_round(record.number, moved_reference(record.reference, record.size, len(record.cohort)))

    def _end_round(self, number: int, median: int | None) -> None:
        self._median = median
        self.num_rounds += 1
        self._references[self.num_rounds] = self._median or 0
        self._measured.pop(number - self.header.staleness_rounds_max, None)
        self._references.pop(number - self.header.staleness_rounds_max, None)

    def _take_part(self, committed_round: int, part: Part) -> None:
        self._require_participant(part.participant)
        lateness = committed_round - part.base_round
        if not 0 <= lateness <= self.header.staleness_rounds_max:
            raise ValueError(f"round {committed_round} has entries of round {part.base_round}, which cannot be")
        end_slot = part.first_slot + len(part.codes)
        if part.first_slot < 0 or not part.codes or end_slot > self.header.num_slots:
            raise ValueError(f"round {committed_round} has entries for slots that there are not")
        measured = self._measured.setdefault(part.base_round, set())
        owner = self._owner(part.participant)
        slots = {(owner, slot) for slot in range(part.first_slot, end_slot)}
        if not measured.isdisjoint(slots):
            raise ValueError(f"round {committed_round} has a slot of round {part.base_round} a second time")
        measured.update(slots)
        self._unsigned.setdefault(part.participant, []).append((committed_round, part))
        self.num_entries += len(part.codes)

    def _take_seal(self, record: Seal) -> None:
        self._require_participant(record.participant)
        key = self.participants[record.participant].public_key
        if not self._is_signed(record, key, SEAL_PURPOSE):
            raise ValueError(
                f"participant {self._named(record.participant)} did not sign the entries that stand under its name "
                f"before round {record.end_round}"
            )
        self._forget_unsigned(record.participant, record.end_round)

    def _take_vouch(self, record: Vouch) -> None:
        self._require_participant(record.participant)
        if not self._is_signed(record, self.header.sequencer, VOUCH_PURPOSE):
            raise ValueError(
                f"the sequencer did not sign for the entries of participant {self._named(record.participant)} before "
                f"round {record.end_round}"
            )
        before = self.num_unsigned(record.participant)
        self._forget_unsigned(record.participant, record.end_round)
        self.num_vouched += before - self.num_unsigned(record.participant)

    def _is_signed(self, record: Seal | Vouch, public_key: bytes, purpose: str) -> bool:
        digest = self._unsigned_digest(record.participant, record.end_round)
        try:
            Signed(public_key, digest, record.signature).open(purpose)
        except BadSignature:
            return False
        return record.end_round <= self.num_rounds

    def _unsigned_digest(self, participant: int, end_round: int) -> bytes:
        contribution = Contribution(self._hash)
        for committed_round, part in self._unsigned.get(participant, ()):
            if committed_round < end_round:
                contribution.add(part)
        return contribution.digest()

    def _forget_unsigned(self, participant: int, end_round: int) -> None:
        left = [each for each in self._unsigned.pop(participant, ()) if each[0] >= end_round]
        if left:
            self._unsigned[participant] = left

    def _take_revocation(self, record: Revocation) -> None:
        self._require_participant(record.participant)
        if not 0 <= record.first_round < record.end_round <= self.num_rounds:
            raise ValueError("it revokes rounds that there are not")
        if self.header.is_masked:
            raise ValueError("it revokes entries that are told in sums alone, from which nobody's can be taken")
        self.revocations.append(record)

    def _take_close(self, record: Close, chain: bytes) -> None:
        if (record.num_rounds, record.num_entries) != (self.num_rounds, self.num_entries):
            raise ValueError(
                f"it closes {record.num_rounds} rounds with {record.num_entries} entries, and {self.num_rounds} "
                f"with {self.num_entries} are there"
            )
        if self.unsigned():
            raise ValueError(f"participant {self._named(self.unsigned()[0])} has not signed all its entries")
        totals = _totals(record.num_rounds, record.num_entries)
        try:
            Signed(self.header.sequencer, totals + chain, record.signature).open(CLOSE_PURPOSE)
        except BadSignature:
            raise ValueError("the sequencer did not sign the journal as it stands") from None
        self.is_closed = True

    def _require_participant(self, number: int) -> None:
        if not 0 <= number < len(self.participants):
            raise ValueError(f"it tells of participant {number}, whom nobody has named")

    def _named(self, number: int) -> str:
        name = self.participants[number].name
        return f"{number} ({name})" if name else str(number)


def is_revoked(revocations: Iterable[Revocation], participant: int, committed_round: int) -> bool:
    """Whether any of them is about what a participant contributed in a committed round."""
    return any(
        each.participant == participant and each.first_round <= committed_round < each.end_round for each in revocations
    )


def _totals(num_rounds: int, num_entries: int) -> bytes:
    return f"{num_rounds} {num_entries}\n".encode()
