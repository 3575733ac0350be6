"""What a node says of itself: signed anew when it has changed, renewed by its chain in between."""

from collections.abc import Mapping

import msgspec

from farflung.mesh.config import MemberConfig, Profile
from farflung.mesh.messages import Announce, Proof, Renew
from farflung.mesh.records import LEASE_SECONDS_MAX, Record
from farflung.mesh.renewals import NUM_RENEWALS_MAX, Renewals, mark_of
from farflung.wire.identity import Identity, Signed


class OwnRecord:
    """The record of this node, once `sign` has made the first."""

    def __init__(self, identity: Identity, own: Profile, wall_offset_seconds: float, config: MemberConfig) -> None:
        self._identity = identity
        self._own = own
        self._wall_offset_seconds = wall_offset_seconds
        self._config = config
        self._signed_at = 0.0
        self._stretch = 1.0
        self._renewals: Renewals | None = None
        self._proof = Proof()
        self._mark = b""
        self.signed: Signed | None = None
        self.sequence = 0
        self.is_goodbye = False

    @property
    def version(self) -> tuple[int, int]:
        """(sequence, number of renewals); higher is newer."""
        return self.sequence, self._proof.number

    @property
    def renew_seconds(self) -> float:
        """Between two renewals."""
        return self._config.renew_seconds * self._stretch

    def check(self, topics: Mapping[str, bytes], now: float) -> None:
        """Raises BadRecord: with these topics it would be over a limit."""
        self._signed(topics, now)

    def sign(self, topics: Mapping[str, bytes], now: float, num_nodes: int) -> None:
        """Say something new; its lease begins with it, and is as long as befits so many nodes."""
        self._stretch = self._config.stretch(num_nodes)
        self.sequence = max(self.sequence + 1, int((now + self._wall_offset_seconds) * 1000))
        self.signed, self._renewals = self._signed(topics, now)
        self._mark = mark_of(self.signed)
        self._signed_at = now
        self._proof = Proof()

    def _signed(self, topics: Mapping[str, bytes], now: float) -> tuple[Signed, Renewals]:
        record = Record(
            peer=self._identity.peer,
            sequence=self.sequence,
            issued_at=now + self._wall_offset_seconds,
            lease_seconds=min(self._config.lease_seconds * self._stretch, LEASE_SECONDS_MAX),
            renew_seconds=self.renew_seconds,
            role=self._own.role,
            contact=self._own.contact,
            site=self._own.site,
            is_rendezvous=self._own.is_rendezvous,
            is_goodbye=self.is_goodbye,
            topics=dict(topics),
        )
        # Links that were shown for another record, even of an equal sequence, renew nothing of this one.
        renewals = Renewals(self._identity, msgspec.msgpack.encode(record))
        return msgspec.structs.replace(record, anchor=renewals.anchor).sign(self._identity), renewals

    def renew(self, now: float, num_nodes: int) -> bool:
        """Prolong the lease; False if the chain is used up, or made for far fewer or more nodes: then sign anew."""
        assert self._renewals is not None
        # By the clock, and not by how often: the number says when it was.
        passed = int((now - self._signed_at) / self.renew_seconds + 0.5)
        number = max(self._proof.number + 1, passed)
        is_for_so_many = 0.5 <= self._config.stretch(num_nodes) / self._stretch <= 2.0
        if number > NUM_RENEWALS_MAX or not is_for_so_many:
            return False
        self._proof = Proof(number, self._renewals.link(number))
        return True

    @property
    def proof(self) -> Proof:
        """The newest renewal."""
        return self._proof

    def announcement(self) -> Announce:
        """For who does not hold it."""
        assert self.signed is not None
        return Announce(signed=self.signed, proof=self._proof)

    def renewal(self) -> Renew:
        """For who holds it, perhaps not as newly renewed."""
        return Renew(mark=self._mark, proof=self._proof)
