"""Renewals: how a node prolongs the lease of its record without signing it again.

A record names the end of a chain of hashes, which its subject alone can walk back:

    secret -> link 120 -> ... -> link 2 -> link 1 -> anchor (in the signed record)

The n-th renewal of a record is link n. Whoever holds the record checks it with a few hashes: only the subject can have
said it, it says nothing but that the subject still stands by the record, and it is 16 bytes instead of all of it.
(A chain of hashes as S. Micali's NOVOMODO uses one for certificates.)
"""

import hashlib

from farflung.wire.identity import Identity, Signed
from farflung.world.address import PeerId

LINK_BYTES = 16
MARK_BYTES = 8
NUM_RENEWALS_MAX = 120
"""Of one record; then it is signed anew. It bounds the work of checking one, and fits into a byte."""
KNOWN_BYTES = MARK_BYTES + 1
"""In which a holder says of a record that it has it, and how often renewed."""

ANCHOR_NUMBER = 0
"""Of a record that was not renewed yet; its link is empty."""


def mark_of(signed: Signed) -> bytes:
    """A short name (8 bytes) of a record as it was signed."""
    return hashlib.sha256(signed.content).digest()[:MARK_BYTES]


def toward_anchor(peer: PeerId, link: bytes, num_steps: int) -> bytes:
    """The link that many steps nearer to the anchor of a record of `peer`."""
    subject = b"farflung renewal\0" + peer.encode()
    for _ in range(num_steps):
        link = hashlib.sha256(subject + link).digest()[:LINK_BYTES]
    return link


class Renewals:
    """The chain of one record of this node."""

    def __init__(self, identity: Identity, context: bytes) -> None:
        """`context`: what this chain, and no other of this node, is for."""
        last = identity.derive("renewal", context)[:LINK_BYTES]
        links = [last]
        for _ in range(NUM_RENEWALS_MAX):
            links.append(toward_anchor(identity.peer, links[-1], 1))
        self._links = links[::-1]

    @property
    def anchor(self) -> bytes:
        """What the record says of it."""
        return self._links[0]

    def link(self, number: int) -> bytes:
        """That of the renewal of that number; empty before the first."""
        return self._links[number] if number > ANCHOR_NUMBER else b""
