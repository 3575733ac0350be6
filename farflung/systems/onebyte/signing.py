"""What of a measurer stands in the journal, and when it signs for it."""

from collections.abc import Sequence

from farflung.systems.onebyte.config import RoundsConfig
from farflung.systems.onebyte.held_journal import HeldJournal
from farflung.systems.onebyte.masked_measurements import MaskedMeasurements
from farflung.systems.onebyte.measurements import Measurements
from farflung.systems.onebyte.records import Round, Summed
from farflung.wire.identity import Identity


class Signing:
    """Of one life of one measurer."""

    def __init__(
        self,
        config: RoundsConfig,
        journal: HeldJournal,
        identity: Identity,
        measurements: Measurements | MaskedMeasurements,
    ) -> None:
        self.num_counted = 0
        """Entries of this life that stand in the journal."""
        self.must_end = False
        """No more entries of this life will come."""
        self._config = config
        self._journal = journal
        self._identity = identity
        self._measurements = measurements
        self._has_foreign = False
        """Unsigned entries stand under its name that this life has not measured."""
        self._signed_round = 0

    @property
    def own(self) -> int | None:
        """The participant's number, if the journal names it."""
        return self._journal.number_of(self._identity.public_key)

    @property
    def is_at_end(self) -> bool:
        """All rounds are there that it will have a part in."""
        return self.must_end or self._journal.ledger.num_full_rounds >= self._config.num_rounds

    def take(self, records: Sequence[Round | Summed]) -> None:
        """These have come into the journal."""
        if self.own is None:
            return
        for part in self._journal.parts_of(self.own, records):
            num_own = self._measurements.num_own(part)
            self.num_counted += num_own
            self._has_foreign = self._has_foreign or num_own < self._measurements.num_entries(part)

    def signature_due(self) -> bytes | None:
        """Under what stands there unsigned, if it is time; empty: this life cannot answer for all of it."""
        ledger = self._journal.ledger
        if self.own is None or not ledger.num_unsigned(self.own):
            self._has_foreign = False
            return None
        if ledger.num_rounds - self._signed_round < self._config.rounds_per_seal and not self.is_at_end:
            return None
        self._signed_round = ledger.num_rounds
        # What an earlier life of this key measured, this one cannot answer for.
        return b"" if self._has_foreign else ledger.seal(self.own, self._identity).signature
