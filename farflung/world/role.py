"""A role: a server as a state machine. Message in, effects out; it never awaits and reads no clock."""

from collections.abc import Sequence

from farflung.world.address import Address, PeerId
from farflung.world.effects import Effect


class Role:
    """Base of all roles; each handler returns the effects it wants, in order."""

    def start(self, now: float) -> Sequence[Effect]:
        """Called once, before any message."""
        return ()

    def receive(self, source: Address, message: object, now: float) -> Sequence[Effect]:
        """A message arrived. Raise PeerMisbehaved for what no honest peer sends."""
        return ()

    def finished(self, job: object, result: object, now: float) -> Sequence[Effect]:
        """A `Run` is done; `result` is `Failed` if it raised."""
        return ()

    def wake(self, now: float) -> Sequence[Effect]:
        """A time asked for by `WakeAt` has come."""
        return ()

    def lost(self, peer: PeerId, reason: str, now: float) -> Sequence[Effect]:
        """The way to `peer` broke."""
        return ()
