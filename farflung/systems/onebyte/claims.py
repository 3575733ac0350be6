"""How a measurer shows that a key is its own: it signs its address with it (pure)."""

from farflung.systems.onebyte.messages import CLAIM_PURPOSE, ByteJoin
from farflung.wire.identity import BadSignature
from farflung.world.address import PeerId
from farflung.world.errors import PeerMisbehaved


def claim_content(run: bytes, peer: PeerId) -> bytes:
    """What is signed: 32 bytes of the run's header hash, and the peer."""
    return run + peer.encode()


def claimed_key(message: ByteJoin, peer: PeerId) -> bytes:
    """The key with which somebody joins.

    Raises:
        PeerMisbehaved: it is another's.
    """
    try:
        _, content = message.claim.open(CLAIM_PURPOSE)
    except (BadSignature, ValueError):
        raise PeerMisbehaved(peer, "it claims a key that is not its own") from None
    if content != claim_content(message.run, peer):
        raise PeerMisbehaved(peer, "it repeats another's claim")
    return message.claim.public_key
