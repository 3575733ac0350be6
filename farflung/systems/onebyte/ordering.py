"""What a sequencer puts into the journal beside entries, and in which order: names, signatures, bans, the end (pure).

Everything that is ordered between two rounds goes before the second one, in one piece: measurers hear of it together
with that round, so that all of them measure a round with the same weights.
"""

from collections.abc import Callable

from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.journal import Chain
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.log import Log
from farflung.systems.onebyte.records import (
    Close,
    Part,
    Participant,
    Record,
    Revocation,
    Round,
    Seal,
    Summed,
    decode_record,
    encode_record,
)
from farflung.systems.onebyte.seats import Seats
from farflung.wire.identity import Identity

PartsOf = Callable[[Callable[[str], int]], tuple[Part, ...]]
"""Given how participants are numbered, the parts of a round."""
ROUNDS_UNSIGNED_FACTOR = 4
"""A participant that has not signed for so many times the usual number of rounds will not."""


class Ordering:
    """The journal's state as one sequencer has ordered it, and what waits to be."""

    def __init__(self, config: RoundsConfig, log: Log, identity: Identity) -> None:
        """`identity`: the run's, which all candidates share."""
        self.ledger = Ledger(log.header)
        self._config = config
        self._identity = identity
        self._chain = Chain(log.header)
        self._seals: dict[int, Seal] = {}
        self._declined: dict[int, int] = {}
        """By participant: the round before which it will not sign what has no signature."""
        self._to_revoke: dict[str, str] = {}
        """By key: why."""
        self._numbers: dict[str, int] = {}
        self._new: list[bytes] = []
        self._num_records = 0
        self.ends: list[int] = [0]
        """Numbers of records after which measurers may be told: behind each round and behind the end."""
        for content in log.contents:
            self._take(decode_record(content), content)
        self._new = []
        self.reason: str | None = None
        """Why there will be no more rounds, although the run has more."""

    @property
    def is_measured(self) -> bool:
        """All rounds are ordered; only signatures and the end are missing."""
        return (
            self.ledger.is_closed or self.reason is not None or self.ledger.num_full_rounds >= self._config.num_rounds
        )

    def end_before(self, num_records: int) -> int:
        """How many of the first `num_records` measurers may be told of."""
        return next(end for end in reversed(self.ends) if end <= num_records)

    def participants(self) -> list[str]:
        """Keys of those that the journal names and that are not banned."""
        return [key for key in self._numbers if not self.is_banned(key)]

    def number_of(self, key: str) -> int:
        """Of a participant that the journal names."""
        return self._numbers[key]

    def sign(self, key: str, end_round: int, signature: bytes) -> None:
        """A measurer's signature, to be checked when it is ordered; an empty one says that it will not sign."""
        number = self._numbers.get(key)
        if number is None:
            return
        if signature:
            self._seals[number] = Seal(number, end_round, signature)
        else:
            self._declined[number] = end_round

    def ban(self, key: str, reason: str) -> None:
        """Subtract what this measurer has contributed."""
        self._to_revoke[key] = reason

    def is_banned(self, key: str) -> bool:
        """Whether it was, or is about to be, revoked."""
        if key in self._to_revoke:
            return True
        number = self._numbers.get(key)
        return any(revocation.participant == number for revocation in self.ledger.revocations)

    def close_round(self, contributors: list[tuple[str, str]], parts: PartsOf, seats: Seats) -> list[bytes]:
        """The records up to and with the next round; `contributors`: key and name of each."""
        self._begin_round(contributors, seats)
        found = parts(self.number_of)
        reference = self.ledger.reference_for(b"".join(part.codes for part in found))
        self._add(Round(self.ledger.num_rounds, reference, found))
        return self._ordered()

    def close_sum(self, cohort: list[tuple[str, str]], sums: bytes, seats: Seats) -> list[bytes]:
        """The same for a round of which only the sum over a cohort (key and name of each) is known."""
        self._begin_round(cohort, seats)
        members = tuple(sorted(self._numbers[key] for key, _ in cohort))
        self._add(Summed(self.ledger.num_rounds, self.ledger.reference_for(b""), members, sums))
        return self._ordered()

    def _begin_round(self, contributors: list[tuple[str, str]], seats: Seats) -> None:
        for key, name in contributors:
            if key not in self._numbers:
                self._add(Participant(bytes.fromhex(key), name))
        self._add_waiting(seats, is_end=False)

    def close_run(self, seats: Seats, *, is_time_over: bool) -> list[bytes]:
        """The last records, or none while signatures are waited for."""
        if any(not self._is_missing(number, seats) for number in self._unsigned_now()) and not is_time_over:
            return []
        self._add_waiting(seats, is_end=True)
        self._add(self.ledger.close(self._identity, self._chain.hash))
        return self._ordered()

    def _unsigned_now(self) -> list[int]:
        """Participants whose signatures under everything have not come."""
        complete = {number for number, seal in self._seals.items() if seal.end_round == self.ledger.num_rounds}
        return [number for number in self.ledger.unsigned() if number not in complete]

    def _add_waiting(self, seats: Seats, *, is_end: bool) -> None:
        for number in sorted(self._seals):
            self._add_seal(self._seals[number])
        self._seals = {}
        for key in list(self._to_revoke):
            if key in self._numbers and self.ledger.num_rounds:
                number, reason = self._numbers[key], self._to_revoke.pop(key)
                self._add(Revocation(number, 0, self.ledger.num_rounds, reason))
        for number in self.ledger.unsigned():
            if is_end or self._is_missing(number, seats):
                self._add(self.ledger.vouch(number, self._identity))

    def _add_seal(self, seal: Seal) -> None:
        try:
            self._add(seal)
        except ValueError:
            # Not a lie: a signature under what somebody has vouched for meanwhile covers nothing any more.
            return

    def _is_missing(self, number: int, seats: Seats) -> bool:
        """Whether nobody is there who will sign for these entries."""
        since = self.ledger.unsigned_since(number)
        limit = ROUNDS_UNSIGNED_FACTOR * self._config.rounds_per_seal
        is_overdue = since is not None and self.ledger.num_rounds - since > limit
        has_declined = since is not None and since < self._declined.get(number, 0)
        return is_overdue or has_declined or self.ledger.participants[number].public_key.hex() not in seats

    def _add(self, record: Record) -> None:
        self._take(record, encode_record(record))

    def _take(self, record: Record, content: bytes) -> None:
        self.ledger.take(record, self._chain.hash)
        self._chain.extend(content)
        self._new.append(content)
        self._num_records += 1
        if isinstance(record, Participant):
            self._numbers[record.public_key.hex()] = len(self.ledger.participants) - 1
        if isinstance(record, Round | Summed | Close):
            self.ends.append(self._num_records)

    def _ordered(self) -> list[bytes]:
        contents, self._new = self._new, []
        return contents
