"""Who a message is from and for: peers (machines with a key) and the actors that live on them."""

from typing import NamedTuple, NewType

PeerId = NewType("PeerId", str)
"""Name of a node: the hash of its Ed25519 public key in lower-case base32 (in simulations: any name)."""


class Address(NamedTuple):
    """One actor on one peer, such as ("3fa…", "swarm") or ("3fa…", "session-7")."""

    peer: PeerId
    actor: str

    def __str__(self) -> str:
        return f"{self.peer[:12]}/{self.actor}"
