"""The tree of errors that cross a layer.

Exception
├── ValueError            the user asked for something impossible; one sentence with the way out
└── FarflungError
    ├── Unreachable       nobody's fault: a peer died, froze, or the link is down; reroute and go on
    ├── PeerMisbehaved    a peer broke the protocol; refuse it and name it in the log
    └── Refused           a peer understood and said no, with its reason (full, expired, unknown model)
"""

from farflung.world.address import PeerId


class FarflungError(Exception):
    """Base of the errors that peers and links cause."""


class Unreachable(FarflungError):
    """A peer did not answer: it died, froze, or the way to it is broken."""

    def __init__(self, peer: PeerId, reason: str) -> None:
        super().__init__(f"{peer} is unreachable: {reason}")
        self.peer = peer
        self.reason = reason


class PeerMisbehaved(FarflungError):
    """A peer sent what no honest peer sends: a malformed message, a lie about a shape, a forged record."""

    def __init__(self, peer: PeerId, reason: str) -> None:
        super().__init__(f"{peer} broke the protocol: {reason}")
        self.peer = peer
        self.reason = reason


class Refused(FarflungError):
    """A peer answered no and said why."""

    def __init__(self, peer: PeerId, reason: str) -> None:
        super().__init__(f"{peer} refused: {reason}")
        self.peer = peer
        self.reason = reason
