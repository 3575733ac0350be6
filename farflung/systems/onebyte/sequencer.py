"""The role of a candidate: it keeps a copy of the journal, and orders it while the view says that it does."""

from collections.abc import Callable, Sequence

from farflung.systems.onebyte.config import Group, RoundsConfig
from farflung.systems.onebyte.header import Header
from farflung.systems.onebyte.leading import Leading
from farflung.systems.onebyte.ledger import Ledger
from farflung.systems.onebyte.masked_leading import MaskedLeading
from farflung.systems.onebyte.messages import (
    ByteEntries,
    ByteJoin,
    ByteMasked,
    ByteNotSequencer,
    ByteReady,
    ByteSignature,
    ByteSpent,
)
from farflung.systems.onebyte.records import Record, decode_record
from farflung.systems.onebyte.replica import Replica
from farflung.wire.identity import Identity
from farflung.world.address import Address, PeerId
from farflung.world.doors import World
from farflung.world.effects import Effect, Send, WakeAt
from farflung.world.role import Role

MEASURERS_MESSAGES = (ByteJoin, ByteReady, ByteSpent, ByteEntries, ByteMasked, ByteSignature)


class Sequencer(Role):
    """Sequencer and standby alike; which of the two it is may change at any time."""

    def __init__(self, config: RoundsConfig, replica: Replica, identity: Identity, draw: Callable[[int], int]) -> None:
        self.replica = replica
        self.leading: Leading | None = None
        self._config = config
        self._identity = identity
        self._draw = draw

    @classmethod
    def open(cls, world: World, header: Header, config: RoundsConfig, group: Group, identity: Identity) -> "Sequencer":
        """As the disk has it. `identity`: the run's, whose public key the header names.

        Raises:
            ValueError: it is another's.
        """
        if identity.public_key != header.sequencer:
            raise ValueError("the run's key is not the one that its header names: take both from the run's folder")
        random = world.random("what is measured twice")
        return cls(config, Replica.open(world, header, group, config), identity, random.randrange)

    @property
    def records(self) -> list[Record]:
        """Of the journal that count."""
        replica = self.replica
        return [decode_record(content) for content in replica.log.contents[: replica.num_committed]]

    @property
    def ledger(self) -> Ledger | None:
        """The journal's state as this candidate orders it; None while it follows."""
        return self.leading.ledger if self.leading is not None else None

    def start(self, now: float) -> Sequence[Effect]:
        """Show oneself."""
        return self.wake(now)

    def wake(self, now: float) -> Sequence[Effect]:
        """What is due by time."""
        effects = self._settled(self.replica.beat(now), now)
        if self.leading is not None:
            effects = self._settled([*effects, *self.leading.tick(now)], now)
        return [*effects, WakeAt(now + self._config.beat_seconds)]

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        """From a measurer, another candidate, or the witness."""
        if not isinstance(message, MEASURERS_MESSAGES):
            return self._settled(self.replica.receive(source, message, now), now)
        if self.leading is None:
            return [Send(source, ByteNotSequencer(sequencer=self.replica.view.sequencer))]
        return self._settled(self.leading.receive(source, message, now), now)

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        """A measurer that is gone holds no slots."""
        return [] if self.leading is None else self.leading.lost(peer, now)

    def _settled(self, effects: list[Effect], now: float) -> list[Effect]:
        """Draw the consequences of what the replica has become: order or not, and tell what counts now."""
        replica = self.replica
        if not replica.is_sequencer:
            self.leading = None
            return effects
        if self.leading is None:
            me, log = replica.me, replica.log
            kind = MaskedLeading if log.header.is_masked else Leading
            self.leading = kind(me, self._config, log, self._identity, replica.order, self._draw, now)
        return effects + self.leading.announce(replica.num_committed, now)
